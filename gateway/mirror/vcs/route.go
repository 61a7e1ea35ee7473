package vcs

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// route is a Route with its filter and what is kept of its repositories.
type route struct {
	Route
	dir         string
	filter      *filter
	credentials *credentials
	clones      *clones
}

// openRoute starts the filter and sweeps what an earlier process left in the clones. The folder is named by the route's
// first pattern and hosts, so that another order of routes finds its clones again.
func (s *Source) openRoute(r Route) (*route, error) {
	started := &route{
		Route: r, dir: filepath.Join(s.o.Dir, "routes", folderOf(strings.Join(append([]string{r.Patterns[0]}, r.Hosts...), " "))),
		credentials: &credentials{file: r.CredentialFile, command: r.TokenCommand, path: s.path, now: s.o.Now},
	}
	if err := os.MkdirAll(started.dir, 0o700); err != nil {
		return nil, err
	}
	// Certificates are looked for here and nowhere else where the route names its CA.
	if err := os.MkdirAll(filepath.Join(started.dir, "empty"), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(started.gitconfig(), []byte(started.config()), 0o600); err != nil {
		return nil, err
	}
	var err error
	if started.clones, err = openClones(filepath.Join(started.dir, "clones")); err != nil {
		return nil, err
	}
	started.filter, err = startFilter(r.Hosts, r.Proxy)
	return started, err
}

func (r *route) gitconfig() string { return filepath.Join(r.dir, "gitconfig") }

// config is all that git reads beside a clone's own config, which the go command writes. There are no filters, hooks,
// helpers or rewrites but configured ones.
func (r *route) config() string {
	var b strings.Builder
	b.WriteString(`[core]
	hooksPath = /dev/null
	attributesFile = /dev/null
	fsmonitor = false
[transfer]
	fsckObjects = true
[fetch]
	recurseSubmodules = false
[submodule]
	recurse = false
[protocol]
	allow = never
[protocol "https"]
	allow = always
[http]
	followRedirects = false
[safe]
	bareRepository = explicit
[credential]
	helper =
[gc]
	auto = 0
[maintenance]
	auto = false
`)
	if r.SSHKeyFile != "" {
		b.WriteString("[protocol \"ssh\"]\n\tallow = always\n")
	}
	from := make([]string, 0, len(r.InsteadOf))
	for f := range r.InsteadOf {
		from = append(from, f)
	}
	sort.Strings(from)
	for _, f := range from {
		fmt.Fprintf(&b, "[url %q]\n\tinsteadOf = %s\n", r.InsteadOf[f], f)
	}
	return b.String()
}

// environment is everything that a child sees.
func (s *Source) environment(r *route, run *run) []string {
	govcs := ""
	for _, p := range r.Patterns {
		govcs += p + ":git,"
	}
	protocols := "https"
	env := []string{
		"PATH=" + s.path, "HOME=" + run.file("home"), "TMPDIR=" + run.file("tmp"), "LC_ALL=C",
		"GOPATH=" + run.file("gopath"), "GOMODCACHE=" + run.file("mod"), "GOCACHE=" + run.file("gocache"),
		"GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GO111MODULE=on", "GOFLAGS=", "CGO_ENABLED=0",
		"GOPROXY=direct", "GONOPROXY=none", "GOPRIVATE=", "GOINSECURE=", "GOSUMDB=off", "GOVCS=" + govcs + "*:off",
		"HTTPS_PROXY=" + r.filter.url(), "HTTP_PROXY=" + r.filter.url(), "NO_PROXY=",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_ATTR_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + r.gitconfig(), "GIT_TERMINAL_PROMPT=0",
		"GIT_NO_REPLACE_OBJECTS=1", "GIT_LFS_SKIP_SMUDGE=1", "GIT_OPTIONAL_LOCKS=0", "SSH_AUTH_SOCK=",
	}
	if run.secret.password != "" {
		env = append(env, "GIT_ASKPASS="+run.file("askpass"), "GOAUTH=netrc", "NETRC="+run.file("netrc"))
	} else {
		env = append(env, "GIT_ASKPASS=/bin/false", "GOAUTH=off")
	}
	if r.CAFile != "" { // git would trust the machine's as well, and read each of them in each session
		none := filepath.Join(r.dir, "empty")
		env = append(env, "SSL_CERT_FILE="+r.CAFile, "SSL_CERT_DIR="+none, "GIT_SSL_CAINFO="+r.CAFile, "GIT_SSL_CAPATH="+none)
	}
	if r.SSHKeyFile != "" {
		protocols += ":ssh"
		env = append(env, "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND=ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no"+
			" -o UserKnownHostsFile="+run.file("known_hosts")+" -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"+
			" -o IdentityFile="+run.file("key")+" -o ControlPath=none -o PermitLocalCommand=no -o ForwardAgent=no -o ClearAllForwardings=yes -o ConnectTimeout=20")
	}
	return append(env, "GIT_ALLOW_PROTOCOL="+protocols)
}
