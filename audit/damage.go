package audit

import (
	"errors"
	"fmt"
)

// ErrUnwritable is what Append's errors match when the record is not acknowledged: the disk is full, the log is
// poisoned or closed, or two seconds passed.
var ErrUnwritable = errors.New("audit log cannot be written")

// ErrLocked means that another process has the log open.
var ErrLocked = errors.New("audit log is in use by another process")

// Causes of ErrUnwritable.
var (
	errFull        = errors.New("disk full")
	errPoisoned    = errors.New("a write failed and the log can no longer be believed")
	errClosed      = errors.New("log is closed")
	errTimeout     = errors.New("disk did not answer in time")
	errUnpublished = errors.New("no place off the machine takes checkpoints")
	errQueue       = errors.New("too many records are waiting")
)

// Exit codes of damage, for verify and for a start that refuses.
const (
	ExitAltered  = 10 // a record is not what was written
	ExitMissing  = 11 // a segment is missing
	ExitShort    = 12 // fewer records than a signed checkpoint says
	ExitTorn     = 13 // a torn tail only: bytes of a write that was never acknowledged
	ExitKey      = 14 // a checkpoint's key is unknown or outside its window, or the checkpoint is another log's
	ExitConflict = 15 // two checkpoints of one size with different roots
)

// A DamageError says what in the log is not as it was written. Where one record can be named, Seq is not negative.
type DamageError struct {
	Code    int    `json:"code"`               // ExitAltered and so on
	Epoch   int64  `json:"epoch"`              // epoch it is in
	Seq     int64  `json:"seq"`                // record, or first record that is missing; -1 if unknown
	SeqTo   int64  `json:"seq_to"`             // last record concerned
	EventID string `json:"event_id,omitempty"` // of the record, as far as it can still be read
	Detail  string `json:"detail"`             // what was found, for people
}

func (e *DamageError) Error() string {
	s := fmt.Sprintf("audit log damaged (code %d): epoch %d", e.Code, e.Epoch)
	switch {
	case e.Seq >= 0 && e.SeqTo > e.Seq:
		s += fmt.Sprintf(", records %d to %d", e.Seq, e.SeqTo)
	case e.Seq >= 0:
		s += fmt.Sprintf(", record %d", e.Seq)
	}
	if e.EventID != "" {
		s += " (event " + EscapeTerminal(e.EventID) + ")"
	}
	return s + ": " + e.Detail
}
