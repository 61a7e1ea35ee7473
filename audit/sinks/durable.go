package sinks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Delivered returns the place behind the last record that a sink has delivered; the zero Position if there is none. dir is
// the log's folder.
func Delivered(dir, name string) (Position, error) { return readCursor(cursorFile(dir, name)) }

func cursorFile(dir, name string) string { return filepath.Join(dir, "cursors", name+".json") }

// A cursor lies in one of two files of fixed size, each written long before it is needed: on a disk without a free byte the
// cursor still moves, or nothing could ever be deleted there. The new one is written over the spare file, and then the two
// exchange their names.
const cursorBytes = 4 << 10

func spareCursor(name string) string { return name + ".spare" }

// firstCursor is what becomes the cursor where there is none yet.
func firstCursor(name string) string { return name + ".first" }

// readCursor reads where a sink stands; the zero Position if it never delivered anything.
func readCursor(name string) (Position, error) {
	for {
		b, current, err := readIfCurrent(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return Position{}, nil
		case err != nil:
			return Position{}, fmt.Errorf("reading cursor: %w", err)
		case current:
			return parseCursor(b)
		}
	}
}

// readIfCurrent reads a cursor's file under a lock. It is current if it still has the name by then: what has become the
// spare file may hold a place that is not the sink's yet.
func readIfCurrent(name string) (b []byte, current bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_SH); err != nil {
		return nil, false, err
	}
	opened, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	named, err := os.Stat(name)
	if err != nil || !os.SameFile(opened, named) {
		return nil, false, err
	}
	b, err = io.ReadAll(f)
	return b, true, err
}

func parseCursor(b []byte) (Position, error) {
	var p Position
	if err := json.Unmarshal(b, &p); err != nil {
		return Position{}, fmt.Errorf("parsing cursor: %w", err)
	}
	if p.Origin == "" || p.Epoch < 0 || p.Next < 0 {
		return Position{}, fmt.Errorf("parsing cursor: %q is no place in a log", bytes.TrimSpace(b))
	}
	return p, nil
}

// writeCursor replaces a cursor: after a crash it is the old one or the new one.
func writeCursor(name string, p Position) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("writing cursor: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("making folder: %w", err)
	}
	spare := spareCursor(name)
	if !exists(name) && exists(firstCursor(name)) {
		spare = firstCursor(name)
	}
	if err := overwrite(spare, b); err != nil {
		return fmt.Errorf("writing cursor: %w", err)
	}
	if err := exchange(spare, name); err != nil {
		return fmt.Errorf("writing cursor: %w", err)
	}
	return syncFolder(filepath.Dir(name))
}

// prepareCursor makes the files that a cursor needs, so that none has to be made later.
func prepareCursor(name string, now Position) error {
	if now != (Position{}) {
		info, err := os.Stat(name)
		if err == nil && info.Size() < cursorBytes { // it was written before there were two, or copied
			err = writeCursor(name, now)
		}
		if err != nil {
			return fmt.Errorf("preparing cursor: %w", err)
		}
	} else if err := reserve(firstCursor(name)); err != nil {
		return err
	}
	return reserve(spareCursor(name))
}

// reserve makes a file of a cursor's size, if there is none.
func reserve(name string) error {
	if info, err := os.Stat(name); err == nil && info.Size() >= cursorBytes {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	if err == nil {
		err = overwrite(name, nil)
	}
	if err != nil {
		return fmt.Errorf("preparing cursor: %w", err)
	}
	return syncFolder(filepath.Dir(name))
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// overwrite writes b over a file, and blanks behind it to the file's end. What it takes on the disk is taken already where
// the file is of a cursor's size. Whoever reads the file meanwhile, as the cursor that it was, is waited for.
func overwrite(name string, b []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := flock(f, unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", name, err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	whole := bytes.Repeat([]byte{' '}, max(cursorBytes, int(info.Size()), len(b)+1))
	copy(whole, b)
	whole[len(whole)-1] = '\n'
	if _, err := f.Write(whole); err != nil {
		return err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Fdatasync(int(f.Fd()))
	}
	return err
}

// exchange gives two files each other's names, in one step. Where the file system cannot, or there is nothing at to, from is
// renamed; the next cursor then needs a new file.
func exchange(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	for _, lacking := range []error{unix.ENOENT, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP} {
		if errors.Is(err, lacking) {
			return os.Rename(from, to)
		}
	}
	return err
}

// flock locks a file, or a folder.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// replaceFile makes name hold b, durably and all or nothing.
func replaceFile(name string, b []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("making folder: %w", err)
	}
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("creating %s: %w", tmp, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(tmp) // the error that led here is the one to report
		return fmt.Errorf("writing %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return syncFolder(filepath.Dir(name))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing folder: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing folder %s: %w", dir, err)
	}
	return nil
}
