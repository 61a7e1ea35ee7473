package policy

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The steps of a bundle on its way to be active. A rejection names the one that it failed.
const (
	stateDiscovered = "discovered" // the source names it
	stateFetched    = "fetched"    // it is here
	stateVerified   = "verified"   // signed by whom it must, and no way back
	stateBuilt      = "built"      // its files are those of a bundle, and parse
	stateChecked    = "checked"    // it compiles
	stateTested     = "tested"     // its own tests and ours pass
	stateReplayed   = "replayed"   // it decides what was decided
)

var states = []string{stateDiscovered, stateFetched, stateVerified, stateBuilt, stateChecked, stateTested, stateReplayed}

const maxHistory = 20

// Event is an activation or a rejection of a bundle, for the audit log.
type Event struct {
	Time     time.Time `json:"time,omitzero"`
	Active   bool      `json:"active"`             // true: activated; false: rejected
	Source   string    `json:"source,omitempty"`   // embedded, folder, git
	Ref      string    `json:"ref,omitempty"`      // of Git: the branch or tag
	Commit   string    `json:"commit,omitempty"`   // of Git
	Signer   string    `json:"signer,omitempty"`   // of Git: fingerprint of the key that signed it
	Revision string    `json:"revision,omitempty"` // of the bundle; "" if it could not be read
	Digest   string    `json:"digest,omitempty"`
	Previous string    `json:"previous,omitempty"` // digest that was active before
	State    string    `json:"state,omitempty"`    // step that rejected it: discovered, fetched, verified, built, checked, tested, replayed
	Reason   string    `json:"reason,omitempty"`   // "" when activated
	Restored bool      `json:"restored,omitempty"` // from the archive of an earlier run
	Rollback string    `json:"rollback,omitempty"` // policy.rollback_to chose it, until this day
	Replay   *Replay   `json:"replay,omitempty"`   // what it changes; nil where nothing was asked again
}

// Status is the state of the engine for people and health checks.
type Status struct {
	Source      string    `json:"source"`
	Revision    string    `json:"revision,omitempty"` // "" while no bundle is active
	Digest      string    `json:"digest,omitempty"`
	Ref         string    `json:"ref,omitempty"`
	Commit      string    `json:"commit,omitempty"`
	Signer      string    `json:"signer,omitempty"` // "" is unsigned: a folder, or the binary's own
	Rollback    string    `json:"rollback,omitempty"`
	ActivatedAt time.Time `json:"activated_at,omitzero"`
	Restored    bool      `json:"restored,omitempty"`  // the active bundle came from the archive, since the source had none that is good
	Rejection   *Event    `json:"rejection,omitempty"` // the last one; nil once the source is good again

	Repository string    `json:"repository,omitempty"` // of Git
	LastSeen   time.Time `json:"last_seen,omitzero"`   // when the repository was last read
	Trouble    string    `json:"trouble,omitempty"`    // why it could not be read since
	Stale      bool      `json:"stale,omitempty"`      // not read for 15 minutes
	History    []Event   `json:"history,omitempty"`    // activations and rejections of this run, newest first, at most 20
	Kept       []Record  `json:"kept,omitempty"`       // archives that a start can fall back on, newest first
}

// candidate is a bundle on its way.
type candidate struct {
	fsys     fs.FS
	from     Record // where it came from; of a folder nothing
	restored bool   // out of our own archive: it was tested before
	rollback string // the day until which policy.rollback_to chose it; "" where it did not
}

// event is the beginning of what will be told about a candidate.
func (e *Engine) event(c candidate, state string) Event {
	return Event{
		Time: time.Now(), Source: e.cfg.Source, State: state, Restored: c.restored, Rollback: c.rollback,
		Ref: c.from.Ref, Commit: c.from.Commit, Signer: c.from.Signer,
	}
}

// openState makes the folder of archives and the key that signs them, where archives are kept.
func (e *Engine) openState() (err error) {
	if e.opts.State == "" {
		return nil
	}
	if err = os.MkdirAll(e.opts.State, 0o700); err == nil {
		file := e.opts.Key
		if file == "" {
			file = filepath.Join(e.opts.State, "build.key")
		}
		e.key, err = openKey(file)
	}
	if err != nil {
		return fmt.Errorf("opening policy: %w", err)
	}
	e.status.Kept = e.records()
	return nil
}

