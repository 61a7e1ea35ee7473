package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

const (
	trustDomain = "spiffe://corp.example/device/"
	modFile     = "/example.com/hello/@v/v1.0.0.mod"
)

// A fleet is a running gateway with a listener for devices and one for a balancer, over real sockets, and two
// authorities: corp, which must have a revocation list, and lab, which need not.
type fleet struct {
	*bench
	corp, lab *identitytest.CA
	files     string
	balancer  tls.Certificate
	roots     *x509.CertPool
}

const devicesCSV = "id,owner,serial,spki,platform,managed,shared,observed_at,disk_encrypted\n"

func newFleet(t testing.TB, edit ...func(*fleet, *identity.Config)) *fleet {
	t.Helper()
	f := &fleet{corp: identitytest.NewCA(t, "corp"), lab: identitytest.NewCA(t, "lab"), files: t.TempDir()}
	f.balancer = identitytest.NewCA(t, "balancers").Issue(t, identitytest.Leaf{Subject: pkix.Name{CommonName: "balancer"}})
	f.crl(t, identitytest.List{})
	f.inventory(t, "d1,ann", "d2,ann", "d3,bob", "shared,,,,linux,true,true")
	cfg := identity.Config{Devices: identity.Devices{
		Listen: "127.0.0.1:0", ID: trustDomain, CRL: []string{filepath.Join(f.files, "corp.crl")},
		Pools: []identity.Pool{
			{Issuer: "corp", CA: identitytest.WriteFile(t, filepath.Join(f.files, "corp.pem"), f.corp.PEM()), RequiresCRL: true, Depth: 2},
			{Issuer: "lab", CA: identitytest.WriteFile(t, filepath.Join(f.files, "lab.pem"), f.lab.PEM())},
		},
		Inventory: identity.Feed{File: filepath.Join(f.files, "devices.csv")},
		Balancer:  identity.Balancer{Listen: "127.0.0.1:0", SPKI: []string{identitytest.SPKI(f.balancer.Leaf)}},
	}}
	for _, e := range edit {
		e(f, &cfg)
	}
	f.bench = newBenchOf(t, cfg, hello)
	f.run(t)
	return f
}

// run starts the listeners and stops them with the test.
func (f *fleet) run(t testing.TB) {
	t.Helper()
	f.cfg.Listen, f.cfg.Operations = "127.0.0.1:0", "127.0.0.1:0"
	must(t, f.Listen(t.Context()))
	ctx, stop := context.WithCancelCause(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := f.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(ErrAtOnce); done.Wait() })
	ca, err := os.ReadFile(f.CAFile())
	must(t, err)
	f.roots = x509.NewCertPool()
	f.roots.AppendCertsFromPEM(ca)
}

func (f *fleet) crl(t testing.TB, l identitytest.List) {
	t.Helper()
	identitytest.WriteFile(t, filepath.Join(f.files, "corp.crl"), f.corp.CRL(t, l))
}

func (f *fleet) inventory(t testing.TB, rows ...string) {
	t.Helper()
	text := devicesCSV
	for _, row := range rows {
		text += row + strings.Repeat(",", strings.Count(devicesCSV, ",")-strings.Count(row, ",")) + "\n"
	}
	identitytest.WriteFile(t, filepath.Join(f.files, "devices.csv"), []byte(text))
}

// reload looks at all files now, as the gateway does every 30 seconds.
func (f *fleet) reload() { f.identity.RefreshDevices(context.Background()) }

func device(id string) identitytest.Leaf { return identitytest.Leaf{URIs: []string{trustDomain + id}} }

// client has a connection of its own to the listeners.
func (f *fleet) client(t testing.TB, certs ...tls.Certificate) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.roots, Certificates: certs, ServerName: "localhost"}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// A reply is what a client got.
type reply struct {
	*http.Response
	body string
}

func (f *fleet) do(t testing.TB, c *http.Client, address, path string, headers ...string) (reply, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+path, nil)
	must(t, err)
	r.Host = "localhost"
	r.Header.Set("Authorization", "Bearer "+f.token)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header[name] = append(r.Header[name], value)
	}
	resp, err := c.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp, string(body)}, err
}

// get asks the device listener for a module file.
func (f *fleet) get(t testing.TB, c *http.Client, headers ...string) reply {
	t.Helper()
	r, err := f.do(t, c, f.DeviceAddress(), modFile, headers...)
	must(t, err)
	return r
}

