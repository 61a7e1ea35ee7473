package upstream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Entry is one server of a List.
type Entry struct {
	// URL has no trailing slash.
	URL *url.URL
	// AnyError tells that the next entry is asked at any error, not at 404 and 410 only.
	AnyError bool
}

// Host is how metrics and logs name the server: host and port, no secrets.
func (e Entry) Host() string { return e.URL.Host }

// List is a parsed GOPROXY value. It is empty for "off".
type List []Entry

// ErrDirect means that a list names direct: public code never comes from version control.
var ErrDirect = errors.New(`"direct" is not an upstream`)

// ErrPlainHTTP means that an upstream beyond loopback is named by an http URL.
var ErrPlainHTTP = errors.New("http is not allowed for an upstream beyond loopback")

// ParseOptions says what Parse tolerates.
type ParseOptions struct {
	// DropDirect ends the list at "direct" instead of refusing it.
	DropDirect bool
	// AllowHTTP takes http URLs of hosts beyond loopback.
	AllowHTTP bool
}

// Parse reads a list in GOPROXY syntax: URLs separated by , or |, perhaps
// ended by off (what follows it is never asked).
func Parse(goproxy string, o ParseOptions) (List, error) {
	var list List
	for rest := goproxy; rest != ""; {
		word, sep := rest, ""
		if i := strings.IndexAny(rest, ",|"); i >= 0 {
			word, sep, rest = rest[:i], rest[i:i+1], rest[i+1:]
		} else {
			rest = ""
		}
		switch word = strings.TrimSpace(word); word {
		case "":
			continue
		case "off":
			return list, nil
		case "direct":
			if !o.DropDirect {
				return nil, ErrDirect
			}
			if len(list) == 0 {
				return nil, errors.New("no upstream is named before direct")
			}
			return list, nil // it answers everything: what follows is never asked
		}
		u, err := parseURL(word, o)
		if err != nil {
			return nil, err
		}
		list = append(list, Entry{URL: u, AnyError: sep == "|"})
	}
	if len(list) == 0 {
		return nil, errors.New("no upstream is named")
	}
	return list, nil
}

func parseURL(word string, o ParseOptions) (*url.URL, error) {
	if !strings.Contains(word, "://") {
		word = "https://" + word // as the go command reads it
	}
	u, err := url.Parse(word)
	if err != nil {
		// The text of url.Error repeats the URL, which may hold a password.
		return nil, errors.New("an upstream is no valid URL; want https://host/path")
	}
	switch {
	case u.Host == "":
		return nil, fmt.Errorf("upstream %q names no host; want https://host/path", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("upstream https://%s has a query or fragment; want https://host/path", u.Host)
	case u.Scheme == "http" && !o.AllowHTTP && !isLoopback(u.Hostname()):
		return nil, fmt.Errorf("upstream %q: %w; want https", u.Redacted(), ErrPlainHTTP)
	case u.Scheme == "http" && u.User != nil:
		return nil, fmt.Errorf("upstream %q would send its password over http; want https", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("upstream %q is %s; want https", u.Redacted(), u.Scheme)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// isInternal tells addresses that no redirect of a stranger may lead to.
func isInternal(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() ||
		netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

// hostPort adds the scheme's port where the URL has none.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
