package identity

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

const (
	flushEvery = time.Minute
	sweepEvery = time.Hour
	// keepExpired is how long an expired token is still known, so that its bearer
	// is told TOKEN-EXPIRED.
	keepExpired = 7 * 24 * time.Hour
)

// upkeep writes down uses, learns of those on other nodes and clears away old tokens until ctx ends.
func (s *Service) upkeep(ctx context.Context, poll time.Duration) {
	flush, learn, sweep := time.NewTicker(flushEvery), time.NewTicker(max(flushEvery, poll)), time.NewTicker(sweepEvery)
	defer flush.Stop()
	defer learn.Stop()
	defer sweep.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-flush.C:
			err = s.flush(ctx)
		case <-learn.C:
			err = s.learnUses(ctx, 2*max(flushEvery, poll))
		case <-sweep.C:
			err = errors.Join(s.sweep(ctx, time.Now().Add(-keepExpired)), s.store.sweepSignIns(ctx, time.Now()), s.store.sweepNotices(ctx))
		}
		if err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "upkeep of tokens failed, it is tried again", slog.Any("err", err))
		}
	}
}

// flush writes down last uses, attributes of people that issuers asserted, and what is kept under a newer pepper.
func (s *Service) flush(ctx context.Context) error {
	var uses []use
	var again []renewed
	var touched, moved []*entry
	all := s.tokens.entries()
	s.metrics.countPeppers(all, s.peppers)
	for _, e := range all {
		if at := e.used.Load(); at != e.written {
			uses = append(uses, use{e.row.ID, at})
			touched = append(touched, e)
		}
		if v := e.verifier.Load(); v.pepper != e.stored {
			again = append(again, renewed{e.row.ID, *v})
			moved = append(moved, e)
		}
	}
	people := s.tokens.takeStale()
	if err := s.store.write(ctx, uses, people, again); err != nil {
		s.tokens.putBack(people)
		return err
	}
	for i, e := range touched {
		e.written = uses[i].at
	}
	for i, e := range moved {
		e.stored = again[i].pepper
	}
	return nil
}

// learnUses reads what nodes wrote down in the last while: a token that another one saw used is not idle here.
func (s *Service) learnUses(ctx context.Context, last time.Duration) error {
	elsewhere, err := s.store.usesSince(ctx, time.Now().Add(-last-useGranularity*time.Second).Unix())
	for _, u := range elsewhere {
		if e := s.tokens.find(idOf(u.id)); e != s.tokens.ghost {
			e.usedAt(u.at)
		}
	}
	return err
}

// sweep removes tokens that expired before a moment, database first: a token that
// is gone from memory alone would be back after a restart.
func (s *Service) sweep(ctx context.Context, before time.Time) error {
	if err := s.store.sweep(ctx, before.Unix()); err != nil {
		return err
	}
	s.tokens.sweep(before.Unix())
	return nil
}
