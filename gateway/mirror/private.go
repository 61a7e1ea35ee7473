package mirror

import (
	"context"
	"errors"
	"fmt"
	"go/version"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/upstream"
	"github.com/headgate/headgate/gateway/mirror/vcs"
)

// gitSource is where private modules come from.
type gitSource struct {
	*vcs.Source
	routes []gitRoute
}

// gitRoute holds patterns in lower case, and the number of their source; -1
// has none, or a GOPROXY server.
type gitRoute struct {
	patterns []string
	number   int
	up       *upstream.Client
}

// openPrivate makes a source of the routes that have hosts or an upstream.
func (m *Mirror) openPrivate(ctx context.Context, o Options, metrics *upstream.Metrics) (err error) {
	if m.cfg.Offline {
		return nil
	}
	var g gitSource
	var routes []vcs.Route
	for _, r := range m.cfg.Private {
		route := gitRoute{number: -1}
		for _, p := range r.Patterns {
			route.patterns = append(route.patterns, strings.ToLower(strings.TrimSuffix(p, "/")))
		}
		switch {
		case r.Upstream != "":
			if route.up, err = r.upstream(m.cfg, o, metrics); err != nil {
				return fmt.Errorf("opening private routes: %w", err)
			}
		case len(r.Hosts) > 0:
			route.number = len(routes)
			routes = append(routes, r.git())
		}
		g.routes = append(g.routes, route)
	}
	m.git = &g
	if len(routes) == 0 {
		return nil
	}
	g.Source, err = vcs.Open(ctx, vcs.Options{
		Dir: filepath.Join(m.local, "vcs"), Routes: routes, Go: m.cfg.GoCommand, Now: m.now, Logger: m.log,
		MaxDisk: m.cfg.VCS.RunBytes, MaxClones: m.cfg.VCS.CloneBytes, Registerer: o.Registerer,
	})
	if err != nil {
		return fmt.Errorf("opening private routes: %w", err)
	}
	return nil
}

// git is what the route is to Git.
func (r PrivateRoute) git() vcs.Route {
	return vcs.Route{
		Patterns: r.Patterns, Hosts: r.Hosts, CredentialFile: r.CredentialFile, TokenCommand: r.TokenCommand,
		SSHKeyFile: r.SSHKeyFile, KnownHostsFile: r.KnownHostsFile, CAFile: r.CAFile, Proxy: r.Proxy, InsteadOf: r.InsteadOf,
	}
}

func (g *gitSource) close() error {
	if g == nil {
		return nil
	}
	for _, r := range g.routes {
		if r.up != nil {
			r.up.Close()
		}
	}
	if g.Source == nil {
		return nil
	}
	return g.Close()
}

// route gives the source of a private path. As everywhere, letter case is ignored.
func (g *gitSource) route(path string) (number int, ok bool) {
	if r := g.match(path); r != nil {
		return r.number, r.number >= 0
	}
	return 0, false
}

// upstream gives the GOPROXY server of a private path, or nil.
func (g *gitSource) upstream(path string) *upstream.Client {
	if r := g.match(path); r != nil {
		return r.up
	}
	return nil
}

// match is the first route with a pattern that matches, or nil.
func (g *gitSource) match(path string) *gitRoute {
	if g == nil {
		return nil
	}
	p := strings.ToLower(path)
	for i, r := range g.routes {
		for _, pattern := range r.patterns {
			if module.MatchPrefixPatterns(pattern, p) {
				return &g.routes[i]
			}
		}
	}
	return nil
}

// island tells that nobody may be asked for a path. Upstreams have no say in private modules.
func (m *Mirror) island(path string) bool {
	if m.Visibility(path) != Private {
		return m.up.Island()
	}
	_, ok := m.git.route(path)
	return !ok && m.git.upstream(path) == nil
}

// sourced is route for lists: a private module without a source is what was imported of it.
func (m *Mirror) sourced(ctx context.Context, path string) error {
	err := m.route(path)
	if errors.Is(err, ErrNoPrivateSource) {
		if body, lerr := m.storedList(ctx, path); lerr == nil && len(body) > 0 {
			return nil
		}
	}
	return err
}

