package identity

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"time"
)

const personColumns = `issuer, id, subject, as_of, kept, until, checked, refused`

// scanPerson reads personColumns.
func scanPerson(scan func(...any) error) (personRow, error) {
	var p personRow
	var issuer, id, text string
	if err := scan(&issuer, &id, &text, &p.asOf, &p.kept, &p.until, &p.checked, &p.refused); err != nil {
		return personRow{}, err
	}
	if err := json.Unmarshal([]byte(text), &p.subject); err != nil {
		return personRow{}, fmt.Errorf("reading person %q: %w", id, err)
	}
	p.subject.Issuer, p.subject.ID, p.subject.Method = issuer, id, MethodOIDC
	return p, nil
}

// putSession stores a new session and its person, all or nothing.
func (s *store) putSession(ctx context.Context, digest string, n Session, p personRow) error {
	text, err := json.Marshal(p.subject)
	if err != nil {
		return fmt.Errorf("encoding subject: %w", err)
	}
	return s.change(ctx, func(tx *sql.Tx, at int64) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO identity_people (`+personColumns+`, taken, changed)
			VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, $8)
			ON CONFLICT (issuer, id) DO UPDATE SET subject = excluded.subject, as_of = excluded.as_of, kept = excluded.kept,
				until = excluded.until, checked = excluded.checked, taken = 0, refused = 0, changed = excluded.changed`,
			p.subject.Issuer, p.subject.ID, string(text), p.asOf, p.kept, p.until, p.checked, at)
		if err != nil {
			return fmt.Errorf("storing person: %w", err)
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO identity_sessions (digest, id, issuer, subject, assurance, created, used, expires)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			digest, n.ID, n.Subject.Issuer, n.Subject.ID, n.Subject.Assurance, n.Created.Unix(), n.Created.Unix(), n.Expires.Unix())
		return err
	})
}

// session reads a session that is not over, and notes its use. One that is not there is fs.ErrNotExist.
func (s *store) session(ctx context.Context, digest string, now time.Time) (Session, personRow, error) {
	var n Session
	var issuer, subject string
	var assurance int
	var created, expires int64
	err := s.db.QueryRowContext(ctx, `UPDATE identity_sessions SET used = $1 WHERE digest = $2 AND expires > $1 AND used > $3
		RETURNING id, issuer, subject, assurance, created, expires`, now.Unix(), digest, now.Add(-sessionIdle).Unix()).
		Scan(&n.ID, &issuer, &subject, &assurance, &created, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return Session{}, personRow{}, fs.ErrNotExist
	}
	if err != nil {
		return Session{}, personRow{}, fmt.Errorf("reading session: %w", err)
	}
	p, err := s.person(ctx, subjectKey{issuer, subject})
	if err != nil {
		return Session{}, personRow{}, err
	}
	n.Subject, n.Created, n.Expires, n.Until, n.asOf = p.subject, fromUnix(created), fromUnix(expires), fromUnix(p.until), p.asOf
	n.Subject.Assurance = assurance
	return n, p, nil
}

func (s *store) person(ctx context.Context, k subjectKey) (personRow, error) {
	p, err := scanPerson(s.db.QueryRowContext(ctx, `SELECT `+personColumns+` FROM identity_people WHERE issuer = $1 AND id = $2`, k.issuer, k.id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return personRow{}, fs.ErrNotExist
	}
	if err != nil {
		return personRow{}, fmt.Errorf("reading person: %w", err)
	}
	return p, nil
}

// endSession removes a session and gives the ids of the tokens that were minted in it.
func (s *store) endSession(ctx context.Context, digest string) (tokens []string, err error) {
	var id string
	err = s.db.QueryRowContext(ctx, `DELETE FROM identity_sessions WHERE digest = $1 RETURNING id`, digest).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ending session: %w", err)
	}
	rows, err := s.db.QueryContext(ctx, `SELECT token FROM identity_session_tokens WHERE session = $1 ORDER BY token`, id)
	if err != nil {
		return nil, fmt.Errorf("reading tokens of session %s: %w", id, err)
	}
	defer rows.Close()
	for rows.Next() {
		var token string
		if err := rows.Scan(&token); err != nil {
			return nil, fmt.Errorf("reading tokens of session %s: %w", id, err)
		}
		tokens = append(tokens, token)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading tokens of session %s: %w", id, err)
	}
	return tokens, nil
}

func (s *store) bindToSession(ctx context.Context, session, token string) error {
	if _, err := s.db.ExecContext(ctx, `INSERT INTO identity_session_tokens (session, token) VALUES ($1, $2)`, session, token); err != nil {
		return fmt.Errorf("storing token %s of session %s: %w", token, session, err)
	}
	return nil
}

// useOnce notes a secret as used and tells whether it was the first time.
func (s *store) useOnce(ctx context.Context, secret string, expires int64) (bool, error) {
	done, err := s.db.ExecContext(ctx, `INSERT INTO identity_used (digest, expires) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING`, secretDigest(secret), expires)
	if err != nil {
		return false, fmt.Errorf("noting a state as used: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// takePeople takes on those who are to be asked about, have something here that is not over, and whom no node has taken.
func (s *store) takePeople(ctx context.Context, now time.Time, most int) ([]personRow, error) {
	return s.people(ctx, `UPDATE identity_people SET taken = $1 WHERE taken <= $3 AND (issuer, id) IN (
		SELECT p.issuer, p.id FROM identity_people p WHERE p.kept <> '' AND p.checked <= $2 AND p.taken <= $3
			AND (EXISTS (SELECT 1 FROM identity_sessions n WHERE n.issuer = p.issuer AND n.subject = p.id AND n.expires > $1)
				OR EXISTS (SELECT 1 FROM identity_tokens t WHERE t.subject_issuer = p.issuer AND t.subject_id = p.id AND t.revoked = 0 AND t.expires > $1))
		ORDER BY p.checked LIMIT $4) RETURNING `+personColumns,
		now.Unix(), now.Add(-recheckEvery).Unix(), now.Add(-recheckLease).Unix(), most)
}

// peopleSince reads the people who changed behind a place.
func (s *store) peopleSince(ctx context.Context, seen int64) ([]personRow, error) {
	return s.people(ctx, `SELECT `+personColumns+` FROM identity_people WHERE changed > $1 ORDER BY changed`, seen)
}

func (s *store) people(ctx context.Context, query string, args ...any) ([]personRow, error) {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading people: %w", err)
	}
	defer rows.Close()
	var list []personRow
	for rows.Next() {
		p, err := scanPerson(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("reading people: %w", err)
		}
		list = append(list, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading people: %w", err)
	}
	return list, nil
}

// putPerson stores what an issuer said of a person; other nodes are told only if it is something new. Whoever signed in
// meanwhile is described better by that.
func (s *store) putPerson(ctx context.Context, p, old personRow) error {
	text, err := json.Marshal(p.subject)
	if err != nil {
		return fmt.Errorf("encoding subject: %w", err)
	}
	if p.refused == old.refused && reflect.DeepEqual(p.subject, old.subject) {
		_, err := s.db.ExecContext(ctx, `UPDATE identity_people SET as_of = $1, kept = $2, until = $3, checked = $4
			WHERE issuer = $5 AND id = $6 AND kept = $7`, p.asOf, p.kept, p.until, p.checked, p.subject.Issuer, p.subject.ID, old.kept)
		return err
	}
	return s.change(ctx, func(tx *sql.Tx, at int64) error {
		_, err := tx.ExecContext(ctx, `UPDATE identity_people SET subject = $1, as_of = $2, kept = $3, until = $4, checked = $5, refused = $6, changed = $7
			WHERE issuer = $8 AND id = $9 AND kept = $10`,
			string(text), p.asOf, p.kept, p.until, p.checked, p.refused, at, p.subject.Issuer, p.subject.ID, old.kept)
		return err
	})
}

// sweepSignIns removes what is over.
func (s *store) sweepSignIns(ctx context.Context, now time.Time) error {
	var all []error
	for _, old := range []struct {
		query string
		since time.Time
	}{
		{`DELETE FROM identity_used WHERE expires < $1`, now},
		{`DELETE FROM identity_guesses WHERE at < $1`, now.Add(-guessWindow)},
		{`DELETE FROM identity_grants WHERE expires < $1`, now.Add(-time.Hour)}, // who still polls is told so
		{`DELETE FROM identity_sessions WHERE expires < $1 OR used < $1 - 3600`, now},
		{`DELETE FROM identity_session_tokens WHERE NOT EXISTS (SELECT 1 FROM identity_sessions WHERE id = session) AND CAST($1 AS BIGINT) > 0`, now},
		{`DELETE FROM identity_people WHERE checked < $1 AND (refused = 0 OR refused < $1 - 86400)
			AND NOT EXISTS (SELECT 1 FROM identity_sessions n WHERE n.issuer = identity_people.issuer AND n.subject = identity_people.id)
			AND NOT EXISTS (SELECT 1 FROM identity_tokens t WHERE t.subject_issuer = identity_people.issuer AND t.subject_id = identity_people.id)`, now.Add(-time.Hour)},
	} {
		if _, err := s.db.ExecContext(ctx, old.query, old.since.Unix()); err != nil {
			all = append(all, fmt.Errorf("sweeping sign-ins: %w", err))
		}
	}
	return errors.Join(all...)
}
