// Package git brings signed policy from a Git repository: it looks which commit a branch or tag names, fetches it into a
// bare repository of its own, verifies its signature, and reads its files, all by the git command in a sandbox. It does
// not know what the files mean, and decides nothing about them. Its invariants: nothing of a repository is read as a
// file, executed, or written outside its own folder; only a commit that Verify let pass is whose its signature says; a
// child sees no environment, file or credential but what is configured, and is gone when the call returns.
package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

var (
	// ErrRefused means that what the repository holds is not taken, and will not be as long as it does not change.
	ErrRefused = errors.New("refused")
	// ErrAway means that the repository could not be read; it may be the next time.
	ErrAway = errors.New("repository cannot be read")
)

// Options is what a repository gets from its surroundings.
type Options struct {
	Dir      string        // folder for the bare repository; its own
	MaxBytes int64         // bound of that folder; 0 is 256 MiB
	Timeout  time.Duration // of one visit to the server; 0 is 60 s
}

const (
	defaultMaxBytes = 256 << 20
	defaultTimeout  = time.Minute
	localTimeout    = 30 * time.Second // of a git that asks no server
	candidateRef    = "refs/headgate/candidate"
	maxTags         = 10000
)

// Repository is a copy of the configured repository, with history. Its methods are for one goroutine at a time.
type Repository struct {
	cfg  Config
	o    Options
	git  string
	path string // PATH of children
}

// Tip is what the configured ref names on the server.
type Tip struct {
	Ref    string // refs/heads/… or refs/tags/…
	Object string // id of the commit or tag object
}

// Commit is a fetched candidate.
type Commit struct {
	Tip
	ID   string // of the commit
	Tree string
}

// Open prepares the folder. It asks no server.
func Open(ctx context.Context, cfg Config, o Options) (*Repository, error) {
	if errs := cfg.Validate(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	r := &Repository{cfg: cfg.withDefaults(), o: o}
	if err := r.findCommands(); err != nil {
		return nil, err
	}
	return r, r.init(ctx)
}

func (r *Repository) findCommands() error {
	wanted := map[string]string{"git": "policy.source git"}
	if r.cfg.AllowedSigners != "" {
		wanted["ssh-keygen"] = "allowed_signers_file"
	}
	if r.cfg.PGPKeys != "" {
		wanted["gpgv"] = "pgp_keys_file"
	}
	if strings.HasPrefix(r.cfg.URL, "ssh:") {
		wanted["ssh"] = "an ssh URL"
	}
	folders := []string{"/usr/bin", "/bin"}
	for name, by := range wanted {
		file, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("%s needs the command %s: %w", by, name, err)
		}
		if name == "git" {
			r.git = file
		}
		folders = append(folders, filepath.Dir(file))
	}
	slices.Sort(folders)
	r.path = strings.Join(slices.Compact(folders), ":")
	return nil
}

// init makes the folder and the bare repository, or takes those that are there.
func (r *Repository) init(ctx context.Context) error {
	for _, name := range []string{r.file("home"), r.file("tmp"), r.repo()} {
		if err := os.MkdirAll(name, 0o700); err != nil {
			return fmt.Errorf("making the policy repository: %w", err)
		}
	}
	if err := r.writeConfig(); err != nil {
		return err
	}
	r.sweep()
	if _, err := r.local(ctx, "", "init", "--quiet", "--bare", "--template=", "--object-format=sha1"); err != nil {
		return fmt.Errorf("making the policy repository: %w", err)
	}
	return nil
}

// reset begins the bare repository anew. All that it holds can be fetched again.
func (r *Repository) reset(ctx context.Context) error {
	if err := os.RemoveAll(r.repo()); err != nil {
		return fmt.Errorf("removing the policy repository: %w", err)
	}
	return r.init(ctx)
}

// sweep removes what a git that was killed leaves behind.
func (r *Repository) sweep() {
	for _, pattern := range []string{"*.lock", "refs/headgate/*.lock", "objects/pack/tmp_*", "objects/*/tmp_*", "objects/tmp_*", "objects/incoming-*"} {
		names, _ := filepath.Glob(filepath.Join(r.repo(), pattern))
		for _, name := range names {
			_ = os.RemoveAll(name) // what stays is in nobody's way but takes room, which is bounded
		}
	}
}

func (r *Repository) file(name string) string { return filepath.Join(r.o.Dir, name) }

func (r *Repository) repo() string { return r.file("repo.git") }

// Poll is the least time between two looks.
func (r *Repository) Poll() time.Duration { return r.cfg.Poll }

// URL is the configured address; it holds no credential.
func (r *Repository) URL() string { return r.cfg.URL }

// Look asks the server what the configured ref names now. The error is ErrAway, or ErrRefused where there is no such ref.
func (r *Repository) Look(ctx context.Context) (Tip, error) {
	want := "refs/heads/" + r.cfg.Branch
	if r.cfg.Tag != "" {
		want = "refs/tags/" + r.cfg.Tag
	}
	out, err := r.visit(ctx, "ls-remote", "--quiet", "--refs", "--end-of-options", r.cfg.URL, want)
	if err != nil {
		return Tip{}, fmt.Errorf("looking at %s: %w: %w", r.cfg.URL, ErrAway, err)
	}
	tips := r.tips(string(out), want)
	switch {
	case len(tips) == 0:
		return Tip{}, fmt.Errorf("looking at %s: %w: it has no %s", r.cfg.URL, ErrRefused, want)
	case len(tips) > maxTags:
		return Tip{}, fmt.Errorf("looking at %s: %w: more than %d tags match %s", r.cfg.URL, ErrRefused, maxTags, r.cfg.Tag)
	}
	return slices.MaxFunc(tips, newer), nil
}

