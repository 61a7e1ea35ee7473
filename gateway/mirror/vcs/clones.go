package vcs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
)

// snapshotLife is how long what is known of a repository's tags and newest commit holds.
const snapshotLife = time.Minute

// rootFile names, in a repository's folder, the module path of its root, and on a second line the repository's URL.
const rootFile = "root"

// repository is a kept clone.
type repository struct {
	root  string
	url   string // as discovery named it
	dir   string // GOMODCACHE/cache/vcs of its runs
	usage usage
	// pushed tells that its server announced news: what follows is too old.
	pushed atomic.Bool

	// Used under the repository's lock only.
	at   time.Time // of what follows
	head string
	tags []string
}

// clones are a route's repositories by the module path of their root.
type clones struct {
	dir   string
	mu    sync.Mutex // guards known
	known map[string]*repository
}

// folderOf is a folder name for any text.
func folderOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

func openClones(dir string) (*clones, error) {
	c := &clones{dir: dir, known: map[string]*repository{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		repo, err := readRepository(name)
		if err != nil { // an adoption that did not end
			if err := os.RemoveAll(name); err != nil {
				return nil, err
			}
			continue
		}
		repo.sweep()
		c.known[repo.root] = repo
	}
	return c, nil
}

// readRepository takes a kept clone of an earlier process.
func readRepository(dir string) (*repository, error) {
	name := filepath.Join(dir, rootFile)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	root, url, ok := strings.Cut(string(text), "\n")
	if !ok || folderOf(root) != filepath.Base(dir) {
		return nil, fmt.Errorf("%s is not that of its folder", name)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	repo := &repository{root: root, url: url, dir: dir}
	repo.usage.bytes.Store(sizeOf(dir))
	repo.usage.used.Store(info.ModTime().UnixNano())
	return repo, nil
}

// find gives the repository that a path belongs to: the known root that is its longest prefix.
func (c *clones) find(path string) *repository {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := path; p != "." && p != ""; p, _ = cutLast(p) {
		if repo := c.known[p]; repo != nil {
			return repo
		}
	}
	return nil
}

// cutLast drops the last element of a path.
func cutLast(p string) (rest, last string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p
	}
	return p[:i], p[i+1:]
}

// rootOf is the module path of a repository's root, given a module in it and that module's folder; "" where they do not fit.
func rootOf(path, subdir string) string {
	prefix, _, ok := module.SplitPathVersion(path)
	if !ok || strings.HasPrefix(path, "gopkg.in/") {
		return ""
	}
	if subdir == "" {
		return prefix
	}
	for _, p := range []string{path, prefix} { // v2 may be a folder or a branch
		if root, ok := strings.CutSuffix(p, "/"+subdir); ok {
			return root
		}
	}
	return ""
}

// adopt keeps the clones that a run made for a repository of which nothing was known.
func (c *clones) adopt(root, url, vcs string, r *run) error {
	unlock, ok := r.s.locks.tryLock(r.route.key(root))
	if !ok { // its own run is under way and makes a clone of its own
		return nil
	}
	defer unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[root] != nil {
		return nil
	}
	repo := &repository{root: root, url: url, dir: filepath.Join(c.dir, folderOf(root))}
	if err := os.Rename(vcs, repo.dir); err != nil {
		return err
	}
	// What the run still does, it does on the kept clone.
	if err := os.Symlink(repo.dir, vcs); err != nil {
		return errors.Join(err, os.RemoveAll(repo.dir))
	}
	if err := os.WriteFile(filepath.Join(repo.dir, rootFile), []byte(root+"\n"+url), 0o600); err != nil {
		return errors.Join(err, os.RemoveAll(repo.dir))
	}
	repo.measure(r.s.o.Now())
	c.known[root] = repo
	return nil
}

// sweep removes what git leaves behind when it is killed: its locks, which would fail every later fetch, and half packs.
func (r *repository) sweep() {
	_ = filepath.WalkDir(r.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // it went away
		}
		base := d.Name()
		// The go command's own locks stand beside the clones and are never stale: they are locked, not made.
		inside := filepath.Dir(name) != r.dir
		if inside && (strings.HasSuffix(base, ".lock") || strings.HasPrefix(base, "tmp_")) {
			os.Remove(name)
		}
		return nil
	})
}