// wantRefused makes a request and checks what every refusal must keep: its status and code, one record with the reason
// and with the id that the body shows, no request to the upstream, no secret anywhere.
func (f *fleet) wantRefused(t *testing.T, code string, ask func() reply) reply {
	t.Helper()
	before := len(f.records(t))
	f.upstream.Forget()
	r := ask()
	if r.StatusCode != http.StatusForbidden || r.Header.Get("Headgate-Code") != code {
		t.Errorf("answer %d %s %q; want 403 %s", r.StatusCode, r.Header.Get("Headgate-Code"), r.body, code)
	}
	fresh := f.records(t)[before:]
	if len(fresh) != 1 {
		t.Fatalf("%d records, want one", len(fresh))
	}
	rec := fresh[0]
	if rec.Kind != audit.KindDecision || !slices.Contains(rec.Decision.Codes, code) || rec.Decision.Effect != "deny" {
		t.Errorf("record %s %+v; want a denial with %s", rec.Kind, rec.Decision, code)
	}
	if !strings.Contains(r.body, "decision "+shortID(rec.EventID)) || !strings.HasPrefix(r.body, code+": ") {
		t.Errorf("body %q shows neither code nor id %s", r.body, shortID(rec.EventID))
	}
	if want := map[bool]int{true: 4, false: 3}[code == "DEVICE-MISMATCH"]; rec.Severity != want {
		t.Errorf("severity %d, want %d", rec.Severity, want)
	}
	if asked := f.upstream.Requests(); len(asked) > 0 {
		t.Errorf("the upstream was asked: %v", asked)
	}
	text, err := json.Marshal(rec)
	must(t, err)
	for _, where := range []string{string(text), r.body, fmt.Sprint(r.Header)} {
		if strings.Contains(where, f.token[20:]) {
			t.Errorf("the token's secret stands in %s", where)
		}
	}
	return r
}

func (f *fleet) wantServed(t *testing.T, r reply) {
	t.Helper()
	if r.StatusCode != http.StatusOK || !strings.Contains(r.body, "module example.com/hello") {
		t.Fatalf("answer %d %s %q; want the file", r.StatusCode, r.Header.Get("Headgate-Code"), r.body)
	}
}

func (f *fleet) lastRecord(t testing.TB) audit.Record {
	t.Helper()
	all := f.records(t)
	return all[len(all)-1]
}

func TestDeviceIsServed(t *testing.T) {
	f := newFleet(t, func(f *fleet, c *identity.Config) { c.Devices.Require = []string{"disk_encrypted"} })
	f.inventory(t, "d1,ann,,,macOS,true,,"+time.Now().UTC().Add(-time.Hour).Format(time.RFC3339)+",yes", "d2,ann", "d3,bob", "shared,,,,linux,true,true")
	f.reload()
	cert := f.corp.Issue(t, device("d1"))
	f.wantServed(t, f.get(t, f.client(t, cert)))
	rec := f.lastRecord(t)
	if rec.Device.ID != "d1" || rec.Device.Tier != 4 || rec.Device.Via != "mtls" || rec.Device.State != "enrolled" ||
		rec.Device.Serial != cert.Leaf.SerialNumber.Text(16) || rec.Device.SPKI != identitytest.SPKI(cert.Leaf)[:16] || rec.Device.PostureAgeS < 3599 {
		t.Errorf("record has device %+v", rec.Device)
	}
	if got, want := rec.Decision.Labels["device_checks"], "chain:ok time:ok name:ok revocation:ok inventory:ok posture:ok token:none"; got != want {
		t.Errorf("checks %q, want %q", got, want)
	}
	f.wantServed(t, f.get(t, f.client(t, f.corp.Issue(t, device("d2"))))) // its fact is unknown
	if rec := f.lastRecord(t); rec.Device.Tier != 2 || !strings.Contains(rec.Decision.Labels["device_checks"], "posture:unknown") {
		t.Errorf("device without the fact: tier %d, %s", rec.Device.Tier, rec.Decision.Labels["device_checks"])
	}
	inter := f.corp.Intermediate(t, "corp below")
	identitytest.WriteFile(t, filepath.Join(f.files, "corp.crl"), append(f.corp.CRL(t, identitytest.List{}), inter.CRL(t, identitytest.List{})...))
	f.reload()
	f.wantServed(t, f.get(t, f.client(t, inter.Issue(t, device("shared")))))
	for _, c := range []struct {
		what, code string
		cert       tls.Certificate
	}{
		{"another's device", "DEVICE-MISMATCH", f.corp.Issue(t, device("d3"))},
		{"a device in no inventory", "DEVICE-UNKNOWN", f.corp.Issue(t, device("nowhere"))},
	} {
		t.Run(c.what, func(t *testing.T) {
			f.wantRefused(t, c.code, func() reply { return f.get(t, f.client(t, c.cert)) })
		})
	}
}