// renewPrivate is renew from Git: one run gives list and @latest.
func (m *Mirror) renewPrivate(ctx context.Context, t Target) (*answer, error) {
	if t.Kind == Query {
		return m.queryPrivate(ctx, t)
	}
	ch, _ := m.launch("look "+t.Path, m.cfg.FetchTimeout, func(ctx context.Context) (any, error) { return m.look(ctx, t.Path) })
	select {
	case r := <-ch:
		if r.Err != nil {
			return nil, r.Err
		}
		a := r.Val.(map[Kind]*answer)[t.Kind]
		if a == nil {
			return nil, notThere(t)
		}
		return a, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// look asks Git about a module and keeps both answers; of one that is not there, what gone says.
func (m *Mirror) look(ctx context.Context, path string) (map[Kind]*answer, error) {
	list, latest := Target{Path: path, Kind: List}, Target{Path: path, Kind: Latest}
	route, _ := m.git.route(path)
	var found *vcs.Module
	err := m.unpushed(ctx, path, func() (err error) {
		found, err = m.git.Look(ctx, route, path)
		return err
	})
	if errors.Is(err, vcs.ErrNotFound) {
		kept := map[Kind]*answer{}
		for _, t := range []Target{list, latest} {
			a, err := m.gone(ctx, t)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			kept[t.Kind] = a
		}
		return kept, nil
	}
	if err != nil {
		return nil, gitError(err)
	}
	newest, err := checkInfo(found.Latest, path)
	if err != nil {
		return nil, fmt.Errorf("%w: @latest of %s: %w", ErrUpstream, path, err)
	}
	if err := m.keepRevision(ctx, module.Version{Path: path, Version: newest}, &found.Newest); err != nil { // whoever asks for it is told
		m.log.LogAttrs(ctx, slog.LevelWarn, "files of the newest version not kept", slog.String("module", path), slog.Any("err", err))
	}
	body, err := cleanList([]byte(strings.Join(found.Versions, "\n")), path)
	if err != nil {
		return nil, fmt.Errorf("%w: list of %s: %w", ErrUpstream, path, err)
	}
	return map[Kind]*answer{List: m.renewed(ctx, list, body), Latest: m.renewed(ctx, latest, found.Latest)}, nil
}

func (m *Mirror) queryPrivate(ctx context.Context, t Target) (*answer, error) {
	route, _ := m.git.route(t.Path)
	var rev *vcs.Revision
	err := m.unpushed(ctx, t.Path, func() (err error) {
		rev, err = m.git.Stat(ctx, route, t.module())
		return err
	})
	if errors.Is(err, vcs.ErrNotFound) {
		return m.gone(ctx, t)
	}
	if err != nil {
		return nil, gitError(err)
	}
	if _, err := checkInfo(rev.Info, t.Path); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUpstream, t, err)
	}
	return m.renewed(ctx, t, rev.Info), nil
}

// fetchPrivate brings one file of a private module in. A .info and .mod come from one run, whichever was asked for.
func (m *Mirror) fetchPrivate(ctx context.Context, t Target) error {
	if t.Kind == Zip {
		return m.fetchPrivateZip(ctx, t)
	}
	ch, _ := m.launch("revision "+t.module().String(), m.cfg.FetchTimeout, func(ctx context.Context) (any, error) {
		return nil, m.takeRevision(ctx, t.module())
	})
	select {
	case r := <-ch:
		return r.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *Mirror) takeRevision(ctx context.Context, v module.Version) error {
	_, noInfo := m.private.Stat(ctx, fileTarget(v, Info).upstreamPath())
	_, noMod := m.private.Stat(ctx, fileTarget(v, Mod).upstreamPath())
	if noInfo == nil && noMod == nil {
		return nil
	}
	route, _ := m.git.route(v.Path)
	var rev *vcs.Revision
	err := m.unpushed(ctx, v.Path, func() (err error) {
		rev, err = m.git.Stat(ctx, route, v)
		return err
	})
	if err != nil {
		return gitError(err)
	}
	return m.keepRevision(ctx, v, rev)
}

// keepRevision stores .mod and .info. Of an .info the first bytes stay, since it may say more later; another .mod is a conflict.
func (m *Mirror) keepRevision(ctx context.Context, v module.Version, rev *vcs.Revision) error {
	named, err := checkInfo(rev.Info, v.Path)
	if err == nil && named != v.Version {
		err = fmt.Errorf(".info names version %q", named)
	}
	if err == nil {
		err = checkMod(rev.Mod)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUpstream, v, err)
	}
	if err := m.sameMod(ctx, v, rev.Mod); err != nil {
		return err
	}
	if err := m.private.Publish(ctx, fileTarget(v, Mod).upstreamPath(), rev.Mod); err != nil {
		return err
	}
	info := fileTarget(v, Info).upstreamPath()
	if _, err := m.private.Stat(ctx, info); err == nil {
		return nil
	}
	if err := m.private.Publish(ctx, info, rev.Info); err != nil {
		return err
	}
	return m.rewriteList(ctx, v.Path)
}

