package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// chromium starts a headless browser that trusts one key and reaches loopback alone.
func chromium(t *testing.T, spki []byte) context.Context {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("the browser of the tests is not installed (make deps): %v", err)
	}
	sum := sha256.Sum256(spki)
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(sum[:])),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"),
	)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	return ctx
}

// shown is the text of an element once it is there.
func shown(ctx context.Context, t *testing.T, selector string) string {
	t.Helper()
	text, err := chromedp.Run(ctx, chromedp.Text(selector))
	must(t, err)
	return strings.TrimSpace(text)
}

// Ann signs in at a real OpenID provider with a real browser, makes a token for her .netrc, and allows a terminal.
func TestBrowserSignsIn(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	_, port, _ := strings.Cut(srv.Listener.Addr().String(), ":")
	home := "https://localhost:" + port
	ann := identitytest.User{Login: "ann", Password: "s3cret", ID: "person-1", Groups: []string{"eng"}}
	_, provider, _, ca := identitytest.Serve(t, identitytest.ProviderConfig{Users: []identitytest.User{ann}, RedirectURI: home + callbackPath})
	b := newBenchOf(t, identity.Config{Issuers: []identity.Issuer{{
		Name: "corp", URL: provider.Issuer, ClientID: provider.ClientID, Audiences: []string{provider.ClientID}, Algorithms: []string{"ES256"}, GroupsClaim: "groups", CAFile: ca,
	}}}, hello)
	s := New(Config{State: b.dir, URL: home}, Options{
		Identity: b.identity, Policy: b.policy, Mirror: b.mirror, Audit: b.log, Logger: b.Server.log, Registry: prometheus.NewRegistry(), Version: "test",
	})
	srv.Config.Handler = s.public
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ctx := chromium(t, srv.Certificate().RawSubjectPublicKeyInfo)

	must(t, chromedp.Do(ctx,
		chromedp.Navigate(home+"/-/tokens"),
		chromedp.Click(`.providers a`),
		chromedp.SendKeys(`input[name=username]`, ann.Login),
		chromedp.SendKeys(`input[name=password]`, ann.Password),
		chromedp.Submit(`input[name=password]`),
	))
	header := shown(ctx, t, `header form`)
	must(t, chromedp.Do(ctx, chromedp.SendKeys(`input[name=note]`, "laptop"), chromedp.Click(`section[aria-labelledby=mint] button`)))
	netrc := shown(ctx, t, `#netrc`)
	cookies, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.cookie`))
	must(t, err)
	rules, err := chromedp.Run(ctx, chromedp.Evaluate[int](`document.styleSheets[0].cssRules.length`))
	if err != nil || rules == 0 {
		t.Errorf("the style sheet has %d rules, %v", rules, err)
	}
	if !strings.Contains(header, "Signed in as person-1") || cookies != "" {
		t.Errorf("the page says %q; a script reads the cookies %q", header, cookies)
	}
	line, token, _ := strings.Cut(netrc, " password ")
	if line != "machine localhost:"+port+" login headgate" {
		t.Errorf("netrc line %q", line)
	}
	if a := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", "Authorization: Bearer "+token); a.Code != http.StatusOK {
		t.Errorf("the token gets %d: %s", a.Code, a.Body)
	}

	asked := postForm(t, srv.Client(), srv.URL+"/-/oauth/device_authorization", url.Values{"client_id": {identity.ClientCLI}, "host": {"laptop-7"}})
	must(t, chromedp.Do(ctx,
		chromedp.Navigate(asked["verification_uri"].(string)),
		chromedp.SendKeys(`input[name=user_code]`, asked["user_code"].(string)),
		chromedp.Click(`main button`),
	))
	code, address, host := shown(ctx, t, `#code`), shown(ctx, t, `#address`), shown(ctx, t, `#host`)
	must(t, chromedp.Do(ctx, chromedp.Click(`button[value=allow]`), chromedp.WaitVisible(`[role=status]`)))
	answered := shown(ctx, t, `h1`)
	if code != asked["user_code"] || address != "127.0.0.1" || host != "laptop-7" || answered != "Allowed" {
		t.Errorf("T56 the page showed %q from %q (%q), then %q", code, address, host, answered)
	}
	granted := postForm(t, srv.Client(), srv.URL+"/-/oauth/token", url.Values{
		"grant_type": {identity.GrantDeviceCode}, "client_id": {identity.ClientCLI}, "device_code": {asked["device_code"].(string)},
	})
	must(t, chromedp.Do(ctx, chromedp.Click(`header input[name=tokens]`), chromedp.Click(`header button`), chromedp.WaitVisible(`.providers`)))
	for _, text := range []string{token, granted["access_token"].(string)} {
		if a := b.ask("GET", "/", "Authorization: Bearer "+text); a.Code != http.StatusUnauthorized {
			t.Errorf("a token of the session gets %d after sign-out", a.Code)
		}
	}
}

// postForm posts as a program and reads the JSON of a success.
func postForm(t *testing.T, client *http.Client, address string, form url.Values) map[string]any {
	t.Helper()
	resp, err := client.PostForm(address, form)
	must(t, err)
	defer resp.Body.Close()
	var out map[string]any
	must(t, json.NewDecoder(resp.Body).Decode(&out))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", address, resp.StatusCode, out)
	}
	return out
}
