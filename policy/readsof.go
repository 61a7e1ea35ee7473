package policy

import (
	"context"
	"reflect"
	"slices"
)

// Classes of entry points, by what they read.
const (
	ReadsNarrow = "narrow" // leaves alone
	ReadsTimed  = "timed"  // the day, too: each answer is worked out anew every day
	ReadsWide   = "wide"   // a struct as a whole: every field of it is in the key
)

// Reads is what an entry point reads of its input: the key under which its answers are kept.
type Reads struct {
	Entry string   `json:"entry"`          // access, release
	Class string   `json:"class"`          // narrow, timed, wide
	Paths []string `json:"paths"`          // sorted, from input on
	Wide  []string `json:"wide,omitempty"` // those of them that are structs
	Keys  int      `json:"keys,omitempty"` // different ones among recorded questions
}

// Reads says what each entry point reads. With a recording it counts the keys that its questions have; nil is none.
func (g *Generation) Reads(ctx context.Context, r *Recording) ([]Reads, error) {
	all := []Reads{g.access.readsOf(), g.release.readsOf()}
	if r == nil {
		return all, nil
	}
	keys := [2]map[string]bool{{}, {}}
	enc := &encoder{}
	count := func(i int, e *entryPoint, in *Input) {
		enc.buf = enc.buf[:0]
		enc.reads(e.reads.root, reflect.ValueOf(in).Elem())
		keys[i][string(enc.buf)] = true
	}
	for _, q := range r.questions {
		in, resource, err := r.question(&q.first)
		if err != nil {
			continue
		}
		count(0, g.access, in)
		if resource == nil {
			continue
		}
		d, err := g.Access(ctx, in)
		if err != nil || d.Effect != Allow {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			continue
		}
		in.released(d)
		in.Resource = *resource
		count(1, g.release, in)
	}
	for i := range all {
		all[i].Keys = len(keys[i])
	}
	return all, nil
}

func (e *entryPoint) readsOf() Reads {
	r := Reads{Entry: e.name, Class: ReadsNarrow, Paths: slices.Clone(e.reads.paths)}
	for _, path := range r.Paths {
		if wide(path) {
			r.Wide = append(r.Wide, path)
		}
	}
	switch {
	case len(r.Wide) > 0:
		r.Class = ReadsWide
	case slices.Contains(r.Paths, "input.context.day"):
		r.Class = ReadsTimed
	}
	return r
}
