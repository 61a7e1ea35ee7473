package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// CollectOptions say what may go.
type CollectOptions struct {
	// MaxBytes is what the stores may hold together; 0 sets no limit.
	MaxBytes int64
	// MaxAge is how long a version may stay without being used; 0 sets no limit.
	MaxAge time.Duration
	// Private lets private modules go as well, whose origin may be gone.
	Private bool
	// DryRun lists what would go and removes nothing.
	DryRun bool
	// Progress is told after each version; it may be nil.
	Progress func(Progress)
}

// Removed is one version that goes, or would.
type Removed struct {
	Path    string    `json:"module"`
	Version string    `json:"version"`
	Bytes   int64     `json:"bytes"`
	Used    time.Time `json:"used"`
}

// A holding is what is stored of a version.
type holding struct {
	module.Version
	store *store.Store
	bytes int64
	used  time.Time
}

// Collect removes versions until the limits hold, those first that were not
// used for longest. What is being read or taken in stays, so does what is
// stopped, and all of checksum databases. The record of what a version's bytes
// were stays as well: it may come back with the same ones alone.
func (m *Mirror) Collect(ctx context.Context, o CollectOptions) (CareReport, error) {
	if err := m.cfg.Stores(); err != nil {
		return CareReport{}, err
	}
	if m.state == nil {
		return CareReport{}, fmt.Errorf("collecting: %w", errNoState)
	}
	all, total, err := m.holdings(ctx)
	if err != nil {
		return CareReport{}, fmt.Errorf("collecting: %w", err)
	}
	slices.SortFunc(all, func(a, b *holding) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		return strings.Compare(a.String(), b.String())
	})
	counts := newKeeper(o.Progress, len(all))
	counts.report.Stored = total
	for _, h := range all {
		if ctx.Err() != nil {
			return counts.report, context.Cause(ctx)
		}
		old := o.MaxAge > 0 && m.now().Sub(h.used) > o.MaxAge
		full := o.MaxBytes > 0 && counts.report.Stored > o.MaxBytes
		if !old && !full {
			counts.step(func(r *CareReport) { r.Done++ })
			continue
		}
		if h.store == m.private && !o.Private || m.used.busy(h.Version) || m.held(h.Version) != nil {
			counts.step(func(r *CareReport) { r.Done++; r.Kept++ })
			continue
		}
		if err := m.collect(ctx, h, o.DryRun); err != nil {
			counts.fail(h.Version, "", err)
			continue
		}
		counts.step(func(r *CareReport) {
			r.Done++
			r.Versions++
			r.Bytes += h.bytes
			r.Stored -= h.bytes
			if o.DryRun {
				r.Listed = append(r.Listed, Removed{h.Path, h.Version.Version, h.bytes, h.used})
			}
		})
	}
	return counts.report, nil
}

