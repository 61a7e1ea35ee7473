package gateway

import (
	"crypto/tls"
	"encoding/pem"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// served runs the kit's issuer over TLS on loopback and gives the section that trusts it. People sign in there with a
// browser; u-1 is known.
func served(tb testing.TB) (*identitytest.Issuer, identity.Config) {
	tb.Helper()
	srv := httptest.NewUnstartedServer(nil)
	iss := identitytest.NewIssuer("https://" + srv.Listener.Addr().String())
	srv.Config.Handler = iss
	srv.StartTLS()
	tb.Cleanup(srv.Close)
	ca := filepath.Join(tb.TempDir(), "issuer.pem")
	must(tb, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600))
	iss.SetPerson("u-1", map[string]any{"groups": []string{"eng"}, "canary": "canary-of-a-claim"})
	iss.SetPerson("u-2", map[string]any{"groups": []string{"ops"}})
	return iss, identity.Config{Issuers: []identity.Issuer{{
		Name: "corp", URL: iss.URL, ClientID: "headgate", Audiences: []string{"headgate"}, GroupsClaim: "groups", CAFile: ca,
	}}}
}

// newSignInBench is a bench with an issuer that has answered already.
func newSignInBench(tb testing.TB, archives ...string) (*bench, *identitytest.Issuer) {
	tb.Helper()
	iss, cfg := served(tb)
	b := newBenchOf(tb, cfg, archives...)
	b.ask("GET", "/", "Authorization: Bearer "+iss.Sign(iss.Claims("u-1", "headgate", nil))) // waits for its keys
	return b, iss
}

// A browser keeps cookies, and follows nothing by itself.
type browser struct {
	tb      testing.TB
	handler http.Handler
	base    string
	cookies map[string]string
	last    *httptest.ResponseRecorder
}

func (b *bench) browser(tb testing.TB) *browser {
	return &browser{tb: tb, handler: b.public, cookies: map[string]string{}}
}

