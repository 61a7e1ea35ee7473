package identity_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
)

func TestTokenIsAcceptedInItsPlacesOnly(t *testing.T) {
	s := start(t, identity.Config{})
	tok, secret := person(t, s)
	if ok, _ := regexp.MatchString(`^hg_hu_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}$`, secret); !ok {
		t.Errorf("the text of a person's token has the form of %d characters %.6s…", len(secret), secret)
	}
	want := identity.Principal{
		Subject:    identity.Subject{Type: "person", ID: "alice", Groups: []string{"eng"}, Method: "token"},
		Device:     identity.Device{Proof: "none", Platform: "unknown"},
		Credential: identity.Credential{Class: "hu", ID: tok.ID, Expires: tok.Expires},
		Scope:      everything,
	}
	for name, header := range map[string]string{
		"Basic password":           basic("alice", secret),
		"Basic password, no login": basic("", secret),
		"Basic, any login":         basic("x-\u00e9", secret),
		"Basic, lower case":        strings.Replace(basic("a", secret), "Basic", "basic", 1),
		"Bearer":                   "Bearer " + secret,
		"bearer, two blanks":       "bearer  " + secret,
	} {
		t.Run("T60 accepted as "+name, func(t *testing.T) {
			got, err := s.Authenticate(request(header))
			if err != nil {
				t.Fatal(err)
			}
			want.Credential.Via = strings.ToLower(strings.Fields(header)[0])
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("principal (-want +got):\n%s", diff)
			}
		})
	}
	for name, header := range map[string]string{
		"Basic user":              basic(secret, ""),
		"Basic user and password": basic(secret, "x"),
		"password behind a colon": basic("a", ":"+secret),
		"Token":                   "Token " + secret,
		"no scheme":               secret,
		"Basic not encoded":       "Basic a:" + secret,
		"Basic without colon":     "Basic YWJj",
		"Basic broken base64":     "Basic ****",
		"Bearer with a tail":      "Bearer " + secret + " x",
		"empty":                   "",
	} {
		t.Run("T60 refused as "+name, func(t *testing.T) {
			_, err := s.Authenticate(request(header))
			wantCode(t, "Authenticate", err, identity.CredentialInvalid)
		})
	}
	t.Run("T60 refused in query, cookie, path and other headers", func(t *testing.T) {
		r := request()
		r.URL.RawQuery, r.URL.Path = "access_token="+secret, "/"+secret
		r.Header.Set("Cookie", "token="+secret)
		r.Header.Set("X-Headgate-Token", secret)
		r.Header.Set("Proxy-Authorization", "Bearer "+secret)
		_, err := s.Authenticate(r)
		wantCode(t, "Authenticate", err, identity.CredentialMissing)
	})
	t.Run("two Authorization headers", func(t *testing.T) {
		_, err := s.Authenticate(request("Bearer "+secret, "Bearer "+secret))
		wantCode(t, "Authenticate", err, identity.CredentialInvalid)
	})
	t.Run("credential larger than 16 KiB", func(t *testing.T) {
		_, err := s.Authenticate(request(basic(strings.Repeat("a", 16<<10), secret)))
		wantCode(t, "Authenticate", err, identity.CredentialInvalid)
	})
}

func TestWrongSecretAndUnknownID(t *testing.T) {
	s := start(t, identity.Config{})
	a, secretA := person(t, s)
	_, secretB := person(t, s)
	for name, text := range map[string]string{
		"T61 known id, wrong secret":     retext(secretA[:19] + secretB[19:62]),
		"T61 unknown id":                 retext(secretA[:6] + "000000000000" + secretA[18:62]),
		"other class on a good secret":   retext("hg_ad" + secretA[5:62]),
		"wrong checksum":                 secretA[:67] + flip(secretA[67]),
		"one character of secret":        retext(secretA[:61] + flip(secretA[61])),
		"unknown class":                  retext("hg_zz" + secretA[5:62]),
		"too short":                      secretA[:67],
		"too long":                       secretA + "0",
		"not base62":                     retext(secretA[:20] + "-" + secretA[21:62]),
		"letters of another alphabet":    retext(secretA[:20] + "é" + secretA[22:62]),
		"upper-case prefix":              "HG" + secretA[2:],
		"neither token nor JWT":          "hello",
		"empty":                          "",
		"sixty-eight zeros":              strings.Repeat("0", 68),
		"two tokens with a blank":        secretA + " " + secretB,
		"checksum of the whole is right": retext(strings.Repeat("0", 62)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Authenticate(request(basic("a", text)))
			wantCode(t, "Authenticate", err, identity.CredentialInvalid)
			if e, _ := errors.AsType[*identity.Error](err); e.Subject.ID != "" {
				t.Errorf("the error names subject %q though no secret matched", e.Subject.ID)
			}
		})
	}
	if _, err := bearer(s, secretA); err != nil {
		t.Errorf("the good token %s is refused after the attacks: %v", a.ID, err)
	}
}

