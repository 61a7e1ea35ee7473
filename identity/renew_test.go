package identity_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// A workshop is a yard whose gateway signs for devices; laptop is one of alice's, enrolled for ninety minutes.
type workshop struct {
	*yard
	local  *identitytest.CA
	key    any // the laptop's
	laptop tls.Certificate
}

func newWorkshop(t testing.TB, edit ...func(*yard, *identity.Devices)) *workshop {
	t.Helper()
	w := &workshop{local: identitytest.NewCA(t, "local")}
	w.yard = newYard(t, append([]func(*yard, *identity.Devices){func(y *yard, d *identity.Devices) {
		d.Inventory = identity.Feed{}
		d.Enrolment = identity.Enrolment{
			CACert: y.write(t, "local.pem", string(w.local.PEM())), CAKey: y.write(t, "local-key.pem", string(w.local.KeyPEM(t))), Life: 85 * time.Minute,
		}
	}}, edit...)...)
	w.key, w.laptop = w.enrol(t, "laptop")
	return w
}

func (w *workshop) enrol(t testing.TB, id string) (key any, cert tls.Certificate) {
	t.Helper()
	c, err := w.MakeEnrolmentCode(t.Context(), identity.LocalDevice{ID: id, Owner: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	key = identitytest.NewECKey(t)
	draft, err := w.DraftEnrolment(t.Context(), c.Code, csr(t, key), "linux")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.Enrol(t.Context(), draft)
	if err != nil {
		t.Fatal(err)
	}
	return key, leafOf(t, chain)
}

func leafOf(t testing.TB, chain string) tls.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Leaf: leaf}
}

// renew asks with a certificate for another one.
func (w *workshop) renew(t testing.TB, with tls.Certificate, request string, early bool) (tls.Certificate, error) {
	t.Helper()
	draft, err := w.DraftRenewal(on(with, ""), request, early)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := w.Renew(t.Context(), draft)
	if err != nil {
		return tls.Certificate{}, err
	}
	return leafOf(t, chain), nil
}

// named is a certificate request that claims names.
func named(t testing.TB, template x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, identitytest.NewECKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestRenewal(t *testing.T) { synctest.Test(t, renewal) }

func renewal(t *testing.T) {
	w := newWorkshop(t)
	_, login := person(t, w.Service)
	by, err := w.Authenticate(on(w.laptop, "Bearer "+login))
	if err != nil {
		t.Fatal(err)
	}
	_, bound := mint(t, w.Service, identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: modules("example.com/a")})
	_, short := mint(t, w.Service, identity.TokenRequest{By: &by, Class: identity.ClassAgent, Scope: modules("example.com/a"), Life: time.Hour})
	next := identitytest.NewECKey(t)
	time.Sleep(54 * time.Minute) // of 85, and 5 before it began
	_, err = w.renew(t, w.laptop, csr(t, next), false)
	wantCode(t, "before the last third", err, identity.RequestInvalid)
	time.Sleep(2 * time.Minute)
	renewed, err := w.renew(t, w.laptop, csr(t, next), false)
	if err != nil {
		t.Fatal(err)
	}
	if got := renewed.Leaf; len(got.URIs) != 1 || got.URIs[0].String() != spiffe+"laptop" || got.IsCA || time.Until(got.NotAfter) > 85*time.Minute {
		t.Errorf("renewed for %v until %s, authority %t", got.URIs, got.NotAfter, got.IsCA)
	}
	for what, cert := range map[string]tls.Certificate{"the new certificate": renewed, "the old one, for an hour": w.laptop} {
		p, err := w.Authenticate(on(cert, "Bearer "+bound))
		if wantCode(t, what, err, ""); p.Device.ID != "laptop" || p.Device.Tier != 2 || p.Subject.ID != "alice" {
			t.Errorf("%s: %+v", what, p.Device)
		}
	}
	if p, err := bearer(w.Service, short); err != nil || p.Device.ID != "laptop" {
		t.Errorf("a short token from before, away from the device: %v, %+v", err, p.Device)
	}
	again, err := w.renew(t, w.laptop, csr(t, next), false)
	if wantCode(t, "the answer got lost", err, ""); err == nil && identitytest.SPKI(again.Leaf) != identitytest.SPKI(renewed.Leaf) {
		t.Error("the same request gave another key")
	}
	_, err = w.renew(t, w.laptop, csr(t, identitytest.NewECKey(t)), true)
	wantCode(t, "the old key takes the device over", err, identity.DeviceMismatch)
	for what, key := range map[string]any{"the present key": next, "the former key": w.key} {
		_, err = w.renew(t, renewed, csr(t, key), true)
		wantCode(t, what, err, identity.RequestInvalid)
	}
	third, err := w.renew(t, renewed, csr(t, identitytest.NewECKey(t)), true)
	wantCode(t, "forced", err, "")
	_, err = w.Authenticate(on(third, "Bearer "+bound))
	wantCode(t, "a token of two keys ago", err, "")
	time.Sleep(61 * time.Minute)
	_, err = w.Authenticate(on(renewed, "Bearer "+bound))
	wantCode(t, "a former certificate after its hour", err, identity.DeviceMismatch)
	_, err = w.renew(t, renewed, csr(t, next), true)
	wantCode(t, "renewing with it", err, identity.DeviceMismatch)
	time.Sleep(30 * time.Minute)
	_, err = w.renew(t, third, csr(t, identitytest.NewECKey(t)), true)
	wantCode(t, "an expired certificate", err, identity.CertExpired)
}

