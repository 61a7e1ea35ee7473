package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// goldenFile is tests/*.yaml: questions with the decisions that a bundle must give.
type goldenFile struct {
	Cases []goldenCase `yaml:"cases"`
}

type goldenCase struct {
	Name    string `yaml:"name"`
	Ask     string `yaml:"ask"` // access or release
	Day     string `yaml:"day"` // "" is today
	Subject struct {
		ID     string   `yaml:"id"`
		Type   string   `yaml:"type"`
		Team   string   `yaml:"team"`
		Groups []string `yaml:"groups"`
		Job    string   `yaml:"job"` // PROVIDER:REPO_ID
	} `yaml:"subject"`
	Device struct {
		Proof   string `yaml:"proof"`
		Trusted bool   `yaml:"trusted"`
		Tier    int    `yaml:"tier"`
	} `yaml:"device"`
	Action     string         `yaml:"action"`
	Zone       string         `yaml:"zone"`
	Module     string         `yaml:"module"`
	Visibility string         `yaml:"visibility"`
	Version    string         `yaml:"version"`
	Kind       string         `yaml:"kind"`
	Profile    string         `yaml:"profile"`
	Waivers    []string       `yaml:"waivers"`
	Facts      map[string]any `yaml:"facts"` // in the words of input.resource
	Want       struct {
		Effect  string   `yaml:"effect"`
		Remedy  string   `yaml:"remedy"`
		Profile string   `yaml:"profile"`
		Codes   []string `yaml:"codes"`
		Visible *bool    `yaml:"visible"`
	} `yaml:"want"`
}

// testGolden asks what tests/*.yaml say, and holds the answers to what they want.
func (b *bundle) testGolden(ctx context.Context, g *Generation) (ran int, err error) {
	var failed []string
	err = b.eachGolden(func(c *goldenCase, doc *document, at string) {
		ran++
		if err := c.run(ctx, g, doc, at); err != nil {
			failed = append(failed, fmt.Sprintf("%s:%d: %s: %v", doc.name, doc.lines[at], c.Name, err))
		}
	})
	if err == nil && len(failed) > 0 {
		err = &failedTestsError{"golden decisions differ", failed, ran}
	}
	return ran, err
}

// eachGolden calls do with each case of tests/*.yaml and where in its document it stands.
func (b *bundle) eachGolden(do func(c *goldenCase, doc *document, at string)) error {
	for _, name := range slices.Sorted(maps.Keys(b.tests)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		var file goldenFile
		doc, err := decodeYAML(name, "golden", b.tests[name], &file)
		if err != nil {
			return err
		}
		for i := range file.Cases {
			do(&file.Cases[i], doc, fmt.Sprintf("/cases/%d", i))
		}
		if err := doc.err(); err != nil {
			return err
		}
	}
	return nil
}

func (c *goldenCase) run(ctx context.Context, g *Generation, doc *document, at string) error {
	in, err := c.input(doc, at)
	if err != nil {
		return err
	}
	var d Decision
	if c.Ask == "access" {
		d, err = g.Access(ctx, in)
	} else {
		var all []Decision
		if all, err = g.Release(ctx, in, []Resource{in.Resource}); err == nil {
			d = all[0]
		}
	}
	if err != nil {
		return err
	}
	e := map[string]*entryPoint{"access": g.access, "release": g.release}[c.Ask]
	if err := e.agrees(ctx, in); err != nil {
		return err
	}
	return c.differs(d)
}

func (c *goldenCase) differs(d Decision) error {
	w := c.Want
	switch {
	case string(d.Effect) != w.Effect || w.Remedy != "" && string(d.Remedy) != w.Remedy:
		return fmt.Errorf("it is %s %s %v, want %s %s", d.Effect, d.Remedy, d.Codes, w.Effect, w.Remedy)
	case w.Codes != nil && !slices.Equal(d.Codes, slices.Sorted(slices.Values(w.Codes))):
		return fmt.Errorf("its codes are %v, want %v", d.Codes, w.Codes)
	case w.Profile != "" && d.Profile != w.Profile:
		return fmt.Errorf("its profile is %q, want %q", d.Profile, w.Profile)
	case w.Visible != nil && d.Visible != *w.Visible:
		return fmt.Errorf("it is visible: %v, want %v", d.Visible, *w.Visible)
	}
	return nil
}