func TestLife(t *testing.T) {
	classes := map[string]struct {
		q               identity.TokenRequest
		normal, ceiling time.Duration
	}{
		"person":     {identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything}, 7 * day, 30 * day},
		"CI, static": {identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Owner: "alice", Scope: modules("*")}, 30 * day, 90 * day},
		"admin":      {identity.TokenRequest{Class: identity.ClassAdmin, Subject: alice(), Scope: identity.Scope{Actions: []string{"admin"}}}, time.Hour, 8 * time.Hour},
	}
	for name, c := range classes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, identity.Config{})
				tok, secret := mint(t, s, c.q)
				if got := tok.Expires.Sub(tok.Created); got != c.normal {
					t.Errorf("default life is %v, want %v", got, c.normal)
				}
				c.q.Life = c.ceiling + time.Second
				_, err := s.Draft(t.Context(), c.q)
				wantCode(t, "Draft above the ceiling", err, identity.RequestInvalid)
				c.q.Life = -time.Second
				_, err = s.Draft(t.Context(), c.q)
				wantCode(t, "Draft of a negative life", err, identity.RequestInvalid)
				time.Sleep(c.normal - time.Second)
				if c.normal > 14*day {
					secret = "" // it was idle; the row about expiry is another class's
				} else if _, err := bearer(s, secret); err != nil {
					t.Errorf("a second before its end: %v", err)
				}
				time.Sleep(time.Second)
				if secret != "" {
					_, err = bearer(s, secret)
					wantCode(t, "at its end", err, identity.TokenExpired)
				}
			})
		})
	}
}

func job() identity.Subject {
	return identity.Subject{Type: identity.Workload, ID: "release", CI: &identity.CI{Repo: "corp/app"}}
}

func TestLowerCeilingHitsOldTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, keys := statetest.OpenDB(t), t.TempDir()
		before := reopen(t, identity.Config{}, db, keys)
		_, secret := mint(t, before, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything, Life: 10 * day})
		after := reopen(t, identity.Config{Ceilings: identity.Ceilings{Person: 2 * day}}, db, keys)
		time.Sleep(2*day - time.Second)
		if _, err := bearer(after, secret); err != nil {
			t.Errorf("below the new ceiling: %v", err)
		}
		time.Sleep(time.Second)
		_, err := bearer(after, secret)
		wantCode(t, "T65 at the new ceiling", err, identity.TokenExpired)
		if _, err := bearer(before, secret); err != nil {
			t.Errorf("under the old ceiling: %v", err)
		}
	})
}

func TestRenewedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, identity.Config{})
		first, secret := mint(t, s, identity.TokenRequest{Class: identity.ClassAdmin, Subject: alice(), Scope: identity.Scope{Actions: []string{"admin"}}, Life: 2 * time.Hour})
		for range 2 { // T65: each token mints the next, none lives longer than the first
			time.Sleep(30 * time.Minute)
			by, err := bearer(s, secret)
			if err != nil {
				t.Fatal(err)
			}
			var tok identity.Token
			tok, secret = mint(t, s, identity.TokenRequest{By: &by, Class: identity.ClassAdmin, Scope: identity.Scope{Actions: []string{"admin"}}})
			if tok.Expires.After(first.Expires) {
				t.Errorf("T65: a renewed token ends at %v, the first one at %v", tok.Expires, first.Expires)
			}
		}
		time.Sleep(30 * time.Minute)
		_, err := bearer(s, secret)
		wantCode(t, "T65 after the first one's end", err, identity.TokenExpired)
	})
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, identity.Config{})
		q := identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything, Life: 30 * day}
		_, used := mint(t, s, q)
		_, idle := mint(t, s, q)
		time.Sleep(10 * day)
		if _, err := bearer(s, used); err != nil {
			t.Error(err)
		}
		time.Sleep(4*day + time.Second)
		_, err := bearer(s, idle)
		wantCode(t, "unused for 14 days", err, identity.TokenExpired)
		if _, err := bearer(s, used); err != nil {
			t.Errorf("used 4 days ago: %v", err)
		}
	})
}

func TestLastUseSurvivesAtTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, keys := statetest.OpenDB(t), t.TempDir()
		s, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		tok, secret := person(t, s)
		if got, _ := s.Token(t.Context(), tok.ID); !got.LastUsed.IsZero() {
			t.Errorf("LastUsed of a token that was never used is %v", got.LastUsed)
		}
		_, _ = bearer(s, secret)
		first := time.Now()
		for range 9 { // a use each minute moves nothing before the tenth
			time.Sleep(time.Minute)
			_, _ = bearer(s, secret)
		}
		if got, _ := s.Token(t.Context(), tok.ID); !got.LastUsed.Equal(first) {
			t.Errorf("LastUsed is %v after 9 minutes, want the first use at %v", got.LastUsed, first)
		}
		time.Sleep(time.Minute)
		_, _ = bearer(s, secret)
		used := time.Now()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got, _ := reopen(t, identity.Config{}, db, keys).Token(t.Context(), tok.ID); !got.LastUsed.Equal(used) {
			t.Errorf("LastUsed after a restart is %v, want %v", got.LastUsed, used)
		}
	})
}

func TestRevoke(t *testing.T) {
	db, keys := statetest.OpenDB(t), t.TempDir()
	s := reopen(t, identity.Config{}, db, keys)
	parent, secret := person(t, s)
	by, err := bearer(s, secret)
	if err != nil {
		t.Fatal(err)
	}
	child, childSecret := mint(t, s, identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: everything})
	by, _ = bearer(s, childSecret)
	_, grandchild := mint(t, s, identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: modules("corp/a")})
	other, otherSecret := person(t, s)
	late, err := s.Draft(t.Context(), identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: modules("corp/a")})
	if err != nil {
		t.Fatal(err)
	}
	if child.Parent != parent.ID {
		t.Errorf("the child's parent is %q, want %q", child.Parent, parent.ID)
	}
	got, err := s.Revoke(t.Context(), parent.ID)
	if err != nil || got.State != "revoked" {
		t.Fatalf("Revoke = %q, %v", got.State, err)
	}
	check := func(when string, s *identity.Service) {
		for name, text := range map[string]string{"itself": secret, "child": childSecret, "grandchild": grandchild} {
			t.Run("T66 "+name+" "+when, func(t *testing.T) {
				_, err := bearer(s, text)
				wantCode(t, "Authenticate", err, identity.TokenRevoked)
				if e, _ := errors.AsType[*identity.Error](err); e.Subject.ID != "alice" || e.Credential.ID == "" {
					t.Errorf("the error does not say whose token it was: %+v", e)
				}
			})
		}
		if _, err := bearer(s, otherSecret); err != nil {
			t.Errorf("%s: token %s of the same person is refused: %v", when, other.ID, err)
		}
	}
	check("at once", s)
	_, err = s.Issue(t.Context(), late)
	wantCode(t, "Issue of a draft whose parent was revoked since", err, identity.TokenRevoked)
	check("after a restart", reopen(t, identity.Config{}, db, keys))
	if again, err := s.Revoke(t.Context(), parent.ID); err != nil || !again.Revoked.Equal(got.Revoked) {
		t.Errorf("Revoke again = %v, %v; want the first time %v", again.Revoked, err, got.Revoked)
	}
	if _, err := s.Revoke(t.Context(), "000000000000"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Revoke of an unknown id: %v", err)
	}
	if _, err := s.Revoke(t.Context(), parent.ID+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Revoke of an id with a tail: %v", err)
	}
}

