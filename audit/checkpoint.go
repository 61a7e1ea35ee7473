package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A checkpoint is a tree head. As a note's text it has four lines: origin, size, root in base64, and "time" with unix
// seconds. tlog.FormatTree is not used: its first line belongs to the go.sum database.
type checkpoint struct {
	origin string
	size   int64
	root   tlog.Hash
	time   time.Time // whole seconds
}

func (c checkpoint) String() string {
	return fmt.Sprintf("%s\n%d\n%s\ntime %d\n", c.origin, c.size, base64.StdEncoding.EncodeToString(c.root[:]), c.time.Unix())
}

// parseCheckpoint reads the text that String writes; lines after the fourth are extensions and are ignored.
func parseCheckpoint(text string) (checkpoint, error) {
	lines := strings.SplitN(text, "\n", 5)
	if len(lines) < 5 || lines[0] == "" {
		return checkpoint{}, errors.New("parsing checkpoint: fewer than four lines")
	}
	c := checkpoint{origin: lines[0]}
	var err error
	if c.size, err = parseDecimal(lines[1]); err != nil {
		return checkpoint{}, fmt.Errorf("parsing checkpoint: size: %w", err)
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize || strings.ContainsAny(lines[2], "\r") {
		return checkpoint{}, fmt.Errorf("parsing checkpoint: root %q is not a SHA-256 in base64", lines[2])
	}
	c.root = tlog.Hash(root)
	seconds, ok := strings.CutPrefix(lines[3], "time ")
	if !ok {
		return checkpoint{}, fmt.Errorf("parsing checkpoint: line %q; want time", lines[3])
	}
	unix, err := parseDecimal(seconds)
	if err != nil {
		return checkpoint{}, fmt.Errorf("parsing checkpoint: time: %w", err)
	}
	c.time = time.Unix(unix, 0)
	return c, nil
}

// parseDecimal reads a number in its one spelling.
func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%q is not a plain decimal number", s)
	}
	return n, nil
}

// sign returns the checkpoint as a signed note.
func (c checkpoint) sign(signer note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: c.String()}, signer)
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint of size %d: %w", c.size, err)
	}
	return signed, nil
}

// openCheckpoint verifies a signed checkpoint of the log with this origin. A signature by one of its keys, within
// that key's window, is required; others are ignored, and a note with more than 100 is refused by package note.
func openCheckpoint(signed []byte, origin string, ring keyring) (checkpoint, error) {
	n, err := note.Open(signed, ring)
	if err != nil {
		return checkpoint{}, fmt.Errorf("opening checkpoint: %w", err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return checkpoint{}, err
	}
	if c.origin != origin {
		return checkpoint{}, fmt.Errorf("opening checkpoint: it is of %q; this log is %q", c.origin, origin)
	}
	for _, sig := range n.Sigs {
		if ring.covers(sig, c.time) {
			return c, nil
		}
	}
	return checkpoint{}, fmt.Errorf("opening checkpoint: its time %s is outside the window of the key that signed it", c.time.UTC().Format(time.RFC3339))
}
