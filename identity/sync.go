package identity

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"
)

// pollEvery is how often the database is asked for what other nodes changed, unless Options says otherwise.
const pollEvery = 30 * time.Second

// syncTimeout bounds one look.
const syncTimeout = 10 * time.Second

// ViewAge is how long ago this node last knew everything that was revoked and locked on any node.
func (s *Service) ViewAge() time.Duration { return time.Since(time.Unix(0, s.viewed.Load())) }

// follow keeps the view fresh until ctx ends.
func (s *Service) follow(ctx context.Context, every time.Duration, wake <-chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
		err := s.sync(ctx)
		s.metrics.viewAge.Set(s.ViewAge().Seconds())
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			s.log.LogAttrs(ctx, slog.LevelWarn, "revocations and locks of other nodes are not known", slog.Any("err", err))
		case err == nil && failing:
			s.log.LogAttrs(ctx, slog.LevelInfo, "revocations and locks of other nodes are known again")
		}
		failing = err != nil
	}
}

// sync learns what was changed on any node since the last look, in the order of the clock.
func (s *Service) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	s.view.Lock()
	defer s.view.Unlock()
	begun := time.Now()
	last, err := s.store.clock(ctx)
	if err != nil {
		return err
	}
	if last != s.seen {
		tokens, err := s.store.tokensSince(ctx, s.seen)
		if err != nil {
			return err
		}
		changes, err := s.store.locksSince(ctx, s.seen)
		if err != nil {
			return err
		}
		if err := s.learnDevices(ctx, s.seen); err != nil {
			return err
		}
		for _, t := range tokens {
			if known := s.tokens.find(idOf(t.ID)); known != s.tokens.ghost && s.peppers.byVersion[t.pepper] == nil {
				t.verifier = *known.verifier.Load() // this node has not been given that pepper yet: what it has still fits
			}
			s.tokens.merge(t)
		}
		s.tokens.link()
		if err := s.learnPeople(ctx, s.seen); err != nil { // after the tokens that they hold
			return err
		}
		s.hold(changes)
		s.seen = last
	}
	s.viewed.Store(begun.UnixNano())
	return nil
}

// change runs one transaction under the clock's row, so that what it writes with its place is learnt by every node.
func (s *store) change(ctx context.Context, write func(tx *sql.Tx, at int64) error) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // the first error is the reason
		}
	}()
	var at int64
	if err := tx.QueryRowContext(ctx, `UPDATE identity_clock SET last = last + 1 WHERE one = 1 RETURNING last`).Scan(&at); err != nil {
		return fmt.Errorf("taking a place in the order of changes: %w", err)
	}
	if err := write(tx, at); err != nil {
		return err
	}
	return tx.Commit()
}

// clock is the place of the newest change.
func (s *store) clock(ctx context.Context) (last int64, err error) {
	if err := s.db.QueryRowContext(ctx, `SELECT last FROM identity_clock WHERE one = 1`).Scan(&last); err != nil {
		return 0, fmt.Errorf("reading the place of the newest change: %w", err)
	}
	return last, nil
}

// tokensSince reads the tokens that changed behind a place.
func (s *store) tokensSince(ctx context.Context, seen int64) ([]row, error) {
	return s.rows(ctx, `SELECT `+columns+` FROM identity_tokens WHERE changed > $1 ORDER BY changed`, seen)
}

// locksSince reads the locks that changed behind a place.
func (s *store) locksSince(ctx context.Context, seen int64) ([]heldLock, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT kind, object, reason, author, created, expires, lifted FROM identity_locks
		WHERE changed > $1 ORDER BY changed`, seen)
	if err != nil {
		return nil, fmt.Errorf("reading locks: %w", err)
	}
	defer rows.Close()
	var list []heldLock
	for rows.Next() {
		var l heldLock
		var created, expires, lifted int64
		if err := rows.Scan(&l.Kind, &l.Object, &l.Reason, &l.By, &created, &expires, &lifted); err != nil {
			return nil, fmt.Errorf("reading locks: %w", err)
		}
		l.Created, l.Expires, l.inForce = fromUnix(created), fromUnix(expires), lifted == 0
		list = append(list, l)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading locks: %w", err)
	}
	return list, nil
}
