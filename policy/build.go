package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// The builder turns the YAML that people edit into the index that Rego reads: maps by path prefix, sets by name, dates as
// day numbers, ranges as comparisons. The shape of the index is a matter between this file and the library alone.

type manifest struct {
	Name     string   `yaml:"name"`
	Library  string   `yaml:"library"`
	Sequence int      `yaml:"sequence"` // rises with each release, where the source is a tag
	Owners   []string `yaml:"owners"`
	Expires  string   `yaml:"expires"`
	// ReplayRefusals is how many recorded decisions that allowed may be refused by this revision; nil: a hundredth of them.
	ReplayRefusals *int `yaml:"replay_refusals"`
}

type teamsFile struct {
	Teams map[string]team `yaml:"teams"`
}

type team struct {
	Profile string   `yaml:"profile"`
	Groups  []string `yaml:"groups"`
	Jobs    []string `yaml:"jobs"`
	Allow   []string `yaml:"allow"`
	Deny    []string `yaml:"deny"`
	Public  bool     `yaml:"public"`
	Device  struct {
		Proof   []string `yaml:"proof"`
		MinTier int      `yaml:"min_tier"`
	} `yaml:"device"`
}

type rulesFile struct {
	Profiles   []string `yaml:"profiles"`
	Toolchains []struct {
		Versions string   `yaml:"versions"`
		Profiles []string `yaml:"profiles"`
	} `yaml:"toolchains"`
	WaiverDays map[string]int `yaml:"waiver_days"` // longest life of a waiver, by profile
	Rules      []rule         `yaml:"rules"`
}

type rule struct {
	ID            string `yaml:"id"`
	Code          string `yaml:"code"`
	Match         match  `yaml:"match"`
	Scope         scope  `yaml:"scope"`
	Effect        string `yaml:"effect"`
	Remedy        string `yaml:"remedy"`
	EffectiveFrom string `yaml:"effective_from"`
	Owner         string `yaml:"owner"`
	Text          string `yaml:"text"`
	Doc           string `yaml:"doc"`
}

type match struct {
	Prefix          []string `yaml:"prefix"`
	Versions        string   `yaml:"versions"`
	Visibility      string   `yaml:"visibility"`
	Kind            []string `yaml:"kind"`
	AgeBelowDays    int      `yaml:"age_below_days"`
	SeverityAtLeast string   `yaml:"severity_at_least"`
	Fixed           bool     `yaml:"fixed"`
	Licence         []string `yaml:"licence"`
	Retracted       bool     `yaml:"retracted"`
	Deprecated      bool     `yaml:"deprecated"`
	Lookalike       []string `yaml:"lookalike"`
	ScorecardBelow  *int     `yaml:"scorecard_below"`
}

type scope struct {
	Profiles []string `yaml:"profiles"`
	Classes  []string `yaml:"classes"`
	Zones    []string `yaml:"zones"`
}

type waiversFile struct {
	Waivers []waiver `yaml:"waivers"`
}

type waiver struct {
	ID          string   `yaml:"id"`
	Path        string   `yaml:"path"`
	Versions    string   `yaml:"versions"`
	Codes       []string `yaml:"codes"`
	Teams       []string `yaml:"teams"`
	Reason      string   `yaml:"reason"`
	Ticket      string   `yaml:"ticket"`
	RequestedBy string   `yaml:"requested_by"`
	ApprovedBy  string   `yaml:"approved_by"`
	Created     string   `yaml:"created"`
	Expires     string   `yaml:"expires"`
}

// indexVersion is the shape of the index. The library refuses to decide over another one: after an upgrade, an archive or
// a repository may hold a library that would look for rules where they no longer are.
const indexVersion = 1

// severities are the words for a severity, by its number.
var severities = []string{"none", "low", "medium", "high", "critical"}

// everyone is the team of every authenticated subject.
const everyone = "everyone"

func parseManifest(content []byte) (manifest, error) {
	var m manifest
	doc, err := decodeYAML("bundle.yaml", "bundle", content, &m)
	if err != nil {
		return m, err
	}
	if m.Expires != "" {
		if day := doc.day("/expires", m.Expires); doc.err() == nil && today() > day {
			doc.wrong("/expires", "bundle expired on %s", m.Expires)
		}
	}
	return m, doc.err()
}

// today is the only look at a clock: a bundle that has expired is not loaded.
func today() int { return int(time.Now().Unix() / 86400) }

