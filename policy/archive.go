package policy

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	keepArchives = 5
	maxRecord    = 64 << 10
)

// Record is where a bundle came from and what it is. One is kept beside each archive, signed with the gateway's own key.
type Record struct {
	Source      string    `json:"source"`
	Ref         string    `json:"ref,omitempty"`    // of Git: the branch or tag
	Object      string    `json:"object,omitempty"` // of Git: the commit, or the tag object
	Commit      string    `json:"commit,omitempty"`
	Tree        string    `json:"tree,omitempty"`
	Signer      string    `json:"signer,omitempty"`   // fingerprint of the key that signed it
	Sequence    int       `json:"sequence,omitempty"` // of the manifest
	Revision    string    `json:"revision"`
	Digest      string    `json:"digest"` // SHA-256 of the archive
	ActivatedAt time.Time `json:"activated_at"`
}

// sealed is a record on disk: its exact bytes, and who signed them.
type sealed struct {
	Record    json.RawMessage `json:"record"`
	Key       string          `json:"key"`
	Signature []byte          `json:"signature"`
}

// openKey reads the key that signs archives, or makes it.
func openKey(file string) (ed25519.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(nil)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(file), 0o700)
		}
		if err == nil {
			err = writeDurably(file, []byte(base64.StdEncoding.EncodeToString(key.Seed())+"\n"))
		}
		if err != nil {
			return nil, fmt.Errorf("making the key of policy archives: %w", err)
		}
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key of policy archives: %w", err)
	}
	seed, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("reading the key of policy archives: %s holds no key; remove it, and the kept archives are made anew", file)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func keyID(key ed25519.PrivateKey) string {
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	return hex.EncodeToString(sum[:8])
}

func seal(key ed25519.PrivateKey, r Record) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing policy record: %w", err)
	}
	return json.Marshal(sealed{Record: text, Key: keyID(key), Signature: ed25519.Sign(key, text)})
}

// unseal reads a record that this gateway signed.
func unseal(key ed25519.PrivateKey, text []byte) (Record, error) {
	var s sealed
	var r Record
	if err := json.Unmarshal(text, &s); err != nil {
		return r, fmt.Errorf("reading policy record: %w", err)
	}
	if s.Key != keyID(key) {
		return r, fmt.Errorf("reading policy record: it is signed by key %q; want %s, this gateway's", s.Key, keyID(key))
	}
	if !ed25519.Verify(key.Public().(ed25519.PublicKey), s.Record, s.Signature) {
		return r, errors.New("reading policy record: its signature does not hold")
	}
	if err := json.Unmarshal(s.Record, &r); err != nil {
		return r, fmt.Errorf("reading policy record: %w", err)
	}
	return r, nil
}

// archivePrefix names the archives of this source: those of another folder or repository are not for it.
func (e *Engine) archivePrefix() string {
	where := e.cfg.Git.URL + " " + e.cfg.Git.Branch + " " + e.cfg.Git.Tag
	if e.cfg.Source == "folder" {
		where = e.cfg.Path
		if path, err := filepath.Abs(where); err == nil {
			where = path
		}
	}
	sum := sha256.Sum256([]byte(where))
	return e.cfg.Source + "-" + hex.EncodeToString(sum[:4]) + "-"
}

// archives are the names of this source's archives without their endings, newest first. One without a record is not
// one: the record is written last.
func (e *Engine) archives() ([]string, error) {
	entries, err := os.ReadDir(e.opts.State)
	if err != nil {
		return nil, fmt.Errorf("listing policy archives: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if name, ok := strings.CutSuffix(entry.Name(), ".json"); ok && strings.HasPrefix(name, e.archivePrefix()) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

// records are those of the kept archives that this gateway signed, newest first.
func (e *Engine) records() []Record {
	names, err := e.archives()
	if err != nil || e.key == nil {
		return nil
	}
	var all []Record
	for _, name := range names {
		if r, err := e.readRecord(name); err == nil {
			all = append(all, r)
		}
	}
	return all
}

func (e *Engine) readRecord(name string) (Record, error) {
	file := filepath.Join(e.opts.State, name+".json")
	if info, err := os.Stat(file); err != nil || info.Size() > maxRecord {
		return Record{}, fmt.Errorf("reading policy record %s: it is away or too long", name)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return Record{}, fmt.Errorf("reading policy record: %w", err)
	}
	r, err := unseal(e.key, text)
	if err == nil && !strings.HasSuffix(name, "-"+r.Digest) {
		err = fmt.Errorf("reading policy record %s: it is that of %s", name, r.Digest)
	}
	return r, err
}

// keep stores the archive of a good bundle and its record. That it cannot is logged: the bundle is active all the same.
func (e *Engine) keep(b *bundle, r Record) {
	if e.key == nil {
		return
	}
	name := fmt.Sprintf("%s%020d-%s", e.archivePrefix(), r.ActivatedAt.UnixNano(), b.digest)
	text, err := seal(e.key, r)
	if err == nil {
		err = writeDurably(filepath.Join(e.opts.State, name+".tar"), b.archive)
	}
	if err == nil {
		err = writeDurably(filepath.Join(e.opts.State, name+".json"), text)
	}
	if err == nil {
		err = e.thin()
	}
	if err != nil {
		e.opts.Logger.Error("policy archive not kept", slog.Any("err", err))
	}
}

// thin removes archives of this source beyond the newest five, and what a killed process left half-written.
func (e *Engine) thin() error {
	names, err := e.archives()
	if err != nil {
		return err
	}
	kept := names[:min(keepArchives, len(names))]
	entries, err := os.ReadDir(e.opts.State)
	if err != nil {
		return fmt.Errorf("listing policy archives: %w", err)
	}
	for _, entry := range entries {
		name, _, _ := strings.Cut(entry.Name(), ".")
		if !strings.HasPrefix(name, e.archivePrefix()) || slices.Contains(kept, name) {
			continue
		}
		if err := os.Remove(filepath.Join(e.opts.State, entry.Name())); err != nil {
			return fmt.Errorf("removing old policy archive: %w", err)
		}
	}
	return nil
}

// writeDurably makes a file appear whole or not at all, also after a power cut.
func writeDurably(file string, content []byte) error {
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	defer root.Close()
	name := filepath.Base(file)
	f, err := root.OpenFile(name+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	_, err = f.Write(content)
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(name+".tmp", name)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return syncDir(root)
}

func syncDir(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("syncing policy archives: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("syncing policy archives: %w", err)
	}
	return nil
}
