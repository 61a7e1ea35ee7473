package vcs

import (
	"bytes"
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
	"syscall"
	"time"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// Limits in bytes, and how often a run's disk is measured.
const (
	maxInfo   = 1 << 20
	maxMod    = modzip.MaxGoMod
	maxOutput = 16 << 20
	maxStderr = 64 << 10
	diskTick  = 200 * time.Millisecond
	// No core dumps, and 3 GiB of data for each process, in KiB: the go command holds the archive of a zip in memory.
	limits = `ulimit -c 0 && ulimit -d 3145728 && exec "$0" "$@"`
)

// errDisk is the cause of a run that was ended for its size.
var errDisk = errors.New("repository needs more disk than a run may have")

// run is one visit to a repository: a folder that nothing else uses, and the
// clones of one repository, which are its alone until it ends.
type run struct {
	s      *Source
	route  *route
	repo   *repository // nil while the path's repository is not known
	dir    string
	secret credential
}

// visit runs fn with a place among the runs, the repository to itself and a
// deadline, and cleans up after it.
func (s *Source) visit(ctx context.Context, r *route, path string, limit time.Duration, fn func(context.Context, *run) error) error {
	repo, unlock, err := s.lockRepository(ctx, r, path)
	if err != nil {
		return waited(err)
	}
	defer s.makeRoom() // once the repository is free again
	defer unlock()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return waited(context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: no answer within %s", ErrTimeout, limit))
	defer cancel()
	end := s.metrics.begin()
	used, err := s.attempt(ctx, r, repo, fn)
	if errors.Is(err, ErrFailed) && ctx.Err() == nil && r.credentials.another(ctx, used) {
		_, err = s.attempt(ctx, r, repo, fn)
	}
	end(err)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return err
}

// attempt is one run of fn. It gives the credential that the run had.
func (s *Source) attempt(ctx context.Context, r *route, repo *repository, fn func(context.Context, *run) error) (credential, error) {
	run, err := s.newRun(ctx, r, repo)
	if err != nil {
		return credential{}, fmt.Errorf("%w: preparing a run: %w", ErrFailed, err)
	}
	defer run.remove()
	if err = fn(ctx, run); err != nil && !errors.Is(err, ErrNotFound) && repo != nil {
		repo.sweep() // git that was killed leaves locks behind
	}
	if repo != nil {
		repo.measure(s.o.Now())
	}
	return run.secret, err
}

// waited says that the time was over before a run began.
func waited(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: other runs took all the time: %w", ErrTimeout, err)
	}
	return err
}

// newRun makes the run's folder: an empty working folder with no go.mod above
// it, and a fresh module cache whose clones are the kept ones.
func (s *Source) newRun(ctx context.Context, r *route, repo *repository) (*run, error) {
	secret, err := r.credentials.get(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.runs(), "")
	if err != nil {
		return nil, err
	}
	run := &run{s: s, route: r, repo: repo, dir: dir, secret: secret}
	if err := run.fill(); err != nil {
		run.remove()
		return nil, err
	}
	return run, nil
}

func (r *run) fill() error {
	for _, name := range []string{"work", "tmp", "mod/cache"} {
		if err := os.MkdirAll(r.file(name), 0o700); err != nil {
			return err
		}
	}
	if err := makeHome(r.file("home")); err != nil {
		return err
	}
	if r.secret.password != "" {
		if err := r.secret.write(r.dir, r.route.Hosts); err != nil {
			return err
		}
	}
	// ssh wants files of its own user and mode, which mounted secrets often have not.
	for name, from := range map[string]string{"key": r.route.SSHKeyFile, "known_hosts": r.route.KnownHostsFile} {
		if from == "" {
			continue
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.file(name), text, 0o600); err != nil {
			return err
		}
	}
	if r.repo == nil {
		return nil // clones are adopted once it is known whose they are
	}
	return os.Symlink(r.repo.dir, r.vcs())
}

// makeHome makes a home folder for the go command with its telemetry off: that
// would start a process in a session of its own, which outlives its group and folder.
func makeHome(dir string) error {
	telemetry := filepath.Join(dir, ".config", "go", "telemetry")
	if err := os.MkdirAll(telemetry, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(telemetry, "mode"), []byte("off"), 0o600)
}

func (r *run) file(name string) string { return filepath.Join(r.dir, name) }

func (r *run) vcs() string { return r.file("mod/cache/vcs") }

func (r *run) remove() {
	if err := os.RemoveAll(r.dir); err != nil {
		r.s.o.Logger.LogAttrs(context.Background(), slog.LevelWarn, "folder of a run not removed", slog.Any("err", err))
	}
}

// list asks about one module query.
func (r *run) list(ctx context.Context, args ...string) (*answer, error) {
	return r.ask(ctx, append([]string{"list", "-m", "-e", "-json"}, args...))
}

// download fetches one version with its zip.
func (r *run) download(ctx context.Context, m module.Version) (*answer, error) {
	return r.ask(ctx, []string{"mod", "download", "-modcacherw", "-json", m.String()})
}

// ask runs the go command and judges what it prints: exit status and error
// texts are no interface, so only a repository that was read says what is not there.
func (r *run) ask(ctx context.Context, args []string) (*answer, error) {
	out, err := r.exec(ctx, r.s.o.Go, args, nil)
	var a answer
	if e := json.Unmarshal(out, &a); e != nil {
		return nil, errors.Join(err, fmt.Errorf("%w: go %s printed no answer", ErrFailed, args[0]))
	}
	if ctx.Err() != nil { // whatever it printed when it was killed
		return nil, err
	}
	r.learn(&a)
	switch {
	case a.Error != "" && a.Info != "" && args[0] == "mod": // the version is there, and its zip cannot be made
		return nil, fmt.Errorf("%w: %s", ErrFailed, r.clean(string(a.Error)))
	case a.Error != "" && a.read():
		return nil, fmt.Errorf("%w: %s", ErrNotFound, r.clean(string(a.Error)))
	case a.Error != "":
		return nil, fmt.Errorf("%w: %s", ErrFailed, r.clean(string(a.Error)))
	case err != nil:
		return nil, err
	case a.Version == "" || a.GoMod == "":
		return nil, fmt.Errorf("%w: go %s named no version", ErrFailed, args[0])
	}
	return &a, nil
}

// learn remembers whose clone the run has used.
func (r *run) learn(a *answer) {
	if a.Origin == nil || a.Origin.VCS != "git" {
		return
	}
	root := rootOf(a.Path, a.Origin.Subdir)
	if root == "" || r.repo != nil || strings.Contains(a.Origin.URL, "\n") {
		return
	}
	if err := r.route.clones.adopt(root, a.Origin.URL, r.vcs(), r); err != nil {
		r.s.o.Logger.LogAttrs(context.Background(), slog.LevelWarn, "clone not kept", slog.String("module", root), slog.Any("err", err))
	}
}

// clean makes a child's text fit for an error: no secret, no control characters, and not long.
func (r *run) clean(text string) string {
	text = r.secret.redact(strings.ReplaceAll(text, r.dir, ""))
	return text[:min(len(text), 2<<10)]
}

// exec runs a command in the sandbox: own process group, killed whole; time,
// disk and output bounded. The error is ErrFailed or ErrTimeout.
func (r *run) exec(ctx context.Context, name string, args, env []string) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out, errs := &limited{max: maxOutput, full: cancel}, &limited{max: maxStderr}
	// go and git; no argument begins with a dash. The shell only sets limits: a server that sends refs for ever would
	// else fill the memory of git and of the go command, which read them whole.
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", limits, name}, args...)...)
	cmd.Dir, cmd.Env = r.file("work"), append(r.s.environment(r.route, r), env...)
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var watcher sync.WaitGroup
	watched, stop := context.WithCancel(ctx)
	watcher.Go(func() { r.watchDisk(watched, cancel) })
	err := cmd.Run()
	stop()
	watcher.Wait()
	if cmd.Process != nil {
		// Children that outlived it. With none left there is no such group, and its number is not in use again so soon.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", ErrTimeout, err)
		}
		if !errors.Is(err, ErrTimeout) && !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w: %w", ErrFailed, err)
		}
	case err != nil:
		err = fmt.Errorf("%w: %s %s: %w: %s", ErrFailed, filepath.Base(name), args[0], err, r.clean(errs.String()))
	}
	return out.Bytes(), err
}

