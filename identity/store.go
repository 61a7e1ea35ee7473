package identity

import (
	"context"
	"database/sql"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// versionTable is this package's own, since one database serves several.
const versionTable = "identity_goose_version"

// A verifier is what of a token's text is kept: its digest, under a version of the pepper.
type verifier struct {
	pepper int
	digest digest
}

// A row is a token as the database holds it.
type row struct {
	Token
	verifier
	asOf int64 // when the attributes of Subject were asserted; 0: never by an issuer
}

// A store is the table of tokens.
type store struct{ db *sql.DB }

func openStore(ctx context.Context, db *sql.DB) (*store, error) {
	if db == nil {
		return nil, errors.New("opening token table: no database is given")
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("opening migrations: %w", err)
	}
	dialect := dialectOf(ctx, db)
	options := []goose.ProviderOption{
		goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()),
	}
	if dialect == goose.DialectPostgres { // several nodes may start at once
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return nil, fmt.Errorf("preparing migrations: %w", err)
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(dialect, db, sub, options...)
	if err != nil {
		return nil, fmt.Errorf("preparing migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return nil, fmt.Errorf("migrating token table: %w", err)
	}
	if dialect == goose.DialectPostgres {
		if _, err := db.ExecContext(ctx, notify); err != nil {
			return nil, fmt.Errorf("preparing notifications: %w", err)
		}
	}
	return &store{db: db}, nil
}

// NotifyChannel is where PostgreSQL notifies listeners that something changed on some node.
const NotifyChannel = "headgate_identity"

// notify makes each change of the clock a notification. Nodes that start together take turns.
const notify = `BEGIN;
	SELECT pg_advisory_xact_lock(hashtext('` + NotifyChannel + `'));
	CREATE OR REPLACE FUNCTION identity_notify() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_notify('` + NotifyChannel + `', ''); RETURN NULL; END $$;
	CREATE OR REPLACE TRIGGER identity_clock_notify AFTER UPDATE ON identity_clock EXECUTE FUNCTION identity_notify();
	COMMIT`

// dialectOf tells which of the two databases this is: only one knows its version by this name.
func dialectOf(ctx context.Context, db *sql.DB) goose.Dialect {
	var version string
	if err := db.QueryRowContext(ctx, `SELECT sqlite_version()`).Scan(&version); err != nil {
		return goose.DialectPostgres
	}
	return goose.DialectSQLite3
}

const columns = `id, class, pepper, digest, subject_issuer, subject_id, subject, subject_as_of, assurance,
	owner, note, scope, parent, exchanged, created, expires, used, revoked, bound`

// all reads each token.
func (s *store) all(ctx context.Context) ([]row, error) {
	return s.rows(ctx, `SELECT `+columns+` FROM identity_tokens`)
}

func (s *store) rows(ctx context.Context, query string, args ...any) ([]row, error) {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading tokens: %w", err)
	}
	defer rows.Close()
	var all []row
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading tokens: %w", err)
	}
	return all, nil
}

func scan(rows *sql.Rows) (row, error) {
	var r row
	var sum, issuer, id, subject, scope, bound string
	var created, expires, used, revoked int64
	if err := rows.Scan(&r.ID, &r.Class, &r.pepper, &sum, &issuer, &id, &subject, &r.asOf, &r.Assurance,
		&r.Owner, &r.Note, &scope, &r.Parent, &r.Exchanged, &created, &expires, &used, &revoked, &bound); err != nil {
		return row{}, fmt.Errorf("reading token: %w", err)
	}
	if n, err := hex.Decode(r.digest[:], []byte(sum)); err != nil || n != len(r.digest) || len(r.ID) != idLen {
		return row{}, fmt.Errorf("reading token %q: id or digest is damaged", r.ID)
	}
	err := errors.Join(json.Unmarshal([]byte(subject), &r.Subject), json.Unmarshal([]byte(scope), &r.Scope))
	if bound != "" {
		err = errors.Join(err, json.Unmarshal([]byte(bound), &r.Bound))
	}
	if err != nil {
		return row{}, fmt.Errorf("reading token %s: %w", r.ID, err)
	}
	r.Subject.Issuer, r.Subject.ID = issuer, id
	r.Created, r.Expires, r.LastUsed, r.Revoked = fromUnix(created), fromUnix(expires), fromUnix(used), fromUnix(revoked)
	return r, nil
}

