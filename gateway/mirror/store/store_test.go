package store_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/store"
)

const name = "example.com/m/@v/v1.0.0.zip"

func open(tb testing.TB, dir string) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), dir, store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func TestPublishIfAbsent(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Read(t.Context(), name, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Read of nothing = %v, want fs.ErrNotExist", err)
	}
	for _, what := range []string{"first", "the same again"} {
		if err := s.Publish(t.Context(), name, []byte("bytes")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	err := s.Publish(t.Context(), name, []byte("other"))
	c, ok := errors.AsType[*store.ConflictError](err)
	if !ok || c.Name != name || c.Stored == c.Offered {
		t.Errorf("other bytes: %v, want a *ConflictError", err)
	}
	if b, err := s.Read(t.Context(), name, 10); err != nil || string(b) != "bytes" {
		t.Errorf("Read = %q, %v; the first bytes must stay", b, err)
	}
	if _, err := s.Read(t.Context(), name, 4); err == nil {
		t.Error("Read beyond its limit: no error")
	}
	if s.Bytes() != 5 {
		t.Errorf("Bytes = %d, want 5", s.Bytes())
	}
	if err := s.Replace(t.Context(), "list", []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(t.Context(), "list", []byte("b")); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Read(t.Context(), "list", 10); err != nil || string(b) != "b" {
		t.Errorf("Read after Replace = %q, %v", b, err)
	}
}

func TestNamesStayInside(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "root"))
	if err := os.Symlink(dir, filepath.Join(dir, "root", "link")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"../x", "/x", "a/../../x", "", ".", "a//b", ".tmp/x", "link/x"} {
		if err := s.Publish(t.Context(), bad, []byte("x")); err == nil {
			t.Errorf("Publish(%q): no error", bad)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file outside the root: %v", err)
	}
}

func TestOneWinnerOfMany(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		wg.Go(func() { errs[i] = s.Publish(t.Context(), name, fmt.Appendf(nil, "bytes %d", i%2)) })
	}
	wg.Wait()
	won, err := s.Read(t.Context(), name, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range errs {
		_, conflict := errors.AsType[*store.ConflictError](err)
		if same := string(won) == fmt.Sprintf("bytes %d", i%2); same != (err == nil) || conflict == same {
			t.Errorf("caller %d got %v, winner is %q", i, err, won)
		}
	}
}

func TestDraftStreamsAndStartsAgain(t *testing.T) {
	s := open(t, t.TempDir())
	d, err := s.Draft()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(d, "first try, longer"); err != nil {
		t.Fatal(err)
	}
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(d, "second"); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	sum := d.SHA256()
	d.Discard()
	d.Discard()
	b, err := s.Read(t.Context(), name, 100)
	if again, serr := s.Sum(t.Context(), name); err != nil || serr != nil || string(b) != "second" || again != sum {
		t.Errorf("stored %q (%v), hash %s (%v), want %s", b, err, again, serr, sum)
	}
}

func TestScanAddsUp(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 3 {
		if err := s.Publish(t.Context(), fmt.Sprintf("m%d/@v/f", i), make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	if err := s.Scan(t.Context()); err != nil || s.Bytes() != 300 {
		t.Errorf("Scan = %v, Bytes = %d, want 300", err, s.Bytes())
	}
}
