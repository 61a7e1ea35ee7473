package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

const mod = "module example.com/m@v1.0.0\n-- go.mod --\nmodule example.com/m\n"

func client(tb testing.TB, list string, change func(*upstream.Options)) *upstream.Client {
	tb.Helper()
	l, err := upstream.Parse(list, upstream.ParseOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	o := upstream.Options{List: l, FirstByte: 200 * time.Millisecond, Metrics: upstream.NewMetrics(prometheus.NewRegistry())}
	if change != nil {
		change(&o)
	}
	c, err := upstream.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		o        upstream.ParseOptions
		want     string // hosts, with | where any error goes on; "" is an error
	}{
		{"one", "https://a.example", upstream.ParseOptions{}, "a.example,"},
		{"both separators", "https://a.example|https://b.example/p/,c.example", upstream.ParseOptions{}, "a.example|b.example,c.example,"},
		{"off ends", "https://a.example,off,https://b.example", upstream.ParseOptions{}, "a.example,"},
		{"off alone is an island", "off", upstream.ParseOptions{}, "island"},
		{"direct is an error", "https://a.example,direct", upstream.ParseOptions{}, ""},
		{"direct dropped", "https://a.example,direct", upstream.ParseOptions{DropDirect: true}, "a.example,"},
		{"direct alone is no upstream", "direct", upstream.ParseOptions{DropDirect: true}, ""},
		{"http on loopback", "http://127.0.0.1:1", upstream.ParseOptions{}, "127.0.0.1:1,"},
		{"http beyond", "http://a.example", upstream.ParseOptions{}, ""},
		{"http beyond, allowed", "http://a.example", upstream.ParseOptions{AllowHTTP: true}, "a.example,"},
		{"password over http", "http://u:p@127.0.0.1", upstream.ParseOptions{AllowHTTP: true}, ""},
		{"query", "https://a.example?x", upstream.ParseOptions{}, ""},
		{"other scheme", "ftp://a.example", upstream.ParseOptions{}, ""},
		{"empty", " , ", upstream.ParseOptions{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := upstream.Parse(tt.in, tt.o)
			got := ""
			for _, e := range l {
				got += e.Host() + map[bool]string{true: "|", false: ","}[e.AnyError]
			}
			if err == nil && len(l) == 0 {
				got = "island"
			}
			if got != tt.want || (err != nil) != (tt.want == "") {
				t.Errorf("Parse(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
			}
		})
	}
}

func TestTries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault mirrortest.Fault
		asks  int
		want  error
	}{
		{"500 three times", mirrortest.Fault{Status: 500}, 3, upstream.ErrFailed},
		{"502 three times", mirrortest.Fault{Status: 502}, 3, upstream.ErrFailed},
		{"503 three times", mirrortest.Fault{Status: 503}, 3, upstream.ErrFailed},
		{"504 is a timeout", mirrortest.Fault{Status: 504}, 3, upstream.ErrTimeout},
		{"429 three times", mirrortest.Fault{Status: 429}, 3, upstream.ErrFailed},
		{"429 for long ends the tries", mirrortest.Fault{Status: 429, Header: http.Header{"Retry-After": {"11"}}}, 1, upstream.ErrFailed},
		{"503 for a second is waited for", mirrortest.Fault{Status: 503, Times: 1, Header: http.Header{"Retry-After": {"1"}}}, 2, nil},
		{"twice and then well", mirrortest.Fault{Status: 500, Times: 2}, 3, nil},
		{"401 once", mirrortest.Fault{Status: 401}, 1, upstream.ErrFailed},
		{"403 once", mirrortest.Fault{Status: 403}, 1, upstream.ErrFailed},
		{"404 once", mirrortest.Fault{Status: 404}, 1, upstream.ErrNotFound},
		{"410 once", mirrortest.Fault{Status: 410}, 1, upstream.ErrNotFound},
		{"cut body", mirrortest.Fault{Cut: 5}, 3, upstream.ErrFailed},
		{"cut body, then whole", mirrortest.Fault{Cut: 5, Times: 1}, 2, nil},
		{"no header", mirrortest.Fault{Hang: true}, 3, upstream.ErrTimeout},
		{"body stands still", mirrortest.Fault{Body: make([]byte, 4096), Pause: time.Minute}, 3, upstream.ErrTimeout},
		{"too long", mirrortest.Fault{Body: make([]byte, 70<<10)}, 1, upstream.ErrFailed},
		{"too long, length unknown", mirrortest.Fault{Huge: 1 << 40}, 1, upstream.ErrFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up := mirrortest.Start(t, mod)
			up.Break("*.mod", tt.fault)
			c := client(t, up.URL, nil)
			b, err := c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 64<<10, nil)
			if !errors.Is(err, tt.want) || errors.Is(err, fs.ErrNotExist) != errors.Is(tt.want, fs.ErrNotExist) {
				t.Errorf("Get = %v, want %v", err, tt.want)
			}
			if err == nil && string(b) != "module example.com/m\n" {
				t.Errorf("Get = %q: bytes of an earlier try are in it", b)
			}
			if n := up.Count("*.mod"); n != tt.asks {
				t.Errorf("asked %d times, want %d", n, tt.asks)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	c := client(t, "http://127.0.0.1:1", nil)
	_, err := c.Get(t.Context(), "x/@v/list", 100, nil)
	if !errors.Is(err, upstream.ErrFailed) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("C18 Get = %v, want ErrFailed", err)
	}
}

