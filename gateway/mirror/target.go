package mirror

import (
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// Kind is what a request asks for.
type Kind uint8

// The kinds; Query is an .info of a branch, tag or commit.
const (
	List Kind = iota + 1
	Latest
	Query
	Info
	Mod
	Zip
	Sumdb
)

var kindNames = [...]string{"", "list", "latest", "query", "info", "mod", "zip", "sumdb"}

// String gives the kind as records and policy name it.
func (k Kind) String() string { return kindNames[k] }

// Target is one thing to ask a mirror for. Path and Version are decoded.
type Target struct {
	// Path is the module path; for Sumdb that of a lookup, else empty.
	Path string
	// Version is canonical; of a Query the branch, tag or commit; of a lookup its version.
	Version string
	Kind    Kind
	// Sumdb is the name of the checksum database, Tail what is asked of it:
	// "supported", "latest", "lookup/…" or "tile/…", escaped.
	Sumdb, Tail string
}

// String gives the one escaped path that names the target.
func (t Target) String() string {
	if t.Kind == Sumdb {
		return "/sumdb/" + t.Sumdb + "/" + t.Tail
	}
	return "/" + t.upstreamPath()
}

// upstreamPath is the target's path below an upstream's URL and, for files, in the store.
func (t Target) upstreamPath() string {
	p, v := escape(t.Path), escape(t.Version)
	switch t.Kind {
	case List:
		return p + "/@v/list"
	case Latest:
		return p + "/@latest"
	case Query, Info:
		return p + "/@v/" + v + ".info"
	case Mod:
		return p + "/@v/" + v + ".mod"
	case Zip:
		return p + "/@v/" + v + ".zip"
	}
	return ""
}

// escape is module.EscapePath and EscapeVersion without their checks, which
// ParseTarget has made: it runs on every request.
func escape(s string) string {
	n := 0
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+n)
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			b = append(b, '!')
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return string(b)
}

// module gives path and version.
func (t Target) module() module.Version { return module.Version{Path: t.Path, Version: t.Version} }

// maxPath is the longest path, in bytes, that is looked at.
const maxPath = 4096

// ParseTarget reads r.URL.EscapedPath() without the base. It takes one
// spelling: nothing escaped but "!" as "%21", no empty, "." or ".." element,
// no upper case. What is spelt otherwise is ErrSpelling, what is spelt well
// but names nothing is ErrNoRoute, a checksum database that is not configured
// is ErrUnknownSumdb.
func (m *Mirror) ParseTarget(escapedPath string) (Target, error) {
	t, err := parseTarget(escapedPath, m.sumdbNames)
	if err != nil {
		return Target{}, err
	}
	return t, nil
}

func parseTarget(escaped string, sumdbs []string) (Target, error) {
	p, err := plain(escaped)
	if err != nil {
		return Target{}, err
	}
	var t Target
	if rest, ok := strings.CutPrefix(p, "sumdb/"); ok {
		t, err = parseSumdb(rest, sumdbs)
	} else {
		t, err = parseModule(p)
	}
	if err != nil {
		return Target{}, err
	}
	// Policy, cache and upstream see what String prints: it must be what was asked.
	if t.String() != "/"+p {
		return Target{}, fmt.Errorf("%w: it would be read as %s", ErrSpelling, t)
	}
	return t, nil
}

// plain checks the bytes and elements, turns %21 into ! and drops the leading slash.
func plain(escaped string) (string, error) {
	if len(escaped) > maxPath {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrSpelling, maxPath)
	}
	p, ok := strings.CutPrefix(strings.ReplaceAll(escaped, "%21", "!"), "/")
	if !ok {
		return "", fmt.Errorf("%w: no leading slash", ErrSpelling)
	}
	for i := range len(p) {
		if c := p[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("%\\?#\"<>^`{|}", c) >= 0 {
			return "", fmt.Errorf("%w: byte %d is not allowed", ErrSpelling, i+1)
		}
	}
	if p == "" {
		return "", ErrNoRoute
	}
	if !fs.ValidPath(p) { // no element is empty, "." or ".."
		return "", fmt.Errorf("%w: an element is empty or made of dots", ErrSpelling)
	}
	return p, nil
}

