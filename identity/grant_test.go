package identity_test

import (
	"database/sql"
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// asking is a terminal's request, and what it got.
func asking(t testing.TB, s *identity.Service, scope string) identity.DeviceAuthorization {
	t.Helper()
	a, err := s.BeginGrant(t.Context(), identity.GrantRequest{Client: identity.ClientCLI, Scope: scope, Host: "laptop-7", Address: "192.0.2.7"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// poll gives the draft and the word of RFC 8628 for what stands in its way.
func poll(t testing.TB, s *identity.Service, code string) (identity.Draft, string) {
	t.Helper()
	d, err := s.DraftGranted(t.Context(), identity.ClientCLI, code, request())
	if e, ok := errors.AsType[*identity.Error](err); ok {
		return d, e.OAuth()
	}
	if err != nil {
		t.Fatal(err)
	}
	return d, ""
}

func TestGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		db, keys := statetest.OpenDB(t), t.TempDir()
		s, other := reopen(t, offering(iss), db, keys, iss), reopen(t, offering(iss), db, keys, iss)
		ann := signIn(t, s, iss)
		a := asking(t, s, "content discover module:corp.example/*")
		if ok := regexp.MustCompile(`^[B-DF-HJ-NP-TV-XZ]{4}-[B-DF-HJ-NP-TV-XZ]{4}$`).MatchString(a.UserCode); !ok || len(a.DeviceCode) != 43 || a.Pause != 5*time.Second {
			t.Errorf("authorization %+v", a)
		}
		if _, word := poll(t, s, a.DeviceCode); word != "authorization_pending" {
			t.Errorf("first poll: %q", word)
		}
		if _, word := poll(t, s, a.DeviceCode); word != "slow_down" {
			t.Errorf("poll at once: %q", word)
		}
		time.Sleep(6 * time.Second)
		if _, word := poll(t, s, a.DeviceCode); word != "slow_down" {
			t.Errorf("poll after 6 s, 10 s are due: %q", word)
		}
		g, err := other.Grant(t.Context(), session(t, other, ann), strings.ToLower(strings.Replace(a.UserCode, "-", " ", 1)))
		if err != nil || g.Host != "laptop-7" || g.Address != "192.0.2.7" || g.Scope.String() != "content discover module:corp.example/*" || g.UserCode != a.UserCode {
			t.Fatalf("T56 grant %+v, %v", g, err)
		}
		time.Sleep(15 * time.Second)
		if _, word := poll(t, s, a.DeviceCode); word != "authorization_pending" {
			t.Errorf("T56 poll after somebody looked at it: %q", word)
		}
		if err := other.AnswerGrant(t.Context(), session(t, other, ann), a.UserCode, true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		d, word := poll(t, s, a.DeviceCode)
		text, err := s.IssueInSession(t.Context(), d)
		if word != "" || err != nil {
			t.Fatalf("poll: %q, %v", word, err)
		}
		p, err := bearer(s, text)
		if err != nil || p.Subject.ID != "u-1" || p.Subject.Issuer != corp || !p.Allows("corp.example/a", "content") || p.Allows("corp.example/a", "mint") || p.Allows("b", "content") {
			t.Errorf("principal %+v, %v", p, err)
		}
		_, err = s.IssueInSession(t.Context(), d)
		wantCode(t, "the same draft again", err, identity.RequestInvalid)
		time.Sleep(15 * time.Second)
		if _, word := poll(t, s, a.DeviceCode); word != "invalid_grant" {
			t.Errorf("poll after the token: %q", word)
		}
		if ended, err := s.EndSession(t.Context(), ann, true); err != nil || len(ended) != 1 {
			t.Errorf("sign-out ended %v, %v", ended, err)
		}
	})
}

func TestGrantThatIsNotAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, offering(iss), iss)
		ann := session(t, s, signIn(t, s, iss))
		denied, late, disabled, locked := asking(t, s, ""), asking(t, s, ""), asking(t, s, ""), asking(t, s, "")
		for _, a := range []identity.DeviceAuthorization{disabled, locked} {
			if err := s.AnswerGrant(t.Context(), ann, a.UserCode, true); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.AnswerGrant(t.Context(), ann, denied.UserCode, false); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "allowing what was denied", s.AnswerGrant(t.Context(), ann, denied.UserCode, true), identity.CredentialInvalid)
		if _, word := poll(t, s, denied.DeviceCode); word != "access_denied" {
			t.Errorf("T56 poll of what was denied: %q", word)
		}
		if err := s.Lock(t.Context(), identity.Lock{Kind: identity.LockUser, Object: "u-1", Reason: "left"}); err != nil {
			t.Fatal(err)
		}
		_, err := s.DraftGranted(t.Context(), identity.ClientCLI, locked.DeviceCode, request())
		wantCode(t, "T53 locked since it was allowed", err, identity.Locked)
		if _, word := poll(t, s, "unknown"); word != "invalid_grant" {
			t.Errorf("unknown device code: %q", word)
		}
		_, err = s.DraftGranted(t.Context(), "grafana", late.DeviceCode, request())
		if e, ok := errors.AsType[*identity.Error](err); !ok || e.OAuth() != "invalid_client" {
			t.Errorf("another client: %v", err)
		}
		time.Sleep(5 * time.Minute)
		if _, word := poll(t, s, late.DeviceCode); word != "expired_token" {
			t.Errorf("poll after 5 minutes: %q", word)
		}
		wantCode(t, "allowing after 5 minutes", s.AnswerGrant(t.Context(), ann, late.UserCode, true), identity.CredentialInvalid)
	})
}

