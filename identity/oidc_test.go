package identity_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

const corp = "https://id.corp.example"

func TestIDTokenIsAccepted(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, trust(iss), iss)
	claims := iss.Claims("u-1", "headgate", map[string]any{
		"groups": []string{"eng", "e\u0301quipe", "eng", "\u00e9quipe"}, "team": "payments", "cost_centre": "42",
		"email": "alice@corp.example", "email_verified": true, "amr": []string{"pwd", "mfa"},
	})
	want := identity.Principal{
		Subject: identity.Subject{
			Type: "person", ID: "u-1", Issuer: corp, Name: "alice@corp.example", Method: "oidc", Assurance: 2,
			Groups: []string{"eng", "\u00e9quipe"}, Team: "payments",
			Labels: map[string]string{"mail": "alice@corp.example", "centre": "42"},
		},
		Device:     identity.Device{Proof: "none", Platform: "unknown"},
		Credential: identity.Credential{Class: "jwt", Expires: time.Unix(claims["exp"].(int64), 0)},
		Scope:      everything,
	}
	raw := iss.Sign(claims)
	for via, header := range map[string]string{"bearer": "Bearer " + raw, "basic": basic("anyone", raw)} {
		t.Run(via, func(t *testing.T) {
			got, err := s.Authenticate(request(header))
			if err != nil {
				t.Fatal(err)
			}
			want.Credential.Via = via
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("principal (-want +got):\n%s", diff)
			}
		})
	}
}

