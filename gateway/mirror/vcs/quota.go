package vcs

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

// usage is what is known of a clone without its lock: how big it is, and when it was used last.
type usage struct {
	bytes atomic.Int64
	used  atomic.Int64 // ns since 1970
}

// measure notes a clone's size and that it is in use now. The time stands on disk, too, so that a restart knows it.
func (r *repository) measure(now time.Time) {
	r.usage.bytes.Store(sizeOf(r.dir))
	r.usage.used.Store(now.UnixNano())
	_ = os.Chtimes(filepath.Join(r.dir, rootFile), now, now) // without it the clone is taken for older than it is
}

// kept is a clone with the route that it belongs to.
type kept struct {
	*repository
	route *route
}

// kept lists all clones, those first that were not used for longest.
func (s *Source) kept() []kept {
	var all []kept
	for _, r := range s.routes {
		r.clones.mu.Lock()
		for _, repo := range r.clones.known {
			all = append(all, kept{repo, r})
		}
		r.clones.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Compare(a.usage.used.Load(), b.usage.used.Load()) })
	return all
}

func (s *Source) cloneBytes() int64 {
	var n int64
	for _, k := range s.kept() {
		n += k.usage.bytes.Load()
	}
	return n
}

// makeRoom removes clones until all of them together are small enough. One that a run uses stays; the end of that run
// looks again.
func (s *Source) makeRoom() {
	if !s.sweeping.TryLock() {
		return // whoever holds it takes what this one would
	}
	defer s.sweeping.Unlock()
	total := s.cloneBytes()
	for _, k := range s.kept() {
		if total <= s.o.MaxClones {
			return
		}
		unlock, ok := s.locks.tryLock(k.route.key(k.root))
		if !ok {
			continue
		}
		size := k.usage.bytes.Load()
		err := k.route.clones.drop(k.repository)
		unlock()
		if err != nil {
			s.o.Logger.LogAttrs(context.Background(), slog.LevelWarn, "clone not removed", slog.String("module", k.root), slog.Any("err", err))
			continue
		}
		total -= size
		s.metrics.removed.Inc()
		s.o.Logger.LogAttrs(context.Background(), slog.LevelInfo, "clone removed", slog.String("module", k.root), slog.Int64("bytes", size))
	}
}

// drop forgets a clone and removes it. The caller holds its lock.
func (c *clones) drop(repo *repository) error {
	c.mu.Lock()
	delete(c.known, repo.root)
	c.mu.Unlock()
	return os.RemoveAll(repo.dir)
}
