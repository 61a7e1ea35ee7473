package identity

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

const (
	// renewShare is the part of its life, at the end, in which a certificate may be renewed: one in so many.
	renewShare = 3
	// formerGrace is how long the certificate from before still proves the device: answers get lost, and connections live
	// for up to ten minutes.
	formerGrace = time.Hour
	// maxFormer is how many former keys are kept, and formerLife how long: no token lives longer.
	maxFormer  = 16
	formerLife = 90 * 24 * time.Hour
)

// A FormerKey is one that a device had before it renewed its certificate. Until then it proves the device; a token that
// is bound to it stays the device's for as long as it lives.
type FormerKey struct {
	SPKI  string    `json:"spki"` // SHA-256, hex
	Until time.Time `json:"until"`
}

// RenewFrom is from when on a certificate may be renewed without being forced.
func RenewFrom(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / renewShare)
}

// A RenewalDraft is a renewal that may be carried out.
type RenewalDraft struct {
	Device LocalDevice // as it will be, without the serial number

	from string // the key that the database must still have
	key  any
}

// DraftRenewal checks whether the device behind a request may have its certificate renewed for the key of a certificate
// request, PEM, and signs nothing yet. The device is the one that the connection proves: a request that names another
// one is refused. early renews before the last third of the certificate's life. Errors are *Error: DeviceRequired,
// RequestInvalid, Locked, and whatever refuses the device.
func (s *Service) DraftRenewal(r *http.Request, request string, early bool) (RenewalDraft, error) {
	p := s.proveDevice(r)
	if p == nil {
		return RenewalDraft{}, refuse(DeviceRequired, "renewing certificate: it is done over mTLS, with the present certificate")
	}
	draft, err := s.draftRenewal(p, request, early, time.Now())
	if err != nil {
		p.device.Checks = p.checks()
		err.Device = p.device
		return RenewalDraft{}, err
	}
	return draft, nil
}

func (s *Service) draftRenewal(p *proof, request string, early bool, now time.Time) (RenewalDraft, *Error) {
	if p.refused != nil {
		return RenewalDraft{}, p.refused
	}
	local, err := s.renewable(p)
	if err != nil {
		return RenewalDraft{}, err
	}
	key, spki, perr := parseRenewal([]byte(request), s.devices.cfg.ID+local.ID, local.ID)
	if perr != nil {
		return RenewalDraft{}, refuse(RequestInvalid, "renewing certificate of device %s: reading its request: %w", local.ID, perr)
	}
	lost := spki == local.SPKI && p.device.SPKI != spki // the answer to the same request got lost
	switch {
	case !lost && p.device.SPKI != local.SPKI:
		return RenewalDraft{}, refuse(DeviceMismatch, "renewing certificate of device %s: it was renewed already, for another key", local.ID)
	case !lost && (spki == local.SPKI || local.had(spki)):
		return RenewalDraft{}, refuse(RequestInvalid, "renewing certificate of device %s: want a new key", local.ID)
	case !lost && !early && now.Before(RenewFrom(p.chain.leaf)):
		return RenewalDraft{}, refuse(RequestInvalid, "renewing certificate of device %s: it is not time before %s, unless it is forced",
			local.ID, RenewFrom(p.chain.leaf).UTC().Format(time.RFC3339))
	}
	draft := RenewalDraft{Device: local, from: local.SPKI, key: key}
	if !lost {
		draft.Device = local.renewed(spki, now)
	}
	fresh := &proof{device: Device{ID: local.ID, SPKI: spki}}
	if fresh.judgeStopped(s.devices.view.Load()); fresh.refused != nil {
		return RenewalDraft{}, fresh.refused
	}
	return draft, nil
}

