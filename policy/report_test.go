package policy_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

const goodGolden = "cases:\n  - {name: public, ask: access, want: {effect: allow}}\n"

func TestTest(t *testing.T) {
	site := map[string]string{
		"site/extra.rego":      "package site\n\nyes := true\n",
		"site/extra_test.rego": "package site_test\n\nimport data.site\n\ntest_yes if site.yes\n",
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		state string
		want  string // of one failure
	}{
		{"good", map[string]string{"tests/a.yaml": goodGolden}, "", ""},
		{"good with Rego of its own", site, "", ""},
		{"no manifest", map[string]string{"bundle.yaml": ""}, "fetched", "bundle.yaml: is missing"},
		{"P7 unquoted no", map[string]string{"config/teams.yaml": "teams:\n  everyone: {profile: no}\n"}, "built", "config/teams.yaml:2: no is a boolean"},
		{"broken YAML", map[string]string{"config/rules.yaml": "profiles: [open\n"}, "built", "config/rules.yaml: yaml: line "},
		{"broken Rego", map[string]string{"site/x.rego": "package site\n\nx if {\n"}, "built", "site/x.rego:"},
		{"P16 http.send", map[string]string{"site/x.rego": "package site\n\nx := http.send({})\n"}, "checked", "site/x.rego:3: undefined function http.send"},
		{"P27 no test", nil, "tested", "bundle has no test"},
		{"P27 golden decision differs", map[string]string{
			"tests/a.yaml": goodGolden + "  - {name: private, ask: access, visibility: private, want: {effect: allow}}\n",
		}, "tested", "tests/a.yaml:3: private: it is deny"},
		{"P27 Rego test fails", map[string]string{
			"site/x.rego": "package site\n\nx := 1\n", "site/x_test.rego": "package site_test\n\ntest_x if data.site.x == 2\n",
		}, "tested", "site/x_test.rego:3: data.site_test.test_x failed"},
		{"P27 coverage low", map[string]string{
			"tests/a.yaml": goodGolden, "site/x.rego": "package site\n\nx if {\n\t1 == 1\n\t2 == 2\n}\n",
		}, "tested", "tests cover 0.0 %"},
		{"P27 guard broken", func() map[string]string {
			files := own("decision := allowed")
			files["tests/a.yaml"] = goodGolden
			files["access/a_test.rego"] = "package headgate.access_test\n\ntest_a if data.headgate.access.decision.effect == \"allow\"\n"
			files["release/r_test.rego"] = "package headgate.release_test\n\ntest_r if data.headgate.release.decision.effect == \"allow\"\n"
			return files
		}(), "tested", "guard test \"anonymous is denied\" of access: the bundle allows it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tt.files)
			r, err := policy.Test(t.Context(), os.DirFS(dir), policies.FS)
			if err != nil || r.State != tt.state || (len(r.Failures) > 0) != (tt.want != "") {
				t.Fatalf("Test() = %+v, %v; want state %q, failure %q", r, err, tt.state, tt.want)
			}
			if tt.want != "" && !slices.ContainsFunc(r.Failures, func(f string) bool { return strings.HasPrefix(f, tt.want) }) {
				t.Errorf("failures are %q, want one that begins %q", r.Failures, tt.want)
			}
			for _, f := range r.Failures {
				if strings.Contains(f, "\n") {
					t.Errorf("failure %q has more than one line", f)
				}
			}
		})
	}
}

func TestTestCounts(t *testing.T) {
	r, err := policy.Test(t.Context(), policies.FS, policies.FS)
	if err != nil || r.State != "" || r.Rego < 60 || r.Golden == 0 || r.Coverage < 80 || r.Revision == "" {
		t.Errorf("Test(default bundle) = %+v, %v; want it good, with 60 Rego tests, golden decisions and its coverage", r, err)
	}
}

func TestTestRefusesSymlink(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, nil)
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "site.rego")); err != nil {
		t.Fatal(err)
	}
	r, err := policy.Test(t.Context(), os.DirFS(dir), policies.FS)
	if err != nil || r.State != "fetched" || len(r.Failures) != 1 || r.Failures[0] != "site.rego: is no regular file" {
		t.Errorf("P23 Test() = %+v, %v; want the symlink named", r, err)
	}
}

func TestTestEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if r, err := policy.Test(ctx, policies.FS, policies.FS); !errors.Is(err, gone) {
		t.Errorf("Test() = %+v, %v; want %v", r, err, gone)
	}
}
