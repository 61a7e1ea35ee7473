package audit

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/headgate/headgate/audit/schema"
	"github.com/headgate/headgate/audit/sinks"
)

// Export starts the sinks of the log's configuration. It is closed before the log.
func (l *Log) Export(o sinks.Options) (*sinks.Exporter, error) {
	o.Dir, o.Log, o.Node, o.Version, o.Logger, o.Registerer = l.cfg.Dir, exported{l}, l.node, l.version, l.logger, l.registerer
	e, err := sinks.Open(l.cfg.Sinks, o)
	if err == nil {
		l.exporter.Store(e)
	}
	return e, err
}

// exported is the log as sinks see it.
type exported struct{ *Log }

// Behind implements sinks.Log. Of epochs before the present one, which nobody counts, it knows nothing.
func (x exported) Behind(at sinks.Position) int64 {
	size := x.size()
	if at.Epoch != x.layout.epoch || at.Origin == "" {
		return size
	}
	return max(size-at.Next, 0)
}

// size is how many records of the present epoch are durable.
func (x exported) size() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.durable.size
}

// passed promises that behind the first records, which are all there are, none is appended at or before a time. It
// cannot do so while one may be under way.
func (x exported) passed(at, records int64) bool {
	if time.Now().UnixNano() <= at {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.busy || x.durable.size != records {
		return false
	}
	x.notBefore = max(x.notBefore, at+1)
	return true
}

// Control implements sinks.Log.
func (x exported) Control(n sinks.Notice) {
	x.Note(x.controlRecord(Control{What: n.What, Sink: n.Sink, SeqFrom: n.SeqFrom, SeqTo: n.SeqTo, Count: n.Count, ErrClass: n.Class, Root: n.Root}))
}

// Checkpoint implements sinks.Log.
func (x exported) Checkpoint() string {
	signed, err := os.ReadFile(x.layout.checkpoint())
	if err != nil {
		return "" // verify says what is wrong with it
	}
	return string(signed)
}

// Reader implements sinks.Log.
func (x exported) Reader(at sinks.Position, format string) (sinks.Reader, error) {
	encoder, err := schema.New(cmp.Or(format, schema.Default), x.version)
	if err != nil {
		return nil, err
	}
	r := &exportReader{log: x, layout: layout{dir: x.cfg.Dir, epoch: at.Epoch}, schema: encoder}
	if at.Origin == "" {
		all, err := epochs(x.cfg.Dir)
		if err != nil {
			return nil, err
		}
		r.epoch = all[0]
		return r, r.enter(r.epoch)
	}
	if err := r.enter(at.Epoch); err != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrPosition, err)
	}
	if at.Origin != r.origin {
		return nil, fmt.Errorf("going on at record %d of %s: %w", at.Next, at.Origin, sinks.ErrPosition)
	}
	edge, err := edgeAt(r.layout, at.Next)
	if err != nil {
		return nil, fmt.Errorf("going on at record %d of %s: %w: %w", at.Next, at.Origin, sinks.ErrPosition, err)
	}
	if r.tree = edge; r.Position() != at {
		return nil, fmt.Errorf("going on at record %d of %s: the tree before it is another: %w", at.Next, at.Origin, sinks.ErrPosition)
	}
	if firsts, err := r.list(); err == nil && len(firsts) > 0 && firsts[0] > at.Next && r.removedBefore() >= firsts[0] {
		return r, r.enter(at.Epoch) // what was given up meanwhile, as the log says
	}
	r.next, r.join = at.Next, recall(r.layout, at.Next)
	return r, nil
}

// edgeAt rebuilds the right edge of an epoch's tree of this size.
func edgeAt(l layout, size int64) (edge, error) {
	h, err := newHashReader(l)
	if err != nil {
		return edge{}, err
	}
	e := edge{size: size}
	i, start := 0, int64(0)
	for level := 62; level >= 0; level-- {
		if size&(1<<level) == 0 {
			continue
		}
		if e.roots[i], err = h.subtree(level, start>>level); err != nil {
			return edge{}, err
		}
		i, start = i+1, start+1<<level
	}
	return e, nil
}

// An exportReader reads durable records across segments and epochs. Its trail ends before the oldest record that was
// not given: of what was given behind it, a sink that starts there again gives the same events under the same ids.
type exportReader struct {
	layout
	trail
	log     exported
	schema  *schema.Encoder
	origin  string
	next    int64 // number of the next record to read
	join    *joiner
	counted int64 // outcomes before the trail's end that were given with their decision
	file    *segmentFile
	scan    *scanner
	held    *unit // its event did not fit the last batch
	scratch bytes.Buffer
}

// enter goes to the beginning of an epoch.
func (r *exportReader) enter(epoch int64) error {
	ring, err := readKeys(r.dir, epoch)
	if err != nil {
		return err
	}
	if len(ring) == 0 {
		return fmt.Errorf("reading epoch %d: it has no key", epoch)
	}
	r.Close()
	r.epoch, r.origin, r.trail, r.counted = epoch, ring[0].verifier.Name(), trail{}, 0
	// Where the beginning is past its retention, reading begins behind it.
	firsts, err := r.list()
	if err == nil && len(firsts) > 0 && firsts[0] > 0 && r.removedBefore() >= firsts[0] {
		r.tree, err = edgeAt(r.layout, firsts[0])
	}
	r.next, r.join = r.tree.size, newJoiner(r.tree.size)
	return err
}

// Position implements sinks.Reader.
func (r *exportReader) Position() sinks.Position {
	root := r.tree.root()
	return sinks.Position{Origin: r.origin, Epoch: r.epoch, Next: r.tree.size, Tree: base64.StdEncoding.EncodeToString(root[:])}
}

