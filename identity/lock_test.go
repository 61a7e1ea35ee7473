package identity_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// TestOnPostgres runs what touches the database again, on PostgreSQL.
func TestOnPostgres(t *testing.T) {
	statetest.OnPostgres(t, "^(TestLock|TestTwoNodes|TestTokens|TestIssue$|TestRevo|TestRestart|TestExchange|TestUpkeep|TestSweep|TestPeople|TestSignInStore|TestGrantStore|TestSignOut|TestSecrets|TestGrantRequests|TestClientSecret|TestNotice|TestRenewal)")
}

// lock stores a lock.
func lock(t *testing.T, s *identity.Service, kind, object string) {
	t.Helper()
	if err := s.Lock(t.Context(), identity.Lock{Kind: kind, Object: object, Reason: "stolen", By: "root"}); err != nil {
		t.Fatalf("Lock(%s %s): %v", kind, object, err)
	}
}

func unlock(t *testing.T, s *identity.Service, kind, object string) {
	t.Helper()
	if _, err := s.Unlock(t.Context(), kind, object); err != nil {
		t.Fatalf("Unlock(%s %s): %v", kind, object, err)
	}
}

// refusal is why a credential is refused, "" where it opens.
func refusal(t *testing.T, s *identity.Service, credential string) identity.Code {
	t.Helper()
	_, err := bearer(s, credential)
	return code(t, err)
}

func TestLocks(t *testing.T) {
	s := start(t, identity.Config{})
	parent, secret := person(t, s)
	by, err := s.Authenticate(request("Bearer " + secret))
	if err != nil {
		t.Fatal(err)
	}
	_, child := mint(t, s, identity.TokenRequest{By: &by, Class: identity.ClassPerson, Scope: modules("example.com/a")})
	for name, l := range map[string]struct{ kind, object string }{
		"user": {identity.LockUser, "alice"}, "token, and its children": {identity.LockToken, parent.ID},
	} {
		t.Run(name, func(t *testing.T) {
			lock(t, s, l.kind, l.object)
			for _, secret := range []string{secret, child} {
				if got := refusal(t, s, secret); got != identity.Locked {
					t.Errorf("locked: code %q, want %q", got, identity.Locked)
				}
			}
			unlock(t, s, l.kind, l.object)
			if got := refusal(t, s, child); got != "" {
				t.Errorf("unlocked: code %q, want none", got)
			}
		})
	}
	t.Run("another's lock is no concern", func(t *testing.T) {
		lock(t, s, identity.LockUser, "alicex")
		lock(t, s, identity.LockToken, "abcdefghijkl")
		if got := refusal(t, s, secret); got != "" {
			t.Errorf("code %q, want none", got)
		}
	})
	t.Run("T61 a wrong secret does not learn of the lock", func(t *testing.T) {
		lock(t, s, identity.LockUser, "alice")
		defer unlock(t, s, identity.LockUser, "alice")
		_, other := mint(t, s, identity.TokenRequest{Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: "bob"}, Scope: everything})
		forged := retext(other[:6] + parent.ID + other[18:len(other)-6]) // hg_hu_ID_SECRET
		if got := refusal(t, s, forged); got != identity.CredentialInvalid {
			t.Errorf("code %q, want %q", got, identity.CredentialInvalid)
		}
	})
	t.Run("unlocking what is not locked", func(t *testing.T) {
		if _, err := s.Unlock(t.Context(), identity.LockUser, "nobody"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Unlock: %v, want fs.ErrNotExist", err)
		}
	})
}

func TestLockedPersonSignsInAgain(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, trust(iss), iss)
	raw := iss.Sign(iss.Claims("alice", "headgate", nil))
	if _, err := s.Authenticate(request("Bearer " + raw)); err != nil {
		t.Fatalf("before the lock: %v", err)
	}
	lock(t, s, identity.LockUser, "alice")
	t.Run("T53 a locked account stays locked whoever vouches for it", func(t *testing.T) {
		if got := refusal(t, s, raw); got != identity.Locked {
			t.Errorf("code %q, want %q", got, identity.Locked)
		}
	})
}

func TestLockedModule(t *testing.T) {
	s := start(t, identity.Config{})
	lock(t, s, identity.LockModule, "example.com/bad@v1.2.3")
	lock(t, s, identity.LockModule, "example.com/team/*")
	for name, tt := range map[string]struct {
		path, version string
		want          bool
	}{
		"that version":           {"example.com/bad", "v1.2.3", true},
		"another version":        {"example.com/bad", "v1.2.4", false},
		"its list":               {"example.com/bad", "", false},
		"below the pattern":      {"example.com/team/m/v2", "v2.0.0", true},
		"list below it":          {"example.com/team/m", "", true},
		"T33 element, no prefix": {"example.com/teams/m", "v1.0.0", false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, got := s.LockedModule(tt.path, tt.version); got != tt.want {
				t.Errorf("LockedModule(%q, %q) = %t, want %t", tt.path, tt.version, got, tt.want)
			}
		})
	}
}

