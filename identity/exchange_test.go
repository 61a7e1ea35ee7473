package identity_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// exchangeOf is a plain exchange of an ID token.
func exchangeOf(raw string) identity.ExchangeRequest {
	return identity.ExchangeRequest{GrantType: identity.GrantTokenExchange, SubjectToken: raw, SubjectTokenType: identity.TypeIDToken}
}

func TestExchange(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, trust(iss), iss)
	claims := iss.Claims("u-1", "headgate", map[string]any{"groups": []string{"eng"}})
	ends := time.Unix(claims["exp"].(int64), 0)
	raw := iss.Sign(claims)
	for name, tt := range map[string]struct {
		change func(*identity.ExchangeRequest)
		want   string
	}{
		"plain":            {func(*identity.ExchangeRequest) {}, "content discover metadata mint module:*"},
		"as jwt":           {func(q *identity.ExchangeRequest) { q.SubjectTokenType = identity.TypeJWT }, "content discover metadata mint module:*"},
		"type named":       {func(q *identity.ExchangeRequest) { q.RequestedTokenType = identity.TypeAccessToken }, "content discover metadata mint module:*"},
		"audience named":   {func(q *identity.ExchangeRequest) { q.Audience = "headgate" }, "content discover metadata mint module:*"},
		"narrower modules": {func(q *identity.ExchangeRequest) { q.Scope = "module:corp/a module:corp/b" }, "content discover metadata mint module:corp/a module:corp/b"},
		"narrower actions": {func(q *identity.ExchangeRequest) { q.Scope = "metadata discover" }, "discover metadata module:*"},
		"narrower in both": {func(q *identity.ExchangeRequest) { q.Scope = "content module:corp/a" }, "content module:corp/a"},
	} {
		t.Run(name, func(t *testing.T) {
			q := exchangeOf(raw)
			tt.change(&q)
			d, err := s.Exchange(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if d.Token.Scope.String() != tt.want || d.Token.Class != identity.ClassPerson || d.Token.Subject.ID != "u-1" {
				t.Errorf("draft %+v, want scope %q", d.Token, tt.want)
			}
			if d.Token.Expires.After(ends) {
				t.Errorf("the result ends at %v, the ID token at %v", d.Token.Expires, ends)
			}
			secret, err := s.Issue(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			p, err := bearer(s, secret)
			if err != nil || p.Scope.String() != tt.want || p.Subject.Issuer != corp || p.Subject.Groups[0] != "eng" {
				t.Errorf("principal %+v, %v", p, err)
			}
		})
	}
}

func TestExchangeRefused(t *testing.T) {
	iss, foreign := identitytest.NewIssuer(corp), identitytest.NewIssuer("https://id.foreign.example")
	s := start(t, trust(iss), iss, foreign)
	now := time.Now().Unix()
	good := iss.Sign(iss.Claims("u-1", "headgate", nil))
	revoked, revokedSecret := person(t, s)
	if _, err := s.Revoke(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	_, ci := mint(t, s, identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Owner: "alice", Scope: modules("*")})
	_, admin := mint(t, s, identity.TokenRequest{Class: identity.ClassAdmin, Subject: alice(), Scope: identity.Scope{Actions: []string{"admin"}}})
	_, plain := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: modules("corp/a")})
	_, minting := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: identity.Scope{Modules: []string{"corp/a"}, Actions: []string{"content", "mint"}}})
	base := exchangeOf(good)
	change := func(f func(*identity.ExchangeRequest)) identity.ExchangeRequest {
		q := base
		f(&q)
		return q
	}
	token := func(text, scope string) identity.ExchangeRequest {
		return identity.ExchangeRequest{GrantType: identity.GrantTokenExchange, SubjectToken: text, SubjectTokenType: identity.TypeAccessToken, Scope: scope}
	}
	for _, tt := range []struct {
		name  string
		q     identity.ExchangeRequest
		code  identity.Code
		oauth string
	}{
		{"T57 expired", exchangeOf(iss.Sign(iss.Claims("u-1", "headgate", map[string]any{"iat": now - 600, "exp": now - 300}))), identity.TokenExpired, "invalid_request"},
		{"T57 revoked", token(revokedSecret, ""), identity.TokenRevoked, "invalid_request"},
		{"T57 issuer not configured", exchangeOf(foreign.Sign(foreign.Claims("u-1", "headgate", nil))), identity.CredentialInvalid, "invalid_request"},
		{"T57 another client's token", exchangeOf(iss.Sign(iss.Claims("u-1", "grafana", nil))), identity.CredentialInvalid, "invalid_request"},
		{"T57 admin scope", change(func(q *identity.ExchangeRequest) { q.Scope = "admin" }), identity.ScopeExceeded, "invalid_scope"},
		{"T57 admin beside others", change(func(q *identity.ExchangeRequest) { q.Scope = "content admin module:*" }), identity.ScopeExceeded, "invalid_scope"},
		{"T57 unknown scope", change(func(q *identity.ExchangeRequest) { q.Scope = "openid" }), identity.ScopeExceeded, "invalid_scope"},
		{"T57 wider modules than the token", token(minting, "module:corp"), identity.ScopeExceeded, "invalid_scope"},
		{"T57 wider actions than the token", token(minting, "discover"), identity.ScopeExceeded, "invalid_scope"},
		{"T64 CI token", token(ci, ""), identity.ScopeExceeded, "invalid_scope"},
		{"admin's token", token(admin, ""), identity.ScopeExceeded, "invalid_scope"},
		{"token that may not mint", token(plain, ""), identity.ScopeExceeded, "invalid_scope"},
		{"another audience", change(func(q *identity.ExchangeRequest) { q.Audience = "grafana" }), identity.RequestInvalid, "invalid_target"},
		{"another grant", change(func(q *identity.ExchangeRequest) { q.GrantType = "password" }), identity.RequestInvalid, "unsupported_grant_type"},
		{"a refresh token wanted", change(func(q *identity.ExchangeRequest) {
			q.RequestedTokenType = "urn:ietf:params:oauth:token-type:refresh_token"
		}), identity.RequestInvalid, "invalid_request"},
		{"no type", change(func(q *identity.ExchangeRequest) { q.SubjectTokenType = "" }), identity.RequestInvalid, "invalid_request"},
		{"T45 ID token as access token", change(func(q *identity.ExchangeRequest) { q.SubjectTokenType = identity.TypeAccessToken }), identity.CredentialInvalid, "invalid_request"},
		{"T45 Headgate token as ID token", exchangeOf(minting), identity.CredentialInvalid, "invalid_request"},
		{"no token", exchangeOf(""), identity.CredentialInvalid, "invalid_request"},
		{"T59 10 MB of dots", exchangeOf("eyJ" + strings.Repeat(".", 10<<20)), identity.CredentialInvalid, "invalid_request"},
		{"T59 1 MB header", exchangeOf("eyJ" + strings.Repeat("A", 1<<20) + ".AA.AA"), identity.CredentialInvalid, "invalid_request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Exchange(t.Context(), tt.q)
			wantCode(t, "Exchange", err, tt.code)
			if e, _ := errors.AsType[*identity.Error](err); e != nil && e.OAuth() != tt.oauth {
				t.Errorf("OAuth() = %q, want %q", e.OAuth(), tt.oauth)
			}
		})
	}
	t.Run("issuers hear nothing of a token that is not theirs", func(t *testing.T) {
		if n := foreign.Asked("/keys") + foreign.Asked("/.well-known/openid-configuration"); n > 0 {
			t.Errorf("the issuer that is not configured was asked %d times", n)
		}
	})
}

