package storetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// twoGateways publish other bytes under one name at once: one wins, the other
// one is told so, and who looks on sees the winner's bytes whole or nothing.
func (suite Suite) twoGateways(t *testing.T, a, b *store.Store) {
	for _, r := range []struct {
		what               string
		bytes, short, soak int // rounds in the short form, and with SOAK=1
	}{{"small", 1000, 50, 1000}, {"large", suite.Large, 2, 1000}} {
		n := r.short
		if os.Getenv("SOAK") != "" {
			n = r.soak
		}
		t.Run("A55 "+r.what, func(t *testing.T) {
			began := time.Now()
			gateways := [2]*store.Store{a, b}
			var drafts [2]*store.Draft
			for i, s := range gateways {
				drafts[i] = draft(t, s, r.bytes, "AB"[i])
			}
			var won [2]int
			for round := range n {
				name := fmt.Sprintf("race.example/%s/v%d.zip", r.what, round)
				won[oneWins(t, gateways, drafts, name)]++
				if done := round + 1; done%50 == 0 && done < n {
					t.Logf("%d of %d rounds, after %s", done, n, time.Since(began).Round(time.Second))
				}
			}
			t.Logf("%d rounds of %d bytes in %s: won by the first %d, by the second %d", n, r.bytes, time.Since(began).Round(time.Millisecond), won[0], won[1])
		})
	}
}

func oneWins(t *testing.T, gateways [2]*store.Store, drafts [2]*store.Draft, name string) (winner int) {
	t.Helper()
	var errs [2]error
	var writers, watchers sync.WaitGroup
	over := make(chan struct{})
	watchers.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Millisecond):
			}
			info, err := gateways[1].Stat(t.Context(), name)
			if err == nil && info.Size != drafts[0].Size() || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s while it is written: %+v, %v", name, info, err)
			}
		}
	})
	for i := range drafts {
		writers.Go(func() { errs[i] = drafts[i].Publish(t.Context(), name) })
	}
	writers.Wait()
	close(over)
	watchers.Wait()
	if errs[0] != nil {
		winner = 1
	}
	c, conflict := errors.AsType[*store.ConflictError](errs[1-winner])
	if errs[winner] != nil || !conflict || c.Stored != drafts[winner].SHA256() || c.Offered != drafts[1-winner].SHA256() {
		t.Fatalf("%s: %v and %v, want one winner and a conflict", name, errs[0], errs[1])
	}
	got, size, err := letters(t.Context(), gateways[1-winner], name)
	if err != nil || got != "AB"[winner:winner+1] || size != drafts[winner].Size() {
		t.Fatalf("%s: %d bytes of %q, %v, want %d of the winner's", name, size, got, err, drafts[winner].Size())
	}
	if err := gateways[winner].Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return winner
}
