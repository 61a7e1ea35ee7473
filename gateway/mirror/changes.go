package mirror

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/module"
)

// keptChanges is how long a change is kept: a gateway that could not read the state database for longer starts again.
const keptChanges = 24 * time.Hour

// place takes the next place of the index. The lock lasts until the commit: a later place is never seen before an earlier one.
func place(ctx context.Context, tx *sql.Tx, now int64) (n int64, err error) {
	err = tx.QueryRowContext(ctx, `UPDATE mirror_index_clock SET last = CASE WHEN last < $1 THEN $1 ELSE last + 1 END
		WHERE one = 1 RETURNING last`, now).Scan(&n)
	return n, err
}

// announce tells all gateways over the database that what they know of a version is old, or of a module where the version is "".
func announce(ctx context.Context, tx *sql.Tx, v module.Version, now int64) error {
	seq, err := place(ctx, tx, now)
	if err == nil {
		_, err = tx.ExecContext(ctx, `INSERT INTO mirror_changes (seq, path, version) VALUES ($1, $2, $3)`, seq, v.Path, v.Version)
	}
	return err
}

// inTransaction runs do, and announces v with what it did.
func (s *state) inTransaction(ctx context.Context, v module.Version, do func(*sql.Tx) error) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	if err := announce(ctx, tx, v, micros(s.now())); err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// changesSince gives what changed after a place, oldest first, and the place of the last of them.
func (s *state) changesSince(ctx context.Context, seq int64) (list []module.Version, last int64, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT seq, path, version FROM mirror_changes WHERE seq > $1 ORDER BY seq`, seq)
	if err != nil {
		return nil, 0, fmt.Errorf("reading what changed: %w", err)
	}
	defer rows.Close()
	last = seq
	for rows.Next() {
		var v module.Version
		if err := rows.Scan(&last, &v.Path, &v.Version); err != nil {
			return nil, 0, fmt.Errorf("reading what changed: %w", err)
		}
		list = append(list, v)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("reading what changed: %w", err)
	}
	return list, last, nil
}

// startHeeding begins a little before the newest change: memory is filled meanwhile.
func (m *Mirror) startHeeding(ctx context.Context) error {
	if m.state == nil {
		return nil
	}
	if err := m.state.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(seq), 0) FROM mirror_changes`).Scan(&m.heeded); err != nil {
		return fmt.Errorf("reading what changed: %w", err)
	}
	m.heeded -= time.Minute.Microseconds()
	return nil
}

// heed forgets what this gateway's memory says of versions of which it, or another gateway, learned something since.
func (m *Mirror) heed(ctx context.Context) error {
	if m.state == nil {
		return nil
	}
	list, last, err := m.state.changesSince(ctx, m.heeded)
	if err != nil || len(list) == 0 {
		return err
	}
	for _, v := range list {
		if v.Version == "" {
			err = errors.Join(err, m.changedAll(ctx, v.Path))
			continue
		}
		m.incidents.look(ctx, v)
		m.changed(v)
	}
	if err != nil {
		return err
	}
	m.heeded = last
	if _, err := m.state.db.ExecContext(ctx, `DELETE FROM mirror_changes WHERE seq < $1`, micros(m.now().Add(-keptChanges))); err != nil {
		return fmt.Errorf("forgetting old changes: %w", err)
	}
	return nil
}

// changedAll is changed for all versions of a module that are known.
func (m *Mirror) changedAll(ctx context.Context, path string) error {
	rows, err := m.state.versions(ctx, path, "")
	for v := range rows {
		m.changed(module.Version{Path: path, Version: v})
	}
	return err
}
