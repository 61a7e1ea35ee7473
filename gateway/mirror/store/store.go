// Package store keeps module files on disk for ever, in the layout of
// GOMODCACHE/cache/download, so that a root can be read as a file:// GOPROXY.
// It knows names and bytes, not modules or checksums: callers verify a Draft
// before they publish it. Its one invariant: a name that can be seen is whole,
// on disk, and never gets other bytes.
package store

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// temp holds drafts; a module path cannot begin with a dot.
const temp = ".tmp"

// ConflictError says that a name is there already with other bytes. It is an
// incident: the stored bytes stay.
type ConflictError struct {
	// Name is the file's name in the store.
	Name string
	// Stored and Offered are the SHA-256 of both contents, in hex.
	Stored, Offered string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s is stored with other bytes: SHA-256 %s, offered %s", e.Name, e.Stored, e.Offered)
}

// Store is one root folder. It is safe for many callers in one process; a
// second process may read it.
type Store struct {
	dir   string
	root  *os.Root
	bytes atomic.Int64
	step  func(string) // tests stop the process between write steps
}

// Open opens or makes the root at dir and removes drafts that an earlier
// process left behind.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making store %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening store %s: %w", dir, err)
	}
	s := &Store{dir: dir, root: root, step: func(string) {}}
	if err := errors.Join(root.RemoveAll(temp), root.Mkdir(temp, 0o700)); err != nil {
		return nil, errors.Join(fmt.Errorf("emptying %s of store %s: %w", temp, dir, err), root.Close())
	}
	return s, nil
}

// Close lets the root go; files that are open stay so.
func (s *Store) Close() error { return s.root.Close() }

// Bytes is how much Scan found and what was published since.
func (s *Store) Bytes() int64 { return s.bytes.Load() }

// Scan adds up the size of all stored files. It takes long on large stores and
// gives up when stop is closed.
func (s *Store) Scan(stop <-chan struct{}) error {
	return fs.WalkDir(s.root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		select {
		case <-stop:
			return fs.SkipAll
		default:
		}
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil { // else it went away meanwhile
			s.bytes.Add(info.Size())
		}
		return nil
	})
}

// Open opens a stored file; a missing one is fs.ErrNotExist.
func (s *Store) Open(name string) (*os.File, error) { return s.root.Open(filepath.FromSlash(name)) }

// Read gives a small stored file of at most maxBytes.
func (s *Store) Read(name string, maxBytes int64) ([]byte, error) {
	f, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err == nil && int64(len(b)) > maxBytes {
		err = fmt.Errorf("reading %s: more than %d bytes", name, maxBytes)
	}
	return b, err
}

// Stat describes a stored file; a missing one is fs.ErrNotExist.
func (s *Store) Stat(name string) (fs.FileInfo, error) {
	return s.root.Stat(filepath.FromSlash(name))
}

