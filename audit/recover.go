package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// A segment is the file that records go into.
type segment struct {
	first int64 // seq of its first record
	file  file
	off   int64 // where the next frame goes
	size  int64 // of the file; what lies between is preallocated
	begun time.Time
}

// recover finds the newest epoch, checks it, repairs a torn tail and makes the log ready to append.
func (l *Log) recover(o Options) error {
	all, err := epochs(l.cfg.Dir)
	if err != nil {
		return err
	}
	newest := int64(-1)
	if len(all) > 0 {
		newest = all[len(all)-1]
	}
	known := l.publishedBefore(o)
	err = l.resumeOrBegin(o, newest, known)
	damage, ok := errors.AsType[*DamageError](err)
	if !ok || !o.AcceptDamage {
		return err
	}
	l.logger.LogAttrs(context.Background(), slog.LevelError, "audit log damaged; a new epoch begins", slog.Any("err", damage))
	return l.begin(o, max(newest, newestOf(known))+1, gap(damage))
}

// resumeOrBegin goes on with the newest epoch, or begins the first one where there is none. known is what was published.
func (l *Log) resumeOrBegin(o Options, newest int64, known []published) error {
	if epoch := newestOf(known); epoch > newest {
		return missingEpoch(epoch)
	}
	if newest < 0 {
		return l.begin(o, 0, Control{What: "start"})
	}
	fresh, err := layout{dir: l.cfg.Dir, epoch: newest}.isFresh()
	if err != nil {
		return err
	}
	if fresh && len(checkpointsOf(known, newest)) == 0 {
		return l.begin(o, newest, Control{What: "start"})
	}
	return l.resume(newest, checkpointsOf(known, newest))
}

// gap is the first record of an epoch that follows a damaged one.
func gap(d *DamageError) Control {
	return Control{What: "gap", SeqFrom: d.Seq, SeqTo: d.SeqTo, ErrClass: fmt.Sprintf("epoch %d code %d", d.Epoch, d.Code)}
}

// begin starts an epoch. Its checkpoint of size 0 comes before its first segment: a log without a checkpoint is
// therefore never a young one, but one from which it was taken.
func (l *Log) begin(o Options, epoch int64, why Control) error {
	l.layout = layout{dir: l.cfg.Dir, epoch: epoch}
	for _, name := range []string{l.layout.folder(), l.layout.segments()} {
		if err := makeDir(l.disk, name); err != nil {
			return err
		}
	}
	var err error
	l.origin = origin(o, epoch)
	if l.key, err = newKey(l.disk, l.cfg.Dir, epoch, l.origin, nil, time.Now()); err != nil {
		return err
	}
	if err := l.writeCheckpoint(time.Now()); err != nil {
		return err
	}
	if err := l.addSegment(); err != nil {
		return err
	}
	return l.note(why)
}

// note writes one control record while the log is not open to callers yet.
func (l *Log) note(c Control) error {
	e := &encoder{secrets: l.secrets}
	b := &batch{records: 1, done: make(chan struct{})}
	b.byKind[KindControl.number()] = 1
	b.buf = appendFrame(nil, KindControl, e.encode(l.controlRecord(c), l.node))
	if err := l.write(b); err != nil && !errors.Is(err, errFull) {
		return fmt.Errorf("writing first record: %w", err)
	}
	return nil
}

