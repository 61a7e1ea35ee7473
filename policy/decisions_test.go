package policy_test

import (
	"strings"
	"testing"

	"github.com/headgate/headgate/policy"
)

const teamsYAML = `teams:
  payments:
    profile: strict
    groups: [eng-payments]
    jobs: ["github:482913"]
    allow: [corp.example/payments, corp.example/kit, example.com/shared]
    public: true
    deny: [example.com/abandoned]
    device: {proof: [token, mtls], min_tier: 2}
  tools:
    profile: open
    groups: [eng-tools, "café"]
    allow: [corp.example/tools, corp.example/kit]
  everyone: {profile: standard, public: true}
`

const rulesYAML = `profiles: [open, standard, strict]
toolchains:
  - {versions: ">=1.24.0", profiles: [standard, strict]}
rules:
  - {id: young, code: COOLDOWN, match: {visibility: public, age_below_days: 7}, scope: {profiles: [standard, strict]}, effect: deny, remedy: wait, owner: appsec}
  - {id: vuln, code: VULNERABLE, match: {severity_at_least: high}, effect: deny, remedy: waiver}
  - {id: vuln-low, code: VULNERABLE, match: {severity_at_least: low}, effect: warn}
  - {id: bad-range, code: KNOWN-BAD, match: {prefix: [example.com/bad], versions: ">=1.5.0 <1.6.0 || =1.7.1"}, effect: deny, remedy: none, text: "{rule} breaks money", doc: "https://wiki.corp.example/bad"}
  - {id: pinned, code: NO-PSEUDO, match: {kind: [pseudo], prefix: [example.com/pseudo]}, scope: {profiles: [strict]}, effect: deny, remedy: waiver}
  - {id: later, code: LATER, match: {prefix: [example.com/later]}, effect: deny, remedy: waiver, effective_from: "2027-01-21"}
  - {id: ci-only, code: NOT-IN-CI, match: {prefix: [example.com/gui]}, scope: {zones: [ci]}, effect: deny, remedy: none}
  - {id: graph, code: NO-MOD, match: {prefix: [example.com/nomod]}, scope: {classes: [metadata]}, effect: deny, remedy: none}
  - {id: agpl, code: LICENCE, match: {licence: [AGPL-3.0-only]}, effect: deny, remedy: waiver}
  - {id: retracted, code: RETRACTED, match: {retracted: true}, effect: hide}
  - {id: deprecated, code: DEPRECATED, match: {deprecated: true}, effect: warn}
  - {id: look, code: LOOKALIKE, match: {lookalike: [edit1]}, effect: deny, remedy: waiver}
  - {id: score, code: SCORECARD, match: {scorecard_below: 3}, effect: warn}
`

const waiversYAML = `waivers:
  - {id: W-1, path: example.com/fast, versions: ">=1.5.0 <1.6.0", codes: [COOLDOWN], teams: [payments], reason: read, expires: "2027-01-20"}
  - {id: W-2, path: example.com/abandoned/..., codes: [PATH-NOT-ALLOWED], teams: [payments], reason: read, expires: "2027-01-25"}
`

func corp(t testing.TB) *policy.Generation {
	return load(t, map[string]string{"config/teams.yaml": teamsYAML, "config/rules.yaml": rulesYAML, "config/waivers.yaml": waiversYAML})
}