// fetchPrivateZip takes a zip in by the rules of public ones, next to the .mod of the same commit.
func (m *Mirror) fetchPrivateZip(ctx context.Context, t Target) error {
	if err := m.fetchPrivate(ctx, fileTarget(t.module(), Mod)); err != nil {
		return err
	}
	if err := m.checkGo(ctx, t.module()); err != nil {
		return err
	}
	d, err := m.private.Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	route, _ := m.git.route(t.Path)
	rev, err := m.git.Zip(ctx, route, t.module(), d)
	if err != nil {
		return gitError(err)
	}
	if err := m.keepRevision(ctx, t.module(), rev); err != nil { // the tag may have moved meanwhile
		return err
	}
	h1, err := m.checkZip(ctx, d.File(), t.module(), sums{})
	if err != nil {
		return m.opening(err)
	}
	return m.publishZip(ctx, d, t, h1)
}

// checkGo wants a go command that is not older than the go line of a stored
// .mod: an older one refuses to make the zip, or would make another one.
func (m *Mirror) checkGo(ctx context.Context, v module.Version) error {
	b, err := m.private.Read(ctx, fileTarget(v, Mod).upstreamPath(), maxMod)
	if err != nil {
		return err
	}
	f, err := modfile.ParseLax("go.mod", b, nil)
	if err != nil || f.Go == nil {
		return err
	}
	if have := m.git.GoVersion(); version.IsValid("go"+f.Go.Version) && version.Compare("go"+f.Go.Version, have) > 0 {
		return &GoVersionError{Module: v, Want: f.Go.Version, Have: strings.TrimPrefix(have, "go")}
	}
	return nil
}

// gitError says an error of Git in our words. What is not known to be absence or slowness is trouble.
func gitError(err error) error {
	switch {
	case errors.Is(err, vcs.ErrNotFound):
		return fmt.Errorf("%w: %w", upstream.ErrNotFound, err)
	case errors.Is(err, vcs.ErrTimeout):
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	// The text alone: a file missing on the way must not look like a missing module.
	return fmt.Errorf("%w: %s", ErrUpstream, err.Error())
}

// validate reports every mistake in a route but its patterns.
func (r PrivateRoute) validate(bad func(string, ...any), key string) {
	if len(r.Hosts) == 0 {
		for name, set := range map[string]bool{
			"credential_file": r.CredentialFile != "", "token_command": len(r.TokenCommand) > 0, "ssh_key_file": r.SSHKeyFile != "",
			"known_hosts_file": r.KnownHostsFile != "", "ca_file": r.CAFile != "", "proxy": r.Proxy != "", "instead_of": len(r.InsteadOf) > 0,
		} {
			if set {
				bad("%s.%s: is of no use without %s.hosts; want the Git hosts of this route", key, name, key)
			}
		}
		return
	}
	for i, h := range r.Hosts {
		if !isHost(h) {
			bad("%s.hosts[%d]: %q is no host; want HOST or HOST:PORT", key, i, h)
		}
	}
	if r.CredentialFile != "" && len(r.TokenCommand) > 0 {
		bad("%s.token_command: stands beside credential_file; want one of the two", key)
	}
	if (r.SSHKeyFile == "") != (r.KnownHostsFile == "") {
		bad("%s.known_hosts_file: names only one of ssh_key_file and known_hosts_file; want both, or neither", key)
	}
	if len(r.TokenCommand) > 0 && !filepath.IsAbs(r.TokenCommand[0]) {
		bad("%s.token_command: %q is not an absolute path", key, r.TokenCommand[0])
	}
	if u, err := url.Parse(r.Proxy); r.Proxy != "" && (err != nil || u.Scheme != "http" || u.Port() == "" || u.User != nil) {
		bad("%s.proxy: is no address of a proxy; want http://HOST:PORT", key)
	}
	for from, to := range r.InsteadOf {
		u, err := url.Parse(to)
		if err != nil || u.Scheme != "https" && u.Scheme != "ssh" || !isHost(u.Host) || strings.ContainsAny(from+to, "\"\\\n\r\t #;") || from == "" {
			bad("%s.instead_of: %q is no beginning of a repository URL; want https:// or ssh:// and a host", key, to)
		} else if _, secret := u.User.Password(); secret {
			bad("%s.instead_of: has a password in a URL; want credential_file", key)
		}
	}
}

func isHost(h string) bool {
	name := h
	if host, port, err := net.SplitHostPort(h); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
		name = host
	}
	if name == "" {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return name[0] != '-'
}
