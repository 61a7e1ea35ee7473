package policy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
	"github.com/headgate/headgate/policy/git"
)

// denyExample is a change of teams.yaml that denies example.com.
const denyExample = "teams:\n  everyone: {profile: standard, public: true, deny: [example.com]}\n"

func TestFolder(t *testing.T) {
	t.Run("change is taken, bad change is not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, nil)
			var events []policy.Event
			registry := prometheus.NewPedanticRegistry()
			e := open(t, dir, policy.Options{Registerer: registry, OnChange: func(ev policy.Event) { events = append(events, ev) }})
			defer e.Close()
			if got := effect(t, e); got != policy.Allow {
				t.Fatalf("effect at the start = %s, want allow", got)
			}
			first := e.Status().Revision

			writeFile(t, dir, "config/teams.yaml", denyExample)
			time.Sleep(1500 * time.Millisecond) // in the bubble: one poll goes by
			synctest.Wait()
			if got := effect(t, e); got != policy.Deny {
				t.Errorf("effect after the change = %s, want deny", got)
			}
			second := e.Status().Revision
			if second == first {
				t.Errorf("revision is still %s after the change", first)
			}

			writeFile(t, dir, "config/teams.yaml", "teams: {everyone: {public: yes}}\n")
			time.Sleep(3 * time.Second)
			synctest.Wait()
			s := e.Status()
			if got := effect(t, e); got != policy.Deny || s.Revision != second {
				t.Errorf("effect, revision after the bad change = %s, %s, want deny, %s", got, s.Revision, second)
			}
			if s.Rejection == nil || s.Rejection.State != "built" || !strings.Contains(s.Rejection.Reason, "config/teams.yaml:1:") {
				t.Errorf("Status().Rejection = %+v, want state built and the line", s.Rejection)
			}
			wantMetric(t, registry, "headgate_policy_last_reload_success", 0)

			writeFile(t, dir, "config/teams.yaml", denyExample)
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
			if s := e.Status(); s.Rejection != nil || s.Revision != second {
				t.Errorf("Status() after taking the bad change back = %+v, want no rejection", s)
			}
			wantMetric(t, registry, "headgate_policy_last_reload_success", 1)
			if len(events) != 3 || !events[0].Active || !events[1].Active || events[2].Active || events[2].Previous != events[1].Digest {
				t.Errorf("events = %+v, want activated, activated, rejected", events)
			}
		})
	})
	t.Run("P30 folder that is away, no archive", func(t *testing.T) {
		e := open(t, filepath.Join(t.TempDir(), "none"), policy.Options{State: t.TempDir()})
		if g, err := e.Current(); g != nil || !errors.Is(err, policy.ErrNoPolicy) {
			t.Errorf("Current() = %v, %v, want ErrNoPolicy", g, err)
		}
		if s := e.Status(); s.Revision != "" || s.Rejection == nil {
			t.Errorf("Status() = %+v, want a rejection and no revision", s)
		}
	})
	t.Run("P30 folder that is empty, no archive", func(t *testing.T) {
		if _, err := open(t, t.TempDir(), policy.Options{}).Current(); !errors.Is(err, policy.ErrNoPolicy) {
			t.Errorf("Current() = %v, want ErrNoPolicy", err)
		}
	})
	t.Run("P30 folder that comes later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "later")
			e := open(t, dir, policy.Options{})
			defer e.Close()
			write(t, dir, nil)
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
			if got := effect(t, e); got != policy.Allow {
				t.Errorf("effect = %s, want allow", got)
			}
		})
	})
	t.Run("P30 no source configured", func(t *testing.T) {
		e, err := policy.Open(t.Context(), policy.Config{}, policy.Options{Embedded: policies.FS})
		if err != nil || e.Status().Source != "embedded" {
			t.Errorf("Open() = %v, want the embedded source", err)
		}
	})
}

// effect is what the engine says to a public module.
func effect(t *testing.T, e *policy.Engine) policy.Effect {
	t.Helper()
	g, err := e.Current()
	if err != nil {
		t.Fatalf("Current() = %v: %+v", err, e.Status().Rejection)
	}
	d, err := g.Access(t.Context(), person("example.com/m", "public"))
	if err != nil {
		t.Fatalf("Access() = %v", err)
	}
	return d.Effect
}

