package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
)

// ErrQuarantined means that an operator has stopped a version; errors.AsType[*QuarantineError] tells why.
var ErrQuarantined = errors.New("version is in quarantine")

// QuarantineError is a version that an operator has stopped. It matches ErrQuarantined.
type QuarantineError struct {
	Module module.Version
	Reason string
}

func (e *QuarantineError) Error() string {
	return fmt.Sprintf("%s is in quarantine: %s", e.Module, e.Reason)
}

// Is makes it match ErrQuarantined.
func (e *QuarantineError) Is(target error) bool { return target == ErrQuarantined }

// Quarantined is one version that is stopped.
type Quarantined struct {
	Path    string    `json:"module"`
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
}

// quarantine is the memory of its table: why each version in it is stopped.
type quarantine struct {
	reading sync.Mutex // one reader of the table at a time, so that an older look does not win
	known   atomic.Pointer[map[module.Version]string]
}

// reasons are never changed, but replaced.
func (q *quarantine) reasons() map[module.Version]string {
	if known := q.known.Load(); known != nil {
		return *known
	}
	return nil
}

// held refuses a version that is stopped.
func (m *Mirror) held(v module.Version) error {
	if reason, ok := m.quarantine.reasons()[v]; ok {
		return &QuarantineError{Module: v, Reason: reason}
	}
	return nil
}

// released is a list without the versions that are stopped.
func (m *Mirror) released(path string, list []byte) []byte {
	stopped := false
	for v := range m.quarantine.reasons() {
		stopped = stopped || v.Path == path
	}
	if !stopped {
		return list
	}
	var kept []byte
	for line := range bytes.Lines(list) {
		if m.held(module.Version{Path: path, Version: string(bytes.TrimSuffix(line, []byte("\n")))}) == nil {
			kept = append(kept, line...)
		}
	}
	return kept
}

// errNoState is care that needs the state database.
var errNoState = errors.New("this gateway has no state database")

// Quarantine stops a version: from now on nothing of it is served, and lists
// leave it out, until Release. Its files stay where they are.
func (m *Mirror) Quarantine(ctx context.Context, v module.Version, reason string) error {
	if m.state == nil {
		return fmt.Errorf("stopping %s: %w", v, errNoState)
	}
	if _, err := m.state.db.ExecContext(ctx, `INSERT INTO mirror_quarantine (path, version, reason, since) VALUES ($1, $2, $3, $4)
		ON CONFLICT (path, version) DO UPDATE SET reason = excluded.reason`, v.Path, v.Version, plainText(reason), micros(m.now())); err != nil {
		return fmt.Errorf("stopping %s: %w", v, err)
	}
	return m.readQuarantine(ctx)
}

// Release lets a version be served again; fs.ErrNotExist if it was not stopped.
func (m *Mirror) Release(ctx context.Context, v module.Version) error {
	if m.state == nil {
		return fmt.Errorf("releasing %s: %w", v, errNoState)
	}
	result, err := m.state.db.ExecContext(ctx, `DELETE FROM mirror_quarantine WHERE path = $1 AND version = $2`, v.Path, v.Version)
	var n int64
	if err == nil {
		n, err = result.RowsAffected()
	}
	if err == nil && n == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("releasing %s: %w", v, err)
	}
	return m.readQuarantine(ctx)
}

// QuarantineList gives all versions that are stopped, by name.
func (m *Mirror) QuarantineList(ctx context.Context) ([]Quarantined, error) {
	if m.state == nil {
		return nil, nil
	}
	rows, err := m.state.db.QueryContext(ctx, `SELECT path, version, reason, since FROM mirror_quarantine ORDER BY path, version`)
	if err != nil {
		return nil, fmt.Errorf("reading the quarantine: %w", err)
	}
	defer rows.Close()
	var list []Quarantined
	for rows.Next() {
		var q Quarantined
		var since int64
		if err := rows.Scan(&q.Path, &q.Version, &q.Reason, &since); err != nil {
			return nil, fmt.Errorf("reading the quarantine: %w", err)
		}
		q.Since = fromMicros(since)
		list = append(list, q)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the quarantine: %w", err)
	}
	return list, nil
}

// readQuarantine brings the memory up to the table, which another gateway may have changed.
func (m *Mirror) readQuarantine(ctx context.Context) error {
	m.quarantine.reading.Lock()
	defer m.quarantine.reading.Unlock()
	list, err := m.QuarantineList(ctx)
	if err != nil {
		return err
	}
	fresh := make(map[module.Version]string, len(list))
	for _, q := range list {
		fresh[module.Version{Path: q.Path, Version: q.Version}] = q.Reason
	}
	old := m.quarantine.reasons()
	m.quarantine.known.Store(&fresh)
	if maps.Equal(old, fresh) {
		return nil
	}
	for _, set := range []map[module.Version]string{old, fresh} {
		for v := range set {
			if _, both := old[v]; both && old[v] == fresh[v] {
				continue
			}
			m.changed(v) // its module's lists are made again
		}
	}
	return nil
}

// attendInterval is how often use is written down, and what other gateways stopped and learned is read.
const attendInterval = 3 * time.Second

// attend keeps the state database and the memory of care together until the mirror is closed.
func (m *Mirror) attend() {
	ticker := time.NewTicker(attendInterval)
	defer ticker.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-ticker.C:
		}
		m.used.tick.Store(tickOf(m.now()))
		for _, do := range []func(context.Context) error{m.readQuarantine, m.heed, m.flushUsed} {
			if err := do(m.ctx); err != nil && m.ctx.Err() == nil {
				m.log.LogAttrs(m.ctx, slog.LevelError, "state of the mirror's care not kept", slog.Any("err", err))
			}
		}
	}
}
