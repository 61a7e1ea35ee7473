package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// packAgain is how long packing rests after it failed.
const packAgain = time.Minute

// seal finishes full segments: the room behind their last record goes back, their leaf hashes are kept. Index and
// packing follow beside it, since they take longer than a checkpoint may wait.
func (k *keeper) seal() error {
	k.mu.Lock()
	behind := k.unseal
	k.mu.Unlock()
	for _, first := range behind {
		count, err := k.sealOne(first)
		if err != nil {
			return err
		}
		k.Note(k.controlRecord(Control{What: "rotate", SeqFrom: first, SeqTo: first + count - 1, Count: count}))
		k.mu.Lock()
		k.unseal = k.unseal[1:]
		k.unpacked = append(k.unpacked, first)
		k.sealed++
		k.mu.Unlock()
		k.signed = time.Time{} // a checkpoint follows at once
		select {
		case k.topack <- struct{}{}:
		default: // it was told already
		}
	}
	k.metrics.segments.WithLabelValues("active").Set(1)
	k.mu.Lock()
	sealed := k.sealed
	k.mu.Unlock()
	k.metrics.segments.WithLabelValues("sealed").Set(float64(sealed))
	return nil
}

// sealOne seals one segment and returns how many records it holds.
func (k *keeper) sealOne(first int64) (count int64, err error) {
	in, err := k.layout.openSegment(first)
	if err != nil {
		return 0, fmt.Errorf("sealing: %w", err)
	}
	defer in.close()
	var hashes, scratch bytes.Buffer
	s := newScanner(in, 0)
	for ; ; count++ {
		f, err := s.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("sealing segment %d at %d: %w", first, s.off, err)
		}
		leaf := f.leaf(&scratch)
		hashes.Write(leaf[:])
	}
	if in.packed == nil {
		if err := k.cutSegment(k.layout.segment(first), s.off); err != nil {
			return 0, err
		}
	}
	return count, writeFile(k.disk, k.layout.hashes(first), hashes.Bytes())
}

// cutSegment gives back the room behind a segment's last record.
func (k *keeper) cutSegment(name string, size int64) error {
	out, err := k.disk.create(name)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	err = out.Truncate(size)
	if err == nil {
		err = out.datasync()
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("sealing %s: %w", name, err)
	}
	return nil
}

// packing indexes and packs sealed segments beside everything else, and removes those past their retention.
func (l *Log) packing() {
	again := time.NewTicker(packAgain)
	defer again.Stop()
	failed := ""
	for {
		err := errors.Join(l.packAll(), l.expire(time.Now()))
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS) {
			_ = l.failed(err) // its error is for callers of Append
		}
		if err != nil && !errors.Is(err, errClosed) && err.Error() != failed {
			l.logger.LogAttrs(context.Background(), slog.LevelError, "packing or clearing the audit log failed; trying again", slog.Any("err", err))
			failed = err.Error()
		}
		select {
		case <-l.stop:
			return
		case <-l.topack:
		case <-again.C:
		}
	}
}

// packAll works off what is sealed and not packed. A full disk needs its last room for other things.
func (l *Log) packAll() error {
	for {
		l.mu.Lock()
		todo, state := l.unpacked, l.state
		l.mu.Unlock()
		if len(todo) == 0 || state != nil || stopped(l.stop) {
			return nil
		}
		if err := l.writeTiles(todo[0]); err != nil { // what stands before this segment is sealed
			return err
		}
		if err := l.packOne(todo[0]); err != nil {
			return err
		}
		l.mu.Lock()
		l.unpacked = l.unpacked[1:]
		l.mu.Unlock()
	}
}

// packOne makes a sealed segment's index and packs it. The raw file goes last: until then it is the original, and after
// a crash all is done again.
func (l *Log) packOne(first int64) error {
	in, err := l.layout.openSegment(first)
	if err != nil {
		return fmt.Errorf("packing: %w", err)
	}
	defer in.close()
	x, err := l.indexSealed(in, first)
	if err != nil {
		return err
	}
	if err := writeFile(l.disk, l.layout.index(first), x.encode()); err != nil || in.packed != nil {
		return err
	}
	out, err := pack(in, l.layout, first, l.stop)
	if err != nil {
		return err
	}
	if err := writeFile(l.disk, l.layout.packed(first), out); err != nil {
		return err
	}
	if err := l.disk.remove(l.layout.segment(first)); err != nil {
		return fmt.Errorf("removing packed segment's raw file: %w", err)
	}
	if err := l.disk.syncDir(l.layout.segments()); err != nil {
		return fmt.Errorf("removing packed segment's raw file: %w", err)
	}
	return nil
}

// indexSealed collects a sealed segment's records, each held against its leaf hash.
func (l *Log) indexSealed(in io.ReaderAt, first int64) (*indexer, error) {
	hashes, err := os.ReadFile(l.layout.hashes(first))
	if err != nil {
		return nil, fmt.Errorf("indexing: %w", err)
	}
	x, s := newIndexer(first), newScanner(in, 0)
	var scratch bytes.Buffer
	for {
		at := s.off
		f, err := s.next()
		if errors.Is(err, io.EOF) && len(hashes) == 0 {
			return x, nil
		}
		if err != nil {
			return nil, fmt.Errorf("indexing segment %d at %d: %w", first, at, err)
		}
		leaf := f.leaf(&scratch)
		if !bytes.HasPrefix(hashes, leaf[:]) {
			return nil, &DamageError{Code: ExitAltered, Epoch: l.layout.epoch, Seq: f.seq, SeqTo: f.seq, Detail: "its hash is not the one kept when the segment was sealed"}
		}
		hashes = hashes[len(leaf):]
		if err := x.frame(f, leaf, at); err != nil {
			return nil, err
		}
		if x.count%blockOf == 0 && stopped(l.stop) {
			return nil, errClosed
		}
	}
}

// unfinished returns which of the sealed segments have no index yet, or are not packed.
func (l layout) unfinished(firsts []int64) []int64 {
	var todo []int64
	for _, first := range firsts {
		_, err := os.Stat(l.segment(first))
		if errors.Is(err, fs.ErrNotExist) {
			_, err = os.Stat(l.index(first))
			if err == nil {
				continue
			}
		}
		todo = append(todo, first)
	}
	return todo
}
