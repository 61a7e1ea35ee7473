package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// An inspection walks through one epoch and checks all that can be checked: frames, chain, tree, checkpoints.
// It changes nothing. Recovery and Verify both are inspections; only what they do about the result differs.
type inspection struct {
	layout
	trustHashes bool         // believe .hashes of segments before the newest checkpoint's; the root still has to fit
	trustTo     int64        // only of those that end before this record; 0 for all
	known       []checkpoint // verified ones, to be met at their size
	checkpoint  checkpoint   // the newest local one
	gone        gone         // what the log says that it removed

	tree     edge
	prev     tlog.Hash
	stamp    int64   // append time of the last frame
	segments []int64 // first sequence numbers
	unsealed []int64 // segments before the last one that have no .hashes
	bytes    int64   // of frames read
	end      int64   // where the last good frame of the last segment ends
	torn     tail    // what stands behind it
	last     []byte  // the last good record
	suspect  *DamageError
	rewrite  *DamageError // a checkpoint given from outside that the tree does not meet
	patience int          // how often to look again at a torn tail, which may be a live log's write under way
	pace     pace
	scratch  bytes.Buffer
}

// A pace holds reading back, step by step: what one step was late is not made up by the next.
type pace struct {
	rate  int64 // bytes a second, 0 without bound
	bytes int64 // read when the step began
	since time.Time
}

