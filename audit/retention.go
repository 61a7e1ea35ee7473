package audit

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/audit/sinks"
)

// DefaultRetention is how long records are kept where Config.Retention is 0: a year.
const DefaultRetention = 365 * 24 * time.Hour

// pressedAt is how many segments are free when records are given up: one more than the log needs to go on.
const pressedAt = 3

// removal is what a control record says of records whose retention is over: all of the epoch before SeqTo+1, whose tree
// had this root. Their leaf hashes stay, so the tree over them, and every proof made before, still verify.
const removal = "retention"

// removed names the file with the proof of the newest such record: that the log itself says so, under a signed checkpoint.
// Without it a segment that is not there is missing.
func (l layout) removed() string { return filepath.Join(l.folder(), "removed") }

// A gone is what the log itself says that it removed.
type gone struct {
	size       int64  // all records before this one
	checkpoint string // signed, that counts the record which says so
}

// readRemoved reads and checks that proof. No proof is nothing removed; one that does not hold is a *DamageError.
func readRemoved(l layout, ring keyring) (gone, error) {
	text, err := os.ReadFile(l.removed())
	if errors.Is(err, fs.ErrNotExist) {
		return gone{}, nil
	}
	if err != nil {
		return gone{}, fmt.Errorf("reading proof of removal: %w", err)
	}
	shown, err := CheckProof(text, ring.String())
	if isDamage(err) {
		return gone{}, err
	}
	var r *Record
	if err == nil {
		r, err = parseRecord(shown.Record)
	}
	if err != nil || r.Kind != KindControl || r.Control.What != removal || r.Control.SeqTo >= shown.Seq || epochOf(shown.Origin) != l.epoch {
		return gone{}, &DamageError{Code: ExitAltered, Epoch: l.epoch, Seq: -1, SeqTo: -1, Detail: "what should prove a removal of records is no such proof"}
	}
	p, err := parseProof(string(text))
	return gone{size: r.Control.SeqTo + 1, checkpoint: string(p.checkpoint)}, err
}

// skip takes segments that were removed from their leaf hashes, up to the record numbered to.
func (in *inspection) skip(to int64) error {
	for in.tree.size < to && in.tree.size < in.gone.size {
		hashes, err := os.ReadFile(in.hashes(in.tree.size))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // missing, which continuity says
		}
		if err != nil {
			return fmt.Errorf("reading leaf hashes: %w", err)
		}
		count := int64(len(hashes)) / tlog.HashSize
		if end := in.tree.size + count; count == 0 || len(hashes)%tlog.HashSize != 0 || end > min(to, in.gone.size) {
			return in.damage(ExitAltered, in.tree.size, "the leaf hashes of a removed segment are not what was written")
		}
		if err := in.pushHashes(hashes); err != nil {
			return err
		}
	}
	return nil
}

// expire removes the payload of segments whose retention is over, oldest first. That they go is on disk, signed and
// proved before the first of them does.
func (l *Log) expire(now time.Time) error {
	firsts, err := l.layout.list()
	if err != nil {
		return err
	}
	pressed, err := l.pressed()
	if err != nil {
		return err
	}
	through, bytes, err := l.expired(firsts, now, pressed)
	if err != nil || through == 0 {
		return err
	}
	ring, err := readKeys(l.cfg.Dir, l.layout.epoch)
	if err != nil {
		return err
	}
	already, err := readRemoved(l.layout, ring)
	if err != nil {
		return err
	}
	if pressed {
		if err := l.giveUp(firsts[0], through); err != nil {
			return err
		}
	}
	if already.size < through {
		if err := l.announce(through, bytes); err != nil {
			return err
		}
	}
	for i, first := range firsts {
		if i+1 == len(firsts) || l.layout.endOf(first, firsts[i+1]) > through {
			break
		}
		if first == 0 && l.layout.epoch > 0 {
			if err := l.keepFirst(); err != nil {
				return err
			}
		}
		if err := l.removePayload(first); err != nil {
			return err
		}
	}
	l.logger.LogAttrs(context.Background(), slog.LevelInfo, "audit records past their retention are removed", slog.Int64("before_seq", through))
	return nil
}

