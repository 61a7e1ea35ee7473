package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headgate/headgate/audit/sinks"
)

const (
	checkpointEvery = time.Second
	heartbeat       = time.Minute // an unchanged checkpoint is signed again, so that silence is seen
	segmentLife     = time.Hour
	zeroAtOnce      = 8 << 20 // of the first segment, written before the log opens
)

// fit makes room for a batch in the active segment, with the next segment if need be. Only who holds busy calls it.
func (l *Log) fit(b *batch) error {
	size := int64(len(b.buf))
	due := l.active.off > 0 && time.Since(l.active.begun) > segmentLife
	if !due && l.active.off+size+reserve <= l.active.size || b.onlyControl() && l.active.off+size <= l.active.size {
		return nil
	}
	if l.active.size < l.cfg.SegmentBytes && l.active.off+size+reserve <= l.cfg.SegmentBytes && !due {
		return l.grow(size, b.onlyControl()) // it was cut back
	}
	return l.rotate()
}

// grow gives the active segment its full size again; a control record is content with less, at the ballast's cost.
func (l *Log) grow(size int64, control bool) error {
	want := l.cfg.SegmentBytes
	err := l.active.file.allocate(want)
	if err != nil && outOfSpace(err) && control {
		want = l.active.off + size
		if err = l.active.file.allocate(want); err != nil && outOfSpace(err) {
			if err = l.dropBallast(); err == nil {
				err = l.active.file.allocate(want)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("growing segment: %w", err)
	}
	l.active.size = want
	return nil
}

// rotate goes on to the next segment. The full one is sealed beside the writer, by upkeep.
func (l *Log) rotate() error {
	full := l.active
	if err := l.addSegment(); err != nil {
		return err
	}
	l.mu.Lock()
	l.unseal = append(l.unseal, full.first)
	l.mu.Unlock()
	l.rotations.Add(1)
	if err := full.file.Close(); err != nil {
		return fmt.Errorf("closing segment: %w", err)
	}
	l.prod()
	return nil
}

// addSegment puts the next segment in place: the spare one, or one made now. Its name is durable before its first frame.
func (l *Log) addSegment() error {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	if !l.spare {
		if err := l.makeSpare(zeroAtOnce); err != nil {
			return err
		}
	}
	l.spare = false
	first := l.durable.size
	name := l.layout.segment(first)
	if err := l.disk.rename(l.layout.spare(), name); err != nil {
		return fmt.Errorf("naming segment: %w", err)
	}
	if err := l.disk.syncDir(l.layout.segments()); err != nil {
		return fmt.Errorf("naming segment: %w", noSpaceError{err})
	}
	f, err := l.disk.create(name)
	if err != nil {
		return fmt.Errorf("opening segment: %w", err)
	}
	l.active = segment{first: first, file: f, size: l.cfg.SegmentBytes, begun: time.Now()}
	return nil
}

// makeSpare preallocates the next segment. Blocks that were written once sync in half the time of those that were only
// reserved, so zeros are written, in steps that leave room for the writer's own syncs.
func (l *Log) makeSpare(zeros int64) (err error) {
	f, err := l.disk.create(l.layout.spare())
	if err != nil {
		return fmt.Errorf("making segment: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("making segment: %w", cerr)
		}
		if err != nil {
			_ = l.disk.remove(l.layout.spare()) // it holds room that a full disk needs
		}
	}()
	if err := f.allocate(l.cfg.SegmentBytes); err != nil {
		return fmt.Errorf("preallocating segment: %w", err)
	}
	zero := make([]byte, 1<<20)
	for off := int64(0); off < min(zeros, l.cfg.SegmentBytes); off += int64(len(zero)) {
		step := zero[:min(int64(len(zero)), l.cfg.SegmentBytes-off)]
		if _, err := f.WriteAt(step, off); err != nil {
			return fmt.Errorf("preallocating segment: %w", err)
		}
		if err := f.datasync(); err != nil {
			return fmt.Errorf("preallocating segment: %w", err)
		}
		select {
		case <-l.stop:
			return nil // what is not zeroed yet is reserved all the same
		default:
		}
	}
	return nil
}

// readySpare makes the next segment if there is none, and reports whether one is ready.
func (l *Log) readySpare(create bool) (bool, error) {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	if l.spare || !create {
		return l.spare, nil
	}
	err := l.makeSpare(l.cfg.SegmentBytes)
	l.spare = err == nil
	return l.spare, err
}

// upkeep does beside the writer what must not delay it: checkpoints, sealing, the spare segment, watching the disk.
func (l *Log) upkeep() {
	every := time.NewTicker(checkpointEvery)
	defer every.Stop()
	k := keeper{Log: l, wall: time.Now()}
	k.once(k.wall)
	for {
		select {
		case <-l.stop:
			return
		case <-l.urgent:
			k.once(time.Now())
		case <-every.C:
			k.once(time.Now())
		}
	}
}

// A keeper is what upkeep remembers between its rounds.
type keeper struct {
	*Log
	wall   time.Time // of the last round
	size   int64     // of the last checkpoint
	signed time.Time
	noted  bool // disk_full is on disk
	failed string
}

// once is one round.
func (k *keeper) once(now time.Time) {
	if step := now.Round(0).Sub(k.wall.Round(0)) - now.Sub(k.wall); step < -time.Second {
		k.Note(k.controlRecord(Control{What: "clock_step", Count: step.Milliseconds()}))
	}
	k.wall = now
	k.mu.Lock()
	size, state := k.durable.size, k.state
	k.mu.Unlock()
	if errors.Is(state, errPoisoned) {
		return
	}
	err := errors.Join(k.watchDisk(), k.seal(), k.rotateKey(now))
	if size != k.size && now.Sub(k.signed) >= checkpointEvery || now.Sub(k.signed) >= heartbeat {
		if cerr := k.writeCheckpoint(now); cerr == nil {
			k.size, k.signed = size, now
		} else {
			err = errors.Join(err, cerr)
		}
	}
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS) { // no better than if the writer had met it
		_ = k.Log.failed(err) // its error is for callers of Append
	}
	k.report(err)
}

// report logs what went wrong in a round, once.
func (k *keeper) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != k.failed && text != "" {
		k.logger.LogAttrs(context.Background(), slog.LevelError, "audit upkeep failed; trying again", slog.Any("err", err))
	}
	k.failed = text
}