func TestTicketsAndRevocation(t *testing.T) {
	f := newFleet(t)
	sessions := tls.NewLRUClientSessionCache(8)
	dial := func(address string, certs ...tls.Certificate) (*tls.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{RootCAs: f.roots, ServerName: "localhost", Certificates: certs, ClientSessionCache: sessions, NextProtos: []string{"http/1.1"}}}
		conn, err := d.DialContext(t.Context(), "tcp", address)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*tls.Conn), nil
	}
	ask := func(c *tls.Conn) reply {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", modFile, f.token)
		return readReply(t, c)
	}
	t.Run("T1 ticket of the public listener on the device listener", func(t *testing.T) {
		c, err := dial(f.publicListener.Addr().String())
		must(t, err)
		f.wantServed(t, ask(c)) // by which the ticket came
		again, err := dial(f.publicListener.Addr().String())
		must(t, err)
		if !again.ConnectionState().DidResume {
			t.Fatal("the public listener resumed nothing, so this tests nothing")
		}
		before := len(f.records(t))
		c, err = dial(f.DeviceAddress())
		if err == nil { // TLS 1.3: the client learns of the refusal with its first read
			_, err = c.Read(make([]byte, 1))
			if c.ConnectionState().DidResume {
				t.Error("the device listener resumed a session of the public one")
			}
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("a device without a certificate got %v; want an alert", err)
		}
		f.wantHandshakeRecord(t, before, "tls.device", "DEVICE-REQUIRED")
	})
	cert := f.corp.Issue(t, device("d1"))
	c, err := dial(f.DeviceAddress(), cert)
	must(t, err)
	f.wantServed(t, ask(c))
	resumed := func(t *testing.T, code string) {
		t.Helper()
		c, err := dial(f.DeviceAddress(), cert)
		must(t, err)
		f.wantRefused(t, code, func() reply { return ask(c) })
		if c.ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
	}
	t.Run("T3 revoked, then resumed", func(t *testing.T) {
		f.crl(t, identitytest.List{Revoked: []*big.Int{cert.Leaf.SerialNumber}, Number: 2})
		f.reload()
		resumed(t, "DEVICE-REVOKED")
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return ask(c) }) // and on the connection that was open
		f.crl(t, identitytest.List{Number: 3})
		f.reload()
		f.wantServed(t, ask(c))
	})
	t.Run("T2 authorities swapped, then resumed", func(t *testing.T) {
		identitytest.WriteFile(t, filepath.Join(f.files, "corp.pem"), identitytest.NewCA(t, "other").PEM())
		f.reload()
		resumed(t, "CERT-INVALID")
		f.wantRefused(t, "CERT-INVALID", func() reply { return ask(c) })
	})
}

// wantHandshakeRecord waits for the record of a refused handshake, which the server writes after its alert.
func (f *fleet) wantHandshakeRecord(t *testing.T, before int, action, code string) {
	t.Helper()
	for range 1000 {
		for _, rec := range f.records(t)[before:] {
			if rec.Kind == audit.KindAuth && rec.Action == action && slices.Contains(rec.Decision.Codes, code) && rec.Count > 0 {
				return
			}
		}
	}
	t.Errorf("no record %s %s", action, code)
}

func readReply(t testing.TB, c net.Conn) reply {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return reply{resp, string(body)}
}