// do sends one request; a form makes it a POST from our own pages.
func (w *browser) do(method, target string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	w.tb.Helper()
	body := http.NoBody
	r := httptest.NewRequest(method, "https://localhost:8443"+w.base+target, body)
	if form != nil {
		r = httptest.NewRequest(method, "https://localhost:8443"+w.base+target, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	r.RequestURI, r.TLS, r.RemoteAddr = w.base+target, &tls.ConnectionState{}, "192.0.2.7:1234"
	for name, value := range w.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	for _, h := range headers {
		key, value, _ := strings.Cut(h, ": ")
		r.Header.Set(key, value)
	}
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, r)
	for _, c := range rec.Result().Cookies() {
		w.cookies[c.Name] = c.Value
		if c.MaxAge < 0 {
			delete(w.cookies, c.Name)
		}
		if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || !strings.HasPrefix(c.Name, "__Host-") {
			w.tb.Errorf("%s %s sets a cookie that is not locked up: %v", method, target, c)
		}
	}
	w.last = rec
	return rec
}

// want fails unless the last answer has this status and holds these texts.
func (w *browser) want(status int, texts ...string) string {
	w.tb.Helper()
	body := w.last.Body.String()
	if w.last.Code != status {
		w.tb.Fatalf("status %d, want %d: %s", w.last.Code, status, body)
	}
	for _, text := range texts {
		if !strings.Contains(html.UnescapeString(body), text) {
			w.tb.Fatalf("the answer lacks %q:\n%s", text, body)
		}
	}
	return html.UnescapeString(body)
}

// start follows the link of the page that asks to sign in, and gives the issuer's address.
func (w *browser) start(back string) string {
	w.tb.Helper()
	w.do("GET", "/-/login?back="+url.QueryEscape(back), nil)
	link := regexp.MustCompile(`href="([^"]*/-/login/start[^"]*)"`).FindStringSubmatch(w.want(http.StatusOK))
	if link == nil {
		w.tb.Fatalf("the page has no link to sign in: %s", w.last.Body)
	}
	w.do("GET", strings.TrimPrefix(link[1], w.base), nil)
	w.want(http.StatusSeeOther)
	return w.last.Header().Get("Location")
}

// signIn signs somebody in and gives where the browser is sent then.
func (w *browser) signIn(iss *identitytest.Issuer, sub, back string) string {
	w.tb.Helper()
	q, err := iss.SignIn(w.start(back), sub)
	must(w.tb, err)
	w.do("GET", callbackPath+"?"+q.Encode(), nil)
	w.want(http.StatusSeeOther)
	return w.last.Header().Get("Location")
}

// mint makes a token on the page and gives its text.
func (w *browser) mint(form url.Values) string {
	w.tb.Helper()
	w.do("POST", "/-/tokens", form)
	m := regexp.MustCompile(`password (hg_hu_\w+)`).FindStringSubmatch(w.want(http.StatusOK))
	if m == nil {
		w.tb.Fatalf("the page shows no token: %s", w.last.Body)
	}
	return m[1]
}

// lastRecord is the record of the last answer, which has exactly one.
func (w *browser) lastRecord(b *bench) audit.Record {
	w.tb.Helper()
	var found []audit.Record
	for _, r := range b.records(w.tb) {
		if shortID(r.EventID) == w.last.Header().Get("Headgate-Decision") && r.Kind != audit.KindOutcome {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		w.tb.Fatalf("%d records of the answer %v", len(found), w.last.Header())
	}
	return found[0]
}

func TestSignInMintAndSignOut(t *testing.T) {
	b, iss := newSignInBench(t, hello)
	w := b.browser(t)
	w.do("GET", "/-/tokens", nil)
	w.want(http.StatusUnauthorized, "CREDENTIAL-MISSING", "Sign in with corp", "/-/login/start?back=%2F-%2Ftokens&provider=corp")
	if got := w.last.Header().Get("WWW-Authenticate"); got != `Bearer realm="headgate", error="login_required"` {
		t.Errorf("WWW-Authenticate %q", got)
	}
	if back := w.signIn(iss, "u-1", "/-/device"); back != "/-/device" {
		t.Errorf("the browser is sent to %q", back)
	}
	if r := w.lastRecord(b); r.Kind != audit.KindAuth || r.Action != "signin.oidc" || r.Subject.ID != "u-1" || r.Credential.Via != "session" || r.Decision.Status != 303 {
		t.Errorf("record of the sign-in: %+v", r)
	}
	if _, ok := w.cookies[signInCookie]; ok {
		t.Error("the cookie of the sign-in is still there")
	}
	token := w.mint(url.Values{"note": {"<b>laptop</b>"}, "modules": {"example.com/*"}, "days": {"3"}})
	w.want(http.StatusOK, "machine localhost:8443 login headgate password "+token, "go env -w GOPROXY=https://localhost:8443", "Signed in as u-1")
	if !strings.Contains(w.last.Body.String(), "&lt;b&gt;laptop") {
		t.Error("a note is markup in the page")
	}
	if r := w.lastRecord(b); r.Action != "token.create" || !strings.Contains(r.Change.Note, "module:example.com/*") {
		t.Errorf("record of the token: %+v", r)
	}
	if a := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", "Authorization: Bearer "+token); a.Code != http.StatusOK {
		t.Errorf("the token gets %d: %s", a.Code, a.Body)
	}
	w.do("GET", "/-/tokens", nil)
	if body := w.want(http.StatusOK, token[6:18], "module:example.com/*"); strings.Contains(body, token) {
		t.Error("the token is shown a second time")
	}
	w.do("POST", "/-/tokens/revoke", url.Values{"id": {token[6:18]}})
	w.want(http.StatusSeeOther)
	if a := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", "Authorization: Bearer "+token); a.Code != http.StatusUnauthorized || a.Header().Get("Headgate-Code") != "TOKEN-REVOKED" {
		t.Errorf("the revoked token gets %d: %s", a.Code, a.Body)
	}
	second, session := w.mint(url.Values{"modules": {"*"}}), w.cookies[sessionCookie]
	w.do("POST", "/-/logout", url.Values{"tokens": {"1"}})
	w.want(http.StatusSeeOther)
	if r := w.lastRecord(b); r.Action != "signout" || r.Subject.ID != "u-1" || r.Change.Note == "" {
		t.Errorf("record of the sign-out: %+v", r)
	}
	w.cookies[sessionCookie] = session
	w.do("GET", "/-/tokens", nil)
	w.want(http.StatusUnauthorized, "SESSION-OVER") // T80
	if a := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", "Authorization: Bearer "+second); a.Code != http.StatusUnauthorized {
		t.Errorf("a token of the session gets %d after sign-out", a.Code)
	}
	b.holdsNone(t, token, second, session, "canary-of-a-claim", "refresh-", "access-")
}

