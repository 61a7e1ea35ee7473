package policy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/policies"
)

// TestReadSetIsRight generates policies, of YAML for the default library and of Rego beside it, and inputs: the answer on
// the input cut to the read-set is the answer on the whole of it, and whatever stands in leaves that are not read, it
// stays the same.
func TestReadSetIsRight(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 44))
	evaluated, changed, denied := 0, 0, 0
	inputs := 40
	if os.Getenv("SOAK") != "" {
		inputs = 1000
	}
	for range 8 {
		files := randomBundle(random)
		g := generationOf(t, files)
		for range inputs {
			in := &Input{}
			fill(random, reflect.ValueOf(in).Elem(), "input")
			in.Schema = InputSchema
			in.Resource.Name = NewName(in.Resource.Path, in.Resource.Visibility)
			for _, e := range []*entryPoint{g.access, g.release} {
				full := ask(t, e, in, false)
				if cut := ask(t, e, in, true); !reflect.DeepEqual(full, cut) {
					t.Fatalf("%s on what it reads is %+v, on the whole input %+v\n%v\ninput %s", e.name, cut, full, files, appendJSON(nil, toTerm(reflect.ValueOf(in).Elem()).Value))
				}
				other := *in
				n := disturb(random, e.reads.root, reflect.ValueOf(&other).Elem(), "input")
				if after := ask(t, e, &other, false); !reflect.DeepEqual(full, after) {
					t.Fatalf("%s changed from %+v to %+v with leaves that it does not read, %v", e.name, full, after, e.reads.paths)
				}
				evaluated++
				changed += n
				if full.Effect == Deny {
					denied++
				}
			}
		}
	}
	if changed < 10*evaluated || denied < evaluated/10 || denied > evaluated*9/10 {
		t.Errorf("%d answers, %d of them denials, over %d changed leaves: the test proves little", evaluated, denied, changed)
	}
}

// ask evaluates without cache and guards.
func ask(t *testing.T, e *entryPoint, in *Input, cut bool) Decision {
	t.Helper()
	v := reflect.ValueOf(in).Elem()
	term := toTerm(v)
	if cut {
		term = e.reads.root.project(v)
	}
	d, err := e.evaluate(t.Context(), term, nil, time.Minute) // this machine may be busy
	if err != nil {
		t.Fatalf("%s: %v\ninput %s", e.name, err, appendJSON(nil, term.Value))
	}
	d.Eval, d.Projected = Eval{}, nil
	return d
}

func generationOf(t *testing.T, files map[string]string) *Generation {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	e, err := Open(t.Context(), Config{Source: "folder", Path: dir}, Options{Embedded: policies.FS})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	g, err := e.Current()
	if err != nil {
		t.Fatalf("Current() = %v: %+v\n%v", err, e.Status().Rejection, files)
	}
	return g
}

// randomBundle has a few rules of every concern, teams, waivers, and Rego of a company.
func randomBundle(random *rand.Rand) map[string]string {
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	var rules, waivers strings.Builder
	for i := range random.IntN(6) {
		matches := pick("age_below_days: 7", "severity_at_least: high", "severity_at_least: low, fixed: true", "licence: [MIT, unknown]", "retracted: true",
			"deprecated: true", "lookalike: [edit1, homoglyph]", "scorecard_below: 5", "kind: [pseudo, prerelease]", `versions: ">=1.1.0"`, "visibility: public")
		matches += pick("", "", ", prefix: [a.test]", ", prefix: [a.test/b]")
		scope := pick("", "scope: {profiles: [strict]}, ", "scope: {classes: [content]}, ", "scope: {zones: [ci]}, ")
		effect := pick("effect: deny, remedy: waiver", "effect: deny, remedy: none", "effect: warn", "effect: hide", `effect: deny, remedy: waiver, effective_from: "1970-01-03"`)
		fmt.Fprintf(&rules, "  - {id: r%d, code: %s, match: {%s}, %s%s}\n", i, pick("ONE", "TWO"), matches, scope, effect)
	}
	for i := range random.IntN(3) {
		fmt.Fprintf(&waivers, "  - {id: w%d, path: %s, codes: [%s], teams: [x], reason: r, expires: \"1970-01-0%d\"}\n",
			i, pick("a.test/b", "a.test/...", "b.test/b"), pick("ONE", "TWO", "PATH-NOT-ALLOWED"), 1+random.IntN(5))
	}
	files := map[string]string{
		"bundle.yaml": "name: generated\nlibrary: default\n",
		"config/teams.yaml": fmt.Sprintf("teams:\n  everyone: {profile: %s, public: %s}\n  x: {profile: strict, groups: [one], jobs: [\"one:two\"], allow: [a.test/b], deny: [%s], device: {proof: [%s], min_tier: %d}}\n",
			pick("open", "standard"), pick("true", "false"), pick("b.test", "a.test/b/c"), pick("none, mtls", "token"), random.IntN(3)),
		"config/rules.yaml":   "profiles: [open, standard, strict]\nrules:\n" + rules.String(),
		"config/waivers.yaml": "waivers:\n" + waivers.String(),
	}
	if rules.Len() == 0 {
		files["config/rules.yaml"] = "profiles: [open, standard, strict]\nrules: []\n"
	}
	if waivers.Len() == 0 {
		delete(files, "config/waivers.yaml")
	}
	if random.IntN(2) == 0 {
		files["site/release/extra.rego"] = site("release", random, "input.resource.popularity > 2", "some id, v in input.resource.vulns.ids; v.severity > 2",
			"input.resource.provenance.commit == \"one\"", "input.context.waivers.w1", "count(input.resource.prefixes) > 2", "not input.resource.provenance", "input.subject.team == \"one\"")
	}
	if random.IntN(2) == 0 {
		files["site/access/extra.rego"] = site("access", random, "input.device.posture.one.state == \"ok\"", "not input.subject.labels.one", "input.subject.authn.assurance < 2",
			"every p in input.device.posture { p.state == \"ok\" }", "input.subject.ci.fork", "input.action.name == \"zip\"", "some k; input.device[k] == \"mtls\"")
	}
	return files
}

