package gateway

import (
	"errors"
	"runtime"
	"time"
)

const (
	turnsPerCore = 256 // as many goroutines as a processor of the Go scheduler queues for itself
	turnWait     = 10 * time.Second
)

var errCrowd = errors.New("too many requests wait to be recorded")

// turns bounds how many requests are recorded at a time. The log is written by one goroutine, which stands in line with
// all that can run: were thousands of requests acknowledged at once, they would all run before it, and the next batch
// would wait for them. What waits here costs nothing and is let in in the order of its coming.
type turns chan struct{}

func newTurns() turns { return make(turns, turnsPerCore*runtime.GOMAXPROCS(0)) }

// enter waits for a turn, errCrowd where none comes in ten seconds; leave ends it.
func (t turns) enter() error {
	select {
	case t <- struct{}{}:
		return nil
	default:
	}
	late := time.NewTimer(turnWait)
	defer late.Stop()
	select {
	case t <- struct{}{}:
		return nil
	case <-late.C:
		return errCrowd
	}
}

func (t turns) leave() { <-t }