func TestFamilySurvivesARestart(t *testing.T) {
	db, keys := statetest.OpenDB(t), t.TempDir()
	s := reopen(t, identity.Config{}, db, keys)
	_, secret := person(t, s)
	family := []string{secret}
	for range 20 {
		by, err := bearer(s, secret)
		if err != nil {
			t.Fatal(err)
		}
		_, secret = mint(t, s, identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: everything})
		family = append(family, secret)
	}
	s = reopen(t, identity.Config{}, db, keys)
	for n, secret := range family {
		if _, err := bearer(s, secret); err != nil {
			t.Errorf("generation %d: %v", n, err)
		}
	}
	if _, err := db.Exec(`DELETE FROM identity_tokens WHERE parent = ''`); err != nil {
		t.Fatal(err)
	}
	_, err := bearer(reopen(t, identity.Config{}, db, keys), secret)
	wantCode(t, "T66 whose first parent is gone from the table", err, identity.TokenRevoked)
}

func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, keys := statetest.OpenDB(t), t.TempDir()
		s := reopen(t, identity.Config{}, db, keys)
		_, secret := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything, Life: time.Hour})
		_, lasting := mint(t, s, identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Owner: "alice", Scope: modules("*")})
		time.Sleep(7 * day)
		_, err := bearer(s, secret)
		wantCode(t, "a week after its creation", err, identity.TokenExpired)
		time.Sleep(3 * time.Hour)
		_, err = bearer(s, secret)
		wantCode(t, "a week after its end", err, identity.CredentialInvalid)
		if _, err := bearer(s, lasting); err != nil {
			t.Errorf("a token that lasts: %v", err)
		}
		if list, _ := reopen(t, identity.Config{}, db, keys).Tokens(t.Context(), identity.Filter{Ended: true}); len(list) != 1 {
			t.Errorf("%d tokens are left in the table, want 1", len(list))
		}
	})
}

func TestScope(t *testing.T) {
	s := start(t, identity.Config{})
	as := func(scope identity.Scope) identity.Principal {
		_, secret := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: scope})
		p, err := bearer(s, secret)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct {
		name    string
		pattern string
		path    string
		want    bool
	}{
		{"equal", "corp/a", "corp/a", true},
		{"below", "corp/a", "corp/a/b/v2", true},
		{"T33 longer element", "corp/a", "corp/ab", false},
		{"T33 dot behind", "corp/a", "corp/a.evil", false},
		{"T33 host with a tail", "corp.example", "corp.example.evil/a", false},
		{"above", "corp/a", "corp", false},
		{"inside", "corp/a", "x/corp/a", false},
		{"other case", "corp/a", "corp/A", false},
		{"glob in one element", "*.corp.example", "git.corp.example/x", true},
		{"glob not over two elements", "corp/*/x", "corp/a/b/x", false},
		{"everything", "*", "golang.org/toolchain", true},
		{"no path", "*", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := as(modules(tt.pattern)).Allows(tt.path, "content"); got != tt.want {
				t.Errorf("Allows(%q) under %q = %v, want %v", tt.path, tt.pattern, got, tt.want)
			}
		})
	}
	t.Run("empty scope reaches nothing", func(t *testing.T) {
		p := as(identity.Scope{})
		for _, a := range []string{"discover", "metadata", "content", "mint", "admin", ""} {
			if p.Allows("example.com/m", a) {
				t.Errorf("Allows(%q) under an empty scope", a)
			}
		}
	})
	t.Run("patterns without actions and actions without patterns reach no module", func(t *testing.T) {
		if as(identity.Scope{Modules: []string{"*"}}).Allows("a", "content") || as(identity.Scope{Actions: []string{"content"}}).Allows("a", "content") {
			t.Error("half a scope allows something")
		}
	})
	t.Run("T63 the scope stays while groups go", func(t *testing.T) {
		_, secret := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice("payments"), Scope: modules("corp/payments")})
		p, err := bearer(s, secret)
		if err != nil || !p.Allows("corp/payments/x", "content") || p.Allows("corp/other", "content") {
			t.Errorf("principal %+v, %v", p, err)
		}
	})
}

