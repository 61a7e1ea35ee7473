package identity

import (
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The steps that a device passes, in this order. All are taken and noted; the first that fails is the reason.
const (
	stepChain = iota
	stepTime
	stepName
	stepRevocation
	stepInventory
	stepPosture
	stepToken
	steps
)

var stepNames = [steps]string{"chain", "time", "name", "revocation", "inventory", "posture", "token"}

// A proof is what became of each step for one request.
type proof struct {
	chain   *chain
	device  Device
	row     deviceRow // what the device was enrolled as
	results [steps]string
	refused *Error // of the first step that failed
}

// fail notes a step that failed.
func (p *proof) fail(step int, code Code, err error) {
	p.results[step] = string(code)
	if p.refused == nil {
		p.refused = &Error{Code: code, Err: fmt.Errorf("checking device: %w", err)}
	}
}

func (p *proof) note(step int, result string) {
	if p.results[step] == "" {
		p.results[step] = result
	}
}

// checks is the line that records keep of all steps.
func (p *proof) checks() string {
	var b strings.Builder
	for n, name := range stepNames {
		if n > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(name)
		b.WriteByte(':')
		if p.results[n] == "" {
			b.WriteByte('-')
		}
		b.WriteString(p.results[n])
	}
	return b.String()
}

// proveDevice looks at the device behind a request, all but its owner and its token. On the public listener there is
// none, and no header makes one.
func (s *Service) proveDevice(r *http.Request) *proof {
	if r == nil {
		return nil
	}
	c := ConnectionOf(r.Context())
	if c == nil || c.Listener == ListenerPublic || s.devices == nil {
		return nil
	}
	certs, via, err := s.devices.presented(c, r)
	if err != nil {
		p := &proof{device: unproved}
		p.fail(stepChain, err.Code, err.Err)
		return p
	}
	return s.devices.prove(c, certs, via, time.Now())
}

// presented is the chain of certificates that a request came with.
func (d *devices) presented(c *Connection, r *http.Request) (certs []*x509.Certificate, via string, err *Error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, "", refuse(DeviceRequired, "no certificate was presented")
	}
	if c.Listener == ListenerDevice {
		return r.TLS.PeerCertificates, "mtls", nil
	}
	if !d.pinned(r.TLS.PeerCertificates[0]) {
		return nil, "", refuse(CertInvalid, "the balancer's key is not pinned")
	}
	certs, err = forwarded(r.Header)
	return certs, "balancer", err
}

func (d *devices) pinned(balancer *x509.Certificate) bool {
	have := spkiOf(balancer)
	return slices.ContainsFunc(d.cfg.Balancer.SPKI, func(pin string) bool {
		return subtle.ConstantTimeCompare([]byte(strings.ToLower(pin)), []byte(have)) == 1
	})
}

// prove takes the steps for one request, all of them from one view.
func (d *devices) prove(c *Connection, certs []*x509.Certificate, via string, now time.Time) *proof {
	view := d.view.Load()
	ch := c.proved.Load()
	if !ch.holds(view.trust, certs[0], now) {
		ch = view.trust.verify(certs, now)
		c.proved.Store(ch)
	}
	p := &proof{chain: ch, device: Device{Proof: "mtls", Platform: "unknown", Serial: ch.serial, SPKI: ch.spki, Via: via}}
	p.judgeChain(now)
	if ch.pool != nil && ch.unnamed == nil {
		p.device.ID, p.device.Issuer, p.device.Ends = ch.id, ch.pool.cfg.Issuer, ch.leaf.NotAfter
		p.judgeRevocation(view, now)
		view.judgeInventory(p, now)
		view.judgePosture(p, d.cfg.Require, now)
	}
	return p
}

// judgeChain takes the steps of chain, time and name.
func (p *proof) judgeChain(now time.Time) {
	c := p.chain
	switch {
	case c.broken != nil:
		p.fail(stepChain, CertInvalid, c.broken)
	case c.expired == nil:
		p.note(stepTime, "ok")
	case now.Before(c.leaf.NotBefore):
		p.fail(stepTime, CertInvalid, fmt.Errorf("its certificate is not valid yet: %w", c.expired))
	default:
		p.fail(stepTime, CertExpired, c.expired)
	}
	if c.unnamed != nil {
		p.fail(stepName, CertInvalid, c.unnamed)
	}
	if c.pool != nil {
		p.note(stepChain, "ok")
		p.note(stepName, "ok")
	}
}