func TestRenewalNamesTheDevice(t *testing.T) {
	w := newWorkshop(t)
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	for name, tt := range map[string]struct {
		request x509.CertificateRequest
		want    identity.Code
	}{
		"another device":         {x509.CertificateRequest{URIs: uri(spiffe + "server")}, identity.RequestInvalid},
		"beside itself another":  {x509.CertificateRequest{URIs: append(uri(spiffe+"laptop"), uri(spiffe+"server")...)}, identity.RequestInvalid},
		"another common name":    {x509.CertificateRequest{Subject: pkix.Name{CommonName: "server"}}, identity.RequestInvalid},
		"a host":                 {x509.CertificateRequest{DNSNames: []string{"go.corp.example"}}, identity.RequestInvalid},
		"an address":             {x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}, identity.RequestInvalid},
		"a mailbox":              {x509.CertificateRequest{EmailAddresses: []string{"alice@corp.example"}}, identity.RequestInvalid},
		"itself, in full":        {x509.CertificateRequest{URIs: uri(spiffe + "laptop"), Subject: pkix.Name{CommonName: "laptop"}}, ""},
		"another trust domain's": {x509.CertificateRequest{URIs: uri("spiffe://evil.example/device/laptop")}, identity.RequestInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.DraftRenewal(on(w.laptop, ""), named(t, tt.request), true)
			wantCode(t, "DraftRenewal", err, tt.want)
		})
	}
	for what, request := range map[string]string{"no request": "", "garbage": "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"} {
		_, err := w.DraftRenewal(on(w.laptop, ""), request, true)
		wantCode(t, what, err, identity.RequestInvalid)
	}
}

func TestRenewalIsRefused(t *testing.T) {
	stranger := identitytest.NewCA(t, "stranger")
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, w *workshop) tls.Certificate // gives what is presented
		want    identity.Code
	}{
		"T68 blocked": {func(t *testing.T, w *workshop) tls.Certificate {
			if _, err := w.BlockDevice(t.Context(), "laptop", "stolen"); err != nil {
				t.Fatal(err)
			}
			return w.laptop
		}, identity.DeviceBlockedCode},
		"T68 deleted": {func(t *testing.T, w *workshop) tls.Certificate {
			if _, err := w.DeleteDevice(t.Context(), "laptop"); err != nil {
				t.Fatal(err)
			}
			return w.laptop
		}, identity.DeviceBlockedCode},
		"the device is locked": {func(t *testing.T, w *workshop) tls.Certificate {
			lock(t, w.Service, identity.LockDevice, "laptop")
			return w.laptop
		}, identity.Locked},
		"its owner is locked": {func(t *testing.T, w *workshop) tls.Certificate {
			lock(t, w.Service, identity.LockUser, "alice")
			return w.laptop
		}, identity.Locked},
		"its certificate is revoked": {func(t *testing.T, w *workshop) tls.Certificate {
			w.write(t, "local.crl", string(w.local.CRL(t, identitytest.List{Revoked: []*big.Int{w.laptop.Leaf.SerialNumber}, Number: 2})))
			w.RefreshDevices(t.Context())
			return w.laptop
		}, identity.DeviceRevoked},
		"an id that nobody enrolled": {func(t *testing.T, w *workshop) tls.Certificate {
			return w.local.Issue(t, identitytest.Leaf{URIs: []string{spiffe + "ghost"}})
		}, identity.DeviceUnknown},
		"an authority of nobody": {func(t *testing.T, _ *workshop) tls.Certificate {
			return stranger.Issue(t, identitytest.Leaf{URIs: []string{spiffe + "laptop"}})
		}, identity.CertInvalid},
		"another key under its id": {func(t *testing.T, w *workshop) tls.Certificate {
			return w.local.Issue(t, identitytest.Leaf{URIs: []string{spiffe + "laptop"}})
		}, identity.DeviceMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkshop(t, func(y *yard, d *identity.Devices) {
				d.CRL = []string{y.write(t, "local.crl", "")}
			})
			cert := tt.prepare(t, w)
			_, err := w.DraftRenewal(on(cert, ""), csr(t, identitytest.NewECKey(t)), true)
			wantCode(t, "DraftRenewal", err, tt.want)
		})
	}
	w := newWorkshop(t)
	theirs := w.ca.Issue(t, identitytest.Leaf{URIs: []string{spiffe + "laptop"}, Key: w.key.(*ecdsa.PrivateKey)})
	_, err := w.DraftRenewal(on(theirs, ""), csr(t, identitytest.NewECKey(t)), true)
	wantCode(t, "another authority's certificate for the same key", err, identity.RequestInvalid)
	_, err = w.DraftRenewal(request(""), csr(t, identitytest.NewECKey(t)), true)
	wantCode(t, "on the public listener", err, identity.DeviceRequired)
	forged := request("")
	forged.Header.Set("Client-Cert", "x")
	_, err = w.DraftRenewal(forged.WithContext(identity.WithConnection(forged.Context(), identity.ListenerDevice)), csr(t, identitytest.NewECKey(t)), true)
	wantCode(t, "without a certificate", err, identity.DeviceRequired)
	t.Run("the key of a stopped device, also a former one", func(t *testing.T) {
		key, other := w.enrol(t, "other")
		next := identitytest.NewECKey(t)
		if _, err := w.renew(t, other, csr(t, next), true); err != nil {
			t.Fatal(err)
		}
		if _, err := w.BlockDevice(t.Context(), "other", ""); err != nil {
			t.Fatal(err)
		}
		for _, k := range []any{key, next} {
			_, err = w.renew(t, w.laptop, csr(t, k), true)
			wantCode(t, "DraftRenewal", err, identity.DeviceBlockedCode)
		}
	})
}