// T57 A lock stops the exchange, too: what is got during one would open doors once it is lifted.
func TestLockStopsExchange(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, trust(iss), iss)
	_, secret := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"content", "mint"}}})
	byToken := identity.ExchangeRequest{GrantType: identity.GrantTokenExchange, SubjectToken: secret, SubjectTokenType: identity.TypeAccessToken}
	for name, tt := range map[string]struct {
		object string
		q      identity.ExchangeRequest
	}{
		"token of an issuer": {"u-1", exchangeOf(iss.Sign(iss.Claims("u-1", "headgate", nil)))},
		"Headgate token":     {"alice", byToken},
	} {
		t.Run(name, func(t *testing.T) {
			lock(t, s, identity.LockUser, tt.object)
			if _, err := s.Exchange(t.Context(), tt.q); code(t, err) != identity.Locked {
				t.Errorf("Exchange: %v, want %s", err, identity.Locked)
			}
			unlock(t, s, identity.LockUser, tt.object)
			if _, err := s.Exchange(t.Context(), tt.q); err != nil {
				t.Errorf("Exchange once unlocked: %v", err)
			}
		})
	}
}

func TestChildLivesNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, trust(iss), iss)
		d, err := s.Exchange(t.Context(), exchangeOf(iss.Sign(iss.Claims("u-1", "headgate", nil))))
		if err != nil {
			t.Fatal(err)
		}
		secret, err := s.Issue(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Minute)
		child, err := s.Exchange(t.Context(), identity.ExchangeRequest{
			GrantType: identity.GrantTokenExchange, SubjectToken: secret, SubjectTokenType: identity.TypeAccessToken, Scope: "content module:corp/a",
		})
		if err != nil {
			t.Fatal(err)
		}
		if child.Token.Parent != d.Token.ID || child.Token.Expires.After(d.Token.Expires) {
			t.Errorf("T65 child %+v of %+v", child.Token, d.Token)
		}
		time.Sleep(time.Minute)
		_, err = s.Issue(t.Context(), child)
		wantCode(t, "Issue of a draft whose parent is over", err, identity.TokenExpired)
	})
}

