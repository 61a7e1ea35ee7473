package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// filled is a mirror with n modules in its store, info, mod and zip, which is
// also a module cache with records and tiles for others to import.
func filled(t *testing.T, n int) (*bench, *mirrortest.Server) {
	t.Helper()
	var archives []string
	for i := range n {
		archives = append(archives, module(fmt.Sprintf("example.com/m%d", i), "v1.0.0"))
	}
	up := mirrortest.Start(t, append(archives, module("example.com/Up/Case", "v1.2.3"))...)
	b := start(t, up, withState(t))
	for i := range n {
		b.fill(t, fmt.Sprintf("/example.com/m%d/@v/v1.0.0", i))
	}
	b.fill(t, "/example.com/!up/!case/@v/v1.2.3")
	up.Forget()
	return b, up
}

func (b *bench) fill(t *testing.T, base string) {
	t.Helper()
	for _, ext := range []string{".info", ".mod", ".zip"} {
		b.must(t, base+ext)
	}
}

// offline is a mirror with an empty store of its own that asks nobody.
func offline(t *testing.T, up *mirrortest.Server, change func(*mirror.Config)) *bench {
	t.Helper()
	state := withState(t)
	return start(t, up, func(c *mirror.Config, o *mirror.Options) {
		c.Upstreams, c.Offline = nil, true
		if change != nil {
			change(c)
		}
		state(c, o)
	})
}