// input is a complete question: a person with a token who asks for the zip of a public release, changed as the case says.
func (c *goldenCase) input(doc *document, at string) (*Input, error) {
	in := plainInput(first(c.Module, "example.com/m"), first(c.Visibility, "public"), first(c.Version, "v1.0.0"), first(c.Kind, "release"))
	if c.Day != "" {
		in.Context.Day = doc.day(at+"/day", c.Day)
	}
	in.Context.Zone, in.Action = first(c.Zone, "corp"), NewAction(first(c.Action, "zip"))
	in.Context.Profile = first(c.Profile, "standard")
	for _, id := range c.Waivers {
		in.Context.Waivers[id] = true
	}
	in.Subject.ID, in.Subject.Type, in.Subject.Team = first(c.Subject.ID, "ann"), first(c.Subject.Type, "person"), c.Subject.Team
	for _, group := range c.Subject.Groups {
		in.Subject.Groups[group] = true
	}
	if provider, id, ok := strings.Cut(c.Subject.Job, ":"); ok {
		in.Subject.Type, in.Subject.CI = "workload", &CI{Provider: provider, RepoID: id}
	}
	in.Device.Proof, in.Device.Trusted, in.Device.Tier = first(c.Device.Proof, "none"), c.Device.Trusted, c.Device.Tier
	text, err := json.Marshal(c.Facts)
	if err != nil {
		return nil, fmt.Errorf("reading facts: %w", err)
	}
	if len(c.Facts) == 0 {
		return in, nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&in.Resource.Facts); err != nil {
		return nil, fmt.Errorf("reading facts: %w", err)
	}
	return in, nil
}

// plainInput is a question that nothing but a rule on its path or version can refuse.
func plainInput(path, visibility, version, kind string) *Input {
	facts := NewFacts(version, kind, 1)
	facts.Sumdb, facts.OriginDrift, facts.AgeDays = "verified", "same", 90
	facts.Retracted.State, facts.Deprecated.State = "no", "no"
	facts.Known.Sumdb, facts.Known.Origin, facts.Known.Retracted, facts.Known.Deprecated = "ok", "ok", "ok", "ok"
	return &Input{
		Schema:   InputSchema,
		Subject:  Subject{Type: "person", ID: "ann", Issuer: "test", Groups: map[string]bool{}, Labels: map[string]string{}, Authn: Authn{Method: "token", Assurance: 1}},
		Device:   Device{Proof: "none", Platform: "linux", Posture: map[string]Posture{}},
		Action:   NewAction("zip"),
		Resource: Resource{Name: NewName(path, visibility), Facts: facts},
		Context:  Context{Day: today(), Zone: "corp", Mode: "enforce", Profile: "standard", Waivers: map[string]bool{}},
	}
}

// agrees holds the answer on the input cut to the read-set to the answer on all of it.
func (e *entryPoint) agrees(ctx context.Context, in *Input) error {
	v := reflect.ValueOf(in).Elem()
	full, err1 := e.evaluate(ctx, toTerm(v), nil, oneTest)
	cut, err2 := e.evaluate(ctx, e.reads.root.project(v), nil, oneTest)
	full.Eval, full.Projected, cut.Eval, cut.Projected = Eval{}, nil, Eval{}, nil
	if (err1 == nil) != (err2 == nil) || err1 == nil && !reflect.DeepEqual(full, cut) {
		return fmt.Errorf("%s answers otherwise on the part of the input that it is known to read", e.name)
	}
	return nil
}
