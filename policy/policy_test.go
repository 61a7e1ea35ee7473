package policy_test

import (
	"context"
	"testing"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// day is 2027-01-20, the day of all tests that do not care.
const day = 20838

// person is an engineer on an unknown device who asks for a zip.
func person(path, visibility string, groups ...string) *policy.Input {
	in := &policy.Input{
		Schema:   policy.InputSchema,
		Subject:  policy.Subject{Type: "person", ID: "u1", Issuer: "corp", Groups: map[string]bool{}, Authn: policy.Authn{Method: "token"}},
		Device:   policy.Device{Proof: "none", Platform: "unknown"},
		Action:   policy.NewAction("zip"),
		Resource: policy.Resource{Name: policy.NewName(path, visibility)},
		Context:  policy.Context{Day: day, Zone: "corp", Mode: "enforce"},
	}
	for _, g := range groups {
		in.Subject.Groups[g] = true
	}
	return in
}

// version is a release of which nothing bad is known.
func version(path, v string) policy.Resource {
	f := policy.NewFacts(v, "release", 1)
	f.Sumdb = "verified"
	return policy.Resource{Name: policy.NewName(path, "public"), Facts: f}
}

func openEmbedded(t testing.TB) *policy.Generation {
	t.Helper()
	e, err := policy.Open(t.Context(), policy.Config{}, policy.Options{Embedded: policies.FS})
	if err != nil {
		t.Fatalf("Open(embedded) = %v", err)
	}
	t.Cleanup(func() { e.Close() })
	g, err := e.Current()
	if err != nil {
		t.Fatalf("Current() = %v", err)
	}
	return g
}

// ask puts both questions for one version, as the gateway does.
func ask(t testing.TB, g *policy.Generation, in *policy.Input, r policy.Resource) policy.Decision {
	t.Helper()
	a, err := g.Access(t.Context(), in)
	if err != nil {
		t.Fatalf("Access(%s) = %v", in.Resource.Path, err)
	}
	if a.Effect != policy.Allow {
		return a
	}
	at := *in
	at.Context.Profile, at.Context.Waivers = a.Profile, map[string]bool{}
	for _, id := range a.Waivers {
		at.Context.Waivers[id] = true
	}
	ds, err := g.Release(t.Context(), &at, []policy.Resource{r})
	if err != nil {
		t.Fatalf("Release(%s@%s) = %v", r.Path, r.Version, err)
	}
	return policy.Combine(a, ds[0])
}

func TestEmbedded(t *testing.T) {
	g := openEmbedded(t)
	t.Run("P30 public module is served", func(t *testing.T) {
		d := ask(t, g, person("example.com/m", "public"), version("example.com/m", "v1.2.3"))
		if d.Effect != policy.Allow || !d.Visible || d.Profile != "standard" {
			t.Errorf("decision = %+v, want allow, visible, profile standard", d)
		}
	})
	t.Run("P30 private module is not", func(t *testing.T) {
		d, err := g.Access(context.Background(), person("corp.example/m", "private"))
		if err != nil || d.Effect != policy.Deny || d.Codes[0] != "PATH-NOT-ALLOWED" {
			t.Errorf("Access(private) = %+v, %v, want PATH-NOT-ALLOWED", d, err)
		}
	})
}
