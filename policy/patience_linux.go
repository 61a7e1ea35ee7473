package policy

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// threadTime returns a clock of the processor time of the calling thread, which may be read by others: clock_getcpuclockid(3)
// for a thread (linux/posix-timers.h, MAKE_THREAD_CPUCLOCK). Of a thread that has ended it says that its time is over.
func threadTime() func() time.Duration {
	clock := int32(^unix.Gettid()<<3 | 6)
	return func() time.Duration {
		var t unix.Timespec
		if err := unix.ClockGettime(clock, &t); err != nil {
			return math.MaxInt64 / 2
		}
		return time.Duration(t.Nano())
	}
}