func TestJobIsNotRenewed(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	cfg := trust(iss)
	cfg.Issuers[0].Type = identity.Workload
	s := start(t, cfg, iss)
	raw := iss.Sign(iss.Claims("repo:corp/app", "headgate", map[string]any{"exp": time.Now().Unix() + 3599}))
	d, err := s.Exchange(t.Context(), exchangeOf(raw))
	if err != nil {
		t.Fatal(err)
	}
	if life := d.Token.Expires.Sub(d.Token.Created); d.Token.Class != identity.ClassCI || life != 30*time.Minute || strings.Contains(d.Token.Scope.String(), "mint") {
		t.Errorf("draft %+v lives %v", d.Token, life)
	}
	secret, err := s.Issue(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Exchange(t.Context(), identity.ExchangeRequest{GrantType: identity.GrantTokenExchange, SubjectToken: secret, SubjectTokenType: identity.TypeAccessToken})
	wantCode(t, "T65 renewing a job's token", err, identity.ScopeExceeded)
}

func TestParseExchange(t *testing.T) {
	good := url.Values{"grant_type": {"g"}, "subject_token": {"t"}, "subject_token_type": {"tt"}, "requested_token_type": {"r"}, "scope": {"s"}, "audience": {"a"}, "unknown": {"u"}}
	got, err := identity.ParseExchange(good)
	want := identity.ExchangeRequest{GrantType: "g", SubjectToken: "t", SubjectTokenType: "tt", RequestedTokenType: "r", Scope: "s", Audience: "a"}
	if err != nil || got != want {
		t.Errorf("ParseExchange(%v) = %+v, %v", good, got, err)
	}
	for name, form := range map[string]url.Values{
		"parameter twice": {"scope": {"a", "b"}},
		"actor":           {"actor_token": {"x"}},
		"resource":        {"resource": {"https://elsewhere.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := identity.ParseExchange(form)
			wantCode(t, "ParseExchange", err, identity.RequestInvalid)
		})
	}
}
