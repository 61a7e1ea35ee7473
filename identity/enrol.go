package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"
)

// codeLife is how long an enrolment code can be used, once.
const codeLife = 15 * time.Minute

// A signer is the local authority that signs for devices.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// loadSigner reads the authority of enrolment, or nothing where none is configured.
func loadSigner(cfg Enrolment) (*signer, error) {
	if cfg.CACert == "" {
		return nil, nil //nolint:nilnil // no authority, and nothing wrong with that
	}
	pair, err := tls.LoadX509KeyPair(cfg.CACert, cfg.CAKey)
	if err != nil {
		return nil, fmt.Errorf("reading the authority of enrolment: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("reading the authority of enrolment: %s is no authority with a key that signs", cfg.CACert)
	}
	return &signer{pair.Leaf, key}, nil
}

// An enrolmentCode lets one device enrol itself once.
type enrolmentCode struct {
	digest  string
	device  LocalDevice
	expires time.Time
}

// An EnrolmentCode is a code as whoever made it is shown it, this once.
type EnrolmentCode struct {
	Code    string    `json:"code"`
	Device  string    `json:"device"`
	Expires time.Time `json:"expires"`
}

// CheckEnrolment tells whether a code can be made for a device: there is an authority here, the device is not stopped,
// and somebody will own it. An empty id is filled in. Errors are *Error RequestInvalid.
func (s *Service) CheckEnrolment(d LocalDevice) (LocalDevice, error) {
	if d.ID == "" {
		d.ID = strings.ToLower(rand.Text()[:16])
	}
	if err := s.CheckDevice(d.ID); err != nil {
		return d, err
	}
	switch l, known := s.devices.view.Load().local[d.ID]; {
	case s.devices.signer == nil:
		return d, refuse(RequestInvalid, "enrolling device: no authority signs here; set identity.devices.enrolment, or let your own authority sign")
	case known && l.State != DeviceEnrolled:
		return d, refuse(RequestInvalid, "enrolling device %s: it is %s; unblock it first", d.ID, l.State)
	case d.Owner == "" && !d.Shared:
		return d, refuse(RequestInvalid, "enrolling device %s: it has no owner and is not shared", d.ID)
	}
	return d, nil
}

// MakeEnrolmentCode stores a code for a device that CheckEnrolment let pass. It can be used once within 15 minutes.
func (s *Service) MakeEnrolmentCode(ctx context.Context, d LocalDevice) (EnrolmentCode, error) {
	d, err := s.CheckEnrolment(d)
	if err != nil {
		return EnrolmentCode{}, err
	}
	text := rand.Text()
	c := enrolmentCode{digest: codeDigest(text), device: d, expires: time.Now().Add(codeLife).UTC().Truncate(time.Second)}
	if err := s.store.putCode(ctx, c); err != nil {
		return EnrolmentCode{}, &Error{Code: StateDown, Err: err}
	}
	return EnrolmentCode{Code: text, Device: d.ID, Expires: c.expires}, nil
}

func codeDigest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// An EnrolmentDraft is a request to enrol that may be carried out.
type EnrolmentDraft struct {
	Device LocalDevice

	digest string
	key    any
}

// errEnrol is all that whoever enrols is told: a wrong code and an old one are alike.
var errEnrol = errors.New("the code does not hold; ask for another one")

// DraftEnrolment checks a code and a certificate request, PEM, and signs nothing yet. Of the request only its key
// counts: name, usage and life are ours. Errors are *Error: RequestInvalid, CredentialInvalid, DeviceBlocked, StateDown.
func (s *Service) DraftEnrolment(ctx context.Context, code, request, platform string) (EnrolmentDraft, error) {
	if s.devices == nil || s.devices.signer == nil {
		return EnrolmentDraft{}, refuse(RequestInvalid, "enrolling device: no authority signs here")
	}
	key, spki, err := parseRequest([]byte(request))
	if err != nil {
		return EnrolmentDraft{}, refuse(RequestInvalid, "enrolling device: reading its certificate request: %w", err)
	}
	draft := EnrolmentDraft{digest: codeDigest(code), key: key}
	draft.Device, err = s.store.findCode(ctx, draft.digest, time.Now())
	if errors.Is(err, sql.ErrNoRows) {
		return EnrolmentDraft{}, &Error{Code: CredentialInvalid, Err: errEnrol}
	}
	if err != nil {
		return EnrolmentDraft{}, &Error{Code: StateDown, Err: fmt.Errorf("enrolling device: %w", err)}
	}
	draft.Device.State, draft.Device.SPKI, draft.Device.Platform = DeviceEnrolled, spki, platformOf(platform)
	p := &proof{device: Device{ID: draft.Device.ID, SPKI: spki}}
	if p.judgeStopped(s.devices.view.Load()); p.refused != nil {
		p.refused.Device = p.device
		return EnrolmentDraft{}, p.refused
	}
	return draft, nil
}

// parseRequest reads a certificate request as far as it proves a key.
func parseRequest(data []byte) (key any, spki string, err error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, "", errors.New("want one PEM block CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, "", err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(r.RawSubjectPublicKeyInfo)
	return r.PublicKey, hex.EncodeToString(sum[:]), checkPublicKey(r.PublicKey)
}

// Enrol uses the code and signs the certificate, which with its authority's is given as PEM. A code that another
// request used first is *Error CredentialInvalid.
func (s *Service) Enrol(ctx context.Context, draft EnrolmentDraft) (chain string, err error) {
	now := time.Now()
	der, serial, err := s.devices.signer.sign(draft.key, s.devices.cfg.ID+draft.Device.ID, now, s.devices.cfg.Enrolment.Life)
	if err != nil {
		return "", fmt.Errorf("enrolling device %s: %w", draft.Device.ID, err)
	}
	d := draft.Device
	d.Serial, d.Created, d.Changed = serial, now.UTC().Truncate(time.Second), now.UTC().Truncate(time.Second)
	if err := s.store.enrol(ctx, draft.digest, d, now); errors.Is(err, errCodeUsed) {
		return "", &Error{Code: CredentialInvalid, Err: errors.Join(errEnrol, err)}
	} else if err != nil {
		return "", &Error{Code: StateDown, Err: err}
	}
	s.devices.learn([]LocalDevice{d})
	return s.devices.signer.chain(der), nil
}

// chain is a certificate and its authority's, PEM.
func (a *signer) chain(der []byte) string {
	both := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return string(append(both, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...))
}

// sign makes a client's certificate with one name.
func (a *signer) sign(key any, name string, now time.Time, life time.Duration) (der []byte, serial string, err error) {
	uri, err := url.Parse(name)
	if err != nil {
		return nil, "", err
	}
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, "", fmt.Errorf("making a serial number: %w", err)
	}
	until := now.Add(life)
	if a.cert.NotAfter.Before(until) {
		until = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: name[strings.LastIndexAny(name, "/:")+1:]},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: until, URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	der, err = x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	return der, serialText(number), err
}
