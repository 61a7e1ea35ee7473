package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"time"
	"unicode"
)

const (
	// GrantDeviceCode is the grant type of RFC 8628.
	GrantDeviceCode = "urn:ietf:params:oauth:grant-type:device_code"
	// ClientCLI is the one client of the device authorization grant: the headgate command.
	ClientCLI = "headgate-cli"
)

const (
	grantLife     = 5 * time.Minute
	grantPause    = 5 * time.Second // between two polls; slow_down adds as much
	grantsPending = 10_000          // of all addresses
	grantsAtOnce  = 20              // of one address
	guessWindow   = 10 * time.Minute
	guessesMost   = 5 // wrong codes of one person in guessWindow

	// Letters that are not taken for others, and make no words: 20^8 is more than 34 bits (RFC 8628, 6.1).
	codeLetters = "BCDFGHJKLMNPQRSTVWXZ"
	codeLen     = 8
)

var (
	errSlowDown     = errors.New("polled too soon")
	errGrant        = errors.New("no such code for this client, or it was used")
	errGrantExpired = errors.New("nobody answered in time")
	errClient       = errors.New("client_id is not " + ClientCLI)
)

// A GrantRequest is a terminal that asks for a token.
type GrantRequest struct {
	Client  string // ClientCLI
	Scope   string // as ParseScope reads it; a part left out is all that a person has
	Host    string // what the terminal calls its machine; whoever allows is shown it as a claim
	Address string // where it asks from
}

// A DeviceAuthorization is what the terminal gets: it polls with the one code, and shows the other.
type DeviceAuthorization struct {
	DeviceCode string
	UserCode   string // as XXXX-XXXX
	Expires    time.Time
	Pause      time.Duration // at least, between two polls
}

// A Grant is what whoever answers is shown.
type Grant struct {
	UserCode string
	Scope    Scope
	Host     string
	Address  string
	Created  time.Time
	Expires  time.Time
}

// BeginGrant lets a terminal ask for a token (RFC 8628, 3.1). Errors are *Error: RequestInvalid, ScopeExceeded,
// RateExceeded, StateDown.
func (s *Service) BeginGrant(ctx context.Context, q GrantRequest) (DeviceAuthorization, error) {
	scope, err := q.scope()
	if err != nil {
		return DeviceAuthorization{}, err
	}
	now := time.Now()
	a := DeviceAuthorization{DeviceCode: randomSecret(), UserCode: newUserCode(), Expires: now.Add(grantLife).UTC().Truncate(time.Second), Pause: grantPause}
	g := grantRow{Grant: Grant{UserCode: a.UserCode, Scope: scope, Host: printable(q.Host), Address: q.Address, Created: now, Expires: a.Expires}, client: q.Client}
	switch ok, err := s.store.putGrant(ctx, secretDigest(a.DeviceCode), g); {
	case err != nil:
		return DeviceAuthorization{}, &Error{Code: StateDown, Err: err}
	case !ok:
		return DeviceAuthorization{}, refuse(RateExceeded, "asking for a token: too many are waiting for an answer")
	}
	return a, nil
}

// CheckGrant tells whether a request can be granted at all. Errors are *Error: RequestInvalid, ScopeExceeded.
func CheckGrant(q GrantRequest) error {
	_, err := q.scope()
	return err
}

func (q GrantRequest) scope() (Scope, error) {
	if q.Client != ClientCLI {
		return Scope{}, refuse(RequestInvalid, "asking for a token: %w", errClient)
	}
	wanted, err := ParseScope(q.Scope)
	if err != nil {
		return Scope{}, refuse(ScopeExceeded, "asking for a token: %w", err)
	}
	scope, refused := narrow(Scope{Modules: []string{everything}, Actions: ClassPerson.actions()}, wanted)
	if refused != nil {
		return Scope{}, refused
	}
	return scope, nil
}

// newUserCode makes a code, each letter equally likely.
func newUserCode() string {
	var code []byte
	var pool [64]byte
	for len(code) < codeLen {
		_, _ = rand.Read(pool[:]) // it never fails: the program ends instead
		for _, r := range pool {
			if len(code) < codeLen && int(r) < 256/len(codeLetters)*len(codeLetters) {
				code = append(code, codeLetters[int(r)%len(codeLetters)])
			}
		}
	}
	return string(code[:4]) + "-" + string(code[4:])
}

// canonicalCode is a code as it was shown, whatever somebody typed between its letters; "" is none.
func canonicalCode(typed string) string {
	if len(typed) > 32 {
		return ""
	}
	letters := strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, strings.ToUpper(typed))
	if len(letters) != codeLen || strings.Trim(letters, codeLetters) != "" {
		return ""
	}
	return letters[:4] + "-" + letters[4:]
}

