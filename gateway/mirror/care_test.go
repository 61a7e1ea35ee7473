package mirror_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	xmodule "golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

func version(path, v string) xmodule.Version { return xmodule.Version{Path: path, Version: v} }

func TestQuarantine(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v0.0.0-20240101000000-abcdefabcdef"))
	up.SetQuery("example.com/m", "main", "v1.1.0")
	state := withState(t)
	b := start(t, up, state)
	b.fill(t, "/example.com/m/@v/v1.1.0")
	b.must(t, "/example.com/m/@v/list")
	b.must(t, "/example.com/m/@latest")
	v := version("example.com/m", "v1.1.0")
	if err := b.Quarantine(t.Context(), v, "CVE-1 \x1b[31mred"); err != nil {
		t.Fatal(err)
	}
	stopped := func(b *bench, when string) {
		t.Helper()
		for _, p := range []string{"/example.com/m/@v/v1.1.0.info", "/example.com/m/@v/v1.1.0.mod", "/example.com/m/@v/v1.1.0.zip", "/example.com/m/@latest", "/example.com/m/@v/main.info"} {
			_, _, err := b.get(t.Context(), p)
			e, ok := errors.AsType[*mirror.QuarantineError](err)
			if !ok || e.Reason != "CVE-1 [31mred" || !errors.Is(err, mirror.ErrQuarantined) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s %s: %v, want a QuarantineError with the reason", when, p, err)
			}
		}
		if got, _ := b.must(t, "/example.com/m/@v/list"); got != "v1.0.0\n" {
			t.Errorf("%s list = %q, want v1.0.0 alone", when, got)
		}
		b.must(t, "/example.com/m/@v/v1.0.0.mod")
	}
	stopped(b, "at once")
	b.reopen(t, state)
	stopped(b, "after a restart")
	if list, err := b.QuarantineList(t.Context()); err != nil || len(list) != 1 || list[0].Version != "v1.1.0" || list[0].Since.IsZero() {
		t.Errorf("QuarantineList = %+v, %v", list, err)
	}
	if err := b.Release(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	b.fill(t, "/example.com/m/@v/v1.1.0")
	if got, _ := b.must(t, "/example.com/m/@v/list"); got != "v1.0.0\nv1.1.0\n" {
		t.Errorf("list after the release = %q", got)
	}
	if err := b.Release(t.Context(), v); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Release again = %v, want fs.ErrNotExist", err)
	}
}

func TestAnotherGatewaysQuarantineIsSeen(t *testing.T) {
	b, up := filled(t, 1)
	state := withState(t)
	one, two := start(t, up, state), start(t, up, state)
	_ = b
	two.fill(t, "/example.com/m0/@v/v1.0.0")
	if err := one.Quarantine(t.Context(), version("example.com/m0", "v1.0.0"), "x"); err != nil {
		t.Fatal(err)
	}
	until(t, "the other gateway refuses", func() bool {
		_, _, err := two.get(t.Context(), "/example.com/m0/@v/v1.0.0.zip")
		return errors.Is(err, mirror.ErrQuarantined)
	})
}

func TestPurgeAndTheSameBytesAgain(t *testing.T) {
	b, up := filled(t, 2)
	_, before := b.must(t, "/example.com/m0/@v/v1.0.0.zip")
	r, err := b.Purge(t.Context(), version("example.com/m0", "v1.0.0"))
	if err != nil || r.Files != 5 || r.Bytes == 0 {
		t.Fatalf("Purge = %+v, %v, want 5 files", r, err)
	}
	if found, err := filepath.Glob(filepath.Join(b.cfg.Store, "public/example.com/m0/@v/v*")); err != nil || len(found) != 0 {
		t.Errorf("left of the version: %q", found)
	}
	if _, _, err := b.get(mirror.WithCachedOnly(t.Context()), "/example.com/m0/@v/v1.0.0.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the purge: %v, want fs.ErrNotExist", err)
	}
	b.must(t, "/sumdb/sum.example.test/lookup/example.com/m0@v1.0.0")
	if n := up.Count("/sumdb/*"); n != 0 {
		t.Errorf("its record was purged, too: %q", up.Requests())
	}
	if _, after := b.must(t, "/example.com/m0/@v/v1.0.0.zip"); after.ETag != before.ETag || up.Count("*.zip") != 1 {
		t.Errorf("the version came back as %s, want %s", after.ETag, before.ETag)
	}
}

