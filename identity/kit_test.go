package identity_test

import (
	"database/sql"
	"encoding/base64"
	"errors"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// everything is the widest scope that a person's token can have.
var everything = identity.Scope{Modules: []string{"*"}, Actions: []string{"content", "discover", "metadata", "mint"}}

// modules is a scope that fetches below a pattern.
func modules(patterns ...string) identity.Scope {
	return identity.Scope{Modules: patterns, Actions: []string{"content", "discover", "metadata"}}
}

// never is a poll that no test of one node waits for: months of a false clock would hold a million of them.
const never = 1000 * time.Hour * 24

// start opens a service with an empty database.
func start(t testing.TB, cfg identity.Config, issuers ...*identitytest.Issuer) *identity.Service {
	t.Helper()
	return open(t, cfg, identity.Options{DB: statetest.OpenDB(t), Keys: t.TempDir(), Poll: never}, issuers...)
}

// reopen opens a service on a database and a folder of keys.
func reopen(t testing.TB, cfg identity.Config, db *sql.DB, keys string, issuers ...*identitytest.Issuer) *identity.Service {
	t.Helper()
	return open(t, cfg, identity.Options{DB: db, Keys: keys}, issuers...)
}

func open(t testing.TB, cfg identity.Config, o identity.Options, issuers ...*identitytest.Issuer) *identity.Service {
	t.Helper()
	o.HTTPClient = identitytest.Client(issuers...)
	s, err := identity.Open(t.Context(), cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// trust is a configuration with one issuer of people for the audience "headgate".
func trust(i *identitytest.Issuer) identity.Config {
	return identity.Config{Issuers: []identity.Issuer{{
		Name: "corp", URL: i.URL, Audiences: []string{"headgate"}, GroupsClaim: "groups", TeamClaim: "team",
		Labels: map[string]string{"mail": "email", "centre": "cost_centre"},
	}}}
}

func alice(groups ...string) identity.Subject {
	return identity.Subject{Type: identity.Person, ID: "alice", Groups: groups}
}

// mint drafts and issues a token.
func mint(t testing.TB, s *identity.Service, q identity.TokenRequest) (identity.Token, string) {
	t.Helper()
	d, err := s.Draft(t.Context(), q)
	if err != nil {
		t.Fatalf("Draft(%+v): %v", q, err)
	}
	secret, err := s.Issue(t.Context(), d)
	if err != nil {
		t.Fatalf("Issue: %v", err)
	}
	return d.Token, secret
}

// person mints a token of alice with the widest scope.
func person(t testing.TB, s *identity.Service) (identity.Token, string) {
	t.Helper()
	return mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice("eng"), Scope: everything})
}

func request(authorization ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "https://go.corp.example/example.com/m/@v/list", nil)
	for _, a := range authorization {
		r.Header.Add("Authorization", a)
	}
	return r
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// bearer authenticates with a Bearer credential.
func bearer(s *identity.Service, credential string) (identity.Principal, error) {
	return s.Authenticate(request("Bearer " + credential))
}

// code is the code of an error, empty for nil.
func code(t testing.TB, err error) identity.Code {
	t.Helper()
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*identity.Error](err)
	if !ok {
		t.Fatalf("error %v (%T) is no *identity.Error", err, err)
	}
	return e.Code
}

// wantCode fails unless an error has this code.
func wantCode(t testing.TB, what string, err error, want identity.Code) {
	t.Helper()
	if got := code(t, err); got != want {
		t.Errorf("%s: code %q (%v), want %q", what, got, err, want)
	}
}

const day = 24 * time.Hour

// retext puts the right checksum behind the body of a token, written anew here.
func retext(body string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	n, sum := crc32.ChecksumIEEE([]byte(body)), ""
	for range 6 {
		sum = string(digits[n%62]) + sum
		n /= 62
	}
	return body + sum
}

// flip gives another character of the same alphabet.
func flip(c byte) string {
	if c == 'a' {
		return "b"
	}
	return "a"
}
