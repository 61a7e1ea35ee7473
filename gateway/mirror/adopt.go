package mirror

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// adopt gives the versions of a store that is older than the state database
// their places in the index. It runs once, in the background; what it does not
// reach gets its place when it is next read.
func (m *Mirror) adopt(ctx context.Context) {
	if m.state == nil || m.passing != nil {
		return
	}
	begun, err := m.state.indexBegun(ctx)
	if err == nil && begun {
		return
	}
	n := 0
	if err == nil {
		n, err = m.adoptAll(ctx)
	}
	if err != nil && ctx.Err() == nil {
		m.log.LogAttrs(ctx, slog.LevelError, "versions stored earlier not indexed; they are when they are next read", slog.Any("err", err))
	} else if n > 0 {
		m.log.LogAttrs(ctx, slog.LevelInfo, "versions stored earlier indexed", slog.Int("versions", n))
	}
}

func (m *Mirror) adoptAll(ctx context.Context) (int, error) {
	found := map[module.Version]*sighting{}
	for _, s := range []*store.Store{m.public, m.private} {
		if err := s.Walk(ctx, ".", func(i store.Info) error {
			v, kind, ok := moduleFile(i.Name)
			if !ok || !strings.Contains(i.Name, "/@v/") || m.storeOf(v.Path) != s {
				return nil
			}
			x := found[v]
			if x == nil {
				x = &sighting{v: v, stored: true}
				found[v] = x
			}
			x.proved = x.proved || kind != Info // what is stored was verified; no checksum covers an .info
			return nil
		}); err != nil {
			return 0, fmt.Errorf("walking the store: %w", err)
		}
	}
	var group errgroup.Group
	group.SetLimit(lookups)
	for _, x := range found {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if b, err := m.storeOf(x.v.Path).Read(ctx, fileTarget(x.v, Info).upstreamPath(), maxInfo); err == nil {
				i := readInfo(b)
				x.published, x.origin = i.Time, i.origin()
			}
			if err := m.state.note(ctx, x); err != nil {
				return err
			}
			m.changed(x.v)
			return nil
		})
	}
	return len(found), group.Wait()
}

// indexBegun tells whether a place in the index was ever given out.
func (s *state) indexBegun(ctx context.Context) (bool, error) {
	var last int64
	if err := s.db.QueryRowContext(ctx, `SELECT last FROM mirror_index_clock WHERE one = 1`).Scan(&last); err != nil {
		return false, fmt.Errorf("reading the index: %w", err)
	}
	return last > 0, nil
}
