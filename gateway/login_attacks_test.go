package gateway

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// T39–T46, T59: what an issuer did not sign for us opens no module, and says so as a refusal: one record with the reason,
// its id in the body, never 404, 410 or a redirect, and no issuer, upstream or secret is involved.
func TestForeignTokensOnModulePaths(t *testing.T) {
	b, iss := newSignInBench(t, hello)
	stranger := identitytest.NewKey("key-1")
	claims := func(changes map[string]any) map[string]any {
		c := iss.Claims("u-1", "headgate", map[string]any{"canary": "canary-of-a-claim"})
		for k, v := range changes {
			c[k] = v
		}
		return c
	}
	payload, err := json.Marshal(claims(nil))
	must(t, err)
	hour := time.Now().Unix() - 7200
	rows := map[string]struct {
		token string
		code  string
	}{
		"T39 alg none":                 {identitytest.Segments([]byte(`{"alg":"none","kid":"key-1"}`), payload) + ".", "CREDENTIAL-INVALID"},
		"T40 shared secret":            {identitytest.SignHMAC([]byte("x"), map[string]any{"alg": "HS256", "kid": "key-1"}, payload), "CREDENTIAL-INVALID"},
		"T41 key of the token's own":   {identitytest.SignRaw(stranger, map[string]any{"alg": "ES256", "kid": "key-1", "jwk": stranger.JWK()}, payload), "CREDENTIAL-INVALID"},
		"T42 another's audience":       {iss.Sign(claims(map[string]any{"aud": "grafana"})), "CREDENTIAL-INVALID"},
		"T43 a default audience":       {iss.Sign(claims(map[string]any{"aud": "https://github.com/corp"})), "CREDENTIAL-INVALID"},
		"T44 issuer with a slash more": {iss.Sign(claims(map[string]any{"iss": iss.URL + "/"})), "CREDENTIAL-INVALID"},
		"T45 access token":             {iss.Sign(claims(map[string]any{"scope": "openid"})), "CREDENTIAL-INVALID"},
		"T45 logout token":             {iss.SignHeader(map[string]any{"typ": "logout+jwt"}, claims(nil)), "CREDENTIAL-INVALID"},
		"T59 3,000 dots":               {"eyJ" + strings.Repeat(".", 3000), "CREDENTIAL-INVALID"},
		"T59 claim doubled":            {identitytest.SignRaw(iss.Key(), map[string]any{"alg": "ES256", "kid": "key-1"}, append([]byte(`{"sub":"root",`), payload[1:]...)), "CREDENTIAL-INVALID"},
		"expired":                      {iss.Sign(claims(map[string]any{"iat": hour, "exp": hour + 300})), "TOKEN-EXPIRED"},
	}
	asked := iss.Asked("/keys")
	for name, row := range rows {
		for via, header := range map[string]string{"Bearer": "Bearer " + row.token, "Basic": "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+row.token))} {
			t.Run(name+" as "+via, func(t *testing.T) {
				before := len(b.records(t))
				a := b.ask("GET", "/example.com/hello/@v/v1.0.0.zip", "Authorization: "+header)
				found := b.records(t)[before:]
				if a.Code != http.StatusUnauthorized || a.Header().Get("Headgate-Code") != row.code || a.Header().Get("WWW-Authenticate") == "" {
					t.Errorf("status %d, %v", a.Code, a.Header())
				}
				if len(found) != 1 || found[0].Decision.Codes[0] != row.code || !strings.Contains(a.Body.String(), "decision "+shortID(found[0].EventID)) {
					t.Errorf("records %+v for the body %q", found, a.Body)
				}
				if strings.Contains(a.Body.String(), "canary") || strings.Contains(a.Body.String(), row.token[:20]) {
					t.Errorf("the body echoes what was sent: %q", a.Body)
				}
			})
		}
	}
	if n := iss.Asked("/keys") - asked; n > 0 {
		t.Errorf("the issuer was asked %d times", n)
	}
	if n := len(b.upstream.Requests()); n > 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
	b.holdsNone(t, "canary-of-a-claim", rows["T42 another's audience"].token[:60])
}

