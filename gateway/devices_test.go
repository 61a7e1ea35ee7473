package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/cmd/headgate/statetest"
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
	f := newIdleFleet(t, edit...)
	f.run(t)
	return f
}

// newIdleFleet is one that does not run yet.
func newIdleFleet(t testing.TB, edit ...func(*fleet, *identity.Config)) *fleet {
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
		var c *http.Client
		trace := func() reply { return f.get(t, c) }
		for life, used := 2*time.Second, 0; used < 2; life *= 4 { // a busy machine needs longer for two requests
			leaf := device("d1")
			leaf.Until = time.Now().Add(life)
			cert := f.corp.Issue(t, leaf)
			c = f.client(t, cert)
			for used = 0; time.Now().Before(cert.Leaf.NotAfter.Add(time.Second)) && trace().StatusCode == http.StatusOK; used++ {
			}
		}
		r := f.wantRefused(t, "CERT-EXPIRED", trace)
		if r.ProtoMajor == 1 && !r.Close {
			t.Error("the connection stays open")
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

func pemOf(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}