func TestOtherBytesAfterAPurge(t *testing.T) {
	for _, ext := range []string{"zip", "mod"} { // each for itself: after the first incident the version is suspect
		t.Run("N6 "+ext, func(t *testing.T) {
			up := mirrortest.Start(t, module("example.com/free", "v1.0.0"))
			b := start(t, up, withState(t, func(c *mirror.Config) { c.SumdbExempt = []string{"example.com/free"} }))
			b.fill(t, "/example.com/free/@v/v1.0.0")
			if _, err := b.Purge(t.Context(), version("example.com/free", "v1.0.0")); err != nil {
				t.Fatal(err)
			}
			m, err := mirrortest.ParseTxtar([]byte("module example.com/free@v1.0.0\n-- go.mod --\nmodule example.com/free\n-- more.go --\npackage m\n"))
			if err == nil {
				err = up.Add(m)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := b.get(t.Context(), "/example.com/free/@v/v1.0.0."+ext); !errors.Is(err, mirror.ErrMismatch) {
				t.Errorf("other bytes of .%s after a purge: %v, want ErrMismatch", ext, err)
			}
		})
	}
}

func TestCollect(t *testing.T) {
	b, up := filled(t, 6)
	b.advance(24 * time.Hour)
	used := withinTick(t, b, "/example.com/m2/@v/v1.0.0.zip")
	dry, err := b.Collect(t.Context(), mirror.CollectOptions{MaxAge: 12 * time.Hour, DryRun: true})
	if err != nil || dry.Versions != 6 || len(dry.Listed) != 6 {
		t.Fatalf("dry run = %+v, %v, want 6 of 7", dry, err)
	}
	b.must(t, used)
	if n := len(up.Requests()); n != 0 {
		t.Fatalf("a dry run removed something: %q", up.Requests())
	}
	open, err := b.ParseTarget("/example.com/m4/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	reader, err := b.Open(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	b.advance(48 * time.Hour)
	r, err := b.Collect(t.Context(), mirror.CollectOptions{MaxAge: 12 * time.Hour})
	if err != nil || r.Versions != 6 || r.Kept != 1 {
		t.Errorf("Collect = %+v, %v, want 6 removed, and the open one kept", r, err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := filepath.Glob(filepath.Join(b.cfg.Store, "public/sumdb/*/lookup/example.com/*")); err != nil || len(n) != 7 {
		t.Errorf("records after gc: %q (%v), want all 7", n, err)
	}
	b.fill(t, "/example.com/m1/@v/v1.0.0")
	if up.Count("*.zip") != 1 {
		t.Errorf("N6 a collected version is fetched again: %q", up.Requests())
	}
}

// withinTick makes a use that is noted at the mirror's clock.
func withinTick(t *testing.T, b *bench, path string) string {
	t.Helper()
	until(t, "the use is noted", func() bool {
		b.must(t, path)
		r, err := b.Collect(t.Context(), mirror.CollectOptions{MaxAge: 12 * time.Hour, DryRun: true})
		return err == nil && r.Versions < 7
	})
	return path
}

func TestCollectBySizeTakesTheOldestFirst(t *testing.T) {
	b, _ := filled(t, 4)
	private := []mirror.PrivateRoute{{Patterns: []string{"example.com/m0"}}}
	p := offline(t, b.up, func(c *mirror.Config) { c.Private = private })
	if _, err := p.Import(t.Context(), mirror.ImportOptions{Source: filepath.Join(b.cfg.Store, "public")}); err != nil {
		t.Fatal(err)
	}
	r, err := p.Collect(t.Context(), mirror.CollectOptions{MaxBytes: 1})
	if err != nil || r.Kept != 1 || r.Versions != 4 {
		t.Errorf("Collect = %+v, %v, want the private one kept", r, err)
	}
	p.fill(t, "/example.com/m0/@v/v1.0.0")
	r, err = p.Collect(t.Context(), mirror.CollectOptions{MaxBytes: 1, Private: true})
	if err != nil || r.Versions != 1 {
		t.Errorf("Collect with Private = %+v, %v, want 1", r, err)
	}
}

func TestScrub(t *testing.T) {
	b, up := filled(t, 6)
	file := func(name string) string { return filepath.Join(b.cfg.Store, "public/example.com", name) }
	if r, err := b.Scrub(t.Context(), mirror.ScrubOptions{BytesPerSecond: 1 << 30}); err != nil || r.Failed != 0 || r.Files != 21 {
		t.Fatalf("Scrub of a good store = %+v, %v, want 21 files", r, err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"m0/@v/v1.0.0.zip":        func(x []byte) []byte { x[len(x)/2] ^= 1; return x },
		"m1/@v/v1.0.0.mod":        func(x []byte) []byte { return append(x, '\n') },
		"m2/@v/v1.0.0.info":       func([]byte) []byte { return []byte("{}") },
		"m3/@v/v1.0.0.ziphash":    func([]byte) []byte { return []byte("h1:x") },
		"m4/@v/v1.0.0.zip.sha256": func([]byte) []byte { return []byte(strings.Repeat("0", 64)) },
	} {
		text, err := os.ReadFile(file(name))
		if err == nil {
			err = os.WriteFile(file(name), change(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	bad := map[string]bool{}
	r, err := b.Scrub(t.Context(), mirror.ScrubOptions{})
	if err != nil || r.Failed != 5 {
		t.Fatalf("Scrub = %+v, %v, want 5 bad", r, err)
	}
	for _, f := range r.Failures {
		bad[f.File] = f.Incident
	}
	for name, incident := range map[string]bool{"m0/@v/v1.0.0.zip": true, "m1/@v/v1.0.0.mod": true, "m2/@v/v1.0.0.info": false, "m3/@v/v1.0.0.zip": false, "m4/@v/v1.0.0.zip": false} {
		if got, ok := bad["example.com/"+name]; !ok || got != incident {
			t.Errorf("%s: named %v, incident %v, want true, %v", name, ok, got, incident)
		}
	}
	if _, err := os.Stat(file("m0/@v/v1.0.0.zip")); err != nil {
		t.Errorf("without Repair a file went away: %v", err)
	}
	if r, err = b.Scrub(t.Context(), mirror.ScrubOptions{Repair: true}); err != nil || r.Failed != 5 {
		t.Fatalf("Scrub with Repair = %+v, %v", r, err)
	}
	aside, err := filepath.Glob(filepath.Join(b.cfg.Store, "public/.aside/*/example.com/m0/@v/v1.0.0.zip"))
	if err != nil || len(aside) != 1 {
		t.Errorf("moved aside: %q (%v), want the zip", aside, err)
	}
	up.Forget()
	for _, name := range []string{"m0", "m1", "m2", "m3", "m4"} {
		b.fill(t, "/example.com/"+name+"/@v/v1.0.0")
	}
	if n := up.Count("*/@v/v1*"); n != 3 {
		t.Errorf("fetched anew: %q, want zip, mod and info", up.Requests())
	}
	if r, err = b.Scrub(t.Context(), mirror.ScrubOptions{}); err != nil || r.Failed != 0 {
		t.Errorf("Scrub after all = %+v, %v, want none bad", r, err)
	}
}

func TestPrefetch(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/n", "v1.0.0"))
	b := start(t, up, withState(t))
	b.must(t, "/example.com/m/@v/list")
	m, err := mirrortest.ParseTxtar([]byte(module("example.com/m", "v1.1.0")))
	if err == nil {
		err = up.Add(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	wanted := []mirror.Wanted{
		{Path: "example.com/m", Version: "v1.1.0"}, {Path: "example.com/n", Version: "v1.0.0", ModOnly: true}, {Path: "example.com/none", Version: "v1.0.0"},
	}
	r, err := b.Prefetch(t.Context(), mirror.PrefetchOptions{Versions: wanted})
	if err != nil || r.Versions != 2 || r.Failed != 1 || r.Files != 4 || r.Failures[0].Module != "example.com/none" {
		t.Fatalf("Prefetch = %+v, %v, want 2 fetched and 1 failed", r, err)
	}
	if n := up.Count("*.zip"); n != 1 {
		t.Errorf("%d zips were fetched, want that of m alone", n)
	}
	if got, _ := b.must(t, "/example.com/m/@v/list"); got != "v1.0.0\nv1.1.0\n" {
		t.Errorf("§12 list after the prefetch = %q, want the new one", got)
	}
	if r, err = b.Prefetch(t.Context(), mirror.PrefetchOptions{Versions: wanted[:2]}); err != nil || r.Had != 2 || r.Files != 0 {
		t.Errorf("Prefetch again = %+v, %v, want all had", r, err)
	}
}