func TestWhatClassesCanDo(t *testing.T) {
	s := start(t, identity.Config{})
	ask := func(c identity.Class, sub identity.Subject, scope identity.Scope) error {
		_, err := s.Draft(t.Context(), identity.TokenRequest{Class: c, Subject: sub, Owner: "alice", Scope: scope})
		return err
	}
	one := func(a string) identity.Scope { return identity.Scope{Modules: []string{"*"}, Actions: []string{a}} }
	for name, err := range map[string]error{
		"T64 CI token that mints":          ask(identity.ClassCI, job(), one("mint")),
		"T64 CI token on the admin API":    ask(identity.ClassCI, job(), one("admin")),
		"person on the admin API":          ask(identity.ClassPerson, alice(), one("admin")),
		"admin token that fetches modules": ask(identity.ClassAdmin, alice(), one("content")),
		"admin token that reads lists":     ask(identity.ClassAdmin, alice(), one("discover")),
		"admin token with mint":            ask(identity.ClassAdmin, alice(), one("mint")),
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, "Draft", err, identity.ScopeExceeded) })
	}
	for name, err := range map[string]error{
		"unknown class":           ask("zz", alice(), one("content")),
		"JWT as class":            ask(identity.ClassJWT, alice(), one("content")),
		"person's token of a job": ask(identity.ClassPerson, job(), one("content")),
		"CI token of a person":    ask(identity.ClassCI, alice(), one("content")),
		"no subject":              ask(identity.ClassPerson, identity.Subject{Type: identity.Person}, one("content")),
		"line break in subject":   ask(identity.ClassPerson, identity.Subject{Type: identity.Person, ID: "a\nb"}, one("content")),
		"unknown action":          ask(identity.ClassPerson, alice(), one("everything")),
		"pattern with a comma":    ask(identity.ClassPerson, alice(), modules("a,b")),
		"malformed pattern":       ask(identity.ClassPerson, alice(), modules("a[")),
		"empty pattern":           ask(identity.ClassPerson, alice(), modules("")),
		"pattern from the root":   ask(identity.ClassPerson, alice(), modules("/a")),
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, "Draft", err, identity.RequestInvalid) })
	}
	t.Run("CI token without an owner", func(t *testing.T) {
		_, err := s.Draft(t.Context(), identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Scope: modules("*")})
		wantCode(t, "Draft", err, identity.RequestInvalid)
	})
	t.Run("agent's token without a device", func(t *testing.T) {
		wantCode(t, "Draft", ask(identity.ClassAgent, alice(), modules("*")), identity.DeviceRequired)
	})
}

func TestRowThatClaimsTooMuch(t *testing.T) {
	db, keys := statetest.OpenDB(t), t.TempDir()
	s := reopen(t, identity.Config{}, db, keys)
	_, ci := mint(t, s, identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Owner: "alice", Scope: modules("*")})
	_, admin := mint(t, s, identity.TokenRequest{Class: identity.ClassAdmin, Subject: alice(), Scope: identity.Scope{Actions: []string{"admin"}}})
	if _, err := db.Exec(`UPDATE identity_tokens SET scope = '{"modules":["*"],"actions":["admin","content","discover","metadata","mint"]}'`); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, identity.Config{}, db, keys)
	p, err := bearer(s, ci)
	if err != nil || p.Allows("", "mint") || p.Allows("", "admin") || !p.Allows("a", "content") {
		t.Errorf("T64 CI token: %+v, %v", p.Scope, err)
	}
	if _, err := s.Draft(t.Context(), identity.TokenRequest{By: &p, Class: identity.ClassPerson, Scope: modules("*")}); code(t, err) != identity.ScopeExceeded {
		t.Errorf("T64 CI token mints: %v", err)
	}
	if p, err = bearer(s, admin); err != nil || p.Allows("a", "content") || p.Allows("a", "discover") || !p.Allows("", "admin") {
		t.Errorf("admin token: %+v, %v", p.Scope, err)
	}
}

