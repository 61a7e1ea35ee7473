package policy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// A history answers questions by a generation and records them, as a gateway does.
type history struct {
	t         testing.TB
	g         *policy.Generation
	snapshots *policy.Snapshots
	recording *policy.Recording
	n         int
}

func newHistory(t testing.TB, g *policy.Generation) *history {
	return &history{t: t, g: g, snapshots: policy.NewSnapshots(), recording: policy.NewRecording()}
}

// ask records a decision on the zip of a version; what is changed before is the question's.
func (h *history) ask(subject, group, path, version string, change func(*policy.Input, *policy.Resource)) {
	h.t.Helper()
	in := &policy.Input{
		Schema:  policy.InputSchema,
		Subject: policy.Subject{Type: "person", ID: subject, Issuer: "corp", Groups: map[string]bool{group: true}, Labels: map[string]string{}},
		Device:  policy.Device{Proof: "none", Platform: "linux"}, Action: policy.NewAction("zip"),
		Resource: policy.Resource{Name: policy.NewName(path, "public")}, Context: policy.Context{Day: 20000, Zone: "corp", Mode: "enforce"},
	}
	r := policy.Resource{Name: in.Resource.Name, Facts: policy.NewFacts(version, "release", 1)}
	r.Sumdb, r.Known.Sumdb = "verified", "ok"
	if change != nil {
		change(in, &r)
	}
	h.n++
	d := policy.Recorded{ID: fmt.Sprintf("E%08d", h.n), Time: time.Unix(int64(h.n), 0), Action: "zip", Path: path, Version: version, Visibility: "public"}
	d.Asker = h.keep(h.snapshots.Asker(0, in))
	answer, err := h.g.Access(context.Background(), in)
	if err != nil {
		h.t.Fatal(err)
	}
	if answer.Effect == policy.Allow {
		in.Context.Profile, in.Context.Waivers = answer.Profile, map[string]bool{}
		d.Resource = h.keep(h.snapshots.Resource(0, &r))
		all, err := h.g.Release(context.Background(), in, []policy.Resource{r})
		if err != nil {
			h.t.Fatal(err)
		}
		answer = all[0]
	}
	d.Was = policy.Answer{Effect: answer.Effect, Remedy: answer.Remedy}
	if answer.Effect == policy.Deny {
		d.Final, d.Was.Codes = true, answer.Codes
	}
	h.recording.Decision(d)
}

func (h *history) keep(s policy.Snapshot) string {
	if s.Body != nil {
		h.recording.Snapshot(s.ID, s.Body)
	}
	return s.ID
}

