package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

func TestCertificatesThatDoNotHold(t *testing.T) {
	f := newFleet(t)
	enrolled := f.corp.Issue(t, device("d1"))
	f.inventory(t, "d1,ann,"+enrolled.Leaf.SerialNumber.Text(16)+","+identitytest.SPKI(enrolled.Leaf), "d2,ann", "d3,bob", "shared,,,,linux,true,true")
	f.reload()
	f.wantServed(t, f.get(t, f.client(t, enrolled)))
	evil := identitytest.NewCA(t, "corp") // by name
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	leaf := func(edit func(*identitytest.Leaf)) tls.Certificate {
		l := device("d2")
		edit(&l)
		return f.corp.Issue(t, l)
	}
	uris := func(u ...string) tls.Certificate { return leaf(func(l *identitytest.Leaf) { l.URIs = u }) }
	below := &identitytest.CA{Cert: f.corp.Issue(t, device("d2")).Leaf, Key: identitytest.NewECKey(t)}
	signer := leaf(func(l *identitytest.Leaf) { l.Key = below.Key })
	below.Cert = signer.Leaf
	byLeaf := below.Issue(t, device("d2"))
	byLeaf.Certificate = append(byLeaf.Certificate, signer.Certificate[0])
	self := identitytest.NewECKey(t)
	selfCA := &identitytest.CA{Cert: &x509.Certificate{Subject: enrolled.Leaf.Subject, PublicKey: self.Public(), RawSubject: enrolled.Leaf.RawSubject, RawIssuer: enrolled.Leaf.RawSubject}, Key: self}
	mixed := evil.Issue(t, device("d2"))
	mixed.Certificate = append(mixed.Certificate[:1], enrolled.Certificate[0])
	deep := f.corp.Intermediate(t, "one").Intermediate(t, "two")
	tests := []struct {
		name  string
		cert  tls.Certificate
		code  string
		alert bool // crypto/tls refuses it before we can
	}{
		{"T8 of another authority", identitytest.NewCA(t, "public").Issue(t, device("d2")), "CERT-INVALID", false},
		{"T8 of an authority with the same name", evil.Issue(t, device("d2")), "CERT-INVALID", false},
		{"T9 for servers", leaf(func(l *identitytest.Leaf) { l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "CERT-INVALID", false},
		{"T9 for nothing", leaf(func(l *identitytest.Leaf) { l.NoUsage = true }), "CERT-INVALID", false},
		{"T9 for anything", leaf(func(l *identitytest.Leaf) { l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), "CERT-INVALID", false},
		{"T10 self-signed as an enrolled device", selfCA.Issue(t, identitytest.Leaf{URIs: []string{trustDomain + "d1"}, Subject: enrolled.Leaf.Subject, Serial: enrolled.Leaf.SerialNumber, SKI: enrolled.Leaf.SubjectKeyId, Key: self}), "CERT-INVALID", false},
		{"T11 signed by a device", byLeaf, "CERT-INVALID", false},
		{"T12 the victim's certificate as second", mixed, "CERT-INVALID", false},
		{"T13 NUL", uris(trustDomain + "d2\x00.evil"), "CERT-INVALID", true},
		{"T13 two", uris(trustDomain+"d2", trustDomain+"shared"), "CERT-INVALID", false},
		{"T13 common name only", leaf(func(l *identitytest.Leaf) { l.URIs, l.Subject = nil, pkix.Name{CommonName: trustDomain + "d2"} }), "CERT-INVALID", false},
		{"T13 mixed case", uris("spiffe://Corp.example/device/d2"), "CERT-INVALID", false},
		{"T13 other script", uris("spiffe://corp.example/device/d2\u0430"), "CERT-INVALID", true},
		{"T13 below", uris(trustDomain + "d2/../shared"), "CERT-INVALID", false},
		{"T13 query", uris(trustDomain + "d2?shared"), "CERT-INVALID", false},
		{"an authority as a device", leaf(func(l *identitytest.Leaf) { l.IsCA = true }), "CERT-INVALID", false},
		{"RSA of 1024 bits", leaf(func(l *identitytest.Leaf) { l.Key = weak }), "CERT-INVALID", false},
		{"P-224", leaf(func(l *identitytest.Leaf) { l.Key = p224 }), "CERT-INVALID", true},
		{"not valid yet", leaf(func(l *identitytest.Leaf) { l.From = time.Now().Add(time.Minute) }), "CERT-INVALID", false},
		{"three authorities where two may stand", deep.Issue(t, device("d2")), "CERT-INVALID", false},
		{"another certificate than was enrolled", f.corp.Issue(t, device("d1")), "DEVICE-MISMATCH", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.upstream.Forget()
			before := len(f.records(t))
			r, err := f.do(t, f.client(t, tt.cert), f.DeviceAddress(), modFile)
			if err != nil { // the client may see the alert, or a connection that is gone
				if !tt.alert {
					t.Fatalf("%v; want an answer that can be read", err)
				}
				if len(f.records(t)) > before+1 || len(f.upstream.Requests()) > 0 {
					t.Error("it left more than the record of a refused handshake")
				}
				return
			}
			if r.StatusCode != http.StatusForbidden {
				t.Fatalf("answer %d %q", r.StatusCode, r.body)
			}
			f.wantRefused(t, tt.code, func() reply { return f.get(t, f.client(t, tt.cert)) })
		})
	}
}

func TestRevocationLists(t *testing.T) {
	f := newFleet(t)
	cert := f.corp.Issue(t, device("d1"))
	c := f.client(t, cert)
	f.wantServed(t, f.get(t, c))
	name := filepath.Join(f.files, "corp.crl")
	t.Run("T15 of another authority, which has the name", func(t *testing.T) {
		g := newFleet(t, func(f *fleet, _ *identity.Config) { f.crl(t, identitytest.List{Key: identitytest.NewECKey(t)}) })
		g.wantRefused(t, "CRL-STALE", func() reply { return g.get(t, g.client(t, g.corp.Issue(t, device("d1")))) })
		g.wantServed(t, g.get(t, g.client(t, g.lab.Issue(t, device("d1"))))) // which needs none
	})
	t.Run("T15 missing", func(t *testing.T) {
		g := newFleet(t, func(f *fleet, _ *identity.Config) { must(t, os.Remove(filepath.Join(f.files, "corp.crl"))) })
		g.wantRefused(t, "CRL-STALE", func() reply { return g.get(t, g.client(t, g.corp.Issue(t, device("d1")))) })
		if len(g.identity.DeviceStatus()) != 1 {
			t.Errorf("degraded: %v; want the missing list", g.identity.DeviceStatus())
		}
	})
	t.Run("T15 delta only", func(t *testing.T) {
		g := newFleet(t, func(f *fleet, _ *identity.Config) { f.crl(t, identitytest.List{Delta: true}) })
		g.wantRefused(t, "CRL-STALE", func() reply { return g.get(t, g.client(t, g.corp.Issue(t, device("d1")))) })
	})
	t.Run("T15 expired", func(t *testing.T) {
		f.crl(t, identitytest.List{Number: 5, From: time.Now().Add(-time.Hour), Until: time.Now().Add(-time.Minute)})
		f.reload()
		f.wantRefused(t, "CRL-STALE", func() reply { return f.get(t, c) })
	})
	t.Run("garbage and an older list leave the last good one", func(t *testing.T) {
		f.crl(t, identitytest.List{Number: 6, Revoked: []*big.Int{cert.Leaf.SerialNumber}})
		f.reload()
		for what, data := range map[string][]byte{"garbage": []byte("garbage"), "older": f.corp.CRL(t, identitytest.List{Number: 5}), "empty": nil} {
			identitytest.WriteFile(t, name, data)
			f.reload()
			f.wantRefused(t, "DEVICE-REVOKED", func() reply { return f.get(t, c) })
			if len(f.identity.DeviceStatus()) == 0 {
				t.Errorf("%s: nothing is degraded", what)
			}
		}
	})
	t.Run("T16 one serial under two authorities", func(t *testing.T) {
		l := device("d1")
		l.Serial = cert.Leaf.SerialNumber
		f.wantServed(t, f.get(t, f.client(t, f.lab.Issue(t, l))))
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return f.get(t, c) })
	})
	t.Run("T17 intermediate revoked", func(t *testing.T) {
		inter := f.corp.Intermediate(t, "below")
		both := func(l identitytest.List) []byte {
			return append(f.corp.CRL(t, l), inter.CRL(t, identitytest.List{})...)
		}
		identitytest.WriteFile(t, name, both(identitytest.List{Number: 7}))
		f.reload()
		c := f.client(t, inter.Issue(t, device("d1")))
		f.wantServed(t, f.get(t, c))
		identitytest.WriteFile(t, name, both(identitytest.List{Number: 8, Revoked: []*big.Int{inter.Cert.SerialNumber}}))
		f.reload()
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return f.get(t, c) })
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return f.get(t, f.client(t, inter.Issue(t, device("d2")))) })
	})
	t.Run("T14 signature written another way", func(t *testing.T) {
		_, err := f.identity.BlockDevice(t.Context(), "d2", "")
		must(t, err)
		again := identitytest.Resign(t, f.corp.Issue(t, device("d2")))
		must(t, again.Leaf.CheckSignatureFrom(f.corp.Cert)) // else it tests nothing
		f.wantRefused(t, "DEVICE-BLOCKED", func() reply { return f.get(t, f.client(t, again)) })
	})
	t.Run("T18 stapled answer of another certificate", func(t *testing.T) {
		stapled := f.corp.Issue(t, device("d1"))
		stapled.OCSPStaple = []byte("an answer about something else")
		f.wantServed(t, f.get(t, f.client(t, stapled)))
		f.crl(t, identitytest.List{Number: 9, Revoked: []*big.Int{stapled.Leaf.SerialNumber}})
		f.reload()
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return f.get(t, f.client(t, stapled)) })
	})
	t.Run("T21 addresses in a certificate", func(t *testing.T) {
		asked := make(chan struct{}, 1)
		trap, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		var done sync.WaitGroup
		done.Go(func() {
			if conn, err := trap.Accept(); err == nil {
				conn.Close()
				asked <- struct{}{}
			}
		})
		l := device("d1")
		l.CRLURL, l.AIAURL = "http://"+trap.Addr().String()+"/crl", "http://"+trap.Addr().String()+"/aia"
		f.wantServed(t, f.get(t, f.client(t, f.corp.Issue(t, l))))
		trap.Close()
		done.Wait()
		if len(asked) > 0 {
			t.Error("an address inside a certificate was asked")
		}
	})
}