// index is what the builder collects for Rego, as plain values.
type index map[string]any

func buildIndex(files map[string][]byte) (index, error) {
	var teams teamsFile
	var rules rulesFile
	var waivers waiversFile
	teamsDoc, err1 := decodeYAML("config/teams.yaml", "teams", files["config/teams.yaml"], &teams)
	rulesDoc, err2 := decodeYAML("config/rules.yaml", "rules", files["config/rules.yaml"], &rules)
	waiversDoc, err3 := decodeYAML("config/waivers.yaml", "waivers", files["config/waivers.yaml"], &waivers)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	ix := index{"version": indexVersion, "profiles": rules.Profiles}
	ix.addTeams(teamsDoc, teams, rules.Profiles)
	ix.addRules(rulesDoc, rules)
	for profile := range rules.WaiverDays {
		if !slices.Contains(rules.Profiles, profile) {
			rulesDoc.wrong("/waiver_days/"+profile, "profile %q is not one of: %s", profile, strings.Join(rules.Profiles, ", "))
		}
	}
	ix.addToolchains(rulesDoc, rules)
	ix.addWaivers(waiversDoc, waivers, teams)
	waivers.within(waiversDoc, rules.WaiverDays, teams)
	return ix, errors.Join(teamsDoc.err(), rulesDoc.err(), waiversDoc.err())
}

func (ix index) addTeams(doc *document, file teamsFile, profiles []string) {
	teams := map[string]any{}
	groups, jobs, allow, deny := map[string][]string{}, map[string][]string{}, map[string][]string{}, map[string][]string{}
	for name, t := range file.Teams {
		at := "/teams/" + name
		rank := slices.Index(profiles, t.Profile)
		if rank < 0 {
			doc.wrong(at+"/profile", "profile %q is not one of rules.yaml: %s", t.Profile, strings.Join(profiles, ", "))
		}
		if name == everyone && len(t.Groups)+len(t.Jobs) > 0 {
			doc.wrong(at, "team everyone is every authenticated subject; it has no groups and no jobs")
		}
		proof := t.Device.Proof
		if len(proof) == 0 {
			proof = proofs
		}
		teams[name] = map[string]any{
			"profile": t.Profile, "rank": rank, "public": t.Public,
			"device": map[string]any{"proof": set(proof), "min_tier": t.Device.MinTier},
		}
		for _, list := range []struct {
			of   []string
			into map[string][]string
		}{{t.Groups, groups}, {t.Jobs, jobs}, {t.Allow, allow}, {t.Deny, deny}} {
			for _, key := range list.of {
				list.into[canonical(key)] = append(list.into[canonical(key)], name)
			}
		}
	}
	ix["teams"], ix["groups"], ix["jobs"], ix["allow"], ix["deny"] = teams, groups, jobs, allow, deny
}

func (ix index) addRules(doc *document, file rulesFile) {
	concerns := map[string]any{}
	for _, concern := range []string{"path", "cooldown", "vulns", "scorecard", "licence", "retracted", "deprecated", "lookalike"} {
		concerns[concern] = map[string]any{"all": []any{}, "prefix": map[string][]any{}}
	}
	ids := map[string]bool{}
	for i, r := range file.Rules {
		at := fmt.Sprintf("/rules/%d", i)
		if ids[r.ID] {
			doc.wrong(at+"/id", "rule %q stands twice", r.ID)
		}
		ids[r.ID] = true
		for _, profile := range r.Scope.Profiles {
			if !slices.Contains(file.Profiles, profile) {
				doc.wrong(at+"/scope/profiles", "profile %q is not one of: %s", profile, strings.Join(file.Profiles, ", "))
			}
		}
		says, ok := r.Match.concern(doc, at+"/match")
		if !ok {
			continue
		}
		entry := ruleEntry(doc, at, r, says, file.Profiles)
		concern := concerns[says.name].(map[string]any)
		if len(r.Match.Prefix) == 0 {
			concern["all"] = append(concern["all"].([]any), entry)
		}
		byPrefix := concern["prefix"].(map[string][]any)
		for _, prefix := range outermost(r.Match.Prefix) {
			byPrefix[prefix] = append(byPrefix[prefix], entry)
		}
	}
	ix["rules"] = concerns
}

