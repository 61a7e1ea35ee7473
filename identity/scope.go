package identity

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/mod/module"
)

// everything is the pattern that matches each module path.
const everything = "*"

// A Scope is a ceiling: the module paths and the action classes that a credential
// reaches at most. The empty scope reaches nothing.
type Scope struct {
	// Modules are patterns in the syntax of GOPRIVATE: each matches a path that it
	// equals element by element, and every path below that. "*" is every path.
	Modules []string `json:"modules,omitempty"`
	// Actions are action classes: discover, metadata, content, mint, admin, audit.
	Actions []string `json:"actions,omitempty"`
}

func (s Scope) allows(target, action string) bool {
	if !slices.Contains(s.Actions, action) {
		return false
	}
	if action == ActionAdmin || action == ActionAudit || action == ActionMint {
		return true
	}
	if target == "" {
		return false
	}
	for _, p := range s.Modules {
		if p == everything || module.MatchPrefixPatterns(p, target) {
			return true
		}
	}
	return false
}

// String prints the scope as the scope parameter of RFC 6749 §3.3, which
// ParseScope reads: action classes, and patterns as "module:PATTERN".
func (s Scope) String() string {
	words := slices.Clone(s.Actions)
	for _, p := range s.Modules {
		words = append(words, "module:"+p)
	}
	return strings.Join(words, " ")
}

// ParseScope reads what String prints. A scope that names no pattern or no
// action class leaves that part empty.
func ParseScope(text string) (Scope, error) {
	var s Scope
	for _, word := range strings.Fields(text) {
		if p, ok := strings.CutPrefix(word, "module:"); ok {
			s.Modules = append(s.Modules, p)
		} else {
			s.Actions = append(s.Actions, word)
		}
	}
	return s.canonical()
}

// canonical sorts the scope and refuses what could never match or match more
// than it seems to.
func (s Scope) canonical() (Scope, error) {
	out := Scope{Modules: slices.Clone(s.Modules), Actions: slices.Clone(s.Actions)}
	for _, p := range out.Modules {
		if err := checkPattern(p); err != nil {
			return Scope{}, fmt.Errorf("reading module pattern %q: %w", p, err)
		}
	}
	known := append(slices.Clone(moduleActions), ActionMint, ActionAdmin, ActionAudit)
	for _, a := range out.Actions {
		if !slices.Contains(known, a) {
			return Scope{}, fmt.Errorf("reading action class %q: want one of %s", a, strings.Join(known, " "))
		}
	}
	slices.Sort(out.Modules)
	slices.Sort(out.Actions)
	out.Modules, out.Actions = slices.Compact(out.Modules), slices.Compact(out.Actions)
	return out, nil
}

func checkPattern(p string) error {
	if p == "" || len(p) > 256 || strings.Trim(p, "/") != p || strings.Contains(p, "//") {
		return errors.New("want elements between single slashes, at most 256 bytes")
	}
	for i := range len(p) {
		if c := p[i]; c <= ' ' || c >= 0x7f || c == ',' || c == '\\' {
			return fmt.Errorf("character %q is not allowed", c)
		}
	}
	if _, err := path.Match(p, ""); err != nil {
		return err
	}
	return nil
}

// within reports whether s reaches nothing that outer does not. It may say no to
// a pattern that a cleverer comparison would let pass, never yes to a wider one.
func (s Scope) within(outer Scope) bool {
	for _, a := range s.Actions {
		if !slices.Contains(outer.Actions, a) {
			return false
		}
	}
	for _, p := range s.Modules {
		if !slices.ContainsFunc(outer.Modules, func(q string) bool { return covers(q, p) }) {
			return false
		}
	}
	return true
}

// covers reports whether each path that inner matches is matched by outer.
func covers(outer, inner string) bool {
	o, i := strings.Split(outer, "/"), strings.Split(inner, "/")
	if len(o) > len(i) {
		return false
	}
	for n := range o {
		if o[n] == everything || o[n] == i[n] {
			continue
		}
		literal := !strings.ContainsAny(i[n], `*?[\`)
		if ok, err := path.Match(o[n], i[n]); !literal || err != nil || !ok {
			return false
		}
	}
	return true
}

// cut keeps of the scope what a class can do at all. It is applied at use, so
// that a row written under other rules gains nothing.
func (s Scope) cut(c Class) Scope {
	most := c.actions()
	s.Actions = slices.DeleteFunc(slices.Clone(s.Actions), func(a string) bool { return !slices.Contains(most, a) })
	return s
}
