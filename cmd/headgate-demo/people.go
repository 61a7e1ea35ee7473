package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// A person is somebody who works with the go command: with a home folder, and with a token once signed in.
type person struct {
	login, name, password, id string
	groups                    []string
	home                      string
	token                     string // a Headgate token; "" before the sign-in
	expires                   time.Duration
}

// newPeople are the three of the story.
func newPeople(dir string) ([]*person, error) {
	people := []*person{
		{login: "ann", name: "Ann", groups: []string{"eng-payments"}},
		{login: "ben", name: "Ben", groups: []string{"eng-web"}},
		{login: "cleo", name: "Cleo", groups: []string{"contractors"}},
	}
	for i, p := range people {
		p.password, p.id = rand.Text(), fmt.Sprintf("00u-%d-%s", i+1, p.login)
		p.home = filepath.Join(dir, "home", p.login)
		if err := os.MkdirAll(p.home, 0o700); err != nil {
			return nil, fmt.Errorf("making the home of %s: %w", p.name, err)
		}
	}
	return people, nil
}

// signIn walks the authorization code flow with PKCE, state and nonce (RFC 6749, RFC 7636, RFC 8252): the client waits
// on a loopback port, a browser goes to the provider, fills in the form, and is sent back with the code.
func (p *provider) signIn(ctx context.Context, who *person) (idToken string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening for the redirect: %w", err)
	}
	verifier, state, nonce := oauth2.GenerateVerifier(), rand.Text(), rand.Text()
	client := oauth2.Config{
		ClientID: clientID, RedirectURL: "http://" + l.Addr().String() + "/callback", Scopes: []string{"openid", "profile", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: p.issuer + "/authorize", TokenURL: p.issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	codes := make(chan string, 1)
	callback := &http.Server{Handler: receive(state, codes), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- callback.Serve(l) }()
	defer func() {
		_ = callback.Close() // only a listener of one redirect
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
	}()
	start := client.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", nonce))
	if err := p.browse(ctx, start, who); err != nil {
		return "", fmt.Errorf("signing in as %s: %w", who.login, err)
	}
	select {
	case code := <-codes:
		return p.redeem(ctx, client, code, verifier, nonce)
	case <-time.After(5 * time.Second):
		return "", fmt.Errorf("signing in as %s: no code came back", who.login)
	}
}

// receive takes the redirect that carries the code, and only with the state that was sent.
func receive(state string, codes chan<- string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/callback" || q.Get("state") != state || q.Get("code") == "" {
			http.Error(w, "this is not the answer that was waited for", http.StatusBadRequest)
			return
		}
		select {
		case codes <- q.Get("code"):
		default: // a code is taken once
		}
		fmt.Fprintln(w, "You are signed in; go back to the terminal.")
	})
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]+)" value="([^"]+)"`)

// browse is the browser: it follows redirects, keeps cookies, and posts the login form.
func (p *provider) browse(ctx context.Context, start string, who *person) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	browser := &http.Client{Jar: jar, Transport: p.transport(), Timeout: 30 * time.Second}
	defer browser.CloseIdleConnections()
	page, at, err := visit(ctx, browser, http.MethodGet, start, nil)
	if err != nil {
		return err
	}
	form := url.Values{"username": {who.login}, "password": {who.password}}
	for _, field := range hiddenField.FindAllStringSubmatch(page, -1) {
		form.Set(field[1], field[2])
	}
	_, _, err = visit(ctx, browser, http.MethodPost, at.ResolveReference(&url.URL{Path: "/login"}).String(), form)
	return err
}

// visit gives a page and the address at which it was found in the end.
func visit(ctx context.Context, browser *http.Client, method, address string, form url.Values) (string, *url.URL, error) {
	r, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err != nil {
		return "", nil, err
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := browser.Do(r)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.200s", method, resp.Request.URL.Path, resp.Status, body)
	}
	return string(body), resp.Request.URL, err
}

// redeem turns the code into an ID token and compares its nonce. It comes from the provider itself over TLS, so its
// signature need not be checked here (OpenID Connect Core, section 3.1.3.7); the gateway does.
func (p *provider) redeem(ctx context.Context, client oauth2.Config, code, verifier, nonce string) (string, error) {
	h := &http.Client{Transport: p.transport(), Timeout: 30 * time.Second}
	defer h.CloseIdleConnections()
	token, err := client.Exchange(context.WithValue(ctx, oauth2.HTTPClient, h), code, oauth2.VerifierOption(verifier))
	if err != nil {
		return "", fmt.Errorf("redeeming the code: %w", err)
	}
	id, _ := token.Extra("id_token").(string)
	parts := strings.Split(id, ".")
	if len(parts) != 3 {
		return "", errors.New("redeeming the code: no ID token came back")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct{ Nonce string }
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err == nil && claims.Nonce != nonce {
		err = errors.New("the ID token's nonce is not ours")
	}
	if err != nil {
		return "", fmt.Errorf("redeeming the code: %w", err)
	}
	return id, nil
}

func (p *provider) transport() *http.Transport { return trusting(p.roots) }

// trusting is a transport that trusts one CA and uses no proxy.
func trusting(roots *x509.CertPool) *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, ForceAttemptHTTP2: true}
}

// writeNetrc puts the token where the go command looks for it.
func (who *person) writeNetrc(machine, token string) error {
	line := netrcLine(machine, token)
	if err := os.WriteFile(filepath.Join(who.home, ".netrc"), []byte(line+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the .netrc of %s: %w", who.name, err)
	}
	return nil
}

func netrcLine(machine, token string) string {
	return "machine " + machine + " login headgate password " + token
}
