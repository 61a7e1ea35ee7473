package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/gateway/mirror/sumdb"
)

// A source is a folder of module files that came from elsewhere: a module
// cache, a file:// GOPROXY, the disk store of Athens, an unpacked bundle. It
// is read through its root alone, and believed nothing.
type source struct {
	root     *os.Root
	versions []*candidate
	staged   string // removed at the end, where a bundle was unpacked
}

// A candidate is one version in a source, with the names of its files.
type candidate struct {
	module.Version
	files map[Kind]string
}

// openSource finds the versions in a folder; below GOPATH or GOMODCACHE those
// are in cache/download.
func openSource(ctx context.Context, dir string) (*source, error) {
	for _, sub := range []string{"cache/download", "pkg/mod/cache/download"} {
		if info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(sub))); err == nil && info.IsDir() {
			dir = filepath.Join(dir, filepath.FromSlash(sub))
			break
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", dir, err)
	}
	s := &source{root: root}
	if err := s.find(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("reading %s: %w", dir, err), root.Close())
	}
	return s, nil
}

func (s *source) close() error {
	err := s.root.Close()
	if s.staged != "" {
		err = errors.Join(err, os.RemoveAll(s.staged))
	}
	return err
}

// find walks the folder. What is neither a module file nor of a checksum
// database stays unseen, links too.
func (s *source) find(ctx context.Context) error {
	found := map[module.Version]*candidate{}
	err := fs.WalkDir(s.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if d.IsDir() && (name == "sumdb" || name == "cache" || strings.HasPrefix(path.Base(name), ".") && name != ".") {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		v, k, ok := moduleFile(name)
		if !ok {
			return nil
		}
		c := found[v]
		if c == nil {
			c = &candidate{Version: v, files: map[Kind]string{}}
			found[v] = c
			s.versions = append(s.versions, c)
		}
		c.files[k] = name
		return nil
	})
	slices.SortFunc(s.versions, func(a, b *candidate) int { return strings.Compare(a.String(), b.String()) })
	return err
}

// moduleFile reads a file's name: PATH/@v/VERSION.{info,mod,zip} with escaped
// capitals, or as Athens has it, PATH/VERSION/{go.mod,source.zip,VERSION.info}.
func moduleFile(name string) (module.Version, Kind, bool) {
	dir, file := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if esc, ok := strings.CutSuffix(dir, "/@v"); ok {
		t, err := parseModule(esc + "/@v/" + file)
		ok := err == nil && (t.Kind == Info || t.Kind == Mod || t.Kind == Zip) && t.upstreamPath() == name
		return t.module(), t.Kind, ok
	}
	v := module.Version{Path: path.Dir(dir), Version: path.Base(dir)}
	var k Kind
	switch file {
	case "go.mod":
		k = Mod
	case "source.zip":
		k = Zip
	case "version.info", v.Version + ".info":
		k = Info
	default:
		return v, 0, false
	}
	return v, k, module.CanonicalVersion(v.Version) == v.Version && module.Check(v.Path, v.Version) == nil
}

// open opens a file of a version for reading, with its size.
func (s *source) open(name string) (*os.File, int64, error) {
	f, err := s.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// read reads a small file of at most maxBytes.
func (s *source) read(name string, maxBytes int64) ([]byte, error) {
	f, _, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err == nil && int64(len(b)) > maxBytes {
		err = fmt.Errorf("%s has more than %d bytes", name, maxBytes)
	}
	return b, err
}

// fetch reads files of a checksum database that the source carries, as the go
// command keeps them beside its modules.
func (s *source) fetch(name string) sumdb.Fetch {
	return func(_ context.Context, file string, maxBytes int64) ([]byte, error) {
		return s.read(path.Join("sumdb", name, file), maxBytes)
	}
}

// bundled is the signed head that a bundle brings of a database, nil where it has none.
func (s *source) bundled(db *sumdb.Database) ([]byte, error) {
	head, err := s.read(path.Join("sumdb", db.Name(), "latest"), maxInfo)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return head, err
}

// head finds the newest signed head that a folder has of a database: by
// itself, or in one of the records. It is nil where there is none.
func (s *source) head(ctx context.Context, db *sumdb.Database) ([]byte, error) {
	dir := path.Join("sumdb", db.Name())
	best, size := []byte(nil), int64(-1)
	consider := func(head []byte) {
		if tree, err := tlog.ParseTree(head); err == nil && tree.N > size {
			if b := db.Newer(best, head); b != nil {
				best, size = b, tree.N
			}
		}
	}
	if b, err := s.read(path.Join(dir, "latest"), maxInfo); err == nil {
		consider(b)
	}
	err := fs.WalkDir(s.root.FS(), path.Join(dir, "lookup"), func(name string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil || !d.Type().IsRegular():
			return err
		}
		b, err := s.read(name, maxInfo)
		if err == nil {
			consider(sumdb.HeadIn(b))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading records of %s: %w", db.Name(), err)
	}
	return best, nil
}
