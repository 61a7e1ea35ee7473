package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// TailOptions choose what Tail reads.
type TailOptions struct {
	// Last is how many records before the end to begin with; 0 for all of the newest epoch, negative for none.
	Last int
	// Since begins with the segment that has the first record of this time; zero for the oldest.
	Since time.Time
	// Segments is how many segments at the end are read at most; 0 for all.
	Segments int
	// NoLeaf leaves Entry.Leaf out, which takes a third of the time.
	NoLeaf bool
	// Follow waits for records to come until the context is done.
	Follow bool
}

// An Entry is one record as it was written.
type Entry struct {
	Seq  int64           // leaf number in its epoch
	Time time.Time       // when it was appended; the record's own t is what the hash covers
	Leaf tlog.Hash       // leaf hash
	Raw  json.RawMessage // the record, valid until the callback returns
}

// pollEvery is how often a follower looks for new records.
const pollEvery = 100 * time.Millisecond

// Tail calls fn for each record of the newest epoch in order, up to the last durable one. It takes no lock. It ends
// with fn's first error, or nil at the end or when a follower's context is done. Bytes that are no valid record where
// more of the log follows are a *DamageError.
func Tail(ctx context.Context, dir string, o TailOptions, fn func(Entry) error) error {
	all, err := epochs(dir)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("reading %s: there is no audit log: %w", dir, fs.ErrNotExist)
	}
	return tailEpoch(ctx, layout{dir: dir, epoch: all[len(all)-1]}, o, fn)
}

func tailEpoch(ctx context.Context, l layout, o TailOptions, fn func(Entry) error) error {
	t := &tailer{layout: l, fn: fn, noLeaf: o.NoLeaf}
	defer t.close()
	if err := t.seek(o); err != nil {
		return err
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		if err := t.drain(ctx); err != nil {
			if o.Follow && ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !o.Follow {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// A tailer reads one epoch from segment to segment.
type tailer struct {
	layout
	fn    func(Entry) error
	file  *segmentFile
	scan  *scanner
	first int64 // of the segment that is open
	next  int64 // seq of the next record
	from  int64 // of the first record to give to fn
	buf   bytes.Buffer

	noLeaf bool
}

func (t *tailer) close() {
	if t.file != nil {
		t.file.close()
	}
}

// seek finds where to begin: the segment that holds the first record wanted.
func (t *tailer) seek(o TailOptions) error {
	firsts, err := t.list()
	if err != nil || len(firsts) == 0 {
		return err
	}
	if o.Segments > 0 {
		firsts = firsts[max(0, len(firsts)-o.Segments):]
	}
	t.next, err = t.since(firsts, o.Since)
	if err != nil || o.Last == 0 {
		return err
	}
	newest := firsts[len(firsts)-1]
	f, err := t.openSegment(newest)
	if err != nil {
		return err
	}
	defer f.close()
	end, err := countFrames(f, 0, newest)
	if err != nil {
		return err
	}
	t.from = max(end-int64(max(o.Last, 0)), 0)
	for _, first := range firsts {
		if first >= t.next && first <= t.from {
			t.next = first
		}
	}
	return nil
}

// since returns the first record of the newest segment that begins before a time, or of the oldest.
func (t *tailer) since(firsts []int64, at time.Time) (int64, error) {
	for i := len(firsts) - 1; i > 0; i-- {
		f, err := t.openSegment(firsts[i])
		if err != nil {
			return 0, err
		}
		fr, err := newScanner(f, 0).next()
		f.close()
		if err == nil && time.Unix(0, fr.time).Before(at) {
			return firsts[i], nil
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errFrame) {
			return 0, err
		}
	}
	return firsts[0], nil
}

// countFrames reads frames from off, where the one numbered seq stands, and returns the number of the first that is
// not there.
func countFrames(f io.ReaderAt, off, seq int64) (int64, error) {
	s := newScanner(f, off)
	for {
		fr, err := s.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errFrame) || err == nil && fr.seq != seq {
			return seq, nil
		}
		if err != nil {
			return 0, err
		}
		seq++
	}
}

// drain reads all there is.
func (t *tailer) drain(ctx context.Context) error {
	for {
		if t.file == nil {
			f, err := t.openSegment(t.next)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			t.file, t.scan, t.first = f, newScanner(f, 0), t.next
		}
		if err := t.readSegment(ctx); err != nil {
			return err
		}
		if t.next == t.first {
			return nil
		}
		if !t.hasSegment(t.next) {
			return t.damaged()
		}
		t.close()
		t.file = nil
	}
}

// readSegment gives fn what the open segment has. Frames that can be read may still be in the page cache alone, so the
// file is synced before they are given away: what a reader saw is never taken back by a power cut.
func (t *tailer) readSegment(ctx context.Context) error {
	end, err := countFrames(t.file, t.scan.off, t.next)
	if err != nil || end == t.next {
		return err
	}
	if err := t.file.sync(); err != nil {
		return err
	}
	for t.next < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f, err := t.scan.next()
		if err != nil {
			return fmt.Errorf("reading %s: %w", t.file.file.Name(), err)
		}
		t.next++
		if f.seq < t.from {
			continue
		}
		e := Entry{Seq: f.seq, Time: time.Unix(0, f.time), Raw: f.record()}
		if !t.noLeaf {
			e.Leaf = f.leaf(&t.buf)
		}
		if err := t.fn(e); err != nil {
			return err
		}
	}
	return nil
}

// damaged reports that the log goes on somewhere behind bytes that are no valid record.
func (t *tailer) damaged() error {
	head := make([]byte, frameHead)
	if n, err := t.file.ReadAt(head, t.scan.off); err != nil && !errors.Is(err, io.EOF) || isZero(head[:n]) {
		return nil // the usual end; reading on through a preallocated segment at each look would cost too much
	}
	firsts, err := t.list()
	if err != nil {
		return err
	}
	end, err := inspectTail(t.file, t.scan.off, t.next)
	if err != nil {
		return err
	}
	if !end.later && firsts[len(firsts)-1] <= t.next {
		return nil
	}
	if again, err := countFrames(t.file, t.scan.off, t.next); err != nil || again > t.next {
		return err // it was written in the meantime
	}
	return &DamageError{
		Code: ExitAltered, Epoch: t.epoch, Seq: t.next, SeqTo: t.next,
		EventID: eventID(end.head), Detail: "its bytes are not what was written",
	}
}

// entry returns the frame as an Entry of its own.
func (f frame) entry() Entry {
	var scratch bytes.Buffer
	return Entry{Seq: f.seq, Time: time.Unix(0, f.time), Leaf: f.leaf(&scratch), Raw: slices.Clone(f.record())}
}
