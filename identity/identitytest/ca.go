package identitytest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// A CA signs certificates of devices, rightly or as Leaf says.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer

	parents []*CA // this one's, up to the root
	number  atomic.Int64
}

// A Leaf is a certificate to be made. The zero value but for URI is a good one for an hour.
type Leaf struct {
	URIs     []string
	Subject  pkix.Name
	Serial   *big.Int // nil: the CA's next
	Usage    []x509.ExtKeyUsage
	NoUsage  bool // no extended key usage at all, else clientAuth where Usage is empty
	From     time.Time
	Until    time.Time
	IsCA     bool
	Key      crypto.Signer // nil: a new P-256 key
	SKI      []byte
	CRLURL   string
	AIAURL   string
	RawNames []byte // the value of the subjectAltName extension instead of URIs
}

// NewCA makes a root.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	return newCA(t, name, nil)
}

// Intermediate makes an authority below this one.
func (a *CA) Intermediate(t testing.TB, name string) *CA {
	t.Helper()
	return newCA(t, name, a)
}

func newCA(t testing.TB, name string, parent *CA) *CA {
	t.Helper()
	key := NewECKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &CA{Key: key}
	issuer, signer := template, crypto.Signer(key)
	if parent != nil {
		template.SerialNumber = big.NewInt(1000 + parent.number.Add(1))
		issuer, signer = parent.Cert, parent.Key
		a.parents = append([]*CA{parent}, parent.parents...)
	}
	a.Cert = sign(t, template, issuer, key.Public(), signer)
	return a
}

// NewECKey makes a P-256 key.
func NewECKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, issuer *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Issue makes a certificate with the authorities above it, but for the root, as a client presents it.
func (a *CA) Issue(t testing.TB, l Leaf) tls.Certificate {
	t.Helper()
	key := l.Key
	if key == nil {
		key = NewECKey(t)
	}
	serial := l.Serial
	if serial == nil {
		serial = big.NewInt(1000 + a.number.Add(1))
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: l.Subject, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.Usage, BasicConstraintsValid: true, IsCA: l.IsCA, SubjectKeyId: l.SKI,
	}
	if len(l.Usage) == 0 && !l.NoUsage {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	if !l.From.IsZero() {
		template.NotBefore = l.From
	}
	if !l.Until.IsZero() {
		template.NotAfter = l.Until
	}
	if l.IsCA {
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	if l.CRLURL != "" {
		template.CRLDistributionPoints = []string{l.CRLURL}
	}
	if l.AIAURL != "" {
		template.IssuingCertificateURL, template.OCSPServer = []string{l.AIAURL}, []string{l.AIAURL}
	}
	names := l.RawNames
	if names == nil && len(l.URIs) > 0 {
		names = RawURIs(t, l.URIs...)
	}
	if names != nil { // as bytes: package url would tidy up what an attacker writes
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.Key)
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, up := range append([]*CA{a}, a.parents...) {
		if !bytes.Equal(up.Cert.RawIssuer, up.Cert.RawSubject) {
			pair.Certificate = append(pair.Certificate, up.Cert.Raw)
		}
	}
	pair.Leaf, _ = x509.ParseCertificate(der) // nil where the names are such that nobody reads them
	return pair
}

// RawURIs is the value of a subjectAltName extension with these URIs, whatever bytes they hold.
func RawURIs(t testing.TB, uris ...string) []byte {
	t.Helper()
	var names []asn1.RawValue
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A List is a revocation list to be made. The zero value revokes nothing and holds for an hour.
type List struct {
	Revoked []*big.Int
	Number  int64
	From    time.Time
	Until   time.Time
	Delta   bool
	Key     crypto.Signer // nil: the CA's own; another one signs wrongly
}

// CRL makes a revocation list, PEM.
func (a *CA) CRL(t testing.TB, l List) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(l.Number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	if !l.From.IsZero() {
		template.ThisUpdate = l.From
	}
	if !l.Until.IsZero() {
		template.NextUpdate = l.Until
	}
	for _, serial := range l.Revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	if l.Delta {
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
	}
	issuer, key := a.Cert, a.Key
	if l.Key != nil {
		other := *a.Cert
		other.PublicKey = l.Key.Public()
		issuer, key = &other, l.Key
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// PEM is the authority's certificate.
func (a *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw})
}

// KeyPEM is the authority's key.
func (a *CA) KeyPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(a.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// SPKI is the SHA-256 of a certificate's key, hex.
func SPKI(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Resign rewrites the ECDSA signature of a certificate as its other form, s to n−s: other bytes, which verify as well.
func Resign(t testing.TB, cert tls.Certificate) tls.Certificate {
	t.Helper()
	var outer struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.Certificate[0], &outer); err != nil {
		t.Fatal(err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(outer.Signature.Bytes, &sig); err != nil {
		t.Fatal(err)
	}
	sig.S.Sub(elliptic.P256().Params().N, sig.S)
	raw, err := asn1.Marshal(sig)
	if err != nil {
		t.Fatal(err)
	}
	outer.Signature = asn1.BitString{Bytes: raw, BitLength: 8 * len(raw)}
	der, err := asn1.Marshal(outer)
	if err != nil {
		t.Fatal(err)
	}
	out := cert
	out.Certificate = append([][]byte{der}, cert.Certificate[1:]...)
	if out.Leaf, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return out
}

// WriteFile writes a file of a test and gives its name. It is replaced whole.
func WriteFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	next := name + ".next"
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, name); err != nil {
		t.Fatal(err)
	}
	return name
}

// ClientCert is a certificate as a balancer forwards it (RFC 9440).
func ClientCert(c tls.Certificate) string {
	return ":" + base64.StdEncoding.EncodeToString(c.Certificate[0]) + ":"
}

// Balancer ends TLS in front of a gateway and forwards the certificate of each client in Client-Cert, in place of any
// that the client sent. It speaks to target with its own certificate.
func Balancer(t testing.TB, target string, own tls.Certificate, roots *x509.CertPool) *httptest.Server {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13, ServerName: "localhost"}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Client-Cert")
			if len(r.In.TLS.PeerCertificates) > 0 {
				r.Out.Header.Set("Client-Cert", ":"+base64.StdEncoding.EncodeToString(r.In.TLS.PeerCertificates[0].Raw)+":")
			}
		},
	}
	srv := httptest.NewUnstartedServer(proxy)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}
