package identity

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

const (
	// leeway is how far an issuer's clock and ours may be apart.
	leeway = time.Minute
	// The longest lives of foreign tokens, from iat to exp.
	maxPersonToken   = 24 * time.Hour
	stalePerson      = 24 * time.Hour // how long what an issuer said of people counts while it is away
	maxWorkloadToken = time.Hour
)

// An issuer verifies the tokens of one OpenID provider.
type issuer struct {
	cfg    Issuer
	keys   *keySet
	client *http.Client
	secret string // of our client there; empty: it is a public one
}

// A verified token of an issuer.
type verified struct {
	subject           Subject
	audiences         []string // that the issuer's tokens may have
	issuedAt, expires time.Time
}

func newIssuer(cfg Issuer, base *http.Client, m *metrics) (*issuer, error) {
	client, err := issuerClient(cfg, base)
	if err != nil {
		return nil, err
	}
	maxAge := stalePerson
	if cfg.Type == Workload {
		maxAge = time.Hour
	}
	i := &issuer{cfg: cfg, keys: newKeySet(cfg, client, maxAge, m), client: client}
	if cfg.ClientSecretFile != "" {
		if i.secret, err = readSecret(cfg.ClientSecretFile); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// verify checks a token of any configured issuer and gives its subject with the
// newest attributes known. The code tells expiry and an issuer out of reach from
// everything else; an attacker learns no more.
func (s *Service) verify(ctx context.Context, raw string) (*verified, *Error) {
	t, err := inspect(raw)
	if err != nil {
		return nil, &Error{Code: CredentialInvalid, Err: err}
	}
	i, ok := s.issuers[t.issuer]
	if !ok {
		return nil, refuse(CredentialInvalid, "verifying token: issuer %.128q is not configured", t.issuer)
	}
	v, refused := i.verify(ctx, raw, t, i.cfg.Audiences)
	if refused != nil {
		return nil, refused
	}
	if v.subject.Type == Person {
		if s.refusedSince(v.subject, v.issuedAt) {
			return nil, sessionOver(v.subject)
		}
		v.subject = s.tokens.asserted(v.subject, v.issuedAt.Unix())
	}
	return v, nil
}

func (i *issuer) verify(ctx context.Context, raw string, t *jws, audiences []string) (*verified, *Error) {
	if err := i.verifySignature(ctx, raw, t); err != nil {
		if errors.Is(err, errKeysAway) {
			return nil, &Error{Code: IssuerDown, Err: err}
		}
		return nil, &Error{Code: CredentialInvalid, Err: err}
	}
	if err := i.checkUse(t.claims, audiences); err != nil {
		return nil, refuse(CredentialInvalid, "verifying token of %s: %w", i.cfg.Name, err)
	}
	sub, err := i.subject(t.claims)
	if err != nil {
		return nil, refuse(CredentialInvalid, "verifying token of %s: %w", i.cfg.Name, err)
	}
	v := &verified{subject: sub, audiences: audiences}
	now := time.Now()
	if v.issuedAt, v.expires, err = i.times(t.claims, now); err != nil {
		return nil, refuse(CredentialInvalid, "verifying token of %s: %w", i.cfg.Name, err)
	}
	if !now.Before(v.expires.Add(leeway)) {
		refused := refuse(TokenExpired, "verifying token of %s: expired at %s", i.cfg.Name, v.expires.UTC().Format(time.RFC3339))
		refused.Subject = sub
		return nil, refused
	}
	return v, nil
}

// A lookup gives go-oidc the keys for one token. go-oidc flattens a key set's
// error into text, so the error is kept here as well.
type lookup struct {
	keys     *keySet
	alg, kid string
	err      error
}

// VerifySignature implements oidc.KeySet.
func (l *lookup) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	var found []crypto.PublicKey
	if found, l.err = l.keys.find(ctx, l.alg, l.kid); l.err != nil {
		return nil, l.err
	}
	return (&oidc.StaticKeySet{PublicKeys: found}).VerifySignature(ctx, raw)
}

// verifySignature checks algorithm, signature and issuer. Audience and times are
// checked by us, since go-oidc knows one audience and no leeway.
func (i *issuer) verifySignature(ctx context.Context, raw string, t *jws) error {
	if !slices.Contains(i.cfg.Algorithms, t.alg) {
		return fmt.Errorf("verifying token of %s: algorithm %.16q is not accepted", i.cfg.Name, t.alg)
	}
	l := &lookup{keys: i.keys, alg: t.alg, kid: t.kid}
	v := oidc.NewVerifier(i.cfg.URL, l, &oidc.Config{
		SkipClientIDCheck: true, SkipExpiryCheck: true, SupportedSigningAlgs: i.cfg.Algorithms,
	})
	if _, err := v.Verify(ctx, raw); err != nil {
		return errors.Join(fmt.Errorf("verifying token of %s: %w", i.cfg.Name, err), l.err)
	}
	return nil
}

// checkUse checks that the token was made for us and for this use: each audience
// is ours, and it is neither an access token, nor a logout token, nor an event.
func (i *issuer) checkUse(claims map[string]json.RawMessage, ours []string) error {
	audiences, err := stringList(claims["aud"])
	if err != nil || len(audiences) == 0 {
		return errors.New("aud is missing or no list of text")
	}
	for _, a := range audiences {
		if !slices.Contains(ours, a) {
			return fmt.Errorf("audience %.128q is not ours", a)
		}
	}
	if raw, ok := claims["azp"]; ok && i.cfg.ClientID != "" {
		var azp string
		if err := json.Unmarshal(raw, &azp); err != nil || azp != i.cfg.ClientID {
			return fmt.Errorf("azp %.128q is not our client", raw)
		}
	}
	for _, name := range []string{"events", "scope", "scp"} {
		if _, ok := claims[name]; ok {
			return fmt.Errorf("claim %q: this is no ID token", name)
		}
	}
	for name, want := range map[string]string{"typ": "ID", "token_use": "id"} { // Keycloak, Cognito
		if raw, ok := claims[name]; ok && string(raw) != `"`+want+`"` {
			return fmt.Errorf("claim %q is not %q: this is no ID token", name, want)
		}
	}
	return nil
}

// times reads and checks iat, nbf and exp, all but expiry itself.
func (i *issuer) times(claims map[string]json.RawMessage, now time.Time) (iat, exp time.Time, err error) {
	if iat, err = numericDate(claims, "iat"); err != nil {
		return iat, exp, err
	}
	if exp, err = numericDate(claims, "exp"); err != nil {
		return iat, exp, err
	}
	longest := maxPersonToken
	if i.cfg.Type == Workload {
		longest = maxWorkloadToken
	}
	if iat.After(now.Add(leeway)) {
		return iat, exp, errors.New("iat is in the future")
	}
	if life := exp.Sub(iat); life <= 0 || life > longest {
		return iat, exp, fmt.Errorf("life of %s; want at most %s", life, longest)
	}
	if _, ok := claims["nbf"]; ok {
		nbf, err := numericDate(claims, "nbf")
		if err != nil || nbf.After(now.Add(leeway)) {
			return iat, exp, errors.New("nbf is wrong or in the future")
		}
	}
	return iat, exp, nil
}

// numericDate reads a NumericDate of RFC 7519 §2.
func numericDate(claims map[string]json.RawMessage, name string) (time.Time, error) {
	var f float64
	raw, ok := claims[name]
	if !ok {
		return time.Time{}, fmt.Errorf("%s is missing", name)
	}
	if err := json.Unmarshal(raw, &f); err != nil || string(raw) == "null" || f < 1 || f > math.MaxInt32*100 {
		return time.Time{}, fmt.Errorf("%s is no date", name)
	}
	return time.Unix(int64(f), 0), nil
}
