package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"
)

const (
	maxBatchRecords = 4096
	maxBatchBytes   = 1 << 20
	maxWait         = 2 * time.Second       // of a caller
	noteTick        = 20 * time.Millisecond // of a record that nobody waits for
	maxQueued       = 1 << 18               // records in memory, when the disk hangs
	reserve         = 64 << 10              // at the end of each segment, for control records alone
	maxYields       = 100_000               // while gathering, should the clock stand still
	slowDisk        = 50 * time.Millisecond // a caller does not commit by itself when the last fdatasync took longer
)

// A batch is what goes to disk in one write and one fdatasync, and is acknowledged at once.
type batch struct {
	buf     []byte // frames, to be stamped
	records int
	waiters int
	byKind  [len(kinds)]int
	done    chan struct{} // closed when err and at hold
	err     error
	at      time.Time // when it was durable
}

// result is what a caller gets that began to wait at start. What counts is when the record was durable: on a busy machine
// the caller learns of it later, when it is scheduled again.
func (b *batch) result(start time.Time) (took time.Duration, err error) {
	if took = b.at.Sub(start); took > maxWait {
		return took, unwritable(errTimeout) // too late is not acknowledged, to none of the batch
	}
	return took, b.err
}

// onlyControl reports whether the log speaks only of itself, which it may do when the disk is full.
func (b *batch) onlyControl() bool { return b.byKind[KindControl.number()] == b.records }

// Append writes a record and returns nil when it is durable. It waits at most two seconds; an error matches
// ErrUnwritable, and the record may then land all the same. ctx ends the wait early, not the write: call it with
// context.WithoutCancel, so that a client that hangs up is recorded too.
func (l *Log) Append(ctx context.Context, r *Record) error {
	took, err := l.append(ctx, r, time.Now())
	if err != nil {
		l.metrics.failures.WithLabelValues(causeLabel(err)).Inc()
		return fmt.Errorf("appending audit record %s: %w", EscapeTerminal(r.EventID), err)
	}
	l.metrics.append.Observe(took.Seconds())
	return nil
}