func copyTree(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestImportOfAModuleCacheOffline(t *testing.T) {
	src, up := filled(t, 20)
	cache := t.TempDir()
	copyTree(t, filepath.Join(cache, "cache/download"), filepath.Join(src.cfg.Store, "public"))
	b := offline(t, up, nil)
	var told []mirror.Progress
	r, err := b.Import(t.Context(), mirror.ImportOptions{Source: cache, Progress: func(p mirror.Progress) { told = append(told, p) }})
	if err != nil || r.Versions != 21 || r.Failed != 0 || r.Had != 0 {
		t.Fatalf("Import = %+v, %v, want 21 versions", r, err)
	}
	if last := told[len(told)-1]; last.Done != 21 || last.Total != 21 || last.Bytes == 0 {
		t.Errorf("last progress = %+v, want 21 of 21", last)
	}
	for _, ctx := range []context.Context{t.Context(), mirror.WithCachedOnly(t.Context())} {
		for path, want := range map[string]string{
			"/example.com/m7/@v/list":                                     "v1.0.0\n",
			"/example.com/m7/@latest":                                     `"Version":"v1.0.0"`,
			"/example.com/!up/!case/@v/v1.2.3.mod":                        "module example.com/Up/Case",
			"/example.com/m7/@v/v1.0.0.zip":                               "example.com/m7@v1.0.0/go.mod",
			"/sumdb/sum.example.test/lookup/example.com/m7@v1.0.0":        "example.com/m7 v1.0.0/go.mod h1:",
			"/sumdb/sum.example.test/latest":                              "go.sum database tree",
			"/sumdb/sum.example.test/tile/8/0/000.p/21":                   "",
			"/sumdb/sum.example.test/lookup/example.com/!up/!case@v1.2.3": "example.com/Up/Case v1.2.3 h1:",
		} {
			if got, _, err := b.get(ctx, path); err != nil || !strings.Contains(got, want) {
				t.Errorf("N10 after the import %s = %.60q, %v, want %q", path, got, err, want)
			}
		}
	}
	if _, _, err := b.get(t.Context(), "/example.com/m7/@v/v1.9.0.mod"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("C52 what is not there: %v, want fs.ErrNotExist", err)
	}
	if n := len(up.Requests()); n != 0 {
		t.Errorf("import and answers asked upstream: %q", up.Requests())
	}
	entries, err := b.Index(t.Context(), time.Time{}, 100)
	if err != nil || len(entries) != 21 {
		t.Errorf("C51 the index has %d entries (%v), want 21", len(entries), err)
	}
	again, err := b.Import(t.Context(), mirror.ImportOptions{Source: cache})
	if err != nil || again.Had != 21 || again.Versions != 0 || again.Files != 0 {
		t.Errorf("Import again = %+v, %v, want all had", again, err)
	}
}

func TestImportOnlineAsksTheDatabaseAlone(t *testing.T) {
	src, up := filled(t, 3)
	cache := t.TempDir()
	copyTree(t, cache, filepath.Join(src.cfg.Store, "public"))
	if err := os.RemoveAll(filepath.Join(cache, "sumdb")); err != nil {
		t.Fatal(err)
	}
	b := start(t, up, withState(t))
	r, err := b.Import(t.Context(), mirror.ImportOptions{Source: cache})
	if err != nil || r.Versions != 4 {
		t.Fatalf("Import = %+v, %v, want 4 versions", r, err)
	}
	if n := up.Count("/example.com/*"); n != 0 || up.Count("/sumdb/*") == 0 {
		t.Errorf("the import asked %q, want records and no module", up.Requests())
	}
	off, err := offline(t, up, nil).Import(t.Context(), mirror.ImportOptions{Source: cache})
	if err != nil || off.Failed != 4 || off.Versions != 0 {
		t.Errorf("offline and without records = %+v, %v, want 4 failed", off, err)
	}
}

func TestImportOfBadFiles(t *testing.T) {
	src, up := filled(t, 9)
	good := filepath.Join(src.cfg.Store, "public")
	file := func(dir, name string) string { return filepath.Join(dir, "example.com", name) }
	cache := t.TempDir()
	copyTree(t, cache, good)
	spoil := func(name string, change func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(file(cache, name))
		if err == nil {
			err = os.WriteFile(file(cache, name), change(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	other, err := os.ReadFile(file(cache, "m1/@v/v1.0.0.zip"))
	if err != nil {
		t.Fatal(err)
	}
	spoil("m0/@v/v1.0.0.zip", func(b []byte) []byte { return b[:len(b)/2] })
	spoil("m2/@v/v1.0.0.zip", func([]byte) []byte { return other })
	spoil("m3/@v/v1.0.0.mod", func(b []byte) []byte { return append(b, "// x\n"...) })
	spoil("m4/@v/v1.0.0.info", func([]byte) []byte { return []byte(`{"Version":"v1.0.1"}`) })
	spoil("m5/@v/v1.0.0.ziphash", func([]byte) []byte { return []byte("h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=") })
	if err := os.Remove(file(cache, "m6/@v/v1.0.0.zip")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", file(cache, "m6/@v/v1.0.0.zip")); err != nil {
		t.Fatal(err)
	}
	b := offline(t, up, nil)
	r, err := b.Import(t.Context(), mirror.ImportOptions{Source: cache})
	if err != nil || r.Failed != 4 || r.Done != 10 {
		t.Fatalf("Import = %+v, %v, want 4 failed of 10", r, err)
	}
	failed := map[string]mirror.Failure{}
	for _, f := range r.Failures {
		failed[f.Module] = f
	}
	for name, want := range map[string]string{"m0": "zip", "m2": "zip", "m3": "mod", "m4": "info"} {
		f := failed["example.com/"+name]
		if f.File != want || f.Incident != (want == "mod") {
			t.Errorf("failure of %s = %+v, want its %s", name, f, want)
		}
		if _, _, err := b.get(t.Context(), "/example.com/"+name+"/@v/v1.0.0."+want); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("bad %s of %s: %v, want fs.ErrNotExist", want, name, err)
		}
	}
	if _, f := b.must(t, "/example.com/m5/@v/v1.0.0.zip"); strings.Contains(f.Hash, "AAAA") {
		t.Errorf("a .ziphash was believed: %s", f.Hash)
	}
	if _, _, err := b.get(t.Context(), "/example.com/m6/@v/v1.0.0.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link was followed: %v", err)
	}
	// The versions are not suspect, the source was: a good one repairs all.
	if r, err = b.Import(t.Context(), mirror.ImportOptions{Source: good}); err != nil || r.Failed != 0 || r.Had != 5 {
		t.Errorf("Import of good files = %+v, %v, want none failed", r, err)
	}
}

func TestImportOfAnAthensStore(t *testing.T) {
	src, up := filled(t, 3)
	athens := t.TempDir()
	for esc, path := range map[string]string{"m0": "m0", "m1": "m1", "!up/!case": "Up/Case"} {
		dir := filepath.Join(src.cfg.Store, "public/example.com", esc, "@v")
		version := map[bool]string{true: "v1.2.3", false: "v1.0.0"}[path == "Up/Case"]
		to := filepath.Join(athens, "example.com", path, version)
		if err := os.MkdirAll(to, 0o700); err != nil {
			t.Fatal(err)
		}
		for from, name := range map[string]string{".mod": "go.mod", ".zip": "source.zip", ".info": version + ".info"} {
			b, err := os.ReadFile(filepath.Join(dir, version+from))
			if err == nil {
				err = os.WriteFile(filepath.Join(to, name), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	b := start(t, up, withState(t))
	r, err := b.Import(t.Context(), mirror.ImportOptions{Source: athens, Modules: []string{"example.com/m*", "example.com/Up"}})
	if err != nil || r.Versions != 3 || r.Failed != 0 {
		t.Fatalf("Import = %+v, %v, want 3 versions", r, err)
	}
	up.Forget()
	for _, p := range []string{"/example.com/!up/!case/@v/v1.2.3", "/example.com/m0/@v/v1.0.0"} {
		b.fill(t, p)
	}
	if n := len(up.Requests()); n != 0 {
		t.Errorf("after the import the upstream was asked: %q", up.Requests())
	}
}

func TestImportOfPrivateModules(t *testing.T) {
	src, up := filled(t, 2)
	cache := filepath.Join(src.cfg.Store, "public")
	b := offline(t, up, func(c *mirror.Config) { c.Private = []mirror.PrivateRoute{{Patterns: []string{"example.com/m0"}}} })
	r, err := b.Import(t.Context(), mirror.ImportOptions{Source: cache})
	if err != nil || r.Failed != 0 || r.Versions != 3 {
		t.Fatalf("Import = %+v, %v, want 3 versions", r, err)
	}
	for root, want := range map[string]int{"private": 1, "public": 0} {
		if found, err := filepath.Glob(filepath.Join(b.cfg.Store, root, "example.com/m0/@v/v1.0.0.zip")); err != nil || len(found) != want {
			t.Errorf("the %s store has %q, want %d zips", root, found, want)
		}
	}
	b.fill(t, "/example.com/m0/@v/v1.0.0")
	if got, _ := b.must(t, "/example.com/m0/@v/list"); got != "v1.0.0\n" {
		t.Errorf("list of an imported private module = %q", got)
	}
	if lookups, err := filepath.Glob(filepath.Join(b.cfg.Store, "*/sumdb/*/lookup/example.com/m0*")); err != nil || len(lookups) != 0 {
		t.Errorf("a private name stands in the public database's folder: %q", lookups)
	}
}

func TestImportThatIsStoppedGoesOn(t *testing.T) {
	src, up := filled(t, 30)
	cache := filepath.Join(src.cfg.Store, "public")
	b := offline(t, up, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Import(ctx, mirror.ImportOptions{Source: cache, Progress: func(p mirror.Progress) {
		if p.Done == 5 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || r.Done < 5 || r.Done > 31-1 || r.Failed != 0 {
		t.Fatalf("stopped Import = %+v, %v, want some done and none failed", r, err)
	}
	again, err := b.Import(t.Context(), mirror.ImportOptions{Source: cache})
	if err != nil || again.Had < r.Versions || again.Had+again.Versions != 31 {
		t.Errorf("Import again = %+v, %v, want it to go on after %d", again, err, r.Versions)
	}
}
