package mirror_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// The public database shows a second history: from then on nothing new is taken in, restarts included, an alarm stands,
// and what is stored goes on being served.
func TestForkedPublicDatabaseStopsIngest(t *testing.T) {
	for _, tt := range []struct {
		name string
		fork int // records of the second history
	}{{"forked", 8}, {"rolled back", 1}} {
		t.Run("C43 "+tt.name, func(t *testing.T) {
			up := mirrortest.Start(t)
			for i := range 6 {
				m, err := mirrortest.ParseTxtar([]byte(module(fmt.Sprintf("example.com/m%d", i), "v1.0.0")))
				if err == nil {
					err = up.Add(m)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			state := withState(t)
			b := start(t, up, state)
			for i := range 3 {
				b.must(t, fmt.Sprintf("/example.com/m%d/@v/v1.0.0.zip", i))
			}
			stopped := func() float64 { return b.metric(t, "headgate_sumdb_stopped", up.Sumdb()) }
			if stopped() != 0 {
				t.Fatal("stopped before the fork")
			}
			up.Fork(tt.fork)
			_, _, err := b.get(t.Context(), "/example.com/m4/@v/v1.0.0.zip")
			for _, want := range []error{mirror.ErrSumdbForked, mirror.ErrSumdb, mirror.ErrUpstream} {
				if !errors.Is(err, want) || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a new file: %v, want %v", err, want)
				}
			}
			for _, when := range []string{"now", "after a restart"} {
				if stopped() != 1 {
					t.Errorf("%s: headgate_sumdb_stopped is %v", when, stopped())
				}
				if _, _, err := b.get(t.Context(), "/example.com/m5/@v/v1.0.0.mod"); !errors.Is(err, mirror.ErrSumdbForked) {
					t.Errorf("%s: another new file: %v", when, err)
				}
				if _, _, err := b.get(t.Context(), b.own(t)+"/lookup/example.com/m5@v1.0.0"); !errors.Is(err, mirror.ErrSumdbForked) {
					t.Errorf("%s: a record in our own database: %v", when, err)
				}
				b.must(t, "/example.com/m1/@v/v1.0.0.zip")
				b.reopen(t, state)
				up.Forget()
			}
			if n := up.Count("*.zip") + up.Count("*lookup*"); n != 0 {
				t.Errorf("a stopped database is still asked: %v", up.Requests())
			}
			text, err := os.ReadFile(filepath.Join(b.cfg.Store, "public", "sumdb", up.Sumdb(), "security-error"))
			if err != nil || strings.Count(string(text), "go.sum database tree") < 2 {
				t.Errorf("what the operator finds, %v:\n%s", err, text)
			}
		})
	}
}

// Partial tiles go once the full one is there; both are answered for ever, also with the database gone.
func TestC42PartialTilesGoWithTheFullOne(t *testing.T) {
	const n = 257
	up := mirrortest.Start(t)
	for i := range n {
		m, err := mirrortest.ParseTxtar([]byte(module("example.com/m", fmt.Sprintf("v1.%d.0", i))))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b := start(t, up, nil)
	dir := filepath.Join(b.cfg.Store, "public", "sumdb", up.Sumdb(), "tile", "8", "0")
	lookup := func(i int) {
		t.Helper()
		b.must(t, fmt.Sprintf("/sumdb/%s/lookup/example.com/m@v1.%d.0", up.Sumdb(), i))
	}
	for _, i := range []int{0, 1, 2, 3} {
		lookup(i)
	}
	partial, _ := b.must(t, fmt.Sprintf("/sumdb/%s/%s", up.Sumdb(), tlog.Tile{H: 8, L: 0, N: 0, W: 3}.Path()))
	if kept, err := os.ReadDir(filepath.Join(dir, "000.p")); err != nil || len(kept) == 0 {
		t.Fatalf("no partial tile is kept: %v, %v", kept, err)
	}
	for i := range n {
		if err := up.Record("example.com/m", fmt.Sprintf("v1.%d.0", i)); err != nil {
			t.Fatal(err)
		}
	}
	lookup(n - 1)
	lookup(100)
	full, _ := b.must(t, fmt.Sprintf("/sumdb/%s/tile/8/0/000", up.Sumdb()))
	if kept, err := os.ReadDir(filepath.Join(dir, "000.p")); err == nil && len(kept) > 0 || len(full) != 8192 {
		t.Errorf("beside a full tile of %d bytes partial ones are kept: %v", len(full), kept)
	}
	up.Break("*", mirrortest.Fault{Status: 500})
	b.reopen(t, nil)
	again, _ := b.must(t, fmt.Sprintf("/sumdb/%s/%s", up.Sumdb(), tlog.Tile{H: 8, L: 0, N: 0, W: 3}.Path()))
	if again != partial || !strings.HasPrefix(full, partial) {
		t.Error("the partial tile changed")
	}
}