// holdsNone fails if a secret stands in the log or in the metrics.
func (b *bench) holdsNone(tb testing.TB, secrets ...string) {
	tb.Helper()
	var all strings.Builder
	must(tb, filepath.WalkDir(filepath.Join(b.dir, "audit"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all.Write(data)
		return err
	}))
	families, err := b.registry.Gather()
	must(tb, err)
	for _, f := range families {
		all.WriteString(f.String())
	}
	for _, secret := range secrets {
		if strings.Contains(all.String(), secret) {
			tb.Errorf("log or metrics hold the secret %.12s…", secret)
		}
	}
}

func TestPagesBelowAPrefix(t *testing.T) {
	b, iss := newSignInBench(t)
	s := New(Config{State: b.dir, URL: "https://localhost:8443/go"}, Options{
		Identity: b.identity, Policy: b.policy, Mirror: b.mirror, Audit: b.log, Logger: b.Server.log, Registry: prometheus.NewRegistry(), Version: "test",
	})
	w := &browser{tb: t, handler: s.public, base: "/go", cookies: map[string]string{}}
	address := w.start("/-/device")
	if u, _ := url.Parse(address); u.Query().Get("redirect_uri") != "https://localhost:8443/go/-/login/callback" {
		t.Errorf("redirect_uri in %s", address)
	}
	if back := w.signIn(iss, "u-1", "/-/device"); back != "/go/-/device" {
		t.Errorf("the browser is sent to %q", back)
	}
	w.do("GET", "/-/tokens", nil)
	body := w.want(http.StatusOK, `action="/go/-/tokens"`, `href="/go/-/web/style.css"`, `action="/go/-/logout"`)
	if n := strings.Count(body, `="/-/`); n > 0 {
		t.Errorf("%d links leave the prefix:\n%s", n, body)
	}
	w.do("GET", "/-/web/style.css", nil)
	if w.want(http.StatusOK); !strings.HasPrefix(w.last.Header().Get("Content-Type"), "text/css") {
		t.Errorf("style sheet is %s", w.last.Header().Get("Content-Type"))
	}
}

// Every page of a browser, whatever its status, has the headers that keep it to itself, and one record.
func TestPageHeadersAndRecords(t *testing.T) {
	b, iss := newSignInBench(t)
	w := b.browser(t)
	for _, signedIn := range []bool{false, true} {
		if signedIn {
			w.signIn(iss, "u-1", "")
		}
		for _, target := range []string{
			"GET /-/login", "HEAD /-/login", "PUT /-/login", "GET /-/login/start", "GET /-/login/start?provider=corp", "GET /-/login/start?provider=nobody",
			"GET /-/login/callback", "GET /-/tokens", "DELETE /-/tokens", "POST /-/tokens", "POST /-/tokens/revoke", "GET /-/tokens/revoke", "GET /-/device",
			"POST /-/device", "POST /-/device/answer", "GET /-/logout", "POST /-/logout",
		} {
			method, path, _ := strings.Cut(target, " ")
			var form url.Values
			if method == "POST" {
				form = url.Values{"x": {"y"}}
			}
			a := w.do(method, path, form)
			want := "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
			for name, value := range map[string]string{
				"Content-Security-Policy": want, "Strict-Transport-Security": "max-age=31536000", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
				"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
			} {
				if got := a.Header().Get(name); got != value {
					t.Errorf("%s: %s is %q, want %q", target, name, got, value)
				}
			}
			if a.Code == http.StatusNotFound || a.Code == http.StatusGone || a.Code >= 500 {
				t.Errorf("%s: status %d", target, a.Code)
			}
			if r := w.lastRecord(b); r.Kind != audit.KindAuth || r.Decision.Status != a.Code {
				t.Errorf("%s: status %d, record %s %s with status %d", target, a.Code, r.Kind, r.Action, r.Decision.Status)
			}
		}
	}
}
