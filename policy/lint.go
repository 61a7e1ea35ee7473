package policy

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/semver"
)

// Lint is one thing in a bundle that is wrong, or is not what its author will have meant.
type Lint struct {
	File  string `json:"file"`
	Line  int    `json:"line"`
	Level string `json:"level"` // error, warning
	Check string `json:"check"` // stable name, such as never-holds
	Text  string `json:"text"`
	Fix   string `json:"fix"`
}

// Levels of a Lint.
const (
	LintError   = "error"
	LintWarning = "warning"
)

// soon is how many days before its end a waiver or bundle is warned of.
const soon = 14

// LintBundle reads a bundle and looks at its YAML and its own Rego for what would check and still be wrong. library is where
// `library: default` takes its Rego from. A bundle that cannot be built is told of as errors; the error is ctx's alone.
func LintBundle(ctx context.Context, fsys, library fs.FS) ([]Lint, error) {
	l := &linter{}
	b, err := readBundle(fsys, library)
	if err == nil {
		err = b.build()
	}
	if err == nil {
		err = l.rego(ctx, b)
	}
	if err == nil {
		err = l.yaml(b)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("looking at a bundle: %w", context.Cause(ctx))
	}
	if err != nil {
		for _, text := range lines(err) {
			l.broken(text)
		}
	}
	slices.SortStableFunc(l.found, func(a, b Lint) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return l.found, nil
}

type linter struct{ found []Lint }

var placeForm = regexp.MustCompile(`^([^\s:]+):(\d+): (.*)$`)

// broken is a mistake that keeps the bundle from being built.
func (l *linter) broken(text string) {
	lint := Lint{File: "bundle.yaml", Line: 1, Level: LintError, Check: "not-built", Text: text, Fix: "headgate policy test says the same"}
	if m := placeForm.FindStringSubmatch(text); m != nil {
		lint.File, lint.Text = m[1], m[3]
		lint.Line, _ = strconv.Atoi(m[2])
	}
	l.found = append(l.found, lint)
}

// A yamlLinter adds what it finds at places of one file.
type yamlLinter struct {
	*linter
	doc *document
}

// at adds a finding at a JSON pointer, or at its nearest parent that the file has.
func (l yamlLinter) at(at, level, check, text, fix string) {
	for at != "" && l.doc.lines[at] == 0 {
		at = at[:strings.LastIndexByte(at, '/')]
	}
	l.found = append(l.found, Lint{l.doc.name, max(l.doc.lines[at], 1), level, check, text, fix})
}

// yaml looks at what people edit. The files have been built, so they hold to their schemas.
func (l *linter) yaml(b *bundle) error {
	var teams teamsFile
	var rules rulesFile
	var waivers waiversFile
	var m manifest
	for _, file := range []struct {
		name, schema string
		into         any
		look         func(yamlLinter)
	}{
		{"config/teams.yaml", "teams", &teams, func(y yamlLinter) { y.teams(teams) }},
		{"config/rules.yaml", "rules", &rules, func(y yamlLinter) { y.rules(rules) }},
		{waiversName, "waivers", &waivers, func(y yamlLinter) { y.waivers(waivers, rules) }},
		{"bundle.yaml", "bundle", &m, func(y yamlLinter) { y.manifest(m) }},
	} {
		doc, err := decodeYAML(file.name, file.schema, b.files[file.name], file.into)
		if err != nil {
			return err
		}
		file.look(yamlLinter{l, doc})
	}
	return nil
}

func (l yamlLinter) manifest(m manifest) {
	if m.Expires == "" {
		return
	}
	if left := l.doc.day("/expires", m.Expires) - today(); left <= soon {
		l.at("/expires", LintWarning, "bundle-ends", fmt.Sprintf("the bundle ends in %d days; after that it is not loaded", left), "set a later day")
	}
}

func (l yamlLinter) teams(file teamsFile) {
	for name, t := range file.Teams {
		at := "/teams/" + name
		if name != everyone && len(t.Groups)+len(t.Jobs) == 0 {
			l.at(at, LintWarning, "never-holds", fmt.Sprintf("nobody is in team %s: it has neither groups nor jobs", name), "name its groups, or leave it out")
		}
		if !t.Public && len(t.Allow)+len(t.Deny) == 0 {
			l.at(at, LintWarning, "never-holds", fmt.Sprintf("team %s may use nothing and is denied nothing", name), "give it allow, public or deny")
		}
		for i, path := range t.Allow {
			for _, denied := range t.Deny {
				if within(path, denied) {
					l.at(fmt.Sprintf("%s/allow/%d", at, i), LintWarning, "never-holds", fmt.Sprintf("%s is below %s, which the same team is denied; deny wins", path, denied), "leave out one of them")
				}
			}
			for j, other := range t.Allow {
				if i != j && within(path, other) && (path != other || j < i) {
					l.at(fmt.Sprintf("%s/allow/%d", at, i), LintWarning, "shadowed", fmt.Sprintf("%s allows %s already", other, path), "leave it out")
				}
			}
		}
	}
}

// within tells whether a path is a prefix or below it, by path elements.
func within(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func (l yamlLinter) rules(file rulesFile) {
	for i, r := range file.Rules {
		at := fmt.Sprintf("/rules/%d", i)
		if r.Match.Versions != "" && emptyRange(r.Match.Versions) {
			l.at(at+"/match/versions", LintError, "never-holds", fmt.Sprintf("no version is within %q", r.Match.Versions), "turn the bounds around; alternatives are separated by ||")
		}
		if len(r.Match.Licence) > 0 && len(r.Scope.Classes) > 0 && !slices.Contains(r.Scope.Classes, "content") {
			l.at(at+"/scope/classes", LintError, "never-holds", "licences are judged at the zip alone, which is class content", "add content")
		}
		for j := range i {
			if earlier := file.Rules[j]; covers(earlier, r) {
				l.at(at, LintWarning, "shadowed", fmt.Sprintf("rule %s finds the same wherever %s does", earlier.ID, r.ID), "leave one of them out")
			}
		}
	}
}

// covers tells whether a rule finds whatever another one finds, as far as that can be seen without comparing ranges.
func covers(a, b rule) bool {
	return a.Code == b.Code && a.Effect == b.Effect && a.Remedy == b.Remedy && a.EffectiveFrom == b.EffectiveFrom &&
		(a.Match.Versions == "" || a.Match.Versions == b.Match.Versions) &&
		(a.Match.Visibility == "" || a.Match.Visibility == b.Match.Visibility) &&
		a.Match.AgeBelowDays >= b.Match.AgeBelowDays && (a.Match.AgeBelowDays > 0) == (b.Match.AgeBelowDays > 0) &&
		severityCovers(a.Match, b.Match) &&
		a.Match.Retracted == b.Match.Retracted && a.Match.Deprecated == b.Match.Deprecated && (a.Match.ScorecardBelow == nil) == (b.Match.ScorecardBelow == nil) &&
		(a.Match.ScorecardBelow == nil || *a.Match.ScorecardBelow >= *b.Match.ScorecardBelow) &&
		subset(b.Match.Licence, a.Match.Licence) && subset(b.Match.Lookalike, a.Match.Lookalike) &&
		(len(b.Match.Licence) == 0) == (len(a.Match.Licence) == 0) && (len(b.Match.Lookalike) == 0) == (len(a.Match.Lookalike) == 0) &&
		narrower(b.Match.Kind, a.Match.Kind) && narrower(b.Scope.Profiles, a.Scope.Profiles) &&
		narrower(b.Scope.Classes, a.Scope.Classes) && narrower(b.Scope.Zones, a.Scope.Zones) && below(b.Match.Prefix, a.Match.Prefix)
}

func severityCovers(a, b match) bool {
	return (a.SeverityAtLeast == "") == (b.SeverityAtLeast == "") &&
		slices.Index(severities, a.SeverityAtLeast) <= slices.Index(severities, b.SeverityAtLeast) && (!a.Fixed || b.Fixed)
}

func subset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(whole, s) })
}