func TestOpenConnections(t *testing.T) {
	f := newFleet(t)
	t.Run("T4 blocked between two requests", func(t *testing.T) {
		c := f.client(t, f.corp.Issue(t, device("d1")))
		f.wantServed(t, f.get(t, c))
		_, err := f.identity.BlockDevice(t.Context(), "d1", "lost")
		must(t, err)
		f.wantRefused(t, "DEVICE-BLOCKED", func() reply { return f.get(t, c) })
		_, err = f.identity.UnblockDevice(t.Context(), "d1")
		must(t, err)
		f.wantServed(t, f.get(t, c))
	})
	t.Run("T5 expires while open", func(t *testing.T) {
		leaf := device("d1")
		leaf.Until = time.Now().Add(2 * time.Second)
		cert := f.corp.Issue(t, leaf)
		c := f.client(t, cert)
		used := 0
		trace := func() reply { return f.get(t, c) }
		f.wantServed(t, trace())
		for time.Now().Before(cert.Leaf.NotAfter.Add(time.Second)) {
			used++
			if r := trace(); r.StatusCode != http.StatusOK {
				break
			}
		}
		if used < 2 {
			t.Fatal("the certificate was over before a second request")
		}
		r := f.wantRefused(t, "CERT-EXPIRED", trace)
		if r.ProtoMajor == 1 && !r.Close {
			t.Error("the connection stays open")
		}
	})
}

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
	selfCA := &identitytest.CA{Cert: &x509.Certificate{Subject: enrolled.Leaf.Subject, PublicKey: self.Public(), RawSubject: enrolled.Leaf.RawSubject}, Key: self}
	mixed := evil.Issue(t, device("d2"))
	mixed.Certificate = append(mixed.Certificate[:1], enrolled.Certificate[0])
	deep := f.corp.Intermediate(t, "one").Intermediate(t, "two")
	tests := []struct {
		name string
		cert tls.Certificate
		code string
	}{
		{"T8 of another authority", identitytest.NewCA(t, "public").Issue(t, device("d2")), "CERT-INVALID"},
		{"T8 of an authority with the same name", evil.Issue(t, device("d2")), "CERT-INVALID"},
		{"T9 for servers", leaf(func(l *identitytest.Leaf) { l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "CERT-INVALID"},
		{"T9 for nothing", leaf(func(l *identitytest.Leaf) { l.NoUsage = true }), "CERT-INVALID"},
		{"T9 for anything", leaf(func(l *identitytest.Leaf) { l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), "CERT-INVALID"},
		{"T10 self-signed as an enrolled device", selfCA.Issue(t, identitytest.Leaf{URIs: []string{trustDomain + "d1"}, Subject: enrolled.Leaf.Subject, Serial: enrolled.Leaf.SerialNumber, SKI: enrolled.Leaf.SubjectKeyId, Key: self}), "CERT-INVALID"},
		{"T11 signed by a device", byLeaf, "CERT-INVALID"},
		{"T12 the victim's certificate as second", mixed, "CERT-INVALID"},
		{"T13 NUL", uris(trustDomain + "d2\x00.evil"), "CERT-INVALID"},
		{"T13 two", uris(trustDomain+"d2", trustDomain+"shared"), "CERT-INVALID"},
		{"T13 common name only", leaf(func(l *identitytest.Leaf) { l.URIs, l.Subject = nil, pkix.Name{CommonName: trustDomain + "d2"} }), "CERT-INVALID"},
		{"T13 mixed case", uris("spiffe://Corp.example/device/d2"), "CERT-INVALID"},
		{"T13 other script", uris("spiffe://corp.example/device/d2\u0430"), "CERT-INVALID"},
		{"T13 below", uris(trustDomain + "d2/../shared"), "CERT-INVALID"},
		{"T13 query", uris(trustDomain + "d2?shared"), "CERT-INVALID"},
		{"an authority as a device", leaf(func(l *identitytest.Leaf) { l.IsCA = true }), "CERT-INVALID"},
		{"RSA of 1024 bits", leaf(func(l *identitytest.Leaf) { l.Key = weak }), "CERT-INVALID"},
		{"P-224", leaf(func(l *identitytest.Leaf) { l.Key = p224 }), "CERT-INVALID"},
		{"not valid yet", leaf(func(l *identitytest.Leaf) { l.From = time.Now().Add(time.Minute) }), "CERT-INVALID"},
		{"three authorities where two may stand", deep.Issue(t, device("d2")), "CERT-INVALID"},
		{"another certificate than was enrolled", f.corp.Issue(t, device("d1")), "DEVICE-MISMATCH"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.upstream.Forget()
			before := len(f.records(t))
			r, err := f.do(t, f.client(t, tt.cert), f.DeviceAddress(), modFile)
			if err != nil { // crypto/tls itself will not read it, or the client will not send it
				if !strings.Contains(err.Error(), "tls: ") {
					t.Fatalf("%v; want a refusal of the handshake", err)
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

func TestT6AuthoritiesAtTheStart(t *testing.T) {
	dir := t.TempDir()
	leaf := identitytest.NewCA(t, "x").Issue(t, device("d1"))
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	for name, data := range map[string]string{
		"missing": "", "empty": "", "garbage": "-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n", "folder": "",
		"key": string(identitytest.NewCA(t, "x").KeyPEM(t)), "leaf": pemOf(leaf), "trailing": string(identitytest.NewCA(t, "x").PEM()) + "more",
	} {
		file := filepath.Join(dir, name)
		if name != "missing" && name != "folder" {
			identitytest.WriteFile(t, file, []byte(data))
		}
		_, err := identity.Open(t.Context(), identity.Config{Devices: identity.Devices{Listen: "127.0.0.1:0", ID: trustDomain, CA: file}},
			identity.Options{DB: statetest.OpenDB(t), Keys: dir})
		if err == nil || !strings.Contains(err.Error(), "authorities") {
			t.Errorf("T6 %s: Open = %v; want an error about the authorities", name, err)
		}
	}
}

func TestT7AuthoritiesTurnToGarbage(t *testing.T) {
	f := newFleet(t)
	c := f.client(t, f.corp.Issue(t, device("d1")))
	for _, data := range []string{"", "garbage"} {
		identitytest.WriteFile(t, filepath.Join(f.files, "corp.pem"), []byte(data))
		f.reload()
		f.wantServed(t, f.get(t, c))
		f.wantRefused(t, "CERT-INVALID", func() reply { return f.get(t, f.client(t, identitytest.NewCA(t, "public").Issue(t, device("d1")))) })
		if f.identity.DeviceStatus()["pool:corp"] == "" {
			t.Errorf("degraded: %v; want the pool", f.identity.DeviceStatus())
		}
	}
	must(t, os.Remove(filepath.Join(f.files, "corp.pem")))
	f.reload()
	f.wantServed(t, f.get(t, c))
	identitytest.WriteFile(t, filepath.Join(f.files, "corp.pem"), f.corp.PEM())
	f.reload()
	if degraded := f.identity.DeviceStatus(); len(degraded) > 0 {
		t.Errorf("degraded after all is well: %v", degraded)
	}
}

func TestT20OldVersionsOfTLS(t *testing.T) {
	f := newFleet(t)
	cert := f.corp.Issue(t, device("d1"))
	for name, address := range map[string]string{"public": f.publicListener.Addr().String(), "device": f.DeviceAddress(), "balancer": f.BalancerAddress()} {
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
			d := tls.Dialer{Config: &tls.Config{RootCAs: f.roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}, MinVersion: version, MaxVersion: version}}
			conn, err := d.DialContext(t.Context(), "tcp", address)
			if err == nil {
				conn.Close()
			}
			if want := name == "public" && version == tls.VersionTLS12; want != (err == nil) {
				t.Errorf("T20 %s listener, version %x: %v", name, version, err)
			}
		}
	}
	weak := &tls.Config{RootCAs: f.roots, ServerName: "localhost", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{
		tls.TLS_RSA_WITH_RC4_128_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA,
	}}
	if conn, err := (&tls.Dialer{Config: weak}).DialContext(t.Context(), "tcp", f.publicListener.Addr().String()); err == nil {
		conn.Close()
		t.Error("T20 a weak suite was chosen")
	}
	before := 0
	f.wantHandshakeRecord(t, before, "tls.device", "REQUEST-INVALID")
	n := 0
	for _, rec := range f.records(t) {
		if rec.Action == "tls.device" && strings.Contains(rec.Decision.Reason, "unsupported versions") {
			n++
		}
	}
	if n == 0 || n > 3 {
		t.Errorf("%d records of one source for three refused versions; want one for each reason", n)
	}
}

// T19: a ClientHello in pieces is one ClientHello; one that is too large or never ends holds nothing up.
func TestT19ClientHello(t *testing.T) {
	f := newFleet(t)
	cert := f.corp.Issue(t, device("d1"))
	raw, err := net.Dial("tcp", f.DeviceAddress())
	must(t, err)
	defer raw.Close()
	split := tls.Client(&slicer{Conn: raw}, &tls.Config{RootCAs: f.roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}})
	fmt.Fprintf(split, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", modFile, f.token)
	f.wantServed(t, readReply(t, split))
	if split.ConnectionState().Version != tls.VersionTLS13 {
		t.Errorf("version %x", split.ConnectionState().Version)
	}
	huge, err := net.Dial("tcp", f.DeviceAddress())
	must(t, err)
	defer huge.Close()
	_, err = huge.Write(append([]byte{22, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff}, bytes.Repeat([]byte{'x'}, 1<<15)...))
	_ = err // the server may close while we write
	must(t, huge.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.Copy(io.Discard, huge); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("an oversized ClientHello is still waited for")
	}
	server := f.deviceServer(f.deviceListeners[0])
	if server.ReadHeaderTimeout != headerTimeout || server.TLSConfig.MinVersion != tls.VersionTLS13 || !server.TLSConfig.SessionTicketsDisabled {
		t.Errorf("the device listener has no limit of time or other rules: %+v", server.TLSConfig)
	}
}

// A slicer sends each write in pieces of one byte.
type slicer struct{ net.Conn }

func (s *slicer) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestConnectionsEnd(t *testing.T) {
	f := newFleet(t, func(_ *fleet, c *identity.Config) { c.Devices.ConnectionAge = time.Nanosecond })
	cert := f.corp.Issue(t, device("d1"))
	for _, protocol := range []string{"h2", "http/1.1"} {
		var dials int
		tr := &http.Transport{DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			d := tls.Dialer{Config: &tls.Config{RootCAs: f.roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol}}}
			return d.DialContext(ctx, network, address)
		}, ForceAttemptHTTP2: true}
		c := &http.Client{Transport: tr}
		for range 3 {
			f.wantServed(t, f.get(t, c))
		}
		tr.CloseIdleConnections()
		if dials != 3 {
			t.Errorf("%s: %d connections for 3 requests that each came too late; want 3", protocol, dials)
		}
	}
}

func TestForwardedIdentity(t *testing.T) {
	f := newFleet(t)
	good := f.corp.Issue(t, device("d1"))
	stolen := "Client-Cert: " + identitytest.ClientCert(good)
	spellings := []string{
		"Client-Cert", "client-cert", "CLIENT-CERT", "Client_Cert", "client_cert", "Client-Cert-Chain", "X-Forwarded-Client-Cert", "x_forwarded_client_cert",
		"X-SSL-Client-Cert", "X-SSL-Client-Verify", "x-ssl-client-s-dn", "Ssl-Client-Cert", "SSL_CLIENT_CERT", "X-Forwarded-Tls-Client-Cert", "X-Client-Cert",
		"X-Amzn-Mtls-Clientcert", "X-ARR-ClientCert",
	}
	t.Run("T22 T23 on the public listener", func(t *testing.T) {
		for _, name := range spellings {
			r, err := f.do(t, f.client(t), f.publicListener.Addr().String(), modFile, name+": "+identitytest.ClientCert(good), name+": SUCCESS")
			must(t, err)
			f.wantServed(t, r) // as somebody without a device
			if rec := f.lastRecord(t); rec.Device != (audit.Device{}) {
				t.Errorf("T23 %s: the record has device %+v", name, rec.Device)
			}
		}
	})
	t.Run("T23 spelled so that net/http refuses it", func(t *testing.T) {
		for _, line := range []string{"Client-Cert : x", "Client-Cert\t: x", "Client-Cert: x\r\n folded"} {
			d := tls.Dialer{Config: &tls.Config{RootCAs: f.roots, ServerName: "localhost"}}
			conn, err := d.DialContext(t.Context(), "tcp", f.publicListener.Addr().String())
			must(t, err)
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", modFile, f.token, line)
			r := readReply(t, conn)
			conn.Close()
			if r.StatusCode != http.StatusBadRequest {
				if rec := f.lastRecord(t); r.StatusCode != http.StatusOK || rec.Device != (audit.Device{}) {
					t.Errorf("%q: %d, device %+v", line, r.StatusCode, rec.Device)
				}
			}
		}
	})
	t.Run("T22 on the device listener", func(t *testing.T) {
		bad := f.corp.Issue(t, device("nowhere"))
		f.wantRefused(t, "DEVICE-UNKNOWN", func() reply { return f.get(t, f.client(t, bad), stolen) })
	})
	t.Run("T24 without the balancer's certificate", func(t *testing.T) {
		for name, certs := range map[string][]tls.Certificate{"none": nil, "a device's": {good}, "another's of that name": {identitytest.NewCA(t, "balancers").Issue(t, identitytest.Leaf{Subject: f.balancer.Leaf.Subject})}} {
			before := len(f.records(t))
			if _, err := f.do(t, f.client(t, certs...), f.BalancerAddress(), modFile, stolen); err == nil {
				t.Errorf("%s: answered", name)
			}
			code := "CERT-INVALID"
			if certs == nil {
				code = "DEVICE-REQUIRED"
			}
			if name != "another's of that name" { // its record is folded into that of the device's, or the reverse
				f.wantHandshakeRecord(t, min(before, 0), "tls.balancer", code)
			}
		}
	})
	behind := func(headers ...string) reply {
		r, err := f.do(t, f.client(t, f.balancer), f.BalancerAddress(), modFile, headers...)
		must(t, err)
		return r
	}
	t.Run("from the pinned balancer", func(t *testing.T) {
		f.wantServed(t, behind(stolen))
		if rec := f.lastRecord(t); rec.Device.ID != "d1" || rec.Device.Via != "balancer" {
			t.Errorf("record has device %+v", rec.Device)
		}
		front := identitytest.Balancer(t, "https://"+f.BalancerAddress(), f.balancer, f.roots)
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{f.corp.Issue(t, device("d2"))}}}
		defer tr.CloseIdleConnections()
		r, err := f.do(t, &http.Client{Transport: tr}, strings.TrimPrefix(front.URL, "https://"), modFile, stolen)
		must(t, err)
		f.wantServed(t, r)
		if rec := f.lastRecord(t); rec.Device.ID != "d2" {
			t.Errorf("through the balancer: device %+v, want d2's own", rec.Device)
		}
	})
	t.Run("Connection cannot remove it", func(t *testing.T) {
		f.wantRefused(t, "DEVICE-UNKNOWN", func() reply {
			d := tls.Dialer{Config: &tls.Config{RootCAs: f.roots, ServerName: "localhost", Certificates: []tls.Certificate{f.balancer}}}
			conn, err := d.DialContext(t.Context(), "tcp", f.BalancerAddress())
			must(t, err)
			defer conn.Close()
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nClient-Cert: %s\r\nConnection: Client-Cert\r\n\r\n",
				modFile, f.token, identitytest.ClientCert(f.corp.Issue(t, device("nowhere"))))
			return readReply(t, conn)
		})
	})
	expired := device("d1")
	expired.From, expired.Until = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	for name, tt := range map[string]struct {
		code    string
		headers []string
	}{
		"T25 none":               {"DEVICE-REQUIRED", nil},
		"T25 a hash":             {"CERT-INVALID", []string{"Client-Cert: " + identitytest.SPKI(good.Leaf)}},
		"T25 a subject":          {"CERT-INVALID", []string{"Client-Cert: CN=d1,URI=" + trustDomain + "d1"}},
		"T25 Envoy's form":       {"DEVICE-REQUIRED", []string{"X-Forwarded-Client-Cert: By=spiffe://a;Hash=b;URI=" + trustDomain + "d1"}},
		"T25 twice":              {"CERT-INVALID", []string{stolen, stolen}},
		"T25 two in one":         {"CERT-INVALID", []string{stolen + ", " + strings.TrimPrefix(stolen, "Client-Cert: ")}},
		"T25 expired":            {"CERT-EXPIRED", []string{"Client-Cert: " + identitytest.ClientCert(f.corp.Issue(t, expired))}},
		"T25 unknown":            {"CERT-INVALID", []string{"Client-Cert: " + identitytest.ClientCert(identitytest.NewCA(t, "x").Issue(t, device("d1")))}},
		"T25 with an underscore": {"DEVICE-REQUIRED", []string{"Client_Cert: " + identitytest.ClientCert(good)}},
	} {
		t.Run(name, func(t *testing.T) { f.wantRefused(t, tt.code, func() reply { return behind(tt.headers...) }) })
	}
}