// append gives how long it took until the record was durable.
func (l *Log) append(ctx context.Context, r *Record, start time.Time) (time.Duration, error) {
	b, mine, err := l.enqueue(r, true)
	if err != nil {
		return 0, err
	}
	if mine {
		l.commit(b)
		l.release()
		return b.result(start)
	}
	t := l.timers.Get().(*time.Timer)
	t.Reset(maxWait)
	defer func() {
		t.Stop()
		l.timers.Put(t)
	}()
	select {
	case <-b.done:
		return b.result(start)
	case <-t.C:
		select {
		case <-b.done: // in time perhaps, and this goroutine was late
			return b.result(start)
		default:
			return 0, unwritable(errTimeout)
		}
	case <-ctx.Done():
		return 0, unwritable(context.Cause(ctx))
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// Note queues a record that nobody waits for. It never wakes the disk: it is durable with the next batch, or after
// 20 ms. When the log cannot be written, it is counted and lost.
func (l *Log) Note(r *Record) {
	if _, _, err := l.enqueue(r, false); err != nil {
		l.metrics.failures.WithLabelValues(causeLabel(err)).Inc()
	}
}

// Rotations is how many segments were filled in this run. What was noted before it changed may be gone from the log, by
// age, before what is noted after.
func (l *Log) Rotations() int64 { return l.rotations.Load() }

// enqueue puts a record into the open batch. If the log is idle and the caller waits anyway, the caller commits:
// mine is then true, and nobody else does until it calls release.
func (l *Log) enqueue(r *Record, wait bool) (b *batch, mine bool, err error) {
	e := l.encoders.Get().(*encoder)
	defer l.encoders.Put(e)
	record := e.encode(r, l.node)
	if e.sanitised {
		l.metrics.sanitised.Inc()
	}
	if e.redacted > 0 {
		l.metrics.redacted.Add(float64(e.redacted))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	own := r.Kind == KindControl && r.Control.What != ControlSnapshot
	if err := l.refusal(); err != nil && !(own && (errors.Is(err, errFull) || errors.Is(err, errUnpublished))) {
		if !wait {
			l.dropped++
		}
		return nil, false, err
	}
	if l.queued >= maxQueued {
		return nil, false, unwritable(errQueue)
	}
	b = l.room(len(record))
	b.buf = appendFrame(b.buf, r.Kind, record)
	b.records++
	b.byKind[r.Kind.number()]++
	l.queued++
	if wait {
		b.waiters++
	}
	switch {
	case l.busy: // whoever commits looks again before it stops
	case wait && len(l.full) == 0 && l.lastSync < slowDisk:
		l.busy = true
		return l.take(), true, nil
	case wait || len(l.full) > 0:
		l.busy = true
		l.wake <- struct{}{}
	case !l.ticking:
		l.ticking = true
		l.tick.Reset(noteTick)
	}
	return b, false, nil
}

// room returns the open batch, a new one if size bytes more would not fit. It needs mu.
func (l *Log) room(size int) *batch {
	b := l.open
	most := min(maxBatchBytes, int(l.cfg.SegmentBytes/4))
	if b.records == maxBatchRecords || b.records > 0 && len(b.buf)+size > most {
		l.full = append(l.full, b)
		b = l.renew()
	}
	if b.buf == nil {
		if n := len(l.buffers); n > 0 {
			b.buf, l.buffers = l.buffers[n-1][:0], l.buffers[:n-1]
		}
	}
	return b
}

// renew opens a new batch. It needs mu.
func (l *Log) renew() *batch {
	l.open = &batch{done: make(chan struct{})}
	return l.open
}

// take removes the next batch to commit, nil if nothing is queued. It needs mu, and busy set by the caller.
func (l *Log) take() *batch {
	if len(l.full) > 0 {
		b := l.full[0]
		l.full = l.full[1:]
		return b
	}
	if b := l.open; b.records > 0 {
		l.renew()
		return b
	}
	return nil
}

// onTick commits records that nobody waits for.
func (l *Log) onTick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ticking = false
	if !l.busy && !l.closing && l.open.records > 0 {
		l.busy = true
		l.wake <- struct{}{}
	}
}

// release ends a caller's own commit: the right to commit goes to the writer if others wait by now.
func (l *Log) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open.waiters > 0 || len(l.full) > 0 {
		l.wake <- struct{}{}
		return
	}
	l.rest()
}

// rest gives up the right to commit. It needs mu.
func (l *Log) rest() {
	l.busy = false
	l.idle.Broadcast()
	if l.open.records > 0 && !l.ticking && !l.closing {
		l.ticking = true
		l.tick.Reset(noteTick)
	}
}

// writer commits as long as somebody waits. Each value of wake hands it the right to commit, once.
func (l *Log) writer() {
	for range l.wake {
		l.mu.Lock()
		for b := l.take(); b != nil; {
			l.mu.Unlock()
			l.commit(b)
			l.gather(b.waiters)
			l.mu.Lock()
			b = nil
			if l.open.waiters > 0 || len(l.full) > 0 {
				b = l.take()
			}
		}
		l.rest()
		l.mu.Unlock()
	}
}

// gather lets the callers that were just acknowledged come back with their next records, for at most a quarter of
// what a write costs: a fuller batch is worth that. It yields and never sleeps; a timer's grain is coarser than the wait.
func (l *Log) gather(expected int) {
	start := time.Now()
	for range maxYields {
		l.mu.Lock()
		most := l.lastSync / 4
		enough := l.open.waiters >= expected || len(l.full) > 0
		l.mu.Unlock()
		if enough || time.Since(start) > most {
			return
		}
		runtime.Gosched()
	}
}

// commit writes a batch, makes it durable and acknowledges it. Only who holds busy may call it.
func (l *Log) commit(b *batch) {
	l.mu.Lock()
	state := l.state
	l.mu.Unlock()
	switch {
	case state == nil, errors.Is(state, errFull) && b.onlyControl():
		b.err = l.write(b)
	default:
		b.err = unwritable(state)
	}
	l.mu.Lock()
	l.queued -= b.records
	l.metrics.queue.Set(float64(l.queued))
	if b.err != nil {
		l.dropped += int64(b.records - b.waiters)
	}
	if len(l.buffers) < 2 && cap(b.buf) <= 2*maxBatchBytes {
		l.buffers = append(l.buffers, b.buf)
	}
	b.buf = nil
	l.mu.Unlock()
	b.at = time.Now()
	close(b.done)
}

// write stamps a batch and brings it to disk. What stands on disk is published only when it is durable; after any
// error but a full disk the log is poisoned, since nobody knows then what a later read would show.
func (l *Log) write(b *batch) error {
	if err := l.fit(b); err != nil {
		return l.failed(err)
	}
	tree, prev := l.durable, l.prev // only who holds busy changes them, so reading needs no lock
	l.mu.Lock()
	l.stamp = max(time.Now().UnixNano(), l.stamp+1, l.notBefore)
	l.mu.Unlock()
	for rest, first := b.buf, true; len(rest) > 0; first = false {
		prev, rest = stampFrame(rest, first, tree.size, l.stamp, prev)
		tree.push(prev)
	}
	if _, err := l.active.file.WriteAt(b.buf, l.active.off); err != nil {
		if outOfSpace(err) {
			err = errors.Join(err, l.cutBack())
		}
		return l.failed(err)
	}
	start := time.Now()
	if err := l.active.file.datasync(); err != nil {
		return l.failed(fmt.Errorf("fsync: %w", noSpaceError{err}))
	}
	took := time.Since(start)
	l.active.off += int64(len(b.buf))
	l.mu.Lock()
	l.durable, l.prev, l.lastSync = tree, prev, took
	l.mu.Unlock()
	l.metrics.fsync.Observe(took.Seconds())
	l.metrics.batch.Observe(float64(b.records))
	l.metrics.size.Set(float64(tree.size))
	for i, n := range b.byKind {
		if n > 0 && i > 0 {
			l.metrics.byKind[i].Add(float64(n))
		}
	}
	return nil
}

// noSpaceError hides what an fsync error is: even ENOSPC is final there, since pages may be lost.
type noSpaceError struct{ error }

// cutBack takes an unfinished write off the end of the segment, so that no frame of it is ever read as a record. The
// segment grows again when there is room.
func (l *Log) cutBack() error {
	l.active.size = l.active.off
	if err := l.active.file.Truncate(l.active.off); err != nil {
		return noSpaceError{fmt.Errorf("truncating segment: %w", err)}
	}
	if err := l.active.file.datasync(); err != nil {
		return noSpaceError{fmt.Errorf("syncing truncated segment: %w", err)}
	}
	return nil
}

// failed turns the log to the state that an error of the disk calls for and returns what its callers get.
func (l *Log) failed(err error) error {
	state := fmt.Errorf("%w: %w", errPoisoned, err)
	if fullDisk(err) {
		state = fmt.Errorf("%w: %w", errFull, err)
	}
	l.mu.Lock()
	was := l.state
	if was == nil || errors.Is(state, errPoisoned) {
		l.state = state
	}
	l.mu.Unlock()
	if was == nil || !errors.Is(was, errPoisoned) && errors.Is(state, errPoisoned) {
		l.metrics.writable.Set(0)
		l.logger.LogAttrs(context.Background(), slog.LevelError, "audit log cannot be written; requests are refused", slog.Any("err", state))
		if errors.Is(state, errPoisoned) {
			close(l.poisoned)
		}
		l.prod()
	}
	return unwritable(state)
}

// fullDisk reports whether every error in err is one of missing room.
func fullDisk(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if !fullDisk(e) {
				return false
			}
		}
		return true
	}
	return outOfSpace(err)
}

// prod asks upkeep to look at disk space and segments now.
func (l *Log) prod() {
	select {
	case l.urgent <- struct{}{}:
	default: // it was asked already
	}
}
