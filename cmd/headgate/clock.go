package main

import (
	"context"
	"time"
)

// clockKey is where a context carries another clock than the machine's, for ages and for policy's day: scripts of tests
// live through days.
type clockKey struct{}

// clockOf is the clock of a gateway; nil is the machine's.
func clockOf(ctx context.Context) func() time.Time {
	now, _ := ctx.Value(clockKey{}).(func() time.Time)
	return now
}
