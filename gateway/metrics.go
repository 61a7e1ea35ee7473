package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the gateway's own series. Labels come from closed sets, never from a path, a person or an address.
type metrics struct {
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	bytes      *prometheus.CounterVec
	series     map[label]series // every combination, resolved once
	inflight   prometheus.Gauge
	handshakes *prometheus.CounterVec
	certExpiry *prometheus.GaugeVec
}

// A label is what a finished request is counted under, and series are its counters.
type label struct {
	action, effect, tier string
	class                int // status / 100
}

type series struct {
	requests, bytes prometheus.Counter
	duration        prometheus.Observer
}

// actions, effects, classes and tiers are the label values that a request can have.
var (
	actions = []string{"list", "latest", "query", "info", "mod", "zip", "sumdb", "index", "api", "token", "web", "hook", "root", "vulndb", "explain", "none"}
	effects = []string{"allow", "deny", "error"}
	classes = []int{2, 3, 4, 5}
	tiers   = []string{"memory", "disk", "upstream", "none"}
)

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		series: map[label]series{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_requests_total", Help: "Requests on the public listener by action, effect of the decision, status class and cache tier.",
		}, []string{"action", "effect", "code_class", "cache"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "headgate_request_duration_seconds", Help: "Time from the request's headers to the last byte of its answer.",
			Buckets:                     []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"action", "cache"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_response_bytes_total", Help: "Bytes of response bodies sent.",
		}, []string{"action", "cache"}),
		inflight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "headgate_inflight_requests", Help: "Requests being answered now.",
		}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_tls_handshake_errors_total", Help: "TLS handshakes that failed.",
		}, []string{"listener", "reason"}),
		certExpiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "headgate_cert_not_after_timestamp_seconds", Help: "When the certificate in use expires.",
		}, []string{"use"}),
	}
	m.zero()
	r.MustRegister(m.requests, m.duration, m.bytes, m.inflight, m.handshakes, m.certExpiry)
	return m
}

// zero makes every combination present from the start, so that a rate is defined before the first event.
func (m *metrics) zero() {
	for _, action := range actions {
		for _, tier := range tiers {
			duration, bytes := m.duration.WithLabelValues(action, tier), m.bytes.WithLabelValues(action, tier)
			for _, effect := range effects {
				for _, class := range classes {
					m.series[label{action, effect, tier, class}] = series{
						requests: m.requests.WithLabelValues(action, effect, strconv.Itoa(class)+"xx", tier), bytes: bytes, duration: duration,
					}
				}
			}
		}
	}
	for _, reason := range []string{"protocol", "closed", "other"} {
		for _, listener := range []string{"public", "device", "balancer"} {
			m.handshakes.WithLabelValues(listener, reason)
		}
	}
	m.certExpiry.WithLabelValues("public")
}

// observe counts one finished exchange.
func (m *metrics) observe(action, effect, tier string, status int, sent int64, took time.Duration) {
	s, known := m.series[label{action, effect, tier, status / 100}]
	if !known {
		return // a status that no client of HTTP was sent, as 499
	}
	s.requests.Inc()
	s.bytes.Add(float64(sent))
	s.duration.Observe(took.Seconds())
}
