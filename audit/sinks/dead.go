package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
	Prev     string          `json:"prev"`               // SHA-256 of the letter before it as it was written, base64; empty for the first
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
	Record   json.RawMessage `json:"record"`             // as it stands in the log, with the outcome that belongs to it

	Outcome     int64  `json:"outcome_seq,omitempty"`  // number of that outcome
	OutcomeLeaf string `json:"outcome_leaf,omitempty"` // its hash
}

// ErrAltered says that dead letters are not those that were written: one was changed or taken away.
var ErrAltered = errors.New("the dead letters are not what was written: one was changed or taken away")

// maxReason bounds what a receiver may say about one record.
const maxReason = 1000

func deadFolder(dir, name string) string { return filepath.Join(dir, "dead", name) }

func lettersFile(dead string) string { return filepath.Join(dead, "letters.jsonl") }

// deadLetter is what is kept of a letter.
func deadLetter(l letter) DeadLetter {
	e := l.event
	return DeadLetter{
		ID: e.ID, Origin: e.Origin, Seq: e.Seq, Kind: e.Kind, Severity: e.Severity, Time: e.Time, Leaf: e.Leaf, Outcome: e.Outcome, OutcomeLeaf: e.OutcomeLeaf,
		At: time.Now().UTC(), Reason: l.reason[:min(len(l.reason), maxReason)], Body: string(e.Body), Record: e.Raw,
	}
}

// event is the letter's as it was sent.
func (d DeadLetter) event() Event {
	return Event{
		ID: d.ID, Origin: d.Origin, Seq: d.Seq, Kind: d.Kind, Severity: d.Severity, Time: d.Time, Leaf: d.Leaf, Outcome: d.Outcome, OutcomeLeaf: d.OutcomeLeaf,
		Body: []byte(d.Body), Raw: d.Record,
	}
}

// chained writes letters behind the one of this hash, and returns the hash of the last.
func chained(prev string, letters []DeadLetter) (lines []byte, last string, err error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, d := range letters {
		d.Prev = prev
		begun := b.Len()
		if err := enc.Encode(d); err != nil {
			return nil, "", fmt.Errorf("keeping dead letter: %w", err)
		}
		prev = letterHash(b.Bytes()[begun:])
	}
	return b.Bytes(), prev, nil
}

// letterHash is the hash of a letter's line, its end included; empty for none.
func letterHash(line []byte) string {
	if len(line) == 0 {
		return ""
	}
	sum := sha256.Sum256(line)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// bury keeps letters and says so in the log, once for each batch, with the hash that all of them hang on. A batch of control
// records alone is not spoken of: a receiver that refuses everything would otherwise have the log speak of its own words
// for ever.
func (s *sink) bury(letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	n := Notice{What: "dead_letter", Sink: s.config.Name, SeqFrom: letters[0].event.Seq, Count: int64(len(letters)), Class: "rejected"}
	speak, kept := false, []DeadLetter{}
	for _, l := range letters {
		d := deadLetter(l)
		kept = append(kept, d)
		n.SeqFrom, n.SeqTo = min(n.SeqFrom, d.Seq), max(n.SeqTo, d.Seq)
		speak = speak || d.Kind != "control"
	}
	err := withDead(s.dead, func() (err error) {
		n.Root, err = appendLetters(lettersFile(s.dead), kept)
		return err
	})
	if err != nil {
		return err
	}
	s.metrics.dead.Add(float64(len(letters)))
	if speak {
		s.log.Control(n)
	}
	return nil
}

// withDead runs fn under the lock of a folder of dead letters: the gateway adds to it while a person sends from it. The
// folder itself is locked, so that nothing else lies in it once all letters have arrived.
func withDead(dir string, fn func() error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making folder: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening folder of dead letters: %w", err)
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	return fn()
}

// appendLetters adds letters to a file, durably, and returns the hash of the last. What a crash left of a line is cut off:
// it did not count as buried, and its record was sent again.
func appendLetters(name string, letters []DeadLetter) (last string, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", fmt.Errorf("opening %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("opening %s: %w", name, err)
	}
	end, err := wholeLines(f, info.Size())
	if err != nil {
		return "", fmt.Errorf("opening %s: %w", name, err)
	}
	before := []byte{}
	if end > 0 {
		begin, err := wholeLines(f, end-1)
		if err != nil {
			return "", fmt.Errorf("opening %s: %w", name, err)
		}
		before = make([]byte, end-begin)
		if _, err := f.ReadAt(before, begin); err != nil {
			return "", fmt.Errorf("reading %s: %w", name, err)
		}
	}
	lines, last, err := chained(letterHash(before), letters)
	if err == nil && end < info.Size() {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.WriteAt(lines, end)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return "", fmt.Errorf("writing %s: %w", name, err)
	}
	return last, syncFolder(filepath.Dir(name))
}