// expired returns the end of the oldest segments that are due, and how many bytes they take. One that is held, or that
// somebody still needs, keeps all behind it: what is removed is always the beginning of the log.
func (l *Log) expired(firsts []int64, now time.Time, pressed bool) (through, bytes int64, err error) {
	needed, err := l.needed(pressed)
	if err != nil {
		return 0, 0, err
	}
	for i, first := range firsts {
		if i+1 == len(firsts) {
			break // records still come
		}
		end := l.layout.endOf(first, firsts[i+1])
		if end > needed || exists(l.layout.segment(first)) {
			break // it is needed, or not packed yet
		}
		newest, err := newestTime(l.layout, first, end)
		if errors.Is(err, errIndex) || errors.Is(err, fs.ErrNotExist) {
			break // packing makes its index anew at the next start
		}
		if err != nil {
			return 0, 0, err
		}
		if since, ok := l.cfg.held(); now.Sub(newest) < l.cfg.Retention || ok && !newest.Before(since) {
			break
		}
		info, err := os.Stat(l.layout.packed(first))
		if err != nil {
			return 0, 0, fmt.Errorf("measuring segment: %w", err)
		}
		through, bytes = end, bytes+info.Size()
	}
	return through, bytes, nil
}

// needed returns the first record of the present epoch that some sink has not delivered yet, or that is not yet
// published at some place. Where the volume is pressed, sinks that would rather have a gap need nothing.
func (l *Log) needed(pressed bool) (int64, error) {
	least := int64(math.MaxInt64)
	for _, p := range l.publishers {
		least = min(least, p.shipped.Load())
	}
	for _, c := range l.cfg.Sinks {
		if pressed && c.OnOverflow == sinks.OverflowGap {
			continue
		}
		at, err := sinks.Delivered(l.cfg.Dir, c.Name)
		if err != nil {
			return 0, err
		}
		if at.Epoch < l.layout.epoch || at.Origin == "" {
			return 0, nil
		}
		least = min(least, at.Next)
	}
	return least, nil
}

// pressed reports whether the volume has so little room left that the log will not take records soon, or takes none now.
func (l *Log) pressed() (bool, error) {
	free, err := l.disk.free(l.cfg.Dir)
	if err != nil {
		return false, fmt.Errorf("measuring free space: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return free < pressedAt*l.cfg.SegmentBytes || errors.Is(l.state, errFull), nil
}

// giveUp moves the cursors of sinks that would rather have a gap behind what is removed now. Which records each of them
// does not get is on disk before its cursor moves, and before the records go.
func (l *Log) giveUp(first, through int64) error {
	edge, err := edgeAt(l.layout, through)
	if err != nil {
		return fmt.Errorf("giving up records: %w", err)
	}
	root := edge.root()
	behind := sinks.Position{Origin: l.origin, Epoch: l.layout.epoch, Next: through, Tree: base64.StdEncoding.EncodeToString(root[:])}
	for _, c := range l.cfg.Sinks {
		if c.OnOverflow != sinks.OverflowGap {
			continue
		}
		at, err := sinks.Delivered(l.cfg.Dir, c.Name)
		if err != nil {
			return err
		}
		if at.Epoch == behind.Epoch && at.Next >= through {
			continue
		}
		leap := func(from sinks.Position) (sinks.Position, error) { return l.gap(c.Name, first, from, behind) }
		err = sinks.ErrClosed
		if e := l.exporter.Load(); e != nil {
			err = e.Leap(c.Name, leap)
		}
		if errors.Is(err, sinks.ErrClosed) {
			err = sinks.Leap(l.cfg.Dir, c.Name, leap)
		}
		if err != nil {
			return fmt.Errorf("giving up records that sink %s has not delivered: %w", c.Name, err)
		}
	}
	return nil
}

// gap records what a sink that stands at from does not get, and returns where it goes on. One that is not through with an
// epoch before goes on with that: it meets the gap when it comes to this one.
func (l *Log) gap(sink string, first int64, from, behind sinks.Position) (sinks.Position, error) {
	before := from.Epoch < behind.Epoch
	if !before {
		first = max(first, from.Next)
	}
	if first >= behind.Next {
		return from, nil // it was quick
	}
	note := l.controlRecord(Control{What: "gap", Sink: sink, SeqFrom: first, SeqTo: behind.Next - 1, Count: behind.Next - first, ErrClass: "overflow"})
	note.Severity = 4
	if err := l.Append(context.Background(), note); err != nil {
		return from, err
	}
	l.logger.LogAttrs(context.Background(), slog.LevelError, "audit records were given up that a sink has not delivered",
		slog.String("sink", sink), slog.Int64("seq_from", first), slog.Int64("seq_to", behind.Next-1))
	if before {
		return from, nil
	}
	return behind, nil
}

// newestTime is when the last event of a sealed segment was.
func newestTime(l layout, first, next int64) (time.Time, error) {
	f, err := os.Open(l.index(first))
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	x, err := fittingIndex(l, f, first, next)
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, x.newest), nil
}

// announce records the removal of all before through, and keeps the proof of that record.
func (l *Log) announce(through, bytes int64) error {
	r, err := newHashReader(l.layout)
	if err != nil {
		return err
	}
	root, err := tlog.TreeHash(through, r)
	if err != nil {
		return fmt.Errorf("hashing what is removed: %w", err)
	}
	l.mu.Lock()
	from := l.durable.size
	l.mu.Unlock()
	note := l.controlRecord(Control{What: removal, SeqTo: through - 1, Count: through, Bytes: bytes, Root: root.String()})
	if err := l.Append(context.Background(), note); err != nil {
		return err
	}
	seq, err := l.find(note.EventID, from)
	if err != nil {
		return err
	}
	text, err := l.proveSigned(seq)
	if err != nil {
		return err
	}
	return writeFile(l.disk, l.layout.removed(), text)
}

// find returns the number of a record that was appended after the one numbered from.
func (l *Log) find(event string, from int64) (int64, error) {
	l.mu.Lock()
	behind := l.durable.size - from
	l.mu.Unlock()
	seq := int64(-1)
	err := Tail(context.Background(), l.cfg.Dir, TailOptions{Last: int(behind)}, func(e Entry) error {
		if eventID(e.Raw) == event {
			seq = e.Seq
		}
		return nil
	})
	if err == nil && seq < 0 {
		err = fmt.Errorf("finding event %s: %w", event, fs.ErrNotExist)
	}
	return seq, err
}

// proveSigned waits for the checkpoint that counts a record, and proves it.
func (l *Log) proveSigned(seq int64) ([]byte, error) {
	look := time.NewTicker(checkpointEvery / 10)
	defer look.Stop()
	for {
		_, c, err := newestCheckpoint(l.layout)
		if err != nil {
			return nil, err
		}
		if c.size > seq {
			return NewArchive(l.cfg.Dir).Prove(context.Background(), Position{Epoch: l.layout.epoch, Seq: seq})
		}
		select {
		case <-l.stop:
			return nil, errClosed
		case <-look.C:
		}
	}
}

// removePayload removes a segment's records and its index; the leaf hashes stay.
func (l *Log) removePayload(first int64) error {
	for _, name := range []string{l.layout.index(first), l.layout.packed(first)} {
		if err := l.disk.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing records past their retention: %w", err)
		}
	}
	if err := l.disk.syncDir(l.layout.segments()); err != nil {
		return fmt.Errorf("removing records past their retention: %w", err)
	}
	l.mu.Lock()
	l.sealed--
	l.mu.Unlock()
	return nil
}

