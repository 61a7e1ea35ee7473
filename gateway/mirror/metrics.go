package mirror

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/gateway/mirror/store"
)

type metrics struct {
	cache     *prometheus.CounterVec
	shared    prometheus.Counter
	conflicts prometheus.Counter
	sumdb     *prometheus.CounterVec
	feed      *prometheus.CounterVec
	ahead     *prometheus.CounterVec
}

// watchSumdb shows whether a checksum database is stopped, from the start on.
func watchSumdb(r prometheus.Registerer, name string, failed func() error) {
	if r == nil {
		return
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "headgate_sumdb_stopped", Help: "1 where a checksum database contradicted itself or was rolled back, and an operator must act.",
		ConstLabels: prometheus.Labels{"sumdb": name},
	}, func() float64 {
		if failed() != nil {
			return 1
		}
		return 0
	}))
}

// Values of the labels of headgate_cache_requests_total and headgate_sumdb_failures_total.
var (
	tiers  = []string{"memory", "disk", "upstream"}
	hits   = []string{"hit", "miss", "stale", "error"}
	causes = []string{"unreachable", "invalid", "not_listed", "mismatch", "security"}
)

func newMetrics(r prometheus.Registerer, public, private *store.Store) *metrics {
	m := &metrics{
		cache: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_cache_requests_total", Help: "Requests for files, by where they were answered.",
		}, []string{"tier", "result"}),
		shared: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "headgate_flights_shared_total", Help: "Callers that joined a fetch which another had begun.",
		}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "headgate_mirror_conflicts_total", Help: "Files refused because other bytes are stored under their name.",
		}),
		sumdb: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_sumdb_failures_total", Help: "Files refused because the checksum database did not vouch for them.",
		}, []string{"cause"}),
		feed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_index_feed_reads_total", Help: "Pages asked of the index feed.",
		}, []string{"result"}),
		ahead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_read_ahead_total", Help: "Files of module graphs fetched before a client asked.",
		}, []string{"result"}),
	}
	for _, r := range []string{"fetched", "failed", "dropped"} {
		m.ahead.WithLabelValues(r)
	}
	for _, r := range []string{"ok", "error"} {
		m.feed.WithLabelValues(r)
	}
	for _, t := range tiers {
		for _, h := range hits {
			m.cache.WithLabelValues(t, h)
		}
	}
	for _, c := range causes {
		m.sumdb.WithLabelValues(c)
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.cache, m.shared, m.conflicts, m.sumdb, m.feed, m.ahead)
	for name, s := range map[string]*store.Store{"public": public, "private": private} {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "headgate_store_bytes", Help: "Bytes of stored files.",
			ConstLabels: prometheus.Labels{"visibility": name},
		}, func() float64 { return float64(s.Bytes()) }))
	}
	return m
}