// T54: what comes back from the issuer and is not what was sent away is 400, and opens nothing.
func TestT54CallbackAttacks(t *testing.T) {
	b, iss := newSignInBench(t)
	for name, attack := range map[string]func(w *browser, q url.Values) url.Values{
		"state missing":   func(_ *browser, q url.Values) url.Values { q.Del("state"); return q },
		"another browser": func(w *browser, q url.Values) url.Values { clear(w.cookies); return q },
		"victim is handed the attacker's code": func(w *browser, _ url.Values) url.Values {
			theirs := b.browser(t)
			q, err := iss.SignIn(theirs.start(""), "u-2")
			must(t, err)
			return q
		},
		"replayed": func(w *browser, q url.Values) url.Values {
			kept := w.cookies[signInCookie]
			w.do("GET", callbackPath+"?"+q.Encode(), nil)
			w.want(http.StatusSeeOther)
			clear(w.cookies)
			w.cookies[signInCookie] = kept
			return q
		},
		"markup for an error": func(_ *browser, q url.Values) url.Values {
			q.Set("error", "<script>alert(1)</script>")
			return q
		},
	} {
		t.Run("T54 "+name, func(t *testing.T) {
			w := b.browser(t)
			q, err := iss.SignIn(w.start(""), "u-1")
			must(t, err)
			q = attack(w, q)
			w.do("GET", callbackPath+"?"+q.Encode(), nil)
			if body := w.want(http.StatusBadRequest, "REQUEST-INVALID"); strings.Contains(body, "<script>") {
				t.Errorf("what the issuer said is markup: %s", body)
			}
			if r := w.lastRecord(b); r.Decision.Effect != "deny" || r.Decision.Codes[0] != "REQUEST-INVALID" {
				t.Errorf("record %+v", r.Decision)
			}
			if w.cookies[sessionCookie] != "" {
				t.Error("there is a session")
			}
		})
	}
}

// T55: a browser that signed in is sent to a page of ours, whatever somebody put into the link.
func TestT55ReturnPath(t *testing.T) {
	b, iss := newSignInBench(t)
	for _, back := range []string{
		"//evil.example", "https://evil.example/-/tokens", "/\\evil.example", "\\\\evil.example", "/-/../../evil", "/-/%2e%2e/x", "/-//evil.example", "javascript:alert(1)",
		"https://localhost:8443.evil.example/-/", "/-/tokens\r\nSet-Cookie: a=b", "/-/tokens#x", "/example.com/m/@v/list", "/-/login/start?provider=corp", "/-/logout/../login", "",
		"/-/\tevil", "@evil.example/-/", "/-/tokens\x00", "/-/" + strings.Repeat("a", 600),
	} {
		w := b.browser(t)
		if got := w.signIn(iss, "u-1", back); got != defaultPage {
			t.Errorf("T55 back=%q leads to %q", back, got)
		}
	}
	if got := b.browser(t).signIn(iss, "u-1", "/-/tokens?all=1"); got != "/-/tokens?all=1" {
		t.Errorf("a page of ours: %q", got)
	}
}

// FuzzLocalPath: whatever a link says, a browser resolves it to this host, over https, below /-/.
func FuzzLocalPath(f *testing.F) {
	for _, seed := range []string{"/-/tokens", "//evil", "/-/\\evil", "/-/a?b=c", "/-/.."} {
		f.Add(seed)
	}
	home := &url.URL{Scheme: "https", Host: "go.corp.example", Path: "/-/login/callback"}
	f.Fuzz(func(t *testing.T, back string) {
		u, err := home.Parse(localPath(back))
		if err != nil || u.Scheme != "https" || u.Host != home.Host || !strings.HasPrefix(u.Path, "/-/") || strings.HasPrefix(u.Path, "/-/login") {
			t.Errorf("localPath(%q) = %q leads to %v, %v", back, localPath(back), u, err)
		}
	})
}