func TestMintedByPerson(t *testing.T) {
	s := start(t, identity.Config{})
	tok, secret := mint(t, s, identity.TokenRequest{
		Class: identity.ClassPerson, Subject: alice("eng"), Life: 2 * time.Hour,
		Scope: identity.Scope{Modules: []string{"corp/a", "*.example"}, Actions: []string{"content", "mint"}},
	})
	by, err := bearer(s, secret)
	if err != nil {
		t.Fatal(err)
	}
	draft := func(q identity.TokenRequest) (identity.Draft, error) {
		q.By = &by
		return s.Draft(t.Context(), q)
	}
	d, err := draft(identity.TokenRequest{
		Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: "root", Groups: []string{"admins"}},
		Scope: identity.Scope{Modules: []string{"corp/a/b", "git.example/x"}, Actions: []string{"content"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.Token.Subject.ID != "alice" || cmp.Diff(d.Token.Subject.Groups, []string{"eng"}) != "" {
		t.Errorf("a person minted for %+v", d.Token.Subject)
	}
	if d.Token.Expires.After(tok.Expires) {
		t.Errorf("the child ends at %v, the parent at %v", d.Token.Expires, tok.Expires)
	}
	for name, scope := range map[string]identity.Scope{
		"another path":      {Modules: []string{"corp/b"}, Actions: []string{"content"}},
		"a wider path":      {Modules: []string{"corp"}, Actions: []string{"content"}},
		"everything":        {Modules: []string{"*"}, Actions: []string{"content"}},
		"another action":    {Modules: []string{"corp/a"}, Actions: []string{"discover"}},
		"a glob for a name": {Modules: []string{"corp/?"}, Actions: []string{"content"}},
		"a glob in a glob":  {Modules: []string{"?.example"}, Actions: []string{"content"}},
	} {
		t.Run("wider: "+name, func(t *testing.T) {
			_, err := draft(identity.TokenRequest{Class: identity.ClassPerson, Scope: scope})
			wantCode(t, "Draft", err, identity.ScopeExceeded)
		})
	}
	t.Run("another class", func(t *testing.T) {
		_, err := draft(identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Owner: "alice", Scope: identity.Scope{}})
		wantCode(t, "Draft", err, identity.ScopeExceeded)
	})
}

func TestGroupsThatAnAdministratorGives(t *testing.T) {
	s := start(t, identity.Config{})
	for _, groups := range [][]string{{"eng"}, nil, {"payments"}} {
		_, secret := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(groups...), Scope: everything})
		if p, err := bearer(s, secret); err != nil || cmp.Diff(groups, p.Subject.Groups) != "" {
			t.Errorf("a token made with groups %v has %v, %v", groups, p.Subject.Groups, err)
		}
	}
}

func TestStoredFormAndDrafts(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "identity.db")
	db := statetest.OpenFile(t, file)
	s := reopen(t, identity.Config{}, db, dir)
	d, err := s.Draft(t.Context(), identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := s.Tokens(t.Context(), identity.Filter{Ended: true}); len(list) != 0 {
		t.Errorf("a draft is listed: %+v", list)
	}
	d.Token.Class, d.Token.Scope, d.Token.Expires = identity.ClassAdmin, everything, time.Now().Add(1000*day) // what a caller changes has no effect
	secret, err := s.Issue(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := bearer(s, secret); err != nil || p.Credential.Class != identity.ClassPerson || p.Credential.Expires.After(time.Now().Add(7*day+time.Minute)) {
		t.Errorf("issued %+v, %v", p.Credential, err)
	}
	_, err = s.Issue(t.Context(), d)
	wantCode(t, "Issue of the same draft again", err, identity.StateDown)
	_, err = s.Issue(t.Context(), identity.Draft{})
	wantCode(t, "Issue of an empty draft", err, identity.RequestInvalid)
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(file + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), secret[19:62]) {
			t.Errorf("the secret stands in identity.db%s", suffix)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "pepper.txt")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("pepper.txt: %v, %v; want mode 0600", info, err)
	}
}

func TestDatabaseAway(t *testing.T) {
	db := statetest.OpenDB(t)
	s, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	tok, secret := person(t, s)
	d, err := s.Draft(t.Context(), identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything})
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	if _, err := bearer(s, secret); err != nil {
		t.Errorf("Authenticate needs the database: %v", err)
	}
	_, err = s.Issue(t.Context(), d)
	wantCode(t, "Issue", err, identity.StateDown)
	_, err = s.Revoke(t.Context(), tok.ID)
	wantCode(t, "Revoke", err, identity.StateDown)
	if err := s.Close(); err == nil {
		t.Error("Close with a use to write down says nothing of the database")
	}
}

// Two lines of a file of peppers.
const one, two = "1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "2 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"

