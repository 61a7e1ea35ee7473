package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
)

const (
	slowStep  = time.Second // from here on a step to the gateway is worth a word
	clockWarn = 5 * time.Second
	clockFail = 60 * time.Second // the leeway of tokens and the grace of most certificates
)

// A trip is one request, with its moments.
type trip struct {
	dns, connect, tls, sent    time.Time // begun
	dnsEnd, connectEnd, tlsEnd time.Time
	first                      time.Time
	address                    string

	status string // empty: no answer came
	code   int
	date   string
}

func (t *trip) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart:             func(httptrace.DNSStartInfo) { t.dns = time.Now() },
		DNSDone:              func(httptrace.DNSDoneInfo) { t.dnsEnd = time.Now() },
		ConnectStart:         func(_, address string) { t.connect, t.address = time.Now(), address },
		ConnectDone:          func(_, _ string, _ error) { t.connectEnd = time.Now() },
		TLSHandshakeStart:    func() { t.tls = time.Now() },
		TLSHandshakeDone:     func(tls.ConnectionState, error) { t.tlsEnd = time.Now() },
		WroteRequest:         func(httptrace.WroteRequestInfo) { t.sent = time.Now() },
		GotFirstResponseByte: func() { t.first = time.Now() },
	}
}

// probe makes one request on a connection of its own, as the go command would: with the system's authorities, or those of
// SSL_CERT_FILE, unless caFile names others.
func (x *examination) probe(ctx context.Context, caFile string) (*trip, error) {
	trust, err := trusting(caFile)
	if err != nil {
		return nil, err
	}
	c := webClient(trust)
	defer c.CloseIdleConnections()
	t := &trip{}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, t.trace()), http.MethodGet, x.Gateway+"/-/.well-known/oauth-authorization-server", nil)
	if err != nil {
		return nil, fmt.Errorf("preparing the request: %w", err)
	}
	resp, err := c.Do(r)
	if err != nil {
		return t, fmt.Errorf("asking the gateway: %w", err)
	}
	defer resp.Body.Close()
	t.status, t.code, t.date = resp.Status, resp.StatusCode, resp.Header.Get("Date")
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode == http.StatusOK {
		_ = json.Unmarshal(text, &x.meta) // what is no such document names no issuer
	}
	return t, nil
}

// network goes the way to the gateway, step by step.
func (x *examination) network(ctx context.Context) {
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: mustURL(x.Gateway)}); err == nil && proxy != nil {
		x.ok("proxy", "the way leads through %s (HTTPS_PROXY; NO_PROXY leaves hosts out)", proxy.Host)
	}
	began := time.Now()
	t, err := x.probe(ctx, "")
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		t, err = x.authority(ctx, t, err)
	}
	if t == nil {
		x.fail("CA", err.Error(), "headgate doctor --ca FILE")
		return
	}
	x.steps(t, err)
	if t.status == "" {
		return
	}
	x.firstByte(t)
	if date, err := http.ParseTime(t.date); err == nil {
		x.clock(date.Sub(began.Add(time.Since(began) / 2)).Round(time.Second))
	}
}

func mustURL(address string) *url.URL {
	u, err := url.Parse(address)
	if err != nil {
		panic("headgate: gatewayAddress let " + address + " pass")
	}
	return u
}

// authority tells a CA that is only not trusted here from one that nobody named, and goes on with it where it is known.
func (x *examination) authority(ctx context.Context, t *trip, err error) (*trip, error) {
	if x.caFile == "" {
		x.fail("CA", "the gateway's certificate is of an authority that this machine does not trust", "get the CA file from whoever runs the gateway; "+trustCommand("FILE"))
		return t, err
	}
	switch t, err = x.probe(ctx, x.caFile); {
	case err == nil:
		x.fail("CA", "the go command does not trust the gateway's CA; headgate does, by "+x.caFile, trustCommand(x.caFile))
	case t != nil:
		x.fail("CA", x.caFile+" is not the CA of the gateway's certificate", "get the CA file from whoever runs the gateway")
	}
	return t, err
}

// steps tells how far it went. The step that failed is the first that did not end.
func (x *examination) steps(t *trip, err error) {
	host := mustURL(x.Gateway).Hostname()
	dns, unknown := errors.AsType[*net.DNSError](err)
	dial, undialled := errors.AsType[*net.OpError](err)
	switch {
	case unknown:
		x.fail("DNS", audit.EscapeTerminal(dns.Error()), "connect to the network (VPN) that knows "+host)
		return
	case !t.dns.IsZero():
		x.timed("DNS", t.dnsEnd.Sub(t.dns), host+" is "+t.address)
	}
	if undialled && dial.Op == "dial" {
		x.fail("TCP", audit.EscapeTerminal(dial.Error()), "is the gateway up, and is its port open from here? nc -vz "+strings.ReplaceAll(netrcMachine(x.Gateway), ":", " "))
		return
	}
	x.timed("TCP", t.connectEnd.Sub(t.connect), t.address)
	switch {
	case err == nil:
		x.timed("TLS", t.tlsEnd.Sub(t.tls), "the certificate holds")
	default:
		x.brokenTLS(err)
	}
}

func (x *examination) brokenTLS(err error) {
	if _, told := errors.AsType[x509.UnknownAuthorityError](err); told {
		return // the finding on CA has it
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		x.fail("TLS", fmt.Sprintf("the gateway's certificate holds from %s to %s, and the clock here says %s", invalid.Cert.NotBefore.Format(time.RFC3339),
			invalid.Cert.NotAfter.Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339)), "set the clock, if it is wrong; else tell whoever runs the gateway")
		return
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		x.fail("TLS", audit.EscapeTerminal(name.Error()), "use one of these names in GOPROXY")
		return
	}
	x.fail("TLS", audit.EscapeTerminal(err.Error()), "does something between here and the gateway take TLS apart? openssl s_client -connect "+mustURL(x.Gateway).Host)
}

// timed is a step that worked, and perhaps slowly.
func (x *examination) timed(check string, took time.Duration, detail string) {
	if took > slowStep {
		x.warn(check, fmt.Sprintf("%s, after %s", detail, took.Round(time.Millisecond)), "the network is slow up to the gateway")
		return
	}
	x.ok(check, "%s, %s", detail, took.Round(10*time.Microsecond))
}

func (x *examination) firstByte(t *trip) {
	switch took := t.first.Sub(t.sent); {
	case t.code != http.StatusOK || x.meta.Issuer == "":
		x.fail("gateway", fmt.Sprintf("%s answers %s, as no gateway does", x.Gateway, t.status), "is the URL right? headgate doctor --url URL")
	case x.meta.Issuer != x.Gateway+"/-":
		own := strings.TrimSuffix(printableLine(x.meta.Issuer), "/-")
		x.fail("gateway", "it names itself "+own, setting("GOPROXY", own))
	case took > slowStep:
		x.warn("first byte", "after "+took.Round(time.Millisecond).String(), "the gateway is slow; ask whoever runs it for its p99")
	default:
		x.ok("first byte", "after %s", took.Round(10*time.Microsecond))
	}
}

// clock compares this machine's with the gateway's: certificates and tokens have limits in time.
func (x *examination) clock(ahead time.Duration) {
	detail, fix := fmt.Sprintf("the gateway's clock is %s ahead of this one", ahead), "timedatectl set-ntp true, or whatever sets the clock here"
	switch ahead = ahead.Abs(); {
	case ahead > clockFail:
		x.fail("clock", detail, fix)
	case ahead > clockWarn:
		x.warn("clock", detail, fix)
	default:
		x.ok("clock", "within %s of the gateway's", max(ahead, time.Second))
	}
}