// TestTeams holds who may use which path.
func TestTeams(t *testing.T) {
	g := corp(t)
	good := func(in *policy.Input) *policy.Input {
		in.Device.Proof, in.Device.Tier = "mtls", 2
		return in
	}
	job := func(in *policy.Input, provider, id string) *policy.Input {
		in.Subject.Type, in.Subject.CI = "workload", &policy.CI{Provider: provider, RepoID: id, Repo: "corp/payments"}
		return good(in)
	}
	weak := good(person("corp.example/payments", "private", "eng-payments"))
	weak.Device.Tier = 1
	for _, tt := range []struct {
		name    string
		in      *policy.Input
		code    string // "" allows
		profile string
	}{
		{"public by everyone", person("example.com/m", "public"), "", "standard"},
		{"public, strictest of two teams", person("example.com/m", "public", "eng-payments"), "", "strict"},
		{"public, laxer team does not cover it", person("example.com/m", "public", "eng-tools"), "", "standard"},
		{"private of own team", good(person("corp.example/payments", "private", "eng-payments")), "", "strict"},
		{"P42 below an allow", good(person("corp.example/payments/sub/pkg", "private", "eng-payments")), "", "strict"},
		{"private of another team", good(person("corp.example/tools", "private", "eng-payments")), "PATH-NOT-ALLOWED", ""},
		{"private, no team", good(person("corp.example/payments", "private")), "PATH-NOT-ALLOWED", ""},
		{"private of two teams, strictest", good(person("corp.example/kit", "private", "eng-payments", "eng-tools")), "", "strict"},
		{"private, other team's lax device", person("corp.example/kit", "private", "eng-tools"), "", "open"},
		{"private, no device", person("corp.example/payments", "private", "eng-payments"), "DEVICE-REQUIRED", "strict"},
		{"private, device of a low tier", weak, "DEVICE-REQUIRED", "strict"},
		{"public path of an allow needs no device", person("example.com/shared", "public", "eng-payments"), "", "strict"},
		{"T33 corp/ab under a rule for corp/a", good(person("corp.example/paymentsb", "private", "eng-payments")), "PATH-NOT-ALLOWED", ""},
		{"T33 corp/a.evil under a rule for corp/a", good(person("corp.example/payments.evil", "private", "eng-payments")), "PATH-NOT-ALLOWED", ""},
		{"T33 example.com/abandonedx under a deny", person("example.com/abandonedx", "public", "eng-payments"), "", "strict"},
		{"unknown visibility passes with public", person("corp.example", "unknown"), "", "standard"},
		{"deny of another team", person("example.com/abandoned", "public", "eng-tools"), "", "standard"},
		{"job by its numeric id", job(person("corp.example/payments", "private"), "github", "482913"), "", "strict"},
		{"job of a taken-over name", job(person("corp.example/payments", "private"), "github", "482914"), "PATH-NOT-ALLOWED", ""},
		{"job of another provider", job(person("corp.example/payments", "private"), "gitlab", "482913"), "PATH-NOT-ALLOWED", ""},
		{"P37 group in another Unicode form", person("corp.example/tools", "private", "cafe\u0301"), "", "open"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := g.Access(t.Context(), tt.in)
			if err != nil {
				t.Fatalf("Access() = %v", err)
			}
			code := ""
			if d.Effect != policy.Allow {
				code = d.Codes[0]
			}
			if code != tt.code || d.Profile != tt.profile {
				t.Errorf("Access(%s) = %q, profile %q, want %q, %q", tt.in.Resource.Path, code, d.Profile, tt.code, tt.profile)
			}
		})
	}
	t.Run("P42 below a deny inside public", func(t *testing.T) {
		after := person("example.com/abandoned/sub", "public", "eng-payments")
		after.Context.Day = 20844 // the waiver ended the day before
		if d, err := g.Access(t.Context(), after); err != nil || d.Effect != policy.Deny || d.Codes[0] != "PATH-NOT-ALLOWED" {
			t.Errorf("Access() = %+v, %v, want PATH-NOT-ALLOWED", d, err)
		}
	})
	t.Run("waiver for a path", func(t *testing.T) {
		d, err := g.Access(t.Context(), person("example.com/abandoned/sub", "public", "eng-payments"))
		if err != nil || d.Effect != policy.Allow || len(d.Waived) != 1 || *d.ValidUntilDay != 20844 {
			t.Errorf("Access() = %+v, %v, want allow by W-2 until 20844", d, err)
		}
	})
	t.Run("same refusal for what exists and what does not", func(t *testing.T) {
		a, _ := g.Access(t.Context(), person("corp.example/tools", "private"))
		b, _ := g.Access(t.Context(), person("corp.example/never", "private"))
		o := policy.TextOptions{Target: "m", ID: "1"}
		if there := strings.ReplaceAll(a.Text(o), "corp.example/tools", "corp.example/never"); there != b.Text(o) {
			t.Errorf("texts differ:\n%s%s", there, b.Text(o))
		}
	})
}

