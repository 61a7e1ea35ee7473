package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// errRedirect ends a fetch for good: asking again would lead there again.
var errRedirect = errors.New("redirect refused")

// guard keeps redirects of strangers away from this network. What is named in
// configuration may have any address; all else must be public.
type guard struct {
	hosts map[string]bool // host:port of configured servers and of redirect hosts
	names map[string]bool // redirect hosts without a port

	proxies sync.Map // host:port of HTTPS_PROXY and the like, as they are used
}

func newGuard(list List, redirectHosts []string) *guard {
	g := &guard{hosts: map[string]bool{}, names: map[string]bool{}}
	for _, e := range list {
		g.hosts[hostPort(e.URL)] = true
	}
	for _, h := range redirectHosts {
		g.hosts[h], g.names[h] = true, true
	}
	return g
}

func (g *guard) named(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err == nil && g.names[host] || g.hosts[addr] {
		return true
	}
	_, ok := g.proxies.Load(addr)
	return ok
}

// transport copies base, or makes one, so that each dial passes the guard.
func (g *guard) transport(base *http.Transport, firstByte time.Duration) *http.Transport {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment}
	if base != nil {
		t = base.Clone()
	}
	t.ForceAttemptHTTP2 = true
	t.TLSHandshakeTimeout = 5 * time.Second
	t.ResponseHeaderTimeout = firstByte
	t.MaxIdleConnsPerHost = 64
	t.MaxConnsPerHost = 128
	t.IdleConnTimeout = 90 * time.Second
	t.MaxResponseHeaderBytes = 64 << 10
	t.DisableCompression = true // sizes are counted as they arrive, and nothing can blow up
	if proxy := t.Proxy; proxy != nil {
		t.Proxy = func(r *http.Request) (*url.URL, error) {
			u, err := proxy(r)
			if u != nil {
				g.proxies.Store(hostPort(u), true)
			}
			return u, err
		}
	}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := net.Dialer{Timeout: 2 * time.Second, KeepAlive: 30 * time.Second}
		if !g.named(addr) {
			d.Control = refuseInternal // after the lookup: a name cannot be rebound
		}
		return d.DialContext(ctx, network, addr)
	}
	return t
}

func refuseInternal(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || isInternal(a.Addr()) {
		return fmt.Errorf("%w: it leads to the internal address %s", errRedirect, address)
	}
	return nil
}

// checkRedirect allows ten hops, over https, to public or configured hosts.
// net/http itself drops credentials when the host changes.
func (g *guard) checkRedirect(r *http.Request, via []*http.Request) error {
	addr := hostPort(r.URL)
	if len(via) > 10 {
		return fmt.Errorf("%w: more than 10", errRedirect)
	}
	if r.URL.Scheme != "https" && !(r.URL.Scheme == "http" && via[0].URL.Scheme == "http" && g.named(addr)) {
		return fmt.Errorf("%w: %s to %s is not https", errRedirect, r.URL.Scheme, r.URL.Host)
	}
	if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil && isInternal(a) && !g.named(addr) {
		return fmt.Errorf("%w: it leads to the internal address %s", errRedirect, a)
	}
	if addr != hostPort(via[0].URL) {
		r.Header.Del("Authorization")
		r.Header.Del("Referer") // the path may be a private module's
	}
	return nil
}
