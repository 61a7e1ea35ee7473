package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

const listPath = "/example.com/m/@v/list"

// until waits for a condition that another goroutine brings about.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-deadline:
			tb.Fatalf("still not: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func TestListFreshness(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, nil)
	lists := func() int { return up.Count("*/list") }
	b.must(t, listPath)

	b.advance(59 * time.Second)
	b.must(t, listPath)
	if lists() != 1 {
		t.Fatalf("asked %d times within 60 s, want once", lists())
	}

	if err := up.Add(next("v1.1.0")); err != nil {
		t.Fatal(err)
	}
	b.advance(2 * time.Second)
	if got, _ := b.must(t, listPath); got != "v1.0.0\n" {
		t.Errorf("after 61 s = %q, want the old list at once", got)
	}
	until(t, "renewed in the background", func() bool { s, _ := b.must(t, listPath); return s == "v1.0.0\nv1.1.0\n" })
	if lists() != 2 {
		t.Errorf("asked %d times, want twice", lists())
	}

	if err := up.Add(next("v1.2.0")); err != nil {
		t.Fatal(err)
	}
	b.advance(6 * time.Minute)
	until(t, "renewed, awaited", func() bool { // the first may still join the flight before
		got, f := b.must(t, listPath)
		return got == "v1.0.0\nv1.1.0\nv1.2.0\n" && f.Cache == "upstream"
	})
}

func next(version string) mirrortest.Module {
	m, err := mirrortest.ParseTxtar([]byte(module("example.com/m", version)))
	if err != nil {
		panic(err) // the text is ours
	}
	return m
}

func TestTroubleServesOldListsButNothingElse(t *testing.T) {
	t.Parallel()
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	up.SetQuery("example.com/m", "main", "v1.0.0")
	b := start(t, up, nil)
	paths := []string{listPath, "/example.com/m/@latest", "/example.com/m/@v/main.info"}
	for _, p := range paths {
		b.must(t, p)
	}
	up.Break("*", mirrortest.Fault{Status: 500})
	for _, restart := range []bool{false, true} {
		b.advance(time.Hour)
		if restart {
			b.reopen(t, nil)
		}
		for _, p := range paths[:2] {
			_, f, err := b.get(t.Context(), p)
			if err != nil || !f.Stale || f.Age < time.Hour {
				t.Errorf("C18 %s in trouble (restart %v): %+v, %v; want the old answer, marked", p, restart, f, err)
			}
		}
		if _, _, err := b.get(t.Context(), paths[2]); !errors.Is(err, mirror.ErrUpstream) {
			t.Errorf("query in trouble: %v, want ErrUpstream", err)
		}
	}
	v, err := b.Versions(t.Context(), "example.com/m")
	if err != nil || !v.Stale || len(v.Releases) != 1 {
		t.Errorf("Versions in trouble = %+v, %v; want one, stale", v, err)
	}
	b.advance(24 * time.Hour)
	if _, _, err := b.get(t.Context(), listPath); !errors.Is(err, mirror.ErrUpstream) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("N13 after a day: %v, want ErrUpstream", err)
	}
}

func TestNegativeAnswers(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, nil)
	for _, tt := range []struct {
		name, path string
		holds      time.Duration
	}{
		{"version", "/example.com/m/@v/v1.9.0.info", time.Minute},
		{"mod of a version", "/example.com/m/@v/v1.9.0.mod", time.Minute},
		{"zip of a version", "/example.com/m/@v/v1.9.0.zip", time.Minute},
		{"query", "/example.com/m/@v/nobranch.info", time.Minute},
		{"no module", "/example.com/none/@v/list", 10 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			missing := func(asked bool, when string) {
				t.Helper()
				up.Forget()
				_, _, err := b.get(t.Context(), tt.path)
				if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, mirror.ErrUpstream) {
					t.Fatalf("%s: %v, want fs.ErrNotExist", when, err)
				}
				if n := len(up.Requests()); (n > 0) != asked {
					t.Errorf("%s: asked %d times, want any: %v", when, n, asked)
				}
			}
			missing(true, "first")
			b.advance(tt.holds - time.Second)
			missing(false, "while it holds")
			b.advance(2 * time.Second)
			missing(true, "afterwards")
			b.advance(tt.holds + time.Second)
			up.Break("/example.com/*", mirrortest.Fault{Status: 403})
			if _, _, err := b.get(t.Context(), tt.path); !errors.Is(err, mirror.ErrUpstream) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("C18 in trouble: %v, never the old 404", err)
			}
			up.Clear()
		})
	}
}

