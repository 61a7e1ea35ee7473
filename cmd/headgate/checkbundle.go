package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// A localBundle is the policy of a folder, asked without a gateway.
type localBundle struct {
	dir, facts      string
	groups, private []string

	generation *policy.Generation
	known      map[string]json.RawMessage // facts by PATH@VERSION
}

// open takes the bundle as a gateway with `source: folder` would, and reads the facts.
func (b *localBundle) open(ctx context.Context) (checker, error) {
	engine, err := policy.Open(ctx, policy.Config{Source: "folder", Path: b.dir}, policy.Options{Embedded: policies.FS})
	if err != nil {
		return nil, err
	}
	b.generation, err = engine.Current()
	if r := engine.Status().Rejection; err != nil && r != nil {
		err = fmt.Errorf("the policy in %s is not good: %s; see headgate policy test", b.dir, r.Reason)
	}
	if err := errors.Join(err, engine.Close()); err != nil {
		return nil, err
	}
	if b.facts != "" {
		text, err := os.ReadFile(b.facts)
		if err == nil {
			err = json.Unmarshal(text, &b.known)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the facts: %w", err)
		}
	}
	if len(b.private) == 0 {
		out, err := runGo(ctx, "env", "GOPRIVATE")
		if err != nil {
			return nil, err
		}
		b.private = []string{strings.TrimSpace(out)}
	}
	return b, nil
}

func (b *localBundle) name() string { return b.dir }

func (b *localBundle) check(ctx context.Context, needs []need, tell func(int)) ([]gateway.EvaluationAnswer, error) {
	answers := make([]gateway.EvaluationAnswer, len(needs))
	for i, n := range needs {
		tell(i)
		if n.problem != "" {
			answers[i] = unanswered(n)
			continue
		}
		d, err := b.decide(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("asking about %s: %w", n, err)
		}
		answers[i].Decision = d.Effect == policy.Allow
		answers[i].Context = gateway.EvaluationReason{Decision: &d, Revision: b.generation.Revision()}
		answers[i].Context.Text = d.Text(policy.TextOptions{Target: n.String(), ID: "none", Revision: b.generation.Revision()})
	}
	return answers, nil
}

// decide asks both questions, as a gateway does.
func (b *localBundle) decide(ctx context.Context, n need) (policy.Decision, error) {
	in, err := b.input(n)
	if err != nil {
		return policy.Decision{}, err
	}
	access, err := b.generation.Access(ctx, in)
	if err != nil || access.Effect != policy.Allow {
		return access, err
	}
	in.Context.Profile, in.Context.Waivers = access.Profile, map[string]bool{}
	for _, id := range access.Waivers {
		in.Context.Waivers[id] = true
	}
	release, err := b.generation.Release(ctx, in, []policy.Resource{in.Resource})
	if err != nil {
		return policy.Decision{}, err
	}
	return policy.Combine(access, release[0]), nil
}

// input is a person with a token and these groups, and what the facts say of the version.
func (b *localBundle) input(n need) (*policy.Input, error) {
	visibility := "public"
	if module.MatchPrefixPatterns(strings.Join(b.private, ","), n.Path) {
		visibility = "private"
	}
	major, _ := strconv.Atoi(strings.TrimPrefix(semver.Major(n.Version.Version), "v")) // a canonical version's is a number
	in := &policy.Input{
		Schema:   policy.InputSchema,
		Subject:  policy.Subject{Type: "person", Groups: map[string]bool{}, Labels: map[string]string{}, Authn: policy.Authn{Method: "token"}},
		Device:   policy.Device{Proof: "none", Platform: "unknown"},
		Action:   policy.NewAction(n.action()),
		Resource: policy.Resource{Name: policy.NewName(n.Path, visibility), Facts: policy.NewFacts(n.Version.Version, kindOf(n.Version.Version), major)},
		Context:  policy.Context{Day: int(time.Now().Unix() / (24 * 60 * 60)), Zone: "ci", Mode: "whatif"},
	}
	for _, group := range b.groups {
		in.Subject.Groups[group] = true
	}
	if text := b.known[n.String()]; len(text) > 0 {
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&in.Resource.Facts); err != nil {
			return nil, fmt.Errorf("reading its facts: %w", err)
		}
	}
	return in, nil
}

// kindOf is what policy calls a kind of version.
func kindOf(version string) string {
	switch {
	case module.IsPseudoVersion(version):
		return "pseudo"
	case strings.HasSuffix(version, "+incompatible"):
		return "incompatible"
	case semver.Prerelease(version) != "":
		return "prerelease"
	}
	return "release"
}
