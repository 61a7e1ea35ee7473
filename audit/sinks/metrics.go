package sinks

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Results of one request to a receiver.
const (
	resultOK      = "ok"
	resultPartial = "partial" // some events were taken
	resultRetry   = "retry"   // no answer, or one that says later
	resultDenied  = "denied"  // 401, 403, a certificate that is not believed
	resultRefused = "refused" // too large, or not understood
)

type metrics struct {
	lag      *prometheus.Desc
	seconds  *prometheus.Desc
	requests *prometheus.CounterVec
	paused   *prometheus.GaugeVec
	waiting  *prometheus.GaugeVec
	dead     *prometheus.CounterVec
	sinks    []*sink
}

func newMetrics() *metrics {
	name := func(n string) string { return prometheus.BuildFQName("headgate", "audit", n) }
	labels := []string{"sink"}
	return &metrics{
		lag:     prometheus.NewDesc(name("sink_lag_records"), "Durable records that the sink's receiver does not have yet.", labels, nil),
		seconds: prometheus.NewDesc(name("sink_lag_seconds"), "Age of the oldest record that the sink's receiver does not have yet.", labels, nil),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: name("sink_requests_total"), Help: "Requests to the sink's receiver.",
		}, []string{"sink", "result"}),
		paused: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: name("sink_paused"), Help: "1 while the sink waits for a person: its receiver does not accept its credentials, or the log does not fit its cursor.",
		}, labels),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: name("sink_retry_after_seconds"), Help: "How long the sink waits before its next try, from when it began to wait; 0 when it does not.",
		}, labels),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: name("dead_letters_total"), Help: "Records that the sink's receiver refused for good.",
		}, labels),
	}
}

// sinkMetrics are those of one sink.
type sinkMetrics struct {
	requests func(result string) prometheus.Counter
	paused   prometheus.Gauge
	waiting  prometheus.Gauge
	dead     prometheus.Counter
}

func (m *metrics) of(sink string) sinkMetrics {
	for _, result := range []string{resultOK, resultPartial, resultRetry, resultDenied, resultRefused} {
		m.requests.WithLabelValues(sink, result)
	}
	return sinkMetrics{
		requests: func(result string) prometheus.Counter { return m.requests.WithLabelValues(sink, result) },
		paused:   m.paused.WithLabelValues(sink), waiting: m.waiting.WithLabelValues(sink), dead: m.dead.WithLabelValues(sink),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.lag
	ch <- m.seconds
	m.requests.Describe(ch)
	m.paused.Describe(ch)
	m.waiting.Describe(ch)
	m.dead.Describe(ch)
}

// Collect implements prometheus.Collector. Lag is measured when it is asked for: a sink that hangs cannot report it.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, s := range m.sinks {
		records, age := s.lag()
		ch <- prometheus.MustNewConstMetric(m.lag, prometheus.GaugeValue, float64(records), s.config.Name)
		ch <- prometheus.MustNewConstMetric(m.seconds, prometheus.GaugeValue, age.Seconds(), s.config.Name)
	}
	m.requests.Collect(ch)
	m.paused.Collect(ch)
	m.waiting.Collect(ch)
	m.dead.Collect(ch)
}

func (m *metrics) register(r prometheus.Registerer, all []*sink) error {
	m.sinks = all
	if r == nil {
		return nil
	}
	if err := r.Register(m); err != nil {
		return fmt.Errorf("registering metrics of sinks: %w", err)
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r != nil {
		r.Unregister(m)
	}
}
