package policy

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meters are the metrics of the engine, with every label combination present from the start.
type meters struct {
	decisions map[meterKey]prometheus.Counter
	durations map[meterKey]prometheus.Observer
	slow      prometheus.Counter
	revision  *prometheus.GaugeVec
	reloaded  prometheus.Gauge
	loadedAt  prometheus.Gauge
	rejected  map[string]prometheus.Counter // by state
	contact   prometheus.Gauge
}

type meterKey struct {
	entry  string
	effect Effect // "" in durations
	cached bool
}

func newMeters(r prometheus.Registerer) (*meters, error) {
	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_policy_decisions_total", Help: "Answers of policy; effect error is a failure to decide.",
	}, []string{"entry", "effect", "cached"})
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "headgate_decision_duration_seconds", Help: "Time to answer one question.",
		Buckets:                     []float64{1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 0.25, 1, 5},
		NativeHistogramBucketFactor: 1.1,
	}, []string{"entry", "cached"})
	m := &meters{
		decisions: map[meterKey]prometheus.Counter{},
		durations: map[meterKey]prometheus.Observer{},
		slow: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "headgate_policy_slow_evaluations_total", Help: "Evaluations that took more than 5 ms.",
		}),
		revision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "headgate_policy_revision_info", Help: "1 for the active revision.",
		}, []string{"revision"}),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "headgate_policy_last_reload_success", Help: "1 if the last bundle of the source was good.",
		}),
		loadedAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "headgate_policy_last_reload_timestamp_seconds", Help: "When the active bundle was activated.",
		}),
	}
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_policy_rejections_total", Help: "Bundles that were not activated, by the step that they failed.",
	}, []string{"state"})
	m.rejected = map[string]prometheus.Counter{}
	for _, state := range states {
		m.rejected[state] = rejected.WithLabelValues(state)
	}
	m.contact = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "headgate_policy_source_last_contact_timestamp_seconds", Help: "When the repository of policy was last read; 0 where there is none.",
	})
	for _, entry := range []string{"access", "release"} {
		for _, cached := range []bool{false, true} {
			text := fmt.Sprint(cached)
			m.durations[meterKey{entry, "", cached}] = durations.WithLabelValues(entry, text)
			for _, effect := range []Effect{Allow, Deny, "error"} {
				m.decisions[meterKey{entry, effect, cached}] = decisions.WithLabelValues(entry, string(effect), text)
			}
		}
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{decisions, durations, m.slow, m.revision, m.reloaded, m.loadedAt, rejected, m.contact} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

func (m *meters) decided(entry string, d Decision, took time.Duration) {
	m.decisions[meterKey{entry, d.Effect, d.Eval.Cached}].Inc()
	m.durations[meterKey{entry, "", d.Eval.Cached}].Observe(took.Seconds())
}

// decidedAll counts the answers of a list that were known together; took is shared among them.
func (m *meters) decidedAll(entry string, all []Decision, took time.Duration) {
	each := took.Seconds() / float64(len(all))
	for _, cached := range []bool{false, true} {
		durations := m.durations[meterKey{entry, "", cached}]
		for _, effect := range []Effect{Allow, Deny} {
			n := 0
			for i := range all {
				if all[i].Effect == effect && all[i].Eval.Cached == cached {
					durations.Observe(each)
					n++
				}
			}
			if n > 0 {
				m.decisions[meterKey{entry, effect, cached}].Add(float64(n))
			}
		}
	}
}

func (m *meters) failed(entry string, took time.Duration) {
	m.decisions[meterKey{entry, "error", false}].Inc()
	m.durations[meterKey{entry, "", false}].Observe(took.Seconds())
}

func (m *meters) activated(revision string, at time.Time) {
	m.revision.Reset()
	m.revision.WithLabelValues(revision).Set(1)
	m.reloaded.Set(1)
	m.loadedAt.Set(float64(at.UnixNano()) / 1e9)
}