// Five wrong codes in ten minutes, on whatever node, and no code is looked at.
func TestWrongUserCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		db, keys := statetest.OpenDB(t), t.TempDir()
		s, other := reopen(t, offering(iss), db, keys, iss), reopen(t, offering(iss), db, keys, iss)
		ann := session(t, s, signIn(t, s, iss))
		a := asking(t, s, "")
		for _, typed := range []string{"", "BBBB-BBBB", "AAAA-AAAA", strings.Repeat("B", 40)} {
			_, err := s.Grant(t.Context(), ann, typed)
			wantCode(t, "T56 code "+typed, err, identity.CredentialInvalid)
		}
		_, err := other.Grant(t.Context(), ann, "CCCC-CCCC")
		wantCode(t, "T56 the fifth", err, identity.CredentialInvalid)
		_, err = s.Grant(t.Context(), ann, a.UserCode)
		wantCode(t, "T56 the right one after five", err, identity.RateExceeded)
		time.Sleep(10 * time.Minute)
		b := asking(t, s, "")
		if _, err := s.Grant(t.Context(), ann, b.UserCode); err != nil {
			t.Errorf("after ten minutes: %v", err)
		}
	})
}

func TestGrantRequests(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	db := statetest.OpenDB(t)
	s := reopen(t, offering(iss), db, t.TempDir(), iss)
	for name, tt := range map[string]struct {
		q    identity.GrantRequest
		want identity.Code
	}{
		"T57 admin":       {identity.GrantRequest{Client: identity.ClientCLI, Scope: "admin"}, identity.ScopeExceeded},
		"T57 no such":     {identity.GrantRequest{Client: identity.ClientCLI, Scope: "openid"}, identity.ScopeExceeded},
		"another client":  {identity.GrantRequest{Client: "grafana"}, identity.RequestInvalid},
		"a client of NUL": {identity.GrantRequest{Client: identity.ClientCLI + "\x00"}, identity.RequestInvalid},
	} {
		_, err := s.BeginGrant(t.Context(), tt.q)
		wantCode(t, name, err, tt.want)
	}
	for range 20 {
		asking(t, s, "")
	}
	_, err := s.BeginGrant(t.Context(), identity.GrantRequest{Client: identity.ClientCLI, Address: "192.0.2.7"})
	wantCode(t, "the 21st of an address", err, identity.RateExceeded)
	a, err := s.BeginGrant(t.Context(), identity.GrantRequest{Client: identity.ClientCLI, Address: "192.0.2.8", Host: "\x1b[31mroot\u202e" + strings.Repeat("x", 100)})
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.Grant(t.Context(), session(t, s, signIn(t, s, iss)), a.UserCode)
	if err != nil || !strings.HasPrefix(g.Host, "[31mrootxxx") || len(g.Host) != 64 {
		t.Errorf("T72 host %q, %v", g.Host, err)
	}
	if strings.Contains(dump(t, db), a.DeviceCode) || strings.Contains(dump(t, db), a.UserCode) {
		t.Error("a code stands in the database as it is")
	}
}

// dump is all that is kept of grants.
func dump(t testing.TB, db *sql.DB) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT digest || user_code || scope || host FROM identity_grants`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all strings.Builder
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		all.WriteString(text)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all.String()
}
