package identitytest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// people are those who can sign in at an Issuer, and what it gave out.
type people struct {
	claims  map[string]map[string]any // by sub; absent: unknown or disabled
	codes   map[string]code
	access  map[string]string // token → sub
	refresh map[string]string // token → sub; each is good once
	policy  SignInPolicy
}

type code struct{ sub, challenge, nonce, client, redirect string }

// A SignInPolicy says how an Issuer treats those who sign in.
type SignInPolicy struct {
	Secret    string                                            // of the client; empty: it is a public one
	NoRefresh bool                                              // no refresh tokens are given out
	Thin      bool                                              // ID tokens name nobody's groups, user info does
	NoID      bool                                              // a refresh brings no ID token
	Change    func(claims map[string]any)                       // what an evil issuer does to ID tokens
	Answer    func(w http.ResponseWriter, r *http.Request) bool // answers the token endpoint instead, if true
}

func newPeople() people {
	return people{claims: map[string]map[string]any{}, codes: map[string]code{}, access: map[string]string{}, refresh: map[string]string{}}
}

// SetPolicy changes how people sign in.
func (i *Issuer) SetPolicy(p SignInPolicy) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.people.policy = p
}

// SetPerson makes somebody known, or known by other claims.
func (i *Issuer) SetPerson(sub string, claims map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.people.claims[sub] = claims
}

// Disable makes the issuer forget somebody: no token of theirs is renewed or answered any more.
func (i *Issuer) Disable(sub string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.people.claims, sub)
}

// SignIn plays browser and person at the address that a client sent them to, and gives the query with which the
// browser goes back. The address must ask for PKCE with S256.
func (i *Issuer) SignIn(address, sub string) (url.Values, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("signing in: %w", err)
	}
	q := u.Query()
	if u.Scheme+"://"+u.Host+u.Path != i.URL+"/authorize" || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" ||
		q.Get("state") == "" || q.Get("nonce") == "" || !strings.Contains(q.Get("scope"), "openid") {
		return nil, fmt.Errorf("signing in: %s is no request for a code with PKCE, state and nonce", address)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	text := rand.Text()
	i.people.codes[text] = code{sub, q.Get("code_challenge"), q.Get("nonce"), q.Get("client_id"), q.Get("redirect_uri")}
	return url.Values{"code": {text}, "state": {q.Get("state")}, "iss": {i.URL}}, nil
}

func (i *Issuer) discovery() map[string]any {
	return map[string]any{
		"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token",
		"userinfo_endpoint": i.URL + "/userinfo", "scopes_supported": []string{"openid", "offline_access"},
		"authorization_response_iss_parameter_supported": true,
	}
}

// token answers the token endpoint: codes and refresh tokens, each once.
func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	policy := i.people.policy
	i.mu.Unlock()
	if policy.Answer != nil && policy.Answer(w, r) {
		return
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id = r.PostFormValue("client_id")
	}
	if secret != policy.Secret || basic != (policy.Secret != "") {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	sub, nonce, ok := i.redeem(r, id)
	i.mu.Lock()
	claims, known := i.people.claims[sub]
	i.mu.Unlock()
	if !ok || !known {
		writeJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid_grant", "error_description": "canary-of-the-token-endpoint"})
		return
	}
	writeJSON(w, http.StatusOK, i.answer(policy, id, sub, nonce, claims))
}

// redeem takes a code or a refresh token away and gives whose it was.
func (i *Issuer) redeem(r *http.Request, client string) (sub, nonce string, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r.PostFormValue("grant_type") == "refresh_token" {
		sub, ok = i.people.refresh[r.PostFormValue("refresh_token")]
		delete(i.people.refresh, r.PostFormValue("refresh_token"))
		return sub, "", ok
	}
	c, ok := i.people.codes[r.PostFormValue("code")]
	delete(i.people.codes, r.PostFormValue("code"))
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	ok = ok && c.challenge == base64.RawURLEncoding.EncodeToString(sum[:]) && c.client == client && c.redirect == r.PostFormValue("redirect_uri")
	return c.sub, c.nonce, ok
}

// answer gives out tokens for somebody.
func (i *Issuer) answer(policy SignInPolicy, client, sub, nonce string, claims map[string]any) map[string]any {
	id := i.Claims(sub, client, claims)
	if nonce != "" {
		id["nonce"] = nonce
	}
	if policy.Thin {
		delete(id, "groups")
	}
	if policy.Change != nil {
		policy.Change(id)
	}
	out := map[string]any{"token_type": "Bearer", "access_token": "access-" + rand.Text(), "expires_in": 300}
	if nonce != "" || !policy.NoID {
		out["id_token"] = i.Sign(id)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.people.access[out["access_token"].(string)] = sub
	if !policy.NoRefresh {
		token := "refresh-" + rand.Text()
		i.people.refresh[token] = sub
		out["refresh_token"] = token
	}
	return out
}

func (i *Issuer) userInfo(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sub, ok := i.people.access[token]
	claims, known := i.people.claims[sub]
	i.mu.Unlock()
	if !ok || !known {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_token"})
		return
	}
	out := map[string]any{"sub": sub}
	maps.Copy(out, claims)
	writeJSON(w, http.StatusOK, out)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}
