package identity_test

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

const callback = "https://go.corp.example/-/login/callback"

// offering is a configuration with an issuer at which people sign in with a browser, and one person known there.
func offering(i *identitytest.Issuer) identity.Config {
	i.SetPerson("u-1", map[string]any{"groups": []string{"eng", "payments"}, "preferred_username": "ann"})
	cfg := trust(i)
	cfg.Issuers[0].ClientID = "headgate"
	return cfg
}

// begun is a sign-in that the browser was sent away with, once the issuer is known.
func begun(t testing.TB, s *identity.Service, i *identitytest.Issuer) (identity.SignIn, url.Values) {
	t.Helper()
	_, _ = bearer(s, fresh(i)) // waits for discovery
	in, err := s.StartSignIn("corp", callback, "/-/tokens")
	if err != nil {
		t.Fatal(err)
	}
	q, err := i.SignIn(in.URL, "u-1")
	if err != nil {
		t.Fatal(err)
	}
	return in, q
}

// signIn opens a session of u-1 and gives its secret.
func signIn(t testing.TB, s *identity.Service, i *identitytest.Issuer) string {
	t.Helper()
	in, q := begun(t, s, i)
	d, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := s.OpenSession(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// session is the session of a secret, which must hold.
func session(t testing.TB, s *identity.Service, secret string) identity.Session {
	t.Helper()
	n, err := s.Session(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// minted is a personal token out of a session.
func minted(t testing.TB, s *identity.Service, secret string, life time.Duration) (identity.Token, string) {
	t.Helper()
	d, err := s.DraftInSession(t.Context(), session(t, s, secret), identity.TokenRequest{Class: identity.ClassPerson, Scope: modules("*"), Life: life})
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.IssueInSession(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return d.Token, text
}

func TestSignIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, offering(iss), iss)
		in, q := begun(t, s, iss)
		d, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
		if err != nil || d.Back != "/-/tokens" || d.Session.Subject.ID != "u-1" {
			t.Fatalf("draft %+v, %v", d, err)
		}
		secret, err := s.OpenSession(t.Context(), d)
		if err != nil || len(secret) != 43 {
			t.Fatalf("secret of %d characters, %v; want 256 bits", len(secret), err)
		}
		n := session(t, s, secret)
		if !slices.Equal(n.Subject.Groups, []string{"eng", "payments"}) || n.Subject.Issuer != corp || !n.Until.IsZero() || n.ID != d.Session.ID {
			t.Errorf("session %+v", n)
		}
		token, text := minted(t, s, secret, 0)
		p, err := bearer(s, text)
		if err != nil || p.Subject.Issuer != corp || token.Expires.Sub(token.Created) != 7*day || !p.Allows("a/b", "content") {
			t.Errorf("principal %+v, %v of token %+v", p, err, token)
		}
	})
}

// T54: each part of a sign-in is bound to the browser that began it, and good once.
func TestT54SignInIsBoundAndSingleUse(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	other := identitytest.NewIssuer("https://id.other.example")
	cfg := offering(iss)
	cfg.Issuers = append(cfg.Issuers, identity.Issuer{Name: "other", URL: other.URL, ClientID: "headgate", Audiences: []string{"headgate"}})
	s := start(t, cfg, iss, other)
	for name, change := range map[string]func(r *identity.SignInReturn){
		"state missing":    func(r *identity.SignInReturn) { r.Query.Del("state") },
		"state of another": func(r *identity.SignInReturn) { _, q := begun(t, s, iss); r.Query.Set("state", q.Get("state")) },
		"state twice":      func(r *identity.SignInReturn) { r.Query.Add("state", r.Query.Get("state")) },
		"no cookie":        func(r *identity.SignInReturn) { r.Cookie = "" },
		"another browser":  func(r *identity.SignInReturn) { in, _ := begun(t, s, iss); r.Cookie = in.Cookie },
		"cookie changed": func(r *identity.SignInReturn) {
			r.Cookie = r.Cookie[:len(r.Cookie)-1] + flip(r.Cookie[len(r.Cookie)-1])
		},
		"cookie of another key": func(r *identity.SignInReturn) {
			in, _ := begun(t, start(t, cfg, iss, other), iss)
			r.Cookie = in.Cookie
		},
		"another issuer's code": func(r *identity.SignInReturn) { r.Query.Set("iss", other.URL) },
		"issuer not named":      func(r *identity.SignInReturn) { r.Query.Del("iss") },
		"the issuer says no":    func(r *identity.SignInReturn) { r.Query.Set("error", "access_denied"); r.Query.Del("code") },
	} {
		t.Run("T54 "+name, func(t *testing.T) {
			in, q := begun(t, s, iss)
			r := identity.SignInReturn{Query: maps.Clone(q), Cookie: in.Cookie}
			change(&r)
			_, err := s.DraftSession(t.Context(), r)
			wantCode(t, "DraftSession", err, identity.RequestInvalid)
		})
	}
	t.Run("T54 replayed", func(t *testing.T) {
		in, q := begun(t, s, iss)
		r := identity.SignInReturn{Query: q, Cookie: in.Cookie}
		if _, err := s.DraftSession(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		asked := iss.Asked("/token")
		_, err := s.DraftSession(t.Context(), r)
		wantCode(t, "the second time", err, identity.RequestInvalid)
		if iss.Asked("/token") != asked {
			t.Error("the issuer was asked again")
		}
	})
	t.Run("T54 code of another sign-in", func(t *testing.T) { // PKCE: its verifier is another one
		in, q := begun(t, s, iss)
		_, theirs := begun(t, s, iss)
		q.Set("code", theirs.Get("code"))
		_, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
		wantCode(t, "DraftSession", err, identity.CredentialInvalid)
	})
	t.Run("T54 after ten minutes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			iss := identitytest.NewIssuer(corp)
			s := start(t, offering(iss), iss)
			in, q := begun(t, s, iss)
			time.Sleep(10 * time.Minute)
			_, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
			wantCode(t, "DraftSession", err, identity.RequestInvalid)
		})
	})
}

