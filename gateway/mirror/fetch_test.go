package mirror_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// herd opens one path from n callers at once.
func (b *bench) herd(tb testing.TB, n int, path string) {
	tb.Helper()
	t, err := b.ParseTarget(path)
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	var bad atomic.Int64
	for range n {
		wg.Go(func() {
			f, err := b.Open(context.Background(), t)
			if err != nil {
				bad.Add(1)
				return
			}
			defer f.Close()
			if n, err := io.Copy(io.Discard, f); err != nil || n != f.Size {
				bad.Add(1)
			}
		})
	}
	wg.Wait()
	if bad.Load() > 0 {
		tb.Errorf("%d of %d callers failed", bad.Load(), n)
	}
}

func TestHerdsShareOneFetch(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	if err := up.AddBig("example.com/big", "v1.0.0", 8<<20); err != nil {
		t.Fatal(err)
	}
	b := start(t, up, nil)
	t.Run("E13 1000 cold .mod", func(t *testing.T) {
		up.Break("*.mod", mirrortest.Fault{Delay: 50 * time.Millisecond})
		b.herd(t, 1000, "/example.com/m/@v/v1.0.0.mod")
		if mods, zips := up.Count("*.mod"), up.Count("*.zip"); mods != 1 || zips != 0 {
			t.Errorf("upstream saw %d .mod and %d .zip, want 1 and 0", mods, zips)
		}
		if n := b.metric(t, "headgate_flights_shared_total"); n == 0 {
			t.Error("no shared flight was counted")
		}
	})
	t.Run("N7 200 cold zips", func(t *testing.T) {
		up.Break("*.zip", mirrortest.Fault{Delay: 50 * time.Millisecond})
		b.herd(t, 200, "/example.com/big/@v/v1.0.0.zip")
		if n := up.Count("*.zip"); n != 1 {
			t.Errorf("upstream saw %d .zip, want 1", n)
		}
	})
	t.Run("N1 100 cold lists", func(t *testing.T) {
		b.herd(t, 100, "/example.com/m/@v/list")
		if n := up.Count("*/list"); n != 1 {
			t.Errorf("upstream saw %d lists, want 1", n)
		}
	})
}

func TestZipDoesNotPassThroughMemory(t *testing.T) {
	const size = 48 << 20
	up := mirrortest.Start(t)
	if err := up.AddBig("example.com/big", "v1.0.0", size); err != nil {
		t.Fatal(err)
	}
	b := start(t, up, nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.herd(t, 20, "/example.com/big/@v/v1.0.0.zip")
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > size/2 {
		t.Errorf("C47 %d bytes were allocated in all for a zip of %d", grown, size)
	}
}

func TestFlightOutlivesItsFirstCaller(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, nil)
	up.Break("*.zip", mirrortest.Fault{Hang: true})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client went away")
	done := make(chan error, 1)
	go func() {
		_, _, err := b.get(ctx, "/example.com/m/@v/v1.0.0.zip")
		done <- err
	}()
	until(t, "asked", func() bool { return up.Count("*.zip") == 1 })
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("first caller got %v, want the cause of its context", err)
	}
	up.Clear()
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if n := up.Count("*.zip"); n != 1 {
		t.Errorf("N7 upstream saw %d .zip, want the first fetch to go on", n)
	}
}

func TestCloseEndsFlights(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, nil)
	up.Break("*.zip", mirrortest.Fault{Hang: true})
	done := make(chan error, 1)
	go func() {
		_, _, err := b.get(context.Background(), "/example.com/m/@v/v1.0.0.zip")
		done <- err
	}()
	until(t, "asked", func() bool { return up.Count("*.zip") == 1 })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the caller of a flight that Close ended got %v", err)
	}
}

// everything is one path of each kind that is asked of an upstream.
var everything = []string{
	"/example.com/m/@v/list", "/example.com/m/@latest", "/example.com/m/@v/main.info",
	"/example.com/m/@v/v1.0.0.info", "/example.com/m/@v/v1.0.0.mod", "/example.com/m/@v/v1.0.0.zip",
	"/sumdb/sum.example.test/lookup/example.com/m@v1.0.0", "/sumdb/sum.example.test/latest", "/sumdb/sum.example.test/tile/8/0/000.p/1",
}