// holdings adds up what is stored of each version. When it was last used is
// noted in the state database; of what was never used it is when it came in.
func (m *Mirror) holdings(ctx context.Context) (all []*holding, total int64, err error) {
	used, err := m.lastUsed(ctx)
	if err != nil {
		return nil, 0, err
	}
	found := map[module.Version]*holding{}
	for _, s := range []*store.Store{m.public, m.private} {
		err := s.Walk(ctx, ".", func(i store.Info) error {
			total += i.Size
			v, ok := versionOf(i.Name)
			if !ok {
				return context.Cause(ctx)
			}
			h := found[v]
			if h == nil {
				h = &holding{Version: v, store: s, used: used[v]}
				found[v] = h
				all = append(all, h)
			}
			h.bytes += i.Size
			if i.ModTime.After(h.used) { // a file that has just come in is a use of its version
				h.used = i.ModTime
			}
			return context.Cause(ctx)
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return all, total, nil
}

// siblings are the files that stand beside those of a version, by their suffixes.
var siblings = []string{".ziphash", ".zip.sha256"}

// versionOf tells to which version a file in the store belongs.
func versionOf(name string) (module.Version, bool) {
	for _, suffix := range siblings {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			name = base + ".zip"
			break
		}
	}
	v, _, ok := moduleFile(name)
	return v, ok && strings.Contains(name, "/@v/")
}

// collect removes a version, unless somebody has it in hand now.
func (m *Mirror) collect(ctx context.Context, h *holding, dry bool) error {
	if dry {
		return nil
	}
	if err := m.remove(ctx, h.store, h.Version); err != nil {
		return err
	}
	if _, err := m.state.db.ExecContext(ctx, `DELETE FROM mirror_used WHERE path = $1 AND version = $2`, h.Path, h.Version.Version); err != nil {
		return fmt.Errorf("forgetting when %s was used: %w", h.Version, err)
	}
	return nil
}

// remove takes the files of a version away, the zip first: each file is whole
// for itself, so a stop between two leaves a store that serves the rest.
func (m *Mirror) remove(ctx context.Context, s *store.Store, v module.Version) error {
	ctx = context.WithoutCancel(ctx) // one version is removed whole
	base := strings.TrimSuffix(fileTarget(v, Zip).upstreamPath(), ".zip")
	defer m.forget(ctx, v)
	for _, suffix := range []string{".zip", ".zip.sha256", ".ziphash", ".mod", ".info"} {
		if err := s.Remove(ctx, base+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s of %s: %w", suffix, v, err)
		}
		m.changed(v)
	}
	return m.rewriteList(ctx, v.Path)
}

// Purge removes a version from both stores and from memory. Its record in
// checksum databases, the index and what is known of its bytes stay: it may
// come back with the same ones alone. It tells how many bytes went.
func (m *Mirror) Purge(ctx context.Context, v module.Version) (CareReport, error) {
	if err := m.cfg.Stores(); err != nil {
		return CareReport{}, err
	}
	counts := newKeeper(nil, 1)
	for _, s := range []*store.Store{m.public, m.private} {
		names, err := s.Names(ctx, path.Dir(fileTarget(v, Zip).upstreamPath()))
		if err != nil {
			return counts.report, fmt.Errorf("purging %s: %w", v, err)
		}
		dir := path.Dir(fileTarget(v, Zip).upstreamPath())
		for _, n := range names {
			if of, ok := versionOf(path.Join(dir, n)); ok && of == v {
				info, err := s.Stat(ctx, path.Join(dir, n))
				if err == nil {
					counts.report.Files++
					counts.report.Bytes += info.Size
				}
			}
		}
		if len(names) == 0 {
			continue
		}
		if err := m.remove(ctx, s, v); err != nil {
			return counts.report, fmt.Errorf("purging %s: %w", v, err)
		}
	}
	m.forget(ctx, v)
	counts.report.Done, counts.report.Versions = 1, min(counts.report.Files, 1)
	m.log.LogAttrs(ctx, slog.LevelInfo, "version purged", slog.String("module", v.Path), slog.String("version", v.Version),
		slog.Int64("files", counts.report.Files), slog.Int64("bytes", counts.report.Bytes))
	return counts.report, nil
}

// Over tells whether the stores hold more than mirror.max_bytes allows, as far as they were measured.
func (m *Mirror) Over() bool {
	return m.cfg.MaxBytes > 0 && m.public.Bytes()+m.private.Bytes() > m.cfg.MaxBytes
}

// Upkeep is what the configuration wants to be done by itself; what is 0 is off.
type Upkeep struct {
	MaxBytes      int64
	MaxAge        time.Duration
	ScrubInterval time.Duration
}

// Upkeep gives the limits of the configuration.
func (m *Mirror) Upkeep() Upkeep {
	return Upkeep{MaxBytes: m.cfg.MaxBytes, MaxAge: m.cfg.MaxAge, ScrubInterval: m.cfg.ScrubInterval}
}
