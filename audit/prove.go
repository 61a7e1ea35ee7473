package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Keys returns the log's own key lists, of all epochs, for CheckProof. They prove only that the log fits together:
// against who owns the machine, a list that was kept elsewhere is needed.
func (a *Archive) Keys() (string, error) {
	all, err := epochs(a.dir)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, epoch := range all {
		ring, err := readKeys(a.dir, epoch)
		if err != nil {
			return "", err
		}
		text.WriteString(ring.String())
	}
	if text.Len() == 0 {
		return "", fmt.Errorf("reading key lists of %s: there is no audit log: %w", a.dir, fs.ErrNotExist)
	}
	return text.String(), nil
}

// Find returns the place of a record that is named by its event id, or the first eight characters or more of one: that of
// the decision where decision and outcome share it. No record is fs.ErrNotExist.
func (a *Archive) Find(ctx context.Context, event string) (Position, error) {
	var at Position
	full, ambiguous := "", false
	_, err := a.Search(ctx, SearchQuery{EventID: event}, func(p Position, e Entry) error {
		id := eventID(e.Raw)
		ambiguous = ambiguous || full != "" && id != full
		at, full = p, id // newest first: the last one is the decision
		return nil
	})
	switch {
	case err != nil:
		return Position{}, err
	case full == "":
		return Position{}, fmt.Errorf("finding event %s: %w", EscapeTerminal(event), fs.ErrNotExist)
	case ambiguous:
		return Position{}, fmt.Errorf("finding event %s: several events begin so; give more of the id", EscapeTerminal(event))
	}
	return at, nil
}

// Locate returns the place of a record that a person names: its number in the newest epoch, EPOCH-SEQ, or its event id as
// Find takes it. A word that is none of them is ErrName.
func (a *Archive) Locate(ctx context.Context, word string) (Position, error) {
	if at, err := ParsePosition(word); err == nil {
		return at, nil
	}
	if seq, err := parseDecimal(word); err == nil {
		epoch, err := a.Newest()
		return Position{Epoch: epoch, Seq: seq}, err
	}
	if err := (SearchQuery{EventID: word}).Validate(); err != nil {
		return Position{}, fmt.Errorf("%w: %w", ErrName, err)
	}
	return a.Find(ctx, word)
}

// ErrName means that a word names no record, whatever the log holds.
var ErrName = errors.New("want a record's number, EPOCH-SEQ, or an event id")

// Checkpoint returns the newest signed checkpoint.
func (a *Archive) Checkpoint() ([]byte, error) {
	epoch, err := a.Newest()
	if err != nil {
		return nil, err
	}
	signed, _, err := newestCheckpoint(layout{dir: a.dir, epoch: epoch})
	return signed, err
}

// Newest returns the number of the newest epoch.
func (a *Archive) Newest() (int64, error) {
	all, err := epochs(a.dir)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("reading %s: there is no audit log: %w", a.dir, fs.ErrNotExist)
	}
	if err != nil {
		return 0, err
	}
	return all[len(all)-1], nil
}

