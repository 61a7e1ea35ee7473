package identity

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// The identifiers of RFC 8693 that an exchange speaks of.
const (
	GrantTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	TypeAccessToken    = "urn:ietf:params:oauth:token-type:access_token"
	TypeIDToken        = "urn:ietf:params:oauth:token-type:id_token"
	TypeJWT            = "urn:ietf:params:oauth:token-type:jwt"
)

var (
	errGrantType = errors.New("grant_type is not token exchange")
	errTarget    = errors.New("audience or resource is not this gateway")
)

// An ExchangeRequest holds the parameters of RFC 8693 §2.1 by their names.
type ExchangeRequest struct {
	GrantType          string
	SubjectToken       string
	SubjectTokenType   string
	RequestedTokenType string // empty: access token, the only one there is
	Scope              string // as ParseScope reads it; a part left out is the subject token's
	Audience           string // empty, or an audience of the issuer
	// Request is the HTTP request that it came with. on a listener of devices a person gets a token of class agent, which
	// is bound to the device; nil: on no such listener.
	Request *http.Request
}

// ParseExchange reads the form of a token request. A parameter that comes twice,
// and delegation, which is not supported, are *Error RequestInvalid.
func ParseExchange(form url.Values) (ExchangeRequest, error) {
	for name, values := range form {
		if len(values) > 1 {
			return ExchangeRequest{}, refuse(RequestInvalid, "reading token request: %q comes %d times", name, len(values))
		}
	}
	if form.Get("actor_token") != "" || form.Get("actor_token_type") != "" {
		return ExchangeRequest{}, refuse(RequestInvalid, "reading token request: actor_token is not supported")
	}
	if form.Get("resource") != "" {
		return ExchangeRequest{}, refuse(RequestInvalid, "reading token request: %w", errTarget)
	}
	return ExchangeRequest{
		GrantType: form.Get("grant_type"), SubjectToken: form.Get("subject_token"), SubjectTokenType: form.Get("subject_token_type"),
		RequestedTokenType: form.Get("requested_token_type"), Scope: form.Get("scope"), Audience: form.Get("audience"),
	}, nil
}

// Exchange verifies the subject token, a token of an issuer or a Headgate token
// that may mint, and drafts a Headgate token for the same subject that reaches no
// further and lives no longer. Errors are *Error; OAuth gives what the token
// endpoint answers.
func (s *Service) Exchange(ctx context.Context, q ExchangeRequest) (Draft, error) {
	if q.GrantType != GrantTokenExchange {
		return Draft{}, refuse(RequestInvalid, "exchanging token: %w", errGrantType)
	}
	if q.RequestedTokenType != "" && q.RequestedTokenType != TypeAccessToken {
		return Draft{}, refuse(RequestInvalid, "exchanging token: requested_token_type %q; want %s", q.RequestedTokenType, TypeAccessToken)
	}
	wanted, err := ParseScope(q.Scope)
	if err != nil {
		return Draft{}, refuse(ScopeExceeded, "exchanging token: %w", err)
	}
	switch q.SubjectTokenType {
	case TypeIDToken, TypeJWT:
		return s.exchangeJWT(ctx, q, wanted)
	case TypeAccessToken:
		return s.exchangeToken(ctx, q, wanted)
	}
	return Draft{}, refuse(RequestInvalid, "exchanging token: subject_token_type %q; want %s, %s or %s",
		q.SubjectTokenType, TypeIDToken, TypeJWT, TypeAccessToken)
}