func TestTroubleIsNeverNotFound(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault mirrortest.Fault
		want  error
	}{
		{"E14 500", mirrortest.Fault{Status: 500}, mirror.ErrUpstream},
		{"E14 401", mirrortest.Fault{Status: 401}, mirror.ErrUpstream},
		{"E14 403", mirrortest.Fault{Status: 403}, mirror.ErrUpstream},
		{"E14 429 for long", mirrortest.Fault{Status: 429, Header: http.Header{"Retry-After": {"60"}}}, mirror.ErrUpstream},
		{"E14 451", mirrortest.Fault{Status: 451}, mirror.ErrUpstream},
		{"E14 hangs", mirrortest.Fault{Hang: true}, mirror.ErrTimeout},
		{"C17 204", mirrortest.Fault{Status: 204, Body: []byte{}}, mirror.ErrUpstream},
		{"C17 HTML with 200", mirrortest.Fault{Body: []byte("<html><body>Sign in</body></html>")}, mirror.ErrUpstream},
		{"C17 endless body", mirrortest.Fault{Huge: 1 << 40}, mirror.ErrUpstream},
		{"E9 redirect loop", mirrortest.Fault{Redirect: "self"}, mirror.ErrUpstream},
		{"E9 redirect to http", mirrortest.Fault{Redirect: "http://example.org/x"}, mirror.ErrUpstream},
		{"E9 redirect to an internal address", mirrortest.Fault{Redirect: "https://169.254.169.254/latest/meta-data"}, mirror.ErrUpstream},
		{"E8 cut body", mirrortest.Fault{Cut: 1}, mirror.ErrUpstream},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, path := range everything {
				if strings.HasPrefix(tt.name, "C17 endless") && strings.HasSuffix(path, ".zip") {
					continue // 500 MiB are let through before it is too much
				}
				up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
				up.SetQuery("example.com/m", "main", "v1.0.0")
				b := start(t, up, func(_ *mirror.Config, o *mirror.Options) { o.FirstByte = 100 * time.Millisecond })
				up.Break("/example.com/*", tt.fault)
				up.Break("/sumdb/*", tt.fault)
				if tt.fault.Cut > 0 { // "supported" is empty: nothing to cut
					up.Break("*/supported", mirrortest.Fault{})
				}
				_, _, err := b.get(t.Context(), path)
				if err == nil || errors.Is(err, fs.ErrNotExist) || !errors.Is(err, mirror.ErrUpstream) && !errors.Is(err, mirror.ErrTimeout) {
					t.Errorf("C18 Open(%s) = %v, want %v", path, err, tt.want)
				}
				if !strings.HasPrefix(path, "/sumdb") && !errors.Is(err, tt.want) {
					t.Errorf("Open(%s) = %v, want %v", path, err, tt.want)
				}
				b.nothingStored(t, "example.com/m")
			}
		})
	}
}

func TestOneBadAnswerFailsNoBuild(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault mirrortest.Fault
	}{
		{"N15 503", mirrortest.Fault{Status: 503}},
		{"N15 429 for a moment", mirrortest.Fault{Status: 429}},
		{"E8 cut body", mirrortest.Fault{Cut: 5}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			b := start(t, up, nil)
			tt.fault.Times = 1
			for _, f := range []string{"*/list", "*.info", "*.mod", "*.zip", "*/lookup/*", "*/tile/*"} {
				up.Break(f, tt.fault)
			}
			for _, p := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"} {
				b.must(t, "/example.com/m/@v/"+p)
			}
		})
	}
}

func TestRedirectedFilesAreKept(t *testing.T) {
	cdn := mirrortest.StartTLS(t, module("example.com/m", "v1.0.0"))
	var credentials atomic.Int64
	cdn.OnRequest = func(r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			credentials.Add(1)
		}
	}
	up := mirrortest.StartTLS(t, module("example.com/m", "v1.0.0"))
	up.Break("*.zip", mirrortest.Fault{Redirect: cdn.URL + "/example.com/m/@v/v1.0.0.zip"})
	b := start(t, up, func(c *mirror.Config, o *mirror.Options) {
		c.Upstreams = []string{strings.Replace(up.URL, "https://", "https://user:pass@", 1)}
		c.RedirectHosts = []string{strings.TrimPrefix(cdn.URL, "https://")}
		// httptest gives all its servers one certificate.
		o.Transport = up.TLS.Client().Transport.(*http.Transport)
	})
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if _, f := b.must(t, "/example.com/m/@v/v1.0.0.zip"); f.Cache != "memory" || cdn.Count("*.zip") != 1 {
		t.Errorf("N18 the second came from %s after %d fetches, want from the store", f.Cache, cdn.Count("*.zip"))
	}
	if credentials.Load() > 0 {
		t.Error("E9 the upstream's credential went to another host")
	}
	b.reopen(t, func(c *mirror.Config, _ *mirror.Options) { c.RedirectHosts, c.Store = nil, t.TempDir() })
	if _, _, err := b.get(t.Context(), "/example.com/m/@v/v1.0.0.zip"); !errors.Is(err, mirror.ErrUpstream) {
		t.Errorf("redirect to loopback that is not configured: %v, want ErrUpstream", err)
	}
}