// writeCheckpoint signs what is durable now.
func (l *Log) writeCheckpoint(now time.Time) error {
	l.mu.Lock()
	tree := l.durable
	l.mu.Unlock()
	c := checkpoint{origin: l.origin, size: tree.size, root: tree.root(), time: now}
	signed, err := c.sign(l.key.signer)
	if err != nil {
		return err
	}
	err = writeFile(l.disk, l.layout.checkpoint(), signed)
	if outOfSpace(err) {
		if err = l.dropBallast(); err == nil {
			err = writeFile(l.disk, l.layout.checkpoint(), signed)
		}
	}
	if err != nil {
		return err
	}
	l.metrics.checkpoint.Set(float64(now.Unix()))
	return nil
}

// rotateKey replaces the signing key before its window ends.
func (l *Log) rotateKey(now time.Time) error {
	if now.Before(l.key.until.Add(-keySlack)) {
		return nil
	}
	key, err := newKey(l.disk, l.cfg.Dir, l.layout.epoch, l.origin, l.key, now)
	if err != nil {
		return err
	}
	l.key = key
	l.Note(l.controlRecord(Control{What: "key_change", Count: int64(len(key.ring))}))
	return nil
}

func (l *Log) ballast() string { return filepath.Join(l.cfg.Dir, "ballast") }

