package identity

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// A Token is a Headgate token without its secret.
type Token struct {
	ID        string    `json:"id"`
	Class     Class     `json:"class"`
	Subject   Subject   `json:"subject"`
	Assurance int       `json:"-"`
	Owner     string    `json:"owner,omitempty"` // who answers for a static CI token
	Note      string    `json:"note,omitempty"`
	Scope     Scope     `json:"scope"`
	Bound     *Binding  `json:"bound,omitempty"`     // the device that it is bound to; nil: to none
	Parent    string    `json:"parent,omitempty"`    // id of the token that minted it
	Exchanged bool      `json:"exchanged,omitempty"` // got for a token of an issuer
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"` // under the ceiling in force
	LastUsed  time.Time `json:"last_used,omitzero"`
	Revoked   time.Time `json:"revoked,omitzero"`
	State     string    `json:"state,omitempty"` // active, expired, revoked
}

// A TokenRequest says what token is wanted.
type TokenRequest struct {
	// By is who asks; nil is the local administrator. A person's token or ID token
	// mints for that person only; an administrator's token mints for anybody.
	By *Principal
	// Class of the token; a static CI token names Owner and Subject.CI.Repo.
	Class Class
	// Subject holds the token. It is By's when a person mints.
	Subject Subject
	Owner   string
	Note    string
	// Scope is the ceiling; an empty one reaches nothing.
	Scope Scope
	// Life of the token; 0 is the class's default.
	Life time.Duration
	// Device, proved by TLS, is what the token is bound to; the zero Device binds it to
	// none. It is By's where that one proved any.
	Device Device
}

// A Draft is a token that is not stored yet and opens nothing.
type Draft struct {
	// Token is what Issue will store, for the record that is written before.
	Token Token

	row     row
	secret  string
	session string // in which it was minted; empty: in none
	grant   string // digest of the device code that it is for; empty: for none
}

// Draft checks a request against class, scope and ceiling and makes the token
// without storing it. Errors are *Error: RequestInvalid, ScopeExceeded,
// DeviceRequired.
func (s *Service) Draft(_ context.Context, q TokenRequest) (Draft, error) {
	scope, err := q.Scope.canonical()
	if err != nil {
		return Draft{}, refuse(RequestInvalid, "drafting token: %w", err)
	}
	t := Token{Class: q.Class, Subject: q.Subject, Owner: q.Owner, Note: q.Note, Scope: scope}
	if q.By != nil && !q.By.Allows("", ActionAdmin) { // an administrator's device is not the holder's
		q.Device = q.By.Device
	}
	t.Bound = q.Device.binding()
	if q.By != nil {
		if err := minted(*q.By, &t); err != nil {
			return Draft{}, err
		}
	}
	if err := checkHolder(&t); err != nil {
		return Draft{}, err
	}
	if most := (Scope{Modules: []string{everything}, Actions: t.Class.actions()}); !scope.within(most) {
		return Draft{}, refuse(ScopeExceeded, "drafting token: class %s reaches %s at most", t.Class, most)
	}
	k := kindOf(t.Class, false, t.Bound != nil)
	if q.Life < 0 || q.Life > s.cfg.Ceilings.ceiling(k) {
		return Draft{}, refuse(RequestInvalid, "drafting token: life %s; class %s lives %s at most", q.Life, t.Class, s.cfg.Ceilings.ceiling(k))
	}
	until := time.Now().Add(cmp.Or(q.Life, s.cfg.Ceilings.normal(k)))
	if q.By != nil && q.By.bounds(t) && until.After(q.By.Credential.Expires) {
		until = q.By.Credential.Expires // no longer than what it was made with
	}
	return s.draft(row{Token: t}, q.Device.until(until))
}

// bounds tells whether a token that this principal minted may not outlive its credential.
func (p Principal) bounds(t Token) bool {
	switch p.Credential.Class {
	case ClassJWT:
		return true
	case ClassSession:
		return !p.Credential.Expires.IsZero()
	}
	return t.Parent != ""
}

// minted narrows a request to what the one who asks may mint.
func minted(by Principal, t *Token) *Error {
	switch {
	case by.Allows("", ActionAdmin):
		if t.Class == ClassAdmin {
			// Else one administrator's token could make the next for ever, or one that does more.
			t.Parent, t.Subject = by.Credential.ID, by.Subject
			if !t.Scope.within(by.Scope) {
				return refuse(ScopeExceeded, "drafting token: wider than the credential that asks")
			}
		}
		return nil
	case !by.Allows("", ActionMint):
		return refuse(ScopeExceeded, "drafting token: a credential of class %s mints nothing here", by.Credential.Class)
	case t.Class != ClassPerson && t.Class != ClassAgent:
		return refuse(ScopeExceeded, "drafting token: a person mints tokens of class %s and %s only", ClassPerson, ClassAgent)
	case !t.Scope.within(by.Scope):
		return refuse(ScopeExceeded, "drafting token: wider than the credential that asks")
	}
	t.Parent, t.Subject, t.Assurance = by.Credential.ID, by.Subject, by.Subject.Assurance
	return nil
}