func TestT26ForwardedTargetsAreIgnored(t *testing.T) {
	f := newFleet(t)
	c := f.client(t, f.corp.Issue(t, device("d1")))
	r := f.get(t, c, "X-Forwarded-Uri: /secret.example/m/@v/list", "X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /x", "X-Forwarded-Method: DELETE",
		"X-Original-Url: /secret.example/m/@v/list", "X-Http-Method-Override: DELETE", "X-Rewrite-Url: /x")
	f.wantServed(t, r)
	if rec := f.lastRecord(t); rec.Path != modFile || rec.Method != http.MethodGet || rec.Module != "example.com/hello" {
		t.Errorf("record: %s %s %s", rec.Method, rec.Path, rec.Module)
	}
}

// T28: nothing that a client says beside its path goes on to the upstream.
func TestT28ClientHeadersStayHere(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	f := newFleet(t)
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		for name, values := range r.Header {
			seen = append(seen, fmt.Sprint(name, values))
		}
		f.upstream.ServeHTTP(w, r)
	}))
	defer trap.Close()
	m, err := mirror.New(t.Context(), mirror.Config{Upstreams: []string{trap.URL}, Sumdb: []string{f.upstream.Key()}, Store: t.TempDir()},
		mirror.Options{Logger: slog.New(slog.DiscardHandler), DB: statetest.OpenDB(t), State: t.TempDir(), Host: "localhost"})
	must(t, err)
	defer m.Close()
	f.Server.mirror = m
	c := f.client(t, f.corp.Issue(t, device("d1")))
	f.wantServed(t, f.get(t, c, "User-Agent: canary", "X-Canary: canary", "Headgate-Decision: canary", "Cookie: canary=1", "If-None-Match: canary",
		"Forwarded: for=canary", "X-Forwarded-For: canary", "Via: canary", "Traceparent: canary"))
	mu.Lock()
	defer mu.Unlock()
	if len(seen) == 0 {
		t.Fatal("the upstream was not asked, so this tests nothing")
	}
	for _, header := range seen {
		if strings.Contains(header, "canary") || strings.Contains(header, f.token) {
			t.Errorf("the upstream got %s", header)
		}
	}
}