// Names lists a folder; a missing one is empty.
func (s *Store) Names(dir string) ([]string, error) {
	f, err := s.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// put writes b into a draft and settles it under name.
func (s *Store) put(name string, b []byte, settle func(*Draft, string) error) error {
	d, err := s.Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(b); err != nil {
		return err
	}
	return settle(d, name)
}

// Publish stores b under name if nothing is there; the same bytes again are
// fine, others are a *ConflictError.
func (s *Store) Publish(name string, b []byte) error { return s.put(name, b, (*Draft).Publish) }

// Replace stores b under name whatever is there: for what changes, such as the
// last known list of versions. A reader sees the old bytes or the new.
func (s *Store) Replace(name string, b []byte) error { return s.put(name, b, (*Draft).Replace) }

// Keep stores b under name like Replace, but does not wait for the disk: for
// what can be fetched or computed again. After a power cut it may be cut or
// gone, so its reader must check it.
func (s *Store) Keep(name string, b []byte) error {
	d, err := s.Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(b); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	if err := s.root.MkdirAll(filepath.FromSlash(path.Dir(name)), 0o755); err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	if err := s.root.Rename(filepath.FromSlash(d.name), filepath.FromSlash(name)); err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	d.done = true
	return nil
}

func checkName(name string) error {
	if !fs.ValidPath(name) || strings.HasPrefix(name, temp) {
		return fmt.Errorf("name %q: %w", name, fs.ErrInvalid)
	}
	return nil
}

// Draft starts a new file that nobody sees until it is published.
func (s *Store) Draft() (*Draft, error) {
	name := path.Join(temp, rand.Text())
	f, err := s.root.OpenFile(filepath.FromSlash(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("making a draft: %w", err)
	}
	s.step("created")
	return &Draft{s: s, f: f, name: name, sum: sha256.New()}, nil
}

// makeDirs makes the folders above name and syncs each parent, so that a
// published file cannot lose its folder to a power cut.
func (s *Store) makeDirs(dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := s.Stat(dir); err == nil {
		return nil
	}
	if err := s.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := s.root.Mkdir(filepath.FromSlash(dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.syncDir(path.Dir(dir))
}

func (s *Store) syncDir(dir string) error {
	f, err := s.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Draft is a file under way. Write streams into it; its SHA-256 is computed on
// the way.
type Draft struct {
	s    *Store
	f    *os.File
	name string
	sum  hash.Hash
	size int64
	done bool
}

// Write appends to the draft.
func (d *Draft) Write(b []byte) (int, error) {
	n, err := d.f.Write(b)
	d.sum.Write(b[:n])
	d.size += int64(n)
	d.s.step("written")
	return n, err
}

// Reset drops what was written, for another try.
func (d *Draft) Reset() error {
	d.sum.Reset()
	d.size = 0
	_, err := d.f.Seek(0, io.SeekStart)
	return errors.Join(d.f.Truncate(0), err)
}

// Size is how many bytes the draft has.
func (d *Draft) Size() int64 { return d.size }

// SHA256 is the hash of the bytes so far, in hex.
func (d *Draft) SHA256() string { return hex.EncodeToString(d.sum.Sum(nil)) }

// File is the draft's path in the file system, for verifiers that want one.
func (d *Draft) File() string { return filepath.Join(d.s.dir, filepath.FromSlash(d.name)) }

// Publish makes the draft visible under name unless something is there: the
// same bytes are fine, others are a *ConflictError and stay as they are.
func (d *Draft) Publish(name string) error {
	if err := d.settle(name); err != nil {
		return fmt.Errorf("publishing %s: %w", name, err)
	}
	// A hard link is the one step that fails if the name is taken.
	err := d.s.root.Link(filepath.FromSlash(d.name), filepath.FromSlash(name))
	d.s.step("linked")
	if errors.Is(err, fs.ErrExist) {
		return d.compare(name)
	}
	if err == nil {
		err = d.s.syncDir(path.Dir(name))
		d.s.bytes.Add(d.size)
		d.s.step("synced folder")
	}
	if err != nil {
		return fmt.Errorf("publishing %s: %w", name, err)
	}
	return nil
}

// Replace makes the draft visible under name in place of what is there.
func (d *Draft) Replace(name string) error {
	err := d.settle(name)
	if err == nil {
		err = d.s.root.Rename(filepath.FromSlash(d.name), filepath.FromSlash(name))
		d.s.step("renamed")
	}
	if err == nil {
		d.done = true
		err = d.s.syncDir(path.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	return nil
}

// settle brings the bytes to disk and makes the folder of name.
func (d *Draft) settle(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.f.Sync(); err != nil {
		return err
	}
	d.s.step("synced")
	if err := d.s.makeDirs(path.Dir(name)); err != nil {
		return err
	}
	d.s.step("made folders")
	return nil
}

// compare tells a second copy from other bytes.
func (d *Draft) compare(name string) error {
	stored, err := d.s.Sum(name)
	if err != nil {
		return err
	}
	if offered := d.SHA256(); stored != offered {
		return &ConflictError{Name: name, Stored: stored, Offered: offered}
	}
	return nil
}

// Sum reads a stored file again and gives its SHA-256, in hex.
func (s *Store) Sum(name string) (string, error) {
	f, err := s.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hashing %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Discard removes the draft's temporary name; after Publish the published one
// stays. Calling it twice is fine.
func (d *Draft) Discard() {
	// What cannot be removed now is removed at the next start.
	_ = d.f.Close()
	if !d.done {
		_ = d.s.root.Remove(filepath.FromSlash(d.name))
		d.done = true
	}
}

// SetTime sets a stored file's modification time.
func (s *Store) SetTime(name string, t time.Time) error {
	return s.root.Chtimes(filepath.FromSlash(name), t, t)
}
