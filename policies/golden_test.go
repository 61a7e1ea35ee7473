package policies_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// golden is one question of tests/*.yaml with what is wanted.
type golden struct {
	Name, Ask, Day, Action, Module, Visibility, Version, Kind, Profile string

	Subject struct{ Type, Job string }
	Facts   map[string]any
	Want    struct {
		Effect, Remedy, Profile string
		Codes                   []string
		Visible                 *bool
	}
}

// TestGolden asks the embedded bundle, through the engine that serves it.
func TestGolden(t *testing.T) {
	content, err := os.ReadFile("tests/default.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []golden }
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) < 35 {
		t.Fatalf("tests/default.yaml has %d cases, want at least 35", len(file.Cases))
	}
	engine, err := policy.Open(t.Context(), policy.Config{}, policy.Options{Embedded: policies.FS})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	g, err := engine.Current()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			d := c.decide(t, g)
			w := c.Want
			if string(d.Effect) != w.Effect || string(d.Remedy) != w.Remedy ||
				w.Codes != nil && !slices.Equal(d.Codes, w.Codes) || w.Profile != "" && d.Profile != w.Profile || w.Visible != nil && d.Visible != *w.Visible {
				t.Errorf("decision is %s %q %q, profile %q, visible %t; want %+v", d.Effect, d.Remedy, d.Codes, d.Profile, d.Visible, w)
			}
			text := d.Text(policy.TextOptions{Target: "example.com/m@v1.0.0", ID: "abcd1234", Revision: "4f1c2ab"})
			if d.Effect == policy.Deny && (len(d.Codes) == 0 || !strings.HasPrefix(text, d.Reasons[0].Code+": ") || strings.ContainsAny(text, "{}")) {
				t.Errorf("the refusal reads\n%s", text)
			}
		})
	}
}

func (c golden) decide(t *testing.T, g *policy.Generation) policy.Decision {
	t.Helper()
	or := func(text, other string) string {
		if text == "" {
			return other
		}
		return text
	}
	facts := policy.NewFacts(or(c.Version, "v1.0.0"), or(c.Kind, "release"), 1)
	facts.Sumdb, facts.AgeDays, facts.Known.Sumdb = "verified", 90, "ok"
	text, err := json.Marshal(c.Facts)
	if err == nil && c.Facts != nil {
		err = json.Unmarshal(text, &facts)
	}
	if err != nil {
		t.Fatal(err)
	}
	in := &policy.Input{
		Schema: policy.InputSchema, Subject: policy.Subject{Type: or(c.Subject.Type, "person"), ID: "ann"},
		Device: policy.Device{Proof: "none", Platform: "linux"}, Action: policy.NewAction(or(c.Action, "zip")),
		Resource: policy.Resource{Name: policy.NewName(or(c.Module, "example.com/m"), or(c.Visibility, "public")), Facts: facts},
		Context:  policy.Context{Day: 20838, Zone: "corp", Mode: "enforce", Profile: or(c.Profile, "standard")},
	}
	if c.Day != "" {
		at, err := time.Parse(time.DateOnly, c.Day)
		if err != nil {
			t.Fatal(err)
		}
		in.Context.Day = int(at.Unix() / 86400)
	}
	if provider, id, ok := strings.Cut(c.Subject.Job, ":"); ok {
		in.Subject.Type, in.Subject.CI = "workload", &policy.CI{Provider: provider, RepoID: id}
	}
	if c.Ask == "access" {
		d, err := g.Access(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	all, err := g.Release(t.Context(), in, []policy.Resource{in.Resource})
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}
