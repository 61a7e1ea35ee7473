package policy_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/policy"
)

// manyRules is a package of n rules.
func manyRules(n int) string {
	var b strings.Builder
	b.WriteString("package site.release\n\n")
	for i := range n {
		fmt.Fprintf(&b, "r%d if input.resource.path == \"a.io/m%d\"\n\n", i, i)
	}
	return b.String()
}

// P12: what would take a compiler's time and memory is refused before it compiles.
func TestP12Limits(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		says  string
	}{
		"P12 10,000 rules in a package": {map[string]string{"site/many.rego": manyRules(10_000)}, "more than 5000 rules of Rego, by site/many.rego"},
		"P12 rules in many files":       {map[string]string{"site/a.rego": manyRules(3000), "site/b.rego": manyRules(3000)}, "more than 5000 rules"},
		"P12 400 kB of Rego":            {map[string]string{"site/big.rego": "package site.release\n\nx := \"" + strings.Repeat("a", 400<<10) + "\"\n"}, "bytes of Rego; want at most 307200"},
		"P11 12 MB of data":             {map[string]string{"config/rules.yaml": fatRules()}, "bytes of data; want at most 10485760"},
	} {
		t.Run(name, func(t *testing.T) {
			if reason := rejected(t, tt.files); !strings.Contains(reason, tt.says) {
				t.Errorf("rejected for %.200q, want %q", reason, tt.says)
			}
		})
	}
	t.Run("P12 old generation serves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, nil)
			e := open(t, dir, policy.Options{})
			defer e.Close()
			before := e.Status().Revision
			writeFile(t, dir, "site/many.rego", manyRules(10_000))
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
			s := e.Status()
			if s.Rejection == nil || s.Rejection.State != "checked" || s.Revision != before || effect(t, e) != policy.Allow {
				t.Errorf("Status() = %+v, want the old revision, and the new one rejected", s)
			}
		})
	})
}

// fatRules is a rules.yaml below the limit of a file whose index is above that of data.
func fatRules() string {
	var b strings.Builder
	b.WriteString("profiles: [standard]\nrules:\n")
	for i := range 400 {
		fmt.Fprintf(&b, "- {id: r%d,code: B,match: {prefix: [", i)
		for j := range 60 {
			fmt.Fprintf(&b, "a.io/m%d,", 60*i+j)
		}
		b.WriteString("z]},effect: deny,remedy: none}\n")
	}
	return b.String()
}

// P13: a pattern costs time in the length of what it is matched with, and patterns that are many are not kept.
func TestP13Regex(t *testing.T) {
	t.Run("P13 costly regex", func(t *testing.T) {
		g := load(t, own(`decision := allowed if not regex.match("^(a+)+$", input.resource.path)`))
		in := person("example.com/"+strings.Repeat("a", 2000)+"b", "public")
		if d, err := g.Access(t.Context(), in); err != nil || d.Effect != policy.Allow {
			t.Errorf("Access() = %s, %v: a pattern that backtracks would never end", d.Effect, err)
		}
	})
	t.Run("P13 10,000 distinct regexes", func(t *testing.T) {
		g := load(t, own(`decision := object.union(allowed, {"labels": {"n": format_int(count([p | some p, true in input.subject.groups; regex.match(p, input.resource.path)]), 10)}})`))
		before := heap()
		for round := range 50 {
			in := person("example.com/m", "public")
			in.Subject.Groups = map[string]bool{}
			for i := range 200 {
				in.Subject.Groups[fmt.Sprintf("^%d(a|b|c|d){40}x{40}$", 200*round+i)] = true
			}
			if d, err := g.Access(t.Context(), in); err != nil || d.Labels["n"] != "0" {
				t.Fatalf("round %d: %v, %v", round, d.Labels, err)
			}
		}
		if grown := heap() - before; grown > 48<<20 {
			t.Errorf("10,000 patterns left %d MB on the heap", grown>>20)
		}
		runtime.KeepAlive(g)
	})
}

// P31: what a binary cannot compile any more it names before it is started, and when it is started it takes the next older
// archive, else nothing.
func TestP31Stored(t *testing.T) {
	start := func(t *testing.T, spoil ...int) (dir, state string) {
		t.Helper()
		dir, state = t.TempDir(), t.TempDir()
		for i, files := range []map[string]string{nil, {"config/teams.yaml": denyExample}} {
			write(t, dir, files)
			e := open(t, dir, policy.Options{State: state})
			e.Close()
			for _, n := range spoil {
				if n == i {
					policy.SpoilArchive(t, e)
				}
			}
		}
		writeFile(t, dir, "bundle.yaml", "") // the source is away
		return dir, state
	}
	cfg := func(dir string) policy.Config { return policy.Config{Source: "folder", Path: dir} }
	t.Run("P31 all compile", func(t *testing.T) {
		dir, state := start(t)
		all, err := policy.TestStored(t.Context(), cfg(dir), policy.Options{State: state})
		if err != nil || len(all) != 2 || all[0].State != "" || all[1].State != "" || all[0].Revision == all[1].Revision {
			t.Errorf("TestStored() = %+v, %v, want two that are good", all, err)
		}
	})
	t.Run("P31 the newest does not: stored says so, a start takes the older", func(t *testing.T) {
		dir, state := start(t, 1)
		all, err := policy.TestStored(t.Context(), cfg(dir), policy.Options{State: state})
		if err != nil || len(all) != 2 || all[0].State != "checked" || !strings.Contains(strings.Join(all[0].Failures, " "), "undefined function old.builtin") || all[1].State != "" {
			t.Errorf("TestStored() = %+v, %v, want the newest named", all, err)
		}
		e := open(t, dir, policy.Options{State: state})
		if s := e.Status(); !s.Restored || effect(t, e) != policy.Allow {
			t.Errorf("Status() = %+v, want the older archive restored", s)
		}
	})
	t.Run("P31 none does", func(t *testing.T) {
		dir, state := start(t, 0, 1)
		if _, err := open(t, dir, policy.Options{State: state}).Current(); err == nil {
			t.Error("a bundle that does not compile is active")
		}
	})
	t.Run("P31 nothing is stored", func(t *testing.T) {
		if all, err := policy.TestStored(t.Context(), cfg("x"), policy.Options{State: filepath.Join(t.TempDir(), "none")}); err == nil || len(all) > 0 {
			t.Errorf("TestStored() = %+v, %v, want an error", all, err)
		}
	})
}
