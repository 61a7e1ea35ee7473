package identity

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// deviceMetrics are the series of devices.
type deviceMetrics struct {
	handshakes    map[Code]prometheus.Counter // "" is ok
	authorityEnds *prometheus.GaugeVec
	listEnds      *prometheus.GaugeVec
	feedAge       *prometheus.GaugeVec
	failures      *prometheus.CounterVec
	degraded      prometheus.Gauge
}

// deviceCodes are the reasons for which a device is refused.
var deviceCodes = []Code{DeviceRequired, DeviceUnknown, DeviceBlockedCode, DeviceRevoked, DeviceMismatch, CertInvalid, CertExpired, CRLStale}

func newDeviceMetrics(reg prometheus.Registerer, cfg Devices) (*deviceMetrics, error) {
	gauge := func(name, help, label string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
	}
	shakes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_device_handshakes_total", Help: "TLS handshakes with a client certificate by what it was worth then.",
	}, []string{"result"})
	m := &deviceMetrics{
		handshakes:    map[Code]prometheus.Counter{"": shakes.WithLabelValues("ok")},
		authorityEnds: gauge("headgate_device_ca_not_after_timestamp_seconds", "When the first authority of a pool expires.", "issuer"),
		listEnds:      gauge("headgate_crl_next_update_timestamp_seconds", "When the revocation list of a pool's authorities ends; 0: there is none.", "issuer"),
		feedAge:       gauge("headgate_inventory_age_seconds", "Time since a feed of devices was last found good; -1: never.", "feed"),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "headgate_device_reload_failures_total", Help: "Looks at authorities, revocation lists and feeds that left older data in force.",
		}, []string{"what"}),
		degraded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "headgate_devices_degraded", Help: "Files and feeds of devices whose last good content is in force.",
		}),
	}
	for _, code := range deviceCodes {
		m.handshakes[code] = shakes.WithLabelValues(string(code))
	}
	for _, p := range cfg.Pools {
		m.authorityEnds.WithLabelValues(p.Issuer)
		m.listEnds.WithLabelValues(p.Issuer)
	}
	for _, what := range []string{"pool", "crl", "feed"} {
		m.failures.WithLabelValues(what)
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{shakes, m.authorityEnds, m.listEnds, m.feedAge, m.failures, m.degraded} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("registering metrics of devices: %w", err)
	}
	return m, nil
}

// measure sets what depends on time. Who calls it holds mu.
func (d *devices) measure() {
	now := time.Now()
	for _, f := range d.feeds {
		age := -1.0
		if f.good.Load() != nil {
			age = float64(now.Unix() - f.asOf.Load())
		}
		d.metrics.feedAge.WithLabelValues(f.cfg.Name).Set(age)
	}
	trust := d.view.Load().trust
	for _, p := range trust.pools {
		ends := 0.0
		for _, authority := range p.authorities {
			list := trust.listOf(authority)
			if list == nil {
				continue
			}
			if at := float64(list.list.NextUpdate.Unix()); ends == 0 || at < ends {
				ends = at
			}
		}
		d.metrics.listEnds.WithLabelValues(p.cfg.Issuer).Set(ends)
	}
}
