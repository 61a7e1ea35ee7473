package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

func proxyMode(c *mirror.Config, _ *mirror.Options) { c.Mode = "proxy" }

// leftovers lists what is on disk of modules, and unfinished files; what proves the checksum database is no module's.
func (b *bench) leftovers(tb testing.TB) []string {
	tb.Helper()
	var found []string
	err := filepath.WalkDir(b.cfg.Store, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(b.cfg.Store, name)
		if err == nil && d.Type().IsRegular() && !strings.Contains(rel, "/sumdb/") && !strings.Contains(rel, "/.incidents/") {
			found = append(found, rel)
		}
		return nil // files come and go
	})
	must(tb, err)
	return found
}

// unnamed counts open files of this process that have no name any more and were zips on their way.
func (b *bench) unnamed(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(tb, err)
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, b.cfg.Store) && strings.HasSuffix(to, "(deleted)") {
			n++
		}
	}
	return n
}

func TestProxyPassesEveryKindOn(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	up.SetQuery("example.com/m", "main", "v1.1.0")
	b := start(t, up, proxyMode)
	kept := start(t, up, nil)
	for _, tt := range []struct {
		path  string
		again int // upstream requests for the second answer
	}{
		{"/example.com/m/@v/list", 0},
		{"/example.com/m/@latest", 0},
		{"/example.com/m/@v/main.info", 0},
		{"/example.com/m/@v/v1.0.0.info", 0},
		{"/example.com/m/@v/v1.0.0.mod", 0},
		{"/example.com/m/@v/v1.0.0.zip", 1},
		{"/sumdb/sum.example.test/lookup/example.com/m@v1.0.0", 0},
		{"/sumdb/sum.example.test/latest", 0},
		{"/sumdb/sum.example.test/tile/8/0/000.p/1", 0},
	} {
		t.Run(tt.path, func(t *testing.T) {
			want, wf := kept.must(t, tt.path)
			got, f := b.must(t, tt.path)
			if !strings.HasSuffix(tt.path, "latest") && got != want || f.ETag == "" || f.Size != int64(len(got)) || f.Hash != wf.Hash || f.ContentType != wf.ContentType {
				t.Errorf("proxy gives %d bytes %s %s, cache %d bytes %s %s", f.Size, f.Hash, f.ETag, wf.Size, wf.Hash, wf.ETag)
			}
			up.Forget()
			if again, _ := b.must(t, tt.path); again != got || len(up.Requests()) != tt.again {
				t.Errorf("second answer: %d bytes after %v, want the same after %d requests", len(again), up.Requests(), tt.again)
			}
		})
	}
	// All three files of a version stay in memory beside one another, with the facts of what was verified.
	up.Forget()
	for _, ext := range []string{"info", "mod"} {
		if _, f := b.must(t, "/example.com/m/@v/v1.0.0."+ext); f.Cache != "memory" || f.Facts.Published.IsZero() {
			t.Errorf(".%s came from %s with facts %+v", ext, f.Cache, f.Facts)
		}
	}
	if left := b.leftovers(t); len(left) > 0 || b.unnamed(t) > 0 {
		t.Errorf("left on disk: %v, and %d files without a name", left, b.unnamed(t))
	}
}

func TestProxyHerdSharesOneZip(t *testing.T) {
	up := mirrortest.Start(t)
	must(t, up.AddBig("example.com/big", "v1.0.0", 8<<20))
	b := start(t, up, proxyMode)
	up.Break("*.zip", mirrortest.Fault{Delay: 1e8})
	b.herd(t, 200, "/example.com/big/@v/v1.0.0.zip")
	if n := up.Count("*.zip"); n != 1 {
		t.Errorf("N7 upstream saw %d requests for the zip, want 1", n)
	}
	if left := b.leftovers(t); len(left) > 0 || b.unnamed(t) > 0 {
		t.Errorf("left on disk: %v, and %d files without a name", left, b.unnamed(t))
	}
}

// Who comes while another reads shares its file; who reads keeps it whatever becomes of the others; ranges are views of it.
func TestProxyReadersAreApart(t *testing.T) {
	up := mirrortest.Start(t)
	must(t, up.AddBig("example.com/big", "v1.0.0", 1<<20))
	b := start(t, up, proxyMode)
	target, err := b.ParseTarget("/example.com/big/@v/v1.0.0.zip")
	must(t, err)
	first, err := b.Open(t.Context(), target)
	must(t, err)
	second, err := b.Open(t.Context(), target)
	must(t, err)
	must(t, first.Close())
	must(t, first.Close()) // twice is once
	if _, err := second.Seek(-100, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if tail, err := io.ReadAll(second); err != nil || len(tail) != 100 || up.Count("*.zip") != 1 {
		t.Errorf("the end of the zip: %d bytes, %v, after %d fetches", len(tail), err, up.Count("*.zip"))
	}
	must(t, second.Close())
	if b.unnamed(t) != 0 {
		t.Error("a file is open after its last reader")
	}
}

// A fetch goes on when its callers leave, and leaves nothing.
func TestProxyCallersLeave(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, proxyMode)
	up.Break("*.zip", mirrortest.Fault{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, _, err := b.get(ctx, "/example.com/m/@v/v1.0.0.zip"); !errors.Is(err, context.Canceled) {
				t.Errorf("a caller who left got %v", err)
			}
		})
	}
	until(t, "asked", func() bool { return up.Count("*.zip") == 1 && len(b.leftovers(t)) == 1 })
	cancel()
	wg.Wait()
	up.Clear()
	until(t, "nothing is left", func() bool { return len(b.leftovers(t)) == 0 && b.unnamed(t) == 0 })
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
}