func wantMetric(t *testing.T, r prometheus.Gatherer, name string, want float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			if got := f.GetMetric()[0].GetGauge().GetValue(); got != want {
				t.Errorf("%s = %v, want %v", name, got, want)
			}
			return
		}
	}
	t.Errorf("no metric %s", name)
}

// TestRestore holds that the last good bundle is there after a restart, and nothing else.
func TestRestore(t *testing.T) {
	start := func(t *testing.T, spoil func(state, dir string)) *policy.Engine {
		dir, state := t.TempDir(), t.TempDir()
		write(t, dir, nil)
		open(t, dir, policy.Options{State: state}).Close()
		write(t, dir, map[string]string{"config/teams.yaml": denyExample})
		open(t, dir, policy.Options{State: state}).Close()
		spoil(state, dir)
		return open(t, dir, policy.Options{State: state})
	}
	empty := func(dir string) {
		for name := range defaults {
			os.Remove(filepath.Join(dir, name))
		}
	}
	newest := func(state string) string {
		files, _ := filepath.Glob(filepath.Join(state, "*.tar"))
		return files[len(files)-1]
	}
	t.Run("folder is away: newest archive", func(t *testing.T) {
		e := start(t, func(_, dir string) { empty(dir) })
		if s := e.Status(); effect(t, e) != policy.Deny || !s.Restored || s.Rejection == nil {
			t.Errorf("Status() = %+v, want the newest archive and the rejection of the folder", s)
		}
	})
	t.Run("folder is bad: newest archive", func(t *testing.T) {
		e := start(t, func(_, dir string) { writeFile(t, dir, "config/rules.yaml", "rules: no\n") })
		if effect(t, e) != policy.Deny {
			t.Errorf("Status() = %+v, want the newest archive", e.Status())
		}
	})
	t.Run("P24 archive truncated: next older", func(t *testing.T) {
		e := start(t, func(state, dir string) { empty(dir); os.Truncate(newest(state), 3000) })
		if effect(t, e) != policy.Allow {
			t.Errorf("Status() = %+v, want the older archive", e.Status())
		}
	})
	t.Run("P24 archive altered: next older", func(t *testing.T) {
		e := start(t, func(state, dir string) {
			empty(dir)
			name := newest(state)
			b, _ := os.ReadFile(name)
			os.WriteFile(name, []byte(strings.Replace(string(b), "name: test", "name: tesu", 1)), 0o600)
		})
		if effect(t, e) != policy.Allow {
			t.Errorf("Status() = %+v, want the older archive", e.Status())
		}
	})
	t.Run("P24 no archive is whole", func(t *testing.T) {
		e := start(t, func(state, dir string) {
			empty(dir)
			files, _ := filepath.Glob(filepath.Join(state, "*.tar"))
			for _, name := range files {
				os.Truncate(name, 100)
			}
		})
		if _, err := e.Current(); !errors.Is(err, policy.ErrNoPolicy) {
			t.Errorf("Current() = %v, want ErrNoPolicy", err)
		}
	})
	t.Run("P29 half-written archive is not seen", func(t *testing.T) {
		e := start(t, func(state, dir string) { empty(dir); os.Rename(newest(state), newest(state)+".tmp") })
		if effect(t, e) != policy.Allow {
			t.Errorf("Status() = %+v, want the older archive", e.Status())
		}
	})
	t.Run("archive of another folder", func(t *testing.T) {
		dir, state := t.TempDir(), t.TempDir()
		write(t, dir, nil)
		open(t, dir, policy.Options{State: state}).Close()
		if _, err := open(t, t.TempDir(), policy.Options{State: state}).Current(); !errors.Is(err, policy.ErrNoPolicy) {
			t.Errorf("Current() = %v, want ErrNoPolicy", err)
		}
	})
	t.Run("five are kept", func(t *testing.T) {
		dir, state := t.TempDir(), t.TempDir()
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			write(t, dir, map[string]string{"bundle.yaml": "name: " + name + "\nlibrary: default\n"})
			open(t, dir, policy.Options{State: state}).Close()
		}
		if files, _ := filepath.Glob(filepath.Join(state, "*.tar")); len(files) != 5 {
			t.Errorf("state holds %d files, want 5: %v", len(files), files)
		}
	})
}