func TestT27HealthChecksSkipNothing(t *testing.T) {
	f := newFleet(t)
	bad := f.client(t, f.corp.Issue(t, device("nowhere")))
	for _, agent := range []string{"ELB-HealthChecker/2.0", "kube-probe/1.34", "GoogleHC/1.0"} {
		f.wantRefused(t, "DEVICE-UNKNOWN", func() reply { return f.get(t, bad, "User-Agent: "+agent) })
	}
	for _, path := range []string{"/livez", "/readyz", "/metrics", "/healthz", "/debug/pprof/"} {
		r, err := f.do(t, f.client(t), f.publicListener.Addr().String(), path, "User-Agent: kube-probe/1.34")
		must(t, err)
		if r.StatusCode == http.StatusOK {
			t.Errorf("T27 %s is open on the public listener", path)
		}
	}
	resp, err := http.Get("http://" + f.Operations() + "/livez")
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/livez on the operations listener: %d", resp.StatusCode)
	}
}

func TestT67TokensOfADevice(t *testing.T) {
	f := newFleet(t)
	d1 := f.corp.Issue(t, device("d1"))
	c1, c2 := f.client(t, d1), f.client(t, f.corp.Issue(t, device("d2")))
	agent := f.exchange(t, c1, f.minter(t), http.StatusOK)
	if agent[:6] != "hg_ag_" {
		t.Fatalf("the exchange on a device gave %s", agent[:6])
	}
	person := f.bound(t, "d1", d1)
	get := func(c *http.Client, token string) reply {
		old := f.token
		defer func() { f.token = old }()
		f.token = token
		return f.get(t, c)
	}
	public := func(token string) reply {
		old := f.token
		defer func() { f.token = old }()
		f.token = token
		r, err := f.do(t, f.client(t), f.publicListener.Addr().String(), modFile)
		must(t, err)
		return r
	}
	f.wantServed(t, get(c1, agent))
	f.wantServed(t, get(c1, person))
	f.wantServed(t, public(agent))
	if rec := f.lastRecord(t); rec.Device.ID != "d1" || rec.Device.Via != "token" || rec.Device.Tier != 2 {
		t.Errorf("an agent's token beside its device: %+v", rec.Device)
	}
	for name, ask := range map[string]func() reply{
		"T67 agent's from another device":  func() reply { return get(c2, agent) },
		"T67 person's from another device": func() reply { return get(c2, person) },
		"T67 person's without mTLS":        func() reply { return public(person) },
		"T67 with another key of that id":  func() reply { return get(f.client(t, f.corp.Issue(t, device("d1"))), person) },
	} {
		t.Run(name, func(t *testing.T) { f.wantRefused(t, "DEVICE-MISMATCH", ask) })
	}
	t.Run("T67 exchanged elsewhere", func(t *testing.T) {
		f.exchange(t, c2, person, http.StatusForbidden)
		if rec := f.lastRecord(t); rec.Kind != audit.KindAuth || rec.Severity != 4 || rec.Decision.Codes[0] != "DEVICE-MISMATCH" {
			t.Errorf("record %+v", rec.Decision)
		}
	})
	t.Run("device gone, token there", func(t *testing.T) {
		_, err := f.identity.BlockDevice(t.Context(), "d1", "stolen")
		must(t, err)
		f.wantRefused(t, "DEVICE-BLOCKED", func() reply { return public(agent) })
		_, err = f.identity.UnblockDevice(t.Context(), "d1")
		must(t, err)
		f.crl(t, identitytest.List{Number: 2, Revoked: []*big.Int{d1.Leaf.SerialNumber}})
		f.reload()
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return public(agent) })
		f.crl(t, identitytest.List{Number: 3})
		f.inventory(t, "d2,ann", "d3,bob", "shared,,,,linux,true,true")
		f.reload()
		f.wantRefused(t, "DEVICE-UNKNOWN", func() reply { return public(agent) })
	})
}

