package gateway

import (
	"time"

	"github.com/headgate/headgate/gateway/feeds"
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
			Type: p.Subject.Type, ID: p.Subject.ID, Issuer: p.Subject.Issuer, Groups: groups, Team: p.Subject.Team, Labels: labelsOf(p.Subject),
			Authn: policy.Authn{Method: p.Subject.Method, Assurance: p.Subject.Assurance},
		},
		Device: policy.Device{
			ID: p.Device.ID, Proof: p.Device.Proof, Trusted: p.Device.Trusted, Tier: p.Device.Tier,
			Platform: p.Device.Platform, Managed: p.Device.Managed, Posture: postureOf(p.Device.Facts),
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

// labelsOf are the subject's labels. What a provider says of a job beside its repository stands among them, under names
// that no configured label takes.
func labelsOf(sub identity.Subject) map[string]string {
	ci := sub.CI
	if ci == nil {
		return sub.Labels
	}
	labels := map[string]string{}
	for name, value := range map[string]string{
		"ci_owner_id": ci.OwnerID, "ci_environment": ci.Environment, "ci_event": ci.Event, "ci_workflow": ci.Workflow, "ci_pod": ci.Pod,
	} {
		if value != "" {
			labels[name] = value
		}
	}
	for name, value := range sub.Labels {
		if _, taken := labels[name]; !taken {
			labels[name] = value
		}
	}
	return labels
}

// postureOf is what feeds report of a device, without the values themselves.
func postureOf(facts map[string]identity.Fact) map[string]policy.Posture {
	if len(facts) == 0 {
		return nil
	}
	posture := make(map[string]policy.Posture, len(facts))
	for name, f := range facts {
		p := policy.Posture{State: f.State, Source: f.Source}
		if !f.ObservedAt.IsZero() {
			p.ObservedDay = int(f.ObservedAt.Unix() / day)
		}
		posture[name] = p
	}
	return posture
}

// maxAge is where ages saturate, in days: an old version's facts stay the same from one day to the next.
const maxAge = 90

// resourceOf joins what the mirror and the feeds know of a version on a day to the module's name. Facts without a source
// stay off, which is what policy.NewFacts says of them.
func resourceOf(name policy.Name, r mirror.Release, published feeds.Facts, today int) policy.Resource {
	facts := policy.NewFacts(r.Version, r.Facts.Kind, int(r.Facts.Major))
	facts.Sumdb = r.Facts.Sumdb
	facts.Known.Sumdb = "ok"
	if !r.Facts.Published.IsZero() {
		facts.PublishedDay = int(r.Facts.Published.Unix() / day)
	}
	if r.Facts.Age != "" {
		facts.Known.Age = r.Facts.Age
	}
	if r.Facts.Age == "ok" {
		facts.FirstSeenDay = int(r.Facts.FirstSeen.Unix() / day)
		facts.AgeDays = min(max(today-facts.FirstSeenDay, 0), maxAge)
	}
	facts.Retracted, facts.Known.Retracted = flagOf(r.Facts.Retracted)
	facts.Deprecated, facts.Known.Deprecated = flagOf(r.Facts.Deprecated)
	if r.Facts.OriginDrift != "" {
		facts.OriginDrift, facts.Known.Origin = r.Facts.OriginDrift, "ok"
	}
	if r.Facts.OriginDrift == "unknown" {
		facts.Known.Origin = "missing"
	}
	if o := r.Facts.Origin; o.Commit != "" {
		facts.Provenance = &policy.Origin{VCS: o.VCS, Repo: o.URL, Commit: o.Commit}
	}
	facts.Licences, facts.Known.Licences = licencesOf(r.Facts.Licences)
	joinFeeds(&facts, published)
	return policy.Resource{Name: name, Facts: facts}
}

// joinFeeds adds what others publish of a version.
func joinFeeds(facts *policy.Facts, f feeds.Facts) {
	k := &facts.Known
	k.Vulns, k.Malware, k.Popularity, k.Lookalike, k.Scorecard = f.VulnsState, f.MalwareState, f.PopularityState, f.LookalikeState, f.ScorecardState
	facts.Malware, facts.Popularity, facts.Scorecard = f.Malware, f.Popularity, f.Scorecard
	facts.Lookalike = policy.Lookalike{Of: f.LookalikeOf, Kind: f.LookalikeKind}
	if !f.AsOf.IsZero() {
		facts.Vulns.AsOfDay = int(f.AsOf.Unix() / day)
	}
	if len(f.Vulns) == 0 {
		return
	}
	facts.Vulns.IDs = make(map[string]policy.Vuln, len(f.Vulns))
	for id, v := range f.Vulns {
		facts.Vulns.MaxSeverity = max(facts.Vulns.MaxSeverity, v.Severity)
		facts.Vulns.IDs[id] = policy.Vuln{Severity: v.Severity, Fixed: v.Fixed, Kind: v.Kind}
	}
}

// licencesOf is what the zip says with the state of that fact.
func licencesOf(l mirror.Licences) (policy.Licences, string) {
	switch l.Status {
	case "":
		return policy.Licences{Status: "unknown"}, "off"
	case "missing":
		return policy.Licences{Status: "unknown"}, "missing"
	}
	return policy.Licences{IDs: namesOf(l.IDs), Status: l.Status}, "ok"
}

// flagOf is a flag with the state of its fact.
func flagOf(f mirror.Flag) (policy.Flag, string) {
	switch f.State {
	case "":
		return policy.Flag{State: "unknown"}, "off"
	case "unknown":
		return policy.Flag{State: "unknown"}, "missing"
	}
	return policy.Flag{State: f.State, Text: f.Text}, "ok"
}
