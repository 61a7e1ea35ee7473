package identity

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are resolved once, so that counting a request takes nanoseconds.
type metrics struct {
	auth map[string]map[Code]prometheus.Counter // by method, by code; "" is success
	jwks *prometheus.CounterVec

	viewAge prometheus.Gauge
	peppers *prometheus.GaugeVec // by version
}

func newMetrics(reg prometheus.Registerer, issuers []Issuer) (*metrics, error) {
	auth := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_auth_total", Help: "Authentications by method and result.",
	}, []string{"method", "result"})
	m := &metrics{auth: map[string]map[Code]prometheus.Counter{}, jwks: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_jwks_refresh_total", Help: "Fetches of an issuer's keys by result.",
	}, []string{"issuer", "result"}), viewAge: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "headgate_revocation_view_age_seconds", Help: "How long ago this node last knew what was revoked and locked on any node.",
	}), peppers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "headgate_tokens", Help: "Tokens that hold, by the version of the pepper under which they are kept; a use moves one to the newest.",
	}, []string{"pepper"})}
	for method, codes := range map[string][]Code{
		"none":  {CredentialMissing, CredentialInvalid},
		"token": {"", CredentialInvalid, TokenExpired, TokenRevoked, SessionOver, Locked},
		"jwt":   {"", CredentialInvalid, TokenExpired, SessionOver, IssuerDown, Locked},
	} {
		m.auth[method] = map[Code]prometheus.Counter{}
		for _, code := range codes {
			result := string(code)
			if code == "" {
				result = "ok"
			}
			m.auth[method][code] = auth.WithLabelValues(method, result)
		}
	}
	for _, i := range issuers {
		m.jwks.WithLabelValues(i.Name, "ok")
		m.jwks.WithLabelValues(i.Name, "error")
	}
	if reg == nil {
		return m, nil
	}
	if err := errors.Join(reg.Register(auth), reg.Register(m.jwks), reg.Register(m.viewAge), reg.Register(m.peppers)); err != nil {
		return nil, fmt.Errorf("registering metrics of identity: %w", err)
	}
	return m, nil
}

// countPeppers counts the tokens that hold, by the pepper that they need. Those whose pepper is gone are "none".
func (m *metrics) countPeppers(all []*entry, p *peppers) {
	count := map[string]int{"none": 0}
	for version := range p.byVersion {
		count[strconv.Itoa(version)] = 0
	}
	now := time.Now().Unix()
	for _, e := range all {
		switch version := e.verifier.Load().pepper; {
		case e.state(now) != "":
		case p.byVersion[version] == nil:
			count["none"]++
		default:
			count[strconv.Itoa(version)]++
		}
	}
	for version, n := range count {
		m.peppers.WithLabelValues(version).Set(float64(n))
	}
}

func (m *metrics) count(method string, err *Error) {
	var code Code
	if err != nil {
		code = err.Code
	}
	if c, ok := m.auth[method][code]; ok {
		c.Inc()
	}
}
