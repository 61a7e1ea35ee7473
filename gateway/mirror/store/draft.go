package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// scratch is this process's folder of drafts in a folder of many processes'.
// It is locked, so that another process removes only what a dead one left.
type scratch struct {
	dir  string // of this process
	name string // the last element of dir
	root *os.Root
	lock *os.File
}

// openScratch makes a folder of drafts below parent, without what processes
// that are gone have left there.
func openScratch(parent string) (*scratch, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("making %s: %w", parent, err)
	}
	// One opens at a time: a folder that is made but not yet locked looks abandoned.
	turn, err := lockDir(parent, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer turn.Close()
	if err := sweep(parent); err != nil {
		return nil, err
	}
	s := &scratch{name: rand.Text()}
	s.dir = filepath.Join(parent, s.name)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a folder of drafts: %w", err)
	}
	if s.lock, err = lockDir(s.dir, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, err
	}
	if s.root, err = os.OpenRoot(s.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("opening a folder of drafts: %w", err), s.lock.Close())
	}
	return s, nil
}

func sweep(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("reading %s: %w", parent, err)
	}
	for _, e := range entries {
		left := filepath.Join(parent, e.Name())
		f, err := lockDir(left, syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // its process lives
		}
		if err == nil {
			err = errors.Join(os.RemoveAll(left), f.Close())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing drafts that were left: %w", err)
		}
	}
	return nil
}

// lockDir takes a lock that ends with the file or the process.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), f.Close())
	}
	return f, nil
}

func (s *scratch) close() error {
	return errors.Join(s.root.Close(), os.RemoveAll(s.dir), s.lock.Close())
}

// Draft is a local file under way that nobody sees until it is published. Write
// streams into it; its SHA-256 is computed on the way.
type Draft struct {
	s    *Store
	f    *os.File
	name string
	sum  hash.Hash
	size int64
	done bool
}

// Draft starts a new file.
func (s *Store) Draft() (*Draft, error) {
	name := rand.Text()
	f, err := s.scratch.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("making a draft: %w", err)
	}
	s.step("created")
	return &Draft{s: s, f: f, name: name, sum: sha256.New()}, nil
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
func (d *Draft) File() string { return filepath.Join(d.s.scratch.dir, d.name) }

// Publish makes the draft visible under name unless something is there: the
// same bytes are fine, others are a *ConflictError and stay as they are.
func (d *Draft) Publish(ctx context.Context, name string) error {
	err := d.put(ctx, name, absent)
	if errors.Is(err, fs.ErrExist) {
		return d.compare(ctx, name)
	}
	if err == nil {
		d.s.bytes.Add(d.size)
	}
	return err
}

func (d *Draft) put(ctx context.Context, name string, how mode) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("storing %w", err)
	}
	if err := d.s.backend.put(ctx, d, name, how); err != nil {
		return fmt.Errorf("storing %s: %w", name, err)
	}
	return nil
}

// compare tells a second copy from other bytes.
func (d *Draft) compare(ctx context.Context, name string) error {
	info, err := d.s.Stat(ctx, name)
	stored := info.SHA256
	if err == nil && stored == "" {
		stored, err = d.s.Sum(ctx, name)
	}
	if err != nil {
		return err
	}
	if offered := d.SHA256(); stored != offered {
		return &ConflictError{Name: name, Stored: stored, Offered: offered}
	}
	return nil
}

// Take gives the draft's open file without its name: closing it leaves nothing
// behind, whatever becomes of the process. The draft is done.
func (d *Draft) Take() (*os.File, error) {
	if err := d.s.scratch.root.Remove(d.name); err != nil {
		return nil, fmt.Errorf("taking a draft: %w", err)
	}
	f := d.f
	d.done, d.f = true, nil
	return f, nil
}

// Discard removes the draft; after Publish the published file stays. Calling it
// twice is fine.
func (d *Draft) Discard() {
	// What cannot be removed now is removed when the store is opened again.
	_ = d.f.Close() // of a nil file, after Take, an error as good as any
	if !d.done {
		_ = d.s.scratch.root.Remove(d.name)
		d.done = true
	}
}
