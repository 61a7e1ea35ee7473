package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// E1, E10: the go command repeats every 4xx over https once and at once, 429 included, and nothing over plain http or
// after a 5xx; it waits for no Retry-After. So a refusal is two requests, and a limit has to hold the first one up.
func TestClientRepeats(t *testing.T) {
	for name, tt := range map[string]struct {
		status       int
		https, plain int64
	}{
		"E1 403":  {http.StatusForbidden, 2, 1},
		"E1 404":  {http.StatusNotFound, 2, 1},
		"E10 429": {http.StatusTooManyRequests, 2, 1},
		"E10 503": {http.StatusServiceUnavailable, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if n := askedWith(t, tt.status, true); n != tt.https {
				t.Errorf("over https the proxy was asked %d times, want %d", n, tt.https)
			}
			if n := askedWith(t, tt.status, false); n != tt.plain {
				t.Errorf("over http the proxy was asked %d times, want %d", n, tt.plain)
			}
		})
	}
}

// askedWith is how often the go command asks a proxy for one file that is answered with a status.
func askedWith(t *testing.T, status int, secure bool) int64 {
	t.Helper()
	var asked atomic.Int64
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Retry-After", "3600") // waiting for it would outlast the test
		w.WriteHeader(status)
	}))
	home := mirrortest.Home(t)
	ca := filepath.Join(home, "ca.pem")
	if secure {
		proxy.StartTLS()
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw})
		if err := os.WriteFile(ca, text, 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		proxy.Start()
	}
	defer proxy.Close()
	cmd := exec.Command("go", "mod", "download", "example.com/hello@v1.0.0")
	cmd.Dir = home
	cmd.Env = []string{
		"HOME=" + home, "PATH=" + os.Getenv("PATH"), "GOPROXY=" + proxy.URL, "GOSUMDB=off", "GOFLAGS=-modcacherw", "GOENV=off",
		"GOTOOLCHAIN=local", "SSL_CERT_FILE=" + ca,
	}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), http.StatusText(status)) {
		t.Errorf("go mod download: %v, want %d shown:\n%s", err, status, out)
	}
	return asked.Load()
}

// C22: one connection of a go command may have 250 requests under way.
func TestStreams(t *testing.T) {
	s := newSite(t, mirrortest.Start(t, helloModule), "")
	config := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// The preface and an empty SETTINGS frame (RFC 9113, 3.4); the server's first frame is its SETTINGS.
	hello := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(conn, head); err != nil || head[3] != 4 {
		t.Fatalf("the first frame is of type %d, %v, want SETTINGS", head[3], err)
	}
	settings := make([]byte, int(head[1])<<8|int(head[2]))
	if _, err := io.ReadFull(conn, settings); err != nil {
		t.Fatal(err)
	}
	const maxConcurrentStreams = 3
	for r := bytes.NewBuffer(settings); r.Len() >= 6; {
		setting := r.Next(6)
		if n := binary.BigEndian.Uint32(setting[2:]); binary.BigEndian.Uint16(setting) == maxConcurrentStreams {
			if n < 250 {
				t.Errorf("the gateway allows %d streams, want 250", n)
			}
			return
		}
	}
	t.Error("the gateway names no limit of streams, want 250")
}
