package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/headgate/headgate/policy"
)

func access(t testing.TB, g *policy.Generation, in *policy.Input) policy.Decision {
	t.Helper()
	d, err := g.Access(t.Context(), in)
	if err != nil {
		t.Fatalf("Access() = %v", err)
	}
	return d
}

func TestCache(t *testing.T) {
	t.Run("P33 subjects that differ in a field that is not read share an answer", func(t *testing.T) {
		g := corp(t)
		a, b := person("example.com/m", "public", "x"), person("example.com/m", "public", "x")
		b.Subject.ID, b.Subject.Issuer, b.Device.ID, b.Subject.Labels = "u2", "other", "d7", map[string]string{"cost": "1"}
		if first, second := access(t, g, a), access(t, g, b); first.Eval.Cached || !second.Eval.Cached || first.Eval.KeyHash != second.Eval.KeyHash {
			t.Errorf("cached = %t, %t, want false, true and one key", first.Eval.Cached, second.Eval.Cached)
		}
	})
	t.Run("P33 subjects that differ in a field that is read do not", func(t *testing.T) {
		g := corp(t)
		a, b := person("corp.example/tools", "private", "eng-tools"), person("corp.example/tools", "private", "eng-payments")
		if first, second := access(t, g, a), access(t, g, b); first.Effect != policy.Allow || second.Effect != policy.Deny || second.Eval.Cached {
			t.Errorf("effects = %s, %s, cached %t, want allow, deny, not cached", first.Effect, second.Effect, second.Eval.Cached)
		}
	})
	t.Run("P33 a policy that reads the id", func(t *testing.T) {
		g := load(t, own(`decision := allowed if input.subject.id != "mallory"`+"\n\n"+`decision := object.union(allowed, {"profile": "open"}) if input.subject.id == "mallory"`))
		a, b := person("example.com/m", "public"), person("example.com/m", "public")
		b.Subject.ID = "mallory"
		if first, second := access(t, g, a), access(t, g, b); first.Profile != "standard" || second.Profile != "open" || second.Eval.Cached {
			t.Errorf("profiles = %s, %s, cached %t, want standard, open, not cached", first.Profile, second.Profile, second.Eval.Cached)
		}
	})
	t.Run("P34 new policy reuses nothing", func(t *testing.T) {
		in := person("example.com/m", "public")
		access(t, corp(t), in)
		if d := access(t, load(t, own(`decision := allowed if input.subject.id != ""`)), in); d.Eval.Cached || !strings.Contains(string(d.Projected), `"id":"u1"`) {
			t.Errorf("decision = %+v, want a new evaluation that reads the id", d)
		}
	})
	t.Run("P35 waiver that expires today", func(t *testing.T) {
		g := corp(t)
		in := person("example.com/abandoned/x", "public", "eng-payments")
		in.Context.Day = 20843 // 2027-01-25
		for range 2 {
			if d := access(t, g, in); d.Effect != policy.Allow || *d.ValidUntilDay != 20844 {
				t.Errorf("effect on the last day = %s until %v, want allow until 20844", d.Effect, d.ValidUntilDay)
			}
		}
		in.Context.Day++
		if d := access(t, g, in); d.Effect != policy.Deny {
			t.Errorf("effect after the last day = %s, want deny", d.Effect)
		}
	})
	t.Run("P36 a failure is not kept", func(t *testing.T) {
		g := load(t, own(endless))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.Access(ctx, person("example.com/m", "public")); !errors.Is(err, context.Canceled) {
			t.Errorf("Access(cancelled) = %v", err)
		}
		g = corp(t)
		if _, err := g.Access(ctx, person("example.com/m", "public")); !errors.Is(err, context.Canceled) {
			t.Errorf("Access(cancelled) = %v", err)
		}
		if d := access(t, g, person("example.com/m", "public")); d.Effect != policy.Allow || d.Eval.Cached {
			t.Errorf("decision after the failure = %+v, want allow", d)
		}
	})
	t.Run("P37 groups in other order, doubled, other Unicode form", func(t *testing.T) {
		g := corp(t)
		first := access(t, g, person("example.com/m", "public", "b", "a", "caf\u00e9"))
		for _, groups := range [][]string{{"a", "caf\u00e9", "b"}, {"cafe\u0301", "a", "b"}, {"cafe\u0301", "a", "caf\u00e9", "b", "a"}} {
			if d := access(t, g, person("example.com/m", "public", groups...)); !d.Eval.Cached || d.Eval.KeyHash != first.Eval.KeyHash {
				t.Errorf("groups %q: cached %t, key %s, want the key %s", groups, d.Eval.Cached, d.Eval.KeyHash, first.Eval.KeyHash)
			}
		}
	})
	t.Run("P37 groups that would run together are not one", func(t *testing.T) {
		g := corp(t)
		a := access(t, g, person("example.com/m", "public", "ab", "c"))
		b := access(t, g, person("example.com/m", "public", "a", "bc"))
		if b.Eval.Cached || a.Eval.KeyHash == b.Eval.KeyHash {
			t.Errorf("keys %s and %s, want two", a.Eval.KeyHash, b.Eval.KeyHash)
		}
	})
	t.Run("one evaluation for many callers", func(t *testing.T) {
		g := corp(t)
		var wg sync.WaitGroup
		fresh := make(chan bool, 64)
		for range 64 {
			wg.Go(func() { fresh <- !access(t, g, person("example.com/flight", "public")).Eval.Cached })
		}
		wg.Wait()
		close(fresh)
		n := 0
		for f := range fresh {
			if f {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d callers evaluated, want 1", n)
		}
	})
	t.Run("versions of a list keep their order", func(t *testing.T) {
		g := corp(t)
		in := person("example.com/bad", "public")
		in.Context.Profile, in.Action = "standard", policy.NewAction("list")
		var rs []policy.Resource
		for i := range 300 {
			rs = append(rs, version("example.com/bad", fmt.Sprintf("v1.%d.%d", 4+i%3, i)))
		}
		ds, err := g.Release(t.Context(), in, rs)
		if err != nil || len(ds) != len(rs) {
			t.Fatalf("Release() = %d decisions, %v, want %d", len(ds), err, len(rs))
		}
		for i, d := range ds {
			if (d.Effect == policy.Deny) != (i%3 == 1) {
				t.Errorf("%s is %s", rs[i].Version, d.Effect)
			}
		}
	})
}

// TestProjection generates policies and inputs: the answer on the projected input is the answer on the full one, and a
// leaf that the policy does not read never changes it.
func TestProjection(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 25 {
		conditions, readsOf := randomConditions(random)
		cut := load(t, own("decision := object.union(allowed, {\"labels\": {\"hit\": concat(\",\", sort(hits))}})\n\n"+conditions))
		// The same policy, made to read everything: it is evaluated on the full input.
		whole := load(t, own("decision := object.union(allowed, {\"labels\": {\"hit\": concat(\",\", sort(hits))}}) if is_object(input)\n\n"+conditions))
		for range 20 {
			in := randomInput(random)
			a, b := access(t, cut, in), access(t, whole, in)
			if !maps.Equal(a.Labels, b.Labels) {
				t.Fatalf("projected %v, full %v for\n%s\ninput %s", a.Labels, b.Labels, conditions, b.Projected)
			}
			if bytes.Equal(a.Projected, b.Projected) {
				t.Fatalf("nothing was cut from %s", b.Projected)
			}
			other := *in
			if !readsOf["subject.id"] {
				other.Subject.ID += "x"
			}
			if !readsOf["context.zone"] {
				other.Context.Zone = "internet"
			}
			if !readsOf["device.posture"] {
				other.Device.Posture = map[string]policy.Posture{"disk": {State: "fail"}}
			}
			if c := access(t, cut, &other); !c.Eval.Cached || !maps.Equal(a.Labels, c.Labels) {
				t.Fatalf("leaf that is not read changed %v to %v, cached %t, for\n%s", a.Labels, c.Labels, c.Eval.Cached, conditions)
			}
		}
	}
}

// randomConditions are rules that look at some leaves, in the many ways that Rego has.
func randomConditions(random *rand.Rand) (rules string, reads map[string]bool) {
	all := []struct{ leaf, text string }{
		{"subject.id", `input.subject.id == "u1"`},
		{"subject.id", `startswith(input.subject.id, "u")`},
		{"subject.groups", `input.subject.groups.a`},
		{"subject.groups", `some g, true in input.subject.groups; g == "b"`},
		{"subject.groups", `count(input.subject.groups) > 1`},
		{"subject.groups", `not input.subject.groups["c"]`},
		{"subject.ci", `input.subject.ci.repo_id == "7"`},
		{"subject.ci", `input.subject.ci == null`},
		{"subject.ci", `not input.subject.ci`},
		{"subject.labels", `input.subject.labels[k] == "1"; k != "z"`},
		{"device.trusted", `input.device.trusted`},
		{"device.tier", `input.device.tier >= 2`},
		{"device.posture", `input.device.posture.disk.state == "ok"`},
		{"device.posture", `every p in input.device.posture { p.state == "ok" }`},
		{"resource.prefixes", `"example.com/a" in input.resource.prefixes`},
		{"resource.prefixes", `input.resource.prefixes[0] == "example.com"`},
		{"resource.path", `endswith(input.resource.path, "b")`},
		{"context.day", `input.context.day > 20838`},
		{"context.zone", `input.context.zone in {"corp", "ci"}`},
		{"device", `some k; input.device[k] == "mtls"`},
		{"subject.authn", `object.get(input.subject.authn, "assurance", 0) == 2`},
		{"action.name", `x := input.action; x.name == "zip"`},
	}
	reads = map[string]bool{}
	var b strings.Builder
	for i := range 1 + random.IntN(5) {
		c := all[random.IntN(len(all))]
		reads[c.leaf] = true
		if c.leaf == "device" {
			reads["device.posture"] = true
		}
		fmt.Fprintf(&b, "hits contains \"%d\" if { %s }\n\n", i, c.text)
	}
	return b.String(), reads
}

func randomInput(random *rand.Rand) *policy.Input {
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	in := person(pick("example.com/a", "example.com/b", "example.com/a/b", "corp.example/b"), pick("public", "private"))
	in.Subject.ID = pick("u1", "u2", "x1")
	for range random.IntN(4) {
		in.Subject.Groups[pick("a", "b", "c", "caf\u00e9", "cafe\u0301")] = true
	}
	if random.IntN(2) == 0 {
		in.Subject.CI = &policy.CI{Provider: "github", RepoID: pick("7", "8")}
	}
	in.Subject.Labels = map[string]string{pick("x", "z"): pick("1", "2")}
	in.Subject.Authn.Assurance = random.IntN(4)
	in.Device.Trusted, in.Device.Tier, in.Device.Proof = random.IntN(2) == 0, random.IntN(5), pick("none", "mtls")
	if random.IntN(2) == 0 {
		in.Device.Posture = map[string]policy.Posture{"disk": {State: pick("ok", "fail")}}
	}
	in.Context.Day, in.Context.Zone = day+random.IntN(3), pick("corp", "ci", "vpn")
	in.Action = policy.NewAction(pick("zip", "mod", "list"))
	return in
}
