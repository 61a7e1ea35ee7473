package policy

import (
	"testing"
	"time"
)

// The budget is what a thread works, not how long it waits; and yet it ends.
func TestAfterWork(t *testing.T) {
	t.Run("P9 who works is stopped", func(t *testing.T) {
		done := make(chan struct{})
		stop := afterWork(20*time.Millisecond, func() { close(done) })
		defer stop()
		worked, n := threadTime(), 0
		for start := worked(); ; n++ {
			select {
			case <-done:
				if spent := worked() - start; spent < 10*time.Millisecond {
					t.Errorf("stopped after %v of work, want 20 ms", spent)
				}
				return
			default:
			}
		}
	})
	t.Run("who waits is not, before twenty times as long", func(t *testing.T) {
		begun := time.Now()
		done := make(chan struct{})
		stop := afterWork(20*time.Millisecond, func() { close(done) })
		defer stop()
		<-done
		if took := time.Since(begun); took < 300*time.Millisecond {
			t.Errorf("stopped after %v of waiting, want 400 ms", took)
		}
	})
	t.Run("what is over is not stopped", func(t *testing.T) {
		stop := afterWork(10*time.Millisecond, func() { t.Error("stopped after its end") })
		stop()
		time.Sleep(60 * time.Millisecond)
	})
}
