package policy_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/headgate/headgate/policy"
)

// large is a bundle of 200 teams and 10,000 rules.
func large() map[string]string {
	var teams, rules strings.Builder
	teams.WriteString("teams:\n  everyone: {profile: standard, public: true}\n")
	for i := range 200 {
		fmt.Fprintf(&teams, "  t%d: {profile: strict, groups: [g%d], allow: [corp.example/t%d, corp.example/shared%d], deny: [example.com/no%d]}\n", i, i, i, i%10, i)
	}
	rules.WriteString("profiles: [open, standard, strict]\nrules:\n")
	rules.WriteString("- {id: young, code: COOLDOWN, match: {visibility: public, age_below_days: 7}, effect: deny, remedy: wait}\n")
	rules.WriteString("- {id: retracted, code: RETRACTED, match: {retracted: true}, effect: hide}\n")
	for i := range 9998 {
		fmt.Fprintf(&rules, "- {id: r%d,code: B,match: {prefix: [a.io/m%d],versions: v1.5.3},effect: deny,remedy: none}\n", i, i)
	}
	return map[string]string{"config/teams.yaml": teams.String(), "config/rules.yaml": rules.String()}
}

// P12: activation of 10,000 rules: time, what it allocates, and what stays on the heap beside the generation before.
func BenchmarkActivate(b *testing.B) {
	dir := b.TempDir()
	write(b, dir, large())
	before := heap()
	g := load(b, large())
	kept := heap() - before
	b.ReportAllocs()
	for b.Loop() {
		e := open(b, dir, policy.Options{})
		if _, err := e.Current(); err != nil {
			b.Fatal(err, e.Status().Rejection)
		}
		e.Close()
	}
	b.ReportMetric(float64(kept)/(1<<20), "heap-MB")
	runtime.KeepAlive(g)
}

// heap is what is reachable.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkAccess(b *testing.B) {
	g := load(b, large())
	in := person("a.io/m77", "public", "g1", "g2", "g3", "staff", "all-engineers")
	b.Run("hit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if d, err := g.Access(b.Context(), in); err != nil || d.Effect != policy.Allow {
				b.Fatal(d, err)
			}
		}
	})
	b.Run("hit, parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if d, err := g.Access(b.Context(), in); err != nil || d.Effect != policy.Allow {
					b.Fatal(d, err)
				}
			}
		})
	})
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			in.Resource.Name = policy.NewName(fmt.Sprintf("a.io/m%d", i), "public")
			if d, err := g.Access(b.Context(), in); err != nil || d.Effect != policy.Allow {
				b.Fatal(d, err)
			}
		}
	})
}

func BenchmarkRelease(b *testing.B) {
	g := load(b, large())
	in := person("a.io/m77", "public")
	in.Context.Profile = "standard"
	r := version("a.io/m77", "v1.5.3")
	r.Known.Age, r.AgeDays = "ok", 90
	b.Run("hit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if ds, err := g.Release(b.Context(), in, []policy.Resource{r}); err != nil || ds[0].Effect != policy.Deny {
				b.Fatal(ds, err)
			}
		}
	})
	list := func(day int) []policy.Resource {
		rs := make([]policy.Resource, 2000)
		for i := range rs {
			rs[i] = version("a.io/m77", fmt.Sprintf("v1.%d.%d", i/100, i%100))
			rs[i].Known.Age, rs[i].AgeDays, rs[i].FirstSeenDay = "ok", 90, day
			rs[i].Known.Retracted, rs[i].Retracted.State = "ok", "no"
		}
		return rs
	}
	in.Action = policy.NewAction("list")
	b.Run("list of 2000, cold", func(b *testing.B) {
		b.ReportAllocs()
		day := 1
		for b.Loop() {
			day++ // each round has other facts, so nothing is known
			rs := list(day)
			if ds, err := g.Release(b.Context(), in, rs); err != nil || len(ds) != 2000 {
				b.Fatal(err)
			}
		}
	})
	b.Run("list of 2000, warm", func(b *testing.B) {
		b.ReportAllocs()
		rs := list(1)
		if _, err := g.Release(b.Context(), in, rs); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if ds, err := g.Release(b.Context(), in, rs); err != nil || len(ds) != 2000 {
				b.Fatal(err)
			}
		}
	})
}
