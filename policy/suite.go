package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
)

const (
	wantCoverage  = 80 // percent of the lines of a bundle's own Rego
	oneTest       = 5 * time.Second
	shownFailures = 10
)

// test runs a bundle's own tests, its golden decisions, and the guard tests, and counts them in r. That it has no test
// is a failure.
func (b *bundle) test(ctx context.Context, g *Generation, r *Report) (err error) {
	if r.Rego, err = b.testRego(ctx, r); err != nil {
		return err
	}
	if r.Golden, err = b.testGolden(ctx, g); err != nil {
		return err
	}
	if r.Rego+r.Golden == 0 {
		return errors.New("bundle has no test; want *_test.rego beside its Rego, or golden decisions in tests/*.yaml")
	}
	if err := testGuards(ctx, g); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// A failedTestsError names tests that failed, each with its place.
type failedTestsError struct {
	what string // tests failed, or golden decisions differ
	all  []string
	ran  int
}

// Error names the first of them: it goes to logs and to the record of a rejection.
func (e *failedTestsError) Error() string {
	return fmt.Sprintf("%d of %d %s: %s", len(e.all), e.ran, e.what, strings.Join(e.all[:min(shownFailures, len(e.all))], "; "))
}

// testRego runs the Rego tests under the capabilities of policy itself, and measures what they reach.
func (b *bundle) testRego(ctx context.Context, report *Report) (ran int, err error) {
	modules, err := b.testModules()
	if err != nil {
		return 0, err
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithEnablePrintStatements(true).WithPathConflictsCheck(b.hasData)
	coverage := cover.New()
	results, err := tester.NewRunner().SetCompiler(compiler).SetStore(inmem.NewFromASTObject(b.data)).SetTimeout(oneTest).
		RaiseBuiltinErrors(true).SetModules(modules).SetCoverageQueryTracer(coverage).RunTests(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("compiling the tests: %w", err)
	}
	var failed []string
	for r := range results {
		ran++
		if !r.Pass() {
			text := fmt.Sprintf("%v: %s.%s failed", r.Location, r.Package, r.Name)
			if r.Error != nil {
				text += ": " + r.Error.Error()
			}
			failed = append(failed, text)
		}
	}
	if len(failed) > 0 {
		slices.Sort(failed)
		return ran, &failedTestsError{"tests failed", failed, ran}
	}
	report.Coverage, err = b.covered(coverage)
	return ran, err
}

// testModules are the modules of the bundle with those of its tests, which have packages of their own: a test that adds
// to the package that it tests would test something else.
func (b *bundle) testModules() (map[string]*ast.Module, error) {
	modules := maps.Clone(b.modules)
	for name, content := range b.tests {
		if !strings.HasSuffix(name, ".rego") {
			continue
		}
		module, err := ast.ParseModuleWithOpts(name, string(content), ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities()})
		if err != nil {
			return nil, fmt.Errorf("parsing tests: %w", err)
		}
		pkg := strings.TrimPrefix(module.Package.Path.String(), "data.")
		if root, _, _ := strings.Cut(pkg, "."); root != "headgate" && root != "site" && root != "site_test" || !strings.HasSuffix(pkg, "_test") {
			return nil, fmt.Errorf("%s: is package %s; a test's package is below headgate or site and ends in _test", name, pkg)
		}
		modules[name] = module
	}
	return modules, nil
}

// covered holds the bundle's own Rego to its coverage, in percent; that of the binary is tested there.
func (b *bundle) covered(coverage *cover.Cover) (float64, error) {
	own := maps.Clone(b.modules)
	maps.DeleteFunc(own, func(name string, _ *ast.Module) bool {
		return b.manifest.Library == "default" && !strings.HasPrefix(name, "site/")
	})
	if len(own) == 0 {
		return 0, nil
	}
	report := coverage.Report(own)
	for _, name := range slices.Sorted(maps.Keys(own)) {
		for _, rule := range own[name].Rules {
			if row, missed := untested(rule, report.Files[name]); missed {
				return report.Coverage, fmt.Errorf("%s:%d: no test reaches this part of a rule that gives reasons", name, row)
			}
		}
	}
	if report.Coverage < wantCoverage {
		return report.Coverage, fmt.Errorf("tests cover %.1f %% of the bundle's Rego; want %d %%", report.Coverage, wantCoverage)
	}
	return report.Coverage, nil
}

// untested finds a line that no test reaches in a rule that adds to the set of findings.
func untested(rule *ast.Rule, file *cover.FileReport) (row int, missed bool) {
	if ref := rule.Head.Ref(); file == nil || len(ref) == 0 || !ref[0].Equal(ast.VarTerm("findings")) {
		return 0, false
	}
	first := rule.Location.Row
	last := first + strings.Count(string(rule.Location.Text), "\n")
	for _, r := range file.NotCovered {
		if r.End.Row >= first && r.Start.Row <= last {
			return max(first, r.Start.Row), true
		}
	}
	return 0, false
}