// load takes a candidate from its files to the active generation. It is called by one goroutine at a time. It returns
// why not, or nil.
func (e *Engine) load(ctx context.Context, c candidate) *Event {
	ev := e.event(c, stateFetched)
	fail := func(state string, err error) *Event {
		ev.State, ev.Reason = state, err.Error()
		return &ev
	}
	if c.from.Commit != "" {
		ev.State = stateBuilt
	}
	b, err := readBundle(c.fsys, e.opts.Embedded)
	if err != nil {
		return fail(ev.State, err)
	}
	if c.from.Commit != "" {
		b.revision = c.from.Commit
	}
	ev.Revision, ev.Digest = b.revision, b.digest
	if err := e.rises(c, b.manifest.Sequence); err != nil {
		return fail(stateVerified, err)
	}
	if current := e.current.Load(); current != nil && current.digest == b.digest && current.revision == b.revision {
		e.settle()
		return nil
	}
	if err := b.build(); err != nil {
		return fail(stateBuilt, err)
	}
	if e.git != nil && !c.restored {
		if state, err := e.gate(ctx, b); err != nil {
			return fail(state, err)
		}
	}
	g, err := compile(ctx, b, e.workers, e.metrics, e.mistrust)
	if err != nil {
		return fail(stateChecked, err)
	}
	if e.opts.Recorded != nil && e.git != nil && !c.restored && c.rollback == "" && !b.tightens(e.active) {
		if ev.Replay, err = e.replay(ctx, g); err != nil {
			return fail(stateReplayed, err)
		}
	}
	e.activate(g, ev, e.kept(b, c))
	e.active = b
	return nil
}

// replayLimit is how long a candidate is asked what was decided: a push is to be active within ten seconds.
const replayLimit = 3 * time.Second

// Replay is how many recorded decisions a bundle that was asked again answers otherwise.
type Replay struct {
	Decisions int   `json:"decisions"` // that were recorded
	Questions int   `json:"questions"` // different ones among them
	Asked     int   `json:"asked"`     // of these, the most frequent first, in the time that there is
	Unbuilt   int   `json:"unbuilt"`   // decisions that could not be asked again
	Refused   int   `json:"refused"`   // that were allowed
	Allowed   int   `json:"allowed"`   // that were refused
	Otherwise int   `json:"otherwise"` // refused with another remedy or other codes
	P99NS     int64 `json:"p99_ns"`    // of a question
}

// replay asks a candidate what was decided of late. Its answers fill its cache before requests come.
func (e *Engine) replay(ctx context.Context, g *Generation) (*Replay, error) {
	recording, err := e.opts.Recorded(ctx)
	if err != nil {
		return nil, err
	}
	r, err := g.Replay(ctx, recording, ReplayOptions{Limit: replayLimit})
	if err != nil {
		return nil, err
	}
	return &Replay{
		Decisions: r.Decisions, Questions: r.Questions, Asked: r.Asked, Unbuilt: r.Unbuilt, P99NS: r.P99NS,
		Refused: r.Count(FlipRefused), Allowed: r.Count(FlipAllowed), Otherwise: r.Count(FlipOther),
	}, r.Gate()
}

// kept is the record of a bundle that is about to be active; a new one is kept with its archive before.
func (e *Engine) kept(b *bundle, c candidate) Record {
	if c.restored {
		return c.from
	}
	r := c.from
	r.Source, r.Sequence, r.Revision, r.Digest, r.ActivatedAt = e.cfg.Source, b.manifest.Sequence, b.revision, b.digest, time.Now()
	if e.cfg.Source != "embedded" {
		e.keep(b, r)
	}
	return r
}

func (e *Engine) activate(g *Generation, ev Event, r Record) {
	ev.Time, ev.Active, ev.State = time.Now(), true, ""
	g.access.quota = newQuota(missesPerMinute) // from here on it is asked by others
	if old := e.current.Swap(g); old != nil {
		ev.Previous = old.digest
	}
	e.source.anchor = r
	kept := e.records()
	e.mu.Lock()
	s := &e.status
	s.Revision, s.Digest, s.ActivatedAt, s.Restored = ev.Revision, ev.Digest, ev.Time, ev.Restored
	s.Ref, s.Commit, s.Signer, s.Rollback = ev.Ref, ev.Commit, ev.Signer, ev.Rollback
	s.Rejection, s.Kept = nil, kept
	e.mu.Unlock()
	e.metrics.activated(g.revision, ev.Time)
	e.opts.Logger.Info("policy activated", slog.String("source", ev.Source), slog.String("revision", ev.Revision), slog.Bool("restored", ev.Restored))
	e.tell(ev)
}

// settle notes that the source holds the active bundle again after a bad change was taken back.
func (e *Engine) settle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.status.Rejection != nil {
		e.opts.Logger.Info("policy is good again", slog.String("revision", e.status.Revision))
	}
	e.status.Rejection, e.status.Restored = nil, false
	e.metrics.reloaded.Set(1)
}

func (e *Engine) reject(ev *Event) {
	if old := e.current.Load(); old != nil {
		ev.Previous = old.digest
	}
	ev.Time = time.Now()
	e.mu.Lock()
	e.status.Rejection = ev
	e.mu.Unlock()
	e.metrics.reloaded.Set(0)
	e.metrics.rejected[ev.State].Inc()
	e.opts.Logger.Error("policy rejected", slog.String("source", ev.Source), slog.String("state", ev.State), slog.String("reason", ev.Reason))
	e.tell(*ev)
}

func (e *Engine) tell(ev Event) {
	e.mu.Lock()
	e.status.History = slices.Insert(e.status.History, 0, ev)
	e.status.History = e.status.History[:min(maxHistory, len(e.status.History))]
	e.mu.Unlock()
	if e.opts.OnChange != nil {
		e.opts.OnChange(ev)
	}
}
