package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// usedGrain is how exactly is known when a version was last used.
const usedGrain = 10 * time.Minute

func tickOf(t time.Time) int64 { return t.UnixNano() / int64(usedGrain) }

// used knows which versions were used since the state database was last told,
// and which are being read. A version that is asked for again and again costs
// it two loads a request.
type used struct {
	tick atomic.Int64 // of now, advanced by attend

	mu      sync.Mutex // guards all below
	waiting map[module.Version]int64
	open    map[module.Version]int // readers and takers
}

func newUsed(now time.Time) *used {
	u := &used{waiting: map[module.Version]int64{}, open: map[module.Version]int{}}
	u.tick.Store(tickOf(now))
	return u
}

// touch notes that a version is used, at most once a tick for each template.
func (u *used) touch(v module.Version, last *atomic.Int64) {
	now := u.tick.Load()
	if last != nil && last.Swap(now) == now {
		return
	}
	u.mu.Lock()
	u.waiting[v] = now
	u.mu.Unlock()
}

// hold keeps a version from being collected until let go.
func (u *used) hold(v module.Version) (letGo func()) {
	u.mu.Lock()
	u.open[v]++
	u.mu.Unlock()
	return sync.OnceFunc(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.open[v]--; u.open[v] == 0 {
			delete(u.open, v)
		}
	})
}

// heldZip keeps its version until it is closed.
type heldZip struct {
	store.File
	letGo func()
}

func (z *heldZip) Close() error {
	defer z.letGo()
	return z.File.Close()
}

// busy tells whether a version is being read or taken in.
func (u *used) busy(v module.Version) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.open[v] > 0
}

// flushUsed writes what was used since into the state database, in one transaction.
func (m *Mirror) flushUsed(ctx context.Context) (err error) {
	m.used.mu.Lock()
	list := m.used.waiting
	m.used.waiting = map[module.Version]int64{}
	m.used.mu.Unlock()
	if m.state == nil || len(list) == 0 {
		return nil
	}
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("noting which versions were used: %w", err)
		m.used.mu.Lock() // for the next time
		defer m.used.mu.Unlock()
		for v, at := range list {
			m.used.waiting[v] = max(at, m.used.waiting[v])
		}
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stateTimeout)
	defer cancel()
	tx, err := m.state.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	// In one order in all gateways: two that lock the same rows in different orders would wait for each other.
	for _, v := range slices.SortedFunc(maps.Keys(list), compareModules) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO mirror_used (path, version, used) VALUES ($1, $2, $3)
			ON CONFLICT (path, version) DO UPDATE SET used = excluded.used`,
			v.Path, v.Version, list[v]*usedGrain.Microseconds()); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

func compareModules(a, b module.Version) int {
	return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Version, b.Version))
}

// lastUsed gives when each version was last used, as far as that was noted.
func (m *Mirror) lastUsed(ctx context.Context) (map[module.Version]time.Time, error) {
	if err := m.flushUsed(ctx); err != nil {
		return nil, err
	}
	rows, err := m.state.db.QueryContext(ctx, `SELECT path, version, used FROM mirror_used`)
	if err != nil {
		return nil, fmt.Errorf("reading which versions were used: %w", err)
	}
	defer rows.Close()
	all := map[module.Version]time.Time{}
	for rows.Next() {
		var v module.Version
		var at int64
		if err := rows.Scan(&v.Path, &v.Version, &at); err != nil {
			return nil, fmt.Errorf("reading which versions were used: %w", err)
		}
		all[v] = fromMicros(at)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading which versions were used: %w", err)
	}
	return all, nil
}