// T56: a terminal's request names who asks, and is granted by a person's answer alone.
func TestT56TerminalGrant(t *testing.T) {
	b, iss := newSignInBench(t, hello)
	terminal, w := b.browser(t), b.browser(t)
	asked := b.grant(t, terminal, "laptop-7 <b>")
	code, _ := asked["user_code"].(string)
	if asked["verification_uri"] != "https://localhost:8443/-/device" || asked["interval"] != 5.0 || asked["expires_in"].(float64) > 300 || asked["expires_in"].(float64) < 240 || asked["verification_uri_complete"] != nil {
		t.Errorf("device authorization %v", asked)
	}
	if r := terminal.lastRecord(b); r.Action != "grant.begin" || !strings.Contains(r.Change.Object, "192.0.2.7") {
		t.Errorf("record %+v", r)
	}
	poll := url.Values{"grant_type": {identity.GrantDeviceCode}, "client_id": {identity.ClientCLI}, "device_code": {asked["device_code"].(string)}}
	w.do("POST", "/-/device", url.Values{"user_code": {code}})
	w.want(http.StatusUnauthorized, "CREDENTIAL-MISSING")
	w.signIn(iss, "u-1", "/-/device")
	w.do("GET", "/-/device?user_code="+code, nil)
	if body := w.want(http.StatusOK, "Type the code"); strings.Contains(body, code) {
		t.Error("T56 a link carries the code into the page")
	}
	w.do("POST", "/-/device", url.Values{"user_code": {strings.ToLower(code)}})
	w.want(http.StatusOK, code, "192.0.2.7", "laptop-7 <b>", "acts as u-1", "module:*", `value="deny"`, `value="allow"`)
	if strings.Contains(w.last.Body.String(), "laptop-7 <b>") {
		t.Error("a terminal's name is markup")
	}
	terminal.do("POST", "/-/oauth/token", poll)
	if terminal.want(http.StatusBadRequest, `"error":"authorization_pending"`); terminal.lastRecord(b).Severity != 1 {
		t.Error("T56 polling is worth an alarm")
	}
	w.do("POST", "/-/device/answer", url.Values{"user_code": {code}, "answer": {"allow"}}, "Sec-Fetch-Site: cross-site")
	w.want(http.StatusForbidden, "CROSS-ORIGIN")
	w.do("GET", "/-/device/answer?answer=allow&user_code="+code, nil)
	w.want(http.StatusMethodNotAllowed)
	w.do("POST", "/-/device/answer", url.Values{"user_code": {code}, "answer": {"maybe"}})
	w.want(http.StatusBadRequest)
	w.do("POST", "/-/device/answer", url.Values{"user_code": {code}, "answer": {"deny"}})
	w.want(http.StatusOK, "Denied")
	if r := w.lastRecord(b); r.Action != "grant.deny" || r.Subject.ID != "u-1" || strings.Contains(r.Change.Object+r.Change.Note, code) {
		t.Errorf("record %+v", r)
	}
	terminal.do("POST", "/-/oauth/token", poll)
	terminal.want(http.StatusBadRequest, `"error":"access_denied"`)

	asked = b.grant(t, terminal, "")
	w.do("POST", "/-/device/answer", url.Values{"user_code": {asked["user_code"].(string)}, "answer": {"allow"}})
	w.want(http.StatusOK, "Allowed")
	poll.Set("device_code", asked["device_code"].(string))
	terminal.do("POST", "/-/oauth/token", poll)
	var token struct {
		Token string `json:"access_token"`
	}
	must(t, json.Unmarshal([]byte(terminal.want(http.StatusOK)), &token))
	if r := terminal.lastRecord(b); r.Action != "signin.device_code" || r.Subject.ID != "u-1" || r.Decision.Effect != "allow" {
		t.Errorf("record %+v", r)
	}
	if a := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", "Authorization: Bearer "+token.Token); a.Code != http.StatusOK {
		t.Errorf("the token gets %d: %s", a.Code, a.Body)
	}
	for range 5 {
		w.do("POST", "/-/device", url.Values{"user_code": {"BBBB-BBBB"}})
		w.want(http.StatusBadRequest, "no terminal waits")
	}
	w.do("POST", "/-/device", url.Values{"user_code": {"BBBB-BBBB"}})
	w.want(http.StatusTooManyRequests, "RATE")
	b.holdsNone(t, token.Token, asked["device_code"].(string), asked["user_code"].(string), code)
}

