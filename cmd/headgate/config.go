package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/gateway/feeds"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// systemConfig is read when neither --config nor $HEADGATE_CONFIG names a file. It need not exist.
const systemConfig = "/etc/headgate/headgate.yaml"

// A config is the one configuration file of the gateway. Each package owns its section.
type config struct {
	// State is the folder for all that the gateway keeps. Empty: /var/lib/headgate for root,
	// else $XDG_STATE_HOME/headgate or ~/.local/state/headgate.
	State    string          `yaml:"state"`
	Gateway  gateway.Config  `yaml:"gateway"`
	Identity identity.Config `yaml:"identity"`
	Policy   policy.Config   `yaml:"policy"`
	Mirror   mirror.Config   `yaml:"mirror"`
	Feeds    feeds.Config    `yaml:"feeds"`
	Audit    audit.Config    `yaml:"audit"`

	file string // where it was read from; empty: defaults
}

// loadConfig reads and checks the configuration: the named file, else $HEADGATE_CONFIG, else the system's file,
// else defaults. The error lists every mistake, each with file and line.
func loadConfig(file string) (*config, error) {
	text, file, err := readConfig(file)
	if err != nil {
		return nil, err
	}
	c := &config{file: file}
	d := decodeStrict(file, text, c)
	if err := c.defaults(); err != nil {
		return nil, err
	}
	d.invalid("gateway", c.Gateway.Validate())
	d.invalid("identity", c.Identity.Validate())
	d.invalid("policy", c.Policy.Validate())
	d.invalid("mirror", c.Mirror.Validate())
	d.invalid("feeds", c.Feeds.Validate())
	d.invalid("audit", c.Audit.Validate())
	d.invalid("", c.contradictions())
	if err := d.err(); err != nil {
		return nil, &configError{err}
	}
	return c, nil
}

// factsOff names the facts that no source is configured for, so that rules on them do not apply.
func (c *config) factsOff() []string {
	off := c.Feeds.Off()
	if len(c.Mirror.AgeSources) == 0 {
		off = append([]string{"age"}, off...)
	}
	return off
}

// contradictions are mistakes that no section sees alone: named files that are not there, and an upstream that is
// this gateway.
func (c *config) contradictions() []error {
	var errs []error
	for _, f := range c.files() {
		if _, err := os.Stat(*f.path); *f.path != "" && f.mustExist && err != nil {
			errs = append(errs, fmt.Errorf("%s: %w; want a file that can be read", f.key, err))
		}
	}
	for i, s := range c.Audit.Sinks {
		if err := store.CheckLocation(s.Location); err != nil {
			errs = append(errs, fmt.Errorf("audit.sinks[%d].location: %w", i, err))
		}
	}
	for i, p := range c.Audit.Publish {
		if err := store.CheckLocation(p.Location); err != nil {
			errs = append(errs, fmt.Errorf("audit.publish[%d].location: %w", i, err))
		}
	}
	for i, word := range c.Mirror.Upstreams {
		for one := range strings.SplitSeq(word, "|") {
			if u, err := url.Parse(one); err == nil && c.ourselves(u.Host, u.Scheme) {
				errs = append(errs, fmt.Errorf("mirror.upstreams[%d]: %s is this gateway itself; want the real upstream", i, u.Host))
			}
		}
	}
	return errs
}

// A namedFile is a key of the configuration that holds a path.
type namedFile struct {
	key       string
	path      *string
	mustExist bool
}

func (c *config) files() []namedFile {
	files := []namedFile{
		{"gateway.tls.cert", &c.Gateway.TLS.Cert, true},
		{"gateway.tls.key", &c.Gateway.TLS.Key, true},
		{"gateway.hooks.secret_file", &c.Gateway.Hooks.SecretFile, true},
		{"identity.database", &c.Identity.Database, false},
		{"identity.pepper_file", &c.Identity.PepperFile, true},
		{"identity.notices.secret_file", &c.Identity.Notices.SecretFile, true},
		{"identity.notices.ca_file", &c.Identity.Notices.CAFile, true},
		{"policy.path", &c.Policy.Path, true},
		{"policy.git.allowed_signers_file", &c.Policy.Git.AllowedSigners, true},
		{"policy.git.revoked_signers_file", &c.Policy.Git.RevokedSigners, true},
		{"policy.git.pgp_keys_file", &c.Policy.Git.PGPKeys, true},
		{"policy.git.credential_file", &c.Policy.Git.CredentialFile, true},
		{"policy.git.ssh_key_file", &c.Policy.Git.SSHKeyFile, true},
		{"policy.git.known_hosts_file", &c.Policy.Git.KnownHostsFile, true},
		{"policy.git.ca_file", &c.Policy.Git.CAFile, true},
		{"mirror.store", &c.Mirror.Store, false},
		{"mirror.store_private", &c.Mirror.StorePrivate, false},
		{"feeds.vulns", &c.Feeds.Vulns, false},
		{"feeds.malware", &c.Feeds.Malware, false},
		{"feeds.popularity", &c.Feeds.Popularity, false},
		{"feeds.scorecard", &c.Feeds.Scorecard, false},
		{"feeds.ca_file", &c.Feeds.CAFile, true},
		{"audit.dir", &c.Audit.Dir, false},
	}
	for i := range c.Identity.Issuers {
		files = append(files, namedFile{fmt.Sprintf("identity.issuers[%d].ca_file", i), &c.Identity.Issuers[i].CAFile, true})
	}
	files = append(files, deviceFiles(&c.Identity.Devices)...)
	for i := range c.Audit.Sinks {
		s, at := &c.Audit.Sinks[i], fmt.Sprintf("audit.sinks[%d].", i)
		files = append(files, namedFile{at + "path", &s.Path, false}, namedFile{at + "location", &s.Location, false}, namedFile{at + "token_file", &s.TokenFile, true},
			namedFile{at + "tls.ca_file", &s.TLS.CAFile, true}, namedFile{at + "tls.cert_file", &s.TLS.CertFile, true},
			namedFile{at + "tls.key_file", &s.TLS.KeyFile, true})
	}
	for i := range c.Audit.Publish {
		files = append(files, namedFile{fmt.Sprintf("audit.publish[%d].location", i), &c.Audit.Publish[i].Location, false})
	}
	for i := range c.Mirror.UpstreamHosts {
		h := &c.Mirror.UpstreamHosts[i]
		files = append(files, namedFile{fmt.Sprintf("mirror.upstream_hosts[%d].credential_file", i), &h.CredentialFile, true},
			namedFile{fmt.Sprintf("mirror.upstream_hosts[%d].ca_file", i), &h.CAFile, true})
	}
	for i := range c.Mirror.Private {
		r := &c.Mirror.Private[i]
		files = append(files, namedFile{fmt.Sprintf("mirror.private[%d].credential_file", i), &r.CredentialFile, true},
			namedFile{fmt.Sprintf("mirror.private[%d].ca_file", i), &r.CAFile, true})
	}
	return files
}