// Prove returns the proof that a record stands in the log, as CheckProof takes it: against the newest checkpoint, which
// follows a record within a second.
func (a *Archive) Prove(ctx context.Context, at Position) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := layout{dir: a.dir, epoch: at.Epoch}
	signed, c, err := newestCheckpoint(l)
	if err != nil {
		return nil, err
	}
	if at.Seq < 0 || at.Seq >= c.size {
		return nil, fmt.Errorf("proving record %s: the newest checkpoint counts %d records: %w", at, c.size, fs.ErrNotExist)
	}
	e, err := recordAt(l, at.Seq)
	if err != nil {
		return nil, err
	}
	r, err := newHashReader(l)
	if err != nil {
		return nil, err
	}
	for _, r.noTiles = range []bool{false, true} {
		hashes, err := tlog.ProveRecord(c.size, at.Seq, r)
		if err != nil {
			return nil, fmt.Errorf("proving record %s: %w", at, err)
		}
		if tlog.CheckRecord(hashes, c.size, c.root, at.Seq, tlog.RecordHash(e)) == nil {
			return []byte(proof{payload: e, index: at.Seq, hashes: hashes, checkpoint: signed}.String()), nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, &DamageError{Code: ExitAltered, Epoch: at.Epoch, Seq: at.Seq, SeqTo: at.Seq, Detail: "it is not in the tree of the newest checkpoint; audit verify finds what was altered"}
}

// ProveSince returns the proof that the log only grew since a checkpoint that was kept, as CheckConsistency takes it. A
// log that did not is a *DamageError.
func (a *Archive) ProveSince(since []byte) ([]byte, error) {
	keys, err := a.Keys()
	if err != nil {
		return nil, err
	}
	older, err := openForeign(since, keys)
	if err != nil {
		return nil, err
	}
	l := layout{dir: a.dir, epoch: epochOf(older.origin)}
	signed, newer, err := newestCheckpoint(l)
	if err != nil {
		return nil, err
	}
	if older.size > newer.size {
		return nil, &DamageError{Code: ExitShort, Epoch: l.epoch, Seq: newer.size, SeqTo: older.size - 1, Detail: "they are missing: the checkpoint that was kept counts them"}
	}
	r, err := newHashReader(l)
	if err != nil {
		return nil, err
	}
	for _, r.noTiles = range []bool{false, true} {
		p := consistency{old: older.size, checkpoint: signed}
		if older.size > 0 && older.size < newer.size {
			if p.hashes, err = tlog.ProveTree(newer.size, older.size, r); err != nil {
				return nil, fmt.Errorf("proving consistency: %w", err)
			}
		}
		if grew(p.hashes, newer, older) {
			return []byte(p.String()), nil
		}
	}
	return nil, &DamageError{Code: ExitConflict, Epoch: l.epoch, Seq: older.size - 1, SeqTo: older.size - 1, Detail: "the log does not begin as the checkpoint that was kept says"}
}

// newestCheckpoint reads an epoch's checkpoint.
func newestCheckpoint(l layout) ([]byte, checkpoint, error) {
	signed, err := os.ReadFile(l.checkpoint())
	if err != nil {
		return nil, checkpoint{}, fmt.Errorf("reading checkpoint: %w", err)
	}
	ring, err := readKeys(l.dir, l.epoch)
	if err != nil {
		return nil, checkpoint{}, err
	}
	c, err := openCheckpoint(signed, ring[0].verifier.Name(), ring)
	if err != nil {
		return nil, checkpoint{}, &DamageError{Code: ExitKey, Epoch: l.epoch, Seq: -1, SeqTo: -1, Detail: err.Error()}
	}
	return signed, c, nil
}

// recordAt returns the payload of a record's frame.
func recordAt(l layout, seq int64) ([]byte, error) {
	firsts, err := l.list()
	if err != nil {
		return nil, err
	}
	first := int64(-1)
	for _, f := range firsts {
		if f <= seq {
			first = f
		}
	}
	if first < 0 {
		return nil, fmt.Errorf("reading record %d: it is past its retention, or missing: %w", seq, fs.ErrNotExist)
	}
	f, err := l.openSegment(first)
	if err != nil {
		return nil, err
	}
	defer f.close()
	off, at := int64(0), first
	if f.packed != nil { // a block begins near it
		for _, b := range f.packed.blocks {
			if b.firstSeq <= seq {
				off, at = b.raw, b.firstSeq
			}
		}
	}
	s := newScanner(f, off)
	for ; ; at++ {
		fr, err := s.next()
		if err != nil {
			if _, ok := errors.AsType[*DamageError](err); ok {
				return nil, err
			}
			return nil, &DamageError{Code: ExitAltered, Epoch: l.epoch, Seq: at, SeqTo: at, Detail: "its bytes are not what was written"}
		}
		if at == seq {
			return append([]byte(nil), fr.payload...), nil
		}
	}
}
