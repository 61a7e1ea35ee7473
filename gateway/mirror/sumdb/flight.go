package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
)

// flight is the sumdb.ClientOps of one question: the database's memory is
// shared, the context and the errors are its own, since sumdb.Client flattens
// errors to text.
type flight struct {
	d   *Database
	ctx context.Context // the interface has no room for it

	mu     sync.Mutex // guards all below
	lookup []byte     // the record as the database sent it
	errs   []error    // of ReadRemote
}

func (d *Database) flight(ctx context.Context) (*flight, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	return &flight{d: d, ctx: ctx}, nil
}

// explain gives the client's error its class back.
func (f *flight) explain(m module.Version, err error) error {
	if serr := f.d.Err(); serr != nil {
		return serr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) == 0 {
		return fmt.Errorf("looking up %s in %s: %w: %v", m, f.d.name, ErrInvalid, err) //nolint:errorlint // the client's errors are text only
	}
	first := f.errs[0]
	if f.lookup == nil && errors.Is(first, fs.ErrNotExist) {
		return fmt.Errorf("%s in %s: %w", m, f.d.name, ErrNotListed)
	}
	return fmt.Errorf("looking up %s in %s: %w: %w", m, f.d.name, ErrUnreachable, trouble{first})
}

// trouble hides that a tile was "not found": for a caller that is no answer about a module.
type trouble struct{ error }

func (t trouble) Unwrap() error {
	if errors.Is(t.error, fs.ErrNotExist) {
		return nil
	}
	return t.error
}

func (f *flight) ReadRemote(path string) ([]byte, error) {
	limit := int64(maxTile)
	lookup := strings.HasPrefix(path, "/lookup/")
	if lookup {
		limit = maxLookup
	}
	b, err := f.d.fetch(f.ctx, path, limit)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
	} else if lookup {
		f.lookup = b
	}
	return b, err
}

func (f *flight) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(f.d.vkey), nil
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.d.head, nil // nil is the empty tree
}

func (f *flight) WriteConfig(_ string, old, head []byte) error { return f.d.swap(old, head) }

func (f *flight) ReadCache(file string) ([]byte, error) {
	return f.d.store.Read("sumdb/"+file, maxLookup)
}

func (f *flight) WriteCache(file string, data []byte) {
	// What is not kept is asked for again; other bytes than before would be
	// another record or tile at one place, which a client may not overlook.
	if err := f.d.store.Publish("sumdb/"+file, data); err != nil && !sameRecord(f.d, file, data) {
		f.d.log.LogAttrs(f.ctx, slog.LevelError, "checksum file not kept",
			slog.String("sumdb", f.d.name), slog.String("file", file), slog.Any("err", err))
	}
}

// sameRecord tells two copies of one lookup apart from two records: they may
// carry different heads.
func sameRecord(d *Database, file string, data []byte) bool {
	old, err := d.store.Read("sumdb/"+file, maxLookup)
	if err != nil || !strings.HasPrefix(file, d.name+"/lookup/") {
		return false
	}
	a, _, _ := bytes.Cut(old, []byte("\n\n"))
	b, _, _ := bytes.Cut(data, []byte("\n\n"))
	return bytes.Equal(a, b)
}

func (f *flight) Log(msg string) {
	f.d.log.LogAttrs(f.ctx, slog.LevelDebug, "checksum database client", slog.String("text", msg))
}

func (f *flight) SecurityError(msg string) { f.d.stop(msg) }

// swap is the compare-and-swap of the head, on disk before it counts.
func (d *Database) swap(old, head []byte) error {
	tree, err := d.open(head)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !bytes.Equal(d.head, old) {
		return sumdb.ErrWriteConflict
	}
	if err := d.store.Replace(d.file("latest"), head); err != nil {
		return err
	}
	d.head, d.tree = head, tree
	// The first head of each day dates every record below its size.
	day := d.file("heads/" + time.Now().UTC().Format(time.DateOnly))
	if _, err := d.store.Read(day, maxLookup); errors.Is(err, fs.ErrNotExist) {
		return d.store.Publish(day, head)
	}
	return nil
}

// stop ends the use of the database, across restarts.
func (d *Database) stop(msg string) {
	d.mu.Lock()
	d.security = fmt.Errorf("%w: %s", ErrSecurity, msg)
	d.mu.Unlock()
	err := d.store.Replace(d.file("security-error"), []byte(msg+"\n"))
	d.log.LogAttrs(context.Background(), slog.LevelError, "checksum database misbehaves; nothing it covers is taken in any more",
		slog.String("sumdb", d.name), slog.String("text", msg), slog.Any("keeping_err", err))
}
