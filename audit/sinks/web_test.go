package sinks

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

// pipes is a network within the process, so that a test's clock may be a false one.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, errAway
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve lets a handler answer until the test's end.
func serve(t *testing.T, h http.Handler) *pipes {
	t.Helper()
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Hour}
	go func() { _ = s.Serve(p) }()
	t.Cleanup(func() { _ = s.Close() })
	return p
}

func tokenFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestJudge(t *testing.T) {
	for name, tt := range map[string]struct {
		code   int
		header string
		want   error
	}{
		"credentials":           {401, "", errDenied},
		"not for us":            {403, "", errDenied},
		"a proxy's credentials": {407, "", errDenied},
		"too large":             {413, "", errTooLarge},
		"not understood":        {400, "", errRefused},
		"not as it should be":   {422, "", errRefused},
		"a wrong path":          {404, "", nil},
		"a redirect":            {302, "", nil},
		"too many":              {429, "", nil},
		"a fault":               {500, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			err := judge(&http.Response{StatusCode: tt.code, Header: http.Header{}}, nil)
			for _, e := range []error{errDenied, errTooLarge, errRefused} {
				if got, want := errors.Is(err, e), errors.Is(tt.want, e); got != want {
					t.Errorf("judge(%d) = %v", tt.code, err)
				}
			}
		})
	}
	t.Run("A34 patience", func(t *testing.T) {
		for value, want := range map[string]time.Duration{
			"3600": time.Hour, "": 0, "soon": 0, "-5": 0, "99999999999999999999": 0,
			time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
		} {
			if got := retryAfter(value); got != want {
				t.Errorf("retryAfter(%q) = %s, want %s", value, got, want)
			}
		}
		if got := retryAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)); got < 50*time.Minute || got > time.Hour {
			t.Errorf("retryAfter of a date an hour away = %s", got)
		}
	})
}

func TestCredentials(t *testing.T) {
	var seen []string
	h := &sinkstest.Splunk{}
	h.Set(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		seen = append(seen, r.Header.Get("Authorization"))
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		return true
	})
	p := serve(t, h)
	file := tokenFile(t, " first\n")
	w := &web{config: Config{URL: "http://127.0.0.1:1/base/", TokenFile: file}.withDefaults(), scheme: "Splunk", dial: p.dial}
	defer w.close()
	post := func() error {
		_, err := w.post(t.Context(), request{path: "/x", kind: "text/plain"})
		return err
	}
	if err := post(); err == nil || errors.Is(err, errRefused) {
		t.Errorf("a redirect = %v, want an error that does not refuse the events", err)
	}
	if err := os.WriteFile(file, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = post()
	if want := []string{"Splunk first", "Splunk second"}; !slices.Equal(seen, want) {
		t.Errorf("the receiver saw %q, want %q: a token is read for each request and follows no redirect", seen, want)
	}
	for name, text := range map[string]string{"empty": "\n", "two lines": "a\nb"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := post(); !errors.Is(err, errDenied) || strings.Contains(err.Error(), "a\nb") {
			t.Errorf("a token file that is %s = %v, want errDenied", name, err)
		}
	}
	_ = os.Remove(file)
	if err := post(); !errors.Is(err, errDenied) {
		t.Errorf("no token file = %v, want errDenied", err)
	}
	if len(seen) != 2 {
		t.Errorf("%d requests were made without a credential", len(seen)-2)
	}
}

func TestWebTrust(t *testing.T) {
	other, _ := certificate(t, "localhost", time.Now().Add(time.Hour))
	cert, key := certificate(t, "localhost", time.Now().Add(time.Hour))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ })}
	go func() { _ = s.ServeTLS(l, cert, key) }()
	t.Cleanup(func() { _ = s.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ca := filepath.Join(t.TempDir(), "ca.pem")
	copyFile := func(from string) {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(ca, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copyFile(other)
	w := &web{config: Config{URL: "https://localhost:" + port, TLS: TLS{CAFile: ca}}.withDefaults()}
	defer w.close()
	if _, err := w.post(t.Context(), request{path: "/"}); !errors.Is(err, errDenied) || asked != 0 {
		t.Errorf("A32 a receiver of another authority = %v after %d requests, want errDenied after none", err, asked)
	}
	copyFile(cert)
	if _, err := w.post(t.Context(), request{path: "/"}); err != nil || asked != 1 {
		t.Errorf("after its authority was put in place = %v, %d requests", err, asked)
	}
}