// TestForgedToken: every row differs from a good token in one thing, and the good
// token is accepted at the end.
func TestForgedToken(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	other := identitytest.NewIssuer("https://id.other.example")
	rsaKey, err := identitytest.NewRSAKey("rsa-1", 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := identitytest.NewRSAKey("weak", 1024)
	if err != nil {
		t.Fatal(err)
	}
	stranger := identitytest.NewKey("key-1")
	symmetric := map[string]any{"kty": "oct", "kid": "oct-1", "alg": "HS256", "k": base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))}
	encryption := iss.Key().JWK()
	encryption["use"], encryption["kid"] = "enc", "enc-1"
	iss.Publish(iss.Key().JWK(), rsaKey.JWK(), weak.JWK(), symmetric, encryption)
	cfg := trust(iss)
	cfg.Issuers = append(cfg.Issuers, identity.Issuer{Name: "other", URL: other.URL, Audiences: []string{"headgate"}})
	s := start(t, cfg, iss, other)

	good := func(changes map[string]any) map[string]any { return iss.Claims("u-1", "headgate", changes) }
	signed := func(changes map[string]any) string { return iss.Sign(good(changes)) }
	header := func(changes map[string]any) string { return iss.SignHeader(changes, good(nil)) }
	raw := func(payload string) string {
		return identitytest.SignRaw(iss.Key(), map[string]any{"alg": "ES256", "kid": "key-1"}, []byte(payload))
	}
	unsigned := func(alg string) string {
		return identitytest.Segments([]byte(`{"alg":"`+alg+`","kid":"key-1"}`), payload(t, good(nil))) + "."
	}
	spki, err := x509.MarshalPKIXPublicKey(&rsaKey.RSA.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	hs256 := map[string]any{"alg": "HS256", "kid": "rsa-1"}
	now := time.Now().Unix()
	evilKey := map[string]any{"jwk": stranger.JWK(), "kid": "evil"}
	body := string(payload(t, good(nil)))

	for name, token := range map[string]string{
		"T39 alg none":                      unsigned("none"),
		"T39 alg None":                      unsigned("None"),
		"T39 alg nOnE":                      unsigned("nOnE"),
		"T39 empty signature":               unsigned("ES256"),
		"T39 none with a signature":         unsigned("none") + "AAAA",
		"T39 no alg":                        header(map[string]any{"alg": nil}),
		"T39 signature cut":                 strings.TrimRight(signed(nil)[:len(signed(nil))-8], "."),
		"T40 public key (PEM) as secret":    identitytest.SignHMAC(publicPEM, hs256, payload(t, good(nil))),
		"T40 public key (DER) as secret":    identitytest.SignHMAC(spki, hs256, payload(t, good(nil))),
		"T40 symmetric key of the key set":  identitytest.SignHMAC([]byte(strings.Repeat("s", 32)), map[string]any{"alg": "HS256", "kid": "oct-1"}, payload(t, good(nil))),
		"T40 algorithm of another key":      identitytest.SignRaw(iss.Key(), map[string]any{"alg": "RS256", "kid": "key-1"}, payload(t, good(nil))),
		"T40 algorithm that is not allowed": identitytest.SignRaw(iss.Key(), map[string]any{"alg": "ES384", "kid": "key-1"}, payload(t, good(nil))),
		"T41 jwk":                           identitytest.SignRaw(stranger, with(evilKey, "alg", "ES256"), payload(t, good(nil))),
		"T41 jwk with a known kid":          identitytest.SignRaw(stranger, map[string]any{"alg": "ES256", "kid": "key-1", "jwk": stranger.JWK()}, payload(t, good(nil))),
		"T41 jku":                           header(map[string]any{"jku": "https://evil.example/keys"}),
		"T41 x5u":                           header(map[string]any{"x5u": "https://evil.example/cert"}),
		"T41 x5c":                           header(map[string]any{"x5c": []string{"AAAA"}}),
		"T41 crit":                          header(map[string]any{"crit": []string{"exp"}}),
		"T41 b64":                           header(map[string]any{"b64": false}),
		"T42 aud missing":                   signed(map[string]any{"aud": nil}),
		"T42 aud empty":                     signed(map[string]any{"aud": []string{}}),
		"T42 aud of another client":         signed(map[string]any{"aud": "grafana"}),
		"T42 aud array of ours and others":  signed(map[string]any{"aud": []string{"headgate", "grafana"}}),
		"T42 aud array with null":           signed(map[string]any{"aud": []any{"headgate", nil}}),
		"T42 aud that begins like ours":     signed(map[string]any{"aud": "headgate2"}),
		"T42 aud in upper case":             signed(map[string]any{"aud": "HEADGATE"}),
		"T43 token for the API server":      signed(map[string]any{"aud": []string{"https://kubernetes.default.svc"}}),
		"T43 CI token's default audience":   signed(map[string]any{"aud": "https://github.com/corp"}),
		"T44 iss with a slash more":         signed(map[string]any{"iss": corp + "/"}),
		"T44 iss in upper case":             signed(map[string]any{"iss": "https://ID.corp.example"}),
		"T44 iss over http":                 signed(map[string]any{"iss": "http://id.corp.example"}),
		"T44 iss with a look-alike letter":  signed(map[string]any{"iss": "https://id.c\u043erp.example"}),
		"T44 iss missing":                   signed(map[string]any{"iss": nil}),
		"T44 iss not configured":            signed(map[string]any{"iss": "https://elsewhere.example"}),
		"T44 key of A on a token of B":      signed(map[string]any{"iss": other.URL}),
		"T45 access token by typ":           header(map[string]any{"typ": "at+jwt"}),
		"T45 logout token by typ":           header(map[string]any{"typ": "logout+jwt"}),
		"T45 security event by typ":         header(map[string]any{"typ": "secevent+jwt"}),
		"T45 logout token by events":        signed(map[string]any{"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}),
		"T45 access token by scope":         signed(map[string]any{"scope": "openid"}),
		"T45 access token by scp":           signed(map[string]any{"scp": []string{"openid"}}),
		"T45 access token by typ claim":     signed(map[string]any{"typ": "Bearer"}),
		"T45 access token by token_use":     signed(map[string]any{"token_use": "access"}),
		"T45 console session":               "eyJzZXNzaW9uIjoiMTIzIn0",
		"T59 doubled claim":                 raw(strings.Replace(body, `{`, `{"sub":"root",`, 1)),
		"T59 claim doubled in another case": raw(strings.Replace(body, `{`, `{"SUB":"root",`, 1)),
		"T59 claim doubled by escape":       raw(strings.Replace(body, `{`, `{"s\u0075b":"root",`, 1)),
		"T59 claim doubled with a long s":   raw(strings.Replace(body, `{`, `{"\u017fub":"root",`, 1)),
		"T59 claim doubled inside":          raw(strings.Replace(body, `{`, `{"x":{"a":1,"a":2},`, 1)),
		"T59 deep JSON":                     raw(strings.Replace(body, `{`, `{"x":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+`,`, 1)),
		"T59 two documents":                 raw(body + body),
		"T59 payload is an array":           raw("[" + body + "]"),
		"T59 payload is null":               raw("null"),
		"T59 payload is HTML":               raw("<html>"),
		"T59 payload is not UTF-8":          raw(strings.Replace(body, "u-1", "u-\xff", 1)),
		"T59 4,000 dots":                    "eyJ" + strings.Repeat(".", 4000),
		"T59 four segments":                 signed(nil) + ".AAAA",
		"T59 two segments":                  strings.Join(strings.Split(signed(nil), ".")[:2], "."),
		"T59 padding":                       strings.Replace(signed(nil), ".", "=.", 1),
		"T59 header repeats alg":            strings.Replace(signed(nil), strings.Split(signed(nil), ".")[0], base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","alg":"ES256","kid":"key-1"}`)), 1),
		"key that is not published":         identitytest.SignRaw(stranger, map[string]any{"alg": "ES256", "kid": "key-1"}, payload(t, good(nil))),
		"key for encryption":                header(map[string]any{"kid": "enc-1"}),
		"RSA key of 1024 bits":              identitytest.SignRaw(weak, map[string]any{"alg": "RS256", "kid": "weak"}, payload(t, good(nil))),
		"claims changed after signing":      swap(signed(nil), 1, signed(map[string]any{"sub": "root"})),
		"header changed after signing":      swap(signed(nil), 0, header(map[string]any{"x": "y"})),
		"exp missing":                       signed(map[string]any{"exp": nil}),
		"exp as text":                       signed(map[string]any{"exp": "99999999999"}),
		"exp null":                          raw(strings.Replace(body, `"exp":`, `"exp":null,"y":`, 1)),
		"exp far away":                      signed(map[string]any{"exp": int64(1) << 40}),
		"exp negative":                      signed(map[string]any{"exp": -1}),
		"iat missing":                       signed(map[string]any{"iat": nil}),
		"iat 2 minutes ahead":               signed(map[string]any{"iat": now + 120, "exp": now + 300}),
		"life of 25 hours":                  signed(map[string]any{"iat": now, "exp": now + 25*3600}),
		"nbf 2 minutes ahead":               signed(map[string]any{"nbf": now + 120}),
		"exp before iat":                    signed(map[string]any{"iat": now, "exp": now - 1}),
		"sub missing":                       signed(map[string]any{"sub": nil}),
		"sub empty":                         signed(map[string]any{"sub": ""}),
		"sub a number":                      signed(map[string]any{"sub": 17}),
		"sub with a line break":             signed(map[string]any{"sub": "a\nb"}),
		"sub of 256 bytes":                  signed(map[string]any{"sub": strings.Repeat("a", 256)}),
		"groups as an object":               signed(map[string]any{"groups": map[string]bool{"eng": true}}),
		"groups of numbers":                 signed(map[string]any{"groups": []int{1}}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bearer(s, token)
			wantCode(t, "Authenticate", err, identity.CredentialInvalid)
		})
	}
	for _, token := range []string{signed(nil), identitytest.SignRaw(rsaKey, map[string]any{"alg": "RS256", "kid": "rsa-1"}, payload(t, good(nil))), header(map[string]any{"typ": nil})} {
		if _, err := bearer(s, token); err != nil {
			t.Errorf("a good token is refused: %v", err)
		}
	}
	if n := iss.Asked("/keys"); n > 2 {
		t.Errorf("%d fetches of the key set during the attacks, want the first and one more", n)
	}
}

