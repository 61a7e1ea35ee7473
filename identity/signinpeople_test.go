package identity_test

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// groups are those of whoever a token is of, which must hold.
func groups(t testing.TB, s *identity.Service, text string) []string {
	t.Helper()
	p, err := bearer(s, text)
	if err != nil {
		t.Fatal(err)
	}
	return p.Subject.Groups
}

// T52: what changes at the issuer is in force within ten minutes, for tokens and sessions, however the issuer tells it.
func TestT52ChangesAtTheIssuer(t *testing.T) {
	for name, policy := range map[string]identitytest.SignInPolicy{
		"by a refreshed ID token": {}, "by user info after a refresh": {NoID: true}, "by user info beside a thin ID token": {Thin: true},
	} {
		t.Run("T52 groups removed, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				iss := identitytest.NewIssuer(corp)
				iss.SetPolicy(policy)
				s := start(t, offering(iss), iss)
				secret := signIn(t, s, iss)
				_, text := minted(t, s, secret, 0)
				if got := groups(t, s, text); !slices.Equal(got, []string{"eng", "payments"}) {
					t.Fatalf("groups %v at sign-in", got)
				}
				iss.SetPerson("u-1", map[string]any{"groups": []string{"eng"}})
				time.Sleep(10 * time.Minute)
				if got := groups(t, s, text); !slices.Equal(got, []string{"eng"}) {
					t.Errorf("the token's groups are %v after ten minutes", got)
				}
				if got := session(t, s, secret).Subject.Groups; !slices.Equal(got, []string{"eng"}) {
					t.Errorf("the session's groups are %v after ten minutes", got)
				}
				iss.SetPerson("u-1", map[string]any{"groups": []string{"eng", "ops"}})
				time.Sleep(10 * time.Minute)
				if got := groups(t, s, text); !slices.Equal(got, []string{"eng", "ops"}) {
					t.Errorf("the token's groups are %v after the second change", got)
				}
			})
		})
		t.Run("T52 person disabled, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { disabled(t, policy) })
		})
	}
}

// disabled holds that a person who is disabled at the issuer is refused within ten minutes, and is back with a sign-in.
func disabled(t *testing.T, policy identitytest.SignInPolicy) {
	iss := identitytest.NewIssuer(corp)
	iss.SetPolicy(policy)
	db, keys := statetest.OpenDB(t), t.TempDir()
	s := reopen(t, offering(iss), db, keys, iss)
	secret := signIn(t, s, iss)
	_, text := minted(t, s, secret, 0)
	raw := iss.Sign(iss.Claims("u-1", "headgate", map[string]any{"exp": time.Now().Add(12 * time.Hour).Unix()}))
	iss.Disable("u-1")
	time.Sleep(10 * time.Minute)
	again := reopen(t, offering(iss), db, keys, iss) // a node that starts now knows it, too
	for name, s := range map[string]*identity.Service{"the node that asked": s, "a new node": again} {
		_, err := bearer(s, text)
		wantCode(t, name+": token", err, identity.SessionOver)
		_, err = bearer(s, raw)
		wantCode(t, name+": ID token from before", err, identity.SessionOver)
		_, err = s.Session(t.Context(), secret)
		wantCode(t, name+": session", err, identity.SessionOver)
	}
	iss.SetPerson("u-1", map[string]any{"groups": []string{"eng"}})
	if raw := iss.Sign(iss.Claims("u-1", "headgate", map[string]any{"iat": time.Now().Add(time.Second).Unix()})); raw != "" {
		if _, err := bearer(s, raw); err != nil {
			t.Errorf("an ID token that the issuer signed since: %v", err)
		}
	}
	signIn(t, s, iss)
	if _, err := bearer(s, text); err != nil {
		t.Errorf("token after another sign-in: %v", err)
	}
	time.Sleep(31 * time.Second)
	if _, err := bearer(again, text); err != nil {
		t.Errorf("token after another sign-in, on the other node: %v", err)
	}
}

// T51: while the issuer is away people stay, for a day; then they are refused until it answers.
func TestT51IssuerAwayFromPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, offering(iss), iss)
		secret := signIn(t, s, iss)
		_, text := minted(t, s, secret, 0)
		iss.Fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) })
		for range 22 {
			time.Sleep(30 * time.Minute)
			session(t, s, secret)
		}
		time.Sleep(12 * time.Hour)
		if got := groups(t, s, text); !slices.Equal(got, []string{"eng", "payments"}) {
			t.Errorf("groups %v after 23 hours", got)
		}
		time.Sleep(90 * time.Minute)
		_, err := bearer(s, text)
		wantCode(t, "after a day", err, identity.SessionOver)
		iss.Fail(nil)
		time.Sleep(5 * time.Minute)
		if _, err := bearer(s, text); err != nil {
			t.Errorf("after the issuer is back: %v", err)
		}
	})
}

// Where the issuer gives no refresh token, what a sign-in brought ends when it can no longer be asked.
func TestSignInWithoutRefreshToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		iss.SetPolicy(identitytest.SignInPolicy{NoRefresh: true})
		s := start(t, offering(iss), iss)
		secret := signIn(t, s, iss)
		token, text := minted(t, s, secret, 0)
		if life := token.Expires.Sub(token.Created); life != 5*time.Minute {
			t.Errorf("the token lives %v, as long as the issuer can be asked is 5m", life)
		}
		time.Sleep(5 * time.Minute)
		_, err := bearer(s, text)
		wantCode(t, "token", err, identity.TokenExpired)
		_, err = s.Session(t.Context(), secret)
		wantCode(t, "session", err, identity.SessionOver)
	})
}

// T47: an answer about somebody else is no answer.
func TestIssuerAnswersWithAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, offering(iss), iss)
		_, text := minted(t, s, signIn(t, s, iss), 0)
		iss.SetPolicy(identitytest.SignInPolicy{Change: func(c map[string]any) { c["sub"], c["groups"] = "root", []string{"admins"} }})
		time.Sleep(10 * time.Minute)
		_, err := bearer(s, text)
		wantCode(t, "T47 refreshed as another", err, identity.SessionOver)
	})
}

// Two nodes ask about each person once, since a refresh token is good once.
func TestNodesShareTheAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		db, keys := statetest.OpenDB(t), t.TempDir()
		a := reopen(t, offering(iss), db, keys, iss)
		b := reopen(t, offering(iss), db, keys, iss)
		_, text := minted(t, a, signIn(t, a, iss), 0)
		asked := iss.Asked("/token")
		iss.SetPerson("u-1", map[string]any{"groups": []string{"ops"}})
		time.Sleep(9 * time.Minute)
		if n := iss.Asked("/token") - asked; n != 1 {
			t.Errorf("the issuer was asked %d times in nine minutes; want once", n)
		}
		for name, s := range map[string]*identity.Service{"one": a, "other": b} {
			if got := groups(t, s, text); !slices.Equal(got, []string{"ops"}) {
				t.Errorf("the %s node has groups %v", name, got)
			}
		}
	})
}
