package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
)

const (
	slowMiB      = 1.0       // MiB/s
	enoughToTell = 256 << 10 // bytes, below which throughput says nothing
	mostMeasured = 64 << 20  // bytes
)

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
		return x.login.asUser(ctx)
	}
	return asNetrc(x.Gateway, x.caFile)
}

// asUser is how requests are made with the login's short token.
func (l *gatewayLogin) asUser(ctx context.Context) (address string, c *http.Client, header string, err error) {
	t, err := l.fresh(ctx, "")
	if err != nil {
		return "", nil, "", err
	}
	address, c, err = l.door()
	return address, c, "Bearer " + t.Token, err
}

// asNetrc is how requests are made with what .netrc has for a gateway.
func asNetrc(address, caFile string) (string, *http.Client, string, error) {
	file, err := netrcFile()
	if err != nil {
		return "", nil, "", err
	}
	text, _ := os.ReadFile(file) // what is wrong with it the finding on netrc says
	password := netrcPassword(text, netrcMachine(address))
	if password == "" {
		return "", nil, "", fmt.Errorf("neither a sign-in nor %s has a credential for %s", file, netrcMachine(address))
	}
	trust, err := trusting(caFile)
	return address, webClient(trust), "Bearer " + password, err
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
