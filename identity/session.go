package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

const (
	sessionIdle = time.Hour
	sessionLife = 12 * time.Hour
)

// A Session is a person at a browser who signed in.
type Session struct {
	ID      string // names it in records; it opens nothing
	Subject Subject
	Created time.Time // when the person signed in
	Expires time.Time // at the latest; an hour without use ends it before
	// Until, if it is not zero, is how long the issuer can be asked whether the person is still known to it. What is
	// minted in the session ends then.
	Until time.Time

	asOf int64 // when the issuer last described the person
}

// Principal is the session as a credential. It mints tokens for its person and fetches nothing by itself.
func (s Session) Principal() Principal {
	scope := Scope{Modules: []string{everything}, Actions: ClassPerson.actions()}
	return Principal{Subject: s.Subject, Device: unproved, Scope: scope, Credential: Credential{Class: ClassSession, Via: "session", Expires: s.Until}}
}

// ends is when the session is over for good.
func (s Session) ends() time.Time {
	end := s.Created.Add(sessionLife)
	if !s.Until.IsZero() && s.Until.Before(end) {
		return s.Until
	}
	return end
}

func newSessionID() string { return strings.ToLower(rand.Text()[:12]) }

// secretDigest is what is kept of a secret of 128 bits and more that we made.
func secretDigest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// OpenSession stores a sign-in and gives the secret of the new session, which the browser keeps. Errors are *Error
// StateDown.
func (s *Service) OpenSession(ctx context.Context, d SessionDraft) (string, error) {
	secret := randomSecret()
	if err := s.store.putSession(ctx, secretDigest(secret), d.Session, d.person); err != nil {
		return "", &Error{Code: StateDown, Err: fmt.Errorf("storing session %s: %w", d.Session.ID, err)}
	}
	s.learnPerson(d.person)
	return secret, nil
}

// Session gives the session of a secret, with its person as the issuer last described them. Errors are *Error:
// CredentialMissing, SessionOver, Locked, StateDown.
func (s *Service) Session(ctx context.Context, secret string) (Session, error) {
	if secret == "" {
		return Session{}, refuse(CredentialMissing, "no session")
	}
	now := time.Now()
	found, p, err := s.store.session(ctx, secretDigest(secret), now)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Session{}, refuse(SessionOver, "no such session, or it is over")
	case err != nil:
		return Session{}, &Error{Code: StateDown, Err: err}
	case p.refused != 0:
		return Session{}, sessionOver(found.Subject)
	}
	if err := s.unlocked(found.Principal()); err != nil {
		return Session{}, err
	}
	return found, nil
}

// sessionOver is the refusal of somebody whom the issuer no longer knows.
func sessionOver(sub Subject) *Error {
	err := refuse(SessionOver, "the issuer no longer vouches for this person")
	err.Subject = sub
	return err
}

// EndSession ends a session and, if asked to, each token that was minted in it; their ids are given. A session that is
// over already is no error. Errors are *Error StateDown.
func (s *Service) EndSession(ctx context.Context, secret string, tokens bool) ([]string, error) {
	ids, err := s.store.endSession(ctx, secretDigest(secret))
	if err != nil {
		return nil, &Error{Code: StateDown, Err: err}
	}
	if !tokens {
		return nil, nil
	}
	var ended []string
	for _, id := range ids {
		_, err := s.Revoke(ctx, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return ended, err
		}
		ended = append(ended, id)
	}
	return ended, nil
}

// DraftInSession drafts a token of the session's person; Issue it with IssueInSession. A life of 0 is the class's
// default, cut to what the issuer can be asked for. Errors are those of Draft.
func (s *Service) DraftInSession(ctx context.Context, by Session, q TokenRequest) (Draft, error) {
	p := by.Principal()
	p.Device = q.Device
	if p.Device.Proof == "" {
		p.Device = unproved
	}
	q.By = &p
	d, err := s.Draft(ctx, q)
	if err != nil {
		return Draft{}, err
	}
	d.row.asOf, d.session = by.asOf, by.ID
	return d, nil
}

// IssueInSession issues a draft and remembers in which session it was minted. A device code is good for one. Errors are
// those of Issue, and RequestInvalid.
func (s *Service) IssueInSession(ctx context.Context, d Draft) (string, error) {
	if d.grant != "" {
		switch first, err := s.store.redeem(ctx, d.grant); {
		case err != nil:
			return "", &Error{Code: StateDown, Err: err}
		case !first:
			return "", refuse(RequestInvalid, "issuing token: %w", errGrant)
		}
	}
	if d.session != "" {
		// The other order could leave a token that sign-out does not find.
		if err := s.store.bindToSession(ctx, d.session, d.row.ID); err != nil {
			return "", &Error{Code: StateDown, Err: err}
		}
	}
	return s.Issue(ctx, d)
}

// TokenOf gives the token of a text, whatever became of it; ok is false where its secret is not the right one. It counts
// as no use.
func (s *Service) TokenOf(text string) (t Token, ok bool) {
	parsed, err := parseText([]byte(text))
	if err != nil {
		return Token{}, false
	}
	e, ok := s.matched(parsed)
	if !ok {
		return Token{}, false
	}
	return e.token(time.Now().Unix()), true
}