// grant asks for a token as a terminal does.
func (b *bench) grant(tb testing.TB, terminal *browser, host string) map[string]any {
	tb.Helper()
	terminal.do("POST", "/-/oauth/device_authorization", url.Values{"client_id": {identity.ClientCLI}, "host": {host}})
	var asked map[string]any
	must(tb, json.Unmarshal(terminal.last.Body.Bytes(), &asked))
	if terminal.last.Code != http.StatusOK {
		tb.Fatalf("device authorization: %d %v", terminal.last.Code, asked)
	}
	return asked
}

// T80: what another site, another method or an old cookie makes a browser do has no effect.
func TestT80BrowserAttacks(t *testing.T) {
	b, iss := newSignInBench(t)
	w := b.browser(t)
	planted := strings.Repeat("A", 43)
	w.cookies[sessionCookie] = planted
	w.signIn(iss, "u-1", "")
	if w.cookies[sessionCookie] == planted {
		t.Fatal("T80 fixation: the session is the planted one")
	}
	first := w.cookies[sessionCookie]
	w.signIn(iss, "u-1", "")
	old := b.browser(t)
	old.cookies[sessionCookie] = first
	old.do("GET", "/-/tokens", nil)
	old.want(http.StatusUnauthorized, "SESSION-OVER")
	count := func() int {
		list, err := b.identity.Tokens(t.Context(), identity.Filter{Issuer: iss.URL, Subject: "u-1"})
		must(t, err)
		return len(list)
	}
	for name, headers := range map[string][]string{
		"T80 cross-site":                 {"Sec-Fetch-Site: cross-site"},
		"T80 same-site":                  {"Sec-Fetch-Site: same-site"},
		"T80 other origin, old browser":  {"Sec-Fetch-Site: ", "Origin: https://evil.example"},
		"T80 origin null":                {"Sec-Fetch-Site: ", "Origin: null"},
		"T80 origin of another port":     {"Sec-Fetch-Site: ", "Origin: https://localhost:9443"},
		"T80 origin of another subpath?": {"Sec-Fetch-Site: cross-site", "Origin: https://localhost:8443"},
	} {
		for _, target := range []string{"/-/tokens", "/-/logout", "/-/tokens/revoke", "/-/device", "/-/device/answer"} {
			w.do("POST", target, url.Values{"modules": {"*"}}, headers...)
			w.want(http.StatusForbidden, "CROSS-ORIGIN")
			if r := w.lastRecord(b); r.Decision.Effect != "deny" {
				t.Errorf("%s: record %+v", name, r.Decision)
			}
		}
	}
	for _, override := range []string{"X-HTTP-Method-Override: POST", "X-HTTP-Method: POST", "X-Method-Override: POST"} {
		w.do("GET", "/-/tokens?_method=POST&modules=*", nil, override)
		w.want(http.StatusOK)
		w.do("GET", "/-/logout?_method=POST", nil, override)
		w.want(http.StatusMethodNotAllowed)
	}
	if n := count(); n != 0 {
		t.Errorf("T80 %d tokens were minted", n)
	}
	w.do("GET", "/-/tokens", nil)
	w.want(http.StatusOK, "You have none")
	if a := b.ask("GET", "/", "Cookie: "+sessionCookie+"="+w.cookies[sessionCookie]); a.Code != http.StatusUnauthorized {
		t.Errorf("T60 a session as a credential of modules gets %d", a.Code)
	}
	if a := b.ask("GET", "/", "Authorization: Bearer "+w.cookies[sessionCookie]); a.Code != http.StatusUnauthorized {
		t.Errorf("T45 a session as a token gets %d", a.Code)
	}
}

