package policy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// TestYAML holds mistakes in the YAML that teams edit: each is rejected and named with file and line.
func TestYAML(t *testing.T) {
	team := func(lines string) map[string]string {
		return map[string]string{"config/teams.yaml": "teams:\n  everyone: {profile: standard, public: true}\n  a:\n    profile: strict\n" + lines}
	}
	rule := func(lines string) map[string]string {
		return map[string]string{"config/rules.yaml": "profiles: [open, standard, strict]\nrules:\n  - id: r\n    code: RULE\n    effect: deny\n    remedy: none\n" + lines}
	}
	waiver := func(lines string) map[string]string {
		return map[string]string{"config/waivers.yaml": "waivers:\n  - id: W\n    path: example.com/m\n    teams: [everyone]\n    reason: read\n" + lines}
	}
	ceiling := func(days string) map[string]string {
		return map[string]string{
			"config/teams.yaml":   "teams:\n  everyone: {profile: standard, public: true}\n  a: {profile: strict, groups: [g]}\n",
			"config/rules.yaml":   "profiles: [standard, strict]\nwaiver_days: {strict: 90}\nrules: []\n",
			"config/waivers.yaml": "waivers:\n  - {id: W, path: a, codes: [R], teams: [everyone, a], reason: r, " + days + "}\n",
		}
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"P7 no for a boolean", team("    public: no\n"), "config/teams.yaml:5: no is a boolean to some parsers"},
		{"P7 off for a boolean", team("    public: off\n"), "config/teams.yaml:5: off is a boolean"},
		{"P7 Yes for a boolean", team("    public: Yes\n"), "config/teams.yaml:5: Yes is a boolean"},
		{"P7 no as a group", team("    groups: [no]\n"), "config/teams.yaml:5: no is a boolean"},
		{"P7 unquoted 1.10", rule("    match: {versions: 1.10}\n"), "config/rules.yaml:7: rules.0.match.versions: got number, want string"},
		{"P7 null", team("    groups: null\n"), "config/teams.yaml:5: teams.a.groups: got null, want array"},
		{"P7 nothing", team("    groups:\n"), "config/teams.yaml:5: teams.a.groups: got null, want array"},
		{"P7 string for a boolean", team("    public: \"true\"\n"), "config/teams.yaml:5: teams.a.public: got string, want boolean"},
		{"P7 number as a group", team("    groups: [12]\n"), "config/teams.yaml:5: teams.a.groups.0: got number, want string"},
		{"P7 unknown key", team("    pubic: true\n"), "config/teams.yaml:5: teams.a: additional properties 'pubic' not allowed"},
		{"P7 key twice", team("    public: true\n    public: false\n"), "config/teams.yaml:6: key \"public\" stands twice"},
		{"P7 unquoted date", waiver("    codes: [RULE]\n    expires: 2027-02-03\n"), "config/waivers.yaml:7: date 2027-02-03 is not quoted"},
		{"P7 anchor", team("    groups: &g [x]\n"), "config/teams.yaml:5: anchors"},
		{"P7 tag", team("    public: !!bool true\n"), "config/teams.yaml:5: tag"},
		{"P7 two documents", team("---\nteams: {}\n"), "config/teams.yaml: holds more than one document"},
		{"P7 not YAML", team("   groups: ]\n"), "config/teams.yaml: yaml:"},
		{"P7 empty file", map[string]string{"config/teams.yaml": "\n"}, "config/teams.yaml"},
		{"P8 no such day", waiver("    codes: [RULE]\n    expires: \"2027-02-29\"\n"), "config/waivers.yaml:7: \"2027-02-29\" is no date"},
		{"two mistakes, both named", team("    public: no\n    groups: [on]\n"), "config/teams.yaml:6: on is a boolean"},
		{"unknown profile of a team", team("    profile2: x\n"), "config/teams.yaml:5: teams.a"},
		{"group of everyone", map[string]string{"config/teams.yaml": "teams:\n  everyone: {profile: standard, groups: [x]}\n"}, "config/teams.yaml:2: team everyone"},
		{"profile that rules.yaml has not", map[string]string{"config/teams.yaml": "teams:\n  everyone: {profile: lax}\n"}, "config/teams.yaml:2: profile \"lax\""},
		{"T33 prefix with a slash at its end", team("    deny: [example.com/a/]\n"), "config/teams.yaml:5: teams.a.deny.0"},
		{"T33 prefix with a star", team("    deny: [\"example.com/*\"]\n"), "config/teams.yaml:5: teams.a.deny.0"},
		{"rule says two things", rule("    match: {retracted: true, age_below_days: 7}\n"), "config/rules.yaml:7: says more than one thing"},
		{"rule with a bad range", rule("    match: {versions: \">=1.x\"}\n"), "config/rules.yaml:7: \">=1.x\" is no comparison"},
		{"rule with an empty alternative", rule("    match: {versions: \">=1.0.0 ||\"}\n"), "config/rules.yaml:7: \">=1.0.0 ||\" has an empty alternative"},
		{"rule with an unknown profile", rule("    match: {}\n    scope: {profiles: [lax]}\n"), "config/rules.yaml:8: profile \"lax\""},
		{"rule that waits for nothing", map[string]string{"config/rules.yaml": "profiles: [standard]\nrules:\n  - {id: r, code: R, match: {}, effect: deny, remedy: wait}\n"}, "config/rules.yaml:3: wait wants a day"},
		{"deny without remedy", map[string]string{"config/rules.yaml": "profiles: [standard]\nrules:\n  - {id: r, code: R, match: {}, effect: deny}\n"}, "config/rules.yaml:3: rules.0: missing property 'remedy'"},
		{"rule twice", rule("    match: {}\n  - {id: r, code: R, match: {}, effect: warn}\n"), "config/rules.yaml:8: rule \"r\" stands twice"},
		{"waiver for malware", waiver("    codes: [MALWARE]\n    expires: \"2027-02-03\"\n"), "config/waivers.yaml:6: waivers.0.codes.0"},
		{"waiver for a checksum mismatch", waiver("    codes: [SUMDB-MISMATCH]\n    expires: \"2027-02-03\"\n"), "config/waivers.yaml:6: waivers.0.codes.0"},
		{"waiver for a moved origin", waiver("    codes: [ORIGIN-MOVED]\n    expires: \"2027-02-03\"\n"), "config/waivers.yaml:6: waivers.0.codes.0"},
		{"waiver without an end", waiver("    codes: [RULE]\n"), "config/waivers.yaml:2: waivers.0: missing property 'expires'"},
		{"waiver without codes", waiver("    expires: \"2027-02-03\"\n"), "config/waivers.yaml:2: waivers.0: missing property 'codes'"},
		{"waiver approved by who asked", waiver("    codes: [RULE]\n    requested_by: al\n    approved_by: al\n    expires: \"2027-02-03\"\n"), "config/waivers.yaml:8: al asked"},
		{"waiver for an unknown team", map[string]string{"config/waivers.yaml": "waivers:\n  - {id: W, path: a, codes: [R], teams: [x], reason: r, expires: \"2027-02-03\"}\n"}, "config/waivers.yaml:2: team \"x\""},
		{"waiver longer than its profile allows", ceiling("created: \"2027-01-01\", expires: \"2027-04-02\""), "config/waivers.yaml:2: is more than 90 days after 2027-01-01, which is what profile strict of team a allows"},
		{"waiver without a beginning, under a ceiling", ceiling("expires: \"2027-01-02\""), "config/waivers.yaml:2: waiver W has no created"},
		{"ceiling of an unknown profile", map[string]string{"config/rules.yaml": "profiles: [standard]\nwaiver_days:\n  lax: 3\nrules: []\n"}, "config/rules.yaml:3: profile \"lax\""},
		{"P21 expired bundle", map[string]string{"bundle.yaml": "name: a\nlibrary: default\nexpires: \"2020-01-01\"\n"}, "bundle.yaml:3: bundle expired"},
		{"P11 YAML nested 200 deep", team("    groups: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "\n"), "config/teams.yaml:5: is nested deeper"},
		{"P11 file of 2 MiB", team("    groups: [" + strings.Repeat("x", 2<<20) + "]\n"), "config/teams.yaml: is larger than"},
		{"rules.yaml is gone", map[string]string{"config/rules.yaml": ""}, "config/rules.yaml: is missing"},
		{"bundle.yaml is gone", map[string]string{"bundle.yaml": ""}, "bundle.yaml: is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if why := rejected(t, tt.files); !strings.Contains(why, tt.want) {
				t.Errorf("rejected with %q, want %q", why, tt.want)
			}
		})
	}
}

