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
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/headgate/headgate/identity"
)

// An oauthRefusal is the answer of RFC 6749, section 5.2.
type oauthRefusal struct { //nolint:errname // the field's word
	Word        string `json:"error"`
	Description string `json:"error_description"`
}

func (e *oauthRefusal) Error() string {
	return "the gateway refused: " + orElse(printableLine(e.Description), printableLine(e.Word))
}

// passes says that it is trouble of the gateway's, and no word on whoever asked.
func (e *oauthRefusal) passes() bool {
	return e.Word == "server_error" || e.Word == "temporarily_unavailable"
}

// printableLine keeps what the far end says from moving a terminal's cursor.
func printableLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), 300)])
}

// webClient speaks to a gateway. It follows no redirect: a credential goes where it was sent, or nowhere.
func webClient(trust *tls.Config) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: trust, TLSHandshakeTimeout: 10 * time.Second,
			ForceAttemptHTTP2: true, DisableCompression: true, IdleConnTimeout: time.Minute,
		},
		Timeout:       20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// askOnce makes one request and reads its answer. A refusal is an *oauthRefusal.
func askOnce(c *http.Client, r *http.Request, out any) error {
	resp, err := c.Do(r)
	if err != nil {
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
			return fmt.Errorf("asking the gateway: %w; if it has a CA of its own, name its file with --ca", err)
		}
		return fmt.Errorf("asking the gateway: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal oauthRefusal
		if json.Unmarshal(text, &refusal) != nil || refusal.Word == "" {
			return fmt.Errorf("the gateway answered %s", resp.Status)
		}
		return &refusal
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return nil
}

func postForm(ctx context.Context, c *http.Client, address string, form url.Values, out any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return fmt.Errorf("preparing the request: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return askOnce(c, r, out)
}

// serverMetadata is what is read of RFC 8414's document.
type serverMetadata struct {
	Issuer  string `json:"issuer"`
	Grants  string `json:"device_authorization_endpoint"`
	Token   string `json:"token_endpoint"`
	Devices struct {
		Token string `json:"token_endpoint"`
	} `json:"mtls_endpoint_aliases"` // RFC 8705, section 5
	Sumdb string `json:"headgate_gosumdb"` // of the gateway's own checksum database, as GOSUMDB takes it
}

// door is the gateway's URL for devices; empty: it serves none.
func (m serverMetadata) door() string {
	door, _ := strings.CutSuffix(m.Devices.Token, "/-/oauth/token")
	return door
}

// readMetadata asks a gateway what it is. What it names has to be its own (RFC 8414, section 3.3).
func readMetadata(ctx context.Context, c *http.Client, address string) (serverMetadata, error) {
	var m serverMetadata
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/-/.well-known/oauth-authorization-server", nil)
	if err != nil {
		return m, fmt.Errorf("preparing the request: %w", err)
	}
	if err := askOnce(c, r, &m); err != nil {
		return m, fmt.Errorf("finding out how to sign in at %s: %w", address, err)
	}
	inside := gatewayLogin{URL: address + "/-"}
	if m.Issuer != inside.URL || !inside.owns(m.Grants) || !inside.owns(m.Token) {
		return m, fmt.Errorf("signing in at %s: it names itself %q; use that address", address, printableLine(strings.TrimSuffix(m.Issuer, "/-")))
	}
	if m.door() == "" {
		return m, nil
	}
	ours, err := url.Parse(address)
	theirs, derr := url.Parse(m.door())
	if err != nil || derr != nil || theirs.Scheme != "https" || theirs.Hostname() != ours.Hostname() || theirs.User != nil {
		return m, fmt.Errorf("signing in at %s: it sends devices to another host, %q", address, printableLine(m.door()))
	}
	return m, nil
}

// A grantedToken is an answer of the token endpoint.
type grantedToken struct {
	Token   string `json:"access_token"`
	Seconds int64  `json:"expires_in"`
}

// A deviceGrant asks for a token that somebody allows in a browser (RFC 8628).
type deviceGrant struct {
	http  *http.Client
	begin string       // where a code is asked for
	poll  string       // where the token is: with a device its listener, so that the token is bound to it
	by    *http.Client // for poll
	shown io.Writer    // for the code
}

func (g deviceGrant) run(ctx context.Context) (string, error) {
	host, _ := os.Hostname() // a claim for the person who allows; without it they see the address alone
	var a struct {
		DeviceCode string `json:"device_code"`
		UserCode   string `json:"user_code"`
		Link       string `json:"verification_uri"`
		Expires    int64  `json:"expires_in"`
		Interval   int64  `json:"interval"`
	}
	if err := postForm(ctx, g.http, g.begin, url.Values{"client_id": {identity.ClientCLI}, "host": {host}}, &a); err != nil {
		return "", fmt.Errorf("asking to sign in: %w", err)
	}
	life := time.Duration(a.Expires) * time.Second
	fmt.Fprintf(g.shown, "open  %s\nenter %s\nand allow this terminal within %s; Ctrl-C stops\n", printableLine(a.Link), printableLine(a.UserCode), life)
	ctx, cancel := context.WithTimeoutCause(ctx, life, errors.New("nobody allowed it in time; run it again"))
	defer cancel()
	return g.wait(ctx, a.DeviceCode, time.Duration(max(a.Interval, 1))*time.Second)
}

// wait polls until there is an answer. slow_down adds five seconds to every pause (RFC 8628, section 3.5).
func (g deviceGrant) wait(ctx context.Context, code string, pause time.Duration) (string, error) {
	form := url.Values{"grant_type": {identity.GrantDeviceCode}, "client_id": {identity.ClientCLI}, "device_code": {code}}
	for {
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("waiting to be allowed: %w; nothing was changed", context.Cause(ctx))
		case <-time.After(pause):
		}
		var granted grantedToken
		err := postForm(ctx, g.by, g.poll, form, &granted)
		if err == nil {
			return granted.Token, nil
		}
		refusal, answered := errors.AsType[*oauthRefusal](err)
		switch {
		case !answered || refusal.passes(): // the network, or a gateway that restarts (section 3.5)
			pause = min(2*pause, time.Minute)
		case refusal.Word == "authorization_pending":
		case refusal.Word == "slow_down":
			pause += 5 * time.Second
		default:
			return "", fmt.Errorf("waiting to be allowed: %w; nothing was changed", err)
		}
	}
}