// An evil issuer answers our code with an ID token that is not the one that was asked for.
func TestEvilTokenEndpoint(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, offering(iss), iss)
	set := func(name string, value any) func(map[string]any) {
		return func(c map[string]any) { c[name] = value }
	}
	for name, change := range map[string]func(map[string]any){
		"T54 nonce missing":         func(c map[string]any) { delete(c, "nonce") },
		"T54 nonce of another":      set("nonce", "another"),
		"T42 audience of another":   set("aud", "grafana"),
		"T42 ours and another's":    set("aud", []string{"headgate", "grafana"}),
		"T44 another issuer's name": set("iss", "https://id.other.example"),
		"T45 access token":          set("scope", "openid"),
		"T39 expired":               set("exp", time.Now().Add(-time.Hour).Unix()),
		"another client":            set("azp", "grafana"),
		"no person":                 set("sub", ""),
	} {
		t.Run(name, func(t *testing.T) {
			in, q := begun(t, s, iss)
			iss.SetPolicy(identitytest.SignInPolicy{Change: change})
			defer iss.SetPolicy(identitytest.SignInPolicy{})
			_, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
			if got := code(t, err); got != identity.CredentialInvalid && got != identity.TokenExpired {
				t.Errorf("code %q (%v)", got, err)
			}
		})
	}
	for name, answer := range map[string]http.HandlerFunc{
		"HTML": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<!doctype html>canary")) },
		"503":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "canary", http.StatusServiceUnavailable) },
		"to elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example/", http.StatusTemporaryRedirect)
		},
		"2 MB of spaces": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(strings.Repeat(" ", 2<<20) + `{"access_token":"x"}`))
		},
	} {
		t.Run("T51 token endpoint: "+name, func(t *testing.T) {
			in, q := begun(t, s, iss)
			iss.SetPolicy(identitytest.SignInPolicy{Answer: func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true }})
			defer iss.SetPolicy(identitytest.SignInPolicy{})
			_, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
			wantCode(t, "DraftSession", err, identity.IssuerDown)
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats what the issuer sent: %v", err)
			}
		})
	}
}

func TestClientSecret(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	cfg := offering(iss)
	file := filepath.Join(t.TempDir(), "secret")
	cfg.Issuers[0].ClientSecretFile = file
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, cfg, iss)
	iss.SetPolicy(identitytest.SignInPolicy{Secret: "s3cret"})
	session(t, s, signIn(t, s, iss))
	iss.SetPolicy(identitytest.SignInPolicy{Secret: "another"})
	in, q := begun(t, s, iss)
	_, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
	wantCode(t, "wrong secret", err, identity.CredentialInvalid)
	for name, text := range map[string]string{"empty": "\n", "two lines": "a\nb\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := identity.Open(t.Context(), cfg, identity.Options{DB: statetest.OpenDB(t), Keys: t.TempDir()}); err == nil {
			_ = s.Close()
			t.Errorf("Open takes a secret that is %s", name)
		}
	}
}

func TestProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		iss.Fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) })
		cfg := offering(iss)
		cfg.Issuers = append(cfg.Issuers, identity.Issuer{Name: "jobs", URL: "https://jobs.example", Type: identity.Workload, Audiences: []string{"headgate"}})
		s := start(t, cfg, iss)
		_, _ = bearer(s, fresh(iss))
		if got := s.Providers(); !slices.Equal(got, []identity.Provider{{Name: "corp"}}) {
			t.Errorf("T51 Providers() = %v with the issuer down", got)
		}
		_, err := s.StartSignIn("corp", callback, "/-/tokens")
		wantCode(t, "T51 StartSignIn with the issuer down", err, identity.IssuerDown)
		iss.Fail(nil)
		time.Sleep(time.Minute)
		if got := s.Providers(); !slices.Equal(got, []identity.Provider{{Name: "corp", Up: true}}) {
			t.Errorf("Providers() = %v", got)
		}
		_, err = s.StartSignIn("jobs", callback, "/-/tokens")
		wantCode(t, "signing in where jobs do", err, identity.RequestInvalid)
	})
}

func TestSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, offering(iss), iss)
		over := func(what, secret string) {
			t.Helper()
			_, err := s.Session(t.Context(), secret)
			wantCode(t, "T80 "+what, err, identity.SessionOver)
		}
		idle := signIn(t, s, iss)
		time.Sleep(59 * time.Minute)
		session(t, s, idle)
		time.Sleep(time.Hour)
		over("an hour without use", idle)
		long := signIn(t, s, iss)
		for range 23 {
			time.Sleep(30 * time.Minute)
			session(t, s, long)
		}
		time.Sleep(30 * time.Minute)
		over("twelve hours", long)
		over("a guess", strings.Repeat("A", 43))
		_, err := s.Session(t.Context(), "")
		wantCode(t, "none", err, identity.CredentialMissing)
	})
}

func TestSignOut(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, offering(iss), iss)
	first, second := signIn(t, s, iss), signIn(t, s, iss)
	if first == second || session(t, s, first).ID == session(t, s, second).ID {
		t.Error("T80 a new sign-in has the old session")
	}
	kept, keptText := minted(t, s, first, 0)
	_, endedText := minted(t, s, second, 0)
	ended, err := s.EndSession(t.Context(), second, true)
	if err != nil || len(ended) != 1 || ended[0] == kept.ID {
		t.Errorf("EndSession ended %v, %v", ended, err)
	}
	_, err = s.Session(t.Context(), second)
	wantCode(t, "T80 session after sign-out", err, identity.SessionOver)
	_, err = bearer(s, endedText)
	wantCode(t, "token of the session", err, identity.TokenRevoked)
	if ended, err := s.EndSession(t.Context(), first, false); err != nil || len(ended) != 0 {
		t.Errorf("EndSession ended %v, %v", ended, err)
	}
	if _, err := bearer(s, keptText); err != nil {
		t.Errorf("a token that was to stay: %v", err)
	}
	if ended, err := s.EndSession(t.Context(), first, true); err != nil || len(ended) != 0 {
		t.Errorf("a second sign-out ended %v, %v", ended, err)
	}
}

// T53: whoever is locked here signs in nowhere, and a session that is open ends.
func TestT53LockWinsOverIssuer(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, offering(iss), iss)
	open := signIn(t, s, iss)
	if err := s.Lock(t.Context(), identity.Lock{Kind: identity.LockUser, Object: "u-1", Reason: "left"}); err != nil {
		t.Fatal(err)
	}
	in, q := begun(t, s, iss)
	_, err := s.DraftSession(t.Context(), identity.SignInReturn{Query: q, Cookie: in.Cookie})
	wantCode(t, "T53 signing in", err, identity.Locked)
	_, err = s.Session(t.Context(), open)
	wantCode(t, "T53 session from before", err, identity.Locked)
}

// Nothing that opens a session or asks an issuer stands in the database as it is.
func TestSecretsAreSealed(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	db := statetest.OpenDB(t)
	s := reopen(t, offering(iss), db, t.TempDir(), iss)
	secret := signIn(t, s, iss)
	var kept, digest string
	if err := db.QueryRowContext(context.Background(), `SELECT kept FROM identity_people`).Scan(&kept); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRowContext(context.Background(), `SELECT digest FROM identity_sessions`).Scan(&digest); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(kept, "refresh-") || !strings.HasPrefix(kept, "1.") || strings.Contains(digest, secret) {
		t.Errorf("kept %q, digest %q", kept, digest)
	}
}
