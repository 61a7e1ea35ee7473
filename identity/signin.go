package identity

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	signInLife  = 10 * time.Minute // from the link to the issuer until the browser is back
	signInPlace = "sign-in"
)

// A Provider is an issuer at which people can sign in with a browser.
type Provider struct {
	Name string
	Up   bool // it answered when it was last asked
}

// Providers lists where people can sign in, in the order of the configuration.
func (s *Service) Providers() []Provider {
	var list []Provider
	for _, c := range s.cfg.Issuers {
		if c.Type == Person && c.ClientID != "" {
			keys := s.issuers[c.URL].keys
			list = append(list, Provider{Name: c.Name, Up: keys.found.Load() != nil && keys.current.Load().err == nil})
		}
	}
	return list
}

// A SignIn is one that begins: the browser goes to URL and comes back with Cookie.
type SignIn struct {
	URL    string
	Cookie string
}

// A signInState is what has to be the same when the browser comes back. It is sealed into the browser's cookie, so a
// sign-in that nobody finishes leaves nothing here.
type signInState struct {
	Issuer, State, Nonce, Verifier, Redirect, Back string
	Expires                                        int64
}

// StartSignIn begins a sign-in at the provider of a name: authorization code with PKCE (RFC 7636), state and nonce.
// redirect is our address that the browser is sent back to, back is where it goes then; the caller checked that one.
// Errors are *Error: RequestInvalid, IssuerDown.
func (s *Service) StartSignIn(provider, redirect, back string) (SignIn, error) {
	i := s.provider(provider)
	if i == nil {
		return SignIn{}, refuse(RequestInvalid, "signing in: no provider %.64q", provider)
	}
	conf, err := i.oauth(redirect)
	if err != nil {
		return SignIn{}, err
	}
	st := signInState{
		Issuer: i.cfg.URL, State: randomSecret(), Nonce: randomSecret(), Verifier: oauth2.GenerateVerifier(),
		Redirect: redirect, Back: back, Expires: time.Now().Add(signInLife).Unix(),
	}
	text, jerr := json.Marshal(st)
	if jerr != nil {
		panic("identity: encoding text: " + jerr.Error()) // of plain fields it cannot fail
	}
	return SignIn{
		URL:    conf.AuthCodeURL(st.State, oauth2.S256ChallengeOption(st.Verifier), oauth2.SetAuthURLParam("nonce", st.Nonce)),
		Cookie: s.peppers.sealed(text, signInPlace),
	}, nil
}

func (s *Service) provider(name string) *issuer {
	for _, i := range s.issuers {
		if i.cfg.Name == name && i.cfg.Type == Person && i.cfg.ClientID != "" {
			return i
		}
	}
	return nil
}

// oauth is our client at the issuer, as far as it says where it is asked.
func (i *issuer) oauth(redirect string) (*oauth2.Config, *Error) {
	doc := i.keys.found.Load()
	if doc == nil {
		return nil, refuse(IssuerDown, "signing in at %s: it did not answer yet", i.cfg.Name)
	}
	if !overHTTPS(doc.Authorization) || !overHTTPS(doc.Token) {
		return nil, refuse(IssuerDown, "signing in at %s: it names no endpoints over https", i.cfg.Name)
	}
	scopes := i.cfg.Scopes
	if len(scopes) == 0 {
		scopes = []string{"openid", "profile", "email"}
		if slices.Contains(doc.Scopes, "offline_access") {
			scopes = append(scopes, "offline_access")
		}
	}
	style := oauth2.AuthStyleInHeader // client_secret_basic, the default of OpenID Connect Core 1.0, 9
	if i.secret == "" {
		style = oauth2.AuthStyleInParams
	}
	return &oauth2.Config{
		ClientID: i.cfg.ClientID, ClientSecret: i.secret, RedirectURL: redirect, Scopes: scopes,
		Endpoint: oauth2.Endpoint{AuthURL: doc.Authorization, TokenURL: doc.Token, AuthStyle: style},
	}, nil
}

// A SignInReturn is a browser that came back.
type SignInReturn struct {
	Query  url.Values
	Cookie string // as SignIn gave it
}

// A SessionDraft is a sign-in that succeeded and opens nothing yet.
type SessionDraft struct {
	Session Session
	Back    string // where the browser goes

	person personRow
}