func (h *history) replay(g *policy.Generation, o policy.ReplayOptions) *policy.Replayed {
	h.t.Helper()
	r, err := g.Replay(context.Background(), h.recording, o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

var twoTeams = map[string]string{
	"config/teams.yaml": "teams:\n  everyone: {profile: standard, public: true}\n  a: {profile: standard, groups: [eng-a]}\n  b: {profile: standard, groups: [eng-b]}\n",
}

// with is twoTeams with further files.
func with(more map[string]string) map[string]string {
	files := map[string]string{}
	for _, m := range []map[string]string{twoTeams, more} {
		for name, content := range m {
			files[name] = content
		}
	}
	return files
}

// siteRelease is a rule of a site's own, on what the default bundle does not read.
func siteRelease(condition string) map[string]string {
	return with(map[string]string{"site/release.rego": `# METADATA
# scope: package
# title: Ours
package site.release

findings contains {"code": "SITE", "rule": "ours", "effect": "deny", "remedy": "none", "severity": 2, "template": "not here", "doc": "", "params": {}} if {
	` + condition + `
}
`})
}

func TestReplay(t *testing.T) {
	h := newHistory(t, load(t, twoTeams))
	for i := range 40 {
		group := []string{"eng-a", "eng-b"}[i%2]
		for range 1 + i%3 {
			h.ask(fmt.Sprint("u", i), group, fmt.Sprintf("example.com/m%d", i%5), "v1.0.0", func(in *policy.Input, r *policy.Resource) {
				in.Subject.Labels["floor"] = fmt.Sprint(i % 4)
				r.Popularity = i % 3
			})
		}
	}
	t.Run("the same bundle flips nothing", func(t *testing.T) {
		r := h.replay(h.g, policy.ReplayOptions{})
		if r.Decisions != h.n || r.Questions != 40 || r.Asked != 40 || r.Allowed != h.n || r.Unbuilt != 0 || len(r.Flips) != 0 || r.Gate() != nil {
			t.Errorf("replayed: %+v, gate %v", r, r.Gate())
		}
	})
	t.Run("a rule on what the old policy did not read flips exactly its own", func(t *testing.T) {
		g := load(t, siteRelease(`input.subject.labels.floor == "3"`+"\n\tinput.resource.popularity == 1"))
		r := h.replay(g, policy.ReplayOptions{})
		want := map[string]int{}
		for i := range 40 {
			if i%4 == 3 && i%3 == 1 {
				want[fmt.Sprint("u", i)] = 1 + i%3
			}
		}
		got := map[string]int{}
		for _, f := range r.Flips {
			got[f.Subject] = f.Count
			if f.Kind != policy.FlipRefused || !slices.Equal(f.Teams, []string{"b"}) || !slices.Equal(f.Is.Codes, []string{"SITE"}) || len(f.IDs) != f.Count || f.Version != "v1.0.0" {
				t.Errorf("flip %+v", f)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("flips %v, want %v", got, want)
		}
		if err := r.Gate(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("refuses %d of %d recorded", r.Count(policy.FlipRefused), h.n)) {
			t.Errorf("Gate: %v", err)
		}
	})
	t.Run("baseline of another bundle", func(t *testing.T) {
		g := load(t, siteRelease(`input.resource.popularity == 1`))
		if r := h.replay(g, policy.ReplayOptions{Baseline: g}); len(r.Flips) != 0 {
			t.Errorf("flips of a bundle against itself: %+v", r.Flips)
		}
		if r := h.replay(h.g, policy.ReplayOptions{Baseline: g}); r.Count(policy.FlipAllowed) < 13 || len(r.Flips) != 13 {
			t.Errorf("%d flips, want the 13 that the baseline refuses", len(r.Flips))
		}
	})
	t.Run("a limit ends it early, the most frequent questions first", func(t *testing.T) {
		r := h.replay(h.g, policy.ReplayOptions{Limit: time.Nanosecond})
		if r.Asked != 0 || r.Allowed != 0 || r.Questions != 40 {
			t.Errorf("replayed: %+v", r)
		}
	})
	t.Run("its context ends it", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.g.Replay(ctx, h.recording, policy.ReplayOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Replay: %v, want Canceled", err)
		}
	})
	t.Run("a snapshot that is gone is counted", func(t *testing.T) {
		h.recording.Decision(policy.Recorded{ID: "x", Action: "zip", Path: "example.com/m", Visibility: "public", Asker: "gone", Was: policy.Answer{Effect: policy.Allow}})
		h.recording.Snapshot("other", []byte(`{"schema":1,"of_the_future":1}`))
		h.recording.Decision(policy.Recorded{ID: "y", Action: "zip", Path: "example.com/m", Visibility: "public", Asker: "other", Was: policy.Answer{Effect: policy.Allow}})
		if r := h.replay(h.g, policy.ReplayOptions{}); r.Unbuilt != 2 || len(r.Flips) != 0 {
			t.Errorf("replayed: %+v, want 2 that could not be rebuilt", r)
		}
	})
}

func TestReplayGate(t *testing.T) {
	refusing := with(map[string]string{"config/rules.yaml": `profiles: [open, standard, strict]
rules:
- {id: a, code: OLD, match: {prefix: [example.com/m]}, effect: deny, remedy: none}
- {id: b, code: MALWARE, match: {prefix: [example.com/evil]}, effect: deny, remedy: none}
`})
	h := newHistory(t, load(t, refusing))
	h.ask("ann", "eng-a", "example.com/m", "v1.0.0", nil)
	for i := range 100 {
		h.ask(fmt.Sprint("u", i), "eng-a", "example.com/other", "v1.0.0", nil)
	}
	for _, tt := range []struct {
		name, rules, bundle, want string
	}{
		{"what was refused may be allowed", "[]", "", ""},
		{"one of a hundred may be refused", "[{id: a, code: X, match: {prefix: [example.com/other]}, scope: {zones: [vpn]}, effect: deny, remedy: none}]", "", ""},
		{"more may not", "[{id: a, code: X, match: {prefix: [example.com/other]}, effect: deny, remedy: none}]", "", "it refuses 100 of 100 recorded decisions that allowed, 1 may be"},
		{"but where it is said", "[{id: a, code: X, match: {prefix: [example.com/other]}, effect: deny, remedy: none}]", "name: test\nlibrary: default\nreplay_refusals: 100\n", ""},
		{"other codes pass", "[{id: a, code: NEW, match: {prefix: [example.com/m]}, effect: deny, remedy: none}]", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := with(map[string]string{"config/rules.yaml": "profiles: [open, standard, strict]\nrules: " + tt.rules + "\n"})
			if tt.bundle != "" {
				files["bundle.yaml"] = tt.bundle
			}
			err := h.replay(load(t, files), policy.ReplayOptions{}).Gate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Gate: %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("what a guarded code refused stays refused", func(t *testing.T) {
		h.ask("ann", "eng-a", "example.com/evil", "v1.0.0", nil)
		err := h.replay(load(t, twoTeams), policy.ReplayOptions{}).Gate()
		if err == nil || !strings.Contains(err.Error(), "it allows example.com/evil@v1.0.0 to ann, which MALWARE refused") {
			t.Errorf("Gate: %v", err)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		r := h.replay(load(t, own("decision := allowed if input.resource.path != \"example.com/m\"")), policy.ReplayOptions{})
		if err := r.Gate(); r.Count(policy.FlipError) != 1 || err == nil || !strings.Contains(err.Error(), "1 recorded decisions have no answer: ") {
			t.Errorf("Gate: %v of %+v", err, r.Flips)
		}
	})
}

func TestSnapshots(t *testing.T) {
	s := policy.NewSnapshots()
	in := &policy.Input{Schema: 1, Subject: policy.Subject{ID: "ann", Groups: map[string]bool{"g": true}}, Context: policy.Context{Day: 1, Profile: "standard"}}
	first := s.Asker(0, in)
	if first.Body == nil || len(first.ID) != 32 || strings.Contains(string(first.Body), "profile") {
		t.Errorf("first: %s %s", first.ID, first.Body)
	}
	if again := s.Asker(0, in); again.ID != first.ID || again.Body != nil {
		t.Errorf("again: %+v", again)
	}
	if next := s.Asker(1, in); next.ID != first.ID || string(next.Body) != string(first.Body) {
		t.Errorf("in the next era: %+v, want the same once more", next)
	}
	in.Subject.Groups = map[string]bool{"h": true}
	if other := s.Asker(1, in); other.ID == first.ID || other.Body == nil {
		t.Errorf("another subject: %+v", other)
	}
	// An asker and a resource never share a key, whatever they hold.
	r := policy.Resource{Name: policy.NewName("example.com/m", "public"), Facts: policy.NewFacts("v1.0.0", "release", 1)}
	version := s.Resource(1, &r)
	r.Known.Vulns = "ok"
	if other := s.Resource(1, &r); other.ID == version.ID || other.Body == nil {
		t.Error("a version of which more is known has the snapshot of before")
	}
}

// Each field of what a snapshot holds makes another snapshot of it.
func TestSnapshotFields(t *testing.T) {
	derived := []string{"host", "org", "prefixes"} // of the path
	s := policy.NewSnapshots()
	for _, part := range []struct {
		name string
		of   func(in *policy.Input) string
		in   func(in *policy.Input) []reflect.Value
	}{
		{"asker", func(in *policy.Input) string { return s.Asker(0, in).ID }, func(in *policy.Input) []reflect.Value {
			c := &in.Context
			return []reflect.Value{
				reflect.ValueOf(&in.Schema).Elem(), reflect.ValueOf(&in.Subject).Elem(), reflect.ValueOf(&in.Device).Elem(),
				reflect.ValueOf(&c.Day).Elem(), reflect.ValueOf(&c.Zone).Elem(), reflect.ValueOf(&c.Mode).Elem(),
			}
		}},
		{"resource", func(in *policy.Input) string { return s.Resource(0, &in.Resource).ID }, func(in *policy.Input) []reflect.Value {
			return []reflect.Value{reflect.ValueOf(&in.Resource).Elem()}
		}},
	} {
		in := &policy.Input{Subject: policy.Subject{CI: &policy.CI{}}, Resource: policy.Resource{Facts: policy.Facts{Provenance: &policy.Origin{}}}}
		seen := map[string]string{part.of(in): "nothing"}
		for _, v := range part.in(in) {
			eachLeaf(v, part.name, func(name string, leaf reflect.Value) {
				if slices.Contains(derived, name[strings.LastIndexByte(name, '.')+1:]) {
					return
				}
				old := reflect.ValueOf(leaf.Interface())
				set(leaf)
				id := part.of(in)
				if other, twice := seen[id]; twice {
					t.Errorf("%s is not told apart from %s", name, other)
				}
				seen[id] = name
				leaf.Set(old)
			})
		}
		if len(seen) < 15 {
			t.Errorf("%s has %d fields", part.name, len(seen))
		}
	}
}

// eachLeaf calls do with each value that is no struct, under the names that JSON gives.
func eachLeaf(v reflect.Value, name string, do func(name string, leaf reflect.Value)) {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		do(name, v)
		return
	}
	for i := range v.NumField() {
		eachLeaf(v.Field(i), name+"."+strings.Split(v.Type().Field(i).Tag.Get("json"), ",")[0], do)
	}
}

func set(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Int:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		m.SetMapIndex(reflect.ValueOf("k"), reflect.Zero(v.Type().Elem()))
		v.Set(m)
	}
}

// Golden questions of two bundles, asked of both.
func TestDiffBundles(t *testing.T) {
	dir := func(files map[string]string) string {
		d := t.TempDir()
		write(t, d, files)
		return d
	}
	golden := map[string]string{"tests/golden.yaml": "cases:\n  - {name: plain, ask: release, want: {effect: allow}}\n  - {name: door, ask: access, want: {effect: allow}}\n"}
	a := dir(golden)
	b := dir(map[string]string{
		"tests/golden.yaml": golden["tests/golden.yaml"],
		"config/rules.yaml": "profiles: [open, standard, strict]\nrules: [{id: a, code: X, match: {prefix: [example.com]}, effect: deny, remedy: none}]\n",
	})
	r, err := policy.DiffBundles(t.Context(), os.DirFS(a), os.DirFS(b), policies.FS, nil)
	if err != nil || r.Golden != 2 || len(r.Flips) != 1 || r.Flips[0].Golden != "tests/golden.yaml:2: plain" || r.Flips[0].Kind != policy.FlipRefused {
		t.Errorf("DiffBundles = %+v, %v", r, err)
	}
	if _, err := policy.DiffBundles(t.Context(), os.DirFS(a), os.DirFS(t.TempDir()), policies.FS, nil); err == nil || !strings.Contains(err.Error(), "reading the second bundle: bundle.yaml: is missing") {
		t.Errorf("DiffBundles of no bundle: %v", err)
	}
}

// BenchmarkSnapshots is what a request pays for what was written down before.
func BenchmarkSnapshots(b *testing.B) {
	s := policy.NewSnapshots()
	in := &policy.Input{Schema: 1, Subject: policy.Subject{ID: "ann", Groups: map[string]bool{"eng": true, "payments": true}, Labels: map[string]string{}}}
	r := policy.Resource{Name: policy.NewName("example.com/m", "public"), Facts: policy.NewFacts("v1.0.0", "release", 1)}
	b.ReportAllocs()
	for b.Loop() {
		s.Asker(0, in)
		s.Resource(0, &r)
	}
}

func BenchmarkReplay(b *testing.B) {
	h := newHistory(b, load(b, twoTeams))
	const questions = 2000
	for i := range questions {
		h.ask(fmt.Sprint("u", i%100), "eng-a", fmt.Sprintf("example.com/m%d", i), "v1.0.0", nil)
	}
	files := siteRelease(`input.subject.labels.floor == "3"`)
	for b.Loop() {
		b.StopTimer()
		g := load(b, files) // with nothing in its cache
		b.StartTimer()
		h.replay(g, policy.ReplayOptions{})
	}
	b.ReportMetric(float64(questions*b.N)/b.Elapsed().Seconds(), "questions/s")
}
