package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"
	"time"
)

// maxCredential is the longest Authorization value that is looked at, in bytes.
const maxCredential = 16 << 10

// Authenticate finds out who sends a request, and from which device. It reads the
// Authorization header: Basic, whose password is the credential and whose login name
// means nothing, or Bearer; and on a listener of devices the certificate. A refusal is
// an *Error; one with IssuerDown is trouble, not a refusal. A token costs no I/O.
func (s *Service) Authenticate(r *http.Request) (Principal, error) {
	p, method, err := s.authenticate(r)
	if err == nil {
		err = s.unlocked(p)
	}
	s.metrics.count(method, err)
	if err != nil {
		return Principal{}, err
	}
	return p, nil
}

func (s *Service) authenticate(r *http.Request) (Principal, string, *Error) {
	proof := s.proveDevice(r)
	p, bound, method, err := s.credential(r)
	if err == nil {
		err = s.onDevice(&p, bound, proof)
	} else if proof != nil {
		err = proof.before(err)
	}
	return p, method, err
}

// credential finds out whose credential a request carries, and to which device it is
// bound.
func (s *Service) credential(r *http.Request) (p Principal, bound *Binding, method string, err *Error) {
	values := r.Header["Authorization"]
	if len(values) == 0 {
		return Principal{}, nil, "none", refuse(CredentialMissing, "no Authorization header")
	}
	if len(values) > 1 {
		return Principal{}, nil, "none", refuse(CredentialInvalid, "%d Authorization headers", len(values))
	}
	var buf [512]byte
	secret, via, err := presented(buf[:0], values[0])
	if err != nil {
		return Principal{}, nil, "none", err
	}
	if t, err := parseText(secret); err == nil {
		p, bound, err := s.byToken(t, secret, via)
		return p, bound, "token", err
	}
	if !looksLikeJWT(secret) {
		return Principal{}, nil, "none", refuse(CredentialInvalid, "neither a token nor a JSON Web Token")
	}
	p, err = s.byJWT(r.Context(), string(secret), via)
	return p, nil, "jwt", err
}

// presented takes the credential out of an Authorization value, using buf when it
// is large enough.
func presented(buf []byte, value string) (secret []byte, via string, err *Error) {
	if len(value) > maxCredential {
		return nil, "", refuse(CredentialInvalid, "Authorization of %d bytes; want at most %d", len(value), maxCredential)
	}
	scheme, rest, ok := strings.Cut(value, " ")
	rest = strings.Trim(rest, " ")
	switch {
	case ok && strings.EqualFold(scheme, "Bearer"):
		return append(buf, rest...), "bearer", nil
	case ok && strings.EqualFold(scheme, "Basic"):
		secret, err := password(buf, rest)
		return secret, "basic", err
	}
	return nil, "", refuse(CredentialInvalid, "Authorization is neither Basic nor Bearer")
}

// password decodes the user-id and password of RFC 7617 and gives the latter.
func password(buf []byte, text string) ([]byte, *Error) {
	encoded := append(buf, text...)
	plain, err := base64.StdEncoding.Strict().AppendDecode(encoded[len(encoded):], encoded)
	if err != nil {
		return nil, refuse(CredentialInvalid, "decoding Basic: %w", err)
	}
	if i := bytes.IndexByte(plain, ':'); i >= 0 {
		return plain[i+1:], nil
	}
	return nil, refuse(CredentialInvalid, "decoding Basic: no colon")
}

// matched finds a token and tells whether this is its secret. An unknown id takes
// the same steps as a wrong secret: one look-up, one digest, one comparison. What
// matched under an older pepper is kept under the current one from now on.
func (s *Service) matched(t tokenText) (*entry, bool) {
	e := s.tokens.find(t.id)
	stored, current := e.verifier.Load(), s.peppers.current
	pepper := cmp.Or(s.peppers.byVersion[stored.pepper], current)
	sum := pepper.digest(t)
	if subtle.ConstantTimeCompare(sum[:], stored.digest[:]) != 1 || t.class != e.row.Class {
		return e, false
	}
	if pepper != current {
		e.verifier.CompareAndSwap(stored, &verifier{current.version, current.digest(t)})
	}
	return e, true
}

// byToken checks a well-formed token; there is one answer to each that is not known.
func (s *Service) byToken(t tokenText, secret []byte, via string) (Principal, *Binding, *Error) {
	e, ok := s.matched(t)
	if !ok {
		err := refuse(CredentialInvalid, "unknown id or wrong secret")
		err.Credential = Credential{Class: t.class, ID: t.id.String(), Via: via}
		return Principal{}, nil, err
	}
	now := time.Now().Unix()
	p := Principal{
		Subject: *e.owner.subject.Load(), Device: unproved, Scope: e.scope,
		Credential: Credential{Class: e.row.Class, ID: e.row.ID, Via: via, Expires: fromUnix(e.ends), Fingerprint: s.mark(e, secret)},
	}
	p.Subject.Assurance = e.row.Assurance
	if code := e.state(now); code != "" {
		err := refuse(code, "token %s is no longer valid", e.row.ID)
		err.Subject, err.Credential = p.Subject, p.Credential
		return Principal{}, nil, err
	}
	if s.refusedSince(p.Subject, time.Time{}) {
		err := sessionOver(p.Subject)
		err.Credential = p.Credential
		return Principal{}, nil, err
	}
	e.touch(now)
	return p, e.row.Bound, nil
}

// mark gives the fingerprint of a token, made at its first use.
func (s *Service) mark(e *entry, secret []byte) string {
	if s.fingerprint == nil {
		return ""
	}
	if f := e.fingerprint.Load(); f != nil {
		return *f
	}
	f := s.fingerprint(bytes.Clone(secret)) // the clone keeps the secret of each request on its stack
	e.fingerprint.Store(&f)
	return f
}

// byJWT checks a token that an issuer signed.
func (s *Service) byJWT(ctx context.Context, raw, via string) (Principal, *Error) {
	v, err := s.verify(ctx, raw)
	if err != nil {
		err.Credential.Class, err.Credential.Via = ClassJWT, via
		return Principal{}, err
	}
	p := Principal{
		Subject: v.subject, Device: unproved, Scope: Scope{Modules: []string{everything}, Actions: ClassJWT.actions()},
		Credential: Credential{Class: ClassJWT, Via: via, Expires: v.expires},
	}
	if v.subject.Type == Workload {
		p.Scope.Actions = ClassCI.actions()
	}
	if s.fingerprint != nil {
		p.Credential.Fingerprint = s.fingerprint([]byte(raw))
	}
	return p, nil
}