func (s *store) insert(ctx context.Context, r row) error {
	subject, err := json.Marshal(r.Subject)
	if err != nil {
		return fmt.Errorf("encoding subject of token %s: %w", r.ID, err)
	}
	scope, err := json.Marshal(r.Scope)
	if err != nil {
		return fmt.Errorf("encoding scope of token %s: %w", r.ID, err)
	}
	var bound []byte
	if r.Bound != nil {
		if bound, err = json.Marshal(r.Bound); err != nil {
			return fmt.Errorf("encoding device of token %s: %w", r.ID, err)
		}
	}
	err = s.change(ctx, func(tx *sql.Tx, at int64) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO identity_tokens (`+columns+`, changed)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)`,
			r.ID, string(r.Class), r.pepper, hex.EncodeToString(r.digest[:]), r.Subject.Issuer, r.Subject.ID, string(subject), r.asOf, r.Assurance,
			r.Owner, r.Note, string(scope), r.Parent, r.Exchanged, toUnix(r.Created), toUnix(r.Expires), toUnix(r.LastUsed), toUnix(r.Revoked), string(bound), at)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing token %s: %w", r.ID, err)
	}
	return nil
}

// revoke marks a token as revoked; the first time stays.
func (s *store) revoke(ctx context.Context, id string, at int64) error {
	err := s.change(ctx, func(tx *sql.Tx, place int64) error {
		_, err := tx.ExecContext(ctx, `UPDATE identity_tokens SET revoked = $1, changed = $2 WHERE id = $3 AND revoked = 0`, at, place, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("revoking token %s: %w", id, err)
	}
	return nil
}

// A use is when a token was last used.
type use struct {
	id string
	at int64
}

// A renewed token is kept under another pepper than before.
type renewed struct {
	id string
	verifier
}

// write notes uses, newer attributes of people, and what is kept under another pepper, all or nothing.
func (s *store) write(ctx context.Context, uses []use, people []person, again []renewed) error {
	if len(uses) == 0 && len(people) == 0 && len(again) == 0 {
		return nil
	}
	return s.change(ctx, func(tx *sql.Tx, at int64) error {
		for _, u := range uses {
			if _, err := tx.ExecContext(ctx, `UPDATE identity_tokens SET used = $1 WHERE id = $2 AND used < $1`, u.at, u.id); err != nil {
				return fmt.Errorf("writing use of token %s: %w", u.id, err)
			}
		}
		for _, p := range people {
			text, err := json.Marshal(p.subject)
			if err != nil {
				return fmt.Errorf("encoding subject: %w", err)
			}
			if _, err := tx.ExecContext(ctx, `UPDATE identity_tokens SET subject = $1, subject_as_of = $2, changed = $3
				WHERE subject_issuer = $4 AND subject_id = $5 AND subject_as_of < $2`,
				string(text), p.asOf, at, p.subject.Issuer, p.subject.ID); err != nil {
				return fmt.Errorf("writing attributes of subjects: %w", err)
			}
		}
		for _, r := range again {
			if _, err := tx.ExecContext(ctx, `UPDATE identity_tokens SET pepper = $1, digest = $2, changed = $3 WHERE id = $4 AND pepper <> $1`,
				r.pepper, hex.EncodeToString(r.digest[:]), at, r.id); err != nil {
				return fmt.Errorf("writing token %s under another pepper: %w", r.id, err)
			}
		}
		return nil
	})
}

// usesSince reads the tokens that some node saw used since a moment.
func (s *store) usesSince(ctx context.Context, moment int64) ([]use, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, used FROM identity_tokens WHERE used >= $1`, moment)
	if err != nil {
		return nil, fmt.Errorf("reading uses of tokens: %w", err)
	}
	defer rows.Close()
	var list []use
	for rows.Next() {
		var u use
		if err := rows.Scan(&u.id, &u.at); err != nil {
			return nil, fmt.Errorf("reading uses of tokens: %w", err)
		}
		list = append(list, u)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading uses of tokens: %w", err)
	}
	return list, nil
}

// sweep removes tokens that expired before a moment.
func (s *store) sweep(ctx context.Context, before int64) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM identity_tokens WHERE expires < $1`, before); err != nil {
		return fmt.Errorf("sweeping tokens: %w", err)
	}
	return nil
}