func parseModule(p string) (Target, error) {
	esc, file, ok := strings.Cut(p, "/@v/")
	if !ok {
		if esc, ok = strings.CutSuffix(p, "/@latest"); !ok {
			return Target{}, noMarker(p)
		}
	}
	path, err := module.UnescapePath(esc)
	if err != nil {
		return Target{}, fmt.Errorf("%w: %w", ErrSpelling, err)
	}
	switch file {
	case "":
		return Target{Path: path, Kind: Latest}, nil
	case "list":
		return Target{Path: path, Kind: List}, nil
	}
	i := strings.LastIndexByte(file, '.')
	if i < 0 {
		return Target{}, fmt.Errorf("%w: unknown file after @v", ErrSpelling)
	}
	kind := suffixKind(file[i:])
	if kind == 0 || strings.Contains(file, "/") {
		return Target{}, fmt.Errorf("%w: unknown file after @v", ErrSpelling)
	}
	version, err := module.UnescapeVersion(file[:i])
	if err != nil {
		return Target{}, fmt.Errorf("%w: %w", ErrSpelling, err)
	}
	return versioned(Target{Path: path, Version: version, Kind: kind})
}

func suffixKind(suffix string) Kind {
	switch suffix {
	case ".info":
		return Info
	case ".mod":
		return Mod
	case ".zip":
		return Zip
	}
	return 0
}

// noMarker tells a path that asks for no module file from one that gets it wrong.
func noMarker(p string) error {
	for e := range strings.SplitSeq(p, "/") {
		if strings.HasPrefix(e, "@") {
			return fmt.Errorf("%w: %s is out of place", ErrSpelling, e)
		}
	}
	return ErrNoRoute
}

// versioned decides between a file of a version and a query.
func versioned(t Target) (Target, error) {
	v := t.Version
	switch v {
	case "latest", "upgrade", "patch", "none":
		return Target{}, fmt.Errorf("%w: %s is no version", ErrNoRoute, v)
	}
	if i := strings.LastIndexByte(v, '.'); i >= 0 && suffixKind(v[i:]) != 0 {
		return Target{}, fmt.Errorf("%w: two suffixes", ErrSpelling)
	}
	canonical := module.CanonicalVersion(v) == v
	_, major, ok := module.SplitPathVersion(t.Path)
	fits := canonical && ok && module.CheckPathMajor(v, major) == nil // module.Check, but for the path, which was checked
	switch {
	case fits:
		return t, nil
	case t.Kind == Info && v[0] != '-':
		t.Kind = Query
		return t, nil
	case canonical || v[0] == '-':
		return Target{}, fmt.Errorf("%w: the version does not fit the path", ErrSpelling)
	}
	return Target{}, fmt.Errorf("%w: only a canonical version has a %s", ErrNoRoute, t.Kind)
}

// parseSumdb matches configured names as they are: a name may hold slashes.
func parseSumdb(rest string, names []string) (Target, error) {
	t := Target{Kind: Sumdb}
	for _, name := range names {
		if tail, ok := strings.CutPrefix(rest, name+"/"); ok && len(name) > len(t.Sumdb) {
			t.Sumdb, t.Tail = name, tail
		}
	}
	if t.Sumdb == "" {
		return Target{}, ErrUnknownSumdb
	}
	if t.Tail == "supported" || t.Tail == "latest" {
		return t, nil
	}
	if lookup, ok := strings.CutPrefix(t.Tail, "lookup/"); ok {
		i := strings.LastIndexByte(lookup, '@')
		if i < 0 {
			return Target{}, fmt.Errorf("%w: a lookup without version", ErrSpelling)
		}
		var err1, err2 error
		t.Path, err1 = module.UnescapePath(lookup[:i])
		t.Version, err2 = module.UnescapeVersion(lookup[i+1:])
		if err1 != nil || err2 != nil || module.Check(t.Path, t.Version) != nil {
			return Target{}, fmt.Errorf("%w: a lookup of no module version", ErrSpelling)
		}
		return t, nil
	}
	if tile, err := tlog.ParseTilePath(t.Tail); err == nil && tile.H == 8 {
		return t, nil
	}
	return Target{}, fmt.Errorf("%w: a checksum database has no such file", ErrNoRoute)
}