// dropBallast frees the room that was kept for a full disk.
func (l *Log) dropBallast() error {
	f, err := l.disk.create(l.ballast())
	if err != nil {
		return fmt.Errorf("freeing ballast: %w", err)
	}
	if err := errors.Join(f.Truncate(0), f.Close()); err != nil {
		return fmt.Errorf("freeing ballast: %w", err)
	}
	return nil
}

// fillBallast takes the room again.
func (l *Log) fillBallast() error {
	if info, err := os.Stat(l.ballast()); err == nil && info.Size() >= l.cfg.SegmentBytes/2 {
		return nil
	}
	f, err := l.disk.create(l.ballast())
	if err != nil {
		return fmt.Errorf("filling ballast: %w", err)
	}
	if err := errors.Join(f.allocate(l.cfg.SegmentBytes/2), f.Close()); err != nil {
		return fmt.Errorf("filling ballast: %w", err)
	}
	return nil
}

// watchDisk keeps ballast and the next segment ready, and turns the log off and on with the room on its volume:
// below two segments nothing but control records is written, so that there is always room to say why.
func (k *keeper) watchDisk() error {
	free, err := k.disk.free(k.cfg.Dir)
	if err != nil {
		return fmt.Errorf("measuring free space: %w", err)
	}
	k.metrics.free.Set(float64(free))
	k.mu.Lock()
	state := k.state
	k.mu.Unlock()
	if free < pressedAt*k.cfg.SegmentBytes && k.mayGiveUp() {
		select {
		case k.topack <- struct{}{}:
		default: // it looks already
		}
	}
	need := 2 * k.cfg.SegmentBytes
	if state != nil { // leave with more room than is needed to stay, or the state would flutter
		need += k.cfg.SegmentBytes / 4
	}
	spare, err := k.readySpare(free >= need+k.cfg.SegmentBytes)
	if spare {
		err = k.fillBallast()
	}
	if err != nil && !outOfSpace(err) {
		return err
	}
	if free, ferr := k.disk.free(k.cfg.Dir); ferr != nil {
		return fmt.Errorf("measuring free space: %w", ferr)
	} else if !spare || err != nil || free < need {
		return k.full(free)
	}
	return k.hasRoom(free)
}

// mayGiveUp tells whether some sink would rather have a gap than a full disk.
func (l *Log) mayGiveUp() bool {
	return slices.ContainsFunc(l.cfg.Sinks, func(c sinks.Config) bool { return c.OnOverflow == sinks.OverflowGap })
}

// full refuses records and says so in the log itself, in the room kept for that.
func (k *keeper) full(free int64) error {
	k.mu.Lock()
	if k.state == nil {
		k.state = fmt.Errorf("%w: %d bytes free", errFull, free)
		k.metrics.writable.Set(0)
		k.logger.LogAttrs(context.Background(), slog.LevelError, "audit disk is full; requests are refused",
			slog.Int64("free_bytes", free), slog.Int64("segment_bytes", k.cfg.SegmentBytes))
	}
	k.mu.Unlock()
	if k.noted {
		return nil
	}
	err := k.Append(context.Background(), k.controlRecord(Control{What: "disk_full", Bytes: free}))
	k.noted = err == nil
	return err
}

// hasRoom takes records again.
func (k *keeper) hasRoom(free int64) error {
	k.mu.Lock()
	if !errors.Is(k.state, errFull) {
		k.mu.Unlock()
		return nil
	}
	k.state = nil
	dropped := k.dropped
	k.dropped = 0
	k.mu.Unlock()
	k.noted = false
	k.metrics.writable.Set(1)
	k.logger.LogAttrs(context.Background(), slog.LevelInfo, "audit disk has room again; requests are served",
		slog.Int64("free_bytes", free), slog.Int64("records_lost", dropped))
	return k.Append(context.Background(), k.controlRecord(Control{What: "disk_ok", Bytes: free, Count: dropped}))
}
