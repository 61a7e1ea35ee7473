package sinks

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A DeadLetter is a record that a receiver refused for good. It is kept until it is sent again.
type DeadLetter struct {
	ID       string          `json:"id"`                 // of the event
	Origin   string          `json:"origin,omitempty"`   // of the record's epoch
	Seq      int64           `json:"seq"`                // number in its epoch
	Kind     string          `json:"kind,omitempty"`     // of the record
	Severity int             `json:"severity,omitempty"` // of the event
	Time     time.Time       `json:"time,omitzero"`      // of the event
	Leaf     string          `json:"leaf,omitempty"`     // the record's hash in the log's tree
	At       time.Time       `json:"at"`                 // when it was refused
	Reason   string          `json:"reason"`             // what the receiver said
	Body     string          `json:"body"`               // as it was sent; empty where the schema cannot show the record
	Record   json.RawMessage `json:"record"`             // as it stands in the log
}

// maxReason bounds what a receiver may say about one record.
const maxReason = 1000

func deadFolder(dir, name string) string { return filepath.Join(dir, "dead", name) }

// bury keeps letters and says so in the log, once for each batch. A batch of control records alone is not spoken of:
// a receiver that refuses everything would otherwise have the log speak of its own words for ever.
func (s *sink) bury(letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	n := Notice{What: "dead_letter", Sink: s.config.Name, SeqFrom: letters[0].event.Seq, Count: int64(len(letters)), Class: "rejected"}
	speak := false
	for _, l := range letters {
		reason := l.reason[:min(len(l.reason), maxReason)]
		e := l.event
		d := DeadLetter{
			ID: e.ID, Origin: e.Origin, Seq: e.Seq, Kind: e.Kind, Severity: e.Severity, Time: e.Time, Leaf: e.Leaf,
			At: time.Now().UTC(), Reason: reason, Body: string(e.Body), Record: e.Raw,
		}
		if err := enc.Encode(d); err != nil {
			return fmt.Errorf("keeping dead letter: %w", err)
		}
		n.SeqFrom, n.SeqTo = min(n.SeqFrom, d.Seq), max(n.SeqTo, d.Seq)
		speak = speak || l.event.Kind != "control"
	}
	err := withDead(s.dead, func() error { return appendDurably(filepath.Join(s.dead, "letters.jsonl"), lines.Bytes()) })
	if err != nil {
		return err
	}
	s.metrics.dead.Add(float64(len(letters)))
	if speak {
		s.log.Control(n)
	}
	return nil
}

// withDead runs fn under the lock of a folder of dead letters: the gateway adds to it while a person sends from it.
func withDead(dir string, fn func() error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("opening lock: %w", err)
	}
	defer f.Close()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	return fn()
}

func appendDurably(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return syncFolder(filepath.Dir(name))
}

// DeadLetters reads the dead letters of a sink of the log in dir, in the order in which they were refused.
func DeadLetters(dir, name string) ([]DeadLetter, error) {
	var all []DeadLetter
	dead := deadFolder(dir, name)
	if _, err := os.Stat(dead); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	err := withDead(dead, func() (err error) {
		all, err = readLetters(filepath.Join(dead, "letters.jsonl"))
		return err
	})
	return all, err
}

func readLetters(name string) ([]DeadLetter, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	defer f.Close()
	var all []DeadLetter
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var d DeadLetter
		if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
			continue // cut by a crash before it counted as buried: its record was sent again
		}
		all = append(all, d)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	return all, nil
}

// Resend sends the dead letters of a sink once more and forgets those that arrive. The others stay, with the new reason.
// It returns how many of each there are.
func Resend(ctx context.Context, c Config, o Options) (sent, left int, err error) {
	c = c.withDefaults()
	to, err := newDestination(c, o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	dead := deadFolder(o.Dir, c.Name)
	err = withDead(dead, func() error {
		name := filepath.Join(dead, "letters.jsonl")
		letters, err := readLetters(name)
		if err != nil {
			return err
		}
		var stay bytes.Buffer
		enc := json.NewEncoder(&stay)
		for _, d := range letters {
			if reason := resendOne(ctx, to, d); reason != nil {
				d.Reason = reason.Error()
				left++
				if err := enc.Encode(d); err != nil {
					return fmt.Errorf("keeping dead letter: %w", err)
				}
			}
		}
		sent = len(letters) - left
		return replaceFile(name, stay.Bytes())
	})
	return sent, left, err
}

func resendOne(ctx context.Context, to destination, d DeadLetter) error {
	if d.Body == "" {
		return errors.New("the record could not be shown in the sink's schema")
	}
	e := Event{ID: d.ID, Origin: d.Origin, Seq: d.Seq, Kind: d.Kind, Severity: d.Severity, Time: d.Time, Leaf: d.Leaf, Body: []byte(d.Body), Raw: d.Record}
	got, err := to.deliver(ctx, []Event{e})
	switch {
	case err != nil:
		return err
	case len(got.rejected) > 0:
		return errors.New(got.rejected[0].reason)
	case len(got.again) > 0:
		return errors.New("the receiver asks for patience")
	}
	return nil
}
