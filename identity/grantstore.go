package identity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// The states of a grant.
const (
	grantPending  = "pending"
	grantAllowed  = "allowed"
	grantDenied   = "denied"
	grantRedeemed = "redeemed"
)

// A grantRow is a grant as the database holds it.
type grantRow struct {
	Grant
	client, state, issuer, subject, session string
	assurance                               int
	over                                    bool // its time is up
	hasty                                   bool // this poll came too soon
}

// putGrant stores a grant unless too many wait already; then ok is false.
func (s *store) putGrant(ctx context.Context, digest string, g grantRow) (ok bool, err error) {
	now := g.Created.Unix()
	done, err := s.db.ExecContext(ctx, `INSERT INTO identity_grants
			(digest, user_code, client, scope, address, host, created, expires, polled, pause, state, issuer, subject, session, assurance)
		SELECT $1, $2, $3, $4, $5, $6, CAST($7 AS BIGINT), CAST($8 AS BIGINT), 0, CAST($9 AS BIGINT), 'pending', '', '', '', 0
		WHERE (SELECT COUNT(*) FROM identity_grants WHERE expires > CAST($7 AS BIGINT)) < CAST($10 AS BIGINT)
			AND (SELECT COUNT(*) FROM identity_grants WHERE expires > CAST($7 AS BIGINT) AND address = $5) < CAST($11 AS BIGINT)`,
		digest, secretDigest(g.UserCode), g.client, g.Scope.String(), g.Address, g.Host, now, g.Expires.Unix(), int64(grantPause/time.Second), grantsPending, grantsAtOnce)
	if err != nil {
		return false, fmt.Errorf("storing grant: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// grantOf finds a grant that waits, by its user code. One that is not there is fs.ErrNotExist.
func (s *store) grantOf(ctx context.Context, code string, now time.Time) (grantRow, error) {
	g := grantRow{Grant: Grant{UserCode: code}, state: grantPending}
	var scope string
	var created, expires int64
	err := s.db.QueryRowContext(ctx, `SELECT scope, address, host, created, expires FROM identity_grants
		WHERE user_code = $1 AND state = 'pending' AND expires > $2`, secretDigest(code), now.Unix()).Scan(&scope, &g.Address, &g.Host, &created, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return grantRow{}, fs.ErrNotExist
	}
	if err == nil {
		g.Scope, err = ParseScope(scope)
	}
	if err != nil {
		return grantRow{}, fmt.Errorf("reading grant: %w", err)
	}
	g.Created, g.Expires = fromUnix(created), fromUnix(expires)
	return g, nil
}

// answerGrant notes an answer, the first one, and tells whether it was that.
func (s *store) answerGrant(ctx context.Context, code string, by Session, allow bool, now time.Time) (bool, error) {
	state := grantDenied
	if allow {
		state = grantAllowed
	}
	done, err := s.db.ExecContext(ctx, `UPDATE identity_grants SET state = $1, issuer = $2, subject = $3, session = $4, assurance = $5
		WHERE user_code = $6 AND state = 'pending' AND expires > $7`,
		state, by.Subject.Issuer, by.Subject.ID, by.ID, by.Subject.Assurance, secretDigest(code), now.Unix())
	if err != nil {
		return false, fmt.Errorf("answering grant: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// pollGrant notes a poll and gives the grant. One that comes too soon lengthens the pause (RFC 8628, 3.5).
func (s *store) pollGrant(ctx context.Context, digest string, now time.Time) (g grantRow, err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return grantRow{}, fmt.Errorf("polling grant: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	var scope string
	var created, expires, polled, pause int64
	err = tx.QueryRowContext(ctx, `UPDATE identity_grants SET client = client WHERE digest = $1
		RETURNING scope, address, host, created, expires, polled, pause, state, issuer, subject, session, assurance`, digest).
		Scan(&scope, &g.Address, &g.Host, &created, &expires, &polled, &pause, &g.state, &g.issuer, &g.subject, &g.session, &g.assurance)
	if errors.Is(err, sql.ErrNoRows) {
		return grantRow{}, fs.ErrNotExist
	}
	if err == nil {
		g.Scope, err = ParseScope(scope)
	}
	if err != nil {
		return grantRow{}, fmt.Errorf("polling grant: %w", err)
	}
	g.Created, g.Expires = fromUnix(created), fromUnix(expires)
	g.over, g.hasty = now.Unix() >= expires, now.Unix()-polled < pause
	if g.hasty {
		pause += int64(grantPause / time.Second)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE identity_grants SET polled = $1, pause = $2 WHERE digest = $3`, now.Unix(), pause, digest); err != nil {
		return grantRow{}, fmt.Errorf("polling grant: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return grantRow{}, fmt.Errorf("polling grant: %w", err)
	}
	return g, nil
}

// redeem marks an allowed grant as used and tells whether it was not before.
func (s *store) redeem(ctx context.Context, digest string) (bool, error) {
	done, err := s.db.ExecContext(ctx, `UPDATE identity_grants SET state = 'redeemed' WHERE digest = $1 AND state = 'allowed'`, digest)
	if err != nil {
		return false, fmt.Errorf("redeeming grant: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// guesses counts the wrong codes of a person since a moment.
func (s *store) guesses(ctx context.Context, k subjectKey, since time.Time) (n int, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM identity_guesses WHERE issuer = $1 AND subject = $2 AND at > $3`,
		k.issuer, k.id, since.Unix()).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting wrong codes: %w", err)
	}
	return n, nil
}

func (s *store) putGuess(ctx context.Context, k subjectKey, now time.Time) error {
	if _, err := s.db.ExecContext(ctx, `INSERT INTO identity_guesses (issuer, subject, at) VALUES ($1, $2, $3)`, k.issuer, k.id, now.Unix()); err != nil {
		return fmt.Errorf("counting wrong codes: %w", err)
	}
	return nil
}
