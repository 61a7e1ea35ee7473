package gateway

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity/identitytest"
)

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
			inner := httptest.NewRequest(http.MethodGet, "https://localhost"+modFile, nil)
			inner.Header[name] = []string{"x"}
			if f.arrive(httptest.NewRecorder(), inner); len(inner.Header) > 0 {
				t.Errorf("T23 %s: still there for whoever reads headers", name)
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
	f := newIdleFleet(t)
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		for name, values := range r.Header {
			seen = append(seen, fmt.Sprint(name, values))
		}
		f.upstream.ServeHTTP(w, r)
	}))
	t.Cleanup(trap.Close)
	m, err := mirror.New(t.Context(), mirror.Config{Upstreams: []string{trap.URL}, Sumdb: []string{f.upstream.Key()}, Store: t.TempDir()},
		mirror.Options{Logger: slog.New(slog.DiscardHandler), DB: statetest.OpenDB(t), State: t.TempDir(), Host: "localhost"})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	f.Server.mirror = m
	f.run(t)
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
