package policy

import (
	"context"
	"fmt"
	"io/fs"
)

// CompileBundle builds a bundle and compiles it, without serving it, so that it can be asked. library is where
// `library: default` takes its Rego from.
func CompileBundle(ctx context.Context, fsys, library fs.FS) (*Generation, error) {
	g, _, err := compiled(ctx, fsys, library)
	return g, err
}

// DiffBundles asks two bundles all that their golden decisions ask, and what was recorded: what the second one answers
// otherwise than the first are flips. recording may be nil.
func DiffBundles(ctx context.Context, a, b, library fs.FS, recording *Recording) (*Replayed, error) {
	was, from, err := compiled(ctx, a, library)
	if err != nil {
		return nil, fmt.Errorf("reading the first bundle: %w", err)
	}
	is, to, err := compiled(ctx, b, library)
	if err != nil {
		return nil, fmt.Errorf("reading the second bundle: %w", err)
	}
	if recording == nil {
		recording = NewRecording()
	}
	report, err := is.Replay(ctx, recording, ReplayOptions{Baseline: was})
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, bundle := range []*bundle{from, to} {
		flips, err := bundle.goldenFlips(ctx, was, is, seen)
		if err != nil {
			return nil, err
		}
		report.add(flips)
	}
	report.Golden = len(seen)
	return report, nil
}

// goldenFlips asks both generations the golden questions of a bundle; seen are those that were asked already.
func (b *bundle) goldenFlips(ctx context.Context, was, is *Generation, seen map[string]bool) ([]*Flip, error) {
	var flips []*Flip
	var wrong error
	err := b.eachGolden(func(c *goldenCase, doc *document, at string) {
		in, err := c.input(doc, at)
		if err != nil {
			wrong = fmt.Errorf("%s:%d: %s: %w", doc.name, doc.lines[at], c.Name, err)
			return
		}
		key := fmt.Sprintf("%s %+v", c.Ask, *in)
		if seen[key] {
			return
		}
		seen[key] = true
		before, err := was.goldenAnswer(ctx, c.Ask, in)
		if err != nil {
			before = Answer{Effect: Deny, Codes: []string{"POLICY-ERROR"}}
		}
		after, err := is.goldenAnswer(ctx, c.Ask, in)
		kind := flipKind(before, after, true, err)
		if kind == "" {
			return
		}
		f := &Flip{
			Kind: kind, Module: in.Resource.Path, Action: in.Action.Name, Subject: in.Subject.ID, Teams: is.teamsOf(in), Was: before, Is: after,
			Golden: fmt.Sprintf("%s:%d: %s", doc.name, doc.lines[at], c.Name),
		}
		if c.Ask == "release" {
			f.Version = in.Resource.Version
		}
		if err != nil {
			f.Error = err.Error()
		}
		flips = append(flips, f)
	})
	if err == nil {
		err = wrong
	}
	return flips, err
}

// goldenAnswer asks one of the two questions; a golden release question names the profile itself.
func (g *Generation) goldenAnswer(ctx context.Context, ask string, in *Input) (Answer, error) {
	if ask == "access" {
		return g.ask(ctx, in, nil)
	}
	all, err := g.Release(ctx, in, []Resource{in.Resource})
	if err != nil {
		return Answer{}, err
	}
	return answerOf(all[0]), nil
}