// outermost leaves out prefixes that lie below another one of the list, so that a rule is found once for a path.
func outermost(prefixes []string) []string {
	var kept []string
	for _, p := range prefixes {
		if !slices.ContainsFunc(prefixes, func(q string) bool { return strings.HasPrefix(p, q+"/") }) && !slices.Contains(kept, p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// concern is what a rule says about versions, with the value that Rego compares and the text of its findings.
type concern struct {
	name  string
	value any
	text  string
}

// concern finds the one thing that a match says about versions beside where it applies.
func (m match) concern(doc *document, at string) (concern, bool) {
	var all []concern
	if m.AgeBelowDays > 0 {
		all = append(all, concern{"cooldown", m.AgeBelowDays, "first seen {age} days ago, profile {profile} waits for {days}"})
	}
	if m.SeverityAtLeast != "" {
		severity := slices.Index(severities, m.SeverityAtLeast)
		all = append(all, concern{"vulns", severity, "{id} is of severity {severity}, fixed in {fixed}"})
	} else if m.Fixed {
		doc.wrong(at+"/fixed", "fixed goes with severity_at_least")
	}
	if len(m.Licence) > 0 {
		all = append(all, concern{"licence", set(m.Licence), "its licence is {licence}"})
	}
	if m.Retracted {
		all = append(all, concern{"retracted", true, "retracted by its author: {text}"})
	}
	if m.Deprecated {
		all = append(all, concern{"deprecated", true, "deprecated by its author: {text}"})
	}
	if len(m.Lookalike) > 0 {
		all = append(all, concern{"lookalike", set(m.Lookalike), "its name can be mistaken for {of}"})
	}
	if m.ScorecardBelow != nil {
		all = append(all, concern{"scorecard", *m.ScorecardBelow, "its scorecard is {score}, below {below}"})
	}
	switch len(all) {
	case 0:
		return concern{"path", true, "rule {rule} of profile {profile} forbids this version"}, true
	case 1:
		return all[0], true
	}
	doc.wrong(at, "says more than one thing about versions (%s and %s); make a rule of each", all[0].name, all[1].name)
	return concern{}, false
}

// ruleEntry is one rule in the index: where it applies, each part as a set to look up, and what it finds.
func ruleEntry(doc *document, at string, r rule, says concern, profiles []string) map[string]any {
	text := first(r.Text, says.text)
	severity, effective := 1, 0
	if r.Effect == "deny" {
		severity = 3
		if r.EffectiveFrom != "" {
			effective = doc.day(at+"/effective_from", r.EffectiveFrom)
		}
	} else if r.EffectiveFrom != "" {
		doc.wrong(at+"/effective_from", "goes with effect deny: before that day the finding is a warning")
	}
	if r.Effect == "deny" && r.Remedy == "wait" && says.name == "path" {
		doc.wrong(at+"/remedy", "wait wants a day or a fact to wait for, which this rule has not; want none or waiver")
	}
	visible := []string{"public", "private", "unknown"}
	if r.Match.Visibility != "" {
		visible = []string{r.Match.Visibility}
	}
	return map[string]any{
		"profiles":     set(orAll(r.Scope.Profiles, profiles)),
		"classes":      set(orAll(r.Scope.Classes, []string{"discover", "content"})),
		"zones":        set(orAll(r.Scope.Zones, zones)),
		"visibilities": set(visible),
		"kinds":        set(orAll(r.Match.Kind, kinds)),
		"types":        set([]string{"go-module"}),
		"versions":     doc.versions(at+"/match/versions", r.Match.Versions, ""),
		"value":        says.value,
		"fixed":        r.Match.Fixed,
		"finding": map[string]any{
			"code": r.Code, "rule": r.ID, "effect": r.Effect, "remedy": r.Remedy, "severity": severity,
			"template": text, "doc": r.Doc, "owner": r.Owner, "effective_day": effective,
		},
	}
}

func (ix index) addToolchains(doc *document, file rulesFile) {
	list := []any{}
	for i, t := range file.Toolchains {
		at := fmt.Sprintf("/toolchains/%d", i)
		list = append(list, map[string]any{
			"profiles": set(orAll(t.Profiles, file.Profiles)),
			// A toolchain's module version is v0.0.1-goX.Y.Z.OS-ARCH, and its order as a prerelease is that of Go releases.
			"versions": doc.versions(at+"/versions", t.Versions, "v0.0.1-go"),
		})
	}
	ix["toolchains"] = list
}

func (ix index) addWaivers(doc *document, file waiversFile, teams teamsFile) {
	waivers := map[string]any{}
	paths, prefixes := map[string]map[string][]string{}, map[string]map[string][]string{}
	for i, w := range file.Waivers {
		at := fmt.Sprintf("/waivers/%d", i)
		if waivers[w.ID] != nil {
			doc.wrong(at+"/id", "waiver %q stands twice", w.ID)
		}
		for _, name := range w.Teams {
			if _, known := teams.Teams[name]; !known {
				doc.wrong(at+"/teams", "team %q is not in teams.yaml", name)
			}
		}
		if w.ApprovedBy != "" && w.ApprovedBy == w.RequestedBy {
			doc.wrong(at+"/approved_by", "%s asked for this waiver and cannot approve it", w.ApprovedBy)
		}
		expires := doc.day(at+"/expires", w.Expires)
		if w.Created != "" && doc.day(at+"/created", w.Created) > expires {
			doc.wrong(at+"/expires", "waiver expires before it was created")
		}
		waivers[w.ID] = map[string]any{
			"codes": set(w.Codes), "teams": w.Teams, "expires_day": expires,
			"versions": doc.versions(at+"/versions", w.Versions, ""),
		}
		into, path := paths, w.Path
		if prefix, below := strings.CutSuffix(w.Path, "/..."); below {
			into, path = prefixes, prefix
		}
		if into[path] == nil {
			into[path] = map[string][]string{}
		}
		into[path][w.ID] = w.Teams
	}
	ix["waivers"], ix["waived_paths"], ix["waived_prefixes"] = waivers, paths, prefixes
}

// within holds each waiver to the shortest life that the profiles of its teams allow, counted from the day it was made.
func (file waiversFile) within(doc *document, days map[string]int, teams teamsFile) {
	for i, w := range file.Waivers {
		at := fmt.Sprintf("/waivers/%d", i)
		for _, name := range w.Teams {
			profile := teams.Teams[name].Profile
			most, limited := days[profile]
			switch {
			case !limited:
			case w.Created == "":
				doc.wrong(at, "waiver %s has no created; profile %s of team %s allows %d days from then on", w.ID, profile, name, most)
			case doc.day(at+"/expires", w.Expires)-doc.day(at+"/created", w.Created) > most:
				doc.wrong(at+"/expires", "is more than %d days after %s, which is what profile %s of team %s allows", most, w.Created, profile, name)
			}
		}
	}
}

// day is a quoted date as a number of UTC days since 1970-01-01.
func (d *document) day(at, date string) int {
	t, err := time.Parse(time.DateOnly, date)
	if err != nil {
		d.wrong(at, "%q is no date; want \"YYYY-MM-DD\"", date)
		return 0
	}
	return int(t.Unix() / 86400)
}

// signs are the results of comparing a version with the operand that each operator accepts.
var signs = map[string][]int{"=": {0}, "==": {0}, "!=": {-1, 1}, "<": {-1}, "<=": {-1, 0}, ">": {1}, ">=": {0, 1}}

// versions parses a range: comparisons that must all hold, alternatives separated by ||. Absent is an empty list.
func (d *document) versions(at, text, prefix string) []any {
	alternatives := []any{}
	if text == "" {
		return alternatives
	}
	for part := range strings.SplitSeq(text, "||") {
		comparisons := []any{}
		for _, word := range strings.Fields(part) {
			operand := strings.TrimLeft(word, "<>=!")
			operator := first(word[:len(word)-len(operand)], "=")
			version := "v" + strings.TrimPrefix(operand, "v")
			if signs[operator] == nil || !semver.IsValid(version) {
				d.wrong(at, "%q is no comparison with a version; want for example \">=1.5.0 <1.6.0 || =1.7.1\"", word)
				continue
			}
			version = semver.Canonical(version)
			if prefix != "" {
				version = prefix + version[1:]
			}
			comparisons = append(comparisons, map[string]any{"version": version, "signs": signs[operator]})
		}
		if len(comparisons) == 0 {
			d.wrong(at, "%q has an empty alternative", text)
		}
		alternatives = append(alternatives, comparisons)
	}
	return alternatives
}

func set(names []string) map[string]bool {
	s := make(map[string]bool, len(names))
	for _, name := range names {
		s[canonical(name)] = true
	}
	return s
}

func orAll(names, all []string) []string {
	if len(names) > 0 {
		return names
	}
	return all
}