// firstRecord names the file with the proof of an epoch's first record, where its segment was removed: the record names the
// damage of the epoch before, which stays accepted.
func (l layout) firstRecord() string { return filepath.Join(l.folder(), "first") }

// keepFirst writes that proof.
func (l *Log) keepFirst() error {
	text, err := NewArchive(l.cfg.Dir).Prove(context.Background(), Position{Epoch: l.layout.epoch})
	if err != nil {
		return err
	}
	return writeFile(l.disk, l.layout.firstRecord(), text)
}

// removedRecord reads the first record of an epoch from its proof.
func (l layout) removedRecord() (*Record, error) {
	text, err := os.ReadFile(l.firstRecord())
	if err != nil {
		return nil, fmt.Errorf("reading proof of the first record: %w", err)
	}
	ring, err := readKeys(l.dir, l.epoch)
	if err != nil {
		return nil, err
	}
	shown, err := CheckProof(text, ring.String())
	if err != nil {
		return nil, err
	}
	if shown.Seq != 0 || epochOf(shown.Origin) != l.epoch {
		return nil, fmt.Errorf("reading proof of the first record: it is of record %d of %s: %w", shown.Seq, shown.Origin, errProof)
	}
	return parseRecord(shown.Record)
}

// withRemoved adds the segments of which only the leaf hashes are left.
func (l layout) withRemoved(firsts []int64) []int64 {
	var all []int64
	at := int64(0)
	for _, first := range firsts {
		for at < first {
			n := l.countHashes(at)
			if n == 0 {
				break
			}
			all, at = append(all, at), at+n
		}
		all, at = append(all, first), first+l.countHashes(first)
	}
	return all
}

// endOf returns where a sealed segment ends: at the next that is there, if none between them was removed.
func (l layout) endOf(first, next int64) int64 {
	if end := first + l.countHashes(first); end > first && end < next {
		return end
	}
	return next
}

func (l layout) countHashes(first int64) int64 {
	info, err := os.Stat(l.hashes(first))
	if err != nil {
		return 0
	}
	return info.Size() / tlog.HashSize
}

// removedBefore returns the record before which the epoch's records were removed, as far as the log itself says so.
func (l layout) removedBefore() int64 {
	ring, err := readKeys(l.dir, l.epoch)
	if err != nil {
		return 0
	}
	g, err := readRemoved(l, ring)
	if err != nil {
		return 0
	}
	return g.size
}
