package identitytest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A User is a person who can sign in at a Provider.
type User struct {
	Login    string // what is typed into the form
	Password string
	ID       string // the sub claim
	Email    string // given as verified
	Groups   []string
	Claims   map[string]any // further claims of the ID token
}

// ProviderConfig describes a Provider.
type ProviderConfig struct {
	// Issuer is the URL under which the Provider is reached, such as
	// https://127.0.0.1:9443.
	Issuer string
	// ClientID is the one client, a public one that must use PKCE. It is the
	// audience of the ID tokens.
	ClientID string
	// RedirectURI is where the browser is sent back to; the port of a loopback
	// address is not compared.
	RedirectURI string
	// Users who can sign in.
	Users []User
	// TokenLife is the life of ID tokens; 0 is one hour.
	TokenLife time.Duration
}

// A Provider is a real OpenID provider, made of zitadel/oidc, for tests and
// demonstrations: authorization code with PKCE, a login page that is one plain
// form, ID tokens signed with ES256 that hold groups and e-mail. It is an
// http.Handler; nothing is kept on disk.
type Provider struct {
	http.Handler
	storage *storage
}

// NewProvider makes a provider. Whoever serves it terminates TLS.
func NewProvider(cfg ProviderConfig) (*Provider, error) {
	if cfg.TokenLife == 0 {
		cfg.TokenLife = time.Hour
	}
	st := &storage{cfg: cfg, key: NewKey("provider-1"), requests: map[string]*authRequest{}, codes: map[string]string{}, users: map[string]User{}}
	for _, u := range cfg.Users {
		st.users[u.Login] = u
	}
	config := &op.Config{CodeMethodS256: true, SupportedScopes: []string{"openid", "profile", "email"}}
	_, _ = rand.Read(config.CryptoKey[:])
	config.CryptoKeyId = "1"
	inner, err := op.NewProvider(config, st, op.StaticIssuer(cfg.Issuer))
	if err != nil {
		return nil, fmt.Errorf("making OpenID provider: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", inner)
	mux.HandleFunc("GET /login", showLogin)
	callback := op.AuthCallbackURL(inner)
	back := op.NewIssuerInterceptor(inner.IssuerFromRequest).HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.PostFormValue("id")
		if err := st.signIn(id, r.PostFormValue("username"), r.PostFormValue("password")); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, callback(r.Context(), id), http.StatusFound)
	})
	mux.HandleFunc("POST /login", back)
	return &Provider{Handler: mux, storage: st}, nil
}

// SetUser adds a user or replaces the one with the same login.
func (p *Provider) SetUser(u User) {
	p.storage.mu.Lock()
	defer p.storage.mu.Unlock()
	p.storage.users[u.Login] = u
}

// Rotate makes the provider sign with a new key; the old one is gone.
func (p *Provider) Rotate() {
	p.storage.mu.Lock()
	defer p.storage.mu.Unlock()
	p.storage.key = NewKey("provider-" + rand.Text()[:8])
}

var loginPage = template.Must(template.New("login").Parse(`<!doctype html>
<title>Sign in</title>
<form method="post" action="/login">
<input type="hidden" name="id" value="{{.}}">
<label>User <input name="username" autocomplete="username"></label>
<label>Password <input name="password" type="password" autocomplete="current-password"></label>
<button>Sign in</button>
</form>
`))

func showLogin(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = loginPage.Execute(w, r.FormValue("id")) // the client is gone
}

// storage is what the provider knows. It implements op.Storage.
type storage struct {
	cfg ProviderConfig

	mu       sync.Mutex // guards what follows
	key      Key
	users    map[string]User         // by login
	requests map[string]*authRequest // by id
	codes    map[string]string       // code to request
}

// signIn checks a password and marks the request as answered.
func (s *storage) signIn(id, login, password string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.users[login]
	req, found := s.requests[id]
	if !ok || !found || u.Password != password {
		return errors.New("user or password is wrong")
	}
	req.user, req.done, req.at = u, true, time.Now()
	return nil
}

// An authRequest is one sign-in under way. It implements op.AuthRequest.
type authRequest struct {
	id   string
	in   *oidc.AuthRequest
	user User
	done bool
	at   time.Time
}

