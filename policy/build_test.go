package policy

import (
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"golang.org/x/mod/semver"
)

// FuzzYAML holds that whatever stands in a file is either an index or a mistake with the file's name, and that the same
// bytes always give the same index.
func FuzzYAML(f *testing.F) {
	f.Add([]byte("teams:\n  everyone: {profile: standard, public: true}\n"))
	f.Add([]byte("teams: {a: {profile: no, groups: [*x]}}\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("<<: {a: 1}\n"))
	f.Add([]byte("teams: !!binary aGk=\n"))
	f.Add([]byte("- &a [*a]\n"))
	f.Add([]byte("{\"\": {\"/\": 0x10}}\n"))
	rules, waivers := []byte("profiles: [standard]\nrules: []\n"), []byte("waivers: []\n")
	f.Fuzz(func(t *testing.T, content []byte) {
		files := map[string][]byte{"config/teams.yaml": content, "config/rules.yaml": rules, "config/waivers.yaml": waivers}
		first, err := buildIndex(files)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "config/teams.yaml:") && !strings.HasPrefix(line, " ") {
					t.Errorf("mistake without the file's name: %q", line)
				}
				break
			}
			return
		}
		again, err := buildIndex(files)
		if err != nil {
			t.Fatalf("second time: %v", err)
		}
		if ast.MustInterfaceToValue(map[string]any(first)).Compare(ast.MustInterfaceToValue(map[string]any(again))) != 0 {
			t.Errorf("two indexes of %q", content)
		}
	})
}

// FuzzVersions holds that a range means in Rego what it means to the go command.
func FuzzVersions(f *testing.F) {
	f.Add(">=", "v1.5.0", "v1.5.0-rc.1")
	f.Add("<", "1.6.0", "v1.6.0-0.20260101000000-0123456789ab")
	f.Add("!=", "v2.0.0", "v2.0.0+incompatible")
	f.Add("=", "v1.2", "v1.2.0")
	f.Add(">", "v0.0.1-go1.21.0", "v0.0.1-go1.9.0.linux-amd64")
	f.Fuzz(func(t *testing.T, operator, operand, version string) {
		if !semver.IsValid(version) || semver.Canonical(version) != strings.TrimSuffix(version, semver.Build(version)) || strings.ContainsAny(operand, " \t\n\r\v\f\u0085\u00a0|") {
			return
		}
		d := &document{lines: map[string]int{}}
		alternatives := d.versions("/x", operator+operand, "")
		if len(d.errs) > 0 || len(alternatives) != 1 || signs[operator] == nil {
			return
		}
		for _, c := range alternatives[0].([]any) {
			comparison := c.(map[string]any)
			sign, ok := regoCompare(version, comparison["version"].(string))
			if !ok {
				return // too long a number for OPA: an evaluation error, and so a refusal
			}
			if want := semver.Compare(version, "v"+strings.TrimPrefix(operand, "v")); sign != want {
				t.Errorf("%s compared with %s is %d in Rego, %d in Go", version, operand, sign, want)
			}
		}
	})
}

func regoCompare(a, b string) (int, bool) {
	sign, ok := 0, false
	err := topdown.GetBuiltin("semver.compare")(topdown.BuiltinContext{}, []*ast.Term{ast.StringTerm(a), ast.StringTerm(b)}, func(t *ast.Term) error {
		sign, ok = t.Value.(ast.Number).Int()
		return nil
	})
	return sign, err == nil && ok
}
