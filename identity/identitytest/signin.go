package identitytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/oauth2"
)

var hiddenID = regexp.MustCompile(`name="id" value="([^"]+)"`)

// SignIn plays browser and client of a Provider: authorization code with PKCE,
// the login form filled in, the code redeemed. It gives the ID token. client must
// trust the provider's certificate; its redirect rule is not used.
func SignIn(ctx context.Context, client *http.Client, cfg ProviderConfig, login, password string) (string, error) {
	browser := &http.Client{Transport: client.Transport, Timeout: client.Timeout}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, browser)
	conf := oauth2.Config{
		ClientID: cfg.ClientID, RedirectURL: cfg.RedirectURI, Scopes: []string{"openid", "profile", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: cfg.Issuer + "/authorize", TokenURL: cfg.Issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	verifier, state := oauth2.GenerateVerifier(), oauth2.GenerateVerifier()
	code, err := authorize(ctx, browser, conf.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier)), state, cfg.RedirectURI, login, password)
	if err != nil {
		return "", fmt.Errorf("signing in as %s: %w", login, err)
	}
	tok, err := conf.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		return "", fmt.Errorf("signing in as %s: %w", login, err)
	}
	id, ok := tok.Extra("id_token").(string)
	if !ok {
		return "", fmt.Errorf("signing in as %s: no ID token", login)
	}
	return id, nil
}

// authorize walks from the authorization endpoint over the login page to the
// redirect that carries the code, and stops there.
func authorize(ctx context.Context, browser *http.Client, start, state, redirect, login, password string) (string, error) {
	var code string
	browser.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		if !strings.HasPrefix(req.URL.String(), redirect) {
			return nil
		}
		q := req.URL.Query()
		if q.Get("state") != state {
			return errors.New("state came back changed")
		}
		if code = q.Get("code"); code == "" {
			return fmt.Errorf("refused: %s %s", q.Get("error"), q.Get("error_description"))
		}
		return http.ErrUseLastResponse
	}
	defer func() { browser.CheckRedirect = nil }()
	page, where, err := fetch(ctx, browser, http.MethodGet, start, nil)
	if err != nil {
		return "", err
	}
	id := hiddenID.FindStringSubmatch(page)
	if id == nil {
		return "", errors.New("the login page holds no form")
	}
	form := url.Values{"id": {id[1]}, "username": {login}, "password": {password}}
	if _, _, err = fetch(ctx, browser, http.MethodPost, where.ResolveReference(&url.URL{Path: "/login"}).String(), form); err != nil {
		return "", err
	}
	if code == "" {
		return "", errors.New("no code came back")
	}
	return code, nil
}

// fetch gives a page and the address that it was found at in the end.
func fetch(ctx context.Context, browser *http.Client, method, address string, form url.Values) (string, *url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err != nil {
		return "", nil, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := browser.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return "", nil, fmt.Errorf("%s %s: %s: %.200s", method, req.URL.Path, resp.Status, body)
	}
	return string(body), resp.Request.URL, nil
}