// payload encodes claims.
func payload(t testing.TB, claims map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func with(m map[string]any, name string, value any) map[string]any {
	m = maps.Clone(m)
	m[name] = value
	return m
}

// swap replaces one segment of a token by that of another one.
func swap(token string, n int, from string) string {
	a, b := strings.Split(token, "."), strings.Split(from, ".")
	a[n] = b[n]
	return strings.Join(a, ".")
}

func TestExpiryAndLeeway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, trust(iss), iss)
		raw := iss.Sign(iss.Claims("u-1", "headgate", nil))
		time.Sleep(5*time.Minute + 59*time.Second)
		if _, err := bearer(s, raw); err != nil {
			t.Errorf("within the leeway: %v", err)
		}
		time.Sleep(time.Second)
		_, err := bearer(s, raw)
		wantCode(t, "after the leeway", err, identity.TokenExpired)
		if e, _ := errors.AsType[*identity.Error](err); e == nil || e.Subject.ID != "u-1" {
			t.Errorf("the error does not say whose token it was: %+v", e)
		}
		_, err = bearer(s, swap(raw, 2, iss.Sign(iss.Claims("u-2", "headgate", nil))))
		wantCode(t, "expired and forged", err, identity.CredentialInvalid)
		ahead := time.Now().Unix() + 59
		if _, err := bearer(s, iss.Sign(iss.Claims("u-1", "headgate", map[string]any{"iat": ahead, "nbf": ahead}))); err != nil {
			t.Errorf("a clock 59 s ahead: %v", err)
		}
	})
}

