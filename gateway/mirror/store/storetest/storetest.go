// Package storetest is the suite that every backend of a store passes, and the
// real servers for it: versitygw for S3, fake-gcs-server and Azurite. What they
// need is pinned in the folder "servers" and built once into the user's cache.
package storetest

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// Suite is what is run on one empty store.
type Suite struct {
	// Open opens the store under test; each call is another gateway's.
	Open func(tb testing.TB) *store.Store
	// Many files are more than a page of a list; Large bytes are more than one part of an upload.
	Many, Large int
}

// Run runs the suite.
func (suite Suite) Run(t *testing.T) {
	s := suite.Open(t)
	for name, test := range map[string]func(*testing.T, *store.Store){
		"publish": publish, "replace and swap": replaceAndSwap, "names and walk": namesAndWalk, "missing": missing, "bad names": badNames,
		"seek and ranges": ranges, "awkward names": awkward, "given up": givenUp,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
	t.Run("many", func(t *testing.T) { many(t, s, suite.Many) })
	t.Run("two gateways", func(t *testing.T) { suite.twoGateways(t, s, suite.Open(t)) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, s *store.Store, name, want string) {
	t.Helper()
	if b, err := s.Read(t.Context(), name, 1<<20); err != nil || string(b) != want {
		t.Errorf("Read(%q) = %q, %v, want %q", name, b, err, want)
	}
}

func publish(t *testing.T, s *store.Store) {
	const name = "publish.example/m/@v/v1.0.0.zip"
	before := s.Bytes()
	for _, what := range []string{"first", "the same again"} {
		if err := s.Publish(t.Context(), name, []byte("bytes")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	err := s.Publish(t.Context(), name, []byte("other"))
	c, ok := errors.AsType[*store.ConflictError](err)
	if !ok || c.Name != name || len(c.Stored) != 64 || len(c.Offered) != 64 || c.Stored == c.Offered {
		t.Errorf("other bytes: %v, want a *ConflictError", err)
	}
	holds(t, s, name, "bytes")
	if _, err := s.Read(t.Context(), name, 4); err == nil {
		t.Error("Read beyond its limit: no error")
	}
	if got := s.Bytes() - before; got != 5 {
		t.Errorf("Bytes rose by %d, want 5", got)
	}
	info, err := s.Stat(t.Context(), name)
	if age := time.Since(info.ModTime); err != nil || info.Name != name || info.Size != 5 || age < -time.Minute || age > time.Minute {
		t.Errorf("Stat = %+v, %v", info, err)
	}
	if sum, err := s.Sum(t.Context(), name); err != nil || sum != c.Stored || info.SHA256 != "" && info.SHA256 != sum {
		t.Errorf("Sum = %s, %v, want %s; described as %q", sum, err, c.Stored, info.SHA256)
	}
	must(t, s.Remove(t.Context(), name))
	if _, err := s.Open(t.Context(), name); !errors.Is(err, fs.ErrNotExist) || s.Bytes() != before {
		t.Errorf("after Remove: %v, %d bytes more", err, s.Bytes()-before)
	}
	must(t, s.Publish(t.Context(), name, []byte("other")))
	holds(t, s, name, "other")
	must(t, s.Publish(t.Context(), "publish.example/empty", nil))
	holds(t, s, "publish.example/empty", "")
}

func replaceAndSwap(t *testing.T, s *store.Store) {
	const name = "swap/latest"
	if err := s.Swap(t.Context(), name, []byte("old"), []byte("x")); !errors.Is(err, store.ErrChanged) {
		t.Errorf("Swap of a missing file = %v, want ErrChanged", err)
	}
	must(t, s.Swap(t.Context(), name, nil, []byte("1")))
	if err := s.Swap(t.Context(), name, nil, []byte("x")); !errors.Is(err, store.ErrChanged) {
		t.Errorf("Swap of a file that should be missing = %v, want ErrChanged", err)
	}
	must(t, s.Swap(t.Context(), name, []byte("1"), []byte("22")))
	for _, old := range []string{"1", "2", "222", ""} {
		if err := s.Swap(t.Context(), name, []byte(old), []byte("x")); !errors.Is(err, store.ErrChanged) {
			t.Errorf("Swap of %q = %v, want ErrChanged", old, err)
		}
	}
	holds(t, s, name, "22")
	must(t, s.Replace(t.Context(), name, []byte("replaced")))
	holds(t, s, name, "replaced")
	must(t, s.Keep(t.Context(), name, []byte("kept")))
	holds(t, s, name, "kept")
}

func walked(t *testing.T, s *store.Store, dir string) (names []string) {
	t.Helper()
	must(t, s.Walk(t.Context(), dir, func(i store.Info) error {
		if i.Size != int64(len(i.Name)) || i.ModTime.IsZero() {
			t.Errorf("Walk: %+v, want size %d", i, len(i.Name))
		}
		names = append(names, i.Name)
		return nil
	}))
	slices.Sort(names)
	return names
}

func namesAndWalk(t *testing.T, s *store.Store) {
	files := []string{"walk/a/@v/v1.info", "walk/a/@v/v1.mod", "walk/a/b/@v/v1.mod", "walk/ab/@v/v1.mod", "walk/top"}
	for _, f := range files {
		must(t, s.Publish(t.Context(), f, []byte(f)))
	}
	if got := walked(t, s, "walk"); !slices.Equal(got, files) {
		t.Errorf("Walk = %v, want %v", got, files)
	}
	if got := walked(t, s, "walk/a"); !slices.Equal(got, files[:3]) {
		t.Errorf("Walk of a folder = %v, want %v", got, files[:3])
	}
	for dir, want := range map[string][]string{"walk": {"a", "ab", "top"}, "walk/a": {"@v", "b"}, "walk/a/@v": {"v1.info", "v1.mod"}, "walk/none": nil} {
		got, err := s.Names(t.Context(), dir)
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("Names(%q) = %v, %v, want %v", dir, got, err, want)
		}
	}
	stop := errors.New("stop")
	if err := s.Walk(t.Context(), "walk", func(store.Info) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Walk = %v, want the callback's error", err)
	}
	must(t, s.Walk(t.Context(), "walk", func(i store.Info) error { return s.Remove(t.Context(), i.Name) }))
	if got := walked(t, s, "walk"); len(got) > 0 {
		t.Errorf("after removing all: %v", got)
	}
}

func missing(t *testing.T, s *store.Store) {
	const name = "missing.example/m/@v/v1.0.0.mod"
	_, openErr := s.Open(t.Context(), name)
	_, readErr := s.Read(t.Context(), name, 1)
	_, statErr := s.Stat(t.Context(), name)
	_, sumErr := s.Sum(t.Context(), name)
	for what, err := range map[string]error{"Open": openErr, "Read": readErr, "Stat": statErr, "Sum": sumErr, "Remove": s.Remove(t.Context(), name)} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s = %v, want fs.ErrNotExist", what, err)
		}
	}
	must(t, s.Publish(t.Context(), name, nil))
	for _, folder := range []string{"missing.example", "missing.example/m/@v"} {
		if _, err := s.Stat(t.Context(), folder); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat of a folder = %v, want fs.ErrNotExist", err)
		}
		if _, err := s.Open(t.Context(), folder); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of a folder = %v, want fs.ErrNotExist", err)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Walk(over, ".", func(store.Info) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Walk given up = %v, want context.Canceled", err)
	}
}