// renewable gives the device behind a proof, if its certificate is ours to renew and nobody stopped it or its owner.
func (s *Service) renewable(p *proof) (LocalDevice, *Error) {
	local, known := s.devices.view.Load().local[p.device.ID]
	switch {
	case s.devices.signer == nil || p.device.Issuer != enrolmentIssuer:
		return local, refuse(RequestInvalid, "renewing certificate of device %s: no authority here signed it", p.device.ID)
	case !known || local.SPKI == "" || p.row.id == "":
		return local, refuse(DeviceUnknown, "renewing certificate of device %s: it was not enrolled here", p.device.ID)
	case p.row.serial != "" || p.row.spki != local.SPKI && p.row.spki != "":
		return local, refuse(RequestInvalid, "renewing certificate of device %s: the inventory holds it to its present one", p.device.ID)
	}
	return local, s.unlocked(Principal{Subject: Subject{ID: p.row.owner, Issuer: p.row.ownerIssuer}, Device: p.device})
}

// parseRenewal reads a certificate request, which names the device as its certificate does, or nobody.
func parseRenewal(data []byte, uri, name string) (key any, spki string, err error) {
	key, spki, err = parseRequest(data)
	if err != nil {
		return nil, "", err
	}
	block, _ := pem.Decode(data)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, "", err
	}
	other := len(r.DNSNames)+len(r.EmailAddresses)+len(r.IPAddresses) > 0 || len(r.URIs) > 1 ||
		r.Subject.CommonName != "" && r.Subject.CommonName != name || len(r.URIs) == 1 && r.URIs[0].String() != uri
	if other {
		return nil, "", fmt.Errorf("it names another than %s", uri)
	}
	return key, spki, nil
}

// had tells whether a key is a former one of the device.
func (l LocalDevice) had(spki string) bool {
	return slices.ContainsFunc(l.Former, func(f FormerKey) bool { return f.SPKI == spki })
}

// renewed is the device with another key. What is too old to matter is forgotten, and of too many the oldest.
func (l LocalDevice) renewed(spki string, now time.Time) LocalDevice {
	former := slices.DeleteFunc(slices.Clone(l.Former), func(f FormerKey) bool { return now.Sub(f.Until) > formerLife })
	former = append(former, FormerKey{SPKI: l.SPKI, Until: now.Add(formerGrace).UTC().Truncate(time.Second)})
	l.Former, l.SPKI = former[max(0, len(former)-maxFormer):], spki
	return l
}

// errRenewedMeanwhile is a device that is not what the draft was made for.
var errRenewedMeanwhile = errors.New("the device was renewed, stopped or enrolled anew meanwhile")

// Renew signs the certificate, which with its authority's is given as PEM. A device that changed since the draft is
// *Error DeviceMismatch.
func (s *Service) Renew(ctx context.Context, draft RenewalDraft) (chain string, err error) {
	now := time.Now()
	d := draft.Device
	der, serial, err := s.devices.signer.sign(draft.key, s.devices.cfg.ID+d.ID, now, s.devices.cfg.Enrolment.Life)
	if err != nil {
		return "", fmt.Errorf("renewing certificate of device %s: %w", d.ID, err)
	}
	d.Serial, d.Changed = serial, now.UTC().Truncate(time.Second)
	if err := s.store.renew(ctx, d, draft.from); errors.Is(err, errRenewedMeanwhile) {
		return "", &Error{Code: DeviceMismatch, Err: fmt.Errorf("renewing certificate of device %s: %w", d.ID, err)}
	} else if err != nil {
		return "", &Error{Code: StateDown, Err: err}
	}
	s.devices.learn([]LocalDevice{d})
	return s.devices.signer.chain(der), nil
}

// renew writes a device if its key is still the one from before, and nobody stopped it or its new key.
func (s *store) renew(ctx context.Context, d LocalDevice, from string) error {
	return s.change(ctx, func(tx *sql.Tx, at int64) error {
		var same, stopped int
		if err := tx.QueryRowContext(ctx, `SELECT count(CASE WHEN id = $1 AND spki = $2 AND state = 'enrolled' THEN 1 END),
			count(CASE WHEN spki = $3 AND state IN ('blocked', 'deleted') THEN 1 END) FROM identity_devices`, d.ID, from, d.SPKI).Scan(&same, &stopped); err != nil {
			return fmt.Errorf("looking up device %s: %w", d.ID, err)
		}
		if same != 1 || stopped > 0 {
			return errRenewedMeanwhile
		}
		return writeDevice(ctx, tx, d, at)
	})
}
