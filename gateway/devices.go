package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/headgate/headgate/identity"
)

// A deviceListener is one of the listeners on which devices prove themselves. Each has a server and a tls.Config of its
// own, made from nothing: a ticket or a rule of one means nothing to another.
type deviceListener struct {
	name     string // in metrics and logs
	kind     identity.ListenerKind
	listener net.Listener
}

// listenDevices takes the addresses of identity.devices.
func (s *Server) listenDevices(ctx context.Context) error {
	c := s.identity.DeviceConfig()
	for _, l := range []struct {
		key, name, address string
		kind               identity.ListenerKind
	}{
		{"identity.devices.listen", "device", c.Listen, identity.ListenerDevice},
		{"identity.devices.balancer.listen", "balancer", c.Balancer.Listen, identity.ListenerBalancer},
	} {
		if l.address == "" {
			continue
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", l.address)
		if err != nil {
			return fmt.Errorf("listening for devices on %s: %w", l.key, err)
		}
		s.deviceListeners = append(s.deviceListeners, &deviceListener{l.name, l.kind, listener})
	}
	return nil
}

// DeviceAddress is where devices present their certificates, or "" where there is no such listener.
func (s *Server) DeviceAddress() string { return s.addressOf(identity.ListenerDevice) }

// DeviceURL is what an agent speaks to: the name that clients know, at the port of the device listener; "" for none.
func (s *Server) DeviceURL() string {
	u, err := url.Parse(s.cfg.URL)
	_, port, perr := net.SplitHostPort(s.DeviceAddress())
	if err != nil || perr != nil {
		return ""
	}
	u.Host = net.JoinHostPort(u.Hostname(), port)
	return u.String()
}

// BalancerAddress is where a pinned balancer forwards them, or "" where there is no such listener.
func (s *Server) BalancerAddress() string { return s.addressOf(identity.ListenerBalancer) }

func (s *Server) addressOf(c identity.ListenerKind) string {
	for _, l := range s.deviceListeners {
		if l.kind == c {
			return l.listener.Addr().String()
		}
	}
	return ""
}

// deviceServer serves one of these listeners. Tickets are off: a resumed connection would bring back a certificate that
// nobody looks at again. Whatever certificate comes is let in, so that the refusal can be read; identity judges it on
// every request. A balancer without a pinned key has nothing to read.
func (s *Server) deviceServer(l *deviceListener) *http.Server {
	server := s.httpServer(s.public, l.name)
	verify := s.identity.VerifyConnection
	if l.kind == identity.ListenerBalancer {
		verify = s.identity.VerifyBalancer
	}
	server.TLSConfig = &tls.Config{
		MinVersion: tls.VersionTLS13, GetCertificate: s.certificate.get, NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: verify, SessionTicketsDisabled: true,
	}
	server.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return identity.WithConnection(ctx, l.kind) }
	return server
}

// arrive is what is done to every request before anything reads it: names under which proxies hand on who a client is
// are taken out, and a connection that proved a device is ended after a while. net/http turns Connection: close into
// GOAWAY on HTTP/2.
func (s *Server) arrive(w http.ResponseWriter, r *http.Request) {
	c := identity.ConnectionOf(r.Context())
	for name := range r.Header {
		if identity.ForwardedIdentity(name) && (name != "Client-Cert" || c == nil || c.Listener != identity.ListenerBalancer) {
			delete(r.Header, name)
		}
	}
	if c != nil && time.Since(c.Opened) > s.identity.DeviceConfig().ConnectionAge {
		w.Header()["Connection"] = closeConnection
	}
}

var closeConnection = []string{"close"}

// connectionOver tells whether a refusal also ends the connection: its certificate is over, for good.
func connectionOver(code string) bool { return code == string(identity.CertExpired) }