func TestProxyVerifiesLikeACache(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault mirrortest.Fault
		file  string
		want  error
	}{
		{"C19 .mod", mirrortest.Fault{Body: []byte("module evil\n")}, "mod", mirror.ErrMismatch},
		{"E8 zip", mirrortest.Fault{Cut: 100}, "zip", mirror.ErrUpstream},
		{"C47 zip", mirrortest.Fault{Body: []byte("<html>")}, "zip", mirror.ErrUpstream},
		{"E15 .info", mirrortest.Fault{Body: []byte(`{"Version":"v1.0.1"}`)}, "info", mirror.ErrUpstream},
		{"not there", mirrortest.Fault{Status: 404}, "zip", fs.ErrNotExist},
		{"C18 trouble", mirrortest.Fault{Status: 500}, "zip", mirror.ErrUpstream},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			b := start(t, up, proxyMode)
			up.Break("*."+tt.file, tt.fault)
			if _, _, err := b.get(t.Context(), "/example.com/m/@v/v1.0.0."+tt.file); !errors.Is(err, tt.want) {
				t.Errorf("Open = %v, want %v", err, tt.want)
			}
			if left := b.leftovers(t); len(left) > 0 || b.unnamed(t) > 0 {
				t.Errorf("left on disk: %v, and %d files without a name", left, b.unnamed(t))
			}
		})
	}
}

func TestProxyRemembersTheHead(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	b := start(t, up, proxyMode)
	b.must(t, "/example.com/m/@v/v1.0.0.mod")
	b.reopen(t, nil)
	up.Fork(3)
	if _, _, err := b.get(t.Context(), "/example.com/m/@v/v1.1.0.mod"); !errors.Is(err, mirror.ErrSumdb) {
		t.Errorf("C43 after a restart and a fork Open = %v, want ErrSumdb", err)
	}
	if n := b.metric(t, "headgate_sumdb_failures_total", "security"); n < 1 {
		t.Errorf("security failures counted: %v", n)
	}
}

func TestProxyHasNothingStored(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	full := start(t, up, nil)
	for _, ext := range []string{"info", "mod", "zip"} {
		full.must(t, "/example.com/m/@v/v1.0.0."+ext)
	}
	must(t, full.Close())
	b := start(t, up, func(c *mirror.Config, o *mirror.Options) { c.Mode, c.Store = "proxy", full.cfg.Store })
	up.Forget()
	for _, p := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"} {
		_, _, err := b.get(mirror.WithCachedOnly(t.Context()), "/example.com/m/@v/"+p)
		if !errors.Is(err, fs.ErrNotExist) || len(up.Requests()) > 0 {
			t.Errorf("C52 %s = %v after %v, want fs.ErrNotExist after nothing", p, err, up.Requests())
		}
	}
	if err := b.cfg.Stores(); !errors.Is(err, mirror.ErrNothingStored) {
		t.Errorf("Stores = %v, want ErrNothingStored", err)
	}
	for name, work := range map[string]func() error{
		"Import":   func() error { _, err := b.Import(t.Context(), mirror.ImportOptions{}); return err },
		"Export":   func() error { _, err := b.Export(t.Context(), mirror.ExportOptions{}); return err },
		"Prefetch": func() error { _, err := b.Prefetch(t.Context(), mirror.PrefetchOptions{}); return err },
		"Scrub":    func() error { _, err := b.Scrub(t.Context(), mirror.ScrubOptions{}); return err },
		"Collect":  func() error { _, err := b.Collect(t.Context(), mirror.CollectOptions{}); return err },
	} {
		if err := work(); !errors.Is(err, mirror.ErrNothingStored) {
			t.Errorf("%s = %v, want ErrNothingStored", name, err)
		}
	}
	if err := full.cfg.Stores(); err != nil {
		t.Errorf("Stores of a cache = %v", err)
	}
}