// narrower is subset where an empty list means everything.
func narrower(part, whole []string) bool {
	return len(whole) == 0 || len(part) > 0 && subset(part, whole)
}

// below tells whether each prefix of one list lies below one of the other; an empty list is every path.
func below(part, whole []string) bool {
	if len(whole) == 0 {
		return true
	}
	return len(part) > 0 && !slices.ContainsFunc(part, func(p string) bool {
		return !slices.ContainsFunc(whole, func(w string) bool { return within(p, w) })
	})
}

// emptyRange tells whether no version can be within a range that the builder has parsed: whether in each alternative the
// highest lower bound lies above the lowest upper one.
func emptyRange(text string) bool {
	for part := range strings.SplitSeq(text, "||") {
		var low, high bound
		for _, word := range strings.Fields(part) {
			operand := strings.TrimLeft(word, "<>=!")
			operator, version := word[:len(word)-len(operand)], "v"+strings.TrimPrefix(operand, "v")
			if operator != "!=" && operator != "<" && operator != "<=" {
				low.sharpen(version, operator == ">", 1)
			}
			if operator != "!=" && operator != ">" && operator != ">=" {
				high.sharpen(version, operator == "<", -1)
			}
		}
		c := semver.Compare(low.version, high.version)
		if low.version == "" || high.version == "" || c < 0 || c == 0 && !low.open && !high.open {
			return false
		}
	}
	return true
}

