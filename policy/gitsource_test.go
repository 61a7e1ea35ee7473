package policy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
	"github.com/headgate/headgate/policy/git"
	"github.com/headgate/headgate/policy/git/gittest"
)

// golden is one decision that the default files give; denied is the same with example.com denied.
const (
	golden = `cases:
  - {name: everybody reads public modules, ask: access, module: example.com/m, want: {effect: allow, profile: standard}}
`
	goldenDenied = `cases:
  - {name: nobody reads example.com, ask: access, module: example.com/m, want: {effect: deny, codes: [PATH-NOT-ALLOWED]}}
`
)

// repository is a policy repository on a Git server, with an engine that follows it.
type repository struct {
	*gittest.Repo
	server   *vcstest.Server
	key      *gittest.Key
	cfg      policy.Config
	o        policy.Options
	events   chan policy.Event
	registry *prometheus.Registry
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	r := &repository{server: vcstest.Start(t), key: gittest.SSH(t), events: make(chan policy.Event, 100), registry: prometheus.NewRegistry()}
	r.Repo = gittest.Create(t, filepath.Join(r.server.Dir, "repos", "policy.git"))
	r.cfg = policy.Config{Source: "git", Git: git.Config{
		URL: "https://git.corp.example/policy.git", Branch: "main", CAFile: r.server.CAFile, Proxy: r.server.Proxy,
		AllowedSigners: filepath.Join(t.TempDir(), "signers"), RevokedSigners: filepath.Join(t.TempDir(), "revoked"), Poll: time.Hour,
	}}
	r.sign(t, r.key.Allowed(t))
	r.revoke(t, "")
	r.o = policy.Options{State: t.TempDir(), OnChange: func(e policy.Event) { r.events <- e }}
	return r
}

