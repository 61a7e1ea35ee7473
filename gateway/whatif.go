package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// A question is a what-if question, ready to be put to policy.
type question struct {
	input  *policy.Input
	target mirror.Target
	facts  []byte // JSON that takes the place of what is known of the version
	beyond bool   // the asker's own credential does not reach it
}

// question makes one of an evaluation. About oneself, as one is known here, everybody may ask; about others, another
// device, day, zone or other facts it needs an administrator.
func (s *Server) question(e Evaluation, by identity.Principal) (*question, error) {
	target, err := e.target()
	if err != nil {
		return nil, err
	}
	q := &question{target: target, facts: e.Resource.Properties}
	q.input = inputOf(by, target, s.mirror.Visibility(target.Path), s.now())
	q.input.Context.Mode = "whatif"
	if e.aboutOneself(by) {
		if by.Credential.Via == "socket" {
			return nil, invalid("the socket has no modules of its own; name a subject")
		}
		q.beyond = !by.Allows(target.Path, classOf(target.Kind))
		return q, nil
	}
	if !by.Allows("", identity.ActionAdmin) {
		return nil, &Problem{
			Status: 403, Code: "SCOPE", Stage: "identity", Remedy: "none", Err: errNoAccess,
			Public: "what would be answered to others, elsewhere or otherwise is for administrators to ask",
		}
	}
	return q, q.suppose(e)
}

// aboutOneself tells whether a question supposes nothing: the asker's own type and id, or none.
func (e Evaluation) aboutOneself(by identity.Principal) bool {
	if e.Context != nil && *e.Context != (EvaluationContext{}) || len(e.Resource.Properties) > 0 {
		return false
	}
	return e.Subject == nil ||
		e.Subject.Type == by.Subject.Type && e.Subject.ID == by.Subject.ID && len(e.Subject.Properties) == 0
}

// suppose puts what the question names in the place of what the asker is.
func (q *question) suppose(e Evaluation) error {
	in := q.input
	if e.Subject != nil {
		if t := e.Subject.Type; t != identity.Person && t != identity.Workload && t != "anonymous" {
			return invalid("subject.type is %q; want person, workload or anonymous", t)
		}
		in.Subject = policy.Subject{Groups: map[string]bool{}, Labels: map[string]string{}, Authn: policy.Authn{Method: "token"}}
		if err := strictly("subject.properties", e.Subject.Properties, &in.Subject); err != nil {
			return err
		}
		in.Subject.Type, in.Subject.ID = e.Subject.Type, e.Subject.ID
		in.Device = policy.Device{Proof: "none", Platform: "unknown"}
	}
	if c := e.Context; c != nil {
		if c.Device != nil {
			in.Device = *c.Device
		}
		if c.Zone != "" {
			in.Context.Zone = c.Zone
		}
		if c.Day != 0 {
			in.Context.Day = c.Day
		}
	}
	if in.Device.Proof == "" {
		in.Device.Proof = "none"
	}
	if in.Device.Platform == "" {
		in.Device.Platform = "unknown"
	}
	var facts policy.Facts
	return strictly("resource.properties", q.facts, &facts)
}

// answered is the answer to a question, in the form in which it leaves.
func (s *Server) answered(ctx context.Context, x *exchange, g *policy.Generation, q *question) EvaluationAnswer {
	a := EvaluationAnswer{Context: EvaluationReason{Revision: g.Revision()}}
	d, works, err := s.whatIf(ctx, g, q)
	if err != nil {
		p := problemOf(err)
		a.Context.Error = &EvaluationError{Status: p.Status, Code: p.Code, Message: p.Public}
		return a
	}
	a.Context.Decision, a.Context.WorksNow = &d, works
	a.Decision = d.Effect == policy.Allow
	a.Context.Text = d.Text(x.text(q.target, works))
	return a
}

// whatIf walks a question as a request walks: scope, access, locks, mirror, release. Its answer is that of both
// questions together, with the version to take instead of one that is not fit.
func (s *Server) whatIf(ctx context.Context, g *policy.Generation, q *question) (policy.Decision, string, error) {
	if q.beyond {
		return notReached(), "", nil
	}
	in := q.input
	access, err := g.Access(ctx, in)
	if err != nil || access.Effect != policy.Allow {
		return access, "", err
	}
	if in.Resource.Visibility == string(mirror.Unknown) {
		return policy.Decision{}, "", fmt.Errorf("asking about %s, above a private path: %w", q.target.Path, fs.ErrNotExist)
	}
	if l, locked := s.identity.LockedModule(q.target.Path, ""); locked && q.target.Kind != mirror.Mod {
		return stopped(l), "", nil
	}
	if q.target.Version == "" || q.target.Kind == mirror.Sumdb {
		return access, "", nil
	}
	in.Context.Profile, in.Context.Waivers = access.Profile, namesOf(access.Waivers)
	j := &judge{generation: g, input: in, access: access, identity: s.identity, target: q.target}
	j.feeds = s.feeds.Module(q.target.Path, in.Resource.Visibility == string(mirror.Private))
	release, err := s.suppose(ctx, j, q.facts)
	if held, ok := errors.AsType[*mirror.QuarantineError](err); ok {
		release, err = quarantined(held), nil
	}
	if err != nil {
		return policy.Decision{}, "", err
	}
	works := ""
	if release.Effect != policy.Allow {
		works = s.worksNow(ctx, j, q.target.Version)
	}
	return policy.Combine(access, release), works, nil
}

