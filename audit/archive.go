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
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// An Archive answers questions about the log in a folder, up to its last durable record. It takes no lock and changes
// nothing, so a running log can be asked; kept open, it reads of the newest segment only what was added since the last
// question. Its methods may be called from many goroutines, one after the other.
type Archive struct {
	dir string

	mu      sync.Mutex // guards all below
	active  *reading   // of the newest segment
	rebuilt map[[2]int64]*index
}

// NewArchive returns an archive of the log in dir.
func NewArchive(dir string) *Archive {
	return &Archive{dir: dir, rebuilt: map[[2]int64]*index{}}
}

// Coverage says what an answer rests on.
type Coverage struct {
	Records  int64    `json:"records"`           // that the answer knows of
	Segments int      `json:"segments"`          // that were asked
	Rebuilt  int      `json:"rebuilt,omitempty"` // indexes that did not fit their segments and were made anew
	Expired  int64    `json:"expired,omitempty"` // records that were removed after their retention
	Missing  []string `json:"missing,omitempty"` // what could not be read: the answer is incomplete
}

// A reading is what an index was made of so far, of a segment that may still grow.
type reading struct {
	layout
	indexer *indexer
	prev    tlog.Hash
	off     int64
	index   *index
	scratch bytes.Buffer
}

// A part is one segment and its index, ready to be asked.
type part struct {
	layout
	first int64
	index *index
	close func()
}

// maxRebuilt is how many indexes that do not fit are kept in memory after they were made anew.
const maxRebuilt = 16

// each gives fn every segment of the log in turn, newest first. What cannot be read is named in the coverage.
func (a *Archive) each(ctx context.Context, c *Coverage, fn func(p *part) error) error {
	all, err := epochs(a.dir)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("reading %s: there is no audit log: %w", a.dir, fs.ErrNotExist)
	}
	slices.Reverse(all)
	for i, epoch := range all {
		l := layout{dir: a.dir, epoch: epoch}
		firsts, err := l.list()
		if err != nil {
			return err
		}
		next := int64(-1)
		for _, first := range slices.Backward(firsts) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := a.part(l, [2]int64{first, next}, c, fn); err != nil {
				return err
			}
			next = first
		}
		if next > 0 && l.removedBefore() >= next {
			c.Expired += next
		} else if next > 0 {
			c.Missing = append(c.Missing, fmt.Sprintf("epoch %d, records 0 to %d: the segments are missing", epoch, next-1))
		}
		if i+1 < len(all) && all[i+1] != epoch-1 || i+1 == len(all) && epoch > 0 {
			c.Missing = append(c.Missing, fmt.Sprintf("epoch %d is missing", epoch-1))
		}
	}
	return nil
}

// part gives fn one segment: from its first record up to the first of the next, -1 for the newest.
func (a *Archive) part(l layout, bounds [2]int64, c *Coverage, fn func(p *part) error) error {
	first, next := bounds[0], bounds[1]
	p, err := a.open(l, first, next, c)
	if err != nil && !errors.Is(err, errIndex) && !errors.Is(err, fs.ErrNotExist) && !isDamage(err) {
		return err
	}
	if err != nil {
		c.Missing = append(c.Missing, fmt.Sprintf("epoch %d, from record %d: %v", l.epoch, first, err))
		return nil
	}
	defer p.close()
	if next >= 0 && first+p.index.count != next {
		c.Missing = append(c.Missing, fmt.Sprintf("epoch %d, records %d to %d: they are missing", l.epoch, first+p.index.count, next-1))
	}
	c.Segments++
	c.Records += p.index.count
	err = fn(p)
	if !errors.Is(err, errIndex) {
		return err
	}
	// The damage showed only when the page was read: make the index anew and ask again. fn takes an answer all or nothing.
	if p.index, err = a.rebuild(l, first, next, c); err != nil {
		return err
	}
	return fn(p)
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*DamageError](err)
	return ok
}

// open finds a segment's index, or makes it.
func (a *Archive) open(l layout, first, next int64, c *Coverage) (*part, error) {
	p := &part{layout: l, first: first, close: func() {}}
	var err error
	if next < 0 {
		p.index, err = a.newest(l, first)
		return p, err
	}
	if x, ok := a.rebuilt[[2]int64{l.epoch, first}]; ok {
		p.index = x
		return p, nil
	}
	f, err := os.Open(l.index(first))
	if err == nil {
		p.index, err = fittingIndex(l, f, first, next)
		if err == nil {
			p.close = func() { _ = f.Close() } // only read
			return p, nil
		}
		_ = f.Close() // only read
	}
	p.index, err = a.rebuild(l, first, next, c)
	return p, err
}

// fittingIndex opens an index and holds it against its segment: number of records and hash of the last one.
func fittingIndex(l layout, f *os.File, first, next int64) (*index, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening index: %w", err)
	}
	x, err := openIndex(f, first, info.Size())
	if err != nil {
		return nil, err
	}
	head, err := l.lastHash(first)
	if err != nil {
		return nil, err
	}
	if x.count != next-first || x.head != head {
		return nil, fmt.Errorf("opening index of segment %d: %w", first, errIndex)
	}
	return x, nil
}

// rebuild makes a sealed segment's index from its records.
func (a *Archive) rebuild(l layout, first, next int64, c *Coverage) (*index, error) {
	r := &reading{layout: l, indexer: newIndexer(first)}
	if err := r.catchUp(next); err != nil {
		return nil, err
	}
	x, err := memoryIndex(r.indexer)
	if err != nil {
		return nil, err
	}
	c.Rebuilt++
	if len(a.rebuilt) < maxRebuilt {
		a.rebuilt[[2]int64{l.epoch, first}] = x
	}
	return x, nil
}

// newest reads what was added to the newest segment.
func (a *Archive) newest(l layout, first int64) (*index, error) {
	if a.active == nil || a.active.layout != l || a.active.indexer.first != first {
		a.active = &reading{layout: l, indexer: newIndexer(first)}
	}
	err := a.active.catchUp(-1)
	if err == nil && (a.active.index == nil || a.active.index.count != a.active.indexer.count) {
		a.active.index, err = memoryIndex(a.active.indexer)
	}
	if err != nil {
		a.active = nil
		return nil, err
	}
	return a.active.index, nil
}

// catchUp reads a segment on to its end. Of the newest one (next -1) frames may be in the page cache alone, so it is
// synced before they are believed: an answer is never taken back by a power cut.
func (r *reading) catchUp(next int64) error {
	f, err := r.openSegment(r.indexer.first)
	if err != nil {
		return err
	}
	defer f.close()
	seq := r.indexer.first + r.indexer.count
	end := next
	if next < 0 {
		if end, err = countFrames(f, r.off, seq); err != nil || end == seq {
			return err
		}
		if err := f.sync(); err != nil {
			return err
		}
	}
	s := newScanner(f, r.off)
	for ; seq < end; seq++ {
		at := s.off
		fr, err := s.next()
		if err == nil && (fr.seq != seq || seq > r.indexer.first && fr.prev() != r.prev) {
			err = errFrame
		}
		if errors.Is(err, errFrame) || errors.Is(err, io.EOF) {
			return &DamageError{Code: ExitAltered, Epoch: r.epoch, Seq: seq, SeqTo: seq, Detail: "its bytes are not what was written"}
		}
		if err != nil {
			return err
		}
		r.prev = fr.leaf(&r.scratch)
		if err := r.indexer.frame(fr, r.prev, at); err != nil {
			return err
		}
		r.off = s.off
	}
	return nil
}