// T81: nobody learns of another's token or ends it.
func TestT81TokensOfOthers(t *testing.T) {
	b, iss := newSignInBench(t)
	ann, bob := b.browser(t), b.browser(t)
	ann.signIn(iss, "u-1", "")
	bob.signIn(iss, "u-2", "")
	hers, his := ann.mint(url.Values{"modules": {"corp.example/*"}}), bob.mint(url.Values{"modules": {"*"}})
	auth := func(token string) string { return "Authorization: Bearer " + token }
	alive := func(what string, want int) {
		t.Helper()
		if a := b.ask("GET", "/", auth(hers)); a.Code != want {
			t.Errorf("T81 %s: her token gets %d, want %d", what, a.Code, want)
		}
	}
	bob.do("GET", "/-/tokens", nil)
	if body := bob.want(http.StatusOK); strings.Contains(body, hers[6:18]) || strings.Contains(body, "corp.example") {
		t.Error("T81 his page lists her token")
	}
	bob.do("POST", "/-/tokens/revoke", url.Values{"id": {hers[6:18]}})
	theirs := bob.want(http.StatusForbidden)
	bob.do("POST", "/-/tokens/revoke", url.Values{"id": {"000000000000"}})
	if nobodys := bob.want(http.StatusForbidden); len(nobodys) != len(theirs) {
		t.Errorf("T81 a token of somebody else and none are told apart:\n%s\n%s", theirs, nobodys)
	}
	alive("revoked by id", http.StatusOK)
	bob.do("POST", "/-/oauth/revoke", url.Values{"token": {hers}}, auth(his))
	bob.want(http.StatusOK)
	alive("revoked as another", http.StatusOK)
	for name, token := range map[string]string{"another's": hers, "nobody's": "hg_hu_nothing", "a JWT": iss.Sign(iss.Claims("u-2", "headgate", nil))} {
		bob.do("POST", "/-/oauth/introspect", url.Values{"token": {token}}, auth(his))
		if body := bob.want(http.StatusOK); strings.TrimSpace(body) != "{\n  \"active\": false\n}" {
			t.Errorf("T81 introspecting %s: %s", name, body)
		}
	}
	bob.do("POST", "/-/oauth/introspect", url.Values{"token": {hers}})
	bob.want(http.StatusBadRequest)
	bob.do("POST", "/-/oauth/introspect", url.Values{"token": {his}}, auth(his))
	bob.want(http.StatusOK, `"active": true`, `"sub": "u-2"`, `"scope": "content discover metadata module:*"`)
	for _, token := range []string{"hg_hu_nothing", hers, hers} { // RFC 7009, 2.2: again and unknown are 200
		ann.do("POST", "/-/oauth/revoke", url.Values{"token": {token}})
		ann.want(http.StatusOK)
	}
	alive("revoked by its holder", http.StatusUnauthorized)
	ann.do("POST", "/-/oauth/revoke?token="+his, url.Values{"token_type_hint": {"access_token"}})
	ann.want(http.StatusBadRequest, "invalid_request")
	b.holdsNone(t, hers, his)
}