// noModule tells from the clone that a path below a known repository's root is no module: no tag has that prefix, and
// the newest commit has no go.mod there. Where it cannot tell, the go command is asked.
func (r *run) noModule(ctx context.Context, path string) (bool, error) {
	if r.repo == nil {
		return false, nil
	}
	sub, ok := strings.CutPrefix(path, r.repo.root+"/")
	if !ok {
		return false, nil
	}
	prefix, major, _ := module.SplitPathVersion(path)
	folder := strings.TrimPrefix(strings.TrimPrefix(prefix, r.repo.root), "/")
	if folder == "" { // a major version of the root
		return false, nil
	}
	clone, err := r.snapshot(ctx)
	if err != nil || clone == "" {
		return false, err
	}
	for _, t := range r.repo.tags {
		if strings.HasPrefix(t, folder+"/v") {
			return false, nil
		}
	}
	for _, name := range []string{folder, sub} {
		_, err := r.git(ctx, clone, "cat-file", "-e", r.repo.head+":"+name+"/go.mod")
		if err == nil || ctx.Err() != nil {
			return false, err
		}
		if major == "" {
			break
		}
	}
	return true, nil
}

// snapshot brings the repository's tags and newest commit up to date and gives the clone's folder; "" where there is not exactly one.
func (r *run) snapshot(ctx context.Context) (string, error) {
	heads, err := filepath.Glob(filepath.Join(r.repo.dir, "*", "HEAD"))
	if err != nil || len(heads) != 1 {
		return "", err
	}
	clone := filepath.Dir(heads[0])
	if r.repo.pushed.Swap(false) {
		r.repo.at = time.Time{}
	}
	if age := r.s.o.Now().Sub(r.repo.at); age >= 0 && age < snapshotLife {
		return clone, nil
	}
	out, err := r.git(ctx, clone, "ls-remote", "-q", "--end-of-options", "origin")
	if err != nil {
		return "", err
	}
	head, tags := "", []string(nil)
	for line := range strings.Lines(string(out)) {
		hash, ref, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if ref == "HEAD" && isHash(hash) {
			head = hash
		} else if tag, ok := strings.CutPrefix(ref, "refs/tags/"); ok {
			tags = append(tags, tag)
		}
	}
	if head == "" {
		return "", nil
	}
	if _, err := r.git(ctx, clone, "cat-file", "-e", head+"^{tree}"); err != nil {
		if _, err := r.git(ctx, clone, "fetch", "-q", "-f", "--depth=1", "--no-tags", "--end-of-options", "origin", "HEAD:refs/headgate"); err != nil {
			return "", err
		}
		if _, err := r.git(ctx, clone, "cat-file", "-e", head+"^{tree}"); err != nil {
			return "", ctx.Err() // it moved on meanwhile
		}
	}
	r.repo.head, r.repo.tags, r.repo.at = head, tags, r.s.o.Now()
	return clone, nil
}

func (r *run) git(ctx context.Context, clone string, args ...string) ([]byte, error) {
	return r.exec(ctx, r.s.git, args, []string{"GIT_DIR=" + clone})
}

func isHash(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && (len(s) == 40 || len(s) == 64)
}

// key is the name of a repository's lock.
func (r *route) key(root string) string { return r.dir + " " + root }

// coldElements is how many elements of a path of an unknown repository are taken for its root, as most code hosts have
// it: probes of its sub-paths then wait for the one that finds it, instead of cloning beside it.
const coldElements = 3

// lockRepository waits until no other run uses the path's repository.
func (s *Source) lockRepository(ctx context.Context, r *route, path string) (*repository, func(), error) {
	for {
		repo := r.clones.find(path)
		key := "cold " + r.key(strings.Join(strings.SplitN(path, "/", coldElements+1)[:min(coldElements, strings.Count(path, "/")+1)], "/"))
		if repo != nil {
			key = r.key(repo.root)
		}
		unlock, err := s.locks.lock(ctx, key)
		if err != nil {
			return nil, nil, fmt.Errorf("waiting for the repository of %s: %w", path, err)
		}
		if r.clones.find(path) == repo {
			return repo, unlock, nil
		}
		unlock() // it became known meanwhile
	}
}

// locks are mutexes by name that a context ends the wait for.
type locks struct {
	mu   sync.Mutex // guards held
	held map[string]*lock
}

type lock struct {
	place chan struct{}
	users int
}

func (l *locks) take(name string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.held[name]
	if k == nil {
		k = &lock{place: make(chan struct{}, 1)}
		l.held[name] = k
	}
	k.users++
	return k
}

func (l *locks) leave(name string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.held, name)
	}
}

func (l *locks) lock(ctx context.Context, name string) (func(), error) {
	k := l.take(name)
	select {
	case k.place <- struct{}{}:
		return func() { <-k.place; l.leave(name, k) }, nil
	case <-ctx.Done():
		l.leave(name, k)
		return nil, context.Cause(ctx)
	}
}

func (l *locks) tryLock(name string) (func(), bool) {
	k := l.take(name)
	select {
	case k.place <- struct{}{}:
		return func() { <-k.place; l.leave(name, k) }, true
	default:
		l.leave(name, k)
		return nil, false
	}
}