// DraftSession finishes a sign-in. Everything in it is good once and in one browser. Errors are *Error: RequestInvalid
// (what came back is not what was sent away), CredentialInvalid, Locked, IssuerDown, StateDown.
func (s *Service) DraftSession(ctx context.Context, r SignInReturn) (SessionDraft, error) {
	st, i, err := s.returned(ctx, r)
	if err != nil {
		return SessionDraft{}, err
	}
	conf, err := i.oauth(st.Redirect)
	if err != nil {
		return SessionDraft{}, err
	}
	token, terr := conf.Exchange(i.context(ctx), r.Query.Get("code"), oauth2.VerifierOption(st.Verifier))
	if terr != nil {
		return SessionDraft{}, i.exchangeFailed(terr)
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return SessionDraft{}, refuse(CredentialInvalid, "signing in at %s: no ID token came", i.cfg.Name)
	}
	v, err := i.described(ctx, raw, token, st.Nonce)
	if err != nil {
		return SessionDraft{}, err
	}
	now := time.Now()
	p := personRow{subject: v.subject, asOf: now.Unix(), checked: now.Unix()}
	p.kept, p.until = s.keep(v, token)
	session := Session{ID: newSessionID(), Subject: v.subject, Created: now.UTC().Truncate(time.Second), Until: fromUnix(p.until)}
	session.Expires = session.ends()
	if err := s.unlocked(session.Principal()); err != nil {
		return SessionDraft{}, err
	}
	return SessionDraft{Session: session, Back: st.Back, person: p}, nil
}

// returned checks that this browser was sent away with this state, just now and not yet back.
func (s *Service) returned(ctx context.Context, r SignInReturn) (*signInState, *issuer, *Error) {
	bad := func(format string, args ...any) *Error { return refuse(RequestInvalid, "signing in: "+format, args...) }
	text, err := s.peppers.unsealed(r.Cookie, signInPlace)
	st := &signInState{}
	if err == nil {
		err = json.Unmarshal(text, st)
	}
	if err != nil {
		return nil, nil, bad("the browser did not begin here: %w", err)
	}
	for name, values := range r.Query {
		if len(values) > 1 {
			return nil, nil, bad("%.32q came twice", name)
		}
	}
	i := s.issuers[st.Issuer]
	switch now := time.Now().Unix(); {
	case i == nil || now >= st.Expires:
		return nil, nil, bad("it took longer than %s", signInLife)
	case subtle.ConstantTimeCompare([]byte(r.Query.Get("state")), []byte(st.State)) != 1:
		return nil, nil, bad("state is not what this browser was sent away with")
	}
	doc, names := i.keys.found.Load(), r.Query.Get("iss")
	if doc != nil && (names != "" || doc.NamesItself) && names != i.cfg.URL { // RFC 9207: another issuer's answer
		return nil, nil, bad("iss %.128q is not %s", names, i.cfg.Name)
	}
	first, err := s.store.useOnce(ctx, st.State, st.Expires)
	switch {
	case err != nil:
		return nil, nil, &Error{Code: StateDown, Err: err}
	case !first:
		return nil, nil, bad("state came a second time")
	case r.Query.Get("error") != "":
		return nil, nil, bad("%s says %.64q", i.cfg.Name, r.Query.Get("error"))
	}
	return st, i, nil
}

// context makes oauth2 use the issuer's client, with its limits and its roots.
func (i *issuer) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, i.client)
}

// exchangeFailed hides what a token endpoint answered, since that may hold a secret.
func (i *issuer) exchangeFailed(err error) *Error {
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok && e.Response != nil && e.Response.StatusCode < 500 && e.ErrorCode != "" {
		return refuse(CredentialInvalid, "asking %s for a token: it says %.64q", i.cfg.Name, e.ErrorCode)
	}
	reason := "its answer makes no sense"
	if e, ok := errors.AsType[*url.Error](err); ok {
		reason = cmp.Or(strings.TrimSpace(e.Err.Error()), reason)
	}
	return refuse(IssuerDown, "asking %s for a token: %s", i.cfg.Name, reason)
}

// described verifies an ID token that came from the token endpoint, and adds what only the user info endpoint says:
// some issuers leave groups out of ID tokens. An empty nonce is not looked at: a refresh has none.
func (i *issuer) described(ctx context.Context, raw string, token *oauth2.Token, nonce string) (*verified, *Error) {
	t, err := inspect(raw)
	if err != nil {
		return nil, &Error{Code: CredentialInvalid, Err: err}
	}
	if t.issuer != i.cfg.URL {
		return nil, refuse(CredentialInvalid, "verifying token of %s: it is of issuer %.128q", i.cfg.Name, t.issuer)
	}
	v, refused := i.verify(ctx, raw, t, []string{i.cfg.ClientID})
	if refused != nil {
		return nil, refused
	}
	if got, err := text(t.claims, "nonce"); nonce != "" && (err != nil || subtle.ConstantTimeCompare([]byte(got), []byte(nonce)) != 1) {
		return nil, refuse(CredentialInvalid, "verifying token of %s: nonce is not what this browser was sent away with", i.cfg.Name)
	}
	if i.cfg.GroupsClaim == "" || t.claims[i.cfg.GroupsClaim] != nil {
		return v, nil
	}
	sub, asked, err := i.userInfo(ctx, token, v.subject.ID)
	switch {
	case err != nil && errors.Is(err, errDisowned):
		return nil, refuse(CredentialInvalid, "%w", err)
	case err != nil:
		return nil, &Error{Code: IssuerDown, Err: fmt.Errorf("signing in: %w", err)}
	case asked:
		v.subject.Groups, v.subject.Team = sub.Groups, cmp.Or(v.subject.Team, sub.Team)
	}
	return v, nil
}
