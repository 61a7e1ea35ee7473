// Package vcstest is a Git server for tests: bare repositories over https (git
// http-backend behind a CA of its own, with discovery pages and passwords) and
// over ssh (Debian's sshd), and a CONNECT proxy that leads every host name to
// it. Every request is counted. It needs git, and sshd for StartSSH.
package vcstest

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Server serves the repositories below Dir/repos under every host name.
type Server struct {
	// Dir holds repositories, ca.pem and all else.
	Dir string
	// CAFile signs the certificate of every host.
	CAFile string
	// Proxy is the URL of the CONNECT proxy through which hosts are reached.
	Proxy string

	tls   *httptest.Server
	proxy *httptest.Server
	git   cgi.Handler
	bytes atomic.Int64

	mu       sync.Mutex // guards all below
	user     string
	password string
	requests []string
	tunnels  []string
	before   func(http.ResponseWriter, *http.Request) bool
}

// New starts a server that keeps its files in dir.
func New(dir string) (*Server, error) {
	backend, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("finding git's own programs: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "repos"), 0o755); err != nil {
		return nil, err
	}
	s := &Server{Dir: dir, CAFile: filepath.Join(dir, "ca.pem")}
	s.git = cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Join(dir, "repos"), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir,
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		Stderr: io.Discard,
	}
	certificates, err := newAuthority(s.CAFile)
	if err != nil {
		return nil, err
	}
	s.tls = httptest.NewUnstartedServer(s)
	s.tls.TLS = &tls.Config{GetCertificate: certificates}
	s.tls.Config.ErrorLog = nil
	s.tls.StartTLS()
	s.proxy = httptest.NewServer(http.HandlerFunc(s.connect))
	s.Proxy = s.proxy.URL
	return s, nil
}

// Start is New in a folder of the test, closed with it.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s, err := New(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Close ends both listeners.
func (s *Server) Close() {
	s.proxy.CloseClientConnections()
	s.proxy.Close()
	s.tls.CloseClientConnections()
	s.tls.Close()
}

// Demand makes every request need this user and password; an empty password ends it.
func (s *Server) Demand(user, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.user, s.password = user, password
}

// Before is called first for each request; where it returns true, it has answered. nil ends it.
func (s *Server) Before(fn func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = fn
}

// Requests lists "METHOD HOST/PATH?QUERY STATUS-relevant" of each request, in order.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// Count tells how many requests hold text.
func (s *Server) Count(text string) int {
	n := 0
	for _, r := range s.Requests() {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

// Tunnels lists the host:port that each CONNECT named.
func (s *Server) Tunnels() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.tunnels...)
}

// Bytes counts what has gone to clients through the proxy, TLS included.
func (s *Server) Bytes() int64 { return s.bytes.Load() }

// Forget empties both lists, and counts bytes anew.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.tunnels = nil, nil
	s.bytes.Store(0)
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.Host+r.URL.RequestURI())
	user, password, before := s.user, s.password, s.before
	s.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if u, p, _ := r.BasicAuth(); password != "" && (p != password || user != "" && u != user) {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	if r.URL.Query().Get("go-get") == "1" {
		s.discover(w, r)
		return
	}
	if r.ContentLength < 0 { // which CGI does not know; git sends much as chunks
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "reading the body", http.StatusBadRequest)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	}
	s.git.ServeHTTP(w, r)
}

// discover names the repository whose path begins the one that is asked.
func (s *Server) discover(w http.ResponseWriter, r *http.Request) {
	elems := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	for n := len(elems); n > 0; n-- {
		name := strings.Join(elems[:n], "/")
		if _, err := os.Stat(s.bare(name)); err == nil {
			fmt.Fprintf(w, `<html><head><meta name="go-import" content="%s/%s git https://%s/%s.git"></head></html>`, r.Host, name, r.Host, name)
			return
		}
	}
	http.NotFound(w, r)
}

func (s *Server) bare(name string) string {
	return filepath.Join(s.Dir, "repos", filepath.FromSlash(name)+".git")
}

// connect is the proxy: whatever host is asked for, the tunnel leads here.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.tunnels = append(s.tunnels, r.Host)
	s.mu.Unlock()
	if r.Method != http.MethodConnect {
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	up, err := net.Dial("tcp", s.tls.Listener.Addr().String())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	s.pipe(conn, rw.Reader, up)
}

// pipe copies both ways until either side is done.
func (s *Server) pipe(conn net.Conn, from *bufio.Reader, up net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(up, from) // a broken tunnel is the client's affair
		up.Close()
	})
	_, _ = io.Copy(conn, io.TeeReader(up, (*counter)(&s.bytes)))
	conn.Close()
	wg.Wait()
}

type counter atomic.Int64

func (c *counter) Write(b []byte) (int, error) {
	(*atomic.Int64)(c).Add(int64(len(b)))
	return len(b), nil
}

// newAuthority makes a CA in file and mints a certificate for each name asked.
func newAuthority(file string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vcstest"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			DNSNames: []string{hello.ServerName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
		if err != nil {
			return nil, err
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}, nil
}
