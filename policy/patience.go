package policy

import (
	"runtime"
	"time"
)

// patience is by how much an evaluation may outlast its budget on the clock of the wall while it has not worked so long: on
// a busy machine a thread waits for a processor.
const patience = 20

// afterWork calls do when the calling goroutine, which is bound to its thread from here on until stop, has worked for
// budget, and at the latest after patience times that.
func afterWork(budget time.Duration, do func()) (stop func()) {
	runtime.LockOSThread()
	worked := threadTime()
	begun, start := time.Now(), worked()
	var timer *time.Timer
	ready := make(chan struct{})
	timer = time.AfterFunc(budget, func() {
		<-ready
		left := min(budget-(worked()-start), patience*budget-time.Since(begun))
		if left <= 0 {
			do()
			return
		}
		timer.Reset(max(left, time.Millisecond))
	})
	close(ready)
	return func() {
		timer.Stop()
		runtime.UnlockOSThread()
	}
}
