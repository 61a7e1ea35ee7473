package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/gateway/mirror/sumdb"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// fetchSumdb reaches a checksum database through the upstreams. A 404 counts
// as the database's own only once an upstream has said that it proxies it.
func (m *Mirror) fetchSumdb(name string) sumdb.Fetch {
	return func(ctx context.Context, path string, maxBytes int64) ([]byte, error) {
		if isCachedOnly(ctx) {
			return nil, fmt.Errorf("checksum database %s: %w", name, fs.ErrNotExist)
		}
		if _, ok := m.supported.Load(name); !ok {
			if _, err := m.up.Get(ctx, "sumdb/"+name+"/supported", maxInfo, nil); err != nil {
				if errors.Is(err, upstream.ErrNotFound) {
					err = fmt.Errorf("%w: no upstream proxies checksum database %s", ErrUpstream, name)
				}
				return nil, err
			}
			m.supported.Store(name, true)
		}
		return m.up.Get(ctx, "sumdb/"+name+path, maxBytes, nil)
	}
}

// openSumdb serves a checksum database: what was proved, from the store where it is.
func (m *Mirror) openSumdb(ctx context.Context, t Target) (*File, error) {
	db := m.databases[t.Sumdb]
	if db == nil && (m.own == nil || t.Sumdb != m.own.Name()) {
		return nil, fmt.Errorf("%s: %w", t.Sumdb, ErrUnknownSumdb)
	}
	if f := m.hot.get(t); f != nil { // lookups and tiles never change
		m.metrics.cache.WithLabelValues("memory", "hit").Inc()
		return open(f, "memory"), nil
	}
	f := &File{ContentType: textPlain, Version: t.Version}
	if t.Tail == "supported" {
		f.Body = []byte{} // answered here, never asked
		if err := finish(f, Sumdb); err != nil {
			return nil, err
		}
		return open(f, "memory"), nil
	}
	if m.own != nil && t.Sumdb == m.own.Name() {
		return m.openOwnSumdb(ctx, t)
	}
	if t.Path != "" {
		if db != m.origin && m.Visibility(t.Path) == Private {
			return nil, fmt.Errorf("%s at %s: %w", t.Path, t.Sumdb, ErrPrivate)
		}
		if err := m.route(t.Path); err != nil && db != m.origin {
			return nil, err
		}
		f.Facts = m.Facts(ctx, t.Path, t.Version)
	}
	only := isCachedOnly(ctx) || m.up.Island() || db == m.origin
	body, tier, err := m.sumdbBody(ctx, db, t, only)
	if err != nil {
		return nil, err
	}
	f.Body = body
	if strings.HasPrefix(t.Tail, "tile/") {
		f.ContentType = "application/octet-stream"
	}
	if err := finish(f, Sumdb); err != nil {
		return nil, err
	}
	if t.Tail != "latest" {
		m.hot.put(t, f)
	}
	return open(f, tier), nil
}

func (m *Mirror) sumdbBody(ctx context.Context, db *sumdb.Database, t Target, only bool) ([]byte, string, error) {
	b, err := readSumdb(ctx, db, t, true)
	if err == nil && (only || t.Tail != "latest" || db.Fresh()) {
		m.metrics.cache.WithLabelValues("disk", "hit").Inc()
		return b, "disk", nil
	}
	if only {
		m.metrics.cache.WithLabelValues("disk", "miss").Inc()
		return nil, "", notThere(t)
	}
	v, err := m.flight(ctx, t, func(ctx context.Context) (any, error) {
		leave, err := m.laneOf(t).enter(ctx)
		if err != nil {
			return nil, err
		}
		defer leave()
		return readSumdb(ctx, db, t, false)
	})
	switch {
	case errors.Is(err, ErrBusy):
		m.metrics.cache.WithLabelValues("upstream", "error").Inc()
		return nil, "", err
	case err == nil:
		m.metrics.cache.WithLabelValues("upstream", "hit").Inc()
		return v.([]byte), "upstream", nil
	case errors.Is(err, fs.ErrNotExist):
		m.metrics.cache.WithLabelValues("upstream", "miss").Inc()
		return nil, "", notThere(t)
	}
	m.metrics.cache.WithLabelValues("upstream", "error").Inc()
	return nil, "", m.sumdbError(t.module(), err)
}

func readSumdb(ctx context.Context, db *sumdb.Database, t Target, only bool) ([]byte, error) {
	switch {
	case t.Path != "":
		return db.Lookup(ctx, t.module(), only)
	case t.Tail == "latest":
		return db.Latest(ctx, only)
	}
	tile, err := tlog.ParseTilePath(t.Tail)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoRoute, err)
	}
	return db.Tile(ctx, tile, only)
}