func TestPeppers(t *testing.T) {
	db, dir := statetest.OpenDB(t), t.TempDir()
	file := filepath.Join(dir, "peppers")
	write := func(text string) identity.Config {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return identity.Config{PepperFile: file}
	}
	first := reopen(t, write(one), db, "")
	_, old := person(t, first)
	_, unused := person(t, first)

	reg := prometheus.NewRegistry()
	s, err := identity.Open(t.Context(), write(one+two), identity.Options{DB: db, Poll: never, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	_, fresh := person(t, s)
	for name, text := range map[string]string{"old": old, "new": fresh} {
		if _, err := bearer(s, text); err != nil {
			t.Errorf("%s token after rotation: %v", name, err)
		}
	}
	wantPeppers(t, reg, "at the start", map[string]float64{"1": 2, "2": 0, "none": 0})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantPeppers(t, reg, "after one was used", map[string]float64{"1": 1, "2": 2, "none": 0})

	reg = prometheus.NewRegistry()
	s = open(t, write(two), identity.Options{DB: db, Poll: never, Registerer: reg})
	_, err = bearer(s, unused)
	wantCode(t, "token whose pepper is gone", err, identity.CredentialInvalid)
	for name, text := range map[string]string{"used under both": old, "new": fresh} {
		if _, err := bearer(s, text); err != nil {
			t.Errorf("token of the pepper that is left, %s: %v", name, err)
		}
	}
	wantPeppers(t, reg, "without the old one", map[string]float64{"2": 2, "none": 1})
	for name, text := range map[string]string{
		"empty": "", "short": "1 AAAA\n", "no version": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "twice": one + one, "zero": "0" + one[1:],
	} {
		t.Run("pepper file "+name, func(t *testing.T) {
			if s, err := identity.Open(t.Context(), write(text), identity.Options{DB: db}); err == nil {
				_ = s.Close()
				t.Error("Open takes it")
			}
		})
	}
}

// wantPeppers compares how many tokens need which version of the pepper.
func wantPeppers(t *testing.T, reg *prometheus.Registry, when string, want map[string]float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "headgate_tokens" {
			for _, m := range f.GetMetric() {
				got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tokens by pepper %s (-want +got):\n%s", when, diff)
	}
}

// TestPepperOnAnotherNode: a node that has not been given the new pepper yet learns of a token that moved to it, and
// still accepts that token; a node that has it moves along.
func TestPepperOnAnotherNode(t *testing.T) {
	db, dir := statetest.OpenDB(t), t.TempDir()
	node := func(name, text string, wake <-chan struct{}) *identity.Service {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return open(t, identity.Config{PepperFile: file}, identity.Options{DB: db, Poll: never, Wake: wake})
	}
	wakeOld, wakeNew := make(chan struct{}), make(chan struct{})
	behind := node("behind", one, wakeOld)
	_, secret := person(t, behind)
	along := node("along", one+two, wakeNew)
	mover, err := identity.Open(t.Context(), identity.Config{PepperFile: filepath.Join(dir, "along")}, identity.Options{DB: db, Poll: never})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bearer(mover, secret); err != nil {
		t.Fatal(err)
	}
	if err := mover.Close(); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]struct {
		s    *identity.Service
		wake chan struct{}
	}{"behind": {behind, wakeOld}, "along": {along, wakeNew}} {
		n.wake <- struct{}{}
		n.wake <- struct{}{} // taken only when the first look is over
		if _, err := bearer(n.s, secret); err != nil {
			t.Errorf("on the node %s: %v", name, err)
		}
	}
}

func TestList(t *testing.T) {
	s := start(t, identity.Config{})
	a, _ := person(t, s)
	ci, _ := mint(t, s, identity.TokenRequest{Class: identity.ClassCI, Subject: job(), Owner: "alice", Note: "nightly", Scope: modules("*")})
	if _, err := s.Revoke(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		f    identity.Filter
		want []string
	}{
		"active":   {identity.Filter{}, []string{ci.ID}},
		"person's": {identity.Filter{Subject: "alice", Ended: true}, []string{a.ID}},
		"other's":  {identity.Filter{Subject: "alice", Issuer: "https://x", Ended: true}, nil},
		"class":    {identity.Filter{Class: identity.ClassCI}, []string{ci.ID}},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := s.Tokens(t.Context(), tt.f)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range list {
				got = append(got, x.ID)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Tokens(%+v) (-want +got):\n%s", tt.f, diff)
			}
		})
	}
}