// T53, T52 and T62 as a module client sees them.
func TestStoppedPeopleOnModulePaths(t *testing.T) {
	b, iss := newSignInBench(t, hello)
	w := b.browser(t)
	w.signIn(iss, "u-1", "")
	token := w.mint(url.Values{"modules": {"*"}})
	path, auth := "/example.com/hello/@v/v1.0.0.mod", "Authorization: Bearer "+token
	if a := b.ask("GET", path, auth); a.Code != http.StatusOK {
		t.Fatalf("status %d: %s", a.Code, a.Body)
	}
	must(t, b.identity.Lock(t.Context(), identity.Lock{Kind: identity.LockUser, Object: "u-1", Reason: "left"}))
	if a := b.ask("GET", path, auth); a.Code != http.StatusForbidden || a.Header().Get("Headgate-Code") != "LOCKED" {
		t.Errorf("T62 after a lock: %d %s", a.Code, a.Body)
	}
	q, err := iss.SignIn(w.start(""), "u-1")
	must(t, err)
	w.do("GET", callbackPath+"?"+q.Encode(), nil)
	w.want(http.StatusForbidden, "LOCKED") // T53
	if r := w.lastRecord(b); r.Subject.ID != "u-1" || r.Decision.Codes[0] != "LOCKED" {
		t.Errorf("T53 record %+v", r)
	}
	_, err = b.identity.Unlock(t.Context(), identity.LockUser, "u-1")
	must(t, err)
	w.do("POST", "/-/tokens/revoke", url.Values{"id": {token[6:18]}})
	if a := b.ask("GET", path, auth); a.Code != http.StatusUnauthorized || a.Header().Get("Headgate-Code") != "TOKEN-REVOKED" {
		t.Errorf("T62 after it was revoked: %d %s", a.Code, a.Body)
	}
}

// T51: with the issuer away, who is signed in stays so, and the page says what is wrong.
func TestT51SignInPageInAnOutage(t *testing.T) {
	iss, cfg := served(t)
	iss.Fail(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) })
	b := newBenchOf(t, cfg)
	b.ask("GET", "/", "Authorization: Bearer "+iss.Sign(iss.Claims("u-1", "headgate", nil)))
	w := b.browser(t)
	w.do("GET", "/-/login", nil)
	w.want(http.StatusOK, "corp cannot be reached just now. Whoever is signed in stays so")
	w.do("GET", "/-/login/start?provider=corp", nil)
	w.want(http.StatusServiceUnavailable, "ISSUER-DOWN")
	if r := w.lastRecord(b); r.Decision.Effect != "error" || w.last.Header().Get("Retry-After") == "" {
		t.Errorf("record %+v", r.Decision)
	}
}