// site is a finding of a company's own, under one or two conditions.
func site(entry string, random *rand.Rand, conditions ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# METADATA\n# scope: package\n# schemas:\n#   - input: schema.%s\npackage site.%s\n\n", entry, entry)
	for i := range 1 + random.IntN(2) {
		fmt.Fprintf(&b, `findings contains {"code": "SITE", "rule": "s%d", "effect": "deny", "remedy": "waiver", "severity": 2, "template": "t", "doc": "", "owner": "",
	"effective_day": 0, "params": {}, "available_day": 0, "upgrade_to": "", "facts": []} if { %s }

`, i, conditions[random.IntN(len(conditions))])
	}
	return b.String()
}

// closed are the words of leaves that take no others, by the end of their path.
var closed = map[string][]string{
	"subject.type": subjectTypes[:2], "device.proof": proofs, "device.platform": platforms, "action.name": actions, "action.class": classes,
	"resource.type": {"go-module"}, "resource.path": {"a.test/b", "a.test/b/c", "b.test/b", "a.test/d"}, "resource.visibility": visibilities,
	"resource.version": {"v1.0.0", "v1.2.0", "v0.0.0-20200101000000-abcdefabcdef"}, "resource.kind": kinds, "context.zone": zones, "context.mode": modes,
	"context.profile": {"open", "standard", "strict"}, "retracted.state": flagStates, "deprecated.state": flagStates, "resource.sumdb": sumdbStates,
	"resource.origin_drift": {"same", "same", "same", "moved", "unknown"}, "resource.malware": {"none", "none", "none", "suspected"}, "lookalike.kind": lookalikes,
	"quarantine.state": {"none", "none", "none", "held"}, "licences.status": {"found", "none", "unknown"}, "*.fixed": {"", "v1.3.0"}, "posture.*.state": {"ok", "fail"},
}

// fill writes something possible into every leaf.
func fill(random *rand.Rand, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(word(random, path))
	case reflect.Int:
		v.SetInt(random.Int64N(9))
		if strings.HasSuffix(path, "severity") {
			v.SetInt(random.Int64N(5))
		}
	case reflect.Bool:
		v.SetBool(random.IntN(2) == 0 || strings.HasSuffix(path, ".*")) // a set holds true alone
	case reflect.Pointer:
		v.SetZero()
		if random.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(random, v.Elem(), path)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range random.IntN(3) {
			put(random, v, []string{"one", "two", "MIT", "w0", "w1"}[random.IntN(5)], path)
		}
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			if field := v.FieldByIndex(f.index); field.Kind() != reflect.Slice { // prefixes follow from the path
				fill(random, field, path+"."+f.name)
			}
		}
	}
}

func put(random *rand.Rand, m reflect.Value, key, path string) {
	value := reflect.New(m.Type().Elem()).Elem()
	fill(random, value, path+".*")
	m.SetMapIndex(reflect.ValueOf(key), value)
}

func word(random *rand.Rand, path string) string {
	words := []string{"", "one", "two"}
	if strings.Contains(path, "resource.facts.") {
		words = []string{"ok", "ok", "ok", "off", "missing"}
	}
	for end, w := range closed {
		if strings.HasSuffix(path, "."+end) || end[0] == '*' && strings.HasSuffix(path, end) {
			words = w
		}
	}
	return words[random.IntN(len(words))]
}

// disturb writes something else into every leaf that is not read, and counts them.
func disturb(random *rand.Rand, n *reads, v reflect.Value, path string) int {
	if n.whole {
		return 0
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return 0
		}
		copied := reflect.New(v.Type().Elem()) // the input shares what it points to
		copied.Elem().Set(v.Elem())
		v.Set(copied)
		return disturb(random, n, v.Elem(), path)
	case reflect.Map:
		return disturbMap(random, n, v, path)
	case reflect.Struct:
		changed := 0
		for _, f := range fieldsOf(v.Type()) {
			field := v.FieldByIndex(f.index)
			i := slices.IndexFunc(n.fields, func(r fieldReads) bool { return r.field.name == f.name })
			switch {
			case i >= 0:
				changed += disturb(random, n.fields[i].sub, field, path+"."+f.name)
			case field.Kind() == reflect.Slice:
				field.Set(reflect.ValueOf([]string{"else.test"}))
				changed++
			default:
				fill(random, field, path+"."+f.name)
				changed++
			}
		}
		return changed
	}
	return 0
}

// disturbMap changes the keys that nobody asks for.
func disturbMap(random *rand.Rand, n *reads, v reflect.Value, path string) int {
	m := reflect.MakeMap(v.Type())
	for _, k := range v.MapKeys() {
		if slices.ContainsFunc(n.keys, func(r keyReads) bool { return r.key == k.String() }) {
			m.SetMapIndex(k, v.MapIndex(k))
		}
	}
	put(random, m, "key that nobody reads", path)
	v.Set(m)
	return 1
}
