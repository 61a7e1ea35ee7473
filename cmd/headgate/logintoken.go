package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/headgate/headgate/identity"
)

// A shortToken is what requests for modules carry: it reaches nothing else. It is kept beside the login, 0600.
type shortToken struct {
	Token   string    `json:"token"`
	Renew   time.Time `json:"renew"` // from here on another is wanted, while this one still holds
	Expires time.Time `json:"expires"`
	Device  string    `json:"device,omitempty"` // it was got with this folder's certificate
}

// newShortToken is a token just granted. It is renewed at two thirds of its life, give or take a twentieth, so that the
// machines of a company do not all ask at once.
func newShortToken(g grantedToken, device string) shortToken {
	life := time.Duration(g.Seconds) * time.Second
	share := 2.0/3 + (2*rand.Float64()-1)/20
	now := time.Now()
	return shortToken{Token: g.Token, Renew: now.Add(time.Duration(share * float64(life))), Expires: now.Add(life), Device: device}
}

// kept is the short token in the file while it holds, or none. What cannot be read is got anew.
func (l *gatewayLogin) kept() shortToken {
	var t shortToken
	text, err := os.ReadFile(filepath.Join(l.folder, "token.json"))
	if err != nil || json.Unmarshal(text, &t) != nil || t.Device != l.Device || !time.Now().Before(t.Expires) {
		return shortToken{}
	}
	return t
}

// fresh gives a token that holds and is not the refused one. Of several helpers that ask at once one gets it, for all.
// While the gateway cannot be asked, the old one is good until it ends.
func (l *gatewayLogin) fresh(ctx context.Context, refused string) (shortToken, error) {
	good := func(t shortToken) bool { return t.Token != "" && t.Token != refused && time.Now().Before(t.Renew) }
	if t := l.kept(); good(t) {
		return t, nil
	}
	unlock, err := lockedfile.MutexAt(filepath.Join(l.folder, "lock")).Lock()
	if err != nil {
		return shortToken{}, fmt.Errorf("waiting for the token: %w", err)
	}
	defer unlock()
	old := l.kept()
	if good(old) {
		return old, nil
	}
	t, err := l.exchange(ctx)
	if err == nil {
		return t, l.keep("token.json", t)
	}
	if refusal, answered := errors.AsType[*oauthRefusal](err); (!answered || refusal.passes()) && old.Token != "" && old.Token != refused {
		return old, nil
	}
	return shortToken{}, err
}

// exchange gets a token that reaches modules alone for the login's (RFC 8693): over mTLS, bound to the device, where
// there is one.
func (l *gatewayLogin) exchange(ctx context.Context) (shortToken, error) {
	if err := l.renewDevice(ctx); err != nil && l.notes != nil {
		fmt.Fprintf(l.notes, "headgate: renewing this device's certificate failed, it is tried again: %v\n", err)
	}
	address, c, err := l.door()
	if err != nil {
		return shortToken{}, err
	}
	defer c.CloseIdleConnections()
	var granted grantedToken
	err = postForm(ctx, c, address+"/-/oauth/token", url.Values{
		"grant_type": {identity.GrantTokenExchange}, "subject_token": {l.Token}, "subject_token_type": {identity.TypeAccessToken},
		"scope": {strings.Join([]string{identity.ActionContent, identity.ActionDiscover, identity.ActionMetadata}, " ")},
	}, &granted)
	if refusal, ok := errors.AsType[*oauthRefusal](err); ok && !refusal.passes() {
		return shortToken{}, fmt.Errorf("getting a token from %s: %w; to sign in anew run: headgate login %s", address, refusal, l.URL)
	}
	if err != nil {
		return shortToken{}, fmt.Errorf("getting a token from %s: %w", address, err)
	}
	return newShortToken(granted, l.Device), nil
}

// door is where tokens and modules are asked for: the listener of devices, with the certificate, where there is one.
func (l *gatewayLogin) door() (string, *http.Client, error) {
	if l.Device == "" {
		trust, err := trusting(l.CA)
		return l.URL, webClient(trust), err
	}
	trust, err := deviceTLS(l.Device, l.CA)
	return l.Door, webClient(trust), err
}

// An introspection is what a token is to whoever it belongs to (RFC 7662).
type introspection struct {
	Active  bool   `json:"active"`
	Subject string `json:"sub,omitempty"`
	Name    string `json:"username,omitempty"`
	ID      string `json:"jti,omitempty"`
	Scope   string `json:"scope,omitempty"`
	Class   string `json:"headgate_class,omitempty"`
	Expires int64  `json:"exp,omitempty"`
}

// introspect asks about a token of the user with that token.
func (l *gatewayLogin) introspect(ctx context.Context, token string) (introspection, error) {
	address, c, err := l.door()
	if err != nil {
		return introspection{}, err
	}
	defer c.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/-/oauth/introspect", strings.NewReader(url.Values{"token": {token}}.Encode()))
	if err != nil {
		return introspection{}, fmt.Errorf("preparing the request: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Bearer "+token)
	var in introspection
	err = askOnce(c, r, &in)
	return in, err
}

// revoke ends a token and all that were got with it (RFC 7009). Its text is enough, on whichever listener.
func (l *gatewayLogin) revoke(ctx context.Context) error {
	trust, err := trusting(l.CA)
	if err != nil {
		return err
	}
	c := webClient(trust)
	defer c.CloseIdleConnections()
	return postForm(ctx, c, l.URL+"/-/oauth/revoke", url.Values{"token": {l.Token}}, &struct{}{})
}