// limited keeps the first bytes that a child prints; full, if set, ends a child that prints more.
type limited struct {
	bytes.Buffer
	max  int
	full context.CancelCauseFunc
}

func (l *limited) Write(b []byte) (int, error) {
	if rest := l.max - l.Len(); len(b) > rest {
		if l.full != nil {
			l.full(fmt.Errorf("it printed more than %d bytes", l.max))
		}
		l.Buffer.Write(b[:rest])
		return len(b), nil
	}
	return l.Buffer.Write(b)
}

// watchDisk ends the run once its folder and clone are too big.
func (r *run) watchDisk(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(diskTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if r.size() > r.s.o.MaxDisk {
			cancel(fmt.Errorf("%w: %d bytes", errDisk, r.s.o.MaxDisk))
			return
		}
	}
}

func (r *run) size() int64 {
	n := sizeOf(r.dir)
	if r.repo != nil {
		n += sizeOf(r.repo.dir)
	}
	return n
}

// sizeOf adds up the files below a folder; links are not followed, and what goes away meanwhile counts nothing.
func sizeOf(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // it went away
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}

// open opens a file that the go command says it has made, which must be a plain one in the run's folder.
func (r *run) open(name string) (*os.File, error) {
	rel, err := filepath.Rel(r.dir, name)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("%w: the go command names %q", ErrFailed, r.clean(name))
	}
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Open(rel)
}

func (r *run) read(name string, maxBytes int64) ([]byte, error) {
	f, err := r.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err == nil && int64(len(b)) > maxBytes {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrFailed, filepath.Base(name), maxBytes)
	}
	return b, err
}
