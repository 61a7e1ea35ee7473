package vcs

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"
)

// credential is a user and password; both empty where a route has none.
type credential struct{ user, password string }

const (
	maxCredential = 64 << 10
	// tokenLife is how long a printed token is used; the shortest-lived of code hosts last an hour.
	tokenLife    = 5 * time.Minute
	tokenTimeout = 30 * time.Second
)

// credentials reads a route's credential again whenever it is needed.
type credentials struct {
	file    string
	command []string
	path    string
	now     func() time.Time

	mu   sync.Mutex // guards the printed token
	last credential
	at   time.Time
}

// get reads the file, or asks the command at most every tokenLife.
func (c *credentials) get(ctx context.Context) (credential, error) {
	switch {
	case c.file != "":
		text, err := os.ReadFile(c.file)
		if err != nil {
			return credential{}, fmt.Errorf("reading credential_file: %w", err)
		}
		return parseCredential(text)
	case len(c.command) == 0:
		return credential{}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if age := c.now().Sub(c.at); age >= 0 && age < tokenLife && c.last.password != "" {
		return c.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.command[0], c.command[1:]...)
	cmd.Env = []string{"PATH=" + c.path, "HOME=/", "LC_ALL=C"}
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	out, err := cmd.Output()
	if err != nil {
		return credential{}, fmt.Errorf("running token_command: %w", err) // what it printed may be secret
	}
	got, err := parseCredential(out)
	if err == nil {
		c.last, c.at = got, c.now()
	}
	return got, err
}

// another tells whether there is another token than the one that a run has failed with: a printed token may have
// expired before its time, and how a host says so is no interface. The command is asked again in any case.
func (c *credentials) another(ctx context.Context, used credential) bool {
	if len(c.command) == 0 {
		return false
	}
	c.mu.Lock()
	if c.last == used {
		c.last = credential{}
	}
	c.mu.Unlock()
	next, err := c.get(ctx)
	return err == nil && next != used
}

// parseCredential reads a token or USER:PASSWORD. A token goes with the user
// name that the common code hosts take for any token.
func parseCredential(text []byte) (credential, error) {
	line := string(bytes.TrimSpace(text))
	if line == "" || len(line) > maxCredential || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return credential{}, errors.New("credential is empty, too long or has blanks; want one line with a token or USER:PASSWORD")
	}
	user, password, ok := strings.Cut(line, ":")
	if !ok {
		user, password = "oauth2", line
	}
	if user == "" || password == "" {
		return credential{}, errors.New("credential has an empty half; want a token or USER:PASSWORD")
	}
	return credential{user, password}, nil
}

// write puts the credential into files of a run's folder: for git, which asks
// by way of a script, and for discovery by the go command, as netrc.
func (c credential) write(dir string, hosts []string) error {
	var netrc, cases strings.Builder
	for _, h := range hosts {
		h = strings.TrimSuffix(h, ":443")
		fmt.Fprintf(&netrc, "machine %s login %s password %s\n", h, c.user, c.password)
		fmt.Fprintf(&cases, "\"Username for 'https://%s'\"*) exec cat \"${0%%/*}/user\";;\n", h)
		fmt.Fprintf(&cases, "\"Password for 'https://\"*\"@%s'\"*) exec cat \"${0%%/*}/password\";;\n", h)
	}
	for name, text := range map[string]string{
		"user": c.user, "password": c.password, "netrc": netrc.String(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	// git hands the prompt over as the first argument.
	script := "#!/bin/sh\ncase \"$1\" in\n" + cases.String() + "esac\nexit 1\n"
	return os.WriteFile(filepath.Join(dir, "askpass"), []byte(script), 0o700)
}

var userinfo = regexp.MustCompile(`://[^/@\s'"]*@`)

// redact removes the credential in every form in which a tool could print it,
// userinfo in URLs, and what a terminal or log would act on.
func (c credential) redact(text string) string {
	for _, secret := range []string{
		c.password, url.QueryEscape(c.password), url.PathEscape(c.password),
		base64.StdEncoding.EncodeToString([]byte(c.user + ":" + c.password)),
	} {
		if c.password != "" {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	text = userinfo.ReplaceAllString(text, "://")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, text))
}
