package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

const (
	keyLife  = 90 * 24 * time.Hour
	keySlack = time.Hour // a key holds from a little before it was made: clocks step back
	maxKeys  = 1000      // in a list
)

// A keyWindow is a public key and the time in which checkpoints may carry it: without one, today's stolen key could
// seal last year again.
type keyWindow struct {
	verifier note.Verifier
	text     string    // verifier key
	from, to time.Time // whole seconds
}

// A keyring holds the public keys of an epoch by name and hash.
type keyring []keyWindow

// Verifier implements note.Verifiers.
func (k keyring) Verifier(name string, hash uint32) (note.Verifier, error) {
	for _, w := range k {
		if w.verifier.Name() == name && w.verifier.KeyHash() == hash {
			return w.verifier, nil
		}
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

// covers reports whether the key that made a signature holds at t.
func (k keyring) covers(sig note.Signature, t time.Time) bool {
	for _, w := range k {
		if w.verifier.Name() == sig.Name && w.verifier.KeyHash() == sig.Hash {
			return !t.Before(w.from) && t.Before(w.to)
		}
	}
	return false
}

// String returns the list as it stands in a key file: one "key from to" a line, times in unix seconds.
func (k keyring) String() string {
	var b strings.Builder
	for _, w := range k {
		fmt.Fprintf(&b, "%s %d %d\n", w.text, w.from.Unix(), w.to.Unix())
	}
	return b.String()
}

// parseKeys reads a list as String writes it.
func parseKeys(text string) (keyring, error) {
	var ring keyring
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(fields) != 3 || len(ring) == maxKeys {
			return nil, fmt.Errorf("parsing key list: line %q is not a key and two times", line)
		}
		from, err1 := strconv.ParseInt(fields[1], 10, 64)
		to, err2 := strconv.ParseInt(fields[2], 10, 64)
		v, err3 := note.NewVerifier(fields[0])
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("parsing key list: line %q: %w", line, err)
		}
		ring = append(ring, keyWindow{verifier: v, text: fields[0], from: time.Unix(from, 0), to: time.Unix(to, 0)})
	}
	return ring, nil
}

// openKeys reads a signed list: one of the keys in it must have signed it. That keeps accidents out; a list that is to
// be believed against the machine's owner is given to Verify from elsewhere.
func openKeys(signed []byte) (keyring, error) {
	text, _, ok := strings.Cut(string(signed), "\n\n")
	if !ok {
		return nil, errors.New("opening key list: no signature")
	}
	ring, err := parseKeys(text + "\n")
	if err != nil {
		return nil, err
	}
	if _, err := note.Open(signed, ring); err != nil {
		return nil, fmt.Errorf("opening key list: %w", err)
	}
	return ring, nil
}

// keyFiles are where an epoch's keys lie.
type keyFiles struct{ list, private string }

func epochKeys(dir string, epoch int64) keyFiles {
	base := filepath.Join(dir, "keys", strconv.FormatInt(epoch, 10))
	return keyFiles{list: base + ".pub", private: base + ".key"}
}

// readKeys reads an epoch's public keys.
func readKeys(dir string, epoch int64) (keyring, error) {
	b, err := os.ReadFile(epochKeys(dir, epoch).list)
	if err != nil {
		return nil, fmt.Errorf("reading key list: %w", err)
	}
	return openKeys(b)
}

// A signingKey signs checkpoints of one epoch.
type signingKey struct {
	signer note.Signer
	ring   keyring
	until  time.Time
}

// loadKey reads an epoch's signing key and key list; fs.ErrNotExist if there is none yet.
func loadKey(dir string, epoch int64) (*signingKey, error) {
	secret, err := os.ReadFile(epochKeys(dir, epoch).private)
	if err != nil {
		return nil, fmt.Errorf("reading signing key: %w", err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(secret)))
	if err != nil {
		return nil, fmt.Errorf("reading signing key of epoch %d: %w", epoch, err)
	}
	ring, err := readKeys(dir, epoch)
	if err != nil {
		return nil, err
	}
	for _, w := range ring {
		if w.verifier.KeyHash() == signer.KeyHash() && w.verifier.Name() == signer.Name() {
			return &signingKey{signer: signer, ring: ring, until: w.to}, nil
		}
	}
	return nil, fmt.Errorf("reading signing key of epoch %d: it is not in the key list", epoch)
}

// newKey makes a key that follows old (nil for the first) and writes it. The list is signed by both, so that who
// trusts the old key can follow. The list is written first: a key that is listed and never used does no harm.
func newKey(d disk, dir string, epoch int64, origin string, old *signingKey, now time.Time) (*signingKey, error) {
	secret, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("making signing key: %w", err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, fmt.Errorf("making signing key: %w", err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		return nil, fmt.Errorf("making signing key: %w", err)
	}
	w := keyWindow{
		verifier: verifier, text: public,
		from: now.Add(-keySlack).Truncate(time.Second), to: now.Add(keyLife).Truncate(time.Second),
	}
	ring, signers := keyring{w}, []note.Signer{signer}
	if old != nil {
		ring, signers = append(old.ring[:len(old.ring):len(old.ring)], w), append(signers, old.signer)
	}
	list, err := note.Sign(&note.Note{Text: ring.String()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("signing key list: %w", err)
	}
	files := epochKeys(dir, epoch)
	if err := writeFile(d, files.list, list); err != nil {
		return nil, err
	}
	if err := writeFile(d, files.private, []byte(secret+"\n")); err != nil {
		return nil, err
	}
	return &signingKey{signer: signer, ring: ring, until: w.to}, nil
}

// fingerprintKey reads the key of Fingerprint, or makes it.
func fingerprintKey(d disk, dir string) ([]byte, error) {
	name := filepath.Join(dir, "keys", "fingerprint.key")
	key, err := os.ReadFile(name)
	if err == nil {
		if len(key) != 32 {
			return nil, fmt.Errorf("reading %s: %d bytes; want 32", name, len(key))
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading fingerprint key: %w", err)
	}
	key = make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making fingerprint key: %w", err)
	}
	return key, writeFile(d, name, key)
}
