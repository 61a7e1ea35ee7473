// Package store keeps module files for ever, under names with slashes, in the
// layout of GOMODCACHE/cache/download: in a folder, which can so be read as a
// file:// GOPROXY, or in a bucket of S3, GCS or Azure. It knows names and bytes, not modules or checksums:
// callers verify a Draft before they publish it. Its one invariant: a name that
// can be seen is whole, durable, and once published never gets other bytes.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"
)

// ErrChanged means that Swap found other bytes than its caller knew.
var ErrChanged = errors.New("stored bytes have changed")

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

// File is an open stored file. Closing it lets it go.
type File interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// Info describes a stored file.
type Info struct {
	// Name is the whole name in the store.
	Name string
	// Size is in bytes.
	Size int64
	// ModTime is when the bytes came under the name.
	ModTime time.Time
	// SHA256 is the hash of the bytes as they were stored, in hex; "" in a
	// folder, and where the file was not described one by one.
	SHA256 string
}

// Options are what Open takes beside the location.
type Options struct {
	// Scratch is a local folder for drafts. A folder keeps them below itself;
	// a bucket needs it.
	Scratch string
	// Tested leaves the self-test of a bucket out: it is one in which another
	// store has just been opened.
	Tested bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Step is called after each step of a write, for tests that end the process there. Nil: nothing is called.
	Step func(step string)
}

// A backend is where files are: a folder or a bucket. Names were checked; a missing file is
// fs.ErrNotExist, and trouble never is.
type backend interface {
	open(ctx context.Context, name string) (File, error)
	stat(ctx context.Context, name string) (Info, error)
	// list calls f for each file below dir, or with shallow for each file and
	// folder right in it; a folder has no size. A missing dir is empty.
	list(ctx context.Context, dir string, shallow bool, f func(Info) error) error
	// put makes the draft visible under name; with absent, fs.ErrExist if something is there.
	put(ctx context.Context, d *Draft, name string, how mode) error
	// swap is put with overwrite if the file holds old, nil for none; else ErrChanged.
	swap(ctx context.Context, d *Draft, name string, old []byte) error
	remove(ctx context.Context, name string) error
	close() error
}

// mode is what put promises.
type mode int

const (
	absent    mode = iota // durable, and only if nothing is there
	overwrite             // durable
	volatile              // not waiting for the disk
)

// Store is one root. It is safe for many callers and, other than Swap in a
// folder, for many processes.
type Store struct {
	backend backend
	scratch *scratch
	bytes   atomic.Int64
	step    func(string)
}

// Open opens the store at location: a folder, which is made, or a bucket,
// which must be there: s3://BUCKET, gs://BUCKET or azblob://CONTAINER, with
// ?prefix=FOLDER and the settings of gocloud.dev/blob. A bucket that does not
// keep the promises of this package is ErrUnfit.
func Open(ctx context.Context, location string, o Options) (*Store, error) {
	s := &Store{step: o.Step}
	if s.step == nil {
		s.step = func(string) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := CheckLocation(location); err != nil {
		return nil, err
	}
	if !IsBucket(location) {
		return s, s.openDisk(location)
	}
	return s, s.openBucket(ctx, location, o)
}

// Close lets the root go; files that are open stay so.
func (s *Store) Close() error { return errors.Join(s.scratch.close(), s.backend.close()) }

// Bytes is how much Scan found, with what was published and removed since.
func (s *Store) Bytes() int64 { return s.bytes.Load() }

// Scan adds up the size of all stored files. It takes long on large stores.
func (s *Store) Scan(ctx context.Context) error {
	return s.Walk(ctx, ".", func(i Info) error {
		s.bytes.Add(i.Size)
		return nil
	})
}

// Open opens a stored file; a missing one is fs.ErrNotExist. The file ends with ctx.
func (s *Store) Open(ctx context.Context, name string) (File, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("opening %w", err)
	}
	return s.backend.open(ctx, name)
}

// Read gives a small stored file of at most maxBytes.
func (s *Store) Read(ctx context.Context, name string, maxBytes int64) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("reading %w", err)
	}
	return s.read(ctx, name, maxBytes)
}