func TestBreaker(t *testing.T) {
	up := mirrortest.Start(t, mod)
	other := mirrortest.Start(t, mod)
	c := client(t, up.URL, nil)
	get := func() error {
		_, err := c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 100, nil)
		return err
	}
	up.Break("*", mirrortest.Fault{Status: 404})
	for range 6 {
		if err := get(); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("404 counted as a failure: %v", err)
		}
	}
	up.Clear()
	up.Break("*", mirrortest.Fault{Status: 500})
	for range 2 {
		if err := get(); !errors.Is(err, upstream.ErrFailed) {
			t.Fatal(err)
		}
	}
	up.Clear()
	up.Forget()
	if err := get(); !errors.Is(err, upstream.ErrFailed) || up.Count("*") != 0 {
		t.Errorf("open breaker: %v after %d requests, want ErrFailed and none", err, up.Count("*"))
	}
	// Another in the list is asked at once where | allows it.
	up.Break("*", mirrortest.Fault{Status: 500})
	c = client(t, up.URL+"|"+other.URL, nil)
	for range 3 {
		if err := get(); err != nil {
			t.Errorf("with a second upstream: %v", err)
		}
	}
	if n := up.Count("*"); n != 5 {
		t.Errorf("the broken one was asked %d times, want 5", n)
	}
}

// N15: when a server that was left alone comes back, all who ask at that moment are served: one probes, the others wait.
func TestBreakerProbeIsShared(t *testing.T) {
	up := mirrortest.Start(t, mod)
	c := client(t, up.URL, func(o *upstream.Options) { o.LeftAlone = 100 * time.Millisecond })
	up.Break("*", mirrortest.Fault{Status: 500})
	for range 2 {
		_, _ = c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 100, nil)
	}
	up.Clear()
	up.Break("*", mirrortest.Fault{Delay: 20 * time.Millisecond})
	<-time.After(150 * time.Millisecond) // until it may be probed, jitter included
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			_, err := c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 100, nil)
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("beside the probe: %v", err)
		}
	}
}

func TestDeadlineAndCancel(t *testing.T) {
	up := mirrortest.Start(t, mod)
	up.Break("*", mirrortest.Fault{Hang: true})
	c := client(t, up.URL, func(o *upstream.Options) { o.FirstByte = time.Minute })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, "x", 100, nil); !errors.Is(err, upstream.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get beyond its deadline = %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := c.Get(ctx, "x", 100, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Get of a caller who left = %v", err)
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	up := mirrortest.StartTLS(t, mod)
	list := strings.Replace(up.URL, "https://", "https://user:canary@", 1)
	c := client(t, list, func(o *upstream.Options) { o.Transport = up.TLS.Client().Transport.(*http.Transport) })
	var sent string
	up.OnRequest = func(r *http.Request) { _, sent, _ = r.BasicAuth() }
	for _, f := range []mirrortest.Fault{{}, {Status: 403}, {Cut: 3}, {Redirect: "http://other.example/?token=canary"}} {
		up.Clear()
		up.Break("*", f)
		_, err := c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 100, nil)
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("N16 a secret is in %q", err)
		}
	}
	if sent != "canary" {
		t.Errorf("password sent = %q", sent)
	}
}