// TestRules holds which versions are fit.
func TestRules(t *testing.T) {
	g := corp(t)
	type facts = policy.Facts
	for _, tt := range []struct {
		name, path, version, action string
		set                         func(*facts, *policy.Input)
		codes                       string // with "hidden" and "warn:" in front
		remedy                      policy.Remedy
	}{
		{"nothing against it", "example.com/m", "v1.0.0", "zip", nil, "", ""},
		{"young", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Age, f.AgeDays, f.FirstSeenDay = "ok", 6, day-6 }, "COOLDOWN", policy.RemedyWait},
		{"old enough", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Age, f.AgeDays, f.FirstSeenDay = "ok", 7, day-7 }, "", ""},
		{"young, its .mod", "example.com/m", "v1.0.0", "mod", func(f *facts, _ *policy.Input) { f.Known.Age = "ok" }, "", ""},
		{"young, of a private module", "corp.example/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Age = "ok" }, "", ""},
		{"young, profile open", "example.com/m", "v1.0.0", "zip", func(f *facts, in *policy.Input) { f.Known.Age, in.Context.Profile = "ok", "open" }, "", ""},
		{"P4 age is off", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.AgeDays = 0 }, "", ""},
		{"P4 age is missing", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Age = "missing" }, "COOLDOWN age", policy.RemedyWait},
		{"P4 age is stale", "example.com/m", "v1.0.0", "list", func(f *facts, _ *policy.Input) { f.Known.Age = "stale" }, "COOLDOWN age", policy.RemedyWait},
		{"P4 vulnerabilities missing", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Vulns = "missing" }, "VULNERABLE vulns", policy.RemedyWait},
		{"P4 a rule that warns still only warns", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Scorecard = "missing" }, "warn:SCORECARD", ""},
		{"P4 malware list missing", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Malware = "missing" }, "MALWARE malware", policy.RemedyWait},
		{"P4 licence before the zip", "example.com/m", "v1.0.0", "info", func(f *facts, _ *policy.Input) { f.Known.Licences = "missing" }, "", ""},
		{"P4 licence missing at the zip", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Licences = "missing" }, "LICENCE licences", policy.RemedyWait},
		{"vulnerable", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) {
			f.Known.Vulns, f.Vulns = "ok", policy.Vulns{MaxSeverity: 4, IDs: map[string]policy.Vuln{"GO-1": {Severity: 4, Fixed: "v1.0.1"}}}
		}, "VULNERABLE", policy.RemedyWaiver},
		{"a little vulnerable", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) {
			f.Known.Vulns, f.Vulns = "ok", policy.Vulns{MaxSeverity: 1, IDs: map[string]policy.Vuln{"GO-1": {Severity: 1}}}
		}, "warn:VULNERABLE", ""},
		{"in a denied range", "example.com/bad", "v1.5.3", "list", nil, "KNOWN-BAD", policy.RemedyNone},
		{"in a denied range, below the prefix", "example.com/bad/v2/sub", "v1.7.1", "zip", nil, "KNOWN-BAD", policy.RemedyNone},
		{"outside a denied range", "example.com/bad", "v1.6.0", "zip", nil, "", ""},
		{"T33 other path, same range", "example.com/badly", "v1.5.3", "zip", nil, "", ""},
		{"P43 incompatible in a range", "example.com/bad", "v1.5.3+incompatible", "zip", nil, "KNOWN-BAD", policy.RemedyNone},
		{"pseudo under strict", "example.com/pseudo", "v0.0.0-20260101000000-0123456789ab", "zip", func(f *facts, in *policy.Input) { f.Kind, in.Context.Profile = "pseudo", "strict" }, "NO-PSEUDO", policy.RemedyWaiver},
		{"pseudo under standard", "example.com/pseudo", "v0.0.0-20260101000000-0123456789ab", "zip", func(f *facts, _ *policy.Input) { f.Kind = "pseudo" }, "", ""},
		{"P8 not in effect yet", "example.com/later", "v1.0.0", "zip", nil, "warn:LATER", ""},
		{"P8 in effect", "example.com/later", "v1.0.0", "zip", func(_ *facts, in *policy.Input) { in.Context.Day++ }, "LATER", policy.RemedyWaiver},
		{"zone of the rule", "example.com/gui", "v1.0.0", "zip", func(_ *facts, in *policy.Input) { in.Context.Zone = "ci" }, "NOT-IN-CI", policy.RemedyNone},
		{"another zone", "example.com/gui", "v1.0.0", "zip", nil, "", ""},
		{"P40 .mod of a denied version", "example.com/bad", "v1.5.3", "mod", nil, "", ""},
		{"rule for .mod", "example.com/nomod", "v1.0.0", "mod", nil, "NO-MOD", policy.RemedyNone},
		{"licence", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) {
			f.Known.Licences, f.Licences = "ok", policy.Licences{IDs: map[string]bool{"AGPL-3.0-only": true}, Status: "found"}
		}, "LICENCE", policy.RemedyWaiver},
		{"retracted", "example.com/m", "v1.0.0", "list", func(f *facts, _ *policy.Input) {
			f.Known.Retracted, f.Retracted = "ok", policy.Flag{State: "yes", Text: "oops"}
		}, "hidden warn:RETRACTED", ""},
		{"deprecated", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Known.Deprecated, f.Deprecated.State = "ok", "yes" }, "warn:DEPRECATED", ""},
		{"lookalike", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) {
			f.Known.Lookalike, f.Lookalike = "ok", policy.Lookalike{Of: "example.com/n", Kind: "edit1"}
		}, "LOOKALIKE", policy.RemedyWaiver},
		{"moved origin", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.OriginDrift = "moved" }, "ORIGIN-MOVED", policy.RemedyNone},
		{"operator's hold", "example.com/m", "v1.0.0", "zip", func(f *facts, _ *policy.Input) { f.Quarantine.State = "held" }, "HELD", policy.RemedyNone},
		{"toolchain with a rule", "golang.org/toolchain", "v0.0.1-go1.25.1.linux-amd64", "zip", nil, "", ""},
		{"T38 toolchain too old", "golang.org/toolchain", "v0.0.1-go1.23.9.linux-amd64", "zip", nil, "TOOLCHAIN-NOT-ALLOWED", policy.RemedyNone},
		{"T38 toolchain without a rule for the profile", "golang.org/toolchain", "v0.0.1-go1.25.1.linux-amd64", "zip", func(_ *facts, in *policy.Input) { in.Context.Profile = "open" }, "TOOLCHAIN-NOT-ALLOWED", policy.RemedyNone},
		{"P8 waiver on its last day", "example.com/fast", "v1.5.2", "zip", func(f *facts, in *policy.Input) {
			f.Known.Age, in.Context.Waivers = "ok", map[string]bool{"W-1": true}
		}, "warn:WAIVER-ENDS", ""},
		{"P8 waiver on the day after", "example.com/fast", "v1.5.2", "zip", func(f *facts, in *policy.Input) {
			f.Known.Age, in.Context.Waivers, in.Context.Day = "ok", map[string]bool{"W-1": true}, day+1
		}, "COOLDOWN", policy.RemedyWait},
		{"waiver of another version", "example.com/fast", "v1.6.0", "zip", func(f *facts, in *policy.Input) {
			f.Known.Age, in.Context.Waivers = "ok", map[string]bool{"W-1": true}
		}, "COOLDOWN", policy.RemedyWait},
		{"waiver that does not exist", "example.com/fast", "v1.5.2", "zip", func(f *facts, in *policy.Input) {
			f.Known.Age, in.Context.Waivers = "ok", map[string]bool{"W-9": true}
		}, "COOLDOWN", policy.RemedyWait},
		{"waiver for another code", "example.com/fast", "v1.5.2", "zip", func(f *facts, in *policy.Input) {
			f.OriginDrift, in.Context.Waivers = "moved", map[string]bool{"W-1": true}
		}, "ORIGIN-MOVED", policy.RemedyNone},
		{"hardest remedy of two", "example.com/bad", "v1.5.3", "zip", func(f *facts, _ *policy.Input) { f.Known.Age = "ok" }, "COOLDOWN KNOWN-BAD", policy.RemedyNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := person(tt.path, "public")
			in.Action, in.Context.Profile = policy.NewAction(tt.action), "standard"
			r := version(tt.path, tt.version)
			if strings.HasPrefix(tt.path, "corp.example") {
				r.Visibility = "private"
			}
			if tt.set != nil {
				tt.set(&r.Facts, in)
			}
			ds, err := g.Release(t.Context(), in, []policy.Resource{r})
			if err != nil {
				t.Fatalf("Release() = %v", err)
			}
			if got := summary(ds[0]); got != tt.codes || ds[0].Remedy != tt.remedy {
				t.Errorf("Release(%s@%s) = %q, remedy %q, want %q, %q", tt.path, tt.version, got, ds[0].Remedy, tt.codes, tt.remedy)
			}
		})
	}
}

