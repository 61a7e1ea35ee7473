package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	proofHead     = "c2sp.org/tlog-proof@v1"
	maxProof      = 256 << 10 // of a proof file: record, hashes and a checkpoint with a hundred signatures
	maxProofLines = 64        // hashes: no tree is higher
)

// errProof says that a text is no proof at all.
var errProof = errors.New("no valid proof")

// A proof is a C2SP tlog-proof: that a record stands at its index in the tree of a signed checkpoint. Its extra data is
// the payload of the record's frame, from which the leaf hash is made.
type proof struct {
	payload    []byte
	index      int64
	hashes     tlog.RecordProof
	checkpoint []byte // signed note
}

// String returns the proof as it stands in a file.
func (p proof) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofHead, base64.StdEncoding.EncodeToString(p.payload), p.index)
	writeHashes(&b, p.hashes)
	b.WriteByte('\n')
	b.Write(p.checkpoint)
	return b.String()
}

func writeHashes(b *strings.Builder, hashes []tlog.Hash) {
	for _, h := range hashes {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
}

// parseProof reads what String writes.
func parseProof(text string) (proof, error) {
	head, checkpoint, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(text) > maxProof || len(lines) < 3 || lines[0] != proofHead {
		return proof{}, fmt.Errorf("parsing proof: want %q, extra, index, hashes, and a checkpoint in at most %d bytes: %w", proofHead, maxProof, errProof)
	}
	p := proof{checkpoint: []byte(checkpoint)}
	extra, ok := strings.CutPrefix(lines[1], "extra ")
	var err error
	if p.payload, err = base64.StdEncoding.Strict().DecodeString(extra); !ok || err != nil || len(p.payload) < minPayload || strings.Contains(extra, "\r") {
		return proof{}, fmt.Errorf("parsing proof: its extra line holds no record: %w", errProof)
	}
	index, ok := strings.CutPrefix(lines[2], "index ")
	if p.index, err = parseDecimal(index); !ok || err != nil {
		return proof{}, fmt.Errorf("parsing proof: line %q; want index: %w", lines[2], errProof)
	}
	p.hashes, err = parseHashes(lines[3:])
	return p, err
}

// parseHashes reads one hash a line.
func parseHashes(lines []string) ([]tlog.Hash, error) {
	if len(lines) > maxProofLines {
		return nil, fmt.Errorf("parsing proof: %d hashes; no tree needs more than %d: %w", len(lines), maxProofLines, errProof)
	}
	var hashes []tlog.Hash
	for _, line := range lines {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize || strings.Contains(line, "\r") {
			return nil, fmt.Errorf("parsing proof: line %q is no SHA-256 in base64: %w", line, errProof)
		}
		hashes = append(hashes, tlog.Hash(h))
	}
	return hashes, nil
}

// A Proved is what a proof shows.
type Proved struct {
	Origin string          `json:"origin"` // of the log
	Seq    int64           `json:"seq"`    // of the record
	Size   int64           `json:"size"`   // records that the checkpoint counts
	Root   string          `json:"root"`   // of the checkpoint
	Time   time.Time       `json:"time"`   // of the checkpoint
	Record json.RawMessage `json:"record,omitempty"`
}

// CheckProof checks a proof with a key list (the text of a keys/N.pub file), and nothing else. A proof that does not
// hold is a *DamageError.
func CheckProof(text []byte, keys string) (*Proved, error) {
	p, err := parseProof(string(text))
	if err != nil {
		return nil, err
	}
	c, err := openForeign(p.checkpoint, keys)
	if err != nil {
		return nil, err
	}
	leaf := tlog.RecordHash(p.payload)
	if p.index >= c.size || tlog.CheckRecord(p.hashes, c.size, c.root, p.index, leaf) != nil {
		return nil, &DamageError{
			Code: ExitAltered, Epoch: epochOf(c.origin), Seq: p.index, SeqTo: p.index,
			Detail: fmt.Sprintf("the proof does not hold: this record is not in the tree of the checkpoint of %d records", c.size),
		}
	}
	shown := c.proved()
	shown.Seq, shown.Record = p.index, bytes.Clone(p.payload[tlog.HashSize:])
	if !json.Valid(shown.Record) {
		return nil, fmt.Errorf("checking proof: its record is no JSON: %w", errProof)
	}
	return shown, nil
}

func (c checkpoint) proved() *Proved {
	return &Proved{Origin: c.origin, Size: c.size, Root: c.root.String(), Time: c.time.UTC()}
}

// openForeign opens a checkpoint of any log whose key is in the list.
func openForeign(signed []byte, keys string) (checkpoint, error) {
	text, _, _ := strings.Cut(keys, "\n\n")
	ring, err := parseKeys(strings.TrimSuffix(text, "\n") + "\n")
	if err != nil {
		return checkpoint{}, err
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	var own keyring // a key signs for the log that it is named after
	for _, w := range ring {
		if w.verifier.Name() == origin {
			own = append(own, w)
		}
	}
	c, err := openCheckpoint(signed, origin, own)
	if err != nil {
		return checkpoint{}, &DamageError{Code: ExitKey, Epoch: epochOf(origin), Seq: -1, SeqTo: -1, Detail: err.Error()}
	}
	return c, nil
}

// epochOf returns the number at the end of a log's origin.
func epochOf(origin string) int64 {
	epoch, err := parseDecimal(origin[strings.LastIndexByte(origin, '/')+1:])
	if err != nil {
		return -1
	}
	return epoch
}

// A consistency is the proof that a log only grew: the size of an older checkpoint, hashes, and the newer checkpoint,
// in the form that C2SP tlog-witness has for it.
type consistency struct {
	old        int64
	hashes     tlog.TreeProof
	checkpoint []byte
}

// String returns the proof as it stands in a file.
func (c consistency) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "old %d\n", c.old)
	writeHashes(&b, c.hashes)
	b.WriteByte('\n')
	b.Write(c.checkpoint)
	return b.String()
}

