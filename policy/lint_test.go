package policy_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// linted is what lint finds in the default files with some of them replaced, as FILE:LINE: LEVEL CHECK.
func linted(t *testing.T, files map[string]string) []string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, files)
	found, err := policy.LintBundle(t.Context(), os.DirFS(dir), policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, l := range found {
		all = append(all, fmt.Sprintf("%s:%d: %s %s", l.File, l.Line, l.Level, l.Check))
		if l.Text == "" || l.Fix == "" {
			t.Errorf("%s:%d: %s says %q, and to mend it %q", l.File, l.Line, l.Check, l.Text, l.Fix)
		}
	}
	return all
}

// onDay is a date some days from now.
func onDay(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.DateOnly) }

// rule and waiver lines after a fixed head, so that the first one is line 3 and line 2.
func rulesOf(lines ...string) map[string]string {
	return map[string]string{"config/rules.yaml": "profiles: [open, standard, strict]\nrules:\n" + strings.Join(lines, "\n") + "\n"}
}

func waiversOf(lines ...string) map[string]string {
	files := rulesOf("- {id: young, code: COOLDOWN, match: {age_below_days: 7}, effect: deny, remedy: wait}")
	files["config/waivers.yaml"] = "waivers:\n" + strings.Join(lines, "\n") + "\n"
	return files
}

func waiverLine(id, path, codes string, days int) string {
	return fmt.Sprintf("- {id: %s, path: %s, codes: [%s], teams: [everyone], reason: x, expires: %q}", id, path, codes, onDay(days))
}

func siteRule(body string) map[string]string {
	return map[string]string{"site/x.rego": "# METADATA\n# scope: package\n# title: Ours\npackage site.release\n\n" + body + "\n"}
}

const siteReason = `{"code": "SITE", "rule": "site", "effect": "deny", "remedy": "none", "severity": 3, "template": "x", "doc": "", "owner": "", "params": {}, "effective_day": 0, "available_day": 0, "upgrade_to": "", "facts": []}`

// Rego that compiles and is still wrong.
func TestLintRego(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"P5 not of a function that may be undefined": {
			siteRule("findings contains " + siteReason + " if not known(input.resource.host)\n\nknown(host) if host == \"example.com\""),
			[]string{"site/x.rego:6: error undefined-not"},
		},
		"P5 not of a function with a default": {
			siteRule("findings contains " + siteReason + " if not known(input.resource.host)\n\ndefault known(_) := false\n\nknown(host) if host == \"example.com\""), []string{},
		},
		"P5 not of a rule and of a builtin": {
			siteRule("findings contains " + siteReason + " if {\n\tnot known\n\tnot startswith(input.resource.path, \"a\")\n}\n\nknown if input.resource.host == \"example.com\""), []string{},
		},
		"input as a value": {
			siteRule("findings contains " + siteReason + " if bad(input)\n\nbad(i) if i.resource.host == \"evil.example\""),
			[]string{"site/x.rego:6: error wide-key"},
		},
		"an effect of the mode": {
			siteRule("findings contains " + siteReason + " if input.context.mode == \"whatif\""), []string{"site/x.rego:6: error mode"},
		},
		"no metadata": {
			map[string]string{"site/x.rego": "package site.release\n\nfindings contains " + siteReason + " if input.resource.host == \"evil.example\"\n"},
			[]string{"site/x.rego:3: error no-metadata"},
		},
		"metadata of the rule": {
			map[string]string{"site/x.rego": "package site.release\n\n# METADATA\n# title: Evil\nfindings contains " + siteReason + " if input.resource.host == \"evil.example\"\n"}, []string{},
		},
		"exact path": {
			siteRule("findings contains " + siteReason + " if input.resource.path == \"evil.example/m\""), []string{"site/x.rego:6: warning exact-path"},
		},
		"the subject's id at release": {
			siteRule("findings contains " + siteReason + " if input.subject.id == \"mallory\""), []string{"site/x.rego:6: error personal-key"},
		},
		"the device at release": {
			siteRule("findings contains " + siteReason + " if input.device.tier < 2"), []string{"site/x.rego:6: warning personal-key"},
		},
		"a whole struct": {
			siteRule("findings contains " + siteReason + " if object.get(input.resource.vulns, \"max_severity\", 0) > 3"), []string{"site/x.rego:6: warning wide-key"},
		},
		"Rego that does not compile": {siteRule("x := http.send({})"), []string{"site/x.rego:6: error not-built"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, linted(t, tt.files)); diff != "" {
				t.Errorf("lint (-want +got):\n%s", diff)
			}
		})
	}
}

