package identity

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Notices says who is told before a token ends. The program that is told finds the holder and asks for a renewal; the
// gateway sends no mail.
type Notices struct {
	// URL is where each notice is sent by POST, over https; http on loopback alone. A redirect is not followed. Empty:
	// nobody is told.
	URL string `yaml:"url"`
	// SecretFile holds the key that signs notices, whsec_ and 24 to 64 bytes in base64 as the Standard Webhooks specification
	// has it. Further lines are further keys, which sign as well, for a change without a gap. It is read again for each notice.
	SecretFile string `yaml:"secret_file"`
	// Before is how long before its end a token is told of, once for each; a token that never lived longer than that is not.
	// From 10m to 2160h, at most 8; empty: 168h and 24h.
	Before []time.Duration `yaml:"before"`
	// CAFile holds the CA certificates (PEM) of the receiver, which then are the only trusted ones; empty: the roots of the
	// system.
	CAFile string `yaml:"ca_file"`
}

const (
	mostThresholds   = 8
	shortestNotice   = 10 * time.Minute
	longestNotice    = 90 * 24 * time.Hour
	usualNotice      = 7 * 24 * time.Hour
	usualLastNotice  = 24 * time.Hour
	noticesAreForURL = "there is no notices.url that it belongs to"
)

func (n Notices) validate() []error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("notices."+key+": "+format, args...))
	}
	if n.URL == "" {
		for _, x := range []struct {
			key string
			set bool
		}{{"secret_file", n.SecretFile != ""}, {"before", len(n.Before) > 0}, {"ca_file", n.CAFile != ""}} {
			if x.set {
				bad(x.key, noticesAreForURL)
			}
		}
		return errs
	}
	// The address may itself be a secret, as those of chat rooms are: it is not repeated.
	if u, err := url.Parse(n.URL); err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "" ||
		u.Scheme != "https" && (u.Scheme != "http" || !onLoopback(u.Hostname())) {
		bad("url", "no address of a receiver; want https://HOST/PATH without a password in it, or http on loopback")
	}
	if n.SecretFile == "" {
		bad("secret_file", "empty; want a file with the key that signs notices")
	}
	for i, d := range n.Before {
		if d < shortestNotice || d > longestNotice || d%time.Second != 0 || i >= mostThresholds || slices.Contains(n.Before[:i], d) {
			bad("before", "%s is out of range, the same again or one too many; want at most %d different ones from %s to %s",
				d, mostThresholds, shortestNotice, longestNotice)
		}
	}
	return errs
}

func (n *Notices) setDefaults() {
	if len(n.Before) == 0 {
		n.Before = []time.Duration{usualNotice, usualLastNotice}
	}
	n.Before = slices.Sorted(slices.Values(n.Before))
}

func onLoopback(host string) bool {
	return strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback()
}