// TestRoots holds what a bundle may define, and where.
func TestRoots(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  string
	}{
		"P18 system":                      {map[string]string{"site/x.rego": "package system.authz\n\nallow := true\n"}, "site/x.rego"},
		"P18 library package in site":     {map[string]string{"site/x.rego": "package headgate.access\n\nx := true\n"}, "site/x.rego"},
		"P18 library file beside default": {map[string]string{"access/more.rego": "package headgate.access\n\nx := true\n"}, "access/more.rego: Rego outside site/"},
		"P18 package outside the roots":   {map[string]string{"site/x.rego": "package corp\n\nx := true\n"}, "site/x.rego"},
		"P18 package over the index":      {map[string]string{"site/x.rego": "package config\n\nteams := {}\n"}, "site/x.rego"},
		"P18 data file":                   {map[string]string{"site/data.json": "{}"}, "site/data.json: has no place"},
		"P18 data file in config":         {map[string]string{"config/data.yaml": "a: 1\n"}, "config/data.yaml: has no place"},
		"P18 Rego at the top":             {map[string]string{"x.rego": "package headgate\n"}, "x.rego"},
		"P18 .manifest with roots":        {map[string]string{"site/manifest.json": "{}"}, "site/manifest.json"},
		"P23 compiled policy":             {map[string]string{"policy.wasm": "x"}, "policy.wasm: has no place"},
		"P23 case twins":                  {map[string]string{"site/a.rego": "package site\n", "site/A.rego": "package site\n"}, "only by case"},
		"another YAML is not ignored":     {map[string]string{"config/rules.yml": "rules: []\n"}, "config/rules.yml: has no place"},
		"binary Rego":                     {map[string]string{"site/a.rego": "package site\n\xff\xfe"}, "site/a.rego: is not UTF-8"},
		"Rego v0":                         {map[string]string{"site/a.rego": "package site\n\nx { true }\n"}, "site/a.rego"},
	} {
		t.Run(name, func(t *testing.T) {
			if why := rejected(t, tt.files); !strings.Contains(why, tt.want) {
				t.Errorf("rejected with %q, want %q", why, tt.want)
			}
		})
	}
	t.Run("P23 symlink", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, nil)
		if err := os.MkdirAll(filepath.Join(dir, "site"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "site", "a.rego")); err != nil {
			t.Fatal(err)
		}
		if r := open(t, dir, policy.Options{}).Status().Rejection; r == nil || !strings.Contains(r.Reason, "site/a.rego: is no regular file") {
			t.Errorf("Rejection = %+v, want the symlink", r)
		}
	})
	t.Run("site adds a reason", func(t *testing.T) {
		g := load(t, map[string]string{"site/friday/x.rego": `package site.access

findings contains {
	"code": "SITE", "rule": "friday", "remedy": "waiver", "severity": 2, "doc": "", "params": {}, "template": "not today",
} if input.resource.host == "example.com"
`})
		if d := ask(t, g, person("example.com/m", "public"), version("example.com/m", "v1.0.0")); d.Effect != policy.Deny || d.Codes[0] != "SITE" {
			t.Errorf("decision = %+v, want SITE", d)
		}
	})
	t.Run("P3 site finding that lacks fields", func(t *testing.T) {
		for _, entry := range []string{"access", "release"} {
			g := load(t, map[string]string{"site/x.rego": "package site." + entry + "\n\nfindings contains {\"code\": \"SITE\"} if input.schema == 1\n"})
			in := person("example.com/m", "public")
			in.Context.Profile = "standard"
			_, aerr := g.Access(t.Context(), in)
			_, rerr := g.Release(t.Context(), in, []policy.Resource{version("example.com/m", "v1.0.0")})
			if err := errors.Join(aerr, rerr); !errors.Is(err, policy.ErrPolicy) {
				t.Errorf("%s: %v, want ErrPolicy", entry, err)
			}
		}
	})
	t.Run("own library as the default one", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.CopyFS(dir, policies.FS); err != nil {
			t.Fatal(err)
		}
		e := open(t, dir, policy.Options{})
		if g, err := e.Current(); err != nil || g.Digest() != openEmbedded(t).Digest() {
			t.Errorf("Current() = %v, %v: %+v, want the embedded bundle's digest", g, err, e.Status().Rejection)
		}
	})
}
