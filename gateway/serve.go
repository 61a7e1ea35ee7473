package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	shutdownTimeout = 60 * time.Second
	reloadInterval  = 30 * time.Second
	maxSocketPath   = 104 // of sockaddr_un, the smallest of the supported systems
)

// ErrAtOnce is a cause for ending the context of Serve that skips Config.DrainWait.
var ErrAtOnce = errors.New("stopping at once")

// ErrAuditLost ends Serve when the audit log can never be written again by this process.
var ErrAuditLost = errors.New("audit log is lost to this process; see the log, then start again to recover it")

// ListenLocal takes the administrator's socket alone: a gateway for the length of one command.
func (s *Server) ListenLocal(ctx context.Context) (err error) {
	s.socketListener, err = listenSocket(ctx, s.Socket())
	return err
}

// Listen takes the addresses, so that URL and Socket are known and two gateways on one address fail at start.
func (s *Server) Listen(ctx context.Context) error {
	if s.ownCertificate() {
		if err := ensureLocalCA(filepath.Join(s.cfg.State, "ca"), s.cfg.names()); err != nil {
			return err
		}
	}
	var err error
	var tcp net.ListenConfig
	if s.certificate, err = loadCertificate(s.cfg.TLS.Cert, s.cfg.TLS.Key); err != nil {
		return err
	}
	if s.publicListener, err = tcp.Listen(ctx, "tcp", s.cfg.Listen); err != nil {
		return fmt.Errorf("listening for clients on gateway.listen: %w", err)
	}
	if s.operationsListener, err = tcp.Listen(ctx, "tcp", s.cfg.Operations); err != nil {
		return fmt.Errorf("listening on gateway.operations: %w", err)
	}
	if err := s.listenDevices(ctx); err != nil {
		return err
	}
	if s.cfg.URL == "" {
		_, port, _ := net.SplitHostPort(s.publicListener.Addr().String())
		s.cfg.URL = "https://localhost:" + port
	}
	return s.ListenLocal(ctx)
}

// ownCertificate tells whether the gateway makes its certificate itself.
func (s *Server) ownCertificate() bool {
	return s.cfg.TLS.Cert == filepath.Join(s.cfg.State, "ca", "leaf.pem")
}

// CAFile is what clients trust, or "" where the operator brought a certificate.
func (s *Server) CAFile() string {
	if !s.ownCertificate() {
		return ""
	}
	return filepath.Join(s.cfg.State, "ca", "ca.pem")
}

// Operations is the address of the operations listener.
func (s *Server) Operations() string { return s.operationsListener.Addr().String() }

// Socket is the path of the administrator's socket.
func (s *Server) Socket() string { return SocketPath(s.cfg.State) }

// SocketPath is where the gateway with that state folder listens for its administrator.
func SocketPath(state string) string { return filepath.Join(state, "headgate.sock") }

func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listening on %s: the path has %d bytes and a socket's may have %d; choose a shorter state folder", path, len(path), maxSocketPath)
	}
	// Only the owner of the audit log's lock comes here, so a socket that is there is a leftover.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old socket: %w", err)
	}
	old := syscall.Umask(0o177)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listening on the administrator's socket: %w", err)
	}
	return l, nil
}

// Serve answers requests until ctx ends, then drains: not ready, wait for the balancer, stop listening, finish what is
// under way. The caller closes the audit log afterwards. It returns nil after an ordered end.
func (s *Server) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	local := s.httpServer(s.local, "socket")
	local.ConnContext = peer
	servers := []*http.Server{local}
	group.Go(func() error { return ended(local.Serve(s.socketListener)) })
	if s.publicListener != nil {
		public := s.httpServer(s.public, "public")
		public.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate.get, NextProtos: []string{"h2", "http/1.1"}}
		operations := s.httpServer(s.operations(), "operations")
		servers = append(servers, public, operations)
		group.Go(func() error { return ended(public.ServeTLS(s.publicListener, "", "")) })
		group.Go(func() error { return ended(operations.Serve(s.operationsListener)) })
		for _, l := range s.deviceListeners {
			server := s.deviceServer(l)
			servers = append(servers, server)
			group.Go(func() error { return ended(server.ServeTLS(l.listener, "", "")) })
		}
		group.Go(func() error { s.watchCertificate(ctx); return nil })
		group.Go(func() error { s.upkeep(ctx); return nil })
	}
	group.Go(func() error { return s.drain(ctx, servers) })
	return group.Wait()
}

