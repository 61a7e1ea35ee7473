package vcs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// A filter is a CONNECT proxy on loopback that leads to a route's hosts and
// nowhere else: whatever a discovery page or a repository names, a child cannot
// reach another host.
type filter struct {
	allowed  map[string]bool // host:port, lower case
	upstream *url.URL        // a proxy of the company, or nil
	listener net.Listener
	server   *http.Server
	mu       sync.Mutex // guards closed against tunnels.Add
	closed   bool
	tunnels  sync.WaitGroup
	ctx      context.Context // ends with close, and with it every tunnel
	stop     context.CancelFunc
	served   chan struct{} // closed once the server has ended
}

const dialTimeout = 10 * time.Second

func startFilter(hosts []string, proxy string) (*filter, error) {
	f := &filter{allowed: map[string]bool{}, served: make(chan struct{})}
	for _, h := range hosts {
		f.allowed[strings.ToLower(withPort(h))] = true
	}
	var err error
	if proxy != "" {
		if f.upstream, err = url.Parse(proxy); err != nil {
			return nil, errors.New("proxy is no URL") // its text may hold a password
		}
	}
	if f.listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("listening for the sandbox: %w", err)
	}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: dialTimeout, MaxHeaderBytes: 16 << 10}
	go func() {
		defer close(f.served)
		_ = f.server.Serve(f.listener) // it ends with close, or children reach nothing
	}()
	return f, nil
}

func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(host, "443")
}

func (f *filter) url() string { return "http://" + f.listener.Addr().String() }

func (f *filter) close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	err := f.server.Close()
	<-f.served
	f.tunnels.Wait()
	return err
}

func (f *filter) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.tunnels.Add(1)
	}
	return !f.closed
}

// ServeHTTP opens one tunnel.
func (f *filter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || !f.allowed[strings.ToLower(r.Host)] {
		http.Error(w, "host is not in this route's list", http.StatusForbidden)
		return
	}
	if !f.enter() {
		http.Error(w, "closing", http.StatusServiceUnavailable)
		return
	}
	defer f.tunnels.Done()
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	up, err := f.dial(ctx, r.Host)
	if err != nil {
		http.Error(w, "host cannot be reached", http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	stop := context.AfterFunc(f.ctx, func() { down.Close(); up.Close() })
	defer stop()
	if _, err := io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	var one sync.WaitGroup
	one.Go(func() {
		_, _ = io.Copy(up, rw.Reader) // either side may hang up at any time
		up.Close()
	})
	_, _ = io.Copy(down, up)
	down.Close()
	one.Wait()
}

// dial reaches a host, through the company's proxy where there is one.
func (f *filter) dial(ctx context.Context, host string) (net.Conn, error) {
	var d net.Dialer
	if f.upstream == nil {
		return d.DialContext(ctx, "tcp", host)
	}
	conn, err := d.DialContext(ctx, "tcp", f.upstream.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host, host); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	br := bufio.NewReaderSize(conn, 16)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("proxy answered %s", resp.Status), conn.Close())
	}
	if br.Buffered() > 0 { // in TLS and HTTP the client speaks first
		return nil, errors.Join(errors.New("proxy sent more than its answer"), conn.Close())
	}
	return conn, nil
}