func TestClientHeadersAreOurOwn(t *testing.T) {
	up := mirrortest.Start(t, mod)
	var got http.Header
	up.OnRequest = func(r *http.Request) { got = r.Header }
	c := client(t, up.URL, nil)
	if _, err := c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 100, nil); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got.Get("User-Agent") != "headgate" {
		t.Errorf("sent %v, want User-Agent alone", got)
	}
}

func TestCheckRefuses(t *testing.T) {
	up := mirrortest.Start(t, mod)
	c := client(t, up.URL, nil)
	_, err := c.Get(t.Context(), "example.com/m/@v/v1.0.0.mod", 100, func(b []byte) error {
		if bytes.Contains(b, []byte("module")) {
			return errors.New("not this")
		}
		return nil
	})
	if !errors.Is(err, upstream.ErrFailed) || up.Count("*") != 1 {
		t.Errorf("Get = %v after %d requests, want ErrFailed after one", err, up.Count("*"))
	}
}

// FuzzParse: what is taken names hosts, has no password in its text, and reads
// the same when printed.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"https://a.example,off", "a|b,direct", "https://u:p@h/x?y", "http://[::1]:80/", "file:///x", ",|,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		l, err := upstream.Parse(in, upstream.ParseOptions{DropDirect: true})
		if err != nil {
			return
		}
		var b strings.Builder
		for _, e := range l {
			if e.Host() == "" || e.URL.RawQuery != "" {
				t.Fatalf("Parse(%q) took %v", in, e.URL)
			}
			b.WriteString(e.URL.String() + map[bool]string{true: "|", false: ","}[e.AnyError])
		}
		if len(l) == 0 {
			return
		}
		again, err := upstream.Parse(b.String(), upstream.ParseOptions{})
		if err != nil || len(again) != len(l) {
			t.Fatalf("Parse(%q) of what Parse(%q) printed = %v, %v", b.String(), in, again, err)
		}
		for i := range l {
			if again[i].URL.String() != l[i].URL.String() || again[i].AnyError != l[i].AnyError {
				t.Fatalf("entry %d of %q: %v, again %v", i, in, l[i], again[i])
			}
		}
	})
}

func TestRedirectsThatAreRefused(t *testing.T) {
	plain, other := mirrortest.Start(t, mod), mirrortest.StartTLS(t, mod)
	up := mirrortest.StartTLS(t, mod)
	const file = "/example.com/m/@v/v1.0.0.mod"
	for _, tt := range []struct {
		name, to string
		seen     *mirrortest.Server
	}{
		{"E9 from https to http, though the host is listed", plain.URL + file, plain},
		{"E9 to a loopback address that is not listed", other.URL + file, other},
		{"E9 to a name of a loopback address", strings.Replace(other.URL, "127.0.0.1", "localhost", 1) + file, other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up.Clear()
			up.Break("*", mirrortest.Fault{Redirect: tt.to})
			c := client(t, up.URL, func(o *upstream.Options) {
				o.Transport = up.TLS.Client().Transport.(*http.Transport)
				o.RedirectHosts = []string{strings.TrimPrefix(plain.URL, "http://")}
			})
			_, err := c.Get(t.Context(), file[1:], 100, nil)
			if !errors.Is(err, upstream.ErrFailed) || !strings.Contains(err.Error(), "redirect refused") || tt.seen.Count("*") > 0 {
				t.Errorf("Get = %v after %d requests there, want a refusal and none", err, tt.seen.Count("*"))
			}
		})
	}
}