func TestUpstreamForgetsAModule(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	b := start(t, up, nil)
	b.must(t, "/example.com/m/@v/v1.0.0.info")
	up.Break("*/list", mirrortest.Fault{Status: 404})
	if got, _ := b.must(t, listPath); got != "v1.0.0\n" {
		t.Errorf("list = %q, want the stored versions", got)
	}
}

func TestListIsCleaned(t *testing.T) {
	up := mirrortest.Start(t)
	b := start(t, up, nil)
	for _, tt := range []struct {
		name, body, want string
	}{
		{"C1 times are dropped", "v1.0.0 2024-01-01T00:00:00Z\n", "v1.0.0\n"},
		{"C1 order and doubles", "v1.10.0\nv1.9.0\nv1.9.0", "v1.9.0\nv1.10.0\n"},
		{"C1 no pseudo-versions", "v0.0.0-20240101000000-0123456789ab\n", ""},
		{"C14 no pseudo-versions beside others", "v1.0.0\nv1.0.1-0.20240101000000-0123456789ab\n", "v1.0.0\n"},
		{"C13 majors that do not fit", "v1.0.0\nv2.0.0\nv2.0.0+incompatible\nv1.0.0+meta\n", "v1.0.0\nv2.0.0+incompatible\n"},
		{"C1 a module without tags", "", ""},
		{"C17 HTML", "<html>\n<body>sign in</body>\n", "error"},
		{"C17 JSON", `{"error":"quota"}`, "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up.Clear()
			up.Break("*/list", mirrortest.Fault{Body: []byte(tt.body)})
			b.advance(25 * time.Hour)
			got, _, err := b.get(t.Context(), listPath)
			if tt.want == "error" {
				if !errors.Is(err, mirror.ErrUpstream) {
					t.Errorf("list = %q, %v; want ErrUpstream", got, err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("list = %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestInfoIsChecked(t *testing.T) {
	for _, tt := range []struct {
		name, path, body string
		ok               bool
	}{
		{"C2 unknown fields stay", "v1.0.0", `{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z","Origin":{"VCS":"git"},"New":1}`, true},
		{"C2 without time", "v1.0.0", `{"Version":"v1.0.0"}`, true},
		{"E15 another version", "v1.0.0", `{"Version":"v1.0.1"}`, false},
		{"C17 HTML", "v1.0.0", `<html>`, false},
		{"C17 bad time", "v1.0.0", `{"Version":"v1.0.0","Time":"yesterday"}`, false},
		{"C3 query that resolves", "main", `{"Version":"v1.2.3"}`, true},
		{"C3 query to what is not canonical", "main", `{"Version":"v1.2"}`, false},
		{"C3 query to another major", "main", `{"Version":"v2.0.0"}`, false},
		{"C3 query to a path", "main", `{"Version":"../../x"}`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.Start(t)
			b := start(t, up, nil)
			up.Break("*.info", mirrortest.Fault{Body: []byte(tt.body)})
			got, f, err := b.get(t.Context(), "/example.com/m/@v/"+tt.path+".info")
			if !tt.ok {
				if !errors.Is(err, mirror.ErrUpstream) {
					t.Errorf("Open = %q, %v; want ErrUpstream", got, err)
				}
				b.nothingStored(t, "example.com/m")
				return
			}
			if err != nil || got != tt.body {
				t.Fatalf("Open = %q, %v; want the bytes as they came", got, err)
			}
			if tt.path == "main" {
				if f.Version != "v1.2.3" {
					t.Errorf("query resolved to %q", f.Version)
				}
				b.nothingStored(t, "example.com/m") // C3: a query is never V's own .info
			}
		})
	}
}

func TestModIsChecked(t *testing.T) {
	for _, tt := range []struct{ name, body string }{
		{"C5 HTML", "<html><body>x</body></html>"},
		{"C5 no module line", "go 1.20\n"},
		{"C5 empty", " "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.SumdbExempt = []string{"example.com"} })
			up.Break("*.mod", mirrortest.Fault{Body: []byte(tt.body)})
			if _, _, err := b.get(t.Context(), "/example.com/m/@v/v1.0.0.mod"); !errors.Is(err, mirror.ErrUpstream) {
				t.Errorf("Open = %v, want ErrUpstream", err)
			}
			b.nothingStored(t, "example.com/m")
		})
	}
	up := mirrortest.Start(t, "module example.com/fork@v1.0.0\n-- go.mod --\nmodule example.com/orig\n")
	b := start(t, up, nil)
	if got, _ := b.must(t, "/example.com/fork/@v/v1.0.0.mod"); got != "module example.com/orig\n" {
		t.Errorf("C5 .mod of a fork = %q, want its bytes", got)
	}
}

func TestVersionsHaveFacts(t *testing.T) {
	const pseudo = "v0.0.0-20240101000000-0123456789ab"
	up := mirrortest.Start(t, module("example.com/m", "v0.9.0"), module("example.com/m", "v1.0.0-rc.1"), module("example.com/m", "v1.0.0"),
		"module example.com/m@v2.1.0+incompatible\n-- m.go --\npackage m\n", module("example.com/untagged", pseudo))
	b := start(t, up, nil)
	b.must(t, "/example.com/m/@v/v1.0.0.info")
	b.must(t, "/example.com/m/@v/v1.0.0.mod")
	v, err := b.Versions(t.Context(), "example.com/m")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range v.Releases {
		got = append(got, fmt.Sprintf("%s %s %d %s %v", r.Version, r.Facts.Kind, r.Facts.Major, r.Facts.Sumdb, !r.Facts.Published.IsZero()))
	}
	want := "v0.9.0 release 0 pending false|v1.0.0-rc.1 prerelease 1 pending false|v1.0.0 release 1 verified true|v2.1.0+incompatible incompatible 2 pending false"
	if strings.Join(got, "|") != want {
		t.Errorf("Versions = %s\nwant %s", strings.Join(got, "|"), want)
	}
	again, err := b.Versions(t.Context(), "example.com/m")
	if err != nil || again.Revision != v.Revision || again.Cache != "memory" {
		t.Errorf("asked again: revision %d from %s, want %d from memory", again.Revision, again.Cache, v.Revision)
	}
	b.must(t, "/example.com/m/@v/v0.9.0.mod")
	if again, err = b.Versions(t.Context(), "example.com/m"); err != nil || again.Revision == v.Revision || again.Releases[0].Facts.Sumdb != "verified" {
		t.Errorf("after a new .mod: revision %d, %+v, %v; want a new revision with v0.9.0 verified", again.Revision, again.Releases[0], err)
	}
	r, err := b.Latest(t.Context(), "example.com/untagged")
	if err != nil || r.Version != pseudo || r.Facts.Kind != "pseudo" || r.Facts.Published.IsZero() {
		t.Errorf("Latest without tags = %+v, %v; want %s", r, err, pseudo)
	}
	if got, _ := b.must(t, "/example.com/untagged/@v/list"); got != "" {
		t.Errorf("C1 list without tags = %q, want an empty one", got)
	}
}

func TestIslandAndCachedOnly(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v1.2.0-rc.1"))
	b := start(t, up, nil)
	for _, p := range []string{"v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip", "v1.2.0-rc.1.info"} {
		b.must(t, "/example.com/m/@v/"+p)
	}
	up.Forget()
	check := func(t *testing.T, ctx context.Context) {
		for path, want := range map[string]string{
			listPath: "v1.0.0\nv1.2.0-rc.1\n", "/example.com/m/@latest": `"v1.0.0"`, "/example.com/m/@v/v1.0.0.zip": "PK",
			"/sumdb/sum.example.test/lookup/example.com/m@v1.0.0": "go.sum database tree", "/sumdb/sum.example.test/latest": "go.sum database tree",
		} {
			if got, _, err := b.get(ctx, path); err != nil || !strings.Contains(got, want) {
				t.Errorf("Open(%s) = %q, %v; want %q in it", path, got, err, want)
			}
		}
		for _, path := range []string{
			"/example.com/m/@v/v1.1.0.info", "/example.com/m/@v/main.info", "/example.com/x/@v/list", "/example.com/x/@latest",
			"/sumdb/sum.example.test/lookup/example.com/m@v1.1.0", "/sumdb/sum.example.test/tile/8/1/000",
		} {
			if _, _, err := b.get(ctx, path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open(%s) = %v, want fs.ErrNotExist", path, err)
			}
		}
		if r := up.Requests(); len(r) > 0 {
			t.Errorf("asked upstream: %v", r)
		}
	}
	t.Run("C52 cached only", func(t *testing.T) { check(t, mirror.WithCachedOnly(t.Context())) })
	b.reopen(t, func(c *mirror.Config, _ *mirror.Options) { c.Upstreams = []string{"off"} })
	t.Run("N10 island", func(t *testing.T) { check(t, t.Context()) })
}
