package audit

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the log's own; names and labels are part of what operators are promised.
type metrics struct {
	records    *prometheus.CounterVec
	failures   *prometheus.CounterVec
	segments   *prometheus.GaugeVec
	append     prometheus.Histogram
	batch      prometheus.Histogram
	fsync      prometheus.Histogram
	writable   prometheus.Gauge
	queue      prometheus.Gauge
	size       prometheus.Gauge
	checkpoint prometheus.Gauge
	published  *prometheus.GaugeVec
	free       prometheus.Gauge
	sanitised  prometheus.Counter
	redacted   prometheus.Counter

	verified    *prometheus.GaugeVec
	verifiedAt  prometheus.Gauge
	verifyEvery prometheus.Gauge
	splits      *prometheus.CounterVec
	torn        prometheus.Counter

	byKind [len(kinds)]prometheus.Counter // of records, without a look-up for each record
}

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "headgate", Subsystem: "audit", Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "headgate", Subsystem: "audit", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "headgate", Subsystem: "audit", Name: name, Help: help,
			Buckets: buckets, NativeHistogramBucketFactor: 1.1,
		})
	}
	m := &metrics{
		records:  prometheus.NewCounterVec(counter("records_total", "Durable audit records."), []string{"kind"}),
		failures: prometheus.NewCounterVec(counter("append_failures_total", "Records that were not acknowledged."), []string{"cause"}),
		segments: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "headgate", Subsystem: "audit", Name: "segments", Help: "Segments of the present epoch.",
		}, []string{"state"}),
		append:     histogram("append_duration_seconds", "Time from a caller's record to its being durable.", prometheus.ExponentialBuckets(0.0001, 2.5, 12)),
		batch:      histogram("batch_records", "Records written at once.", prometheus.ExponentialBuckets(1, 4, 7)),
		fsync:      histogram("fsync_duration_seconds", "Time of one fdatasync.", prometheus.ExponentialBuckets(0.00005, 2.5, 12)),
		writable:   gauge("writable", "1 while records can be written."),
		queue:      gauge("queue_records", "Records that wait for the disk."),
		size:       gauge("tree_size", "Durable records of the present epoch."),
		checkpoint: gauge("checkpoint_timestamp_seconds", "Time of the newest signed checkpoint."),
		published: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "headgate", Subsystem: "audit", Name: "checkpoint_published_timestamp_seconds",
			Help: "When the place last had the newest checkpoint; 0 if not since the start.",
		}, []string{"dest"}),
		free:      gauge("disk_free_bytes", "Room left on the log's volume."),
		sanitised: prometheus.NewCounter(counter("sanitised_total", "Records in which a string was rewritten.")),
		redacted:  prometheus.NewCounter(counter("redacted_total", "Secrets that were replaced by fingerprints.")),
		verified: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "headgate", Subsystem: "audit", Name: "verify_result",
			Help: "1 for how the newest scheduled verification of the log ended; all 0 before the first.",
		}, []string{"result"}),
		verifiedAt:  gauge("verify_last_success_timestamp_seconds", "When a scheduled verification last found the log in order; 0 if not since the start."),
		verifyEvery: gauge("verify_interval_seconds", "Time between scheduled verifications; 0 is never."),
		splits:      prometheus.NewCounterVec(counter("split_views_total", "Checkpoints of one origin that contradict each other, by who found them."), []string{"by"}),
		torn:        prometheus.NewCounter(counter("torn_tails_total", "Torn tails that were cut off and kept in quarantine; 1 at most, at the start.")),
	}
	for i, k := range kinds[1:] {
		m.byKind[i+1] = m.records.WithLabelValues(string(k))
	}
	for _, cause := range []error{errFull, errPoisoned, errClosed, errTimeout, errQueue, errUnpublished} {
		m.failures.WithLabelValues(causeLabel(cause))
	}
	m.failures.WithLabelValues(causeLabel(nil))
	m.segments.WithLabelValues("active")
	m.segments.WithLabelValues("sealed")
	for _, result := range verifyResults {
		m.verified.WithLabelValues(result)
	}
	for _, by := range []string{"publish", "verify"} {
		m.splits.WithLabelValues(by)
	}
	return m
}

// causeLabel names the cause of a failed append; whatever else it is, the caller gave up.
func causeLabel(err error) string {
	switch {
	case errors.Is(err, errFull):
		return "full"
	case errors.Is(err, errPoisoned):
		return "poisoned"
	case errors.Is(err, errClosed):
		return "closed"
	case errors.Is(err, errTimeout):
		return "timeout"
	case errors.Is(err, errQueue):
		return "queue"
	case errors.Is(err, errUnpublished):
		return "unpublished"
	}
	return "canceled"
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.records, m.failures, m.segments, m.append, m.batch, m.fsync, m.writable, m.queue, m.size,
		m.checkpoint, m.published, m.free, m.sanitised, m.redacted,
		m.verified, m.verifiedAt, m.verifyEvery, m.splits, m.torn,
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.all() {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("registering audit metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all() {
		r.Unregister(c)
	}
}