func badNames(t *testing.T, s *store.Store) {
	for _, bad := range []string{"../x", "/x", "a/../../x", "", ".", "a//b", ".tmp/x", ".tmp"} {
		_, openErr := s.Open(t.Context(), bad)
		_, readErr := s.Read(t.Context(), bad, 1)
		_, statErr := s.Stat(t.Context(), bad)
		for what, err := range map[string]error{
			"Open": openErr, "Read": readErr, "Stat": statErr, "Remove": s.Remove(t.Context(), bad),
			"Publish": s.Publish(t.Context(), bad, nil), "Replace": s.Replace(t.Context(), bad, nil), "Keep": s.Keep(t.Context(), bad, nil), "Swap": s.Swap(t.Context(), bad, nil, nil),
		} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s(%q) = %v, want fs.ErrInvalid", what, bad, err)
			}
		}
	}
}

// ranges reads a zip from the middle, as zip readers and HTTP clients do.
func ranges(t *testing.T, s *store.Store) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "m@v/go.mod"})
	must(t, err)
	_, err = w.Write(bytes.Repeat([]byte("module m\n"), 100000))
	must(t, err)
	must(t, z.Close())
	must(t, s.Publish(t.Context(), "ranges/m.zip", b.Bytes()))
	f, err := s.Open(t.Context(), "ranges/m.zip")
	must(t, err)
	defer f.Close()
	if r, err := zip.NewReader(f, int64(b.Len())); err != nil || len(r.File) != 1 {
		t.Errorf("zip.NewReader: %v", err)
	}
	for _, want := range []string{"", "bytes=10-19", "bytes=-5", "bytes=100-"} {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Range", want)
		here, there := httptest.NewRecorder(), httptest.NewRecorder()
		http.ServeContent(here, req, "", time.Time{}, bytes.NewReader(b.Bytes()))
		http.ServeContent(there, req, "", time.Time{}, f)
		if here.Code != there.Code || !bytes.Equal(here.Body.Bytes(), there.Body.Bytes()) {
			t.Errorf("range %q: %d with %d bytes, want %d with %d", want, there.Code, there.Body.Len(), here.Code, here.Body.Len())
		}
	}
	p := make([]byte, 10)
	if n, err := f.ReadAt(p, int64(b.Len())-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt over the end = %d, %v, want 4, EOF", n, err)
	}
	if n, err := f.ReadAt(p, int64(b.Len())+4); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt beyond the end = %d, %v, want 0, EOF", n, err)
	}
}

