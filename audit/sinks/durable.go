package sinks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Delivered returns the place behind the last record that a sink has delivered; the zero Position if there is none. dir is
// the log's folder.
func Delivered(dir, name string) (Position, error) { return readCursor(cursorFile(dir, name)) }

func cursorFile(dir, name string) string { return filepath.Join(dir, "cursors", name+".json") }

// readCursor reads where a sink stands; the zero Position if it never delivered anything.
func readCursor(name string) (Position, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Position{}, nil
	}
	if err != nil {
		return Position{}, fmt.Errorf("reading cursor: %w", err)
	}
	return parseCursor(b)
}

func parseCursor(b []byte) (Position, error) {
	var p Position
	if err := json.Unmarshal(b, &p); err != nil {
		return Position{}, fmt.Errorf("parsing cursor: %w", err)
	}
	if p.Origin == "" || p.Epoch < 0 || p.Next < 0 {
		return Position{}, fmt.Errorf("parsing cursor: %q is no place in a log", b)
	}
	return p, nil
}

// writeCursor replaces a cursor: after a crash it is the old one or the new one.
func writeCursor(name string, p Position) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("writing cursor: %w", err)
	}
	return replaceFile(name, append(b, '\n'))
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