// TestRenewalRaces changes the device between draft and signature.
func TestRenewalRaces(t *testing.T) {
	for name, meanwhile := range map[string]func(t *testing.T, w *workshop) error{
		"T68 blocked": func(t *testing.T, w *workshop) error {
			t.Helper()
			_, err := w.BlockDevice(t.Context(), "laptop", "")
			return err
		},
		"renewed for another key": func(t *testing.T, w *workshop) error {
			t.Helper()
			_, err := w.renew(t, w.laptop, csr(t, identitytest.NewECKey(t)), true)
			return err
		},
		"enrolled anew": func(t *testing.T, w *workshop) error { t.Helper(); w.enrol(t, "laptop"); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkshop(t)
			draft, err := w.DraftRenewal(on(w.laptop, ""), csr(t, identitytest.NewECKey(t)), true)
			if err != nil {
				t.Fatal(err)
			}
			if err := meanwhile(t, w); err != nil {
				t.Fatal(err)
			}
			_, err = w.Renew(t.Context(), draft)
			wantCode(t, "Renew", err, identity.DeviceMismatch)
		})
	}
}

// TestRenewalInAFleet renews on one node: the other, and one that starts later, know old and new certificate and the tokens
// of both.
func TestRenewalInAFleet(t *testing.T) {
	local, dir := identitytest.NewCA(t, "local"), t.TempDir()
	cfg := identity.Config{Devices: identity.Devices{Listen: "127.0.0.1:0", ID: spiffe, Enrolment: identity.Enrolment{
		CACert: identitytest.WriteFile(t, dir+"/ca.pem", local.PEM()), CAKey: identitytest.WriteFile(t, dir+"/key.pem", local.KeyPEM(t)),
	}}}
	db, keys, wake := statetest.OpenDB(t), t.TempDir(), make(chan struct{})
	w := &workshop{yard: &yard{Service: reopen(t, cfg, db, keys)}}
	b, err := identity.Open(t.Context(), cfg, identity.Options{DB: db, Keys: keys, Wake: wake, HTTPClient: http.DefaultClient})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, old := w.enrol(t, "laptop")
	_, login := person(t, w.Service)
	by, err := w.Authenticate(on(old, "Bearer "+login))
	if err != nil {
		t.Fatal(err)
	}
	_, bound := mint(t, w.Service, identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: modules("example.com/a")})
	renewed, err := w.renew(t, old, csr(t, identitytest.NewECKey(t)), true)
	if err != nil {
		t.Fatal(err)
	}
	wake <- struct{}{}
	wake <- struct{}{}
	for what, s := range map[string]*identity.Service{"the other node": b, "one that starts later": reopen(t, cfg, db, keys)} {
		for _, cert := range []tls.Certificate{old, renewed} {
			_, err := s.Authenticate(on(cert, "Bearer "+bound))
			wantCode(t, what, err, "")
		}
		r, err := s.Device("laptop")
		if err != nil || len(r.Former) != 1 || r.Former[0].SPKI != identitytest.SPKI(old.Leaf) {
			t.Error(errors.Join(err, errors.New(what+" does not know the former key")))
		}
	}
}
