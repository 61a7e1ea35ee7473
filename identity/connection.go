package identity

import (
	"context"
	"sync/atomic"
	"time"
)

// A Channel says what a listener demands of a connection, and so where a device's certificate may come from.
type Channel int

// The channels. A request without any came by ChannelPublic.
const (
	ChannelPublic   Channel = iota // no certificate is asked for, and none is looked at
	ChannelDevice                  // the peer of the TLS connection is the device
	ChannelBalancer                // the peer is a pinned balancer, which forwards the device's certificate
)

// A Connection is one connection of a listener. It remembers the chain that was verified on it, so that the next
// request costs no signature; all else is looked at anew.
type Connection struct {
	Channel Channel
	Opened  time.Time

	proved atomic.Pointer[chain]
}

type connectionKey struct{}

// WithConnection is the context for all requests of a new connection; http.Server.ConnContext calls it.
func WithConnection(ctx context.Context, c Channel) context.Context {
	return context.WithValue(ctx, connectionKey{}, &Connection{Channel: c, Opened: time.Now()})
}

// ConnectionOf is the connection of a request's context, or nil on the public channel.
func ConnectionOf(ctx context.Context) *Connection {
	c, _ := ctx.Value(connectionKey{}).(*Connection)
	return c
}