// A bound is one end of a range. An open one leaves out its version.
type bound struct {
	version string
	open    bool
}

// sharpen makes it the sharper one of itself and another; side is 1 for a lower bound and -1 for an upper one.
func (b *bound) sharpen(version string, open bool, side int) {
	c := side * semver.Compare(version, b.version)
	if b.version == "" || c > 0 || c == 0 && open {
		b.version, b.open = version, open
	}
}

func (l yamlLinter) waivers(file waiversFile, rules rulesFile) {
	given := map[string]bool{"LOOKALIKE": true, "PATH-NOT-ALLOWED": true}
	for _, r := range rules.Rules {
		given[r.Code] = true
	}
	for i, w := range file.Waivers {
		at := fmt.Sprintf("/waivers/%d", i)
		switch left := l.doc.day(at+"/expires", w.Expires) - today(); {
		case left < 0:
			l.at(at+"/expires", LintWarning, "waiver-expired", fmt.Sprintf("waiver %s ended on %s", w.ID, w.Expires), "leave it out")
		case left <= soon:
			l.at(at+"/expires", LintWarning, "waiver-ends", fmt.Sprintf("waiver %s ends in %d days", w.ID, left), "upgrade what needs it, or ask for another")
		}
		if w.Versions != "" && emptyRange(w.Versions) {
			l.at(at+"/versions", LintError, "never-holds", fmt.Sprintf("no version is within %q", w.Versions), "turn the bounds around; alternatives are separated by ||")
		}
		for j, code := range w.Codes {
			if !given[code] {
				l.at(fmt.Sprintf("%s/codes/%d", at, j), LintWarning, "never-holds", "no rule of rules.yaml gives code "+code, "name the code as the refusal does")
			}
		}
		for j, other := range file.Waivers {
			if i == j || other.Expires < w.Expires || !forgivesAll(other, w) || forgivesAll(w, other) && other.Expires == w.Expires && j > i {
				continue
			}
			l.at(at, LintWarning, "shadowed", fmt.Sprintf("waiver %s forgives all that %s does, and as long", other.ID, w.ID), "leave it out")
			break
		}
	}
}

// forgivesAll tells whether a waiver forgives whatever another one does.
func forgivesAll(a, b waiver) bool {
	path, below := strings.CutSuffix(a.Path, "/...")
	inner := strings.TrimSuffix(b.Path, "/...")
	if inner != path && (!below || !within(inner, path)) || !below && inner != b.Path {
		return false
	}
	return (a.Versions == "" || a.Versions == b.Versions) && subset(b.Codes, a.Codes) && subset(b.Teams, a.Teams)
}