// DeadLetters reads the dead letters of a sink of the log in dir, in the order in which they were refused. An error matches
// ErrAltered where they are not those that were written.
func DeadLetters(dir, name string) (all []DeadLetter, err error) {
	dead := deadFolder(dir, name)
	if _, err := os.Stat(dead); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	err = withDead(dead, func() (err error) {
		all, err = readLetters(lettersFile(dead))
		return err
	})
	return all, err
}

// readLetters reads letters and checks their chain. What a crash left of a line at the end is passed over.
func readLetters(name string) ([]DeadLetter, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	var all []DeadLetter
	prev := ""
	for line := range bytes.Lines(b) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var d DeadLetter
		if err := json.Unmarshal(line, &d); err != nil {
			return nil, fmt.Errorf("reading %s, line %d: %w: %w", name, len(all)+1, ErrAltered, err)
		}
		if d.Prev != prev {
			return nil, fmt.Errorf("reading %s, line %d: %w", name, len(all)+1, ErrAltered)
		}
		prev = letterHash(line)
		all = append(all, d)
	}
	return all, nil
}

// Resend sends the dead letters of a sink once more and forgets those that arrive. Those that are refused again stay, with
// the new reason. remake makes the body of a record as the configuration has it now; where that is an error, the letter is
// sent as it was. Where the receiver cannot be reached, or denies us, all that did not arrive stays as it was.
func Resend(ctx context.Context, c Config, o Options, remake func(DeadLetter) ([]byte, error)) (sent, left int, err error) {
	letters, err := DeadLetters(o.Dir, c.Name)
	if err != nil || len(letters) == 0 {
		return 0, 0, err
	}
	s, err := newSender(c, o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.to.close()) }()
	reasons := map[string]string{}
	s.refused = func(refused []letter) error {
		for _, l := range refused {
			reasons[l.event.ID] = l.reason[:min(len(l.reason), maxReason)]
		}
		return nil
	}
	tried := map[string]bool{}
	for rest := letters; len(rest) > 0 && err == nil; {
		n := min(len(rest), s.pace.records)
		var batch []Event
		for _, d := range rest[:n] {
			e := d.event()
			if body, err := remake(d); err == nil {
				e.Body = body
			}
			batch = append(batch, e)
		}
		if err = s.deliver(ctx, batch); err == nil {
			for _, e := range batch {
				tried[e.ID] = true
			}
		}
		rest = rest[n:]
	}
	if serr := s.settled(ctx); serr != nil {
		return 0, len(letters), errors.Join(err, serr)
	}
	sent, left, kerr := keepLetters(s.dead, tried, reasons)
	return sent, left, errors.Join(err, kerr)
}

// keepLetters forgets letters that were tried and have no reason to stay. Without letters their file goes, too.
func keepLetters(dead string, tried map[string]bool, reasons map[string]string) (sent, left int, err error) {
	err = withDead(dead, func() error {
		name := lettersFile(dead)
		now, err := readLetters(name) // more may have come
		if err != nil {
			return err
		}
		var stay []DeadLetter
		for _, d := range now {
			reason, refused := reasons[d.ID]
			if tried[d.ID] && !refused {
				sent++
				continue
			}
			if tried[d.ID] {
				d.Reason = reason
			}
			stay = append(stay, d)
		}
		if left = len(stay); left == 0 {
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("forgetting dead letters: %w", err)
			}
			return syncFolder(dead)
		}
		lines, _, err := chained("", stay)
		if err != nil {
			return err
		}
		return replaceFile(name, lines)
	})
	return sent, left, err
}
