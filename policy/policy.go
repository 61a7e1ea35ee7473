// Package policy answers whether a subject may use a module path and whether a version is fit for use, by a bundle of
// Rego and YAML that it compiles once per revision. It knows no HTTP, fetches nothing and has no clock: an answer is a
// function of bundle and input. Its one invariant: whatever goes wrong, nothing is allowed.
package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	// ErrPolicy is matched by every failure to decide: undefined, failed, late or misshapen answers, and inputs that
	// the contract does not know.
	ErrPolicy = errors.New("policy gave no decision")
	// ErrNoPolicy says that no bundle is active.
	ErrNoPolicy = errors.New("no policy is active")
)

// Config is the policy section of the configuration file.
type Config struct {
	// Source says where the bundle comes from: embedded (in the binary; the default when empty) or folder.
	// A configured folder never falls back to the embedded bundle.
	Source string `yaml:"source"`
	// Path is the folder that holds the bundle, for source folder. It is read again when it changes.
	Path string `yaml:"path"`
}

// Validate reports every mistake in the section. It opens nothing.
func (c Config) Validate() []error {
	var errs []error
	switch c.Source {
	case "", "embedded":
		if c.Path != "" {
			errs = append(errs, fmt.Errorf("path: %q is not used by source embedded; want source: folder, or no path", c.Path))
		}
	case "folder":
		if c.Path == "" {
			errs = append(errs, errors.New("path: is empty; want the folder that holds bundle.yaml"))
		}
	default:
		errs = append(errs, fmt.Errorf("source: %q is unknown; want embedded or folder", c.Source))
	}
	return errs
}

// Options is what the engine gets from its surroundings.
type Options struct {
	Embedded   fs.FS                 // the default bundle, and the library of bundles with `library: default`
	State      string                // folder for archives of good bundles; "" keeps none
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil: no metrics
	OnChange   func(Event)           // told of each activation and rejection, one at a time; nil: nobody
}

// Event is an activation or a rejection of a bundle, for the audit log.
type Event struct {
	Time     time.Time `json:"time,omitzero"`
	Active   bool      `json:"active"`             // true: activated; false: rejected
	Source   string    `json:"source,omitempty"`   // embedded, folder
	Revision string    `json:"revision,omitempty"` // of the bundle; "" if it could not be read
	Digest   string    `json:"digest,omitempty"`
	Previous string    `json:"previous,omitempty"` // digest that was active before
	State    string    `json:"state,omitempty"`    // step that rejected it: fetched, built, checked; "" when activated
	Reason   string    `json:"reason,omitempty"`   // "" when activated
	Restored bool      `json:"restored,omitempty"` // from the archive of an earlier run
}

// Status is the state of the engine for people and health checks.
type Status struct {
	Source      string    `json:"source"`
	Revision    string    `json:"revision,omitempty"` // "" while no bundle is active
	Digest      string    `json:"digest,omitempty"`
	ActivatedAt time.Time `json:"activated_at,omitzero"`
	Restored    bool      `json:"restored,omitempty"`  // the active bundle came from the archive, since the source had none that is good
	Rejection   *Event    `json:"rejection,omitempty"` // the last one; nil once the source is good again
}

// Engine holds the active generation and replaces it when its source changes.
type Engine struct {
	cfg     Config
	opts    Options
	workers chan struct{}
	metrics *meters
	current atomic.Pointer[Generation]
	stop    context.CancelFunc
	watch   sync.WaitGroup

	mu     sync.Mutex // guards status
	status Status
}

// Open loads the bundle of the configured source. That there is none, or none that is good, is no error: the engine
// answers ErrNoPolicy until one is there. An error means that the configuration or the embedded bundle is unusable.
func Open(ctx context.Context, cfg Config, o Options) (*Engine, error) {
	if errs := cfg.Validate(); len(errs) > 0 {
		return nil, fmt.Errorf("opening policy: %w", errors.Join(errs...))
	}
	if cfg.Source == "" {
		cfg.Source = "embedded"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Embedded == nil {
		return nil, errors.New("opening policy: no embedded bundle was given")
	}
	m, err := newMeters(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("opening policy: %w", err)
	}
	e := &Engine{cfg: cfg, opts: o, metrics: m, workers: make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))}
	e.status.Source = cfg.Source
	if cfg.Source == "embedded" {
		if rejected := e.load(ctx, o.Embedded, false); rejected != nil {
			return nil, fmt.Errorf("opening policy: embedded bundle: %s", rejected.Reason)
		}
		e.stop = func() {}
		return e, nil
	}
	return e, e.openFolder(ctx)
}

// Current is the active generation. One request asks both questions of the same one.
func (e *Engine) Current() (*Generation, error) {
	if g := e.current.Load(); g != nil {
		return g, nil
	}
	return nil, ErrNoPolicy
}

// Status is a copy of the engine's state.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status
}

// Close stops watching the source and waits for it. The active generation goes on answering.
func (e *Engine) Close() error {
	e.stop()
	e.watch.Wait()
	return nil
}

// load builds and activates the bundle in fsys. It is called by one goroutine at a time. It returns why not, or nil.
func (e *Engine) load(ctx context.Context, fsys fs.FS, restored bool) *Event {
	ev := Event{Time: time.Now(), Source: e.cfg.Source, Restored: restored, State: "fetched"}
	b, err := readBundle(fsys, e.opts.Embedded)
	if err == nil {
		ev.Revision, ev.Digest, ev.State = b.digest[:12], b.digest, "built"
		if current := e.current.Load(); current != nil && current.digest == b.digest {
			e.settle()
			return nil
		}
		err = b.build()
	}
	var g *Generation
	if err == nil {
		ev.State = "checked"
		g, err = compile(ctx, b, e.workers, e.metrics, e.mistrust)
	}
	if err != nil {
		ev.Reason = err.Error()
		return &ev
	}
	if !restored {
		e.keep(b)
	}
	e.activate(g, ev)
	return nil
}

func (e *Engine) activate(g *Generation, ev Event) {
	ev.Active, ev.State = true, ""
	if old := e.current.Swap(g); old != nil {
		ev.Previous = old.digest
	}
	e.mu.Lock()
	e.status = Status{Source: ev.Source, Revision: ev.Revision, Digest: ev.Digest, ActivatedAt: ev.Time, Restored: ev.Restored}
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
	e.mu.Lock()
	e.status.Rejection = ev
	e.mu.Unlock()
	e.metrics.reloaded.Set(0)
	if old := e.current.Load(); old != nil {
		ev.Previous = old.digest
	}
	e.opts.Logger.Error("policy rejected", slog.String("source", ev.Source), slog.String("state", ev.State), slog.String("reason", ev.Reason))
	e.tell(*ev)
}

func (e *Engine) tell(ev Event) {
	if e.opts.OnChange != nil {
		e.opts.OnChange(ev)
	}
}

// mistrust is called by a generation whose read-set was caught out.
func (e *Engine) mistrust(entry string) {
	e.opts.Logger.Error("policy reads more than its analysis found; its cache is off", slog.String("entry", entry))
}
