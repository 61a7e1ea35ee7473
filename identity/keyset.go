package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	refreshEvery  = 10 * time.Minute // a withdrawn key dies with it
	firstRetry    = time.Second      // after a failure, doubled up to retryCap
	retryCap      = 30 * time.Second
	unknownEvery  = 30 * time.Second // a token with an unknown kid causes one fetch at most
	fetchTimeout  = 10 * time.Second
	findTimeout   = 5 * time.Second // what a request waits for a fetch
	maxDocument   = 256 << 10       // bytes of discovery document and key set each
	maxKeys       = 64
	maxRSABits    = 8192
	minRSABits    = 2048
	maxRedirects  = 5
	discoveryPath = "/.well-known/openid-configuration"
)

// errKeysAway means that the issuer's keys are not known well enough to say no.
var errKeysAway = errors.New("keys of the issuer are not available")

// A keySet holds the public keys of one issuer. One goroutine, run, fetches them
// in its own time; requests read the last result and at most nudge it, so no
// request's context reaches a fetch.
type keySet struct {
	name, issuer string
	client       *http.Client
	maxAge       time.Duration // how long keys serve while the issuer is away
	metrics      *metrics

	current atomic.Pointer[keys]
	found   atomic.Pointer[discovery] // what the issuer last said of itself
	nudge   chan struct{}             // capacity 1: a token named a key that is not there
	jwksURI string                    // touched by run alone; empty: to be discovered
}

// A discovery is what an issuer says of itself (OpenID Connect Discovery 1.0, 3; RFC 9207).
type discovery struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	UserInfo      string   `json:"userinfo_endpoint"`
	Scopes        []string `json:"scopes_supported"`
	NamesItself   bool     `json:"authorization_response_iss_parameter_supported"`
}

// keys are the result of fetches. They are immutable.
type keys struct {
	list    []publicKey
	fetched time.Time // when list was read; zero: never
	err     error     // of the last fetch
	asked   time.Time // when an unknown kid last caused a fetch
	next    chan struct{}
}

type publicKey struct {
	kid, alg string
	key      crypto.PublicKey
}

func newKeySet(cfg Issuer, client *http.Client, maxAge time.Duration, m *metrics) *keySet {
	k := &keySet{name: cfg.Name, issuer: cfg.URL, client: client, maxAge: maxAge, metrics: m, nudge: make(chan struct{}, 1)}
	k.current.Store(&keys{next: make(chan struct{})})
	return k
}

// issuerClient makes the client for one issuer: a time limit, its own roots if
// any are configured, and no redirect to another host or off https.
func issuerClient(cfg Issuer, base *http.Client) (*http.Client, error) {
	c := &http.Client{Timeout: fetchTimeout}
	if base != nil {
		c.Transport = base.Transport
	}
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects || req.URL.Scheme != "https" || req.URL.Host != via[0].URL.Host {
			return fmt.Errorf("redirect to %s is not followed", req.URL.Redacted())
		}
		return nil
	}
	if cfg.CAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading ca_file %s: no certificate in it", cfg.CAFile)
	}
	t := http.DefaultTransport.(*http.Transport).Clone() // always, says net/http
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	c.Transport = t
	return c, nil
}

// find gives the keys that can have signed a token with this algorithm and key
// id. An unknown id makes run look once more, within limits, and waits for that.
// errKeysAway: nobody can say now. Any other error: there is no such key.
func (k *keySet) find(ctx context.Context, alg, kid string) ([]crypto.PublicKey, error) {
	now := k.current.Load()
	if found := now.pick(alg, kid); len(found) > 0 && time.Since(now.fetched) <= k.maxAge {
		return found, nil
	}
	first := now.fetched.IsZero() && now.err == nil // the very first fetch is under way
	if !first && time.Since(now.asked) < unknownEvery {
		return nil, now.missing(k, kid)
	}
	if !first {
		select {
		case k.nudge <- struct{}{}:
		default: // run has been told
		}
	}
	wait, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	select {
	case <-now.next:
	case <-wait.Done():
		return nil, fmt.Errorf("%w: waiting for %s: %w", errKeysAway, k.name, context.Cause(wait))
	}
	now = k.current.Load()
	if found := now.pick(alg, kid); len(found) > 0 && time.Since(now.fetched) <= k.maxAge {
		return found, nil
	}
	return nil, now.missing(k, kid)
}

// missing is the error for a key that is not there or may no longer be used.
func (s *keys) missing(k *keySet, kid string) error {
	if s.err != nil || s.fetched.IsZero() || time.Since(s.fetched) > k.maxAge {
		return fmt.Errorf("%w: %s: %w", errKeysAway, k.name, errors.Join(s.err, errors.New("no usable key")))
	}
	return fmt.Errorf("no key %.64q of %s fits", kid, k.name)
}

// pick chooses keys by id. A token without one is taken only if there is no
// choice, so that it cannot make us try them all.
func (s *keys) pick(alg, kid string) []crypto.PublicKey {
	var found []crypto.PublicKey
	for _, c := range s.list {
		if (c.alg == "" || c.alg == alg) && fits(c.key, alg) && (kid == "" || c.kid == kid) {
			found = append(found, c.key)
		}
	}
	if kid == "" && len(found) > 1 {
		return nil
	}
	return found
}

