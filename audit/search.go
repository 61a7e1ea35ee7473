package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// SearchQuery asks for records. Each field that is set must hold; none gives every record.
type SearchQuery struct {
	Subject, Device string    // ids
	Module, Version string    // path; version needs a module
	Code, Effect    string    // reason code; allow, deny, error
	EventID         string    // its beginning of at least eight characters, in either case
	Since, Until    time.Time // of the event; Until is not part of it
	// Limit is the most records to give; 0 for all.
	Limit int
	// Before is where to go on: records older than this one. The zero value is the newest.
	Before Position
}

// A Position is the place of a record in the log.
type Position struct {
	Epoch int64 `json:"epoch"`
	Seq   int64 `json:"seq"`
}

// String is the form that ParsePosition reads.
func (p Position) String() string { return fmt.Sprintf("%d-%d", p.Epoch, p.Seq) }

// ParsePosition reads a position as String writes it.
func ParsePosition(s string) (Position, error) {
	epoch, seq, _ := strings.Cut(s, "-")
	e, err1 := parseDecimal(epoch)
	n, err2 := parseDecimal(seq)
	if err := errors.Join(err1, err2); err != nil {
		return Position{}, fmt.Errorf("parsing position %q: want EPOCH-SEQ", s)
	}
	return Position{Epoch: e, Seq: n}, nil
}

// A SearchEnd says how a search ended.
type SearchEnd struct {
	Found   int      `json:"found"`
	More    bool     `json:"more"` // the limit was reached: go on with Before: Last
	Last    Position `json:"last"` // of the last record given
	Covered Coverage `json:"covered"`
}

// Validate reports what cannot be asked.
func (q SearchQuery) Validate() error {
	switch {
	case q.Version != "" && q.Module == "":
		return errors.New("searching: a version needs a module")
	case q.EventID != "" && len(q.EventID) < shortEvent:
		return fmt.Errorf("searching: event id %q is too short; want at least %d characters", EscapeTerminal(q.EventID), shortEvent)
	}
	return nil
}

// errEnough ends a search at its limit.
var errEnough = errors.New("enough records")

