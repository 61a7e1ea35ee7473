package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newDestination opens what a sink delivers to. It reaches for no network yet.
func newDestination(c Config, o Options) (destination, error) {
	switch c.Type {
	case typeFile:
		return openFile(c)
	case typeStdout:
		return &stream{w: o.Stdout}, nil
	case typeSyslog:
		return newSyslog(c, o.Node), nil
	case typeSplunk:
		return newSplunk(c, o.Node), nil
	case typeElastic:
		return newElastic(c), nil
	case typeOTLP:
		return newOTLP(c, o), nil
	case typeObjects:
		return newDrop(c, o)
	}
	return nil, fmt.Errorf("type %q is not known", c.Type)
}

// lines joins bodies, one a line. No schema writes a line feed within a body.
func lines(events []Event) []byte {
	var b bytes.Buffer
	for _, e := range events {
		b.Write(e.Body)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// A stream writes lines to a writer, usually standard output.
type stream struct {
	acknowledged
	w io.Writer
}

func (s *stream) inFlight() int { return 1 }
func (s *stream) close() error  { return nil }

func (s *stream) deliver(_ context.Context, events []Event) (answer, error) {
	if _, err := s.w.Write(lines(events)); err != nil {
		return answer{}, fmt.Errorf("writing events: %w", err)
	}
	return answer{}, nil
}

// A file writes lines to a file that is renamed when it is full. Events that it took are on disk.
type file struct {
	acknowledged
	path  string
	limit int64
	keep  int
	f     *os.File
	size  int64
}

func openFile(c Config) (*file, error) {
	f := &file{path: c.Path, limit: c.RotateBytes, keep: c.Keep}
	return f, f.open()
}

func (f *file) inFlight() int { return 1 }

func (f *file) close() error {
	if f.f == nil {
		return nil
	}
	return f.f.Close()
}

// open opens the file, and makes it durable where it is new.
func (f *file) open() (err error) {
	if f.f, err = os.OpenFile(f.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("opening sink's file: %w", err)
	}
	if f.size, err = -1, syncFolder(filepath.Dir(f.path)); err != nil {
		err = errors.Join(fmt.Errorf("opening sink's file: %w", err), f.f.Close())
		f.f = nil
	}
	return err
}

// wholeLines returns where the last whole line of a file ends.
func wholeLines(r io.ReaderAt, size int64) (int64, error) {
	const step = 64 << 10
	buf := make([]byte, step)
	for end := size; end > 0; {
		start := max(end-step, 0)
		if _, err := r.ReadAt(buf[:end-start], start); err != nil {
			return 0, fmt.Errorf("reading its end: %w", err)
		}
		if i := bytes.LastIndexByte(buf[:end-start], '\n'); i >= 0 {
			return start + int64(i) + 1, nil
		}
		end = start
	}
	return 0, nil
}

func (f *file) deliver(_ context.Context, events []Event) (answer, error) {
	err := f.own()
	if err == nil && f.size >= f.limit {
		if err = f.rotate(); err == nil {
			err = f.own()
		}
	}
	if err != nil {
		return answer{}, err
	}
	b := lines(events)
	if _, err = f.f.WriteAt(b, f.size); err == nil {
		err = f.f.Sync()
	}
	if err == nil {
		err = flock(f.f, unix.LOCK_UN)
	}
	if err != nil { // opened again, cut to its last whole line: what was written of this batch may be there twice then
		err = errors.Join(fmt.Errorf("writing %s: %w", f.path, err), f.f.Close())
		f.f = nil
		return answer{}, err
	}
	f.size += int64(len(b))
	return answer{}, nil
}

// own opens the file, if need be, and locks it: while the gateway writes to it, a person may send records to it again.
func (f *file) own() error {
	for {
		if f.f == nil {
			if err := f.open(); err != nil {
				return err
			}
		}
		ours, err := f.locked()
		if ours && err == nil {
			return nil
		}
		err = errors.Join(err, f.f.Close())
		if f.f = nil; err != nil {
			return fmt.Errorf("locking %s: %w", f.path, err)
		}
	}
}

// locked locks the file and finds its end. ours is false if it was renamed meanwhile. What a crash left of a line is cut
// off: its batch was not taken, and comes again.
func (f *file) locked() (ours bool, err error) {
	if err := flock(f.f, unix.LOCK_EX); err != nil {
		return false, err
	}
	info, err := f.f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, now) {
		return false, nil
	}
	if err != nil || info.Size() == f.size {
		return true, err
	}
	if f.size, err = wholeLines(f.f, info.Size()); err == nil && f.size < info.Size() {
		err = f.f.Truncate(f.size)
	}
	return true, err
}

// rotate renames PATH to PATH.1, PATH.1 to PATH.2 and so on; the oldest goes.
func (f *file) rotate() error {
	for i := f.keep - 1; i >= 0; i-- {
		from := fmt.Sprintf("%s.%d", f.path, i)
		if i == 0 {
			from = f.path
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", f.path, i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotating: %w", err)
		}
	}
	return nil // own opens the next one
}
