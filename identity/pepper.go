package identity

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// A digest is the form in which a token's text is kept.
type digest [sha256.Size]byte

// peppers are the keys of these digests. Whoever steals the database without them
// cannot even test a guess. New tokens use the current one, and so does
// an older token from its next use on.
type peppers struct {
	byVersion map[int]*pepper
	current   *pepper
}

type pepper struct {
	version int
	pool    sync.Pool   // of *macer
	seal    cipher.AEAD // for secrets of others that have to be used again
}

// A macer holds what one digest needs, so that making it allocates nothing.
type macer struct {
	mac  hash.Hash
	text [idLen + secretLen]byte
	sum  digest
}

func newPepper(version int, key []byte) *pepper {
	p := &pepper{version: version}
	p.pool.New = func() any { return &macer{mac: hmac.New(sha256.New, key)} }
	p.seal = newSeal(key)
	return p
}

// digest is the keyed digest of a token's id and secret. The id is part of it, so
// a stored digest is of no use under another one. Together they are 55 bytes,
// which is all that one block of SHA-256 holds.
func (p *pepper) digest(t tokenText) digest {
	m := p.pool.Get().(*macer)
	defer p.pool.Put(m)
	copy(m.text[:], t.id[:])
	copy(m.text[idLen:], t.secret[:])
	m.mac.Reset()
	m.mac.Write(m.text[:])
	m.mac.Sum(m.sum[:0])
	clear(m.text[:])
	return m.sum
}

// loadPeppers reads the configured file, or the one in the folder of keys, which
// it makes when there is none.
func loadPeppers(file, folder string) (*peppers, error) {
	if file == "" {
		if folder == "" {
			return nil, errors.New("loading pepper: neither a file nor a folder of keys is given")
		}
		file = filepath.Join(folder, "pepper.txt")
		if err := makePepper(file); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("making pepper: %w", err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("loading pepper: %w", err)
	}
	p, err := parsePeppers(string(data))
	if err != nil {
		return nil, fmt.Errorf("loading pepper %s: %w", file, err)
	}
	return p, nil
}

func parsePeppers(text string) (*peppers, error) {
	p := &peppers{byVersion: map[int]*pepper{}}
	for n, line := range strings.Split(strings.TrimSpace(text), "\n") {
		version, key, ok := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.Atoi(version)
		raw, err64 := base64.StdEncoding.DecodeString(key)
		if !ok || err != nil || err64 != nil || len(raw) < 32 || v < 1 {
			return nil, fmt.Errorf("line %d: want VERSION BASE64, a number from 1 and at least 32 bytes", n+1)
		}
		if _, ok := p.byVersion[v]; ok {
			return nil, fmt.Errorf("line %d: version %d is there twice", n+1, v)
		}
		p.current = newPepper(v, raw)
		p.byVersion[v] = p.current
	}
	return p, nil
}

// makePepper writes a first pepper. A crash must leave a whole file or none, or
// the next start would refuse it.
func makePepper(file string) error {
	if _, err := os.Stat(file); err == nil {
		return fs.ErrExist
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails: the program ends instead
	f, err := os.CreateTemp(filepath.Dir(file), ".pepper-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintf(f, "1 %s\n", base64.StdEncoding.EncodeToString(key))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), file) // unlike a rename it never replaces another one
}