// minter is a token of ann's that may mint.
func (f *fleet) minter(t *testing.T) string {
	t.Helper()
	return f.issue(t, identity.TokenRequest{Class: identity.ClassPerson, Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content", "mint"}}})
}

// bound is a token of ann's that is bound to a device.
func (f *fleet) bound(t *testing.T, id string, cert tls.Certificate) string {
	t.Helper()
	return f.issue(t, identity.TokenRequest{
		Class: identity.ClassPerson, Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content", "mint"}}, Life: 60 * 24 * time.Hour,
		Device: identity.Device{ID: id, Proof: "mtls", SPKI: identitytest.SPKI(cert.Leaf), Serial: cert.Leaf.SerialNumber.Text(16), Issuer: "corp"},
	})
}

func (f *fleet) issue(t *testing.T, q identity.TokenRequest) string {
	t.Helper()
	q.Subject = identity.Subject{Type: identity.Person, ID: "ann"}
	draft, err := f.identity.Draft(t.Context(), q)
	must(t, err)
	secret, err := f.identity.Issue(t.Context(), draft)
	must(t, err)
	return secret
}

// exchange asks the device listener for a token.
func (f *fleet) exchange(t *testing.T, c *http.Client, token string, want int) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+f.DeviceAddress()+"/-/oauth/token", strings.NewReader(url.Values{
		"grant_type": {identity.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {identity.TypeAccessToken},
	}.Encode()))
	must(t, err)
	r.Host = "localhost"
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.Do(r)
	must(t, err)
	defer resp.Body.Close()
	var got struct {
		Token string `json:"access_token"`
	}
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != want {
		t.Fatalf("exchange: %d %s; want %d", resp.StatusCode, body, want)
	}
	must(t, json.Unmarshal(body, &got))
	return got.Token
}

func pemOf(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}
