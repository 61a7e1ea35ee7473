package policy

import (
	"slices"
	"testing"

	"github.com/headgate/headgate/policies"
)

// TestCrossCheck takes a leaf out of the read-set, as an analysis that missed it would: the first miss is evaluated on
// the full input too, and from then on the entry point does without read-set and cache.
func TestCrossCheck(t *testing.T) {
	e, err := Open(t.Context(), Config{}, Options{Embedded: policies.FS})
	if err != nil {
		t.Fatal(err)
	}
	g, err := e.Current()
	if err != nil {
		t.Fatal(err)
	}
	root := g.access.reads.root
	root.fields = slices.DeleteFunc(root.fields, func(f fieldReads) bool { return f.field.name == "subject" })
	in := &Input{
		Schema: InputSchema, Subject: Subject{Type: "person"}, Device: Device{Proof: "none", Platform: "unknown"},
		Action: NewAction("zip"), Resource: Resource{Name: NewName("example.com/m", "public")},
		Context: Context{Day: 1, Zone: "corp", Mode: "enforce"},
	}
	if d, err := g.Access(t.Context(), in); err != nil || d.Effect != Deny {
		t.Errorf("Access() with a leaf missing = %s, %v, want deny", d.Effect, err)
	}
	if !g.access.distrust.Load() {
		t.Error("read-set is still trusted")
	}
	for range 2 {
		if d, err := g.Access(t.Context(), in); err != nil || d.Effect != Allow || d.Eval.Cached {
			t.Errorf("Access() on the full input = %s, %v, cached %t, want allow, not cached", d.Effect, err, d.Eval.Cached)
		}
	}
}