// deviceFiles are the files of devices. A feed and a revocation list may be away for a while, authorities may not.
func deviceFiles(d *identity.Devices) []namedFile {
	files := []namedFile{
		{"identity.devices.ca", &d.CA, true},
		{"identity.devices.enrolment.ca_cert", &d.Enrolment.CACert, true},
		{"identity.devices.enrolment.ca_key", &d.Enrolment.CAKey, true},
	}
	for i := range d.Pools {
		files = append(files, namedFile{fmt.Sprintf("identity.devices.pools[%d].ca", i), &d.Pools[i].CA, true})
	}
	for i := range d.CRL {
		files = append(files, namedFile{fmt.Sprintf("identity.devices.crl[%d]", i), &d.CRL[i], false})
	}
	feeds := []*identity.Feed{&d.Inventory}
	for i := range d.Posture {
		feeds = append(feeds, &d.Posture[i])
	}
	for i, f := range feeds {
		at := "identity.devices.inventory"
		if i > 0 {
			at = fmt.Sprintf("identity.devices.posture[%d]", i-1)
		}
		files = append(files, namedFile{at + ".file", &f.File, false}, namedFile{at + ".ca_file", &f.CAFile, true}, namedFile{at + ".token_file", &f.TokenFile, true})
	}
	return files
}

// ourselves tells whether a host, with or without port, is where this gateway listens or what clients call it.
func (c *config) ourselves(host, scheme string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.Trim(host, "[]"), map[string]string{"http": "80"}[scheme]
	}
	port = orElse(port, "443")
	ip := net.ParseIP(name)
	local := strings.EqualFold(name, "localhost") || ip.IsLoopback()
	_, listen, _ := net.SplitHostPort(orElse(c.Gateway.Listen, "127.0.0.1:8443"))
	if local && port == listen {
		return true
	}
	u, err := url.Parse(c.Gateway.URL)
	if err != nil || c.Gateway.URL == "" {
		return false
	}
	named := slices.ContainsFunc(append(c.Gateway.Hosts, u.Hostname()), func(own string) bool { return strings.EqualFold(own, name) })
	return named && (port == listen || port == orElse(u.Port(), "443"))
}

// A configError is a configuration that cannot be used as it stands.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

func readConfig(file string) (text []byte, name string, err error) {
	if file == "" {
		file = os.Getenv("HEADGATE_CONFIG")
	}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, "", &configError{fmt.Errorf("reading the configuration: %w", err)}
		}
		return text, file, nil
	}
	text, err = os.ReadFile(systemConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", &configError{fmt.Errorf("reading the configuration: %w", err)}
	}
	return text, systemConfig, nil
}

// defaults makes paths absolute, from the folder of the configuration file, and fills those that depend on the state
// folder; all other defaults are their packages' own.
func (c *config) defaults() error {
	if c.State == "" {
		state, err := defaultState()
		if err != nil {
			return err
		}
		c.State = state
	}
	base, err := filepath.Abs(filepath.Dir(c.file))
	if err != nil {
		return fmt.Errorf("finding the configuration's folder: %w", err)
	}
	for _, f := range append(c.files(), namedFile{path: &c.State}) {
		if *f.path != "" && !filepath.IsAbs(*f.path) && !strings.Contains(*f.path, "://") {
			*f.path = filepath.Join(base, *f.path) // so that every verb, from every folder, means the same
		}
	}
	if c.Audit.Dir == "" {
		c.Audit.Dir = filepath.Join(c.State, "audit")
	}
	if c.Mirror.Store == "" {
		c.Mirror.Store = filepath.Join(c.State, "store")
	}
	c.Gateway.State = c.State
	return nil
}

func defaultState() (string, error) {
	if os.Getuid() == 0 {
		return "/var/lib/headgate", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "headgate"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding a state folder: %w; set state: in the configuration", err)
	}
	return filepath.Join(home, ".local", "state", "headgate"), nil
}
