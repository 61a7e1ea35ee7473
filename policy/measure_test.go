package policy_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// few measures no more than a test needs.
var few = policy.BenchOptions{Samples: 40, List: 100}

// What is measured is there and of its order: a hit allocates next to nothing and is faster than an evaluation.
func TestBenchBundle(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"site/heavy.rego": "package site.release\n\nfindings contains {\"code\": \"HEAVY\"} if {\n\tinput.action.name == \"zip\"\n\tcount([x | some a in many; some b in many; x := a + b; x == 7]) == 1\n}\n\n" +
			"many := {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30}\n",
		"tests/x.yaml": "cases:\n- {name: old, ask: release, facts: {age_days: 50}, want: {effect: allow}}\n",
	})
	r, err := policy.BenchBundle(t.Context(), os.DirFS(dir), policies.FS, few)
	if err != nil {
		t.Fatal(err)
	}
	if r.Revision == "" || r.Rules < 50 || r.ActivateNS <= 0 || r.HeapBytes < 0 || r.ListColdNS <= 0 || r.ListWarmNS <= 0 || r.List != 100 || r.ListAnswers != 100 || len(r.Rows) != 4 {
		t.Fatalf("BenchBundle() = %+v", r)
	}
	for i, questions := range []int{1, 1, 2, 2} {
		if r.Rows[i].Questions != questions {
			t.Errorf("%+v: want %d questions: the plain one and the golden decision", r.Rows[i], questions)
		}
	}
	for i := 0; i < len(r.Rows); i += 2 {
		hit, miss := r.Rows[i], r.Rows[i+1]
		if hit.Entry != miss.Entry || !hit.Cached || miss.Cached || hit.P50NS > hit.P99NS || hit.P50NS >= miss.P50NS || hit.Allocs > 4 || miss.Allocs < 10 {
			t.Errorf("%+v, %+v: want a hit that is faster than a miss, and allocates next to nothing", hit, miss)
		}
		if hit.P50TargetNS != 100 || hit.P99TargetNS != 1000 || miss.P50TargetNS != 50_000 || miss.P99TargetNS != 500_000 {
			t.Errorf("%+v, %+v: want the targets", hit, miss)
		}
	}
	want := policy.RuleCost{File: "site/heavy.rego", Line: 3, Rule: "site.release.findings"}
	if got := r.Slowest[0]; got.File != want.File || got.Line != want.Line || got.Rule != want.Rule || got.NS <= 0 || got.Runs < 900 || len(r.Slowest) > 10 {
		t.Errorf("the slowest rules are %+v, want %+v first", r.Slowest, want)
	}
}

func TestBenchBundleBudget(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, nil)
	r, err := policy.BenchBundle(t.Context(), os.DirFS(dir), policies.FS, policy.BenchOptions{Budget: time.Nanosecond, Samples: 5, List: 5})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Rows {
		if over := m.Over() != ""; over == m.Cached {
			t.Errorf("budget of a nanosecond, cached %v: Over() = %q, want what is evaluated to be over it alone", m.Cached, m.Over())
		}
	}
}

func TestBenchBundleThatIsNotGood(t *testing.T) {
	for name, tt := range map[string]struct{ file, content, want string }{
		"does not compile":  {"site/x.rego", "package site\n\nx := http.send({})\n", "undefined function http.send"},
		"a golden mistake":  {"tests/x.yaml", "cases:\n- {name: x, ask: release, facts: {age: 3}, want: {effect: allow}}\n", "tests/x.yaml:2: x: reading facts: json: unknown field"},
		"no decision of it": {"site/x.rego", "package site.release\n\nfindings contains {\"code\": \"X\"} if to_number(\"x\") == 1\n", "asking release"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{tt.file: tt.content})
			if _, err := policy.BenchBundle(t.Context(), os.DirFS(dir), policies.FS, few); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("BenchBundle() = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestMeasurementOver(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    policy.Measurement
		want string
	}{
		{"within", policy.Measurement{P50NS: 1, P99NS: 2, P50TargetNS: 1, P99TargetNS: 2}, ""},
		{"no target", policy.Measurement{P50NS: 1, P99NS: 2}, ""},
		{"median", policy.Measurement{Entry: "access", P50NS: 2, P99NS: 2, P50TargetNS: 1, P99TargetNS: 2}, "access evaluated: p50 is 2ns, over the target of 1ns"},
		{"tail", policy.Measurement{Entry: "access", Cached: true, P50NS: 1, P99NS: 3, P50TargetNS: 1, P99TargetNS: 2}, "access cached: p99 is 3ns, over the target of 2ns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.m.Over(); got != tt.want {
				t.Errorf("Over() = %q, want %q", got, tt.want)
			}
		})
	}
}