// printable is a claim of a stranger, fit to be shown.
func printable(claim string) string {
	claim = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, claim)
	return strings.ToValidUTF8(claim[:min(len(claim), 64)], "")
}

// Grant finds what waits under a code that somebody typed. Wrong codes are counted: after five in ten minutes no code of
// this person is looked at. Errors are *Error: CredentialInvalid (no such code), RateExceeded, StateDown.
func (s *Service) Grant(ctx context.Context, by Session, typed string) (Grant, error) {
	key := subjectKey{by.Subject.Issuer, by.Subject.ID}
	now := time.Now()
	wrong, err := s.store.guesses(ctx, key, now.Add(-guessWindow))
	if err != nil {
		return Grant{}, &Error{Code: StateDown, Err: err}
	}
	if wrong >= guessesMost {
		return Grant{}, refuse(RateExceeded, "looking for a code: %d wrong ones in %s", wrong, guessWindow)
	}
	code := canonicalCode(typed)
	g, err := s.store.grantOf(ctx, code, now)
	if err == nil {
		return g.Grant, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Grant{}, &Error{Code: StateDown, Err: err}
	}
	if err := s.store.putGuess(ctx, key, now); err != nil {
		return Grant{}, &Error{Code: StateDown, Err: err}
	}
	refused := refuse(CredentialInvalid, "looking for a code: it does not exist, is over or was answered")
	refused.Subject = by.Subject
	return Grant{}, refused
}

// AnswerGrant allows or denies what waits under a code that Grant found. Errors are those of Grant.
func (s *Service) AnswerGrant(ctx context.Context, by Session, typed string, allow bool) error {
	answered, err := s.store.answerGrant(ctx, canonicalCode(typed), by, allow, time.Now())
	switch {
	case err != nil:
		return &Error{Code: StateDown, Err: err}
	case !answered:
		return refuse(CredentialInvalid, "answering a grant: it is over or was answered")
	}
	return nil
}

// DraftGranted answers a poll (RFC 8628, 3.4) with the draft of a token, to be issued with IssueInSession. Whoever
// allowed it must still be known to their issuer. r is the request: on a listener of devices the token is bound to the
// device. Errors are *Error; OAuth gives the words of RFC 8628, 3.5.
func (s *Service) DraftGranted(ctx context.Context, client, deviceCode string, r *http.Request) (Draft, error) {
	if client != ClientCLI {
		return Draft{}, refuse(RequestInvalid, "polling: %w", errClient)
	}
	g, err := s.store.pollGrant(ctx, secretDigest(deviceCode), time.Now())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Draft{}, refuse(RequestInvalid, "polling: %w", errGrant)
	case err != nil:
		return Draft{}, &Error{Code: StateDown, Err: err}
	}
	if err := g.answer(); err != nil {
		return Draft{}, err
	}
	p, err := s.store.person(ctx, subjectKey{g.issuer, g.subject})
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Draft{}, &Error{Code: StateDown, Err: err}
	case err != nil || p.refused != 0:
		return Draft{}, sessionOver(Subject{Type: Person, Issuer: g.issuer, ID: g.subject})
	}
	by := Session{ID: g.session, Subject: p.subject, Created: g.Created, Until: fromUnix(p.until), asOf: p.asOf}
	by.Subject.Assurance = g.assurance
	principal := by.Principal()
	if refused := s.onDevice(&principal, nil, s.proveDevice(r)); refused != nil {
		return Draft{}, refused
	}
	if refused := s.unlocked(principal); refused != nil {
		return Draft{}, refused
	}
	d, err := s.DraftInSession(ctx, by, TokenRequest{
		Class: ClassPerson, Scope: g.Scope, Note: "headgate login from " + g.Address, Device: principal.Device,
	})
	d.grant = secretDigest(deviceCode)
	return d, err
}

// answer is what a poll is told unless the grant was allowed.
func (g grantRow) answer() *Error {
	switch {
	case g.state == grantRedeemed:
		return refuse(RequestInvalid, "polling: %w", errGrant)
	case g.state == grantDenied:
		return refuse(GrantDenied, "polling: somebody said no")
	case g.over:
		return refuse(TokenExpired, "polling: %w", errGrantExpired)
	case g.hasty:
		return refuse(GrantPending, "polling: %w", errSlowDown)
	case g.state == grantPending:
		return refuse(GrantPending, "polling: nobody answered yet")
	}
	return nil
}