// TestP28Activation asks while bundles are swapped: every answer comes from exactly one revision.
func TestP28Activation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		strict := map[string]string{"config/teams.yaml": "teams:\n  everyone: {profile: strict, public: true}\n"}
		write(t, dir, nil)
		e := open(t, dir, policy.Options{})
		defer e.Close()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		profiles := sync.Map{}
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					g, err := e.Current()
					if err != nil {
						t.Errorf("Current() = %v", err)
						return
					}
					d, err := g.Access(t.Context(), person("example.com/m", "public"))
					if err != nil {
						t.Errorf("Access() = %v", err)
						return
					}
					if known, _ := profiles.LoadOrStore(g.Revision(), d.Profile); known != d.Profile {
						t.Errorf("revision %s answered %v and %s", g.Revision(), known, d.Profile)
					}
				}
			})
		}
		for i := range 6 {
			if i%2 == 0 {
				write(t, dir, strict)
			} else {
				write(t, dir, nil)
			}
			time.Sleep(1100 * time.Millisecond)
		}
		close(stop)
		wg.Wait()
		seen := 0
		profiles.Range(func(_, _ any) bool { seen++; return true })
		if seen != 2 {
			t.Errorf("saw %d revisions, want 2", seen)
		}
	})
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	e, err := policy.Open(t.Context(), policy.Config{}, policy.Options{Embedded: policies.FS, Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		effect(t, e)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue()
		}
	}
	for _, entry := range []string{"access", "release"} {
		for _, cached := range []string{"false", "true"} {
			for _, effect := range []string{"allow", "deny", "error"} {
				want := 0.0
				if entry == "access" && effect == "allow" {
					want = 1
				}
				name := "headgate_policy_decisions_total cached=" + cached + " effect=" + effect + " entry=" + entry
				if n, there := got[name]; !there || n != want {
					t.Errorf("%s = %v, %v, want %v", name, n, there, want)
				}
			}
			if _, there := got["headgate_decision_duration_seconds cached="+cached+" entry="+entry]; !there {
				t.Errorf("no duration of %s, cached %s", entry, cached)
			}
		}
	}
	for _, name := range []string{"headgate_policy_slow_evaluations_total", "headgate_policy_last_reload_success", "headgate_policy_last_reload_timestamp_seconds", "headgate_policy_revision_info revision=" + e.Status().Revision} {
		if _, there := got[name]; !there {
			t.Errorf("no metric %s", name)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	goodGit := git.Config{URL: "https://h/p", Branch: "main", AllowedSigners: "s"}
	for name, tt := range map[string]struct {
		cfg  policy.Config
		want string
	}{
		"unknown source":            {policy.Config{Source: "http"}, `source: "http" is unknown; want embedded, folder or git`},
		"folder without a path":     {policy.Config{Source: "folder"}, "path: is empty"},
		"embedded with a path":      {policy.Config{Source: "embedded", Path: "x"}, `path: "x" is not used`},
		"git without a URL":         {policy.Config{Source: "git", Git: git.Config{Branch: "main", AllowedSigners: "s"}}, "git.url: is no address"},
		"git with a path":           {policy.Config{Source: "git", Path: "x", Git: goodGit}, `path: "x" is not used by source git`},
		"git section, other source": {policy.Config{Source: "folder", Path: "x", Git: goodGit}, "git: is not used without source: git"},
		"rollback without git":      {policy.Config{RollbackTo: policy.Rollback{Revision: "x", Until: "2027-01-20"}}, "rollback_to: goes with source: git"},
		"rollback without an end":   {policy.Config{Source: "git", Git: goodGit, RollbackTo: policy.Rollback{Revision: "x"}}, "rollback_to.until: "},
		"rollback to nothing":       {policy.Config{Source: "git", Git: goodGit, RollbackTo: policy.Rollback{Until: "2027-01-20"}}, "rollback_to.revision: is empty"},
		"path without any source":   {policy.Config{Path: "x"}, `path: "x" is not used`},
	} {
		t.Run(name, func(t *testing.T) {
			if errs := tt.cfg.Validate(); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want) {
				t.Errorf("Validate() = %v, want %q", errs, tt.want)
			}
		})
	}
	if errs := (policy.Config{}).Validate(); len(errs) > 0 {
		t.Errorf("Validate() of the empty section = %v, want none", errs)
	}
}
