package identity

import (
	"context"
	"sync/atomic"
	"time"
)

// A ListenerKind says what a listener demands of a connection, and so where a device's certificate may come from.
type ListenerKind int

// The kinds of listeners. A request without a Connection came by ListenerPublic.
const (
	ListenerPublic   ListenerKind = iota // no certificate is asked for, and none is looked at
	ListenerDevice                       // the peer of the TLS connection is the device
	ListenerBalancer                     // the peer is a pinned balancer, which forwards the device's certificate
)

// A Connection is one connection of a listener. It remembers the chain that was verified on it, so that the next
// request costs no signature; all else is looked at anew.
type Connection struct {
	Listener ListenerKind
	Opened   time.Time

	proved atomic.Pointer[chain]
}

type connectionKey struct{}

// WithConnection is the context for all requests of a new connection; http.Server.ConnContext calls it.
func WithConnection(ctx context.Context, kind ListenerKind) context.Context {
	return context.WithValue(ctx, connectionKey{}, &Connection{Listener: kind, Opened: time.Now()})
}

// ConnectionOf is the connection of a request's context, or nil on the public listener.
func ConnectionOf(ctx context.Context) *Connection {
	c, _ := ctx.Value(connectionKey{}).(*Connection)
	return c
}
