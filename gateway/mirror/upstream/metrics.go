package upstream

import (
	"context"
	"errors"
	"net/url"

	"github.com/prometheus/client_golang/prometheus"
)

// results are the values of the label "result".
var results = []string{"ok", "not_found", "failed", "timeout", "canceled", "breaker_open"}

type metrics struct {
	requests *prometheus.CounterVec
	breaker  *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
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

func (m *metrics) init(host string) {
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
