package upstream

import (
	"context"
	"errors"
	"net/url"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// results are the values of the label "result".
var results = []string{"ok", "not_found", "failed", "timeout", "canceled", "breaker_open"}

// Metrics are the counters of one or more clients.
type Metrics struct {
	requests *prometheus.CounterVec
	breaker  *prometheus.GaugeVec

	mu     sync.Mutex                     // guards states
	states map[string]map[*server]float64 // host → breakers of its servers
}

// NewMetrics registers the counters; r may be nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		states: map[string]map[*server]float64{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_upstream_requests_total",
			Help: "Requests to upstream servers, each try counted.",
		}, []string{"upstream", "result"}),
		breaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "headgate_upstream_breaker_state",
			Help: "State of the breaker of an upstream: 0 closed, 1 half open, 2 open.",
		}, []string{"upstream"}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.breaker)
	}
	return m
}

// changed sets the state of a host, which is that of its worst server.
func (m *Metrics) changed(host string, s *server, state float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.states[host] == nil {
		m.states[host] = map[*server]float64{}
	}
	m.states[host][s] = state
	for _, other := range m.states[host] {
		state = max(state, other)
	}
	m.breaker.WithLabelValues(host).Set(state)
}

func (m *Metrics) init(host string) {
	m.breaker.WithLabelValues(host).Set(0)
	for _, r := range results {
		m.requests.WithLabelValues(host, r)
	}
}

func result(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrNotFound):
		return "not_found"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, ErrTimeout):
		return "timeout"
	}
	return "failed"
}

// cause takes the URL, which may hold a password or a signature, out of an error.
func cause(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