// exchangeJWT drafts a person's or a job's token for what an issuer signed.
func (s *Service) exchangeJWT(ctx context.Context, q ExchangeRequest, wanted Scope) (Draft, error) {
	if len(q.SubjectToken) > maxCredential || !looksLikeJWT([]byte(q.SubjectToken)) {
		return Draft{}, refuse(CredentialInvalid, "exchanging token: subject_token is no JSON Web Token")
	}
	v, refused := s.verify(ctx, q.SubjectToken)
	if refused != nil {
		refused.Credential.Class = ClassJWT
		return Draft{}, refused
	}
	if q.Audience != "" && !slices.Contains(v.audiences, q.Audience) {
		return Draft{}, refuse(RequestInvalid, "exchanging token: %w", errTarget)
	}
	p := Principal{Subject: v.subject, Device: unproved, Credential: Credential{Class: ClassJWT}}
	if refused := s.onDevice(&p, nil, s.proveDevice(q.Request)); refused != nil {
		return Draft{}, refused
	}
	if refused := s.unlocked(p); refused != nil {
		return Draft{}, refused
	}
	t := Token{Class: ClassPerson, Subject: v.subject, Assurance: v.subject.Assurance, Exchanged: true, Bound: p.Device.binding()}
	switch {
	case v.subject.Type == Workload:
		t.Class = ClassCI
	case t.Bound != nil:
		t.Class = ClassAgent
	}
	full := Scope{Modules: []string{everything}, Actions: t.Class.actions()}
	if t.Scope, refused = narrow(full, wanted); refused != nil {
		return Draft{}, refused
	}
	return s.draft(row{Token: t, asOf: v.issuedAt.Unix()}, s.until(t, p.Device.until(v.expires)))
}

// exchangeToken drafts a child of a Headgate token that may mint.
func (s *Service) exchangeToken(ctx context.Context, q ExchangeRequest, wanted Scope) (Draft, error) {
	if q.Audience != "" {
		return Draft{}, refuse(RequestInvalid, "exchanging token: %w", errTarget)
	}
	text, err := parseText([]byte(q.SubjectToken))
	if err != nil {
		return Draft{}, refuse(CredentialInvalid, "exchanging token: %w", err)
	}
	by, bound, refused := s.byToken(text, []byte(q.SubjectToken), "")
	if refused == nil {
		refused = s.onDevice(&by, bound, s.proveDevice(q.Request))
	}
	if refused == nil {
		refused = s.unlocked(by)
	}
	if refused != nil {
		return Draft{}, refused
	}
	if by.Device.Proof == "mtls" && by.Credential.Class == ClassPerson {
		return s.exchangeOnDevice(ctx, by, wanted)
	}
	scope, refused := narrow(by.Scope, wanted)
	if refused != nil {
		return Draft{}, refused
	}
	if by.Credential.Class != ClassPerson {
		return Draft{}, refuse(ScopeExceeded, "exchanging token: class %s is not renewed", by.Credential.Class)
	}
	return s.Draft(ctx, TokenRequest{By: &by, Class: ClassPerson, Scope: scope})
}

// exchangeOnDevice drafts an agent's token for a person's on the device where it is asked for.
func (s *Service) exchangeOnDevice(ctx context.Context, by Principal, wanted Scope) (Draft, error) {
	full := by.Scope.cut(ClassAgent)
	scope, refused := narrow(full, wanted)
	if refused != nil {
		return Draft{}, refused
	}
	return s.Draft(ctx, TokenRequest{By: &by, Class: ClassAgent, Scope: scope})
}

// narrow gives the wanted part of a scope; what wanted leaves out stays.
func narrow(full, wanted Scope) (Scope, *Error) {
	if len(wanted.Modules) == 0 {
		wanted.Modules = full.Modules
	}
	if len(wanted.Actions) == 0 {
		wanted.Actions = full.Actions
	}
	if !wanted.within(full) {
		return Scope{}, refuse(ScopeExceeded, "exchanging token: %q is wider than %q", wanted, full)
	}
	out, err := wanted.canonical()
	if err != nil {
		return Scope{}, refuse(ScopeExceeded, "exchanging token: %w", err)
	}
	return out, nil
}

// until is when a token ends that may not outlive the one it is got for.
func (s *Service) until(t Token, most time.Time) time.Time {
	end := time.Now().Add(s.cfg.Ceilings.normal(kindOf(t.Class, t.Exchanged, t.Bound != nil)))
	if end.After(most) {
		return most
	}
	return end
}