// tips are the refs of ls-remote's answer that are meant: it also lists those that only end so.
func (r *Repository) tips(out, want string) []Tip {
	var tips []Tip
	for line := range strings.Lines(out) {
		object, ref, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if matched, err := path.Match(want, ref); !ok || err != nil || !matched || !isID(object) || !validRef(ref) {
			continue
		}
		tips = append(tips, Tip{Ref: ref, Object: object})
	}
	return tips
}

// newer orders tags by the version in their names, those without one below all others.
func newer(a, b Tip) int {
	if c := semver.Compare(versionOf(a.Ref), versionOf(b.Ref)); c != 0 {
		return c
	}
	return strings.Compare(a.Ref, b.Ref)
}

// versionOf is the semantic version at the end of a ref, from its first digit on: of policy-v1.2.3, v12 and release/1.4
// alike. What is none, such as a date, is ordered by its text.
func versionOf(ref string) string {
	name := path.Base(ref)
	if i := strings.IndexAny(name, "0123456789"); i >= 0 && semver.IsValid("v"+name[i:]) {
		return "v" + name[i:]
	}
	return ""
}

func isID(s string) bool {
	return len(s) == 40 && !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}

// Fetch brings what the tip's ref names into the repository, with its history. It may be something newer than the tip.
// The error is ErrAway, or ErrRefused where it is too big or broken.
func (r *Repository) Fetch(ctx context.Context, tip Tip) (Commit, error) {
	if !validRef(tip.Ref) {
		return Commit{}, fmt.Errorf("fetching %s: %w: %q is no name of a branch or tag", r.cfg.URL, ErrRefused, tip.Ref)
	}
	_, err := r.visit(ctx, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance",
		"--force", "--end-of-options", r.cfg.URL, "+"+tip.Ref+":"+candidateRef)
	if err != nil {
		r.sweep()
		if errors.Is(err, errSize) {
			err = errors.Join(err, r.reset(ctx))
		}
		if !errors.Is(err, errSize) && !errors.Is(err, errObjects) {
			return Commit{}, fmt.Errorf("fetching %s: %w: %w", r.cfg.URL, ErrAway, err)
		}
		return Commit{}, fmt.Errorf("fetching %s: %w: %w", r.cfg.URL, ErrRefused, err)
	}
	c := Commit{Tip: tip}
	for _, id := range []struct {
		name string
		into *string
	}{{candidateRef, &c.Object}, {candidateRef + "^{commit}", &c.ID}, {candidateRef + "^{tree}", &c.Tree}} {
		if *id.into, err = r.resolve(ctx, id.name); err != nil {
			return Commit{}, fmt.Errorf("fetching %s: %w: %s is no commit: %w", r.cfg.URL, ErrRefused, tip.Ref, err)
		}
	}
	return c, nil
}

// resolve gives the full id of what a name leads to.
func (r *Repository) resolve(ctx context.Context, name string) (string, error) {
	out, err := r.local(ctx, "", "rev-parse", "--verify", "--quiet", "--end-of-options", name)
	id := strings.TrimSpace(string(out))
	if err == nil && !isID(id) {
		err = fmt.Errorf("git names %q by %q", name, id)
	}
	return id, err
}

// Find gives a commit of the fetched history by its full id, for going back to it. The error is ErrRefused where it is
// not part of what was fetched last.
func (r *Repository) Find(ctx context.Context, tip Commit, id string) (Commit, error) {
	if !isID(id) {
		return Commit{}, fmt.Errorf("finding commit %q: %w: want its full id", id, ErrRefused)
	}
	if in, err := r.Descends(ctx, id, tip.ID); err != nil || !in {
		return Commit{}, errors.Join(fmt.Errorf("finding commit %s: %w: it is not in the history of %s", id, ErrRefused, tip.Ref), err)
	}
	tree, err := r.resolve(ctx, id+"^{tree}")
	if err != nil {
		return Commit{}, fmt.Errorf("finding commit %s: %w: %w", id, ErrRefused, err)
	}
	return Commit{Tip: Tip{Ref: tip.Ref, Object: id}, ID: id, Tree: tree}, nil
}

// Descends tells whether the commit old is an ancestor of the commit young, or that commit itself. One that is not in
// the repository is no ancestor.
func (r *Repository) Descends(ctx context.Context, old, young string) (bool, error) {
	if !isID(old) || !isID(young) || !r.has(ctx, old) {
		return false, nil
	}
	_, err := r.local(ctx, "", "merge-base", "--is-ancestor", "--end-of-options", old, young)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return false, nil
	}
	return err == nil, err
}

// has tells whether a commit was fetched.
func (r *Repository) has(ctx context.Context, id string) bool {
	_, err := r.local(ctx, "", "cat-file", "-e", id+"^{commit}")
	return err == nil
}
