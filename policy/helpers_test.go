package policy_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// defaults are the files of a bundle that holds YAML alone.
var defaults = map[string]string{
	"bundle.yaml":         "name: test\nlibrary: default\n",
	"config/teams.yaml":   "teams:\n  everyone: {profile: standard, public: true}\n",
	"config/rules.yaml":   "profiles: [open, standard, strict]\nrules: []\n",
	"config/waivers.yaml": "waivers: []\n",
}

// write makes the folder hold the default files with some of them replaced; an empty content leaves a file out.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range defaults {
		if other, replaced := files[name]; replaced {
			content = other
		}
		writeFile(t, dir, name, content)
	}
	for name, content := range files {
		writeFile(t, dir, name, content)
	}
}

func writeFile(t testing.TB, dir, name, content string) {
	t.Helper()
	file := filepath.Join(dir, filepath.FromSlash(name))
	if content == "" {
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// open starts an engine on a folder.
func open(t testing.TB, dir string, o policy.Options) *policy.Engine {
	t.Helper()
	o.Embedded = policies.FS
	e, err := policy.Open(t.Context(), policy.Config{Source: "folder", Path: dir}, o)
	if err != nil {
		t.Fatalf("Open(%s) = %v", dir, err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// load is the generation of a bundle that must be good.
func load(t testing.TB, files map[string]string) *policy.Generation {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, files)
	e := open(t, dir, policy.Options{})
	g, err := e.Current()
	if err != nil {
		t.Fatalf("Current() = %v: %+v", err, e.Status().Rejection)
	}
	return g
}

// rejected is why a bundle is not taken.
func rejected(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, files)
	r := open(t, dir, policy.Options{}).Status().Rejection
	if r == nil {
		t.Fatalf("bundle was activated, want it rejected")
	}
	return r.Reason
}

const allowAll = `{
	"schema": 1, "effect": "allow", "remedy": "", "visible": true, "codes": [], "reasons": [], "warnings": [],
	"obligations": [], "valid_until_day": null, "waived": [], "profile": "standard", "waivers": [], "labels": {},
	"advice": {"upgrade_to": "", "available_from_day": 0, "missing_facts": [], "contact": "", "waiver": {"code": "", "path": ""}},
}`

// own is a bundle with its own library: one rule for access, and an allow for release.
func own(access string) map[string]string {
	return map[string]string{
		"bundle.yaml":          "name: own\nlibrary: own\n",
		"access/access.rego":   "package headgate.access\n\nallowed := " + allowAll + "\n\n" + access + "\n",
		"release/release.rego": "package headgate.release\n\ndecision := " + allowAll + "\n",
	}
}
