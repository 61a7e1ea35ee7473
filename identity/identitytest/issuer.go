// Package identitytest is the test kit of package identity: an issuer that can
// also sign wrongly and fail on demand, and a real OpenID provider with a login
// page. The demonstration program uses the provider too; nothing here belongs in
// a gateway.
package identitytest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"time"
)

// A Key signs tokens. One of EC and RSA is set.
type Key struct {
	ID  string
	EC  *ecdsa.PrivateKey
	RSA *rsa.PrivateKey
}

// NewKey makes an ES256 key.
func NewKey(id string) Key {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // no error is documented for this curve and reader
	}
	return Key{ID: id, EC: k}
}

// NewRSAKey makes an RS256 key of so many bits.
func NewRSAKey(id string, bits int) (Key, error) {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return Key{}, fmt.Errorf("making RSA key: %w", err)
	}
	return Key{ID: id, RSA: k}, nil
}

// Alg is the algorithm of the key.
func (k Key) Alg() string {
	if k.RSA != nil {
		return "RS256"
	}
	return "ES256"
}

// JWK is the public key as it stands in a key set.
func (k Key) JWK() map[string]any {
	b64 := base64.RawURLEncoding.EncodeToString
	m := map[string]any{"kid": k.ID, "alg": k.Alg(), "use": "sig"}
	if k.RSA != nil {
		m["kty"], m["n"], m["e"] = "RSA", b64(k.RSA.N.Bytes()), b64(big.NewInt(int64(k.RSA.E)).Bytes())
		return m
	}
	point, err := k.EC.PublicKey.Bytes()
	if err != nil {
		panic(err) // NewKey made it on a known curve
	}
	m["kty"], m["crv"], m["x"], m["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	return m
}

// sign signs the first two segments of a token.
func (k Key) sign(input []byte) []byte {
	sum := sha256.Sum256(input)
	if k.RSA != nil {
		sig, err := rsa.SignPKCS1v15(nil, k.RSA, crypto.SHA256, sum[:])
		if err != nil {
			panic(err) // the key is large enough for SHA-256
		}
		return sig
	}
	r, s, err := ecdsa.Sign(rand.Reader, k.EC, sum[:])
	if err != nil {
		panic(err) // no error is documented for this curve and reader
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

// An Issuer publishes keys and signs whatever a test wants. It needs no network:
// Client leads requests for its URL here.
type Issuer struct {
	URL string

	mu        sync.Mutex // guards what follows
	key       Key
	published []map[string]any
	fault     http.HandlerFunc
	asked     map[string]int
	people    people
}

// NewIssuer makes an issuer with one published key.
func NewIssuer(url string) *Issuer {
	k := NewKey("key-1")
	return &Issuer{URL: url, key: k, published: []map[string]any{k.JWK()}, asked: map[string]int{}, people: newPeople()}
}

// Key is the key that Sign uses.
func (i *Issuer) Key() Key {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.key
}

// Use makes Sign use a key without publishing it.
func (i *Issuer) Use(k Key) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key = k
}

// Publish replaces the key set.
func (i *Issuer) Publish(jwks ...map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.published = jwks
}

// Fail answers each request with this handler; nil ends it.
func (i *Issuer) Fail(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fault = h
}

// Asked counts the requests for a path; "/keys" is the key set.
func (i *Issuer) Asked(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// ServeHTTP answers discovery, key set, and what SignIn leads to.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked[r.URL.Path]++
	fault, published := i.fault, i.published
	i.mu.Unlock()
	if fault != nil {
		fault(w, r)
		return
	}
	var doc any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		doc = i.discovery()
	case "/keys":
		if published == nil {
			published = []map[string]any{}
		}
		doc = map[string]any{"keys": published}
	case "/token":
		i.token(w, r)
		return
	case "/userinfo":
		i.userInfo(w, r)
		return
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc) // the client is gone
}

// Claims are those of a good ID token for an audience, valid for five minutes,
// with changes; a change to nil removes the claim.
func (i *Issuer) Claims(sub, audience string, changes map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{"iss": i.URL, "sub": sub, "aud": audience, "iat": now, "exp": now + 300}
	for name, value := range changes {
		if value == nil {
			delete(c, name)
		} else {
			c[name] = value
		}
	}
	return c
}

// Sign signs claims as an honest issuer would.
func (i *Issuer) Sign(claims map[string]any) string {
	k := i.Key()
	return SignRaw(k, map[string]any{"alg": k.Alg(), "kid": k.ID, "typ": "JWT"}, mustJSON(claims))
}

// SignHeader signs claims under the honest header with changes, as Claims has them.
func (i *Issuer) SignHeader(changes, claims map[string]any) string {
	k := i.Key()
	h := map[string]any{"alg": k.Alg(), "kid": k.ID, "typ": "JWT"}
	maps.Copy(h, changes)
	maps.DeleteFunc(h, func(_ string, v any) bool { return v == nil })
	return SignRaw(k, h, mustJSON(claims))
}

// SignRaw signs any header and any payload, JSON or not.
func SignRaw(k Key, header map[string]any, payload []byte) string {
	input := Segments(mustJSON(header), payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(k.sign([]byte(input)))
}

// SignHMAC signs with HS256 under any secret.
func SignHMAC(secret []byte, header map[string]any, payload []byte) string {
	input := Segments(mustJSON(header), payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Segments encodes header and payload.
func Segments(header, payload []byte) string {
	return base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a test passed what JSON cannot hold
	}
	return b
}

// Client is an HTTP client for which these issuers are the whole network. It
// opens no socket, so it also works on a fake clock.
func Client(issuers ...*Issuer) *http.Client {
	hosts := map[string]*Issuer{}
	for _, i := range issuers {
		if u, err := url.Parse(i.URL); err == nil {
			hosts[u.Host] = i
		}
	}
	return &http.Client{Transport: transport(hosts)}
}

type transport map[string]*Issuer

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	i, ok := t[req.URL.Host]
	if !ok {
		return nil, fmt.Errorf("no route to %s", req.URL.Host)
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	w := &httptest.ResponseRecorder{Body: &bytes.Buffer{}}
	i.ServeHTTP(w, req)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}
