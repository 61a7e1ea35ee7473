package vcs

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// results are the values of the label of headgate_vcs_fetch_duration_seconds.
var results = []string{"ok", "not_found", "failed", "timeout", "canceled"}

type metrics struct {
	duration *prometheus.HistogramVec
	running  prometheus.Gauge
	removed  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Source) *metrics {
	m := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "headgate_vcs_fetch_duration_seconds", Help: "Time that a visit to a Git repository took once it had a place among the runs.",
			Buckets:                     []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"result"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "headgate_vcs_runs", Help: "Visits to Git repositories under way.",
		}),
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "headgate_vcs_clones_removed_total", Help: "Kept clones that were removed to stay within mirror.vcs.clone_bytes.",
		}),
	}
	for _, result := range results {
		m.duration.WithLabelValues(result)
	}
	if r != nil {
		r.MustRegister(m.duration, m.running, m.removed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "headgate_vcs_clone_bytes", Help: "Bytes of kept clones.",
		}, func() float64 { return float64(s.cloneBytes()) }))
	}
	return m
}

// begin counts a visit until the function that it gives is called with its end.
func (m *metrics) begin() func(error) {
	m.running.Inc()
	start := time.Now()
	return func(err error) {
		m.running.Dec()
		m.duration.WithLabelValues(resultOf(err)).Observe(time.Since(start).Seconds())
	}
}

func resultOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrNotFound):
		return "not_found"
	case errors.Is(err, ErrTimeout):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "failed"
}