// YAML that holds to its schema and does not do what its author will have meant.
func TestLintYAML(t *testing.T) {
	young := "- {id: young, code: COOLDOWN, match: {age_below_days: 7}, effect: deny, remedy: wait}"
	rules := func(lines ...string) map[string]string { return rulesOf(lines...) }
	for name, tt := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"nothing":                    {nil, []string{}},
		"a range turned around":      {rules("- {id: a, code: A, match: {versions: \">=2.0.0 <1.0.0\"}, effect: warn}"), []string{"config/rules.yaml:3: error never-holds"}},
		"a range of one, left out":   {rules("- {id: a, code: A, match: {versions: \">=2.0.0 <2.0.0 || >3.0.0 <=3.0.0\"}, effect: warn}"), []string{"config/rules.yaml:3: error never-holds"}},
		"a range of one":             {rules("- {id: a, code: A, match: {versions: \">=2.0.0 <=2.0.0 <4.0.0\"}, effect: warn}"), []string{}},
		"one alternative that holds": {rules("- {id: a, code: A, match: {versions: \">=2.0.0 <1.0.0 || =1.5.0\"}, effect: warn}"), []string{}},
		"licences without the zip":   {rules("- {id: a, code: A, match: {licence: [MIT]}, scope: {classes: [discover]}, effect: warn}"), []string{"config/rules.yaml:3: error never-holds"}},
		"shadowed by a wider rule":   {rules(young, "- {id: y2, code: COOLDOWN, match: {age_below_days: 3, prefix: [example.com/a]}, effect: deny, remedy: wait}"), []string{"config/rules.yaml:4: warning shadowed"}},
		"a sharper rule after it":    {rules(young, "- {id: y2, code: COOLDOWN, match: {age_below_days: 14}, effect: deny, remedy: wait}"), []string{}},
		"another effect":             {rules(young, "- {id: y2, code: COOLDOWN, match: {age_below_days: 3}, effect: warn}"), []string{}},
		"shadowed by severity":       {rules("- {id: a, code: V, match: {severity_at_least: low}, effect: warn}", "- {id: b, code: V, match: {severity_at_least: high, fixed: true}, effect: warn}"), []string{"config/rules.yaml:4: warning shadowed"}},
		"not shadowed: fixed alone":  {rules("- {id: a, code: V, match: {severity_at_least: low, fixed: true}, effect: warn}", "- {id: b, code: V, match: {severity_at_least: high}, effect: warn}"), []string{}},
		"an expired waiver":          {waiversOf(waiverLine("W-1", "example.com/a", "COOLDOWN", -1)), []string{"config/waivers.yaml:2: warning waiver-expired"}},
		"a waiver that ends soon":    {waiversOf(waiverLine("W-1", "example.com/a", "COOLDOWN", 3)), []string{"config/waivers.yaml:2: warning waiver-ends"}},
		"a waiver that covers it":    {waiversOf(waiverLine("W-1", "example.com/...", "COOLDOWN", 40), waiverLine("W-2", "example.com/a", "COOLDOWN", 30)), []string{"config/waivers.yaml:3: warning shadowed"}},
		"one that ends before it":    {waiversOf(waiverLine("W-1", "example.com/...", "COOLDOWN", 30), waiverLine("W-2", "example.com/a", "COOLDOWN", 40)), []string{}},
		"the same waiver twice":      {waiversOf(waiverLine("W-1", "example.com/a", "COOLDOWN", 30), waiverLine("W-2", "example.com/a", "COOLDOWN", 30)), []string{"config/waivers.yaml:3: warning shadowed"}},
		"a prefix is not its path":   {waiversOf(waiverLine("W-1", "example.com/a", "COOLDOWN", 40), waiverLine("W-2", "example.com/a/...", "COOLDOWN", 30)), []string{}},
		"a code that nothing gives":  {waiversOf(waiverLine("W-1", "example.com/a", "COOLDWON", 30)), []string{"config/waivers.yaml:2: warning never-holds"}},
		"a team that does not exist": {waiversOf(strings.Replace(waiverLine("W-1", "example.com/a", "COOLDOWN", 30), "everyone", "ghosts", 1)), []string{"config/waivers.yaml:2: error not-built"}},
		"a team of nobody":           {map[string]string{"config/teams.yaml": "teams:\n  a: {profile: standard, public: true}\n"}, []string{"config/teams.yaml:2: warning never-holds"}},
		"a team that may nothing":    {map[string]string{"config/teams.yaml": "teams:\n  a: {profile: standard, groups: [x]}\n"}, []string{"config/teams.yaml:2: warning never-holds"}},
		"an allow below a deny":      {map[string]string{"config/teams.yaml": "teams:\n  a:\n    profile: standard\n    groups: [x]\n    deny: [example.com/a]\n    allow: [example.com/a/b]\n"}, []string{"config/teams.yaml:6: warning never-holds"}},
		"an allow below an allow":    {map[string]string{"config/teams.yaml": "teams:\n  a: {profile: standard, groups: [x], allow: [example.com/a, example.com/a/b, example.com/ab]}\n"}, []string{"config/teams.yaml:2: warning shadowed"}},
		"a bundle that ends soon":    {map[string]string{"bundle.yaml": "name: test\nlibrary: default\nexpires: \"" + onDay(5) + "\"\n"}, []string{"bundle.yaml:3: warning bundle-ends"}},
		"P7 a boolean to some":       {map[string]string{"config/teams.yaml": "teams:\n  a: {profile: standard, public: no}\n"}, []string{"config/teams.yaml:2: error not-built"}},
		"a file that has no place":   {map[string]string{"policy.wasm": "x"}, []string{"bundle.yaml:1: error not-built"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, linted(t, tt.files)); diff != "" {
				t.Errorf("lint (-want +got):\n%s", diff)
			}
		})
	}
}

// The default bundle, whole, gives no errors to who starts from it; nor does one that init writes.
func TestLintDefault(t *testing.T) {
	found, err := policy.LintBundle(t.Context(), policies.FS, policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		t.Logf("%+v", l)
		if l.Level == policy.LintError {
			t.Errorf("%s:%d: %s: %s", l.File, l.Line, l.Check, l.Text)
		}
	}
}
