package main

import (
	"bufio"
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
	"os"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
)

const (
	slowStep     = time.Second // from here on a step to the gateway is worth a word
	slowMiB      = 1.0         // MiB/s
	enoughToTell = 256 << 10   // bytes, below which throughput says nothing
	mostMeasured = 64 << 20    // bytes
	clockWarn    = 5 * time.Second
	clockFail    = 60 * time.Second // the leeway of tokens and the grace of most certificates
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

// credential asks as the go command would, and then downloads something.
func (x *examination) credential(ctx context.Context) {
	if x.meta.Issuer == "" {
		return // it cannot be asked
	}
	address, c, header, err := x.asUser(ctx)
	if err != nil {
		x.fail("token", err.Error(), "headgate login "+x.Gateway)
		return
	}
	defer c.CloseIdleConnections()
	c.Timeout = 0 // ctx ends it
	resp, err := askAs(ctx, c, address+"/", header)
	if err != nil {
		x.fail("token", err.Error(), "headgate login "+x.Gateway)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		x.fail("token", "the gateway answers "+refusalLine(resp), "headgate login "+x.Gateway)
		return
	}
	x.lifetime(ctx)
	x.throughput(ctx, c, address, header)
}

// asUser is how this user's requests are made.
func (x *examination) asUser(ctx context.Context) (address string, c *http.Client, header string, err error) {
	if x.login != nil {
		t, err := x.login.fresh(ctx, "")
		if err != nil {
			return "", nil, "", err
		}
		address, c, err = x.login.door()
		return address, c, "Bearer " + t.Token, err
	}
	file, err := netrcFile()
	if err != nil {
		return "", nil, "", err
	}
	text, _ := os.ReadFile(file) // what is wrong with it the finding on netrc says
	password := netrcPassword(text, netrcMachine(x.Gateway))
	if password == "" {
		return "", nil, "", fmt.Errorf("neither a sign-in nor %s has a credential for %s", file, netrcMachine(x.Gateway))
	}
	trust, err := trusting(x.caFile)
	return x.Gateway, webClient(trust), "Bearer " + password, err
}

func askAs(ctx context.Context, c *http.Client, address, header string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("preparing the request: %w", err)
	}
	r.Header.Set("Authorization", header)
	resp, err := c.Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking the gateway: %w", err)
	}
	return resp, nil
}

// refusalLine is the status with the code of the reason.
func refusalLine(resp *http.Response) string {
	return strings.TrimSpace(resp.Status + " " + printableLine(resp.Header.Get("Headgate-Code")))
}

// lifetime says until when the sign-in holds.
func (x *examination) lifetime(ctx context.Context) {
	if x.login == nil {
		x.ok("token", "the one in .netrc holds")
		return
	}
	in, err := x.login.introspect(ctx, x.login.Token)
	switch end := time.Unix(in.Expires, 0); {
	case err != nil || !in.Active:
		x.fail("token", "the sign-in no longer holds", "headgate login "+x.Gateway)
	case time.Until(end) < 15*time.Minute:
		x.warn("token", "the sign-in of "+audit.EscapeTerminal(in.Subject)+" ends at "+end.Format(time.RFC3339), "headgate login "+x.Gateway)
	default:
		x.ok("token", "%s is signed in until %s", audit.EscapeTerminal(in.Subject), end.Format(time.RFC3339))
	}
}

// throughput downloads one zip: the one that was named, or one that the mirror has already, without asking any upstream.
func (x *examination) throughput(ctx context.Context, c *http.Client, address, header string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	base, wanted := address, []string{x.module}
	if x.module == "" {
		base, wanted = address+"/cached-only", x.known(ctx, c, address, header)
	}
	for _, name := range wanted {
		path, version, _ := strings.Cut(name, "@")
		escaped, err := module.EscapePath(path)
		file, verr := module.EscapeVersion(version)
		if err != nil || verr != nil {
			x.warn("throughput", fmt.Sprintf("%q is no PATH@VERSION", name), "headgate doctor --module golang.org/x/mod@v0.30.0")
			return
		}
		if x.measure(ctx, c, base+"/"+escaped+"/@v/"+file+".zip", header, name) {
			return
		}
	}
	if x.module == "" {
		x.ok("throughput", "not measured: the mirror has no zip for this user yet; --module PATH@VERSION names one")
	}
}

// known are a few versions that the mirror has and this user may see.
func (x *examination) known(ctx context.Context, c *http.Client, address, header string) []string {
	resp, err := askAs(ctx, c, address+"/index?limit=20", header)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var names []string
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 1<<20))
	for lines.Scan() {
		var entry struct{ Path, Version string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Path != "" {
			names = append(names, entry.Path+"@"+entry.Version)
		}
	}
	return names
}

// measure downloads a zip; false where it is not there. With a module that was named, a refusal is a finding.
func (x *examination) measure(ctx context.Context, c *http.Client, address, header, name string) bool {
	began := time.Now()
	resp, err := askAs(ctx, c, address, header)
	if err != nil {
		x.fail("throughput", audit.EscapeTerminal(err.Error()), "run headgate doctor again; if it stays, tell whoever runs the gateway")
		return true
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if x.module != "" {
			x.warn("throughput", name+": "+refusalLine(resp), "go mod download "+name+" shows why")
		}
		return x.module != ""
	}
	first := time.Since(began)
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, mostMeasured))
	took := time.Since(began)
	rate := float64(n) / (1 << 20) / max(took-first, time.Microsecond).Seconds()
	detail := fmt.Sprintf("%s: %d bytes, the first after %s, %.1f MiB/s", name, n, first.Round(10*time.Microsecond), rate)
	switch {
	case err != nil:
		x.fail("throughput", detail+", then "+audit.EscapeTerminal(err.Error()), "does something between here and the gateway cut long answers?")
	case first > slowStep:
		x.warn("throughput", detail, "slow to begin: the gateway fetches it just now, or is busy; ask again")
	case n >= enoughToTell && rate < slowMiB:
		x.warn("throughput", detail, "the network between here and the gateway is slow")
	default:
		x.ok("throughput", "%s", detail)
	}
	return true
}