// A private route with an upstream: its names go to that server alone, with its credential, and nothing else does.
func TestPrivateModulesOfAMirror(t *testing.T) {
	for _, mode := range []string{"cache", "proxy"} {
		t.Run(mode, func(t *testing.T) {
			public := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			corp := mirrortest.StartTLS(t, module("corp.example/app", "v1.0.0"), module("corp.example/app", "v1.1.0"))
			corp.SetQuery("corp.example/app", "main", "v1.1.0")
			var mu sync.Mutex
			var sent []string
			corp.OnRequest = func(r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				sent = append(sent, r.Header.Get("Authorization"))
			}
			file := filepath.Join(t.TempDir(), "credential")
			must(t, os.WriteFile(file, []byte("token"), 0o600))
			state := withState(t)
			change := func(c *mirror.Config, o *mirror.Options) {
				state(c, o)
				c.Mode = mode
				c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example/*"}, Upstream: corp.URL, CredentialFile: file}}
				o.Transport = corp.TLS.Client().Transport.(*http.Transport)
			}
			b := start(t, public, change)
			for _, p := range []string{"@v/list", "@latest", "@v/main.info", "@v/v1.0.0.info", "@v/v1.0.0.zip", "@v/v1.0.0.mod"} {
				b.must(t, "/corp.example/app/"+p)
			}
			b.must(t, "/example.com/m/@v/v1.0.0.zip")
			record, _ := b.must(t, b.own(t)+"/lookup/corp.example/app@v1.1.0")
			if !strings.Contains(record, "corp.example/app v1.1.0 h1:") {
				t.Errorf("record of our own database: %q", record)
			}
			for _, p := range []string{"/corp.example/@v/list", "/corp.example/none/@v/list"} {
				if _, _, err := b.get(t.Context(), p); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s = %v, want fs.ErrNotExist", p, err)
				}
			}
			if n := public.Count("*corp.example*"); n > 0 {
				t.Errorf("C44 a private name left: %v", public.Requests())
			}
			if n := corp.Count("*example.com/m*") + corp.Count("/sumdb/*") + corp.Count("/corp.example/@v/list"); n > 0 {
				t.Errorf("the private server was asked for more than its modules: %v", corp.Requests())
			}
			for _, a := range sent {
				if a != "Bearer token" {
					t.Fatalf("sent %q", sent)
				}
			}
			// One version has one record for ever: other bytes under its name are an incident, wherever they are kept.
			if mode == "proxy" {
				corp.Break("/corp.example/app/@v/v1.1.0.mod", mirrortest.Fault{Body: []byte("module corp.example/app\n\ngo 1.26\n")})
				b.reopen(t, change)
				if _, _, err := b.get(t.Context(), "/corp.example/app/@v/v1.1.0.mod"); !errors.Is(err, mirror.ErrMismatch) {
					t.Errorf("C46 other bytes than were recorded: %v, want ErrMismatch", err)
				}
			}
		})
	}
}

func TestProxyConfig(t *testing.T) {
	dir := t.TempDir()
	errs := mirror.Config{
		Mode: "proxy", Offline: true, Store: dir, Upstreams: []string{"https://a.example|http://127.0.0.1:1", "https://u:p@c.example"},
		UpstreamHosts: []mirror.UpstreamHost{
			{Host: "a.example", CredentialFile: "f"},
			{Host: "b.example", CAFile: "f"},
			{Host: "a b"},
			{Host: "a.example"},
			{Host: "127.0.0.1:1", CredentialFile: "f"},
			{Host: "c.example", CredentialFile: "f"},
		},
		Private: []mirror.PrivateRoute{
			{Patterns: []string{"x.example"}, Hosts: []string{"git.example"}},
			{Patterns: []string{"y.example"}, Upstream: "https://a.example,direct"},
			{Patterns: []string{"z.example"}, Upstream: "https://a.example", Proxy: "http://p:1", Hosts: []string{"git.example"}},
			{Patterns: []string{"w.example"}, Upstream: "off"},
			{Patterns: []string{"v.example"}, Upstream: "https://a.example/go", CredentialFile: "f", CAFile: "g"},
		},
	}.Validate()
	text := fmt.Sprint(errors.Join(errs...))
	for _, want := range []string{
		"offline: nobody is asked", "private[0].hosts: Git needs a store", "private[1].upstream: \"direct\"", "private[2].hosts: is for Git", "private[2].proxy: is for Git", "private[3].upstream: is off",
		"upstream_hosts[1].host: \"b.example\" is the host of no upstream", "upstream_hosts[2].host: \"a b\" is no host", "upstream_hosts[3]: has neither",
		"upstream_hosts[4].credential_file: would be sent over http", "upstream_hosts[5].credential_file: stands beside a password",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("Validate does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "private[4]") || strings.Contains(text, "upstream_hosts[0]") {
		t.Errorf("Validate refuses what is right:\n%s", text)
	}
	if errs := (mirror.Config{Mode: "store"}).Validate(); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "mode: ") {
		t.Errorf("Validate of an unknown mode = %v", errs)
	}
}