func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// drain waits for the end and carries it out in order.
func (s *Server) drain(ctx context.Context, servers []*http.Server) error {
	var lost error
	select {
	case <-ctx.Done():
	case <-s.audit.Poisoned():
		lost = ErrAuditLost
	}
	s.stopping.Store(true)
	s.care.end()
	s.log.LogAttrs(ctx, slog.LevelInfo, "draining", slog.Duration("wait", s.cfg.DrainWait))
	if lost == nil && !errors.Is(context.Cause(ctx), ErrAtOnce) {
		time.Sleep(s.cfg.DrainWait) // readiness already says no; new requests are still served
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	var group errgroup.Group
	for _, server := range servers {
		group.Go(func() error {
			err := server.Shutdown(stop)
			if err != nil {
				_ = server.Close() // what did not end in time is cut, so that outcomes are written and the log is closed
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return errors.Join(lost, fmt.Errorf("finishing requests: %w", err))
	}
	return lost
}

func (s *Server) httpServer(h http.Handler, listener string) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog: log.New(&serverLog{s: s, listener: listener}, "", 0),
	}
}

// watchCertificate reads the key pair again when its files change, and renews our own leaf.
func (s *Server) watchCertificate(ctx context.Context) {
	ticker := time.NewTicker(reloadInterval)
	defer ticker.Stop()
	for {
		s.metrics.certExpiry.WithLabelValues("public").Set(float64(s.certificate.notAfter().Unix()))
		select {
		case <-ctx.Done():
			s.refusals.flush(time.Now(), true)
			s.often.flush(time.Now(), true)
			return
		case <-ticker.C:
		}
		s.refusals.flush(time.Now(), false)
		s.often.flush(time.Now(), false)
		if s.ownCertificate() {
			if err := ensureLocalCA(filepath.Join(s.cfg.State, "ca"), s.cfg.names()); err != nil {
				s.log.LogAttrs(ctx, slog.LevelError, "certificate not renewed", slog.Any("err", err))
			}
		}
		changed, err := s.certificate.reload()
		switch {
		case err != nil:
			s.log.LogAttrs(ctx, slog.LevelError, "certificate not reloaded, the old one stays in use", slog.Any("err", err))
		case changed:
			s.log.LogAttrs(ctx, slog.LevelInfo, "certificate reloaded", slog.Time("not_after", s.certificate.notAfter()))
		}
	}
}

// A serverLog turns net/http's own lines into log records, and failed handshakes into a metric: each is one line that
// any scanner on the network can cause, so it is not worth a warning.
type serverLog struct {
	s        *Server
	listener string
}

var _ io.Writer = (*serverLog)(nil)

func (l *serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level := slog.LevelWarn
	if _, reason, ok := strings.Cut(text, "TLS handshake error from "); ok {
		level = slog.LevelDebug
		l.s.refusals.handshake(l.listener, reason, time.Now())
		l.s.metrics.handshakes.WithLabelValues(l.listener, handshakeReason(reason)).Inc()
	}
	l.s.log.LogAttrs(context.Background(), level, "http server", slog.String("listener", l.listener), slog.String("text", text))
	return len(line), nil
}

func handshakeReason(text string) string {
	switch {
	case strings.HasSuffix(text, "EOF"), strings.Contains(text, "reset by peer"):
		return "closed"
	case strings.Contains(text, "tls:"):
		return "protocol"
	}
	return "other"
}
