package policies_test

import (
	"flag"
	"io/fs"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/format"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
)

var update = flag.Bool("update", false, "rewrite files that are not formatted")

const wantCoverage = 90 // percent of the expressions of the library

// TestRego runs every Rego test of the default bundle.
func TestRego(t *testing.T) {
	modules := parseAll(t)
	coverage := cover.New()
	runner := tester.NewRunner().SetStore(inmem.New()).RaiseBuiltinErrors(true).SetModules(modules).SetCoverageQueryTracer(coverage)
	results, err := runner.RunTests(t.Context(), nil)
	if err != nil {
		t.Fatalf("running the Rego tests: %v", err)
	}
	tests := 0
	for r := range results {
		tests++
		t.Run(r.Package+"."+r.Name, func(t *testing.T) {
			if !r.Pass() {
				t.Errorf("%v: failed: %v", r.Location, r.Error)
			}
		})
	}
	if tests < 60 {
		t.Errorf("ran %d Rego tests, want at least 60", tests)
	}
	library := maps.Clone(modules)
	maps.DeleteFunc(library, func(name string, _ *ast.Module) bool { return strings.HasSuffix(name, "_test.rego") })
	report := coverage.Report(library)
	t.Logf("%d Rego tests cover %.1f %% of the library", tests, report.Coverage)
	if report.Coverage < wantCoverage {
		t.Errorf("coverage is %.1f %%, want %d %%", report.Coverage, wantCoverage)
	}
	for name, file := range report.Files {
		for _, r := range file.NotCovered {
			t.Logf("not covered: %s:%d-%d", name, r.Start.Row, r.End.Row)
		}
	}
}

// TestRegoFormat holds the Rego to the one format.
func TestRegoFormat(t *testing.T) {
	for name, content := range files(t) {
		formatted, err := format.Source(name, content)
		if err != nil {
			t.Errorf("formatting %s: %v", name, err)
			continue
		}
		if string(formatted) == string(content) {
			continue
		}
		if *update {
			if err := os.WriteFile(name, formatted, 0o644); err != nil {
				t.Error(err)
			}
			continue
		}
		t.Errorf("%s is not in the format of opa fmt; run this test with -update", name)
	}
}

func parseAll(t *testing.T) map[string]*ast.Module {
	t.Helper()
	modules := map[string]*ast.Module{}
	for name, content := range files(t) {
		module, err := ast.ParseModuleWithOpts(name, string(content), ast.ParserOptions{RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatalf("parsing %s: %v", name, err)
		}
		modules[name] = module
	}
	return modules
}

func files(t *testing.T) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, ".rego") {
			found[name], err = os.ReadFile(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