// keep ends a step, at this many bytes, no sooner than the rate allows.
func (p *pace) keep(ctx context.Context, bytes int64) error {
	if p.rate > 0 {
		step := time.Duration(float64(bytes-p.bytes) / float64(p.rate) * float64(time.Second))
		select {
		case <-time.After(step - time.Since(p.since)):
		case <-ctx.Done():
		}
		p.bytes, p.since = bytes, time.Now()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// run inspects the epoch. Damage is a *DamageError; a torn tail is no error here.
func (in *inspection) run(ctx context.Context) error {
	var err error
	if in.segments, err = in.list(); err != nil {
		return err
	}
	for i, first := range in.segments {
		if err := in.skip(first); err != nil {
			return err
		}
		if err := in.continuity(first); err != nil {
			return err
		}
		next := int64(-1)
		if i+1 < len(in.segments) {
			next = in.segments[i+1]
			if end := in.endOf(first, next); end <= in.gone.size {
				next = end
			}
		}
		if err := in.segment(ctx, first, next); err != nil {
			return err
		}
	}
	if in.suspect != nil {
		return in.suspect
	}
	for _, c := range in.known {
		if c.size > in.tree.size {
			return in.short(c)
		}
	}
	if err := in.meet(); err != nil {
		return err
	}
	if in.rewrite != nil { // and yet the log's own checkpoint was met: two of its signatures contradict each other
		return in.rewrite
	}
	return nil
}

// continuity checks that a segment begins where the one before it ended.
func (in *inspection) continuity(first int64) error {
	if first == in.tree.size {
		return nil
	}
	if first < in.tree.size {
		return in.damage(ExitAltered, first, fmt.Sprintf("segment %020d.log begins inside the one before it", first))
	}
	d := in.damage(ExitMissing, in.tree.size, "the segment that held them is missing")
	d.SeqTo = first - 1
	return d
}

func (in *inspection) damage(code int, seq int64, detail string) *DamageError {
	return &DamageError{Code: code, Epoch: in.epoch, Seq: seq, SeqTo: seq, Detail: detail}
}

// segment reads one segment; next is where the one after it begins, -1 for the last.
func (in *inspection) segment(ctx context.Context, first, next int64) error {
	if next >= 0 {
		hashes, ok, err := in.readHashes(first, next-first)
		if err != nil {
			return err
		}
		if ok && in.trustHashes && next <= in.checkpoint.size && (in.trustTo == 0 || next <= in.trustTo) {
			return in.pushHashes(hashes)
		}
		if !ok {
			in.unsealed = append(in.unsealed, first)
			hashes = nil
		}
		return in.scan(ctx, first, next, hashes)
	}
	return in.scan(ctx, first, next, nil)
}

func (in *inspection) pushHashes(hashes []byte) error {
	for ; len(hashes) > 0; hashes = hashes[tlog.HashSize:] {
		in.prev = tlog.Hash(hashes[:tlog.HashSize])
		in.tree.push(in.prev)
		if err := in.meet(); err != nil {
			return err
		}
	}
	return nil
}

// scan reads a segment's frames. hashes, if there are any, are what its leaves were when it was sealed.
func (in *inspection) scan(ctx context.Context, first, next int64, hashes []byte) error {
	f, err := in.openSegment(first)
	if err != nil {
		return err
	}
	defer f.close()
	s := newScanner(f, 0)
	for {
		if in.tree.size&1023 == 0 {
			if err := in.pace.keep(ctx, in.bytes); err != nil {
				return err
			}
		}
		fr, err := s.next()
		if err == nil && fr.seq != in.tree.size {
			err = errFrame
			s = newScanner(f, s.off-int64(frameHead+len(fr.payload)))
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, errFrame):
			done, err := in.segmentEnd(ctx, f, s.off, next)
			if done || err != nil {
				return err
			}
			s = newScanner(f, s.off)
			continue
		default:
			return err
		}
		var sealed *tlog.Hash
		if i := (fr.seq - first) * tlog.HashSize; int64(len(hashes)) > i {
			sealed = (*tlog.Hash)(hashes[i:])
		}
		if err := in.frame(fr, sealed); err != nil {
			return err
		}
		in.bytes += int64(frameHead + len(fr.payload))
	}
}

// frame takes one frame into chain and tree. A break of the chain lies with this record or with the one before it:
// which of them the next record's testimony shows, so a suspect is kept until then.
func (in *inspection) frame(f frame, sealed *tlog.Hash) error {
	fits := f.prev() == in.prev
	if in.suspect != nil {
		if !fits { // this record does not confirm the one before it, so that one was altered, not its forerunner
			in.suspect = in.damage(ExitAltered, f.seq-1, "the record after it was chained to other content")
			in.suspect.EventID = eventID(in.last)
		}
		return in.suspect
	}
	leaf := f.leaf(&in.scratch)
	if sealed != nil && leaf != *sealed && fits {
		d := in.damage(ExitAltered, f.seq, "its hash is not the one kept when the segment was sealed")
		d.EventID = eventID(f.record())
		return d
	}
	if !fits {
		in.suspect = in.damage(ExitAltered, max(f.seq-1, 0), "the record after it was chained to other content")
		in.suspect.EventID = eventID(in.last)
	}
	in.prev, in.stamp, in.last = leaf, f.time, append(in.last[:0], f.record()...)
	in.tree.push(leaf)
	if in.suspect != nil {
		return nil
	}
	return in.meet()
}

// meet compares the tree with the checkpoints of its present size.
func (in *inspection) meet() error {
	for _, c := range in.known {
		if c.size != in.tree.size || c.root == in.tree.root() {
			continue
		}
		d := in.damage(ExitAltered, max(c.size-1, 0), "it, or all from an altered record on, was rewritten: the signed checkpoint of this size has another root")
		d.EventID = eventID(in.last)
		if c.size >= in.checkpoint.size {
			return d
		}
		if in.rewrite == nil {
			d.Code, in.rewrite = ExitConflict, d
		}
	}
	return nil
}

// segmentEnd judges what stands where the next frame should: a clean end, a torn tail, or damage. done is false if a
// live log has written a good frame there in the meantime.
func (in *inspection) segmentEnd(ctx context.Context, f io.ReaderAt, off, next int64) (done bool, err error) {
	if next == in.tree.size {
		return true, nil
	}
	t, err := inspectTail(f, off, in.tree.size)
	if err != nil {
		return false, err
	}
	for i := 0; t.bytes > 0 && next < 0 && !in.covered() && i < in.patience; i++ {
		if fr, err := newScanner(f, off).next(); err == nil && fr.seq == in.tree.size {
			return false, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	return true, in.judge(t, off, next)
}

// covered reports whether a signed checkpoint counts the record that should come next.
func (in *inspection) covered() bool {
	return slices.ContainsFunc(in.known, func(c checkpoint) bool { return c.size > in.tree.size })
}

func (in *inspection) judge(t tail, off, next int64) error {
	if t.bytes > 0 && (next >= 0 || t.later || in.covered()) {
		if in.suspect != nil {
			return in.suspect
		}
		d := in.damage(ExitAltered, in.tree.size, "its bytes are not what was written")
		d.EventID = eventID(t.head)
		return d
	}
	if next >= 0 {
		d := in.damage(ExitMissing, in.tree.size, "they are missing at the end of their segment")
		d.SeqTo = next - 1
		return d
	}
	in.end, in.torn = off, t
	return nil
}

// short says that the log has fewer records than a checkpoint.
func (in *inspection) short(c checkpoint) error {
	d := in.damage(ExitShort, in.tree.size, fmt.Sprintf("they are missing: a signed checkpoint counts %d records", c.size))
	d.SeqTo = c.size - 1
	return d
}

// eventID finds a record's event id in its JSON, even when the rest of it is damaged.
func eventID(record []byte) string {
	const key = `"event_id":"`
	_, rest, ok := bytes.Cut(record, []byte(key))
	if !ok {
		return ""
	}
	id, _, ok := bytes.Cut(rest[:min(len(rest), tightItem)], []byte{'"'})
	if !ok {
		return ""
	}
	return string(id)
}

// inspect prepares an inspection of an epoch with its newest local checkpoint and others given from outside.
func inspect(dir string, epoch int64, ring keyring, others []string) (*inspection, error) {
	in := &inspection{layout: layout{dir: dir, epoch: epoch}}
	if len(ring) == 0 {
		return nil, in.damage(ExitKey, -1, "it has no key")
	}
	signed, err := os.ReadFile(in.layout.checkpoint())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, in.damage(ExitMissing, -1, "its checkpoint is missing")
	}
	if err != nil {
		return nil, fmt.Errorf("reading checkpoint: %w", err)
	}
	origin := ring[0].verifier.Name()
	if in.gone, err = readRemoved(in.layout, ring); err != nil {
		return nil, err
	}
	if in.gone.size > 0 {
		others = append(others[:len(others):len(others)], in.gone.checkpoint)
	}
	for i, text := range append([]string{string(signed)}, others...) {
		c, err := openCheckpoint([]byte(text), origin, ring)
		if err != nil {
			return nil, in.damage(ExitKey, -1, err.Error())
		}
		for _, k := range in.known {
			if k.size == c.size && k.root != c.root {
				return nil, in.damage(ExitConflict, c.size-1, fmt.Sprintf("two signed checkpoints of %d records have different roots", c.size))
			}
		}
		if i == 0 {
			in.checkpoint = c
		}
		in.known = append(in.known, c)
	}
	return in, nil
}

// isFresh reports whether an epoch was begun but never held a record: a start that was cut short.
func (l layout) isFresh() (bool, error) {
	_, err := os.Stat(l.checkpoint())
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	firsts, err := l.list()
	return len(firsts) == 0, err
}
