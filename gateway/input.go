package gateway

import (
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

const day = 24 * 60 * 60 // seconds; policy counts UTC days

// inputOf is what policy is asked about a request: principal and target in plain assignments.
func inputOf(p identity.Principal, t mirror.Target, v mirror.Visibility, now time.Time) *policy.Input {
	groups := make(map[string]bool, len(p.Subject.Groups))
	for _, group := range p.Subject.Groups {
		groups[group] = true
	}
	in := &policy.Input{
		Schema: policy.InputSchema,
		Subject: policy.Subject{
			Type: p.Subject.Type, ID: p.Subject.ID, Issuer: p.Subject.Issuer, Groups: groups, Team: p.Subject.Team, Labels: p.Subject.Labels,
			Authn: policy.Authn{Method: p.Subject.Method, Assurance: p.Subject.Assurance},
		},
		Device: policy.Device{
			ID: p.Device.ID, Proof: p.Device.Proof, Trusted: p.Device.Trusted, Tier: p.Device.Tier,
			Platform: p.Device.Platform, Managed: p.Device.Managed,
		},
		Action:   policy.NewAction(t.Kind.String()),
		Resource: policy.Resource{Name: policy.NewName(t.Path, string(v))},
		Context:  policy.Context{Day: int(now.Unix() / day), Zone: "corp", Mode: "enforce"},
	}
	if ci := p.Subject.CI; ci != nil {
		in.Subject.CI = &policy.CI{
			Provider: ci.Provider, RepoID: ci.RepoID, Repo: ci.Repo, Ref: ci.Ref, Protected: ci.Protected, Fork: ci.Fork,
		}
	}
	return in
}

// resourceOf joins what is known of a version to the module's name. Facts without a source stay off, which is what
// policy.NewFacts says of them.
func resourceOf(name policy.Name, r mirror.Release) policy.Resource {
	facts := policy.NewFacts(r.Version, r.Facts.Kind, int(r.Facts.Major))
	facts.Sumdb = r.Facts.Sumdb
	facts.Known.Sumdb = "ok"
	if !r.Facts.Published.IsZero() {
		facts.PublishedDay = int(r.Facts.Published.Unix() / day)
	}
	return policy.Resource{Name: name, Facts: facts}
}