func TestWorkload(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	cfg := trust(iss)
	cfg.Issuers[0].Type = identity.Workload
	s := start(t, cfg, iss)
	p, err := bearer(s, iss.Sign(iss.Claims("repo:corp/app", "headgate", nil)))
	if err != nil || p.Subject.Type != identity.Workload || p.Subject.Method != identity.MethodWorkload || p.Allows("", "mint") || !p.Allows("a", "content") {
		t.Errorf("principal %+v, %v", p, err)
	}
	_, err = bearer(s, iss.Sign(iss.Claims("repo:corp/app", "headgate", map[string]any{"exp": time.Now().Unix() + 3700})))
	wantCode(t, "job's token of more than an hour", err, identity.CredentialInvalid)
}

func TestMail(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, trust(iss), iss)
	for name, tt := range map[string]struct {
		mail, verified any
		want           string
	}{
		"verified":                   {"a@corp.example", true, "a@corp.example"},
		"T46 email_verified false":   {"a@corp.example", false, ""},
		"T46 email_verified absent":  {"a@corp.example", nil, ""},
		"T46 email_verified as text": {"a@corp.example", "true", ""},
		"T46 email_verified 1":       {"a@corp.example", 1, ""},
		"two addresses":              {"a@corp.example,b@corp.example", true, ""},
		"not ASCII":                  {"\u0430@corp.example", true, ""},
		"with a name":                {"A <a@corp.example>", true, ""},
		"two at signs":               {"a@b@corp.example", true, ""},
		"a list":                     {[]string{"a@corp.example"}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := bearer(s, iss.Sign(iss.Claims("u-1", "headgate", map[string]any{
				"email": tt.mail, "email_verified": tt.verified, "preferred_username": "ceo@corp.example",
			})))
			if err != nil {
				t.Fatal(err)
			}
			if p.Subject.Labels["mail"] != tt.want || p.Subject.Name != tt.want {
				t.Errorf("label %q, name %q; want %q", p.Subject.Labels["mail"], p.Subject.Name, tt.want)
			}
		})
	}
	t.Run("T47 same e-mail, another sub", func(t *testing.T) {
		claims := map[string]any{"email": "a@corp.example", "email_verified": true, "groups": []string{"finance"}}
		d, err := s.Exchange(t.Context(), exchangeOf(iss.Sign(iss.Claims("old", "headgate", claims))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Issue(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		claims["groups"] = nil
		p, err := bearer(s, iss.Sign(iss.Claims("new", "headgate", claims)))
		if err != nil || p.Subject.ID != "new" || len(p.Subject.Groups) > 0 {
			t.Errorf("the new holder of the address is %+v, %v", p.Subject, err)
		}
		list, _ := s.Tokens(t.Context(), identity.Filter{Issuer: corp, Subject: "new"})
		if len(list) > 0 {
			t.Errorf("the new holder of the address has tokens: %+v", list)
		}
	})
}

func TestGroupsFollowTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		db, keys := statetest.OpenDB(t), t.TempDir()
		s, err := identity.Open(t.Context(), trust(iss), identity.Options{DB: db, Keys: keys, HTTPClient: identitytest.Client(iss)})
		if err != nil {
			t.Fatal(err)
		}
		in := func(groups ...string) string {
			return iss.Sign(iss.Claims("u-1", "headgate", map[string]any{"groups": groups, "exp": time.Now().Unix() + 3600}))
		}
		groups := func(s *identity.Service, secret string) []string {
			p, err := bearer(s, secret)
			if err != nil {
				t.Fatal(err)
			}
			return p.Subject.Groups
		}
		old := in("eng", "payments")
		d, err := s.Exchange(t.Context(), exchangeOf(old))
		if err != nil {
			t.Fatal(err)
		}
		secret, err := s.Issue(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := groups(s, in("eng")); !slices.Equal(got, []string{"eng"}) {
			t.Errorf("new ID token: %v", got)
		}
		if got := groups(s, secret); !slices.Equal(got, []string{"eng"}) {
			t.Errorf("T63 token minted before the group was lost: %v", got)
		}
		if got := groups(s, old); !slices.Equal(got, []string{"eng"}) {
			t.Errorf("ID token from before the group was lost: %v", got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := groups(reopen(t, trust(iss), db, keys, iss), secret); !slices.Equal(got, []string{"eng"}) {
			t.Errorf("after a restart: %v", got)
		}
	})
}

func TestRealProvider(t *testing.T) {
	users := []identitytest.User{
		{Login: "alice", Password: "correct horse", ID: "sub-alice", Email: "alice@corp.example", Groups: []string{"payments", "eng"}, Claims: map[string]any{"team": "payments"}},
		{Login: "bob", Password: "battery staple", ID: "sub-bob"},
	}
	p, pc, client, ca := identitytest.Serve(t, identitytest.ProviderConfig{Users: users})
	cfg := identity.Config{Issuers: []identity.Issuer{{
		Name: "corp", URL: pc.Issuer, Audiences: []string{pc.ClientID}, Algorithms: []string{"ES256"}, GroupsClaim: "groups", TeamClaim: "team", CAFile: ca,
	}}}
	s := reopen(t, cfg, statetest.OpenDB(t), t.TempDir())
	raw, err := identitytest.SignIn(t.Context(), client, pc, "alice", "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Authenticate(request(basic("x", raw)))
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Subject{
		Type: "person", ID: "sub-alice", Issuer: pc.Issuer, Name: "alice@corp.example", Groups: []string{"eng", "payments"}, Team: "payments", Method: "oidc", Assurance: 1,
	}
	if diff := cmp.Diff(want, got.Subject); diff != "" {
		t.Errorf("subject (-want +got):\n%s", diff)
	}
	d, err := s.Exchange(t.Context(), exchangeOf(raw))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := s.Issue(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	byToken, err := s.Authenticate(request(basic("x", secret)))
	if err != nil {
		t.Fatal(err)
	}
	want.Method = "token"
	if diff := cmp.Diff(want, byToken.Subject); diff != "" {
		t.Errorf("subject of the exchanged token (-want +got):\n%s", diff)
	}
	t.Run("wrong password", func(t *testing.T) {
		if _, err := identitytest.SignIn(t.Context(), client, pc, "bob", "correct horse"); err == nil {
			t.Error("SignIn succeeds")
		}
	})
	t.Run("the provider rotates its key", func(t *testing.T) {
		p.Rotate()
		next, err := identitytest.SignIn(t.Context(), client, pc, "bob", "battery staple")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bearer(s, next); err != nil {
			t.Errorf("token of the new key: %v", err)
		}
	})
	t.Run("a CA that the issuer's certificate is not of", func(t *testing.T) {
		stranger := &http.Client{}
		if _, err := identitytest.SignIn(t.Context(), stranger, pc, "bob", "battery staple"); err == nil {
			t.Error("SignIn without the CA succeeds")
		}
		cfg.Issuers[0].CAFile = ""
		_, err := bearer(reopen(t, cfg, statetest.OpenDB(t), t.TempDir()), raw)
		if got := code(t, err); got != identity.IssuerDown {
			t.Errorf("code %q (%v), want %q", got, err, identity.IssuerDown)
		}
	})
}

// With client_id set, a token that was made for another client of the same audience is refused.
func TestAuthorizedParty(t *testing.T) {
	issuer := identitytest.NewIssuer("https://id.corp.example")
	cfg := trust(issuer)
	cfg.Issuers[0].ClientID = "headgate"
	s := start(t, cfg, issuer)
	for name, tt := range map[string]struct {
		azp  any
		want identity.Code
	}{
		"absent": {nil, ""}, "ours": {"headgate", ""}, "another's": {"grafana", identity.CredentialInvalid}, "a number": {1, identity.CredentialInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bearer(s, issuer.Sign(issuer.Claims("alice", "headgate", map[string]any{"azp": tt.azp})))
			wantCode(t, "azp "+name, err, tt.want)
		})
	}
}
