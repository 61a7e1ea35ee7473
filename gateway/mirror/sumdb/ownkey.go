package sumdb

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// An identity is the name of our own database and the keys that sign its heads.
type identity struct {
	name      string
	vkey      string // NAME+HASH+KEY of the first
	signers   []note.Signer
	verifiers note.Verifiers
}

// CheckName tells whether our own database may have a name: one that the go
// command takes (host[/path]) and that is a path in every client's cache.
func CheckName(name string) error {
	host, _, _ := strings.Cut(name, "/")
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-./_", c) >= 0) {
			return fmt.Errorf("name %q has a character that is no lower-case letter, digit, dot, dash, underscore or slash", name)
		}
	}
	if !fs.ValidPath(name) || name == "." || strings.HasPrefix(host, "-") {
		return fmt.Errorf("name %q is not of the form HOST[/PATH]", name)
	}
	return nil
}

// newName is the name of a database made on this host. It ends in chance: a
// log that is lost and begun again is another log, and clients that remember
// the first one must not take the second for it.
func newName(host string) string {
	host = strings.NewReplacer(":", "-", "[", "", "]", "").Replace(strings.ToLower(host))
	name := host + "/sumdb-" + strings.ToLower(rand.Text()[:8])
	if CheckName(name) != nil {
		name = "localhost" + strings.TrimPrefix(name, host)
	}
	return name
}

// loadKeys reads the signer keys, or makes the first where none may be lost.
func loadKeys(o OwnOptions, begun bool) (*identity, error) {
	var old []keyPair
	for _, file := range o.OldKeyFiles {
		k, err := readKey(file)
		if err != nil {
			return nil, err
		}
		old = append(old, k)
	}
	if len(old) > 0 {
		if o.Name != "" && o.Name != old[0].signer.Name() {
			return nil, misnamed(o, o.OldKeyFiles[0], old[0])
		}
		o.Name = old[0].signer.Name()
	}
	first, err := readKey(o.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if begun && len(old) == 0 {
			return nil, fmt.Errorf("%w; the log was begun with it: restore the file", err)
		}
		if err := makeKey(o); err != nil {
			return nil, fmt.Errorf("making the key of our checksum database: %w", err)
		}
		first, err = readKey(o.KeyFile)
	}
	if err != nil {
		return nil, err
	}
	if o.Name != "" && o.Name != first.signer.Name() {
		return nil, misnamed(o, o.KeyFile, first)
	}
	id := &identity{name: first.signer.Name(), vkey: first.vkey}
	var verifiers []note.Verifier
	for _, k := range append([]keyPair{first}, old...) {
		id.signers, verifiers = append(id.signers, k.signer), append(verifiers, k.verifier)
	}
	id.verifiers = note.VerifierList(verifiers...)
	return id, nil
}

func misnamed(o OwnOptions, file string, k keyPair) error {
	return fmt.Errorf("our checksum database is called %s in %s and %s elsewhere; a log keeps its name, whatever its keys", k.signer.Name(), file, o.Name)
}

func readKey(file string) (keyPair, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return keyPair{}, fmt.Errorf("reading the key of our checksum database: %w", err)
	}
	k, err := parseSigner(strings.TrimSpace(string(text)))
	if err != nil {
		return keyPair{}, fmt.Errorf("reading the key of our checksum database: %s: %w", file, err)
	}
	return k, nil
}

// makeKey writes a new signer key, 0600, and on disk before anything is signed with it.
func makeKey(o OwnOptions) error {
	name := o.Name
	if name == "" {
		name = newName(o.Host)
	}
	if err := CheckName(name); err != nil {
		return err
	}
	skey, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.KeyFile), 0o700); err != nil {
		return err
	}
	// Of two gateways that start at once over one file, one makes the key and the other takes it.
	if err := putFile(o.KeyFile, []byte(skey+"\n"), os.Link); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// A keyPair signs and verifies.
type keyPair struct {
	signer   note.Signer
	verifier note.Verifier
	vkey     string
}

// parseSigner reads "PRIVATE+KEY+NAME+HASH+KEY" and works out the public half.
func parseSigner(skey string) (keyPair, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return keyPair{}, errors.New("it is no signer key") // the library's error may show it
	}
	fields := strings.SplitN(skey, "+", 5) // base64 may hold a plus itself
	seed, err := base64.StdEncoding.DecodeString(fields[len(fields)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return keyPair{}, errors.New("it is no Ed25519 signer key")
	}
	public, ok := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return keyPair{}, errors.New("it is no Ed25519 signer key")
	}
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return keyPair{}, err
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{signer, verifier, vkey}, nil
}

// replaceFile puts b under name, 0600 and durable: a reader sees the old bytes or the new.
func replaceFile(name string, b []byte) error { return putFile(name, b, os.Rename) }

// putFile writes a whole file beside name and gives it that name, durably: with os.Link only where there is none yet.
func putFile(name string, b []byte, put func(from, to string) error) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, filepath.Base(name)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := put(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
