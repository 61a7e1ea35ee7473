package policy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"golang.org/x/sync/errgroup"
)

// What kind of difference a flip is.
const (
	FlipRefused = "allow_to_deny"
	FlipAllowed = "deny_to_allow"
	FlipOther   = "other_denial" // another remedy, or other codes
	FlipError   = "error"        // no answer
)

// A Flip is a question that is answered otherwise than it was.
type Flip struct {
	Kind    string    `json:"kind"` // allow_to_deny, deny_to_allow, other_denial, error
	Module  string    `json:"module"`
	Version string    `json:"version,omitempty"`
	Action  string    `json:"action"`
	Subject string    `json:"subject"`
	Teams   []string  `json:"teams"` // of the subject, by the bundle that was asked; everyone where there is no other
	Was     Answer    `json:"was"`
	Is      Answer    `json:"is"`
	Error   string    `json:"error,omitempty"`
	Count   int       `json:"count"` // of recorded decisions
	First   time.Time `json:"first,omitzero"`
	Last    time.Time `json:"last,omitzero"`
	IDs     []string  `json:"ids,omitempty"` // of their events
	Golden  string    `json:"golden,omitempty"`
}

// Replayed is what became of recorded decisions under a bundle.
type Replayed struct {
	Revision  string `json:"revision"`
	Decisions int    `json:"decisions"`        // that were recorded
	Allowed   int    `json:"allowed"`          // that were asked again and had been allowed
	Questions int    `json:"questions"`        // different ones among them
	Asked     int    `json:"asked"`            // of these, before the time was over
	Unbuilt   int    `json:"unbuilt"`          // decisions whose question could not be rebuilt: a snapshot is not in the log any more
	Golden    int    `json:"golden,omitempty"` // golden questions that were asked
	Flips     []Flip `json:"flips"`            // refusals first, then by module
	P50NS     int64  `json:"p50_ns"`           // of a question
	P99NS     int64  `json:"p99_ns"`

	refusals *int // that are meant
}

// Count is how many recorded decisions flip in one way.
func (r *Replayed) Count(kind string) int {
	n := 0
	for _, f := range r.Flips {
		if f.Kind == kind {
			n += f.Count
		}
	}
	return n
}

// ReplayOptions are against what a recording is replayed, and how far.
type ReplayOptions struct {
	Baseline *Generation   // what says what was answered; nil: the recording does
	Limit    time.Duration // after which no further question is asked, the most frequent ones first; 0: none
}

// Replay asks the generation the questions of a recording again, with all of the machine. ctx ends it with an error.
func (g *Generation) Replay(ctx context.Context, r *Recording, o ReplayOptions) (*Replayed, error) {
	all := slices.Collect(maps.Values(r.questions))
	slices.SortFunc(all, func(a, b *recurring) int {
		return cmp.Or(len(b.ids)-len(a.ids), strings.Compare(a.first.ID, b.first.ID))
	})
	flips, took := make([]*Flip, len(all)), make([]int64, len(all))
	var unbuilt, next, asked atomic.Int64
	begun := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(all)) {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(all) && (o.Limit == 0 || time.Since(begun) < o.Limit); i = int(next.Add(1)) - 1 {
				start := time.Now()
				flip, err := g.again(ctx, r, all[i], o.Baseline)
				took[i] = time.Since(start).Nanoseconds()
				asked.Add(1)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					unbuilt.Add(int64(len(all[i].ids)))
				}
				flips[i] = flip
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	out := &Replayed{
		Revision: g.revision, Decisions: r.Decisions, Questions: len(all), Asked: int(asked.Load()), Unbuilt: int(unbuilt.Load()), Flips: []Flip{},
		refusals: g.refusals,
	}
	for i, q := range all {
		if q.first.Was.Effect == Allow && took[i] > 0 {
			out.Allowed += len(q.ids)
		}
	}
	out.add(flips)
	if took = slices.DeleteFunc(took, func(ns int64) bool { return ns == 0 }); len(took) > 0 {
		slices.Sort(took)
		out.P50NS, out.P99NS = took[len(took)/2], took[len(took)*99/100]
	}
	return out, nil
}

// add puts flips in order: what has no answer and what gets looser first.
func (r *Replayed) add(flips []*Flip) {
	for _, f := range flips {
		if f != nil {
			r.Flips = append(r.Flips, *f)
		}
	}
	slices.SortStableFunc(r.Flips, func(a, b Flip) int {
		return cmp.Or(flipOrder[a.Kind]-flipOrder[b.Kind], cmp.Compare(a.Module, b.Module), cmp.Compare(a.Version, b.Version),
			cmp.Compare(a.Action, b.Action), cmp.Compare(a.Subject, b.Subject), a.First.Compare(b.First))
	})
}

// guarded are the codes of denials that no revision takes back by itself.
var guarded = []string{"ANONYMOUS", "MALWARE", "SUMDB-MISMATCH"}

// Gate says why a revision should not be active, by what it would have answered: nil is that it may. Questions without an
// answer and allows of what a guarded code refused reject it. More refusals of what was allowed than a hundredth, or than
// replay_refusals of its bundle.yaml, hold it until its owners say there how many are meant.
func (r *Replayed) Gate() error {
	if n := r.Count(FlipError); n > 0 {
		return fmt.Errorf("%d recorded decisions have no answer: %s", n, r.Flips[0].Error)
	}
	for _, f := range r.Flips {
		if f.Kind != FlipAllowed {
			continue
		}
		for _, code := range f.Was.Codes {
			if slices.Contains(guarded, code) {
				return fmt.Errorf("it allows %s to %s, which %s refused", moduleVersion(f.Module, f.Version), f.Subject, code)
			}
		}
	}
	refused, most := r.Count(FlipRefused), r.Allowed/100
	if r.refusals != nil {
		most = *r.refusals
	}
	if refused > most {
		return fmt.Errorf("it refuses %d of %d recorded decisions that allowed, %d may be: see headgate policy replay; where they are meant, set replay_refusals: %d in bundle.yaml",
			refused, r.Allowed, most, refused)
	}
	return nil
}

