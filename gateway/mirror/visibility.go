package mirror

import (
	"path"
	"strings"

	"golang.org/x/mod/module"
)

// Visibility is where a module path may be asked for.
type Visibility string

// A private path matches a private pattern; an unknown one is a proper prefix
// of such a pattern, which the go command probes as well and which would give
// the private name away; all others are public.
const (
	Public  Visibility = "public"
	Private Visibility = "private"
	Unknown Visibility = "unknown"
)

// Visibility tells where a path belongs. It is decided from configuration
// alone. Letter case is ignored: code hosts ignore it, so a private name in
// capitals is the private name.
func (m *Mirror) Visibility(modulePath string) Visibility {
	return m.routes.visibility(modulePath)
}

// routes are the patterns, in lower case.
type routes struct {
	private []string
	public  []string
}

func newRoutes(c Config) routes {
	var r routes
	for _, p := range c.Private {
		for _, pattern := range p.Patterns {
			r.private = append(r.private, strings.ToLower(strings.TrimSuffix(pattern, "/")))
		}
	}
	for _, p := range c.Public {
		r.public = append(r.public, strings.ToLower(p))
	}
	return r
}

func (r routes) visibility(modulePath string) Visibility {
	if len(r.private) == 0 {
		return Public
	}
	p := strings.ToLower(modulePath)
	for _, pub := range r.public {
		if p == pub || isPattern(pub) && module.MatchPrefixPatterns(pub, p) {
			return Public
		}
	}
	v := Public
	for _, pattern := range r.private {
		if module.MatchPrefixPatterns(pattern, p) {
			return Private
		}
		if isPrefixOf(p, pattern) {
			v = Unknown
		}
	}
	return v
}

func isPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// isPrefixOf tells whether p is a proper path-element prefix of a path that the pattern matches.
func isPrefixOf(p, pattern string) bool {
	n := strings.Count(p, "/") + 1
	elems := strings.Split(pattern, "/")
	if n >= len(elems) {
		return false
	}
	ok, err := path.Match(strings.Join(elems[:n], "/"), p)
	return ok && err == nil
}

// underCodeHost tells whether a path is too short to be a module of a host
// whose modules have a fixed number of elements: nobody needs to be asked.
func (m *Mirror) underCodeHost(modulePath string) bool {
	if modulePath == "golang.org/toolchain" {
		return false
	}
	host, _, _ := strings.Cut(modulePath, "/")
	return int64(strings.Count(modulePath, "/")+1) < m.codeHosts[host]
}
