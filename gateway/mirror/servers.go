package mirror

import (
	"fmt"
	"net/url"

	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// openUpstreams makes the client of public modules.
func (m *Mirror) openUpstreams(o Options) error {
	var hosts []upstream.Host
	for _, h := range m.cfg.UpstreamHosts {
		hosts = append(hosts, upstream.Host(h))
	}
	var err error
	m.up, err = upstream.New(upstream.Options{
		List: m.list, Hosts: hosts, RedirectHosts: m.cfg.RedirectHosts, Transport: o.Transport,
		FirstByte: o.FirstByte, Logger: o.Logger, Metrics: upstream.NewMetrics(o.Registerer),
	})
	if err != nil {
		return fmt.Errorf("opening upstreams: %w", err)
	}
	return nil
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
