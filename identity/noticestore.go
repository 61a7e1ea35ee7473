package identity

import (
	"context"
	"fmt"
	"time"
)

// A noticeKey is one notice: of one token, so long before its end.
type noticeKey struct {
	token  string
	before time.Duration
}

// notTold reads the notices that nobody may send now: they are done, or wait, or another node is at it.
func (s *store) notTold(ctx context.Context, now time.Time) (map[noticeKey]bool, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT token, before FROM identity_notices WHERE done <> 0 OR held_until > $1`, now.Unix())
	if err != nil {
		return nil, fmt.Errorf("reading notices: %w", err)
	}
	defer rows.Close()
	held := map[noticeKey]bool{}
	for rows.Next() {
		var k noticeKey
		var seconds int64
		if err := rows.Scan(&k.token, &seconds); err != nil {
			return nil, fmt.Errorf("reading notices: %w", err)
		}
		k.before = time.Duration(seconds) * time.Second
		held[k] = true
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading notices: %w", err)
	}
	return held, nil
}

// claimNotice makes a notice this node's own until a moment and counts the try; 0 tries: another node has it, or it is done.
func (s *store) claimNotice(ctx context.Context, k noticeKey, now, until time.Time) (tries int, err error) {
	rows, err := s.db.QueryContext(ctx, `INSERT INTO identity_notices (token, before, tries, held_until, done) VALUES ($1, $2, 1, $3, 0)
		ON CONFLICT (token, before) DO UPDATE SET tries = identity_notices.tries + 1, held_until = excluded.held_until
			WHERE identity_notices.done = 0 AND identity_notices.held_until <= $4
		RETURNING tries`, k.token, int64(k.before/time.Second), until.Unix(), now.Unix())
	if err != nil {
		return 0, fmt.Errorf("claiming notice of token %s: %w", k.token, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(&tries); err != nil {
			return 0, fmt.Errorf("claiming notice of token %s: %w", k.token, err)
		}
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("claiming notice of token %s: %w", k.token, err)
	}
	return tries, nil
}

// closeNotice says that a notice is done, or from when it may be tried again; one of the two is zero.
func (s *store) closeNotice(ctx context.Context, k noticeKey, done, again time.Time) error {
	if _, err := s.db.ExecContext(ctx, `UPDATE identity_notices SET done = $1, held_until = $2 WHERE token = $3 AND before = $4`,
		toUnix(done), toUnix(again), k.token, int64(k.before/time.Second)); err != nil {
		return fmt.Errorf("closing notice of token %s: %w", k.token, err)
	}
	return nil
}

// sweepNotices forgets notices of tokens that are gone.
func (s *store) sweepNotices(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM identity_notices WHERE token NOT IN (SELECT id FROM identity_tokens)`); err != nil {
		return fmt.Errorf("sweeping notices: %w", err)
	}
	return nil
}
