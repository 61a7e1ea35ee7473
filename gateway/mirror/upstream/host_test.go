package upstream_test

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

const modPath = "example.com/m/@v/v1.0.0.mod"

// written puts text into a file of the test.
func written(tb testing.TB, text string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}

// caOf is a file with the certificate of a TLS server.
func caOf(tb testing.TB, s *httptest.Server) string {
	tb.Helper()
	return written(tb, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
}

func hostOf(s *mirrortest.Server) string { return s.TLS.Listener.Addr().String() }

func TestCredentialOfAHost(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       string // Authorization, "" where nothing may be sent
	}{
		{"user and password", "ann:se:cret\n", "Basic YW5uOnNlOmNyZXQ="},
		{"token", "  tok.en-1\n", "Bearer tok.en-1"},
		{"empty", "\n", ""},
		{"two lines", "token\nother", ""},
		{"too long", strings.Repeat("x", 17<<10), ""},
		{"not ASCII", "tök", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.StartTLS(t, mod)
			var got string
			up.OnRequest = func(r *http.Request) { got = r.Header.Get("Authorization") }
			c := client(t, up.URL, func(o *upstream.Options) {
				o.Hosts = []upstream.Host{{Host: hostOf(up), CredentialFile: written(t, tt.text), CAFile: caOf(t, up.TLS)}}
			})
			_, err := c.Get(t.Context(), modPath, 100, nil)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("Get = %v and sent %q, want %q", err, got, tt.want)
			}
			if tt.want == "" && (!errors.Is(err, upstream.ErrFailed) || up.Count("*") > 0 || strings.Contains(err.Error(), "xxx")) {
				t.Errorf("Get = %v after %d requests, want ErrFailed, none, and nothing of the file in the text", err, up.Count("*"))
			}
		})
	}
}

func TestCredentialIsReadAgain(t *testing.T) {
	up := mirrortest.StartTLS(t, mod)
	var got []string
	up.OnRequest = func(r *http.Request) { got = append(got, r.Header.Get("Authorization")) }
	file := written(t, "first")
	c := client(t, up.URL, func(o *upstream.Options) {
		o.Hosts = []upstream.Host{{Host: hostOf(up), CredentialFile: file, CAFile: caOf(t, up.TLS)}}
	})
	for _, token := range []string{"first", "second"} {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), modPath, 100, nil); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Join(got, " ") != "Bearer first Bearer second" {
		t.Errorf("sent %q", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	// A file of ours that is gone must not look like a module that is not there.
	if _, err := c.Get(t.Context(), modPath, 100, nil); !errors.Is(err, upstream.ErrFailed) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("C18 Get without the credential file = %v, want ErrFailed alone", err)
	}
}

// A credential goes to its own host alone: not over http, not to the next server of the list, not where a redirect
// leads, though it be another port of the same machine.
func TestCredentialStaysAtItsHost(t *testing.T) {
	up, next := mirrortest.StartTLS(t, mod), mirrortest.StartTLS(t, mod)
	var leaked []string
	next.OnRequest = func(r *http.Request) {
		for _, h := range []string{"Authorization", "Cookie", "Referer"} {
			if r.Header.Get(h) != "" {
				leaked = append(leaked, h)
			}
		}
	}
	hosts := func(o *upstream.Options) {
		o.Hosts = []upstream.Host{{Host: hostOf(up), CredentialFile: written(t, "canary"), CAFile: caOf(t, up.TLS)}}
		o.RedirectHosts = []string{hostOf(next)}
		o.Transport = next.TLS.Client().Transport.(*http.Transport)
	}
	for _, tt := range []struct {
		name  string
		fault mirrortest.Fault
	}{
		{"next of the list", mirrortest.Fault{Status: 404}},
		{"E9 redirect", mirrortest.Fault{Redirect: next.URL + "/" + modPath, Header: http.Header{"Set-Cookie": {"a=b"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up.Clear()
			up.Break("*", tt.fault)
			next.Forget()
			c := client(t, up.URL+","+next.URL, hosts)
			if _, err := c.Get(t.Context(), modPath, 100, nil); err != nil || next.Count("*") != 1 || len(leaked) > 0 {
				t.Errorf("Get = %v after %d requests there, leaked %v; want one request without any of ours", err, next.Count("*"), leaked)
			}
		})
	}
	t.Run("http", func(t *testing.T) {
		plain := mirrortest.Start(t, mod)
		c := client(t, plain.URL, func(o *upstream.Options) {
			o.Hosts = []upstream.Host{{Host: hostOf(plain), CredentialFile: written(t, "canary")}}
		})
		if _, err := c.Get(t.Context(), modPath, 100, nil); !errors.Is(err, upstream.ErrFailed) || plain.Count("*") > 0 {
			t.Errorf("Get = %v after %d requests, want ErrFailed and none", err, plain.Count("*"))
		}
	})
}

func TestCAOfAHostIsForThatHostAlone(t *testing.T) {
	up, other := mirrortest.StartTLS(t, mod), mirrortest.StartTLS(t, mod)
	ca := caOf(t, up.TLS)
	c := client(t, up.URL+"|"+other.URL, func(o *upstream.Options) { o.Hosts = []upstream.Host{{Host: hostOf(up), CAFile: ca}} })
	if _, err := c.Get(t.Context(), modPath, 100, nil); err != nil {
		t.Errorf("Get from the host with the CA = %v", err)
	}
	// httptest gives all its servers one certificate, so that the other host would be trusted, too.
	c = client(t, other.URL, func(o *upstream.Options) { o.Hosts = []upstream.Host{{Host: hostOf(up), CAFile: ca}} })
	_, err := c.Get(t.Context(), modPath, 100, nil)
	if _, unknown := errors.AsType[*tls.CertificateVerificationError](err); !unknown {
		t.Errorf("Get from another host = %v, want its certificate refused", err)
	}
	for _, bad := range []string{"/does/not/exist", written(t, "no certificate")} {
		list, err := upstream.Parse(up.URL, upstream.ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := upstream.New(upstream.Options{List: list, Hosts: []upstream.Host{{Host: hostOf(up), CAFile: bad}}}); err == nil {
			t.Errorf("New with the CA file %s made a client", bad)
		}
	}
}

// C17: a coding that nobody asked for is refused, not unpacked and not taken for the file.
func TestContentEncodingIsRefused(t *testing.T) {
	up := mirrortest.Start(t, mod)
	up.Break("*", mirrortest.Fault{Header: http.Header{"Content-Encoding": {"gzip"}}})
	c := client(t, up.URL, nil)
	if b, err := c.Get(t.Context(), modPath, 100, nil); !errors.Is(err, upstream.ErrFailed) || up.Count("*") != 1 {
		t.Errorf("Get = %q, %v after %d requests, want ErrFailed after one", b, err, up.Count("*"))
	}
}

// A body of unknown length arrives whole, whatever its size is to the chunks that it is held in.
func TestBodiesOfUnknownLength(t *testing.T) {
	up := mirrortest.Start(t)
	for _, n := range []int64{1, 511, 512, 513, 256 << 10, 256<<10 + 1, 3 << 20} {
		up.Clear()
		up.Break("*", mirrortest.Fault{Huge: n})
		c := client(t, up.URL, nil)
		b, err := c.Get(t.Context(), modPath, n, nil)
		if err != nil || !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("Get of %d bytes = %d bytes, %v", n, len(b), err)
		}
		if _, err := c.Get(t.Context(), modPath, n-1, nil); !errors.Is(err, upstream.ErrFailed) {
			t.Errorf("Get of %d bytes where %d are allowed = %v, want ErrFailed", n, n-1, err)
		}
	}
}