// checkHolder checks that the subject fits the class.
func checkHolder(t *Token) *Error {
	want := Person
	switch t.Class {
	case ClassPerson, ClassAdmin:
	case ClassCI:
		want = Workload
		if t.Owner == "" || t.Subject.CI == nil || t.Subject.CI.Repo == "" {
			return refuse(RequestInvalid, "drafting token: a CI token names an owner and a repository")
		}
	case ClassAgent:
		if t.Bound == nil {
			return refuse(DeviceRequired, "drafting token: an agent's token is minted on a proved device")
		}
	default:
		return refuse(RequestInvalid, "drafting token: class %q is unknown", t.Class)
	}
	if t.Subject.Type != want {
		return refuse(RequestInvalid, "drafting token: subject type %q; class %s wants %s", t.Subject.Type, t.Class, want)
	}
	if err := checkSubjectID(t.Subject.ID); err != nil {
		return refuse(RequestInvalid, "drafting token: %w", err)
	}
	t.Subject.Groups = canonicalGroups(t.Subject.Groups)
	return nil
}

// draft fills in what each new token has.
func (s *Service) draft(r row, until time.Time) (Draft, error) {
	text := newText(r.Class)
	parsed, err := parseText([]byte(text))
	if err != nil {
		panic("identity: newText made what parseText refuses: " + err.Error())
	}
	now := time.Now().UTC().Truncate(time.Second)
	r.ID, r.Created, r.Expires = parsed.id.String(), now, until.UTC().Truncate(time.Second)
	if !r.Expires.After(now) {
		return Draft{}, refuse(RequestInvalid, "drafting token: it would be over at once")
	}
	r.verifier = verifier{s.peppers.current.version, s.peppers.current.digest(parsed)}
	shown := r.Token
	shown.State = "active"
	return Draft{Token: shown, row: r, secret: text}, nil
}

// Issue stores a draft and gives the text of the token, which is shown this once:
// only a digest is kept. From now on the token holds, if its parent still does.
// Errors are *Error: TokenRevoked, TokenExpired (of the parent), StateDown.
func (s *Service) Issue(ctx context.Context, d Draft) (string, error) {
	if d.secret == "" {
		return "", refuse(RequestInvalid, "issuing token: the draft is empty")
	}
	if d.row.Parent != "" {
		parent := s.tokens.find(idOf(d.row.Parent))
		if parent == s.tokens.ghost {
			return "", refuse(TokenRevoked, "issuing token: its parent is gone")
		}
		if code := parent.state(time.Now().Unix()); code != "" {
			return "", refuse(code, "issuing token: its parent %s no longer holds", d.row.Parent)
		}
	}
	if err := s.store.insert(ctx, d.row); err != nil {
		return "", &Error{Code: StateDown, Err: err}
	}
	s.tokens.add(d.row)
	return d.secret, nil
}

// A Filter narrows a list of tokens; a zero field does not.
type Filter struct {
	Issuer, Subject string // exactly; Issuer counts only beside Subject
	Class           Class
	Ended           bool // also those that are expired or revoked
}

// Tokens lists tokens, oldest first.
func (s *Service) Tokens(_ context.Context, f Filter) ([]Token, error) {
	now := time.Now().Unix()
	var list []Token
	for _, e := range s.tokens.entries() {
		t := e.token(now)
		switch {
		case f.Class != "" && t.Class != f.Class:
		case f.Subject != "" && (t.Subject.ID != f.Subject || t.Subject.Issuer != f.Issuer):
		case !f.Ended && t.State != "active":
		default:
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b Token) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// Token gives one token. An id that does not exist is fs.ErrNotExist.
func (s *Service) Token(_ context.Context, id string) (Token, error) {
	e := s.tokens.find(idOf(id))
	if e == s.tokens.ghost || e.row.ID != id {
		return Token{}, fmt.Errorf("looking up token %q: %w", id, fs.ErrNotExist)
	}
	return e.token(time.Now().Unix()), nil
}

// Revoke ends a token and all that were minted with it, at once in this process
// and for good. Revoking again changes nothing. An id that does not exist is
// fs.ErrNotExist; a database that cannot be written is *Error StateDown, and the
// token still holds.
func (s *Service) Revoke(ctx context.Context, id string) (Token, error) {
	e := s.tokens.find(idOf(id))
	if e == s.tokens.ghost || e.row.ID != id {
		return Token{}, fmt.Errorf("revoking token %q: %w", id, fs.ErrNotExist)
	}
	now := time.Now().Unix()
	if e.revoked.Load() == 0 {
		if err := s.store.revoke(ctx, id, now); err != nil {
			return Token{}, &Error{Code: StateDown, Err: err}
		}
		e.revoked.CompareAndSwap(0, now)
	}
	return e.token(now), nil
}