func (r *repository) sign(t *testing.T, signers string) {
	t.Helper()
	if err := os.WriteFile(r.cfg.Git.AllowedSigners, []byte(signers), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *repository) revoke(t *testing.T, keys string) {
	t.Helper()
	if err := os.WriteFile(r.cfg.Git.RevokedSigners, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
}

// push commits the default files with some of them replaced, signed, on main.
func (r *repository) push(files map[string]string) string {
	return r.Commit(gittest.Commit{Files: bundleOf(files), Key: r.key})
}

// bundleOf is a good bundle with some files replaced; an empty content leaves a file out.
func bundleOf(files map[string]string) map[string]string {
	all := maps.Clone(defaults)
	all["tests/golden.yaml"] = golden
	for name, content := range files {
		if all[name] = content; content == "" {
			delete(all, name)
		}
	}
	return all
}

func (r *repository) open(t *testing.T) *policy.Engine {
	t.Helper()
	o := r.o
	o.Embedded, r.registry = policies.FS, prometheus.NewRegistry()
	o.Registerer = r.registry
	e, err := policy.Open(t.Context(), r.cfg, o)
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// next is what the engine does next.
func (r *repository) next(t *testing.T) policy.Event {
	t.Helper()
	select {
	case e := <-r.events:
		return e
	case <-time.After(2 * time.Minute):
		t.Fatal("the engine does nothing")
		return policy.Event{}
	}
}

func (r *repository) count(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %s", name, label)
	return 0
}

func TestGitSource(t *testing.T) {
	r := newRepository(t)
	first := r.push(nil)
	e := r.open(t)
	if ev := r.next(t); !ev.Active || ev.Commit != first || ev.Signer != r.key.Fingerprint || ev.Ref != "refs/heads/main" {
		t.Fatalf("at the start: %+v, want commit %s active", ev, first)
	}
	if got := effect(t, e); got != policy.Allow {
		t.Errorf("effect = %s, want allow", got)
	}
	second := r.push(map[string]string{"config/teams.yaml": denyExample, "tests/golden.yaml": goldenDenied})
	e.Look()
	if ev := r.next(t); !ev.Active || ev.Commit != second {
		t.Fatalf("after a push: %+v, want commit %s active", ev, second)
	}
	g, err := e.Current()
	if err != nil || g.Revision() != second || effect(t, e) != policy.Deny {
		t.Errorf("Current() = %s, %v, want %s, which denies", g.Revision(), err, second)
	}
	s := e.Status()
	if s.Source != "git" || s.Commit != second || s.Signer != r.key.Fingerprint || s.LastSeen.IsZero() || s.Trouble != "" || s.Rejection != nil ||
		s.Repository != r.cfg.Git.URL || len(s.History) != 2 || len(s.Kept) != 2 || s.Kept[0].Commit != second || s.Kept[1].Commit != first {
		t.Errorf("Status() = %+v", s)
	}
	if r.count(t, "headgate_policy_source_last_contact_timestamp_seconds", "") == 0 {
		t.Error("no time of the last contact")
	}
}

// bad is a push that must not become active.
type bad struct {
	name, state, want string
	push              func(t *testing.T, r *repository)
}

func files(changed map[string]string) func(*testing.T, *repository) {
	return func(_ *testing.T, r *repository) { r.push(changed) }
}

var badPushes = []bad{
	{"P19 unsigned", "verified", "it is not signed", func(_ *testing.T, r *repository) {
		r.Commit(gittest.Commit{Files: bundleOf(nil)})
	}},
	{"P19 wrong signer", "verified", "does not accept", func(t *testing.T, r *repository) {
		r.Commit(gittest.Commit{Files: bundleOf(nil), Key: gittest.SSH(t)})
	}},
	{"P19 expired key", "verified", "does not accept", func(t *testing.T, r *repository) {
		old := gittest.SSH(t)
		r.sign(t, r.key.Allowed(t)+old.Allowed(t, `valid-before="20200101"`))
		r.Commit(gittest.Commit{Files: bundleOf(nil), Key: old})
	}},
	{"P19 revoked key", "verified", "does not accept", func(t *testing.T, r *repository) {
		stolen := gittest.SSH(t)
		r.sign(t, r.key.Allowed(t)+stolen.Allowed(t))
		r.revoke(t, stolen.Public(t)+"\n")
		r.Commit(gittest.Commit{Files: bundleOf(nil), Key: stolen})
	}},
	{"P20 force push", "verified", "history was rewritten", func(_ *testing.T, r *repository) {
		r.Commit(gittest.Commit{Parent: "-", Files: bundleOf(map[string]string{"new.md": "x"}), Key: r.key})
	}},
	{"P20 older signed commit", "verified", "goes back to", func(_ *testing.T, r *repository) {
		r.Git("", nil, "update-ref", "refs/heads/main", "refs/heads/main~1")
	}},
	{"P27 test fails", "tested", "1 of 1 golden decisions differ: tests/golden.yaml:2: nobody reads example.com: it is allow", files(map[string]string{"tests/golden.yaml": goldenDenied})},
	{"P27 Rego test fails", "tested", "1 of 2 tests failed", files(map[string]string{"site/site.rego": siteRego, "site/site_test.rego": siteTest + "\ntest_wrong if count(site.findings) == 7\n"})},
	{"P27 no test", "tested", "bundle has no test", files(map[string]string{"tests/golden.yaml": ""})},
	{"P27 coverage low", "tested", "site/site.rego:", files(map[string]string{"site/site.rego": siteRego})},
	{"P27 test that never ends", "tested", "tests failed", files(map[string]string{"site/site_test.rego": slowTest})},
	{"P27 test in the package that it tests", "tested", "ends in _test", files(map[string]string{"site/x_test.rego": "package headgate.access\n\ntest_x if true\n"})},
	{"P27 guard test broken", "tested", `guard test "anonymous is denied"`, files(ownBundle("decision := allowed"))},
	{"P16 http.send", "checked", "undefined function http.send", files(map[string]string{"site/site.rego": "package site.release\n\nfindings contains x if x := http.send({\"method\": \"get\", \"url\": \"https://evil.example\"})\n"})},
	{"P16 http.send in a test", "tested", "undefined function http.send", files(map[string]string{"site/site_test.rego": "package site_test\n\ntest_x if http.send({\"method\": \"get\", \"url\": \"https://evil.example\"})\n"})},
	{"P18 package system", "built", "site/a.rego: is package system", files(map[string]string{"site/a.rego": "package system.log\n\nmask := true\n"})},
	{"P18 a library package", "built", "site/a.rego: is package headgate.access", files(map[string]string{"site/a.rego": "package headgate.access\n\nx := 1\n"})},
	{"P23 symlink", "built", "config/waivers.yaml\": is a symbolic link", files(map[string]string{"config/waivers.yaml": "-> /etc/passwd"})},
	{"P23 submodule", "built", "is a submodule", files(map[string]string{"site": "@ 1234567890123456789012345678901234567890"})},
	{"P23 file without a place", "built", "policy.wasm: has no place", files(map[string]string{"policy.wasm": "x"})},
	{"P23 case twins", "built", "differs from", files(map[string]string{"site/a.rego": "package site.a\n", "site/A.rego": "package site.a\n"})},
	{"P11 more data than a bundle may have", "built", "more than 5000 files or 33554432 bytes", func(_ *testing.T, r *repository) {
		large := map[string]string{}
		for i := range 33 {
			large[fmt.Sprintf("tests/%d.yaml", i)] = strings.Repeat("x", 1<<20)
		}
		r.push(large)
	}},
	{"P7 mistake in YAML", "built", "config/teams.yaml:1:", files(map[string]string{"config/teams.yaml": "teams: {everyone: {public: yes}}\n"})},
	{"P21 manifest expired", "built", "bundle.yaml:3: bundle expired on 2020-01-01", files(map[string]string{"bundle.yaml": "name: x\nlibrary: default\nexpires: \"2020-01-01\"\n"})},
	{"P32 deny.yaml that loosens", "built", "deny.yaml:3:", files(map[string]string{"deny.yaml": "deny:\n  - path: example.com/m\n    effect: allow\n"})},
	{"branch removed", "discovered", "it has no refs/heads/main", func(_ *testing.T, r *repository) {
		r.Git("", nil, "update-ref", "-d", "refs/heads/main")
	}},
}

const (
	siteRego = `package site.release

findings contains finding if {
	input.resource.path == "example.com/evil"
	finding := {
		"code": "EVIL", "rule": "evil", "remedy": "none", "severity": 4, "doc": "", "params": {}, "template": "no",
		"effect": "deny", "effective_day": 0, "available_day": 0, "upgrade_to": "", "facts": [], "owner": "",
	}
}
`
	siteTest = `package site_test

import data.site.release as site

test_found if count(site.findings) == 1 with input as {"resource": {"path": "example.com/evil"}}
`
	slowTest = `package site_test

n := {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}

test_endless if count([x | some a in n; some b in n; some c in n; some d in n; some e in n; some f in n; some g in n; some h in n; x := [a, b, c, d, e, f, g, h]; x[0] == "x"]) == 1
`
)

func ownBundle(access string) map[string]string {
	all := own(access)
	for _, name := range []string{"access", "release"} {
		all[name+"/"+name+"_test.rego"] = "package headgate." + name + "_test\n\nimport data.headgate." + name + " as x\n\ntest_x if x.decision.effect == \"allow\"\n"
	}
	return all
}

// TestGitRefuses: what is wrong with a push is said, counted, and nothing else changes.
func TestGitRefuses(t *testing.T) {
	r := newRepository(t)
	r.push(nil)
	good := r.push(map[string]string{"config/teams.yaml": denyExample, "tests/golden.yaml": goldenDenied})
	e := r.open(t)
	if ev := r.next(t); ev.Commit != good {
		t.Fatalf("at the start: %+v", ev)
	}
	for _, tt := range badPushes {
		t.Run(tt.name, func(t *testing.T) {
			before := r.count(t, "headgate_policy_rejections_total", tt.state)
			tt.push(t, r)
			e.Look()
			ev := r.next(t)
			if ev.Active || ev.State != tt.state || !strings.Contains(ev.Reason, tt.want) {
				t.Errorf("event = %+v, want it rejected as %s with %q", ev, tt.state, tt.want)
			}
			s := e.Status()
			if s.Commit != good || effect(t, e) != policy.Deny {
				t.Errorf("%s is active, want %s", s.Commit, good)
			}
			if s.Rejection == nil || s.Rejection.Reason != ev.Reason || s.History[0].Reason != ev.Reason {
				t.Errorf("Status() = %+v, want the reason", s)
			}
			if n := r.count(t, "headgate_policy_rejections_total", tt.state); n != before+1 {
				t.Errorf("rejections_total{state=%s} went from %v to %v", tt.state, before, n)
			}
			if r.count(t, "headgate_policy_last_reload_success", "") != 0 {
				t.Error("last_reload_success is 1")
			}
			r.Git("", nil, "update-ref", "refs/heads/main", good)
			r.sign(t, r.key.Allowed(t))
			r.revoke(t, "")
		})
	}
	next := r.push(nil)
	e.Look()
	for ev := r.next(t); !ev.Active; ev = r.next(t) {
		t.Logf("on the way: %+v", ev)
	}
	if s := e.Status(); s.Commit != next || s.Rejection != nil || r.count(t, "headgate_policy_last_reload_success", "") != 1 {
		t.Errorf("Status() after a good push = %+v, want %s", s, next)
	}
	if archives, _ := filepath.Glob(filepath.Join(r.o.State, "git-*.tar")); len(archives) != 2 {
		t.Errorf("%d archives are kept, want those of the two good commits", len(archives))
	}
}

// TestGitTags: a tag never moves, and the next one has a higher signed sequence.
func TestGitTags(t *testing.T) {
	r := newRepository(t)
	r.cfg.Git.Branch, r.cfg.Git.Tag = "", "policy-v*"
	release := func(name, sequence string, files map[string]string) string {
		all := bundleOf(files)
		all["bundle.yaml"] = "name: test\nlibrary: default\nsequence: " + sequence + "\n"
		return r.Tag(name, r.Commit(gittest.Commit{Files: all}), r.key)
	}
	release("policy-v1.0.0", "1", nil)
	release("policy-v1.1.0", "2", nil)
	e := r.open(t)
	if ev := r.next(t); !ev.Active || ev.Ref != "refs/tags/policy-v1.1.0" {
		t.Fatalf("at the start: %+v", ev)
	}
	active := e.Status().Commit
	for _, tt := range []struct {
		name, tag, sequence, want string
	}{
		{"P20 moved tag", "policy-v1.1.0", "3", "refs/tags/policy-v1.1.0 was moved"},
		{"P20 same sequence", "policy-v1.2.0", "2", "sequence is 2; want more than 2"},
		{"P20 lower sequence", "policy-v1.3.0", "1", "sequence is 1; want more than 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			release(tt.tag, tt.sequence, map[string]string{"x.md": tt.name})
			e.Look()
			if ev := r.next(t); ev.Active || ev.State != "verified" || !strings.Contains(ev.Reason, tt.want) || e.Status().Commit != active {
				t.Errorf("event = %+v, want %q", ev, tt.want)
			}
		})
	}
	release("policy-v1.4.0", "3", nil)
	e.Look()
	if ev := r.next(t); !ev.Active || ev.Ref != "refs/tags/policy-v1.4.0" {
		t.Errorf("after a good tag: %+v", ev)
	}
	e.Close()
	r.cfg.RollbackTo = policy.Rollback{Revision: "policy-v1.0.0", Until: time.Now().UTC().Format(time.DateOnly)}
	e = r.open(t)
	if ev := r.next(t); !ev.Restored {
		t.Errorf("at the second start: %+v, want what was active", ev)
	}
	if ev := r.next(t); !ev.Active || ev.Ref != "refs/tags/policy-v1.0.0" || ev.Rollback != r.cfg.RollbackTo.Until {
		t.Errorf("with rollback_to: %+v, want policy-v1.0.0", ev)
	}
}

// TestGitRollback: going back is a setting with an end, and what it names must be signed and part of the history.
func TestGitRollback(t *testing.T) {
	today := time.Now().UTC().Format(time.DateOnly)
	r := newRepository(t)
	unsigned := r.Commit(gittest.Commit{Files: bundleOf(nil)})
	first := r.push(nil)
	second := r.push(map[string]string{"config/teams.yaml": denyExample, "tests/golden.yaml": goldenDenied})
	e := r.open(t)
	r.next(t)
	e.Close()
	for _, tt := range []struct {
		name, revision, until, want string
	}{
		{"unsigned", unsigned, today, "it is not signed"},
		{"not of this history", strings.Repeat("1", 40), today, "it is not in the history"},
		{"part of an id", first[:12], today, "want its full id"},
		{"earlier commit", first, today, ""},
		{"end has passed", first, "2020-01-01", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.cfg.RollbackTo = policy.Rollback{Revision: tt.revision, Until: tt.until}
			e := r.open(t)
			defer e.Close()
			if ev := r.next(t); !ev.Restored {
				t.Fatalf("at the start: %+v, want the archive", ev)
			}
			if tt.until != today { // it looks, and finds what it has or what is newer
				for e.Status().Commit != second {
					r.next(t)
				}
				return
			}
			ev := r.next(t)
			if tt.want == "" && (!ev.Active || ev.Commit != first || e.Status().Rollback != today) || tt.want != "" && !strings.Contains(ev.Reason, tt.want) {
				t.Errorf("event = %+v, want %q", ev, tt.want)
			}
		})
	}
}

// TestP22Rotation: keys overlap, and what is active is verified again when they change.
func TestP22Rotation(t *testing.T) {
	r := newRepository(t)
	r.push(nil)
	e := r.open(t)
	r.next(t)
	next := gittest.SSH(t)
	r.sign(t, r.key.Allowed(t)+next.Allowed(t))
	second := r.Commit(gittest.Commit{Files: bundleOf(map[string]string{"a.md": "x", "config/teams.yaml": denyExample, "tests/golden.yaml": goldenDenied}), Key: next})
	e.Look()
	if ev := r.next(t); !ev.Active || ev.Signer != next.Fingerprint {
		t.Errorf("with both keys: %+v, want it active", ev)
	}
	r.sign(t, r.key.Allowed(t))
	e.Look()
	if ev := r.next(t); ev.Active || ev.State != "verified" || e.Status().Commit != second {
		t.Errorf("without the key of the active commit: %+v, want it said, and the policy served on", ev)
	}
	e.Close()
	e = r.open(t)
	if ev := r.next(t); !ev.Restored || ev.Signer != r.key.Fingerprint {
		t.Errorf("after a restart: %+v, want the newest archive whose signer still counts", ev)
	}
	// The anchor stays the newest that was active, so that nobody goes back behind it.
	if s := e.Status(); s.Commit == second {
		t.Errorf("Status() = %+v", s)
	}
}

// TestGitRestore: what is on disk counts when the repository is away, if it is whole and ours.
func TestGitRestore(t *testing.T) {
	start := func(t *testing.T, spoil func(t *testing.T, r *repository, newest string)) (*repository, *policy.Engine) {
		r := newRepository(t)
		r.push(nil)
		e := r.open(t)
		r.next(t)
		r.push(map[string]string{"config/teams.yaml": denyExample, "tests/golden.yaml": goldenDenied})
		e.Look()
		r.next(t)
		e.Close()
		names, _ := filepath.Glob(filepath.Join(r.o.State, "git-*.json"))
		spoil(t, r, strings.TrimSuffix(names[len(names)-1], ".json"))
		r.server.Close()
		return r, r.open(t)
	}
	edit := func(old, replacement string) func(*testing.T, *repository, string) {
		return func(t *testing.T, _ *repository, newest string) {
			text, err := os.ReadFile(newest + ".json")
			if err != nil || !strings.Contains(string(text), old) {
				t.Fatalf("record %s, %v has no %s", text, err, old)
			}
			if err := os.WriteFile(newest+".json", []byte(strings.Replace(string(text), old, replacement, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, r *repository, newest string)
		want  policy.Effect // "" is nothing
	}{
		{"P21 repository is away", func(*testing.T, *repository, string) {}, policy.Deny},
		{"P24 signature stripped", edit(`"signature":"`, `"signature":"","x":"`), policy.Allow},
		{"P24 key id empty", edit(`"key":"`, `"key":"","x":"`), policy.Allow},
		{"P24 record altered", edit(`"digest"`, `"digesu"`), policy.Allow},
		{"P24 archive truncated", func(_ *testing.T, _ *repository, newest string) { os.Truncate(newest+".tar", 3000) }, policy.Allow},
		{"P29 killed between archive and record", func(_ *testing.T, _ *repository, newest string) { os.Remove(newest + ".json") }, policy.Allow},
		{"P24 another gateway's key", func(_ *testing.T, r *repository, _ string) { os.Remove(filepath.Join(r.o.State, "build.key")) }, ""},
		{"P22 signer is none any more", func(t *testing.T, r *repository, _ string) { r.sign(t, gittest.SSH(t).Allowed(t)) }, ""},
		{"P22 signer is none any more, repository's copy is gone", func(t *testing.T, r *repository, _ string) {
			r.sign(t, gittest.SSH(t).Allowed(t))
			os.RemoveAll(filepath.Join(r.o.State, "git"))
		}, ""},
		{"P29 repository's copy is gone", func(_ *testing.T, r *repository, _ string) { os.RemoveAll(filepath.Join(r.o.State, "git")) }, policy.Deny},
		{"P29 killed while fetching", func(t *testing.T, r *repository, _ string) {
			for _, name := range []string{"git/repo.git/config.lock", "git/repo.git/objects/pack/tmp_pack_x", "git/repo.git/shallow.lock"} {
				if err := os.WriteFile(filepath.Join(r.o.State, name), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, policy.Deny},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, e := start(t, tt.spoil)
			if tt.want == "" {
				if _, err := e.Current(); !errors.Is(err, policy.ErrNoPolicy) {
					t.Errorf("Current() = %v, want ErrNoPolicy", err)
				}
				return
			}
			if got := effect(t, e); got != tt.want || !e.Status().Restored {
				t.Errorf("effect = %s, want %s; %+v", got, tt.want, e.Status())
			}
		})
	}
}

// TestP30GitAway: no repository and no archive is no policy, and the trouble is told.
func TestP30GitAway(t *testing.T) {
	r := newRepository(t)
	r.server.Close()
	e := r.open(t)
	if _, err := e.Current(); !errors.Is(err, policy.ErrNoPolicy) {
		t.Errorf("Current() = %v, want ErrNoPolicy", err)
	}
	if s := e.Status(); s.Trouble == "" || s.Revision != "" || s.Source != "git" {
		t.Errorf("Status() = %+v, want the trouble", s)
	}
}

// TestDenyList: deny.yaml acts past all rules, needs no replay, and anything more does.
func TestDenyList(t *testing.T) {
	r := newRepository(t)
	asked := 0
	recorded := func() (*policy.Recording, error) { return policy.NewRecording(), nil }
	r.o.Recorded = func(context.Context) (*policy.Recording, error) { return recorded() }
	r.push(nil)
	e := r.open(t)
	r.next(t)
	recorded = func() (*policy.Recording, error) {
		asked++
		return nil, errors.New("the log cannot be read")
	}
	denied := "deny:\n  - {path: example.com/m, versions: \">=1.5.0 <1.6.0 || =1.7.1\"}\n  - path: example.com/all/...\n"
	id := r.push(map[string]string{"deny.yaml": denied})
	e.Look()
	if ev := r.next(t); !ev.Active || ev.Commit != id || asked != 0 {
		t.Fatalf("after a deny.yaml: %+v, replay asked %d times, want it active without", ev, asked)
	}
	g, err := e.Current()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, version, action string
		want                  policy.Effect
	}{
		{"example.com/m", "v1.5.0", "zip", policy.Deny},
		{"example.com/m", "v1.5.9", "list", policy.Deny},
		{"example.com/m", "v1.5.9", "mod", policy.Allow},
		{"example.com/m", "v1.6.0", "zip", policy.Allow},
		{"example.com/m", "v1.7.1", "zip", policy.Deny},
		{"example.com/m/v2", "v2.0.0", "zip", policy.Allow},
		{"example.com/all", "v1.0.0", "zip", policy.Deny},
		{"example.com/all/b", "v1.0.0", "info", policy.Deny},
		{"example.com/allb", "v1.0.0", "info", policy.Allow},
	} {
		in := person(tt.path, "public")
		in.Action, in.Context.Profile = policy.NewAction(tt.action), "standard"
		resource := policy.Resource{Name: policy.NewName(tt.path, "public"), Facts: policy.NewFacts(tt.version, "release", 1)}
		all, err := g.Release(t.Context(), in, []policy.Resource{resource})
		if err != nil || all[0].Effect != tt.want || tt.want == policy.Deny && all[0].Codes[0] != "DENIED" {
			t.Errorf("%s of %s@%s: %+v, %v, want %s", tt.action, tt.path, tt.version, all, err, tt.want)
		}
	}
	for _, tt := range []struct {
		name, deny, teams string
	}{
		{"an entry less", "deny:\n  - path: example.com/all/...\n", ""},
		{"deny.yaml gone", "", ""},
		{"a rule beside it", denied, denyExample},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := map[string]string{"deny.yaml": tt.deny}
			if tt.teams != "" {
				changed["config/teams.yaml"], changed["tests/golden.yaml"] = tt.teams, goldenDenied
			}
			r.push(changed)
			e.Look()
			if ev := r.next(t); ev.Active || ev.State != "replayed" || ev.Reason != "the log cannot be read" || e.Status().Commit != id {
				t.Errorf("event = %+v, want it rejected by replay", ev)
			}
		})
	}
}

// TestReplayHolds: a revision that refuses what was allowed waits until its owners say in it that they mean that.
func TestReplayHolds(t *testing.T) {
	r := newRepository(t)
	recording := policy.NewRecording()
	r.o.Recorded = func(context.Context) (*policy.Recording, error) { return recording, nil }
	first := r.push(nil)
	e := r.open(t)
	if ev := r.next(t); !ev.Active || ev.Replay == nil || ev.Replay.Decisions != 0 {
		t.Fatalf("first: %+v", ev)
	}
	g, err := e.Current()
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(t, g)
	for i := range 3 {
		h.ask(fmt.Sprint("u", i), "eng", "example.com/m", "v1.6.0", nil)
	}
	recording = h.recording
	rules := map[string]string{"config/rules.yaml": "profiles: [open, standard, strict]\nrules: [{id: a, code: X, match: {prefix: [example.com/m]}, effect: deny, remedy: none}]\n"}
	r.push(rules)
	e.Look()
	ev := r.next(t)
	if ev.Active || ev.State != "replayed" || !strings.Contains(ev.Reason, "it refuses 3 of 3 recorded decisions that allowed, 0 may be") || e.Status().Commit != first {
		t.Fatalf("held: %+v", ev)
	}
	if c := ev.Replay; c == nil || c.Decisions != 3 || c.Asked != 3 || c.Refused != 3 || c.Allowed != 0 || c.Unbuilt != 0 {
		t.Errorf("replay: %+v", c)
	}
	rules["bundle.yaml"] = "name: test\nlibrary: default\nreplay_refusals: 3\n"
	meant := r.push(rules)
	e.Look()
	if ev := r.next(t); !ev.Active || ev.Commit != meant || ev.Replay.Refused != 3 {
		t.Errorf("acknowledged: %+v", ev)
	}
}

// T75: a bundle that is unsigned, older, partial or claims a root that is not a bundle's is not active; the one before
// stays, and the metric of the alarm PolicyRejected says so.
func TestT75BadBundles(t *testing.T) {
	r := newRepository(t)
	r.o.Registerer = r.registry
	r.push(nil)
	first := r.push(map[string]string{"tests/README.md": "x"})
	e := r.open(t)
	r.next(t)
	for _, tt := range []struct {
		name, state string
		push        func()
	}{
		{"T75 unsigned", "verified", func() { r.Commit(gittest.Commit{Files: bundleOf(nil)}) }},
		{"T75 older", "verified", func() { r.Git("", nil, "update-ref", "refs/heads/main", first+"~1") }},
		{"T75 partial", "built", func() { r.push(map[string]string{"config/rules.yaml": ""}) }},
		{"T75 wrong root", "built", func() { r.push(map[string]string{"system/x.rego": "package system.x\n"}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.push()
			e.Look()
			if ev := r.next(t); ev.Active || ev.State != tt.state {
				t.Errorf("event %+v, want it rejected at %s", ev, tt.state)
			}
			if g, err := e.Current(); err != nil || g.Revision() != first || r.count(t, "headgate_policy_last_reload_success", "") != 0 {
				t.Errorf("active is not what it was, %v, or the metric says that all is well", err)
			}
			r.Git("", nil, "update-ref", "refs/heads/main", first)
			e.Look() // settles
		})
	}
}
