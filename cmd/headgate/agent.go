package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func agentCommand() *cobra.Command {
	var address, listen string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "agent [--url URL]", Short: "a GOPROXY on this machine's loopback that adds certificate and token",
		Long: `agent serves the gateway's modules to the go command of this user on a loopback port, below a path that nobody can
guess, over the device's certificate and with a short token that it renews. It needs a sign-in (headgate login) and runs
until it is stopped. Requests under another host name, of web pages, and of whoever does not know the path are refused.
The path is another one at each start.`,
		Example: "  headgate agent\n  headgate agent --url https://go.corp.example --listen 127.0.0.1:4873",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := netip.ParseAddrPort(listen)
			if err != nil || !at.Addr().IsLoopback() {
				return &useError{fmt.Errorf("--listen %s: want an address of this machine alone, such as 127.0.0.1:0", listen)}
			}
			l, err := onlyLogin(address)
			if err != nil {
				return err
			}
			l.notes = cmd.ErrOrStderr()
			return runAgent(cmd.Context(), l, listen, func(goproxy string) error {
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"goproxy": goproxy, "gateway": l.URL})
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "export GOPROXY=%s\n", goproxy)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&address, "url", "", "`URL` of the gateway (default: the one that this user signed in to)")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "loopback `ADDRESS`; port 0 is any")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// runAgent serves until ctx ends, and then finishes what is under way. ready is told the GOPROXY.
func runAgent(ctx context.Context, l *gatewayLogin, listen string, ready func(goproxy string) error) error {
	upstream, c, err := l.door()
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	if _, err := l.fresh(ctx, ""); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	a, err := newAgent(upstream, listener.Addr().String(), &tokenTransport{login: l, next: c.Transport})
	if err == nil {
		err = ready(a.url())
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return serveAgent(ctx, listener, a)
}

// serveAgent serves until ctx ends, and then gives what is under way ten seconds to finish.
func serveAgent(ctx context.Context, listener net.Listener, a *agent) error {
	s := &http.Server{
		Handler: a, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo), // what a stranger sends is no news
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := s.Shutdown(last)
	if err != nil {
		err = fmt.Errorf("stopping: %w", errors.Join(err, s.Close()))
	}
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// An agent is the handler of the loopback port.
type agent struct {
	host   string // exactly as in the Host header
	prefix string // the path's first segment: 130 random bits
	proxy  *httputil.ReverseProxy
}

func newAgent(upstream, host string, transport http.RoundTripper) (*agent, error) {
	target, err := url.Parse(upstream)
	if err != nil {
		return nil, fmt.Errorf("reading the gateway's address: %w", err)
	}
	a := &agent{host: host, prefix: rand.Text()}
	a.proxy = &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo), // the go command is told; its path is a secret
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Path = strings.TrimPrefix(r.Out.URL.Path, "/"+a.prefix)
			r.Out.URL.RawPath = strings.TrimPrefix(r.Out.URL.RawPath, "/"+a.prefix)
			r.SetURL(target) // and Host, so that the gateway knows itself
			for _, name := range []string{"Authorization", "Cookie", "Referer"} {
				r.Out.Header.Del(name) // what the caller has is for nobody else
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Set-Cookie")
			if resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
				return errRedirect
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "AGENT: "+printableLine(err.Error()), http.StatusBadGateway)
		},
	}
	return a, nil
}

// errRedirect: a gateway sends none (PROTOCOL C9), and the go command would go wherever it says, past the gateway.
var errRedirect = errors.New("the gateway's answer leads elsewhere, which no gateway's does")

func (a *agent) url() string { return "http://" + a.host + "/" + a.prefix }

// ServeHTTP lets through whoever knows the path. A web page does not get as far as guessing.
func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	switch {
	case r.Host != a.host: // a name that was made to lead here (DNS rebinding)
		http.Error(w, "AGENT: another host name", http.StatusMisdirectedRequest)
	case ofBrowser(r.Header):
		http.Error(w, "AGENT: web pages are not served", http.StatusForbidden)
	case subtle.ConstantTimeCompare([]byte(first), []byte(a.prefix)) != 1:
		http.Error(w, "AGENT: the path is not the one that the agent printed", http.StatusForbidden)
	case r.Method != http.MethodGet && r.Method != http.MethodHead || r.ContentLength != 0:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "AGENT: modules are only read", http.StatusMethodNotAllowed)
	default:
		a.proxy.ServeHTTP(w, r)
	}
}

// ofBrowser says whether a web page sent a request. The go command sends none of these.
func ofBrowser(h http.Header) bool {
	for name := range h {
		if name == "Origin" || strings.HasPrefix(name, "Sec-Fetch-") {
			return true
		}
	}
	return false
}

// A tokenTransport adds the token, and asks once more with another where the gateway no longer takes it.
type tokenTransport struct {
	login *gatewayLogin
	next  http.RoundTripper
}

func (t *tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := t.login.fresh(r.Context(), "")
	if err != nil {
		return nil, err
	}
	resp, err := t.send(r, token)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	again, err := t.login.fresh(r.Context(), token.Token)
	if err != nil {
		return resp, nil //nolint:nilerr // the gateway's own refusal says more
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // so that the connection is used again
	resp.Body.Close()
	return t.send(r, again)
}

func (t *tokenTransport) send(r *http.Request, token shortToken) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token.Token)
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("asking the gateway: %w", err)
	}
	return resp, nil
}