func awkward(t *testing.T, s *store.Store) {
	for _, name := range []string{
		"github.com/!burnt!sushi/toml/@v/v1.0.0+incompatible.zip", "example.com/a~b/@v/v1.0.0-0.20200101000000-abcdefabcdef.info",
		"sumdb/sum.golang.org/tile/8/0/x001/234.p/5", ".incidents/a+b@v1.0.0", "odd/a b%41&c=d?e#f",
	} {
		must(t, s.Publish(t.Context(), name, []byte(name)))
		holds(t, s, name, name)
	}
	if names, err := s.Names(t.Context(), "odd"); err != nil || !slices.Equal(names, []string{"a b%41&c=d?e#f"}) {
		t.Errorf("Names = %q, %v", names, err)
	}
}

// many is more than one page of any list.
func many(t *testing.T, s *store.Store, files int) {
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for n := i; n < files; n += len(errs) {
				errs[i] = errors.Join(errs[i], s.Keep(t.Context(), fmt.Sprintf("many/v%04d", n), []byte("12345678901")))
			}
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	names, err := s.Names(t.Context(), "many")
	if slices.Sort(names); err != nil || len(slices.Compact(names)) != files {
		t.Errorf("Names = %d, %v, want %d", len(names), err, files)
	}
}

// givenUp cancels an upload under way: nothing of it can be seen.
func givenUp(t *testing.T, s *store.Store) {
	const name = "given.up/m.zip"
	d := draft(t, s, 24<<20, 'x')
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := d.Publish(ctx, name)
	if _, serr := s.Stat(t.Context(), name); (err == nil) != (serr == nil) {
		t.Errorf("Publish given up: %v; then Stat: %v", err, serr)
	}
	must(t, d.Publish(t.Context(), name))
}

// draft holds size bytes of one letter.
func draft(t *testing.T, s *store.Store, size int, letter byte) *store.Draft {
	t.Helper()
	d, err := s.Draft()
	must(t, err)
	t.Cleanup(d.Discard)
	piece := bytes.Repeat([]byte{letter}, 1<<20)
	for left := size; left > 0; left -= len(piece) {
		_, err := d.Write(piece[:min(left, len(piece))])
		must(t, err)
	}
	return d
}

// letters tells which letters a stored file consists of.
func letters(ctx context.Context, s *store.Store, name string) (string, int64, error) {
	f, err := s.Open(ctx, name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	var found strings.Builder
	size, buf := int64(0), make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		size += int64(n)
		for _, b := range []byte("AB") {
			if bytes.IndexByte(buf[:n], b) >= 0 && !strings.Contains(found.String(), string(b)) {
				found.WriteByte(b)
			}
		}
		if errors.Is(err, io.EOF) {
			return found.String(), size, nil
		}
		if err != nil {
			return "", 0, err
		}
	}
}
