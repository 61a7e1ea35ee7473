package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Config is the gateway section of the configuration file.
type Config struct {
	// URL is what clients put into GOPROXY: https, a host, and a path if the gateway does not own the host's root.
	// Empty: https://localhost:PORT of the listener.
	URL string `yaml:"url"`
	// Hosts are further names under which clients may ask; any other Host or server name is answered 421.
	// Empty: localhost, 127.0.0.1 and ::1 where the URL's host is one of them, else none.
	Hosts []string `yaml:"hosts"`
	// Listen is the address of the public TLS listener. Empty: 127.0.0.1:8443. Port 0 takes a free one.
	Listen string `yaml:"listen"`
	// Operations is the address of the listener for /livez, /readyz, /metrics and /debug/pprof/, plain HTTP,
	// loopback only. Empty: 127.0.0.1:8081.
	Operations string `yaml:"operations"`
	// DrainWait is how long the gateway keeps accepting after SIGTERM while /readyz already says no, so that
	// a balancer notices. Empty: 0s on a loopback listener, else 10s.
	DrainWait time.Duration `yaml:"drain_wait"`
	// BestEffort are module patterns, as in GOPRIVATE, that are still served when this node has not learnt for 5 min
	// what was revoked and locked elsewhere; their records say so. Empty: none, and such requests are refused.
	BestEffort []string `yaml:"best_effort"`
	// TLS names the certificate of the public listener.
	TLS TLS `yaml:"tls"`
	// Hooks lets Git servers announce pushes, so that new versions are seen at once.
	Hooks Hooks `yaml:"hooks"`

	// State is the folder for the gateway's socket and its own certificates; not a key of the file.
	State string `yaml:"-"`
}

// TLS names a certificate chain and its key as PEM files; they are read again when they change.
// Both empty: a local CA and a leaf are made in <state>/ca, and clients trust ca/ca.pem.
type TLS struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

const (
	defaultListen     = "127.0.0.1:8443"
	defaultOperations = "127.0.0.1:8081"
	balancerWait      = 10 * time.Second
)

var loopbackNames = []string{"localhost", "127.0.0.1", "::1"}

// Validate reports every mistake in the section. It dials nothing and changes nothing.
func (c Config) Validate() []error {
	var errs []error
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			errs = append(errs, fmt.Errorf("url: %q is no address for GOPROXY; want https://HOST[:PORT][/PREFIX]", c.URL))
		}
	}
	for i, host := range c.Hosts {
		if host == "" || strings.ContainsAny(host, "/@ ") || strings.Contains(host, "://") {
			errs = append(errs, fmt.Errorf("hosts[%d]: %q is no host name; want a name or an address, without port", i, host))
		}
	}
	for i, p := range c.BestEffort {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.ContainsAny(p, ", ") {
			errs = append(errs, fmt.Errorf("best_effort[%d]: %q is no pattern; want a glob of path elements such as \"corp.example/*\"", i, p))
		}
	}
	errs = append(errs, validAddress("listen", c.Listen)...)
	errs = append(errs, validAddress("operations", c.Operations)...)
	if c.Operations != "" && !loopback(c.Operations) {
		errs = append(errs, fmt.Errorf("operations: %q is open to the network, without authentication; want a loopback address such as %s", c.Operations, defaultOperations))
	}
	if c.Listen != "" && c.Listen == c.Operations && !strings.HasSuffix(c.Listen, ":0") {
		errs = append(errs, fmt.Errorf("operations: %q is the public listener's address; want one of its own", c.Operations))
	}
	if c.DrainWait < 0 || c.DrainWait > time.Minute {
		errs = append(errs, fmt.Errorf("drain_wait: %v is out of range; want 0s to 1m", c.DrainWait))
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		errs = append(errs, fmt.Errorf("tls: names only one of cert and key; want both, or neither for a certificate of our own"))
	}
	return errs
}

func validAddress(key, address string) []error {
	if address == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return []error{fmt.Errorf("%s: %q is no address; want HOST:PORT, as in %s", key, address, defaultListen)}
	}
	return nil
}

// loopback tells whether an address of the form HOST:PORT can be reached from this machine alone.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// withDefaults is the section with every empty key but URL filled in; URL may wait for the listener's port.
func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if c.Operations == "" {
		c.Operations = defaultOperations
	}
	if c.DrainWait == 0 && !loopback(c.Listen) {
		c.DrainWait = balancerWait
	}
	if c.TLS.Cert == "" {
		c.TLS.Cert = filepath.Join(c.State, "ca", "leaf.pem")
		c.TLS.Key = filepath.Join(c.State, "ca", "leaf-key.pem")
	}
	return c
}

// names are the host names that the gateway answers to.
func (c Config) names() []string {
	names := append([]string{}, c.Hosts...)
	host := "localhost"
	if u, err := url.Parse(c.URL); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	names = append(names, host)
	for _, local := range loopbackNames {
		if host == local && len(c.Hosts) == 0 {
			return append(names, loopbackNames...)
		}
	}
	return names
}