// fits reports whether a key is of the kind that an algorithm signs with.
func fits(key crypto.PublicKey, alg string) bool {
	switch key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return strings.HasPrefix(alg, "ES")
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// run fetches keys until ctx ends.
func (k *keySet) run(ctx context.Context, log *slog.Logger) {
	retry := firstRetry
	var asked time.Time
	for {
		list, err := k.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := refreshEvery
		if err != nil {
			wait, retry = retry, min(2*retry, retryCap)
		} else {
			retry = firstRetry
		}
		k.publish(ctx, log, list, asked, err)
		timer := time.NewTimer(wait)
	idle:
		for {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				break idle
			case <-k.nudge:
				if time.Since(asked) >= unknownEvery {
					asked = time.Now()
					timer.Stop()
					break idle
				}
			}
		}
	}
}

// publish makes the result of a fetch the current one and wakes who waits for it.
func (k *keySet) publish(ctx context.Context, log *slog.Logger, list []publicKey, asked time.Time, err error) {
	old := k.current.Load()
	state := &keys{list: list, fetched: time.Now(), asked: asked, next: make(chan struct{})}
	result := "ok"
	if err != nil {
		state.list, state.fetched, state.err, result = old.list, old.fetched, err, "error"
		log.LogAttrs(ctx, slog.LevelWarn, "keys of issuer not refreshed", slog.String("issuer", k.name),
			slog.Time("fetched", old.fetched), slog.Any("err", err))
	}
	k.metrics.jwks.WithLabelValues(k.name, result).Inc()
	k.current.Store(state)
	close(old.next)
}

// fetch reads the key set, and the discovery document before it when the place of
// the key set is not known or did not answer.
func (k *keySet) fetch(ctx context.Context) ([]publicKey, error) {
	if k.jwksURI == "" {
		uri, err := k.discover(ctx)
		if err != nil {
			return nil, err
		}
		k.jwksURI = uri
	}
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	err := k.get(ctx, k.jwksURI, &set)
	if err == nil && set.Keys == nil {
		err = fmt.Errorf("reading key set of %s: no \"keys\"", k.name)
	}
	if err == nil && len(*set.Keys) > maxKeys {
		err = fmt.Errorf("reading key set of %s: %d keys; want at most %d", k.name, len(*set.Keys), maxKeys)
	}
	if err != nil {
		k.jwksURI = ""
		return nil, err
	}
	var list []publicKey
	for _, raw := range *set.Keys {
		if key, ok := usable(raw); ok {
			list = append(list, key)
		}
	}
	return list, nil
}

// discover asks the issuer where its key set is (OpenID Connect Discovery 1.0, 4).
func (k *keySet) discover(ctx context.Context) (string, error) {
	doc := &discovery{}
	if err := k.get(ctx, strings.TrimSuffix(k.issuer, "/")+discoveryPath, doc); err != nil {
		return "", err
	}
	if doc.Issuer != k.issuer {
		return "", fmt.Errorf("discovering %s: it calls itself %.128q; want %q", k.name, doc.Issuer, k.issuer)
	}
	if !overHTTPS(doc.JWKSURI) {
		return "", fmt.Errorf("discovering %s: jwks_uri %.128q is no https address", k.name, doc.JWKSURI)
	}
	k.found.Store(doc)
	return doc.JWKSURI, nil
}

// overHTTPS tells whether an address that an issuer names may be asked.
func overHTTPS(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil
}

func (k *keySet) get(ctx context.Context, uri string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", k.name, err)
	}
	return k.answer(req, into)
}

// A statusError is an answer of an issuer that is none.
type statusError struct {
	what   string
	status int
	bytes  int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("reading %s: status %d, %d bytes or more", e.what, e.status, e.bytes)
}

// answer reads what an issuer answers, within limits.
func (k *keySet) answer(req *http.Request, into any) error {
	req.Header.Set("Accept", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return fmt.Errorf("asking %s: %w", k.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return fmt.Errorf("reading %s of %s: %w", req.URL.Path, k.name, err)
	}
	if resp.StatusCode != http.StatusOK || len(body) > maxDocument {
		return &statusError{req.URL.Path + " of " + k.name, resp.StatusCode, len(body)}
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("reading %s of %s: %w", req.URL.Path, k.name, err)
	}
	return nil
}

// usable reads one key and reports whether it is a public key for signatures that
// is neither too weak nor so large that verifying with it is an attack. Others
// are passed over: a key set may hold keys for other uses.
func usable(raw json.RawMessage) (publicKey, bool) {
	var j jose.JSONWebKey
	if err := json.Unmarshal(raw, &j); err != nil || !j.Valid() || !j.IsPublic() || (j.Use != "" && j.Use != "sig") {
		return publicKey{}, false
	}
	if r, ok := j.Key.(*rsa.PublicKey); ok && (r.N.BitLen() < minRSABits || r.N.BitLen() > maxRSABits || r.E > 1<<31-1) {
		return publicKey{}, false
	}
	return publicKey{kid: j.KeyID, alg: j.Algorithm, key: j.Key}, true
}
