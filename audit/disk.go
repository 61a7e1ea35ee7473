package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A disk is what the log needs to write. Everything that changes the folder goes through it, so that a test can make
// any of its operations fail.
type disk interface {
	create(name string) (file, error) // for writing; what is there already is kept
	rename(from, to string) error
	remove(name string) error
	syncDir(name string) error
	free(dir string) (int64, error) // bytes left on the volume
}

// A file is what the log needs of a file it writes.
type file interface {
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Close() error
	allocate(size int64) error // grows to size with blocks behind it
	datasync() error
}

// osDisk is the operating system's disk.
type osDisk struct{}

func (osDisk) create(name string) (file, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) remove(name string) error     { return os.Remove(name) }

func (osDisk) syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (osDisk) free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

type osFile struct{ *os.File }

func (f osFile) allocate(size int64) error {
	err := retry(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	return err
}

func (f osFile) datasync() error {
	return retry(func() error { return unix.Fdatasync(int(f.Fd())) })
}

// retry repeats a system call that a signal interrupted before it did anything.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// outOfSpace reports whether an error means that room is missing, now or for this user: it may come back.
func outOfSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// writeFile makes name hold data, durably and all or nothing.
func writeFile(d disk, name string, data []byte) (err error) {
	tmp := name + ".tmp"
	f, err := d.create(tmp)
	if err != nil {
		return fmt.Errorf("creating %s: %w", tmp, err)
	}
	defer func() {
		if err != nil {
			_ = d.remove(tmp) // it holds room that a full disk needs; the error that led here is the one to report
		}
	}()
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(data, 0)
	}
	if err == nil {
		err = f.datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.rename(tmp, name)
	}
	if err == nil {
		err = d.syncDir(filepath.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// makeDir makes a folder below one that exists, durably.
func makeDir(d disk, name string) error {
	if err := os.Mkdir(name, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return fmt.Errorf("making folder: %w", err)
	}
	if err := d.syncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("syncing folder of %s: %w", name, err)
	}
	return nil
}
