//go:build !linux

package policy

import "time"

// threadTime is the time on the wall where no thread's own can be read.
func threadTime() func() time.Duration {
	begun := time.Now()
	return func() time.Duration { return time.Since(begun) }
}
