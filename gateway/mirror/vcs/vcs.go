// Package vcs brings private modules from Git: it runs the go command in direct
// mode in a sandbox, over bare clones that are kept, so that a second look at a
// repository is one round trip. It knows Git hosts and credentials, but neither
// stores nor verifies what it finds. Its invariants: a child sees no environment,
// file or credential but its route's, reaches no host but its route's, and is
// gone with all its children and folders when the call returns; that something
// is not there is said only once its repository was read.
package vcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"
)

var (
	// ErrNotFound means that the repository was read and has no such module or version. It matches fs.ErrNotExist.
	ErrNotFound = fmt.Errorf("not found in git: %w", fs.ErrNotExist)
	// ErrFailed means that a repository could not be read, or holds what cannot be used.
	ErrFailed = errors.New("git failed")
	// ErrTimeout means that a run took too long.
	ErrTimeout = errors.New("git too slow")
)

// Options configures a Source.
type Options struct {
	// Dir is where clones are kept and runs have their folders; it is the Source's own.
	Dir string
	// Routes are referred to by their number.
	Routes []Route
	// Go is the go command; empty is the one in PATH.
	Go string
	// LookTimeout bounds a list or query, ZipTimeout a zip; 0 is 2 min and 10 min.
	LookTimeout, ZipTimeout time.Duration
	// MaxDisk bounds a run's folder and its clone together, in bytes; 0 is 2 GiB.
	MaxDisk int64
	// MaxClones bounds all kept clones together, in bytes: those not used for longest go first. 0 is 20 GiB.
	MaxClones int64
	// Now is the clock of what is remembered of repositories; nil is time.Now.
	Now func() time.Time
	// Logger and Registerer may be nil.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Route says where modules of some patterns come from.
type Route struct {
	// Patterns are globs of module path prefixes, as in GOPRIVATE.
	Patterns []string
	// Hosts are the only ones that are reached: for discovery, and for Git over https. HOST or HOST:PORT.
	Hosts []string
	// CredentialFile holds a token or USER:PASSWORD for the hosts; TokenCommand prints one. Empty: none.
	CredentialFile string
	TokenCommand   []string
	// SSHKeyFile and KnownHostsFile allow Git over ssh. Empty: https alone.
	SSHKeyFile, KnownHostsFile string
	// CAFile holds the only CAs that hosts are trusted by. Empty: the machine's.
	CAFile string
	// Proxy is the URL of an HTTP CONNECT proxy. Empty: hosts are dialled.
	Proxy string
	// InsteadOf rewrites the beginning of repository URLs, key to value.
	InsteadOf map[string]string
}

// Source is safe for many callers.
type Source struct {
	o         Options
	routes    []*route
	slots     chan struct{} // one for each run at once
	locks     locks
	metrics   *metrics
	sweeping  sync.Mutex // held by whoever makes room among the clones
	git       string
	path      string // PATH of children
	goVersion string
}

// maxRuns is how many runs there are at once, over all routes.
const maxRuns = 4

// Open removes what an earlier process left behind and starts the routes'
// filters. It asks the go command for its version, but no host.
func Open(ctx context.Context, o Options) (*Source, error) {
	s := &Source{o: o.withDefaults(), slots: make(chan struct{}, maxRuns), locks: locks{held: map[string]*lock{}}}
	if err := s.findCommands(); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(s.runs()); err != nil {
		return nil, fmt.Errorf("removing leftovers: %w", err)
	}
	if err := os.MkdirAll(s.runs(), 0o700); err != nil {
		return nil, fmt.Errorf("making folder for runs: %w", err)
	}
	for i, r := range o.Routes {
		started, err := s.openRoute(r)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening route %d: %w", i, err), s.Close())
		}
		s.routes = append(s.routes, started)
	}
	if err := s.askVersion(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.metrics = newMetrics(o.Registerer, s)
	s.makeRoom()
	return s, nil
}

func (o Options) withDefaults() Options {
	if o.Go == "" {
		o.Go = "go"
	}
	if o.LookTimeout == 0 {
		o.LookTimeout = 2 * time.Minute
	}
	if o.ZipTimeout == 0 {
		o.ZipTimeout = 10 * time.Minute
	}
	if o.MaxDisk == 0 {
		o.MaxDisk = 2 << 30
	}
	if o.MaxClones == 0 {
		o.MaxClones = 20 << 30
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// findCommands finds go and git; a child's PATH holds their folders and those of sh, cat and ssh.
func (s *Source) findCommands() error {
	var err error
	if s.o.Go, err = exec.LookPath(s.o.Go); err != nil {
		return fmt.Errorf("private modules need the go command: %w", err)
	}
	if s.git, err = exec.LookPath("git"); err != nil {
		return fmt.Errorf("private modules need git: %w", err)
	}
	s.path = strings.Join([]string{filepath.Dir(s.o.Go), filepath.Dir(s.git), "/usr/bin", "/bin"}, string(os.PathListSeparator))
	s.o.Dir, err = filepath.Abs(s.o.Dir)
	if err == nil && strings.ContainsAny(s.o.Dir, "'\"\\%: \t\n") {
		err = fmt.Errorf("folder %q has characters that git and ssh do not take", s.o.Dir)
	}
	return err
}

func (s *Source) runs() string { return filepath.Join(s.o.Dir, "run") }

func (s *Source) askVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.LookTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(s.runs(), "")
	if err != nil {
		return fmt.Errorf("making folder for the go command: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := makeHome(dir); err != nil {
		return fmt.Errorf("making folder for the go command: %w", err)
	}
	cmd := exec.CommandContext(ctx, s.o.Go, "env", "GOVERSION")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + s.path, "HOME=" + dir, "GOENV=off", "GOTOOLCHAIN=local", "GOWORK=off", "GOFLAGS="}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("asking %s for its version: %w", s.o.Go, err)
	}
	s.goVersion = strings.TrimSpace(string(out))
	return nil
}

// GoVersion is the version of the go command, as in go1.26.1.
func (s *Source) GoVersion() string { return s.goVersion }

// Close ends the filters. Runs end with their contexts.
func (s *Source) Close() error {
	var errs []error
	for _, r := range s.routes {
		errs = append(errs, r.filter.close())
	}
	return errors.Join(errs...)
}

// Module is what a repository says of a module.
type Module struct {
	// Versions are its tagged versions, retracted ones too; empty for a module without tags.
	Versions []string
	// Latest is the .info of its newest version, with what is known of the repository.
	Latest []byte
	// Newest holds the files of that version, which the visit has brought as well.
	Newest Revision
}

// Look gives a module's versions. Errors: ErrNotFound, ErrFailed, ErrTimeout.
func (s *Source) Look(ctx context.Context, route int, path string) (*Module, error) {
	r := s.routes[route]
	var m Module
	err := s.visit(ctx, r, path, s.o.LookTimeout, func(ctx context.Context, run *run) error {
		if gone, err := run.noModule(ctx, path); gone || err != nil {
			return notFoundOr(err, path)
		}
		a, err := run.list(ctx, "-versions", "-retracted", path+"@latest")
		if err != nil {
			return err
		}
		m.Versions = a.Versions
		if m.Latest, err = a.info(); err != nil {
			return err
		}
		m.Newest, err = run.revision(a)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &m, nil
}

// Revision is the .info and .mod of one version.
type Revision struct {
	Info, Mod []byte
}

// Stat resolves a version, branch, tag or commit. The errors are those of Look.
func (s *Source) Stat(ctx context.Context, route int, m module.Version) (*Revision, error) {
	if strings.HasPrefix(m.Version, "-") {
		return nil, fmt.Errorf("%w: revision %q begins with a dash", ErrFailed, m.Version)
	}
	var rev Revision
	err := s.visit(ctx, s.routes[route], m.Path, s.o.LookTimeout, func(ctx context.Context, run *run) error {
		a, err := run.list(ctx, m.String())
		if err != nil {
			return err
		}
		if rev, err = run.revision(a); err == nil && a.Version != m.Version { // what is known of the query
			rev.Info, err = a.info()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &rev, nil
}

// Zip writes a version's zip to dst and gives its .mod as it was then. The
// errors are those of Look.
func (s *Source) Zip(ctx context.Context, route int, m module.Version, dst io.Writer) (*Revision, error) {
	var rev Revision
	err := s.visit(ctx, s.routes[route], m.Path, s.o.ZipTimeout, func(ctx context.Context, run *run) error {
		a, err := run.download(ctx, m)
		if err != nil {
			return err
		}
		if rev.Info, err = run.read(a.Info, maxInfo); err != nil {
			return err
		}
		if rev.Mod, err = run.read(a.GoMod, maxMod); err != nil {
			return err
		}
		f, err := run.open(a.Zip)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(dst, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &rev, nil
}

// revision reads the files of the version that the go command has named: the bytes that every proxy has.
func (r *run) revision(a *answer) (rev Revision, err error) {
	if rev.Info, err = r.read(strings.TrimSuffix(a.GoMod, ".mod")+".info", maxInfo); err == nil {
		rev.Mod, err = r.read(a.GoMod, maxMod)
	}
	return rev, err
}

func notFoundOr(err error, path string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, ErrNotFound)
}

// answer is what `go list -m -json` and `go mod download -json` print of a module.
type answer struct {
	Path, Version    string
	Versions         []string
	Time             time.Time
	GoMod, Info, Zip string
	Origin           *origin
	Error            failure
}

// origin is where a version came from, as .info files have it.
type origin struct {
	VCS       string `json:",omitempty"`
	URL       string `json:",omitempty"`
	Subdir    string `json:",omitempty"`
	Hash      string `json:",omitempty"`
	TagPrefix string `json:",omitempty"`
	TagSum    string `json:",omitempty"`
	Ref       string `json:",omitempty"`
	RepoSum   string `json:",omitempty"`
}

// failure is an error: a string from mod download, a struct with Err from list.
type failure string

func (f *failure) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*f = failure(text)
		return nil
	}
	var list struct{ Err string }
	err := json.Unmarshal(b, &list)
	*f = failure(list.Err)
	return err
}

// emptySum is the RepoSum of no refs at all: an empty repository, or a page
// in HTML that git took for the refs of an old server.
const emptySum = "r1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="

// read tells whether the repository was read: only then does an error say that something is not there. A sum of its tags
// alone is not enough, since it comes before the commits are fetched.
func (a *answer) read() bool {
	return a.Origin != nil && (a.Origin.RepoSum != "" && a.Origin.RepoSum != emptySum || a.Origin.TagSum != "" && a.Origin.Hash != "")
}

// info is the answer in the form of an .info file.
func (a *answer) info() ([]byte, error) {
	return json.Marshal(struct {
		Version string
		Time    time.Time
		Origin  *origin `json:",omitempty"`
	}{a.Version, a.Time, a.Origin})
}
