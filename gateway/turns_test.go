package gateway

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A41: however many come, so many are recorded at a time; all get their turn; and who gets none is told.
func TestA41Turns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		var inside, most atomic.Int64
		var all sync.WaitGroup
		for range 8 * cap(turns) {
			all.Go(func() {
				if err := turns.enter(); err != nil {
					t.Error(err)
					return
				}
				defer turns.leave()
				n := inside.Add(1)
				defer inside.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(time.Second) // of a slow disk
			})
		}
		all.Wait()
		if n := most.Load(); n != int64(cap(turns)) {
			t.Errorf("at most %d were inside at a time, want %d", n, cap(turns))
		}
		for range cap(turns) { // which nobody leaves
			if err := turns.enter(); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if err := turns.enter(); !errors.Is(err, errCrowd) || time.Since(start) != turnWait {
			t.Errorf("enter = %v after %s, want %v after %s", err, time.Since(start), errCrowd, turnWait)
		}
	})
}