// suppose judges a version by what is known of it, with facts in the place of those that they name. What only the zip
// tells is looked at where the answer waits for it alone: the build that is asked about needs the zip.
func (s *Server) suppose(ctx context.Context, j *judge, facts []byte) (policy.Decision, error) {
	known, err := s.known(ctx, j.target)
	if err != nil {
		return policy.Decision{}, err
	}
	d, err := j.judge(ctx, known, facts)
	if err != nil || len(facts) > 0 || d.Effect == policy.Allow || !slices.Equal(d.Advice.MissingFacts, []string{"licences"}) {
		return d, err
	}
	file, err := s.mirror.Open(ctx, j.target)
	if err != nil {
		return policy.Decision{}, err
	}
	known.Facts = file.Facts
	if err := file.Close(); err != nil {
		return policy.Decision{}, fmt.Errorf("closing %s: %w", j.target, err)
	}
	return j.judge(ctx, known, nil)
}

// known is a version with its facts. Its .info is fetched where there is none yet, as any request for it would; a go.mod
// is judged without.
func (s *Server) known(ctx context.Context, t mirror.Target) (mirror.Release, error) {
	if t.Kind == mirror.Mod {
		return mirror.Release{Version: t.Version, Facts: s.mirror.Facts(ctx, t.Path, t.Version)}, nil
	}
	file, err := s.mirror.Open(ctx, mirror.Target{Path: t.Path, Version: t.Version, Kind: mirror.Info})
	if err != nil {
		return mirror.Release{}, err
	}
	if err := file.Close(); err != nil {
		return mirror.Release{}, fmt.Errorf("closing the .info of %s: %w", t, err)
	}
	return mirror.Release{Version: t.Version, Facts: file.Facts}, nil
}

// judge asks about one version. Locks come after policy, as for a request.
func (j *judge) judge(ctx context.Context, r mirror.Release, facts []byte) (policy.Decision, error) {
	resource := resourceOf(j.input.Resource.Name, r, j.feeds.Facts(r.Version), j.input.Context.Day)
	if err := strictly("resource.properties", facts, &resource.Facts); err != nil {
		return policy.Decision{}, err
	}
	decisions, err := j.generation.Release(ctx, j.input, []policy.Resource{resource})
	if err != nil {
		return policy.Decision{}, err
	}
	return j.stop([]mirror.Release{r}, decisions)[0], nil
}

// worksNow is the nearest version to one that is not fit, "" where none is known soon.
func (s *Server) worksNow(ctx context.Context, j *judge, version string) string {
	ctx, cancel := context.WithTimeout(ctx, worksNowTimeout)
	defer cancel()
	versions, err := s.mirror.Versions(ctx, j.target.Path)
	if err != nil {
		return ""
	}
	decisions, err := j.listing().release(ctx, versions.Releases...)
	if err != nil {
		return ""
	}
	hideRetracted(versions.Releases, decisions)
	return nearest(version, versions.Releases, decisions)
}

// quarantined is the decision that an operator's hold in the mirror is.
func quarantined(held *mirror.QuarantineError) policy.Decision {
	const code = "QUARANTINED"
	return policy.Decision{
		Schema: policy.DecisionSchema, Effect: policy.Deny, Remedy: policy.RemedyNone, Codes: []string{code},
		Reasons: []policy.Reason{{
			Code: code, Rule: "quarantine", Severity: 4, Template: "an operator has stopped this version: {reason}",
			Params: map[string]string{"reason": held.Reason},
		}},
	}
}

// notReached is the decision that the scope of a credential is.
func notReached() policy.Decision {
	return policy.Decision{
		Schema: policy.DecisionSchema, Effect: policy.Deny, Remedy: policy.RemedyNone, Codes: []string{string(identity.ScopeExceeded)},
		Reasons: []policy.Reason{{Code: string(identity.ScopeExceeded), Rule: "scope", Severity: 3, Template: "the credential's scope does not reach this module"}},
	}
}

// clearReadDeadline lets a request whose body is read wait for as long as it may.
func clearReadDeadline(x *exchange) {
	_ = x.w.control.SetReadDeadline(time.Time{}) // a writer without deadlines is one of a test
}