// T58: the job of a fork gets public modules only, though its numbers are those of a team's repository.
func TestT58ForkOnModulePaths(t *testing.T) {
	iss, cfg := served(t)
	cfg.Issuers[0].Type, cfg.Issuers[0].Provider, cfg.Issuers[0].ClientID, cfg.Issuers[0].GroupsClaim = identity.Workload, "github", "", ""
	b := newBenchOf(t, cfg, hello)
	folder := filepath.Join(b.dir, "policy")
	must(t, os.MkdirAll(filepath.Join(folder, "config"), 0o700))
	must(t, os.WriteFile(filepath.Join(folder, "bundle.yaml"), []byte("name: test\nlibrary: default\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(folder, "config", "rules.yaml"), []byte("profiles: [open, standard, strict]\nrules: []\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(folder, "config", "teams.yaml"), []byte(
		"teams:\n  everyone: {profile: standard, public: true}\n  app:\n    profile: standard\n    jobs: [\"github:482913\"]\n    allow: [corp.example]\n"), 0o600))
	engine, err := policy.Open(t.Context(), policy.Config{Source: "folder", Path: folder}, policy.Options{Embedded: policies.FS, Logger: b.Server.log})
	must(t, err)
	if r := engine.Status().Rejection; r != nil {
		t.Fatalf("%+v", *r)
	}
	t.Cleanup(func() { engine.Close() })
	m, err := mirror.New(t.Context(), mirror.Config{
		Upstreams: []string{b.upstream.URL}, Sumdb: []string{b.upstream.Key()}, Store: filepath.Join(b.dir, "store-2"), Private: []mirror.PrivateRoute{{Patterns: []string{"corp.example/*"}}},
	}, mirror.Options{Logger: b.Server.log, DB: b.db, State: b.dir, Host: "localhost"})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	b.policy, b.mirror = engine, m
	for name, row := range map[string]struct {
		path    string
		changes map[string]any
		status  int
	}{
		"its own push":                   {"/corp.example/lib/@v/list", nil, http.StatusBadGateway}, // allowed; there is no source behind it
		"T58 pull request":               {"/corp.example/lib/@v/list", map[string]any{"event_name": "pull_request"}, http.StatusForbidden},
		"T58 pull_request_target":        {"/corp.example/lib/@v/list", map[string]any{"event_name": "pull_request_target"}, http.StatusForbidden},
		"T58 reused name":                {"/corp.example/lib/@v/list", map[string]any{"repository_id": "999999"}, http.StatusForbidden},
		"T58 pull request, public":       {"/example.com/hello/@v/list", map[string]any{"event_name": "pull_request"}, http.StatusOK},
		"T58 exchanged before the fetch": {"/corp.example/lib/@v/list", map[string]any{"event_name": "pull_request", "exchange": true}, http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			claims := map[string]any{
				"sub": "repo:corp/app:pull_request", "repository": "corp/app", "repository_id": "482913", "repository_owner_id": "2020", "ref": "refs/heads/main",
				"ref_protected": "true", "event_name": "push",
			}
			for k, v := range row.changes {
				claims[k] = v
			}
			raw := iss.Sign(iss.Claims("repo:corp/app", "headgate", claims))
			if row.changes["exchange"] != nil {
				raw = b.exchanged(t, raw)
			}
			a := b.ask("GET", row.path, "Authorization: Bearer "+raw)
			if a.Code != row.status {
				t.Errorf("status %d, want %d: %s", a.Code, row.status, a.Body)
			}
			if a.Code == http.StatusForbidden && !strings.HasPrefix(a.Body.String(), "PATH-NOT-ALLOWED") {
				t.Errorf("body %q", a.Body)
			}
		})
	}
}

// exchanged is a Headgate token for a token of an issuer.
func (b *bench) exchanged(tb testing.TB, raw string) string {
	tb.Helper()
	w := b.browser(tb)
	w.do("POST", "/-/oauth/token", url.Values{"grant_type": {identity.GrantTokenExchange}, "subject_token": {raw}, "subject_token_type": {identity.TypeJWT}})
	var out struct {
		Token string `json:"access_token"`
	}
	must(tb, json.Unmarshal([]byte(w.want(http.StatusOK)), &out))
	if r := w.lastRecord(b); r.Kind != audit.KindAuth || r.Action != "token.exchange" {
		tb.Errorf("record %+v", r)
	}
	return out.Token
}

func TestOAuthMetadata(t *testing.T) {
	b, _ := newSignInBench(t)
	a := b.ask("GET", "/-/.well-known/oauth-authorization-server")
	var doc map[string]any
	if err := json.Unmarshal(a.Body.Bytes(), &doc); err != nil || a.Code != http.StatusOK {
		t.Fatalf("status %d, %v", a.Code, err)
	}
	for key, want := range map[string]string{
		"issuer": "https://localhost:8443/-", "token_endpoint": "https://localhost:8443/-/oauth/token",
		"device_authorization_endpoint": "https://localhost:8443/-/oauth/device_authorization",
		"revocation_endpoint":           "https://localhost:8443/-/oauth/revoke", "introspection_endpoint": "https://localhost:8443/-/oauth/introspect",
	} {
		if doc[key] != want {
			t.Errorf("%s is %v, want %s", key, doc[key], want)
		}
	}
	if own, err := b.mirror.OwnSumdb(); err != nil || own == "" || doc["headgate_gosumdb"] != own {
		t.Errorf("headgate_gosumdb is %v, want %s %v", doc["headgate_gosumdb"], own, err)
	}
	if alias, ok := doc["mtls_endpoint_aliases"]; ok {
		t.Errorf("without a listener of devices there is %v", alias)
	}
}
