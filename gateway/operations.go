package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// operations serves health, metrics and profiles. It knows nobody and is therefore bound to loopback.
func (s *Server) operations() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// A check is one condition of readiness. Only what makes this node alone useless belongs here: an upstream or an
// issuer that is away would take every node out at once.
type check struct {
	name string
	err  error
}

func (s *Server) checks(ctx context.Context) []check {
	_, policyErr := s.policy.Current()
	var draining, expired error
	if s.stopping.Load() {
		draining = errStopping
	}
	if s.certificate != nil && time.Now().After(s.certificate.notAfter()) {
		expired = fmt.Errorf("certificate %s expired at %s", s.certificate.cert, s.certificate.notAfter().Format(time.RFC3339))
	}
	return []check{
		{"audit", s.audit.Writable()},
		{"policy", policyErr},
		{"store", s.mirror.Healthy(ctx)},
		{"certificate", expired},
		{"draining", draining},
	}
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	status, text := http.StatusOK, ""
	for _, c := range s.checks(ctx) {
		if c.err != nil {
			status = http.StatusServiceUnavailable
			text += fmt.Sprintf("[-] %s: %v\n", c.name, c.err)
		} else if r.URL.Query().Has("verbose") {
			text += fmt.Sprintf("[+] %s: ok\n", c.name)
		}
	}
	if text == "" {
		text = "ok\n"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprint(w, text)
}
