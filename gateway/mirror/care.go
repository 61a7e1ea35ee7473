package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
)

// Progress is how far a long operation of care has come.
type Progress struct {
	// Done and Total count versions, or files where the operation goes by files;
	// Total is 0 where it is not known yet.
	Done  int64 `json:"done"`
	Total int64 `json:"total,omitempty"`
	// Bytes were read or written so far.
	Bytes int64 `json:"bytes"`
	// Failed counts what went wrong.
	Failed int64 `json:"failed,omitempty"`
}

// Failure is one thing that went wrong while the rest went on.
type Failure struct {
	Module  string `json:"module,omitempty"`
	Version string `json:"version,omitempty"`
	// File is info, mod or zip, or a name in the store.
	File   string `json:"file,omitempty"`
	Reason string `json:"reason"`
	// Incident is set where bytes differ from what they must be.
	Incident bool `json:"incident,omitempty"`
}

// MaxFailures is how many failures a report names; more are only counted.
const MaxFailures = 1000

// CareReport is what an operation of care did.
type CareReport struct {
	Progress
	// Versions were taken in, given out, fetched, checked or removed; Had were
	// there already.
	Versions int64 `json:"versions"`
	Had      int64 `json:"had,omitempty"`
	Files    int64 `json:"files,omitempty"`
	// Kept stands for what gc may not remove: private, in use, or stopped.
	Kept int64 `json:"kept,omitempty"`
	// Stored is how many bytes the stores hold afterwards.
	Stored   int64     `json:"stored,omitempty"`
	Failures []Failure `json:"failures,omitempty"`
	// Listed are the versions that a dry run would remove.
	Listed []Removed `json:"listed,omitempty"`
}

// keeper counts for many workers, and tells somebody who wants to know.
type keeper struct {
	mu     sync.Mutex // guards report, and is held while tell runs
	report CareReport
	tell   func(Progress)
}

func newKeeper(tell func(Progress), total int) *keeper {
	if tell == nil {
		tell = func(Progress) {}
	}
	k := &keeper{tell: tell}
	k.report.Total = int64(total)
	return k
}

// step changes the counts and tells them.
func (k *keeper) step(change func(*CareReport)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.report)
	k.tell(k.report.Progress)
}

// fail counts what went wrong with a version's file.
func (k *keeper) fail(v module.Version, file string, err error) {
	k.step(func(r *CareReport) {
		r.Failed++
		if len(r.Failures) < MaxFailures {
			r.Failures = append(r.Failures, Failure{v.Path, v.Version, file, reasonOf(err), errors.Is(err, ErrMismatch)})
		}
	})
}

// reasonOf is an error as one line.
func reasonOf(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// careWorkers is how many versions are worked on at a time. Each has at most
// one zip open, and none in memory.
const careWorkers = 8

// each works on all, some at a time, until ctx ends. Work counts its own failures.
func each[T any](ctx context.Context, all []T, work func(context.Context, T)) error {
	var group errgroup.Group
	group.SetLimit(careWorkers)
	for _, x := range all {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if ctx.Err() == nil {
				work(ctx, x)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// matching tells whether a path is meant by patterns as in GOPRIVATE; none mean all.
func matching(patterns []string, path string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return module.MatchPrefixPatterns(p, path) })
}

// CheckPatterns tells whether patterns are ones that GOPRIVATE takes.
func CheckPatterns(patterns []string) error {
	var errs []error
	for i, p := range patterns {
		checkPattern(func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }, fmt.Sprintf("pattern %d", i+1), p)
	}
	return errors.Join(errs...)
}

// forget drops what memory and the last known lists say of a module, after its
// versions changed: the next list is asked for anew.
func (m *Mirror) forget(ctx context.Context, v module.Version) {
	m.changed(v)
	for _, k := range []Kind{Info, Mod, Zip} {
		m.answers.remove(fileTarget(v, k)) // that it is not there
	}
	m.expire(ctx, v.Path)
}

// expire ends the freshness of a module's list and @latest; in trouble the old
// ones still serve.
func (m *Mirror) expire(ctx context.Context, path string) {
	for _, t := range []Target{{Path: path, Kind: List}, {Path: path, Kind: Latest}} {
		a := m.answers.get(t)
		if a == nil {
			a = m.lastKnown(ctx, t)
		}
		if a != nil {
			m.answers.put(t, &answer{at: m.now().Add(-ttlNoModule), body: a.body, missing: a.missing})
		}
	}
}

// remove forgets an answer.
func (a *answers) remove(t Target) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lru.Remove(t)
}

// opening makes bytes that do not match an incident: the version is suspect
// from then on. Any other error passes.
func (m *Mirror) opening(err error) error {
	if e, ok := errors.AsType[*IncidentError](err); ok {
		return m.incident(e)
	}
	return err
}

// noted are the hashes that were noted of a version when its bytes first came in.
func (m *Mirror) noted(ctx context.Context, v module.Version) (sums, error) {
	if m.state == nil {
		return sums{}, nil
	}
	zip, mod, err := m.state.hashes(ctx, v)
	return sums{zip, mod}, err
}

// sameMod holds a .mod against what was noted of the version's earlier one.
func (m *Mirror) sameMod(ctx context.Context, v module.Version, mod []byte) error {
	want, err := m.recorded(ctx, v)
	if err != nil {
		return err
	}
	got, err := hashMod(mod)
	if err == nil && want.mod != "" && got != want.mod {
		err = m.incident(&IncidentError{Kind: "sumdb", Module: v, File: "mod", Want: want.mod, Got: got})
	}
	return err
}