func (s *Store) read(ctx context.Context, name string, maxBytes int64) ([]byte, error) {
	f, err := s.backend.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if size > maxBytes {
		return nil, fmt.Errorf("reading %s: more than %d bytes", name, maxBytes)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// Stat describes a stored file; a missing one is fs.ErrNotExist.
func (s *Store) Stat(ctx context.Context, name string) (Info, error) {
	if err := checkName(name); err != nil {
		return Info{}, fmt.Errorf("describing %w", err)
	}
	return s.backend.stat(ctx, name)
}

// Names lists the files and folders right in a folder, in no order; of a
// missing one there are none.
func (s *Store) Names(ctx context.Context, dir string) ([]string, error) {
	if !fs.ValidPath(dir) {
		return nil, fmt.Errorf("listing %q: %w", dir, fs.ErrInvalid)
	}
	var names []string
	err := s.backend.list(ctx, dir, true, func(i Info) error {
		names = append(names, i.Name[strings.LastIndexByte(i.Name, '/')+1:])
		return nil
	})
	return names, err
}

// Walk calls f for each file below dir ("." is all), in the order of names as
// far as the folders go, until f gives an error, which Walk then gives. What is
// stored or removed meanwhile may be seen or not; f may remove files.
func (s *Store) Walk(ctx context.Context, dir string, f func(Info) error) error {
	if !fs.ValidPath(dir) {
		return fmt.Errorf("walking %q: %w", dir, fs.ErrInvalid)
	}
	return s.backend.list(ctx, dir, false, f)
}

// Publish stores b under name if nothing is there; the same bytes again are
// fine, others are a *ConflictError.
func (s *Store) Publish(ctx context.Context, name string, b []byte) error {
	return s.put(b, func(d *Draft) error { return d.Publish(ctx, name) })
}

// Replace stores b under name whatever is there: for what changes, such as the
// last known list of versions. A reader sees the old bytes or the new.
func (s *Store) Replace(ctx context.Context, name string, b []byte) error {
	return s.put(b, func(d *Draft) error { return d.put(ctx, name, overwrite) })
}

// Keep stores b under name like Replace, but does not wait for the disk: for
// what can be fetched or computed again. After a power cut it may be cut or
// gone, so its reader must check it.
func (s *Store) Keep(ctx context.Context, name string, b []byte) error {
	return s.put(b, func(d *Draft) error { return d.put(ctx, name, volatile) })
}

// Swap stores b under name like Replace if old is what is there, nil for
// nothing; else it is ErrChanged.
func (s *Store) Swap(ctx context.Context, name string, old, b []byte) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("swapping %w", err)
	}
	return s.put(b, func(d *Draft) error { return s.backend.swap(ctx, d, name, old) })
}

// put writes b into a draft and settles it.
func (s *Store) put(b []byte, settle func(*Draft) error) error {
	d, err := s.Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(b); err != nil {
		return err
	}
	return settle(d)
}

// Remove takes a file away; a missing one is fs.ErrNotExist.
func (s *Store) Remove(ctx context.Context, name string) error {
	info, err := s.Stat(ctx, name)
	if err != nil {
		return err
	}
	if err := s.backend.remove(ctx, name); err != nil {
		return err
	}
	s.bytes.Add(-info.Size)
	return nil
}

// Sum reads a stored file again and gives its SHA-256, in hex.
func (s *Store) Sum(ctx context.Context, name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("hashing %w", err)
	}
	return s.sum(ctx, name)
}

func (s *Store) sum(ctx context.Context, name string) (string, error) {
	f, err := s.backend.open(ctx, name)
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

// holds tells whether the file holds old, nil for none.
func (s *Store) holds(ctx context.Context, name string, old []byte) (bool, error) {
	f, err := s.backend.open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return old == nil, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(len(old))+1))
	return old != nil && bytes.Equal(b, old), err
}

func checkName(name string) error {
	if !fs.ValidPath(name) || name == "." || name == temp || strings.HasPrefix(name, temp+"/") {
		return fmt.Errorf("%q: %w", name, fs.ErrInvalid)
	}
	return nil
}