// judgeRevocation looks at what stops a device: issuer and serial number of each certificate on its way, its key, its
// id. Never at a hash of the whole certificate: an ECDSA signature can be written in two ways.
func (p *proof) judgeRevocation(view *deviceView, now time.Time) {
	p.judgeStopped(view)
	for _, l := range p.chain.links {
		switch {
		case l.list == nil && l.must:
			p.fail(stepRevocation, CRLStale, errors.New("its authority has no revocation list here"))
		case l.list == nil:
		case l.list.revoked[l.serial]:
			p.fail(stepRevocation, DeviceRevoked, fmt.Errorf("certificate %x is revoked", l.serial))
		case !l.list.fresh(now):
			p.fail(stepRevocation, CRLStale, fmt.Errorf("the revocation list of its authority ended at %s", l.list.list.NextUpdate.Format(time.RFC3339)))
		}
	}
	p.note(stepRevocation, "ok")
}

func (p *proof) judgeStopped(view *deviceView) {
	if l, ok := view.local[p.device.ID]; ok && l.State != DeviceEnrolled {
		p.fail(stepRevocation, DeviceBlockedCode, fmt.Errorf("device %s is %s", l.ID, l.State))
		p.device.State = l.State
	} else if id, ok := view.stopped[p.device.SPKI]; ok {
		p.fail(stepRevocation, DeviceBlockedCode, fmt.Errorf("its key is that of device %s, which is stopped", id))
		p.device.State = DeviceBlocked
	}
}

// judgeInventory looks at what the device was enrolled as. Its owner is compared once the subject is known.
func (v *deviceView) judgeInventory(p *proof, now time.Time) {
	if v.inventory == nil && !v.enrols {
		p.note(stepInventory, "off")
		return
	}
	row, ok := v.enrolled(p.device.ID, now)
	switch {
	case !ok:
		p.fail(stepInventory, DeviceUnknown, fmt.Errorf("device %s is in no inventory, or that is too old", p.device.ID))
		return
	case row.state == DeviceBlocked:
		p.fail(stepInventory, DeviceBlockedCode, fmt.Errorf("device %s is blocked in the inventory", p.device.ID))
	case row.state != DeviceEnrolled:
		p.fail(stepInventory, DeviceUnknown, fmt.Errorf("device %s is not enrolled in the inventory", p.device.ID))
	case row.serial != "" && row.serial != p.device.Serial, !row.holds(p.device, now):
		p.fail(stepInventory, DeviceMismatch, fmt.Errorf("device %s was enrolled with another certificate", p.device.ID))
	}
	p.row = row
	p.device.Platform, p.device.Managed = row.platform, row.managed
	if p.device.State == "" {
		p.device.State = row.state
	}
}

// enrolled is what a device was enrolled as: by the inventory, else here.
func (v *deviceView) enrolled(id string, now time.Time) (deviceRow, bool) {
	if c := v.inventory.current(now); c != nil {
		if row, ok := c.rows[id]; ok {
			row.former = v.local[id].Former
			return row, true
		}
	}
	l, ok := v.local[id]
	if !ok || l.Serial == "" && l.SPKI == "" || !v.enrols {
		return deviceRow{}, false
	}
	return deviceRow{
		id: id, state: l.State, owner: l.Owner, ownerIssuer: l.OwnerIssuer, shared: l.Shared, spki: l.SPKI, platform: l.Platform,
		former: l.Former,
	}, true
}

// holds tells whether the key of a device is the one that it was enrolled with, or was until shortly; for what was minted
// on it before, whenever.
func (r deviceRow) holds(d Device, now time.Time) bool {
	return r.spki == "" || r.spki == d.SPKI || slices.ContainsFunc(r.former, func(f FormerKey) bool {
		return f.SPKI == d.SPKI && (d.Proof == "token" || now.Before(f.Until))
	})
}

// bound tells whether a token is bound to this device: by the key that is proved now, or by one that the device had, or
// has since.
func (p *proof) bound(b *Binding) bool {
	if b.Device != p.device.ID {
		return false
	}
	return b.SPKI == p.device.SPKI || p.row.id != "" && (b.SPKI == p.row.spki ||
		slices.ContainsFunc(p.row.former, func(f FormerKey) bool { return f.SPKI == b.SPKI }))
}

// ownedBy tells whether a subject may use what the device was enrolled as.
func (r deviceRow) ownedBy(s Subject, label string) bool {
	if r.shared {
		return true
	}
	have := s.ID
	if label != "" {
		have = s.Labels[label]
	}
	return r.owner != "" && r.owner == have && (r.ownerIssuer == "" || r.ownerIssuer == s.Issuer)
}

