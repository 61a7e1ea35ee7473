package mirror

import (
	"context"
	"fmt"
	"net/url"

	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// openUpstreams makes the client of public modules, and one that asks nobody.
func (m *Mirror) openUpstreams(o Options, metrics *upstream.Metrics) error {
	var hosts []upstream.Host
	for _, h := range m.cfg.UpstreamHosts {
		hosts = append(hosts, upstream.Host(h))
	}
	var err error
	if m.nobody, err = upstream.New(upstream.Options{}); err != nil {
		return fmt.Errorf("opening upstreams: %w", err)
	}
	m.up, err = upstream.New(upstream.Options{
		List: m.list, Hosts: hosts, RedirectHosts: m.cfg.RedirectHosts, Transport: o.Transport,
		FirstByte: o.FirstByte, Logger: o.Logger, Metrics: metrics,
	})
	if err != nil {
		return fmt.Errorf("opening upstreams: %w", err)
	}
	return nil
}

// upstream makes the client of a private route that is served by a GOPROXY server.
func (r PrivateRoute) upstream(cfg Config, o Options, metrics *upstream.Metrics) (*upstream.Client, error) {
	list, err := upstream.Parse(r.Upstream, upstream.ParseOptions{AllowHTTP: cfg.InsecureHTTP})
	if err != nil {
		return nil, err
	}
	var hosts []upstream.Host
	for _, e := range list {
		hosts = append(hosts, upstream.Host{Host: e.Host(), CredentialFile: r.CredentialFile, CAFile: r.CAFile})
	}
	return upstream.New(upstream.Options{
		List: list, Hosts: hosts, RedirectHosts: cfg.RedirectHosts, Transport: o.Transport,
		FirstByte: o.FirstByte, Logger: o.Logger, Metrics: metrics,
	})
}

// upOf is who is asked for a path that does not come from Git. A private one
// goes to its own server or to nobody.
func (m *Mirror) upOf(path string) *upstream.Client {
	if m.Visibility(path) != Private {
		return m.up
	}
	if own := m.git.upstream(path); own != nil {
		return own
	}
	return m.nobody
}

// fromGit tells whether a path is a private one that no GOPROXY server has.
func (m *Mirror) fromGit(path string) bool {
	return m.Visibility(path) == Private && m.git.upstream(path) == nil
}

// modFirst takes in the .mod of a zip that no checksum database vouches for:
// it is what the zip is held against. It comes before the zip takes a slot.
func (m *Mirror) modFirst(ctx context.Context, t Target) error {
	if t.Kind != Zip || m.Visibility(t.Path) != Private || m.fromGit(t.Path) {
		return nil
	}
	f, err := m.openFile(ctx, fileTarget(t.module(), Mod))
	if err != nil {
		return err
	}
	return f.Close()
}

// validateUpstream reports what does not go with a GOPROXY server of private modules.
func (r PrivateRoute) validateUpstream(bad func(string, ...any), key string, allowHTTP bool) {
	list, err := upstream.Parse(r.Upstream, upstream.ParseOptions{AllowHTTP: allowHTTP})
	if err != nil {
		bad("%s.upstream: %w%s", key, err, hintFor(err))
	}
	if err == nil && len(list) == 0 {
		bad("%s.upstream: is off; want a GOPROXY server, or no entry", key)
	}
	for _, e := range list {
		if r.CredentialFile != "" {
			checkCredential(bad, key, e.URL)
		}
	}
	for _, git := range []struct {
		name string
		set  bool
	}{
		{"hosts", len(r.Hosts) > 0},
		{"token_command", len(r.TokenCommand) > 0},
		{"ssh_key_file", r.SSHKeyFile != ""},
		{"known_hosts_file", r.KnownHostsFile != ""},
		{"proxy", r.Proxy != ""},
		{"instead_of", len(r.InsteadOf) > 0},
	} {
		if git.set {
			bad("%s.%s: is for Git and stands beside %s.upstream; want one of the two", key, git.name, key)
		}
	}
}

// validateUpstreamHosts wants each entry to be of use: a host that no upstream has is a typing mistake.
func (c Config) validateUpstreamHosts(bad func(string, ...any)) {
	var list upstream.List
	for _, u := range c.Upstreams {
		part, err := upstream.Parse(u, upstream.ParseOptions{AllowHTTP: c.InsecureHTTP})
		if err != nil {
			return // which has been said already
		}
		list = append(list, part...)
	}
	for i, h := range c.UpstreamHosts {
		key := fmt.Sprintf("upstream_hosts[%d]", i)
		if !isHost(h.Host) {
			bad("%s.host: %q is no host; want HOST or HOST:PORT", key, h.Host)
			continue
		}
		if h.CredentialFile == "" && h.CAFile == "" {
			bad("%s: has neither credential_file nor ca_file; want one of them, or no entry", key)
		}
		found := len(c.Upstreams) == 0 // then the machine's GOPROXY names them
		for _, e := range list {
			if !upstream.Host(h).Matches(e.URL) {
				continue
			}
			found = true
			if h.CredentialFile != "" {
				checkCredential(bad, key, e.URL)
			}
		}
		if !found {
			bad("%s.host: %q is the host of no upstream; want one of them", key, h.Host)
		}
	}
}

// checkCredential refuses to send a credential where it could be read, or beside another.
func checkCredential(bad func(string, ...any), key string, u *url.URL) {
	if u.Scheme != "https" {
		bad("%s.credential_file: would be sent over %s to %s; want an https upstream", key, u.Scheme, u.Host)
	}
	if u.User != nil {
		bad("%s.credential_file: stands beside a password in the URL of %s; want one of the two", key, u.Host)
	}
}
