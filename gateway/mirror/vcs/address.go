package vcs

import (
	"net/url"
	"strings"
)

// Address is HOST[:PORT]/PATH of a repository's URL in lower case: what its https, ssh and scp-like spellings
// (git@host:path) have in common, and how most hosts name the module at its root. It is "" for what is no such URL.
func Address(repository string) string {
	text := repository
	if !strings.Contains(text, "://") {
		host, path, ok := strings.Cut(text, ":")
		if !ok || strings.Contains(host, "/") {
			return ""
		}
		text = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	host := strings.ToLower(u.Hostname())
	if host == "" || strings.Contains(host, ":") {
		return ""
	}
	switch port := u.Port(); port {
	case "", "443", "22", "80": // the usual ones
	default:
		host += ":" + port
	}
	path := strings.ToLower(strings.Trim(u.Path, "/"))
	path = strings.Trim(strings.TrimSuffix(path, ".git"), "/")
	if path == "" || !isPlain(host) || !isPlain(path) {
		return ""
	}
	return host + "/" + path
}

// isPlain tells whether nothing in it could be read in two ways.
func isPlain(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"'\\%?#@<>", c) >= 0 {
			return false
		}
	}
	return !strings.Contains("/"+s+"/", "/../") && !strings.Contains("/"+s+"/", "/./") && !strings.Contains(s, "//")
}

// Pushed is what a Git server announces: something is new in the repository with one of these URLs. What is remembered
// of it holds no longer. It gives the module paths of the roots of its kept clones; nothing is asked.
func (s *Source) Pushed(urls []string) []string {
	wanted := map[string]bool{}
	for _, u := range urls {
		wanted[Address(u)] = true
	}
	delete(wanted, "")
	var roots []string
	for _, k := range s.kept() {
		for _, a := range k.addresses() {
			if wanted[a] {
				k.pushed.Store(true)
				roots = append(roots, k.root)
				break
			}
		}
	}
	return roots
}

// addresses are those that a repository is known by: what discovery named, and where instead_of leads.
func (k kept) addresses() []string {
	all := []string{Address(k.url)}
	for from, to := range k.route.InsteadOf {
		if rest, ok := strings.CutPrefix(k.url, from); ok {
			all = append(all, Address(to+rest))
		}
	}
	return all
}