// onDevice joins a device to a principal whose credential holds. A token that is bound to a device is used there; one
// of class agent, which lives for minutes, may also be used by the go command of that device without its certificate.
func (s *Service) onDevice(p *Principal, bound *Binding, proof *proof) *Error {
	var refused *Error
	switch {
	case proof != nil:
		refused = s.join(proof, p.Subject, bound)
		p.Device = proof.device
	case bound == nil:
		return nil
	case p.Credential.Class == ClassAgent:
		p.Device, refused = s.byBinding(p.Subject, bound, time.Now())
	default:
		p.Device.ID, p.Device.SPKI, p.Device.Serial = bound.Device, bound.SPKI, bound.Serial
		refused = refuse(DeviceMismatch, "token %s is bound to device %s and was used without it", p.Credential.ID, bound.Device)
	}
	if refused != nil {
		refused.Subject, refused.Credential, refused.Device = p.Subject, p.Credential, p.Device
	}
	return refused
}

// before gives the reason that comes first where a credential does not hold: the device's, if that does not either.
func (p *proof) before(err *Error) *Error {
	p.device.Checks = p.checks()
	err.Device = p.device
	if p.refused == nil {
		return err
	}
	p.refused.Subject, p.refused.Credential, p.refused.Device = err.Subject, err.Credential, p.device
	return p.refused
}

// join closes the proof for a subject and what its credential is bound to, and rates the device; nil is no refusal.
func (s *Service) join(p *proof, sub Subject, bound *Binding) *Error {
	if known := p.row.id != ""; known && p.row.ownedBy(sub, s.devices.cfg.OwnerLabel) {
		p.note(stepInventory, "ok")
	} else if known && p.results[stepInventory] == "" {
		p.fail(stepInventory, DeviceMismatch, fmt.Errorf("device %s is not the subject's", p.device.ID))
	}
	switch {
	case bound == nil:
		p.note(stepToken, "none")
	case !p.bound(bound):
		p.fail(stepToken, DeviceMismatch, fmt.Errorf("the token is bound to device %s", bound.Device))
	default:
		p.note(stepToken, "ok")
	}
	p.device.Checks = p.checks()
	if p.refused == nil {
		p.rate(s.devices.cfg.Require)
	}
	return p.refused
}

func (p *proof) rate(require []string) {
	p.device.Tier = 1
	if p.results[stepInventory] != "ok" {
		return
	}
	p.device.Tier = 2
	met := p.results[stepPosture] == "ok"
	p.device.Trusted = met || len(require) == 0
	if met {
		p.device.Tier = 3
		if p.device.Managed {
			p.device.Tier = 4
		}
	}
}

// byBinding is the device of a token that is used away from it: what was proved when it was minted, with all that can
// have changed since. Only tokens of class agent may be used so.
func (s *Service) byBinding(sub Subject, bound *Binding, now time.Time) (Device, *Error) {
	if s.devices == nil {
		return unproved, refuse(DeviceUnknown, "checking device %s: %w", bound.Device, errNoDevices)
	}
	view := s.devices.view.Load()
	p := &proof{device: Device{
		ID: bound.Device, Proof: "token", Platform: "unknown", SPKI: bound.SPKI, Serial: bound.Serial, Via: "token",
	}}
	p.note(stepChain, "minted")
	p.judgeStopped(view)
	if view.trust.revoked(bound) {
		p.fail(stepRevocation, DeviceRevoked, fmt.Errorf("certificate %s is revoked", bound.Serial))
	}
	p.note(stepRevocation, "ok")
	view.judgeInventory(p, now)
	view.judgePosture(p, s.devices.cfg.Require, now)
	refused := s.join(p, sub, bound)
	return p.device, refused
}

// revoked tells whether any list of a pool's authorities names the certificate that a token was minted with.
func (t *trust) revoked(b *Binding) bool {
	raw, err := hex.DecodeString(evenHex(b.Serial))
	if err != nil {
		return true
	}
	for _, p := range t.pools {
		for _, authority := range p.authorities {
			if list := t.listOf(authority); p.cfg.Issuer == b.Issuer && list != nil && list.revoked[string(raw)] {
				return true
			}
		}
	}
	return false
}

func evenHex(s string) string {
	if len(s)%2 == 1 {
		return "0" + s
	}
	return s
}

// VerifyConnection judges a certificate during the handshake of the device listener. The verdict is counted; it is an
// error only where that is configured, since an answer says more than an alert. Every request is judged again.
func (s *Service) VerifyConnection(cs tls.ConnectionState) error {
	p := s.devices.prove(&Connection{}, cs.PeerCertificates, "mtls", time.Now())
	var code Code
	if p.refused != nil {
		code = p.refused.Code
	}
	if c, ok := s.devices.metrics.handshakes[code]; ok {
		c.Inc()
	}
	if p.refused != nil && s.cfg.Devices.RejectInHandshake {
		return p.refused
	}
	return nil
}

// VerifyBalancer refuses whoever does not prove a pinned key, during the handshake of the balancer's listener.
func (s *Service) VerifyBalancer(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 || !s.devices.pinned(cs.PeerCertificates[0]) {
		return refuse(CertInvalid, "accepting balancer: its key is not pinned")
	}
	return nil
}
