package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// VerifyOptions add what the verifier knows from elsewhere. What lies in the log's own folder proves only that the log
// fits together: who owns the machine can make all of it anew.
type VerifyOptions struct {
	// Keys is a key list (the text of a keys/N.pub file) that is trusted instead of the log's own; "" for that.
	Keys string
	// Checkpoints are signed checkpoints of the newest epoch that were published; each must be met.
	Checkpoints []string
	// From is a record of the newest epoch: of sealed segments that end before it the leaf hashes are believed, as far as
	// the signed checkpoint confirms them, and the records are not read.
	From int64
	// BytesPerSecond is how fast frames are read at most; 0: as fast as it goes.
	BytesPerSecond int64
}

// A Report is what Verify found in good order.
type Report struct {
	Origin      string         // of the newest epoch
	Epochs      int            // that were verified
	Segments    int            // in all epochs
	Records     int64          // in all epochs
	Bytes       int64          // of frames
	Size        int64          // records of the newest epoch
	Root        tlog.Hash      // of the newest epoch
	Checkpoints int            // that were met
	Accepted    []*DamageError // damage that the gap record of the next epoch names
}

// Verify reads the whole log in dir and checks frames, chain, tree and checkpoints. It takes no lock and changes
// nothing, so a running log can be verified. What is wrong is a *DamageError that names the record where possible;
// the report then covers what was read before it. A torn tail behind an intact log is one with ExitTorn.
func Verify(ctx context.Context, dir string, o VerifyOptions) (*Report, error) {
	report := &Report{}
	all, err := epochs(dir)
	if err != nil {
		return report, err
	}
	if len(all) == 0 {
		return report, fmt.Errorf("verifying %s: there is no audit log: %w", dir, os.ErrNotExist)
	}
	for i, epoch := range all {
		last := i+1 == len(all)
		if gone := missingEpoch(epoch - 1); i > 0 && epoch != all[i-1]+1 && acceptedBy(layout{dir: dir, epoch: epoch}, gone) {
			report.Accepted = append(report.Accepted, gone)
		} else if i > 0 && epoch != all[i-1]+1 {
			return report, &DamageError{Code: ExitMissing, Epoch: all[i-1] + 1, Seq: -1, SeqTo: -1, Detail: "the epoch is missing"}
		}
		err := report.epoch(ctx, dir, epoch, o, last)
		damage, ok := errors.AsType[*DamageError](err)
		if ok && !last && acceptedBy(layout{dir: dir, epoch: epoch + 1}, damage) {
			report.Accepted = append(report.Accepted, damage)
			continue
		}
		if err != nil {
			return report, err
		}
	}
	return report, nil
}

// epoch verifies one epoch.
func (r *Report) epoch(ctx context.Context, dir string, epoch int64, o VerifyOptions, last bool) error {
	ring, err := verifyKeys(dir, epoch, o.Keys)
	if err != nil {
		return &DamageError{Code: ExitKey, Epoch: epoch, Seq: -1, SeqTo: -1, Detail: err.Error()}
	}
	var others []string
	if last {
		others = o.Checkpoints
	}
	in, err := inspect(dir, epoch, ring, others)
	if err != nil {
		return err
	}
	in.patience = 50
	in.pace = pace{rate: o.BytesPerSecond, since: time.Now()}
	if last {
		in.trustHashes, in.trustTo = o.From > 0, o.From
	}
	err = in.run(ctx)
	r.Epochs++
	r.Segments += len(in.segments)
	r.Records += in.tree.size
	r.Bytes += in.bytes
	r.Origin, r.Size, r.Root = in.checkpoint.origin, in.tree.size, in.tree.root()
	if err != nil {
		return err
	}
	r.Checkpoints += len(in.known)
	if in.torn.bytes > 0 {
		return in.damage(ExitTorn, in.tree.size, fmt.Sprintf("%d bytes of a write that was never acknowledged follow the last record", in.torn.bytes))
	}
	return nil
}

// verifyKeys returns the trusted keys of an epoch: those of the given list with its origin, or the log's own.
func verifyKeys(dir string, epoch int64, given string) (keyring, error) {
	if given == "" {
		return readKeys(dir, epoch)
	}
	text, _, _ := strings.Cut(given, "\n\n")
	all, err := parseKeys(strings.TrimSuffix(text, "\n") + "\n")
	if err != nil {
		return nil, err
	}
	var ring keyring
	for _, w := range all {
		if strings.HasSuffix(w.verifier.Name(), fmt.Sprintf("/%d", epoch)) {
			ring = append(ring, w)
		}
	}
	return ring, nil
}

// acceptedBy reports whether an epoch begins with a record that names this damage of the epoch before.
func acceptedBy(next layout, d *DamageError) bool {
	r, err := next.first()
	return err == nil && r.Kind == KindControl && r.Control == gap(d)
}

// first returns the epoch's first record.
func (l layout) first() (*Record, error) {
	f, err := l.openSegment(0)
	if errors.Is(err, fs.ErrNotExist) {
		return l.removedRecord()
	}
	if err != nil {
		return nil, err
	}
	defer f.close()
	fr, err := newScanner(f, 0).next()
	if err != nil {
		return nil, err
	}
	return parseRecord(fr.record())
}