func (a *authRequest) GetID() string                      { return a.id }
func (a *authRequest) GetACR() string                     { return "" }
func (a *authRequest) GetAMR() []string                   { return []string{"pwd"} }
func (a *authRequest) GetAudience() []string              { return []string{a.in.ClientID} }
func (a *authRequest) GetAuthTime() time.Time             { return a.at }
func (a *authRequest) GetClientID() string                { return a.in.ClientID }
func (a *authRequest) GetNonce() string                   { return a.in.Nonce }
func (a *authRequest) GetRedirectURI() string             { return a.in.RedirectURI }
func (a *authRequest) GetScopes() []string                { return a.in.Scopes }
func (a *authRequest) GetState() string                   { return a.in.State }
func (a *authRequest) GetSubject() string                 { return a.user.ID }
func (a *authRequest) Done() bool                         { return a.done }
func (a *authRequest) GetResponseMode() oidc.ResponseMode { return a.in.ResponseMode }
func (a *authRequest) GetResponseType() oidc.ResponseType { return a.in.ResponseType }
func (a *authRequest) GetCodeChallenge() *oidc.CodeChallenge {
	if a.in.CodeChallenge == "" {
		return nil
	}
	return &oidc.CodeChallenge{Challenge: a.in.CodeChallenge, Method: a.in.CodeChallengeMethod}
}

func (s *storage) CreateAuthRequest(_ context.Context, in *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	if in.CodeChallenge == "" || in.CodeChallengeMethod != oidc.CodeChallengeMethodS256 {
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE with S256 is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &authRequest{id: rand.Text(), in: in}
	s.requests[a.id] = a
	return a, nil
}

func (s *storage) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.requests[id]
	if !ok {
		return nil, errors.New("no such request")
	}
	return a, nil
}

func (s *storage) AuthRequestByCode(ctx context.Context, code string) (op.AuthRequest, error) {
	s.mu.Lock()
	id, ok := s.codes[code]
	delete(s.codes, code) // a code is good once
	s.mu.Unlock()
	if !ok {
		return nil, errors.New("no such code")
	}
	return s.AuthRequestByID(ctx, id)
}

func (s *storage) SaveAuthCode(_ context.Context, id, code string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[code] = id
	return nil
}

func (s *storage) DeleteAuthRequest(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.requests, id)
	return nil
}

func (s *storage) CreateAccessToken(context.Context, op.TokenRequest) (string, time.Time, error) {
	return rand.Text(), time.Now().Add(5 * time.Minute), nil
}

func (s *storage) SetUserinfoFromRequest(_ context.Context, info *oidc.UserInfo, req op.IDTokenRequest, _ []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.users {
		if u.ID != req.GetSubject() {
			continue
		}
		info.Subject, info.PreferredUsername = u.ID, u.Login
		info.Email, info.EmailVerified = u.Email, u.Email != ""
		if u.Groups != nil {
			info.AppendClaims("groups", u.Groups)
		}
		for name, value := range u.Claims {
			info.AppendClaims(name, value)
		}
		return nil
	}
	return errors.New("no such user")
}

func (s *storage) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	if id != s.cfg.ClientID {
		return nil, errors.New("no such client")
	}
	return client{s.cfg}, nil
}

func (s *storage) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return signingKey{s.key}, nil
}

func (s *storage) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []op.Key{publicKey{signingKey{s.key}}}, nil
}

func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

type signingKey struct{ k Key }

func (k signingKey) ID() string                                  { return k.k.ID }
func (k signingKey) Key() any                                    { return k.k.EC }
func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }

type publicKey struct{ signingKey }

func (k publicKey) Key() any                           { return &k.k.EC.PublicKey }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.ES256 }

// A client is the one client of the provider. It implements op.Client.
type client struct{ cfg ProviderConfig }

func everyScope(scopes []string) []string { return scopes }

func (c client) GetID() string                       { return c.cfg.ClientID }
func (c client) RedirectURIs() []string              { return []string{c.cfg.RedirectURI} }
func (c client) PostLogoutRedirectURIs() []string    { return nil }
func (c client) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }
func (c client) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodNone }
func (c client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}

func (c client) GrantTypes() []oidc.GrantType         { return []oidc.GrantType{oidc.GrantTypeCode} }
func (c client) LoginURL(id string) string            { return "/login?id=" + id }
func (c client) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeBearer }
func (c client) IDTokenLifetime() time.Duration       { return c.cfg.TokenLife }
func (c client) DevMode() bool                        { return false }
func (c client) IsScopeAllowed(string) bool           { return false }
func (c client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (c client) ClockSkew() time.Duration             { return 0 }
func (c client) RestrictAdditionalIdTokenScopes() func([]string) []string { //nolint:revive,staticcheck // named by op.Client
	return everyScope
}
func (c client) RestrictAdditionalAccessTokenScopes() func([]string) []string { return everyScope }
