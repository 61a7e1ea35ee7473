package identity

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
)

// The tables of sign-ins and grants, in one walk that both databases take.
func TestSignInStore(t *testing.T) {
	s, err := openStore(t.Context(), statetest.OpenDB(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, now := t.Context(), time.Now().Truncate(time.Second)
	check := func(what string, ok bool, err error) {
		t.Helper()
		if !ok || err != nil {
			t.Fatalf("%s: %v, %v", what, ok, err)
		}
	}
	p := personRow{subject: Subject{Type: Person, Issuer: "https://i", ID: "u-1", Groups: []string{"eng"}}, asOf: now.Unix(), kept: "1.x", checked: now.Unix()}
	n := Session{ID: "s1", Subject: p.subject, Created: now, Expires: now.Add(sessionLife)}
	check("putSession", true, s.putSession(ctx, "d1", n, p))
	got, person, err := s.session(ctx, "d1", now.Add(time.Minute))
	check("session", got.ID == "s1" && got.Subject.Groups[0] == "eng" && person.kept == "1.x", err)
	_, _, err = s.session(ctx, "d1", now.Add(62*time.Minute))
	check("session that is idle", errors.Is(err, fs.ErrNotExist), nil)

	due, err := s.takePeople(ctx, now.Add(6*time.Minute), 9)
	check("takePeople, too soon", len(due) == 0, err)
	due, err = s.takePeople(ctx, now.Add(8*time.Minute), 9)
	check("takePeople", len(due) == 1 && due[0].subject.ID == "u-1", err)
	due, err = s.takePeople(ctx, now.Add(8*time.Minute), 9)
	check("takePeople, taken", len(due) == 0, err)
	next := p
	next.kept, next.subject.Groups, next.checked = "1.y", []string{"ops"}, now.Add(8*time.Minute).Unix()
	check("putPerson", true, s.putPerson(ctx, next, p))
	check("putPerson of an older sign-in", true, s.putPerson(ctx, p, p))
	people, err := s.peopleSince(ctx, 0)
	check("peopleSince", len(people) == 1 && people[0].kept == "1.y" && people[0].subject.Groups[0] == "ops", err)
	gone := next
	gone.kept, gone.refused = "", now.Unix()
	check("putPerson refused", true, s.putPerson(ctx, gone, next))
	_, person, err = s.session(ctx, "d1", now.Add(10*time.Minute))
	check("session of somebody refused", person.refused == now.Unix(), err)

	first, err := s.useOnce(ctx, "state", now.Unix()+60)
	check("useOnce", first, err)
	first, err = s.useOnce(ctx, "state", now.Unix()+60)
	check("useOnce again", !first, err)
	check("bindToSession", true, s.bindToSession(ctx, "s1", "t1"))
	check("sweepSignIns", true, s.sweepSignIns(ctx, now.Add(5*time.Minute)))
	tokens, err := s.endSession(ctx, "d1")
	check("endSession", len(tokens) == 1 && tokens[0] == "t1", err)
	tokens, err = s.endSession(ctx, "d1")
	check("endSession again", len(tokens) == 0, err)
	check("sweepSignIns later", true, s.sweepSignIns(ctx, now.Add(48*time.Hour)))
	_, err = s.person(ctx, p.key())
	check("person after all is over", errors.Is(err, fs.ErrNotExist), nil)
}

func TestGrantStore(t *testing.T) {
	s, err := openStore(t.Context(), statetest.OpenDB(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, now := t.Context(), time.Now().Truncate(time.Second)
	check := func(what string, ok bool, err error) {
		t.Helper()
		if !ok || err != nil {
			t.Fatalf("%s: %v, %v", what, ok, err)
		}
	}
	by := Session{ID: "s1", Subject: Subject{Issuer: "https://i", ID: "u-1", Assurance: 2}}
	g := grantRow{Grant: Grant{UserCode: "BBBB-BBBB", Scope: Scope{Modules: []string{"*"}, Actions: []string{"content"}}, Address: "192.0.2.7", Created: now, Expires: now.Add(grantLife)}, client: ClientCLI}
	ok, err := s.putGrant(ctx, "d1", g)
	check("putGrant", ok, err)
	found, err := s.grantOf(ctx, "BBBB-BBBB", now)
	check("grantOf", found.Scope.String() == "content module:*" && found.Expires.Equal(g.Expires), err)
	polled, err := s.pollGrant(ctx, "d1", now)
	check("pollGrant", polled.state == grantPending && !polled.hasty && !polled.over, err)
	polled, err = s.pollGrant(ctx, "d1", now.Add(time.Second))
	check("pollGrant at once", polled.hasty, err)
	ok, err = s.answerGrant(ctx, "BBBB-BBBB", by, true, now)
	check("answerGrant", ok, err)
	ok, err = s.answerGrant(ctx, "BBBB-BBBB", by, false, now)
	check("answerGrant again", !ok, err)
	polled, err = s.pollGrant(ctx, "d1", now.Add(time.Minute))
	check("pollGrant allowed", polled.state == grantAllowed && polled.subject == "u-1" && polled.assurance == 2, err)
	ok, err = s.redeem(ctx, "d1")
	check("redeem", ok, err)
	ok, err = s.redeem(ctx, "d1")
	check("redeem again", !ok, err)
	_, err = s.pollGrant(ctx, "d2", now)
	check("pollGrant of nothing", errors.Is(err, fs.ErrNotExist), nil)
	check("putGuess", true, s.putGuess(ctx, subjectKey{"https://i", "u-1"}, now))
	wrong, err := s.guesses(ctx, subjectKey{"https://i", "u-1"}, now.Add(-time.Minute))
	check("guesses", wrong == 1, err)
}

// What is sealed opens in its place, under its pepper, and nowhere else.
func TestSeal(t *testing.T) {
	p := &peppers{byVersion: map[int]*pepper{1: newPepper(1, make([]byte, 32)), 2: newPepper(2, []byte("another pepper of 32 bytes or so"))}}
	p.current = p.byVersion[1]
	old := p.sealed([]byte("secret"), "here")
	p.current = p.byVersion[2]
	if got, err := p.unsealed(old, "here"); err != nil || string(got) != "secret" {
		t.Errorf("unsealed after a rotation: %q, %v", got, err)
	}
	once := p.sealed([]byte("secret"), "here")
	if again := p.sealed([]byte("secret"), "here"); again == once || again == old {
		t.Error("what is sealed twice is alike")
	}
	for name, text := range map[string]string{"another version": "2" + old[1:], "no version": old[1:], "unknown version": "3" + old[1:], "cut": old[:len(old)-2], "empty": "", "changed": old[:9] + map[bool]string{true: "B", false: "A"}[old[9] == 'A'] + old[10:]} {
		if got, err := p.unsealed(text, "here"); err == nil {
			t.Errorf("%s: unsealed %q", name, got)
		}
	}
	if got, err := p.unsealed(old, "there"); err == nil {
		t.Errorf("in another place: unsealed %q", got)
	}
}

// FuzzUserCode: whatever is typed gives a code as we make them, or none, and a made one itself.
func FuzzUserCode(f *testing.F) {
	f.Add("bcdf ghjk")
	f.Add(newUserCode())
	f.Fuzz(func(t *testing.T, typed string) {
		code := canonicalCode(typed)
		if code != "" && (len(code) != codeLen+1 || canonicalCode(code) != code) {
			t.Errorf("canonicalCode(%q) = %q", typed, code)
		}
		made := newUserCode()
		if canonicalCode(made) != made {
			t.Errorf("canonicalCode(%q) = %q", made, canonicalCode(made))
		}
	})
}

// FuzzUnseal: what was not sealed here opens nothing.
func FuzzUnseal(f *testing.F) {
	p := &peppers{byVersion: map[int]*pepper{1: newPepper(1, make([]byte, 32))}}
	p.current = p.byVersion[1]
	f.Add("1.AAAA", []byte("x"))
	f.Fuzz(func(t *testing.T, text string, secret []byte) {
		if got, err := p.unsealed(text, "here"); err == nil {
			t.Errorf("unsealed(%q) = %q", text, got)
		}
		if got, err := p.unsealed(p.sealed(secret, "here"), "here"); err != nil || string(got) != string(secret) {
			t.Errorf("round trip of %q gives %q, %v", secret, got, err)
		}
	})
}
