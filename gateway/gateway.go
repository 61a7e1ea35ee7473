// Package gateway is the HTTP front of Headgate: the one place where identity, policy, mirror and audit meet.
//
// A module request walks one way: one spelling, target, identity, access, mirror, release, audit, bytes. Its one
// invariant: no byte of a module leaves before the decision about it is durable in the audit log.
package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/feeds"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// Limits of a request, from THREATS: what is longer is refused before anything looks at it.
const (
	maxTarget      = 4 << 10
	maxCredential  = 16 << 10
	maxHeader      = 128 << 10
	maxBody        = 1 << 20
	headerTimeout  = 10 * time.Second
	bodyTimeout    = 20 * time.Second
	idleTimeout    = 120 * time.Second
	requestTimeout = 15 * time.Minute // above the mirror's own limit for a fetch, which answers 504
	maxStreams     = 250              // go mod download opens one stream a core and one a prefix probe
)

// Options are the parts that the gateway joins. All but Feeds, Registry and Now are required.
type Options struct {
	Identity *identity.Service
	Policy   *policy.Engine
	Mirror   *mirror.Mirror
	Audit    *audit.Log
	Feeds    *feeds.Feeds // nil: what feeds give is off
	Logger   *slog.Logger
	Registry *prometheus.Registry // what /metrics shows
	Version  string
	Now      func() time.Time // the clock of policy; nil: time.Now
}

// A Server answers module requests, the API and the operations endpoints.
type Server struct {
	cfg       Config
	names     map[string]bool // host names that we answer to
	identity  *identity.Service
	policy    *policy.Engine
	mirror    *mirror.Mirror
	audit     *audit.Log
	turns     turns          // to write to it
	archive   *audit.Archive // of the same log
	feeds     *feeds.Feeds
	snapshots *policy.Snapshots // of inputs, for the log
	often     *oftenRefused
	stall     time.Duration    // how long a client may take for one chunk
	now       func() time.Time // of policy's day
	log       *slog.Logger
	metrics   *metrics
	registry  *prometheus.Registry
	version   string
	started   time.Time

	viewAge func() time.Duration // how old this node's view of revocations and locks is

	base     string // path prefix of URL, without a trailing slash
	public   http.Handler
	local    http.Handler
	stopping atomic.Bool
	care     care

	// Set by Listen.
	certificate                                        *certificate
	publicListener, operationsListener, socketListener net.Listener
	deviceListeners                                    []*deviceListener
	refusals                                           *handshakeRefusals
}

// New joins the parts. Nothing listens before Run.
func New(cfg Config, o Options) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, names: map[string]bool{}, identity: o.Identity, policy: o.Policy, mirror: o.Mirror, audit: o.Audit, turns: newTurns(),
		feeds: o.Feeds, snapshots: policy.NewSnapshots(), stall: stallTimeout, now: o.Now, log: o.Logger, registry: o.Registry, version: o.Version, started: time.Now(),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.audit != nil {
		s.archive = s.audit.Archive()
	}
	if s.identity != nil {
		s.viewAge = s.identity.ViewAge
	}
	if s.registry == nil {
		s.registry = prometheus.NewRegistry()
	}
	s.metrics = newMetrics(s.registry)
	s.care = newCare()
	s.refusals, s.often = newHandshakeRefusals(s.audit), newOftenRefused(s.audit)
	for _, name := range cfg.names() {
		s.names[name] = true
	}
	if u, err := url.Parse(cfg.URL); err == nil {
		s.base = strings.TrimSuffix(u.Path, "/")
	}
	api := s.api()
	s.public = s.front(api)
	s.local = s.socket(api)
	return s
}

// front is what every request on the public listener passes before it is routed. The raw request target is checked
// before the mux, which would decode escapes and redirect around dots, unrecorded.
func (s *Server) front(api http.Handler) http.Handler {
	mux := http.NewServeMux()
	s.oauthRoutes(mux)
	s.webRoutes(mux)
	mux.HandleFunc("POST /-/hooks/git", s.hook)
	mux.HandleFunc("/-/hooks/git", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "POST")
		s.refuse(w, r, errMethod)
	})
	mux.Handle("/-/api/v1/", api)
	mux.Handle("/-/access/v1/", api)
	mux.HandleFunc("/-/api/v1/explain", s.explain)
	mux.HandleFunc("/index", s.index)
	mux.HandleFunc("/-/vulndb/", s.vulndb)
	mux.HandleFunc("/", s.module)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.arrive(w, r)
		if err := s.admissible(r); err != nil {
			s.refuse(w, r, err)
			return
		}
		limitBody(w, r)
		if s.base != "" && r.URL.Path != "/" {
			rest, ok := strings.CutPrefix(r.URL.EscapedPath(), s.base)
			if !ok || rest != "" && rest[0] != '/' {
				s.refuse(w, r, mirror.ErrNoRoute)
				return
			}
			r = withPath(r, rest)
		}
		mux.ServeHTTP(w, r)
	})
}

// withPath is the request with another raw path, for a gateway that does not own its host's root.
func withPath(r *http.Request, raw string) *http.Request {
	if raw == "" {
		raw = "/"
	}
	u := *r.URL
	u.RawPath = raw
	u.Path = strings.ReplaceAll(raw, "%21", "!")
	out := *r
	out.URL = &u
	return &out
}

// admissible checks what every request must keep: a host of ours and one spelling of its path (THREATS, Path).
func (s *Server) admissible(r *http.Request) error {
	if !s.ourHost(r) {
		return fmt.Errorf("answering for host: %w", errHost)
	}
	raw := r.RequestURI
	if len(raw) > maxTarget || len(r.Header.Get("Authorization")) > maxCredential || len(r.Header.Values("Authorization")) > 1 {
		return fmt.Errorf("reading the request: %w", errRequest)
	}
	raw, _, _ = strings.Cut(raw, "?")
	if !canonical(raw) {
		return fmt.Errorf("reading the request target: %w", mirror.ErrSpelling)
	}
	return nil
}

// limitBody bounds what a client may send beside its headers, in bytes and in time. A connection whose body stalls
// would else be held for ever, and through every drain. A request without a body keeps the connection's own limits: a
// deadline on reading would end a long download.
func limitBody(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // a writer without deadlines is one of a test
}

func (s *Server) ourHost(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if !s.names[host] {
		return false
	}
	return r.TLS == nil || r.TLS.ServerName == "" || s.names[strings.ToLower(r.TLS.ServerName)]
}

// canonical tells whether a raw request target is in origin form with nothing that two readers could read in two ways:
// the only escape is %21, equal to "!"; no empty, "." or ".." element; printable ASCII without backslash.
func canonical(raw string) bool {
	if raw == "" || raw[0] != '/' {
		return false
	}
	for i := range len(raw) {
		switch c := raw[i]; {
		case c <= ' ' || c >= 0x7f || c == '\\' || c == '#':
			return false
		case c == '%' && !strings.HasPrefix(raw[i:], "%21"):
			return false
		}
	}
	for rest := raw[1:]; ; {
		element, after, more := strings.Cut(rest, "/")
		if element == "." || element == ".." || element == "" && more {
			return false
		}
		if !more {
			return true
		}
		rest = after
	}
}

// refuse answers a request that is turned away before it has a target. Its record is durable first, like any other.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	x := s.begin(w, r)
	x.finish(s.record(r.Context(), x, err))
}

// URL is what clients put into GOPROXY.
func (s *Server) URL() string { return s.cfg.URL }

// deadline bounds a request as a whole; the client has no limit of its own.
func deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout)
}