// resume goes on with an epoch, which must meet its published checkpoints.
func (l *Log) resume(epoch int64, published []string) error {
	l.layout = layout{dir: l.cfg.Dir, epoch: epoch}
	key, err := loadKey(l.cfg.Dir, epoch)
	if err != nil {
		return &DamageError{Code: ExitKey, Epoch: epoch, Seq: -1, SeqTo: -1, Detail: err.Error()}
	}
	in, err := inspect(l.cfg.Dir, epoch, key.ring, published)
	if err != nil {
		return err
	}
	in.trustHashes = true
	if err := in.run(context.Background()); err != nil {
		return err
	}
	l.key, l.origin = key, key.signer.Name()
	l.durable, l.prev, l.stamp = in.tree, in.prev, in.stamp
	l.unseal, l.sealed = in.unsealed, max(len(in.segments)-1-len(in.unsealed), 0)
	if err := l.tidy(); err != nil {
		return err
	}
	last := len(in.segments) - 1
	if last >= 0 {
		sealed := slices.DeleteFunc(slices.Clone(in.segments[:last]), func(first int64) bool { return slices.Contains(in.unsealed, first) })
		l.unpacked = l.layout.unfinished(sealed)
	}
	if last < 0 || l.isPacked(in.segments[last]) { // the active one was empty, and is gone
		if err := l.addSegment(); err != nil {
			return err
		}
	} else if err := l.reopen(in); err != nil {
		return err
	}
	if in.torn.bytes == 0 {
		return l.note(Control{What: "start"})
	}
	l.metrics.torn.Inc()
	l.logger.LogAttrs(context.Background(), slog.LevelWarn, "torn tail of the audit log moved to quarantine",
		slog.Int64("bytes", in.torn.bytes), slog.Int64("next_seq", in.tree.size))
	return l.note(Control{What: "recover", SeqTo: in.tree.size - 1, Bytes: in.torn.bytes, ErrClass: "torn tail"})
}

// isPacked reports whether a segment is there in its packed form alone.
func (l *Log) isPacked(first int64) bool {
	_, err := os.Stat(l.layout.segment(first))
	return errors.Is(err, fs.ErrNotExist)
}

// reopen makes the last segment ready to append, a torn tail taken off and kept.
func (l *Log) reopen(in *inspection) error {
	first := in.segments[len(in.segments)-1]
	name := l.layout.segment(first)
	if in.torn.bytes > 0 {
		if err := l.quarantine(name, in.end, in.torn.bytes); err != nil {
			return err
		}
	}
	f, err := l.disk.create(name)
	if err != nil {
		return fmt.Errorf("opening segment: %w", err)
	}
	info, err := os.Stat(name)
	if err != nil {
		return errors.Join(fmt.Errorf("opening segment: %w", err), f.Close())
	}
	l.active = segment{first: first, file: f, off: in.end, size: info.Size(), begun: time.Now()}
	if in.torn.bytes == 0 {
		return nil
	}
	if err := l.cutBack(); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// quarantine copies a part of a file aside, durably.
func (l *Log) quarantine(name string, off, size int64) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("reading torn tail: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, off, size))
	if err != nil {
		return fmt.Errorf("reading torn tail: %w", err)
	}
	aside := strconv.FormatInt(l.layout.epoch, 10) + "-" + filepath.Base(name) + "-" + strconv.FormatInt(off, 10)
	aside = filepath.Join(l.cfg.Dir, "quarantine", aside)
	for n := 1; ; n++ {
		try := aside + "." + strconv.Itoa(n)
		if _, err := os.Stat(try); errors.Is(err, fs.ErrNotExist) {
			return writeFile(l.disk, try, b)
		} else if err != nil {
			return fmt.Errorf("looking for %s: %w", try, err)
		}
	}
}

// tidy removes what a crash left unfinished. A spare segment is kept if it is whole and empty; it never holds records,
// since a segment gets its name, durably, before its first frame.
func (l *Log) tidy() error {
	entries, err := os.ReadDir(l.layout.segments())
	if err != nil {
		return fmt.Errorf("listing segments: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(l.layout.segments(), e.Name())
		switch {
		case name == l.layout.spare():
			if l.spare, err = l.emptySegment(name); err != nil {
				return err
			}
			if l.spare {
				continue
			}
		case filepath.Ext(name) != ".tmp":
			continue
		}
		if err := l.disk.remove(name); err != nil {
			return fmt.Errorf("removing leftover: %w", err)
		}
	}
	return nil
}

// emptySegment reports whether a file is a preallocated segment without content.
func (l *Log) emptySegment(name string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, fmt.Errorf("opening spare segment: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("opening spare segment: %w", err)
	}
	t, err := inspectTail(f, 0, 0)
	return info.Size() == l.cfg.SegmentBytes && t.bytes == 0, err
}