// Close implements sinks.Reader.
func (r *exportReader) Close() {
	if r.file != nil {
		r.file.close()
	}
	r.file, r.scan, r.held = nil, nil, nil
}

// Joined implements sinks.Reader.
func (r *exportReader) Joined() int64 { return r.counted }

// Waiting implements sinks.Reader.
func (r *exportReader) Waiting() bool { return r.tree.size < r.next }

// Next implements sinks.Reader.
func (r *exportReader) Next(records, size int) ([]sinks.Event, error) {
	var events []sinks.Event
	for len(events) < records {
		u, err := r.unit()
		if err != nil {
			return events, err
		}
		if u == nil {
			break
		}
		e := r.event(u)
		if size -= len(e.Body); size < 0 && len(events) > 0 {
			r.held = u
			break
		}
		events = append(events, e)
	}
	first := r.join.first(r.next)
	if r.held != nil {
		first = min(first, r.held.before(r.join.from))
	}
	r.follow(first)
	r.counted += r.join.counted(first)
	return events, nil
}

// unit returns what becomes the next event, nil where there is none yet.
func (r *exportReader) unit() (*unit, error) {
	if u := r.held; u != nil {
		r.held = nil
		return u, nil
	}
	for {
		if u := r.join.next(); u != nil {
			return u, nil
		}
		f, err := r.frame()
		if err != nil {
			return nil, err
		}
		if f != nil {
			leaf := f.leaf(&r.scratch)
			r.leaves = append(r.leaves, leaf)
			r.next++
			r.join.take(Entry{Seq: f.seq, Time: time.Unix(0, f.time), Leaf: leaf, Raw: slices.Clone(f.record())})
			continue
		}
		r.join.expire(func(p *pending) bool { return r.log.passed(p.until, r.next) })
		if len(r.join.ready) == 0 {
			return nil, nil
		}
	}
}

// frame returns the next durable frame, nil at the end.
func (r *exportReader) frame() (*frame, error) {
	for {
		current := r.epoch == r.log.layout.epoch
		if current && r.next >= r.log.size() {
			return nil, nil
		}
		err := r.openNext()
		if err == nil {
			f, ferr := r.scan.next()
			if ferr == nil && f.seq < r.next { // on the way to where the reader stands
				continue
			}
			if ferr == nil && f.seq == r.next {
				return &f, nil
			}
			err = ferr
			if ferr == nil {
				err = errFrame
			}
		}
		more, err := r.goOn(err, current)
		if err != nil || !more {
			return nil, err
		}
	}
}

// openNext opens the segment that holds the next record, if none is open.
func (r *exportReader) openNext() error {
	if r.file != nil {
		return nil
	}
	firsts, err := r.list()
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearch(firsts, r.next)
	if !ok {
		i--
	}
	if i < 0 {
		return fmt.Errorf("reading record %d: its segment is missing: %w", r.next, fs.ErrNotExist)
	}
	if r.file, err = r.openSegment(firsts[i]); err != nil {
		return err
	}
	r.scan = newScanner(r.file, 0)
	return nil
}

// goOn finds out what follows where no valid record was found: the next segment, or the next epoch. An epoch that was
// left behind was damaged; what of it can be read in order was, and the next epoch's first record names the gap.
func (r *exportReader) goOn(cause error, current bool) (more bool, err error) {
	ended := errors.Is(cause, io.EOF)
	if ended && r.hasSegment(r.next) {
		r.file.close()
		r.file, r.scan = nil, nil
		return true, nil
	}
	if current {
		return false, fmt.Errorf("reading record %d, which is durable: %w", r.next, cause)
	}
	all, err := epochs(r.dir)
	if err != nil {
		return false, err
	}
	i := slices.Index(all, r.epoch)
	if i < 0 || i+1 == len(all) {
		return false, fmt.Errorf("reading epoch %d: %w", r.epoch, cause)
	}
	if r.join.flush(); len(r.join.ready) > 0 { // first
		return false, nil
	}
	return true, r.enter(all[i+1])
}

// event makes of a unit what sinks take.
func (r *exportReader) event(u *unit) sinks.Event { return sinkEvent(r.schema, r.origin, r.epoch, u) }

func sinkEvent(encoder *schema.Encoder, origin string, epoch int64, u *unit) sinks.Event {
	e := encode(encoder, placed(origin, epoch, u), u.Raw)
	e.Leaf = base64.StdEncoding.EncodeToString(u.Leaf[:])
	if o := u.outcome; o != nil {
		e.Outcome, e.OutcomeLeaf = o.Seq, base64.StdEncoding.EncodeToString(o.Leaf[:])
	}
	return e
}

// placed is where a unit stands.
func placed(origin string, epoch int64, u *unit) schema.Place {
	at := schema.Place{Origin: origin, Epoch: epoch, Seq: u.Seq, Leaf: u.Leaf}
	if o := u.outcome; o != nil {
		at.Outcome, at.OutcomeLeaf = o.Seq, o.Leaf
	}
	return at
}

// Said implements sinks.Reader.
func (r *exportReader) Said(raw []byte) sinks.Event {
	return encode(r.schema, schema.Place{Origin: r.origin, Epoch: r.epoch, Seq: r.tree.size - 1}, raw)
}

func encode(encoder *schema.Encoder, at schema.Place, raw []byte) sinks.Event {
	e, err := encoder.Encode(at, raw)
	if err != nil { // a dead letter
		return sinks.Event{ID: fmt.Sprintf("%s-%d", at.Origin, at.Seq), Origin: at.Origin, Seq: at.Seq, Time: time.Now(), Raw: raw}
	}
	return sinks.Event{ID: e.ID, Origin: at.Origin, Seq: at.Seq, Kind: e.Kind, Severity: e.Severity, Time: e.Time, Body: e.Body, Raw: raw}
}