func moduleVersion(path, version string) string {
	if version == "" {
		return path
	}
	return path + "@" + version
}

var flipOrder = map[string]int{FlipError: 0, FlipAllowed: 1, FlipRefused: 2, FlipOther: 3}

// again asks one question; nil is the same answer. An error is that it could not be rebuilt.
func (g *Generation) again(ctx context.Context, r *Recording, q *recurring, baseline *Generation) (*Flip, error) {
	in, resource, err := r.question(&q.first)
	if err != nil {
		return nil, err
	}
	was, final := q.first.Was, q.first.Final
	if baseline != nil && baseline.digest != q.first.Digest { // else it is the one that answered then
		if was, err = baseline.ask(ctx, in, resource); err != nil {
			was = Answer{Effect: Deny, Codes: []string{"POLICY-ERROR"}}
		}
		final = true
	}
	is, err := g.ask(ctx, in, resource)
	kind := flipKind(was, is, final, err)
	if kind == "" {
		return nil, nil
	}
	f := &Flip{
		Kind: kind, Module: q.first.Path, Version: q.first.Version, Action: q.first.Action, Subject: in.Subject.ID, Teams: g.teamsOf(in), Was: was, Is: is,
		Count: len(q.ids), First: q.first.Time, Last: q.last, IDs: q.ids,
	}
	if resource != nil {
		f.Version = resource.Version
	}
	if err != nil {
		f.Error = err.Error()
	}
	return f, nil
}

// flipKind is how two answers differ; "" is not at all. What an allow warns of is no difference.
func flipKind(was, is Answer, final bool, err error) string {
	switch {
	case err != nil:
		return FlipError
	case was.Effect == Allow && is.Effect != Allow:
		return FlipRefused
	case was.Effect != Allow && is.Effect == Allow:
		return FlipAllowed
	case final && is.Effect != Allow && (was.Remedy != is.Remedy || !slices.Equal(was.Codes, is.Codes)):
		return FlipOther
	}
	return ""
}

// ask asks both questions, in short.
func (g *Generation) ask(ctx context.Context, in *Input, r *Resource) (Answer, error) {
	d, err := g.decide(ctx, in, r)
	if err != nil {
		return Answer{}, err
	}
	return answerOf(d), nil
}

// decide asks both questions, the second one where access allows and there is a version to judge.
func (g *Generation) decide(ctx context.Context, in *Input, r *Resource) (Decision, error) {
	one := *in
	d, err := g.Access(ctx, &one)
	if err != nil || d.Effect != Allow || r == nil {
		return d, err
	}
	one.released(d)
	all, err := g.Release(ctx, &one, []Resource{*r})
	if err != nil {
		return Decision{}, err
	}
	return all[0], nil
}

// Explained is one recorded decision, asked again in full.
type Explained struct {
	Decision Decision  `json:"answer"`
	Input    *Input    `json:"input"`
	Resource *Resource `json:"resource,omitempty"` // the version and what was known of it; nil where none was judged
}

// Explain asks the question of one recorded decision again, out of the snapshots of a recording. That one of them is not in
// the log any more is an error.
func (g *Generation) Explain(ctx context.Context, r *Recording, d Recorded) (Explained, error) {
	in, resource, err := r.question(&d)
	if err != nil {
		return Explained{}, err
	}
	answer, err := g.decide(ctx, in, resource)
	return Explained{Decision: answer, Input: in, Resource: resource}, err
}

// released takes over from the access decision what release is asked under.
func (in *Input) released(access Decision) {
	in.Context.Profile, in.Context.Waivers = access.Profile, map[string]bool{}
	for _, id := range access.Waivers {
		in.Context.Waivers[id] = true
	}
}

func answerOf(d Decision) Answer {
	a := Answer{Effect: d.Effect, Remedy: d.Remedy}
	if d.Effect != Allow {
		a.Codes = d.Codes
	}
	return a
}

// teamsOf are the teams that the bundle's config puts a subject into.
func (g *Generation) teamsOf(in *Input) []string {
	var teams []string
	for group, member := range in.Subject.Groups {
		if member {
			teams = append(teams, g.members("groups", group)...)
		}
	}
	if ci := in.Subject.CI; ci != nil {
		teams = append(teams, g.members("jobs", ci.Provider+":"+ci.RepoID)...)
	}
	if in.Subject.Team != "" {
		teams = append(teams, in.Subject.Team)
	}
	if len(teams) == 0 {
		return []string{"everyone"}
	}
	slices.Sort(teams)
	return slices.Compact(teams)
}

// members are the teams that the config names for a group or job.
func (g *Generation) members(index, name string) []string {
	found, err := g.data.Find(ast.Ref{ast.StringTerm("config"), ast.StringTerm(index), ast.StringTerm(canonical(name))})
	if err != nil {
		return nil
	}
	list, ok := found.(*ast.Array)
	if !ok {
		return nil
	}
	var teams []string
	list.Foreach(func(t *ast.Term) {
		if s, ok := t.Value.(ast.String); ok {
			teams = append(teams, string(s))
		}
	})
	return teams
}
