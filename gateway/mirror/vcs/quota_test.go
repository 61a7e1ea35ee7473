package vcs_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// clones lists the module paths of kept clones by their folders.
func (b *bench) clones(tb testing.TB) string {
	tb.Helper()
	roots, err := filepath.Glob(filepath.Join(b.o.Dir, "routes/*/clones/*/root"))
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, name := range []string{"a", "b", "c"} { // in order
		for _, root := range roots {
			if text, err := os.ReadFile(root); err == nil && strings.HasPrefix(string(text), "corp.example/team/"+name+"\n") {
				names = append(names, name)
			}
		}
	}
	return strings.Join(names, "")
}

func (b *bench) look(tb testing.TB, name string) {
	tb.Helper()
	b.off.Add(int64(time.Minute)) // uses are told apart by their time
	if _, err := b.Look(tb.Context(), 0, "corp.example/team/"+name); err != nil {
		tb.Fatalf("Look(%s): %v", name, err)
	}
}

// N6: kept clones have a bound; the one that was not used for longest goes, after a restart, too.
func TestClonesWithinTheirBound(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, name := range []string{"a", "b", "c"} {
		noise := strings.Repeat(name+"x", 20_000)
		commit(t, b.repo(t, "team/"+name), "main", files("corp.example/team/"+name, "noise.txt", noise), "v1.0.0")
	}
	b.look(t, "a")
	metrics := prometheus.NewPedanticRegistry()
	b.o.Registerer = metrics
	one := sizeOf(t, filepath.Join(b.o.Dir, "routes"))
	b.o.MaxClones = 5 * one / 2
	b.reopen(t)
	b.look(t, "b")
	b.look(t, "a")
	if got := b.clones(t); got != "ab" {
		t.Fatalf("kept clones: %q, want both, of %d bytes each", got, one)
	}
	b.look(t, "c")
	if got := b.clones(t); got != "ac" {
		t.Errorf("kept clones: %q, want a and c: b was not used for longest", got)
	}
	if n, err := testutil.GatherAndCount(metrics, "headgate_vcs_fetch_duration_seconds"); err != nil || n != 5 {
		t.Errorf("%d series of fetch durations (%v), want one for each of 5 results", n, err)
	}
	for name, want := range map[string]float64{"headgate_vcs_clones_removed_total": 1, "headgate_vcs_runs": 0} {
		if got := value(t, metrics, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if got := value(t, metrics, "headgate_vcs_clone_bytes"); got < float64(one) || got > float64(b.o.MaxClones) {
		t.Errorf("headgate_vcs_clone_bytes = %v, want about 2 × %d and at most %d", got, one, b.o.MaxClones)
	}
	b.look(t, "a")
	b.o.MaxClones, b.o.Registerer = 3*one/2, nil
	b.reopen(t)
	if got := b.clones(t); got != "a" {
		t.Errorf("kept clones after a restart with less room: %q, want a, used last", got)
	}
	b.look(t, "b") // what was removed is cloned again
	b.nothingLeft(t)
}

func value(tb testing.TB, g prometheus.Gatherer, name string) float64 {
	tb.Helper()
	all, err := g.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	tb.Fatalf("no metric %s", name)
	return 0
}

func sizeOf(tb testing.TB, dir string) int64 {
	tb.Helper()
	var n int64
	if err := filepath.Walk(dir, func(_ string, i os.FileInfo, err error) error {
		if err == nil && !i.IsDir() {
			n += i.Size()
		}
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	return n
}

// A clone that a run uses is not taken away from under it, however little room there is.
func TestCloneInUseStays(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, name := range []string{"a", "b"} {
		commit(t, b.repo(t, "team/"+name), "main", files("corp.example/team/"+name), "v1.0.0")
	}
	b.look(t, "a")
	held, goOn := make(chan struct{}), make(chan struct{})
	first := true
	b.git.Before(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/a.git/") && first {
			first = false
			close(held)
			<-goOn
		}
		return false
	})
	done := make(chan error, 1)
	go func() {
		m, err := b.Look(t.Context(), 0, "corp.example/team/a")
		if err == nil && len(m.Versions) != 1 {
			err = fmt.Errorf("versions are %q", m.Versions)
		}
		done <- err
	}()
	<-held
	b.Shrink(1)
	b.look(t, "b") // its end makes room
	if got := b.clones(t); got != "a" {
		t.Errorf("kept clones while a is in use: %q, want a", got)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Errorf("Look with the clone in use: %v", err)
	}
	if got := b.clones(t); got != "" {
		t.Errorf("kept clones afterwards: %q, want none", got)
	}
}