// Search calls fn for each record that fits, newest first. fn's first error ends it.
func (a *Archive) Search(ctx context.Context, q SearchQuery, fn func(Position, Entry) error) (*SearchEnd, error) {
	if err := q.Validate(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	end := &SearchEnd{}
	var parser briefParser
	err := a.each(ctx, &end.Covered, func(p *part) error {
		numbers, err := p.candidates(q)
		if err != nil {
			return err
		}
		return p.read(numbers, func(e Entry) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b, err := parser.parse(e.Raw)
			if err != nil || !q.fits(b) {
				return err
			}
			if q.Limit > 0 && end.Found == q.Limit {
				end.More = true
				return errEnough
			}
			end.Found++
			end.Last = Position{Epoch: p.epoch, Seq: e.Seq}
			return fn(end.Last, e)
		})
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("searching the audit log: %w", err)
	}
	return end, nil
}

// candidates returns the numbers of the records that may fit, newest first: what the index says of each key, met.
func (p *part) candidates(q SearchQuery) ([]int64, error) {
	if !q.Since.IsZero() && p.index.newest < q.Since.UnixNano() || !q.Until.IsZero() && p.index.oldest >= q.Until.UnixNano() {
		return nil, nil
	}
	most := p.index.count
	if q.Before != (Position{}) {
		if p.epoch > q.Before.Epoch {
			return nil, nil
		}
		if p.epoch == q.Before.Epoch {
			most = min(most, q.Before.Seq-p.first)
		}
	}
	sets, err := p.index.sets(q)
	if err != nil || most <= 0 {
		return nil, err
	}
	var all []int64
	if len(sets) == 0 {
		all = make([]int64, most)
		for i := range all {
			all[i] = int64(i)
		}
	} else {
		all = intersect(sets)
		n, _ := slices.BinarySearch(all, most)
		all = all[:n]
	}
	slices.Reverse(all)
	return all, nil
}

// sets returns the records of each key that the query names.
func (x *index) sets(q SearchQuery) ([][]int64, error) {
	var sets [][]int64
	add := func(kind byte, word string) error {
		if word == "" {
			return nil
		}
		set, err := x.records(kind, word)
		sets = append(sets, set)
		return err
	}
	path, version := q.Module, ""
	if q.Version != "" {
		path, version = "", q.Module+"@"+q.Version
	}
	err := errors.Join(add(keyPath, path), add(keyVersion, version), add(keySubject, q.Subject), add(keyDevice, q.Device),
		add(keyCode, q.Code), add(keyEffect, q.Effect))
	if err != nil || q.EventID == "" {
		return sets, err
	}
	set, err := x.event(q.EventID)
	return append(sets, set), err
}

// intersect returns what stands in every sorted set.
func intersect(sets [][]int64) []int64 {
	slices.SortFunc(sets, func(a, b []int64) int { return len(a) - len(b) })
	all := slices.Clone(sets[0])
	for _, set := range sets[1:] {
		all = slices.DeleteFunc(all, func(n int64) bool {
			_, ok := slices.BinarySearch(set, n)
			return !ok
		})
	}
	return all
}

// fits holds a record against the query: hashes of keys may meet, and times stand in the records alone.
func (q SearchQuery) fits(b *brief) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(q.Subject, b.Subject) && is(q.Device, b.Device) && is(q.Module, b.Module) && is(q.Version, b.Version) &&
		is(q.Effect, b.Effect) && (q.Code == "" || slices.Contains(b.Codes, q.Code)) &&
		(q.EventID == "" || len(b.EventID) >= len(q.EventID) && strings.EqualFold(b.EventID[:len(q.EventID)], q.EventID)) &&
		(q.Since.IsZero() || b.T >= q.Since.UnixNano()) && (q.Until.IsZero() || b.T < q.Until.UnixNano())
}

// read gives fn the records with these numbers within the segment, in their order. The index says where a block of
// 1,024 records begins; within it, frames are read from the first one wanted to the last.
func (p *part) read(numbers []int64, fn func(Entry) error) error {
	if len(numbers) == 0 {
		return nil
	}
	for _, n := range numbers { // all of the index that is needed, before fn has seen anything
		if _, err := p.index.block(n / blockOf); err != nil {
			return err
		}
	}
	f, err := p.openSegment(p.first)
	if err != nil {
		return err
	}
	defer f.close()
	for len(numbers) > 0 {
		block, n := numbers[0]/blockOf, 1
		for n < len(numbers) && numbers[n]/blockOf == block {
			n++
		}
		entries, err := p.readBlock(f, block, numbers[:n])
		if err != nil {
			return err
		}
		for _, number := range numbers[:n] {
			if err := fn(entries[number]); err != nil {
				return err
			}
		}
		numbers = numbers[n:]
	}
	return nil
}

// readBlock reads the records of one block that are wanted.
func (p *part) readBlock(f io.ReaderAt, block int64, numbers []int64) (map[int64]Entry, error) {
	off, err := p.index.block(block)
	if err != nil {
		return nil, err
	}
	entries, last := map[int64]Entry{}, slices.Max(numbers)
	for _, n := range numbers {
		entries[n] = Entry{}
	}
	s := newScanner(f, off)
	for n := block * blockOf; n <= last; n++ {
		fr, err := s.next()
		if errors.Is(err, errFrame) || errors.Is(err, io.EOF) || err == nil && fr.seq != p.first+n {
			return nil, &DamageError{Code: ExitAltered, Epoch: p.epoch, Seq: p.first + n, SeqTo: p.first + n, Detail: "its bytes are not what was written"}
		}
		if err != nil {
			return nil, err
		}
		if _, wanted := entries[n]; wanted {
			entries[n] = fr.entry()
		}
	}
	return entries, nil
}
