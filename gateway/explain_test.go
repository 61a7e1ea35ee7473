package gateway

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/audit"
)

// "Why not newer?": what a list leaves out, why, and what would change it. Who may not list learns nothing.
func TestExplain(t *testing.T) {
	b := newBench(t, version("hello", "v1.0.0"), version("hello", "v1.1.0"), version("hello", "v1.2.0"),
		"module example.com/hello@v1.3.0\n-- go.mod --\nmodule example.com/hello\nretract v1.3.0 // broken\n-- m.go --\npackage m\n")
	b.feed(t, nil)
	w := b.ask("GET", "/-/api/v1/explain?module=example.com/hello", b.bearer())
	var got Explanation
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %v\n%s", w.Code, err, w.Body)
	}
	got.Revision = ""
	want := Explanation{Module: "example.com/hello", Profile: "standard", Chosen: "v1.2.0", Withheld: []Withheld{
		{Version: "v1.3.0", Effect: "allow", Reasons: []string{"RETRACTED: retracted by its author: broken"}},
		{
			Version: "v1.1.0", Effect: "deny", Remedy: "waiver", UpgradeTo: "v1.2.0",
			Reasons: []string{"VULNERABLE: GO-2026-0001 is of severity critical, fixed in v1.2.0"},
			Waiver:  got.Withheld[1].Waiver,
		},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("explanation (-want +got):\n%s", diff)
	}
	if need := got.Withheld[1].Waiver; need == nil || need.Code != "VULNERABLE" || need.Path != "example.com/hello" {
		t.Errorf("waiver = %+v, want VULNERABLE of example.com/hello", need)
	}
	for target, want := range map[string]int{
		"/-/api/v1/explain": 400, "/-/api/v1/explain?module=../x": 400, "/-/api/v1/explain?module=example.com/none": 404,
	} {
		if w := b.ask("GET", target, b.bearer()); w.Code != want {
			t.Errorf("%s: %d, want %d\n%s", target, w.Code, want, w.Body)
		}
	}
	if w := b.ask("GET", "/-/api/v1/explain?module=example.com/hello"); w.Code != 401 {
		t.Errorf("of a stranger: %d, want 401", w.Code)
	}
	records := b.records(t)
	first := slices.IndexFunc(records, func(r audit.Record) bool { return r.Module != "" })
	if r := records[max(first, 0)]; r.Action != "explain" || r.Module != "example.com/hello" || r.Decision.Withheld != 2 {
		t.Errorf("the record is %s of %s, %d withheld; want explain of example.com/hello, 2", r.Action, r.Module, r.Decision.Withheld)
	}
}
