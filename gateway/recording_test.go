package gateway

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fastjson"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// member is a token of a person in a group.
func (b *bench) member(tb testing.TB, id, group string) string {
	tb.Helper()
	draft, err := b.identity.Draft(tb.Context(), identity.TokenRequest{
		Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: id, Groups: []string{group}},
		Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content"}},
	})
	must(tb, err)
	token, err := b.identity.Issue(tb.Context(), draft)
	must(tb, err)
	return token
}

// bundle writes a bundle of ten teams and its rules.
func bundle(tb testing.TB, rules string) string {
	tb.Helper()
	dir := tb.TempDir()
	teams := "teams:\n  everyone: {profile: standard, public: true}\n"
	for i := range 10 {
		teams += fmt.Sprintf("  team-%d: {profile: standard, groups: [eng-%d], public: true}\n", i, i)
	}
	for name, text := range map[string]string{
		"bundle.yaml": "name: test\nlibrary: default\n", "config/teams.yaml": teams, "config/rules.yaml": "profiles: [open, standard, strict]\nrules: " + rules + "\n",
	} {
		must(tb, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(tb, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// What flips under a changed rule are exactly the recorded decisions that it is about, with team and module. SOAK=1
// records 100,000.
func TestReplayOfRecordedDecisions(t *testing.T) {
	decisions, users, modules := 600, 20, 10
	if os.Getenv("SOAK") != "" {
		decisions, users, modules = 100_000, 200, 50
	}
	const versions = 10
	var archives []string
	for m := range modules {
		for v := range versions {
			archives = append(archives, fmt.Sprintf("module example.com/m%d@v1.%d.0\n-- go.mod --\nmodule example.com/m%d\n-- m.go --\npackage m\n", m, v, m))
		}
	}
	b := newBench(t, archives...)
	tokens := make([]string, users)
	for i := range tokens {
		tokens[i] = b.member(t, fmt.Sprint("user-", i), fmt.Sprint("eng-", i%10))
	}
	want := map[string]int{} // flips, by team
	flipped := 0
	start := time.Now()
	for i := range decisions {
		user, m, v := i*7%users, i*13/3%modules, i*31/7%versions
		ext := []string{"zip", "info", "mod"}[i%3]
		target := fmt.Sprintf("/example.com/m%d/@v/v1.%d.0.%s", m, v, ext)
		w := b.ask(http.MethodGet, target, "Authorization: Bearer "+tokens[user])
		for w.Code == http.StatusServiceUnavailable && t.Context().Err() == nil { // on a busy machine an evaluation may take too long
			w = b.ask(http.MethodGet, target, "Authorization: Bearer "+tokens[user])
		}
		if w.Code != http.StatusOK {
			t.Fatalf("%d: %d %s", i, w.Code, w.Body)
		}
		if m == 7 && v >= 5 && ext != "mod" { // of a version that is refused the .mod is still served
			want[fmt.Sprintf("team-%d", user%10)]++
			flipped++
		}
	}
	took := time.Since(start)
	before, after := bundle(t, "[]"), bundle(t, `[{id: a, code: OURS, match: {prefix: [example.com/m7], versions: ">=1.5.0"}, effect: deny, remedy: none}]`)

	start = time.Now()
	recording, err := ReadRecording(t.Context(), filepath.Join(b.dir, "audit"), time.Time{})
	must(t, err)
	read := time.Since(start)
	r, err := policy.DiffBundles(t.Context(), os.DirFS(before), os.DirFS(after), policies.FS, recording)
	must(t, err)
	t.Logf("%d decisions recorded in %v; read in %v, %d questions asked of two bundles in %v", decisions, took, read, r.Asked, time.Since(start)-read)

	got, n := map[string]int{}, 0
	for _, f := range r.Flips {
		if f.Kind != policy.FlipRefused || f.Module != "example.com/m7" || len(f.Teams) != 1 || len(f.IDs) != f.Count || f.Version < "v1.5.0" {
			t.Fatalf("flip %+v", f)
		}
		got[f.Teams[0]] += f.Count
		n += f.Count
	}
	if r.Decisions != decisions || r.Unbuilt != 0 || n != flipped || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d decisions, %d could not be asked again; %d flips %v, want %d %v", r.Decisions, r.Unbuilt, n, got, flipped, want)
	}
}

// A snapshot stands once in a segment of the log, before the first decision that names it.
func TestSnapshotRecords(t *testing.T) {
	b := newBench(t, hello)
	for range 3 {
		b.ask(http.MethodGet, "/example.com/hello/@v/v1.0.0.zip", b.bearer())
	}
	snapshots := map[string]string{}
	for _, rec := range b.records(t) {
		if rec.Control.What == audit.ControlSnapshot {
			if snapshots[rec.Control.ID] != "" {
				t.Errorf("snapshot %s stands twice", rec.Control.ID)
			}
			snapshots[rec.Control.ID] = string(rec.Input)
		}
		if rec.Kind != audit.KindDecision {
			continue
		}
		if who := snapshots[rec.Eval.Asker]; !strings.Contains(who, `"id":"ann"`) {
			t.Errorf("who asked is %q", who)
		}
		if what := snapshots[rec.Eval.Resource]; !strings.Contains(what, `"version":"v1.0.0"`) || !strings.Contains(what, `"sumdb":"verified"`) {
			t.Errorf("what was judged is %q", what)
		}
		if fmt.Sprint(rec.Eval.Effects) != "[allow allow]" {
			t.Errorf("effects %v", rec.Eval.Effects)
		}
	}
	if len(snapshots) != 2 {
		t.Errorf("%d snapshots, want that of ann and that of the version", len(snapshots))
	}
}

// What is no answer of policy is not replayed: a lock, a refusal of identity, a list's withheld versions.
func TestRecordedQuestions(t *testing.T) {
	line := func(more string) string {
		return `{"v":1,"kind":"decision","event_id":"E","t":1000000000,"module":"example.com/m","version":"v1.0.0",` + more + `}`
	}
	for _, tt := range []struct {
		name, record string
		want         int
	}{
		{"allowed", line(`"action":"zip","decision":{"effect":"allow"},"eval":{"effects":["allow","allow"],"asker":"a","resource":"r"}`), 1},
		{"refused by identity", line(`"action":"zip","decision":{"effect":"deny","stage":"identity"}`), 0},
		{"explained", line(`"action":"explain","decision":{"effect":"allow"},"eval":{"effects":["allow"],"asker":"a"}`), 0},
		{"policy failed", line(`"action":"zip","decision":{"effect":"error"},"eval":{"effects":["allow"],"asker":"a"}`), 0},
		{"what-if", `{"v":1,"kind":"admin","event_id":"E","t":1,"action":"zip","eval":{"effects":["allow"],"asker":"a"}}`, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log.jsonl")
			must(t, os.WriteFile(file, []byte(tt.record+"\n\n"), 0o600))
			r, err := ReadRecording(t.Context(), file, time.Time{})
			if err != nil || r.Decisions != tt.want {
				t.Errorf("%d decisions, %v; want %d", r.Decisions, err, tt.want)
			}
		})
	}
	question := func(record string) policy.Recorded {
		v, err := fastjson.Parse(record)
		must(t, err)
		return recordedOf(v)
	}
	locked := question(line(`"action":"zip","decision":{"effect":"deny","codes":["LOCKED"],"remedy":"none"},"eval":{"effects":["allow"],"asker":"a","resource":"r"}`))
	if locked.Was.Effect != policy.Allow || locked.Final || locked.Resource != "" {
		t.Errorf("a lock: %+v; want what policy said, allow", locked)
	}
	refused := question(line(`"action":"zip","private":true,"decision":{"effect":"deny","stage":"release","codes":["A","B"],"remedy":"wait"},"eval":{"effects":["allow","deny"],"asker":"a","resource":"r"}`))
	if !refused.Final || refused.Visibility != "private" || refused.Resource != "r" || fmt.Sprint(refused.Was) != "{deny wait [A B]}" {
		t.Errorf("a refusal: %+v", refused)
	}
	if unknown := question(line(`"action":"list","eval":{"effects":["deny"],"asker":"a","visibility":"unknown"}`)); unknown.Visibility != "unknown" {
		t.Errorf("an unknown path: %+v", unknown)
	}
}

func TestReadRecordingOfBadInput(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		file := filepath.Join(dir, "log.jsonl")
		must(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	for name, text := range map[string]string{
		"no JSON": "hello\n", "half a record": `{"kind":"decision","eval":{"asker":"x"` + "\n",
		"a line without end": "{" + strings.Repeat("x", maxRecordLine+1),
	} {
		if _, err := ReadRecording(t.Context(), write(text), time.Time{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := ReadRecording(t.Context(), dir, time.Time{}); err == nil {
		t.Error("a folder that is no log: no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadRecording(ctx, write("{}\n"), time.Time{}); err == nil {
		t.Error("a context that is over: no error")
	}
}
