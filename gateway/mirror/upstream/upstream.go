// Package upstream fetches from GOPROXY servers: a list of them with the go
// command's rules for , and |, retries, one breaker each, and limits on time,
// size and redirects. It knows paths and bytes, not modules: nothing that it
// returns is verified. Its one invariant: ErrNotFound means that every server
// asked said so; trouble of any kind is never ErrNotFound.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

var (
	// ErrNotFound means that every server asked answered 404 or 410. It matches fs.ErrNotExist.
	ErrNotFound = fmt.Errorf("not found upstream: %w", fs.ErrNotExist)
	// ErrFailed means that a server refused, broke off, or sent what nobody can use.
	ErrFailed = errors.New("upstream failed")
	// ErrTimeout means that a server was too slow.
	ErrTimeout = errors.New("upstream too slow")
)

// Options configures a Client.
type Options struct {
	// List is what Parse gave.
	List List
	// RedirectHosts are hosts with private or loopback addresses that a redirect may lead to.
	RedirectHosts []string
	// Hosts are servers with a credential or CAs of their own.
	Hosts []Host
	// Transport is copied and guarded; nil is one with the limits of New.
	Transport *http.Transport
	// FirstByte bounds the wait for a response's header and for each further
	// piece of its body; 0 is 30 s.
	FirstByte time.Duration
	// LeftAlone is how long a server is not asked after five failures in a row; 0 is 10 s.
	LeftAlone time.Duration
	// Logger may be nil.
	Logger *slog.Logger
	// Metrics may be shared with other clients; nil are of no use to anybody.
	Metrics *Metrics
}

// Client asks the servers of a List. It is safe for many callers.
type Client struct {
	list      []*server
	http      *http.Client
	log       *slog.Logger
	firstByte time.Duration
	leftAlone time.Duration
	metrics   *Metrics
}

// New makes a Client; it dials nothing. The error is a CA file's.
func New(o Options) (*Client, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FirstByte == 0 {
		o.FirstByte = 30 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	c := &Client{log: o.Logger, firstByte: o.FirstByte, leftAlone: cmp.Or(o.LeftAlone, 10*time.Second), metrics: o.Metrics}
	g := newGuard(o.List, o.RedirectHosts)
	t, err := newTransports(o, g)
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{Transport: t, CheckRedirect: g.checkRedirect}
	for _, e := range o.List {
		s := c.newServer(e)
		for _, h := range o.Hosts {
			if h.Matches(e.URL) && h.CredentialFile != "" {
				s.credentialFile = h.CredentialFile
			}
		}
		c.list = append(c.list, s)
	}
	return c, nil
}

// Island tells that there is no server to ask: the list is only "off".
func (c *Client) Island() bool { return len(c.list) == 0 }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Sink takes a body. A try that fails after some bytes is followed by Reset.
type Sink interface {
	Write(b []byte) (int, error)
	Reset() error
}

// Request is one file to fetch.
type Request struct {
	// Path is the escaped path below the server's URL, without a leading slash.
	Path string
	// MaxBytes bounds the body.
	MaxBytes int64
	// Check, if set, judges a body; what it refuses counts as a server's failure.
	Check func() error
}

// Get fetches a small body into memory. check may be nil.
func (c *Client) Get(ctx context.Context, path string, maxBytes int64, check func([]byte) error) ([]byte, error) {
	var b buffer
	r := Request{Path: path, MaxBytes: maxBytes}
	if check != nil {
		r.Check = func() error { return check(b.Bytes()) }
	}
	if err := c.Fetch(ctx, r, &b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Fetch asks the servers in order until one delivers: the next one is asked at
// 404 and 410 only, or at any error where a | stands between the two. The
// error is ErrNotFound, ErrFailed or ErrTimeout, or that of ctx.
func (c *Client) Fetch(ctx context.Context, r Request, dst Sink) error {
	err := ErrNotFound // an island has nothing
	for _, s := range c.list {
		e := s.fetch(ctx, r, dst)
		if e == nil {
			return nil
		}
		// One that failed outweighs all that say there is no such file.
		if errors.Is(err, ErrNotFound) || !errors.Is(e, ErrNotFound) {
			err = e
		}
		if ctx.Err() != nil || !errors.Is(e, ErrNotFound) && !s.anyError {
			break
		}
	}
	if errors.Is(err, ErrNotFound) {
		return err
	}
	return fmt.Errorf("fetching %s: %w", strings.TrimPrefix(r.Path, "/"), err)
}