func TestFailover(t *testing.T) {
	for _, tt := range []struct {
		name, sep string
		first     mirrortest.Fault
		want      error
	}{
		{"comma goes on at 404", ",", mirrortest.Fault{Status: 404}, nil},
		{"comma goes on at 410", ",", mirrortest.Fault{Status: 410}, nil},
		{"comma stops at 403", ",", mirrortest.Fault{Status: 403}, mirror.ErrUpstream},
		{"pipe goes on at 403", "|", mirrortest.Fault{Status: 403}, nil},
		{"pipe goes on at HTML", "|", mirrortest.Fault{Body: []byte("<html>")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, z := mirrortest.Start(t), mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			a.Break("*", tt.first)
			b := start(t, z, func(c *mirror.Config, _ *mirror.Options) { c.Upstreams = []string{a.URL + tt.sep + z.URL} })
			if _, _, err := b.get(t.Context(), "/example.com/m/@v/list"); !errors.Is(err, tt.want) {
				t.Errorf("Open = %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("C18 404 after trouble is trouble", func(t *testing.T) {
		a, z := mirrortest.Start(t), mirrortest.Start(t)
		a.Break("*", mirrortest.Fault{Status: 403})
		b := start(t, z, func(c *mirror.Config, _ *mirror.Options) { c.Upstreams = []string{a.URL + "|" + z.URL} })
		if _, _, err := b.get(t.Context(), "/example.com/m/@v/list"); !errors.Is(err, mirror.ErrUpstream) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open = %v, want ErrUpstream", err)
		}
	})
}

func TestPrivateNamesNeverLeave(t *testing.T) {
	up := mirrortest.Start(t)
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) {
		c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example/team/*"}}}
	})
	for _, tt := range []struct {
		name, path string
		want       error
	}{
		{"private list", "/corp.example/team/app/@v/list", mirror.ErrNoPrivateSource},
		{"private latest", "/corp.example/team/app/@latest", mirror.ErrNoPrivateSource},
		{"private query", "/corp.example/team/app/@v/main.info", mirror.ErrNoPrivateSource},
		{"private zip", "/corp.example/team/app/@v/v1.0.0.zip", mirror.ErrNoPrivateSource},
		{"prefix of a pattern", "/corp.example/team/@v/list", fs.ErrNotExist},
		{"shorter prefix", "/corp.example/@latest", fs.ErrNotExist},
		{"E12 lookup", "/sumdb/sum.example.test/lookup/corp.example/team/app@v1.0.0", mirror.ErrPrivate},
		{"E12 lookup in capitals", "/sumdb/sum.example.test/lookup/corp.example/!team/!app@v1.0.0", mirror.ErrPrivate},
		{"E12 lookup below", "/sumdb/sum.example.test/lookup/corp.example/team/app/sub/deep@v1.0.0", mirror.ErrPrivate},
		{"C44 lookup of a prefix", "/sumdb/sum.example.test/lookup/corp.example/team@v1.0.0", fs.ErrNotExist},
		{"C15 too short for its host", "/github.com/owner/@v/list", fs.ErrNotExist},
		{"C15 query too short for its host", "/golang.org/x/@latest", fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := b.get(t.Context(), tt.path); !errors.Is(err, tt.want) {
				t.Errorf("Open(%s) = %v, want %v", tt.path, err, tt.want)
			}
		})
	}
	if _, err := b.Versions(t.Context(), "corp.example/team/app"); !errors.Is(err, mirror.ErrNoPrivateSource) {
		t.Errorf("Versions of a private module: %v", err)
	}
	if r := up.Requests(); len(r) > 0 {
		t.Errorf("a name left: %v", r)
	}
	up.Forget()
	_, _, err := b.get(t.Context(), "/golang.org/toolchain/@v/list")
	if up.Count("/golang.org/toolchain/@v/list") != 1 {
		t.Errorf("C15 the toolchain's list was not asked for: %v, %v", up.Requests(), err)
	}
}

func TestPathThatPolicySeesIsSent(t *testing.T) {
	const p = "/github.com/!azure/go-sdk.v2_x~y/@v/v1.0.0-!r!c.1.mod"
	up := mirrortest.Start(t)
	var sent atomic.Value
	up.OnRequest = func(r *http.Request) { sent.Store(r.RequestURI) }
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.SumdbExempt = []string{"github.com"} })
	if _, _, err := b.get(t.Context(), p); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want fs.ErrNotExist", err)
	}
	if sent.Load() != p {
		t.Errorf("T37 sent %q, want %q", sent.Load(), p)
	}
}

func TestStoreIsAFileProxy(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/Up/M", "v0.1.0"))
	b := start(t, up, nil)
	for _, p := range []string{"/example.com/m/@v/v1.0.0", "/example.com/!up/!m/@v/v0.1.0"} {
		for _, ext := range []string{".info", ".mod", ".zip"} {
			b.must(t, p+ext)
		}
	}
	home := mirrortest.Home(t)
	for _, query := range []string{"example.com/m@latest", "example.com/Up/M@v0.1.0"} {
		cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", query)
		cmd.Dir = home
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GOPATH=" + home, "GOMODCACHE=" + filepath.Join(home, "mod"), "GOFLAGS=-modcacherw",
			"GOPROXY=file://" + filepath.ToSlash(filepath.Join(b.cfg.Store, "public")), "GOSUMDB=off", "GOTOOLCHAIN=local",
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("go mod download %s over the store: %v\n%s", query, err, out)
		}
	}
}