// summary is a decision in a few words.
func summary(d policy.Decision) string {
	var words []string
	if d.Effect == policy.Allow && !d.Visible {
		words = append(words, "hidden")
	}
	for _, c := range d.Codes {
		if d.Effect == policy.Allow {
			c = "warn:" + c
		} else if !hasReason(d, c) {
			continue
		}
		words = append(words, c)
	}
	return strings.Join(append(words, d.Advice.MissingFacts...), " ")
}

func hasReason(d policy.Decision, code string) bool {
	for _, r := range d.Reasons {
		if r.Code == code {
			return true
		}
	}
	return false
}

func TestAdvice(t *testing.T) {
	g := corp(t)
	in := person("example.com/m", "public")
	in.Context.Profile = "standard"
	r := version("example.com/m", "v1.5.0")
	r.Known.Age, r.AgeDays, r.FirstSeenDay = "ok", 2, day-2
	ds, err := g.Release(t.Context(), in, []policy.Resource{r})
	if err != nil {
		t.Fatal(err)
	}
	if d := ds[0]; d.Advice.AvailableFromDay != day+5 || *d.ValidUntilDay != day+5 || d.Advice.Contact != "appsec" {
		t.Errorf("advice = %+v, valid until %d, want day %d", d.Advice, *d.ValidUntilDay, day+5)
	}
	want := "COOLDOWN: first seen 2 days ago, profile standard waits for 7\n" +
		"example.com/m@v1.5.0\n" +
		"works now: v1.4.9    available from: 2027-01-25\n" +
		"ask: https://go.corp.example/-/console/ask/7kq2m4xw\n" +
		"decision 7kq2m4xw, policy 4f1c2ab\n"
	got := ds[0].Text(policy.TextOptions{
		Target: "example.com/m@v1.5.0", ID: "7kq2m4xw", Revision: "4f1c2ab",
		AskURL: "https://go.corp.example/-/console/ask", WorksNow: "v1.4.9",
	})
	if got != want {
		t.Errorf("Text() =\n%swant\n%s", got, want)
	}
}