// parseConsistency reads what String writes.
func parseConsistency(text string) (consistency, error) {
	head, checkpoint, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	size, isOld := strings.CutPrefix(lines[0], "old ")
	old, err := parseDecimal(size)
	if !ok || !isOld || err != nil || len(text) > maxProof {
		return consistency{}, fmt.Errorf("parsing consistency proof: want old, hashes and a checkpoint: %w", errProof)
	}
	c := consistency{old: old, checkpoint: []byte(checkpoint)}
	c.hashes, err = parseHashes(lines[1:])
	return c, err
}

// CheckConsistency checks that the log of a checkpoint kept from earlier only grew since then. A log that was rewritten is
// a *DamageError with ExitConflict.
func CheckConsistency(text, since []byte, keys string) (*Proved, error) {
	p, err := parseConsistency(string(text))
	if err != nil {
		return nil, err
	}
	newer, err := openForeign(p.checkpoint, keys)
	if err != nil {
		return nil, err
	}
	older, err := openForeign(since, keys)
	if err != nil {
		return nil, err
	}
	if older.origin != newer.origin {
		return nil, &DamageError{Code: ExitKey, Epoch: epochOf(older.origin), Seq: -1, SeqTo: -1, Detail: fmt.Sprintf("the checkpoints are of %q and of %q", older.origin, newer.origin)}
	}
	if p.old != older.size || !grew(p.hashes, newer, older) {
		return nil, &DamageError{
			Code: ExitConflict, Epoch: epochOf(older.origin), Seq: max(older.size-1, 0), SeqTo: max(older.size-1, 0),
			Detail: fmt.Sprintf("the proof does not hold: the checkpoint of %d records does not begin as the one of %d", newer.size, older.size),
		}
	}
	return newer.proved(), nil
}

// grew checks a consistency proof. Every tree begins with the empty one.
func grew(p tlog.TreeProof, newer, older checkpoint) bool {
	switch {
	case older.size == newer.size:
		return older.root == newer.root && len(p) == 0
	case older.size == 0:
		return len(p) == 0
	}
	return tlog.CheckTree(p, newer.size, newer.root, older.size, older.root) == nil
}
