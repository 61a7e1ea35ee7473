// Package policy answers whether a subject may use a module path and whether a version is fit for use, by a bundle of
// Rego and YAML that it compiles once per revision. It knows no HTTP, fetches nothing and has no clock: an answer is a
// function of bundle and input. Its one invariant: whatever goes wrong, nothing is allowed.
package policy

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/policy/git"
)

var (
	// ErrPolicy is matched by every failure to decide: undefined, failed, late or misshapen answers, and inputs that
	// the contract does not know.
	ErrPolicy = errors.New("policy gave no decision")
	// ErrNoPolicy says that no bundle is active.
	ErrNoPolicy = errors.New("no policy is active")
	// ErrQuota says that one subject asked about too many paths within a minute that had no answer yet.
	ErrQuota = errors.New("too many new questions of one subject")
)

// Config is the policy section of the configuration file.
type Config struct {
	// Source says where the bundle comes from: embedded (in the binary; the default when empty), folder or git.
	// A configured source never falls back to the embedded bundle.
	Source string `yaml:"source"`
	// Path is the folder that holds the bundle, for source folder. It is read again when it changes.
	Path string `yaml:"path"`
	// Git says where the repository is and whose signatures count, for source git.
	Git git.Config `yaml:"git"`
	// RollbackTo goes back to an earlier revision, for source git. Empty: the newest one counts.
	RollbackTo Rollback `yaml:"rollback_to"`
}

// Rollback is an earlier revision that counts until a day. It must be signed like any other.
type Rollback struct {
	// Revision is the full id of a commit in the branch's history; where the source is a tag, the name of a tag.
	Revision string `yaml:"revision"`
	// Until is the last day, UTC, as "YYYY-MM-DD", on which it holds; after it the newest revision counts again.
	Until string `yaml:"until"`
}

// Validate reports every mistake in the section. It opens nothing.
func (c Config) Validate() []error {
	var errs []error
	switch c.Source {
	case "git":
		if c.Path != "" {
			errs = append(errs, fmt.Errorf("path: %q is not used by source git; want git.url, or source: folder", c.Path))
		}
	case "", "embedded":
		if c.Path != "" {
			errs = append(errs, fmt.Errorf("path: %q is not used by source embedded; want source: folder, or no path", c.Path))
		}
	case "folder":
		if c.Path == "" {
			errs = append(errs, errors.New("path: is empty; want the folder that holds bundle.yaml"))
		}
	default:
		errs = append(errs, fmt.Errorf("source: %q is unknown; want embedded, folder or git", c.Source))
	}
	return append(errs, c.validGit()...)
}

func (c Config) validGit() []error {
	var errs []error
	if c.Source != "git" {
		if !c.Git.IsZero() {
			errs = append(errs, errors.New("git: is not used without source: git"))
		}
		if c.RollbackTo != (Rollback{}) {
			errs = append(errs, errors.New("rollback_to: goes with source: git"))
		}
		return errs
	}
	for _, err := range c.Git.Validate() {
		errs = append(errs, fmt.Errorf("git.%w", err))
	}
	if c.RollbackTo == (Rollback{}) {
		return errs
	}
	if c.RollbackTo.Revision == "" {
		errs = append(errs, errors.New("rollback_to.revision: is empty; want the full id of a commit, or the name of a tag"))
	}
	if _, err := time.Parse(time.DateOnly, c.RollbackTo.Until); err != nil {
		errs = append(errs, fmt.Errorf("rollback_to.until: %q is no date; want \"YYYY-MM-DD\", the last day of going back", c.RollbackTo.Until))
	}
	return errs
}

// Options is what the engine gets from its surroundings.
type Options struct {
	Embedded fs.FS    // the default bundle, and the library of bundles with `library: default`
	State    string   // folder for archives of good bundles and for Git's copy; "" keeps none
	Key      string   // file of the key that signs archives, made where there is none; "" is build.key in State
	Trial    []string // command that runs Try on its standard input, in a process of its own; nil: in this one
	// Recorded reads the decisions of late, which a bundle of Git is asked again before it is active; nil: none are. One that
	// only denies more by its deny.yaml, or that rollback_to names, is not asked.
	Recorded   func(context.Context) (*Recording, error)
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil: no metrics
	OnChange   func(Event)           // told of each activation and rejection, one at a time; nil: nobody
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
	key     ed25519.PrivateKey // signs archives; nil where none are kept
	git     *git.Repository    // nil but for source git
	hint    chan struct{}      // says that the repository has news
	source  gitState           // of the one goroutine that looks at the repository
	active  *bundle            // what current was made of; of the one goroutine that loads

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
	e.status.Source, e.stop = cfg.Source, func() {}
	switch cfg.Source {
	case "embedded":
		if rejected := e.load(ctx, candidate{fsys: o.Embedded}); rejected != nil {
			return nil, fmt.Errorf("opening policy: embedded bundle: %s", rejected.Reason)
		}
		return e, nil
	case "git":
		return e, e.openGit(ctx)
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
	status := e.status
	status.History = slices.Clone(status.History)
	return status
}

// Close stops watching the source and waits for it. The active generation goes on answering.
func (e *Engine) Close() error {
	e.stop()
	e.watch.Wait()
	return nil
}

// mistrust is called by a generation whose read-set was caught out.
func (e *Engine) mistrust(entry string) {
	e.opts.Logger.Error("policy reads more than its analysis found; its cache is off", slog.String("entry", entry))
}