func TestCombine(t *testing.T) {
	five, nine := 5, 9
	allow := policy.Decision{Effect: policy.Allow, Visible: true, ValidUntilDay: &nine, Profile: "strict"}
	deny := func(r policy.Remedy, code string) policy.Decision {
		return policy.Decision{Effect: policy.Deny, Remedy: r, Codes: []string{code}, ValidUntilDay: &five, Reasons: []policy.Reason{{Code: code, Severity: 3}}}
	}
	for name, tt := range map[string]struct {
		a, b   policy.Decision
		effect policy.Effect
		remedy policy.Remedy
		codes  string
		until  int
	}{
		"both allow":               {allow, policy.Decision{Effect: policy.Allow, Visible: true}, policy.Allow, "", "", 9},
		"release denies":           {allow, deny("wait", "B"), policy.Deny, "wait", "B", 5},
		"access denies":            {deny("waiver", "A"), allow, policy.Deny, "waiver", "A", 5},
		"waiver is harder":         {deny("wait", "B"), deny("waiver", "A"), policy.Deny, "waiver", "A B", 5},
		"none is hardest":          {deny("none", "B"), deny("waiver", "A"), policy.Deny, "none", "A B", 5},
		"no decision and allow":    {policy.Decision{}, allow, policy.Deny, "none", "", 9},
		"allow and no decision":    {allow, policy.Decision{}, policy.Deny, "none", "", 9},
		"unknown effect and allow": {policy.Decision{Effect: "permit"}, allow, policy.Deny, "none", "", 9},
	} {
		t.Run(name, func(t *testing.T) {
			d := policy.Combine(tt.a, tt.b)
			if d.Effect != tt.effect || d.Remedy != tt.remedy || strings.Join(d.Codes, " ") != tt.codes || *d.ValidUntilDay != tt.until || d.Visible != (tt.effect == policy.Allow) {
				t.Errorf("Combine() = %+v, want %s, %s, %s, %d", d, tt.effect, tt.remedy, tt.codes, tt.until)
			}
		})
	}
}