func TestLockRefusesNonsense(t *testing.T) {
	s := start(t, identity.Config{})
	for name, l := range map[string]identity.Lock{
		"kind":              {Kind: "host", Object: "x", Reason: "r"},
		"no object":         {Kind: identity.LockUser, Reason: "r"},
		"no reason":         {Kind: identity.LockUser, Object: "alice"},
		"control character": {Kind: identity.LockUser, Object: "a\x00b", Reason: "r"},
		"bad pattern":       {Kind: identity.LockModule, Object: "example.com/[", Reason: "r"},
		"no version":        {Kind: identity.LockModule, Object: "example.com/m@latest", Reason: "r"},
		"over at once":      {Kind: identity.LockUser, Object: "alice", Reason: "r", Expires: time.Now().Add(-time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			err := s.Lock(t.Context(), l)
			if e, ok := errors.AsType[*identity.Error](err); !ok || e.Code != identity.RequestInvalid {
				t.Errorf("Lock(%+v): %v, want %s", l, err, identity.RequestInvalid)
			}
		})
	}
	if got := s.Locks(); len(got) != 0 {
		t.Errorf("Locks() = %v, want none", got)
	}
}

func TestLocksSurviveARestart(t *testing.T) {
	db, keys := statetest.OpenDB(t), t.TempDir()
	s := reopen(t, identity.Config{}, db, keys)
	_, secret := person(t, s)
	lock(t, s, identity.LockUser, "alice")
	lock(t, s, identity.LockUser, "bob")
	unlock(t, s, identity.LockUser, "bob")
	again := reopen(t, identity.Config{}, db, keys)
	if got := refusal(t, again, secret); got != identity.Locked {
		t.Errorf("after a restart: code %q, want %q", got, identity.Locked)
	}
	if got := again.Locks(); len(got) != 1 || got[0].Object != "alice" || got[0].Reason != "stolen" || got[0].By != "root" {
		t.Errorf("Locks() = %+v, want the one on alice", got)
	}
}

// TestTwoNodes lets two services share one database, as the nodes of a fleet do.
func TestTwoNodes(t *testing.T) {
	db, keys := statetest.OpenDB(t), t.TempDir()
	wake := make(chan struct{})
	a := reopen(t, identity.Config{}, db, keys)
	b, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: keys, Wake: wake})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	token, secret := person(t, a)
	learn := func() { // the second value is taken once the look after the first is over
		wake <- struct{}{}
		wake <- struct{}{}
	}
	learn()
	steps := []struct {
		name string
		do   func()
		want identity.Code
	}{
		{"a token made elsewhere", func() {}, ""},
		{"T62 a lock made elsewhere", func() { lock(t, a, identity.LockUser, "alice") }, identity.Locked},
		{"a lock lifted elsewhere", func() { unlock(t, a, identity.LockUser, "alice") }, ""},
		{"T66 a revocation made elsewhere", func() {
			if _, err := a.Revoke(t.Context(), token.ID); err != nil {
				t.Fatal(err)
			}
		}, identity.TokenRevoked},
	}
	for _, step := range steps {
		step.do()
		learn()
		if got := refusal(t, b, secret); got != step.want {
			t.Errorf("%s: code %q, want %q", step.name, got, step.want)
		}
	}
}

func TestLocksWithoutNotification(t *testing.T) {
	t.Run("F7 a lock is in force on every node within 5 s, also without a notification", func(t *testing.T) {
		synctest.Test(t, withoutNotification)
	})
}

func withoutNotification(t *testing.T) {
	db, keys := statetest.OpenDB(t), t.TempDir()
	a, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: keys, Poll: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: keys, Poll: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, secret := person(t, a)
	lock(t, a, identity.LockUser, "alice")
	time.Sleep(5 * time.Second) // of the fake clock
	synctest.Wait()
	if got := refusal(t, b, secret); got != identity.Locked {
		t.Errorf("code %q, want %q", got, identity.Locked)
	}
}

func TestViewAge(t *testing.T) {
	t.Run("T70 the view ages while the database is away", func(t *testing.T) { synctest.Test(t, viewAge) })
}

func viewAge(t *testing.T) {
	db := statetest.OpenDB(t)
	s, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	time.Sleep(time.Minute)
	synctest.Wait()
	if age := s.ViewAge(); age > 31*time.Second {
		t.Errorf("with the database there: the view is %s old, want at most 30 s", age)
	}
	db.Close()
	time.Sleep(6 * time.Minute)
	synctest.Wait()
	if age := s.ViewAge(); age < 6*time.Minute {
		t.Errorf("the view is %s old, want 6 min or more", age)
	}
}

// TestLockStateDown asks for a lock with the database gone: it is an error, and nothing pretends to be locked.
func TestLockStateDown(t *testing.T) {
	db := statetest.OpenDB(t)
	s, err := identity.Open(t.Context(), identity.Config{}, identity.Options{DB: db, Keys: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db.Close()
	err = s.Lock(context.WithoutCancel(t.Context()), identity.Lock{Kind: identity.LockUser, Object: "alice", Reason: "r"})
	if e, ok := errors.AsType[*identity.Error](err); !ok || e.Code != identity.StateDown {
		t.Errorf("Lock: %v, want %s", err, identity.StateDown)
	}
	if got := s.Locks(); len(got) != 0 {
		t.Errorf("Locks() = %v, want none", got)
	}
}
