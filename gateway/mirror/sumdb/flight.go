package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"
)

// flight is the sumdb.ClientOps of one question: the database's memory is
// shared, the context and the errors are its own, since sumdb.Client flattens
// errors to text.
type flight struct {
	d   *Database
	m   module.Version  // what is asked about
	ctx context.Context // the interface has no room for it
	// afresh leaves out what is kept: it may be cut or spoilt, and then nothing
	// that rests on it would ever verify again.
	afresh bool

	mu      sync.Mutex // guards all below
	lookup  []byte     // the record as the database sent it, now or when it was kept
	errs    []error    // of ReadRemote
	configs int        // how often the client asked for the head
	proved  bool       // the record came under a head that was proved before
}

// ask puts one question to the database, a second time without what is kept
// if the first answer does not verify.
func (d *Database) ask(ctx context.Context, m module.Version, question func(*sumdb.Client) error) (*flight, error) {
	for _, afresh := range []bool{false, true} {
		if err := d.Err(); err != nil {
			return nil, err
		}
		f := &flight{d: d, m: m, ctx: ctx, afresh: afresh}
		// Client keeps results and errors for its life, so it lives for one question.
		err := question(sumdb.NewClient(f))
		if err == nil {
			d.proves(f.lookup)
			return f, nil
		}
		if err = f.explain(err); afresh || !errors.Is(err, ErrInvalid) {
			return nil, err
		}
	}
	panic("unreachable: the second round returns")
}

// explain gives the client's error its class back.
func (f *flight) explain(err error) error {
	if serr := f.d.Err(); serr != nil {
		return serr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) == 0 {
		return fmt.Errorf("looking up %s in %s: %w: %v", f.m, f.d.name, ErrInvalid, err) //nolint:errorlint // the client's errors are text only
	}
	first := f.errs[0]
	if f.lookup == nil && errors.Is(first, fs.ErrNotExist) {
		return fmt.Errorf("%s in %s: %w", f.m, f.d.name, ErrNotListed)
	}
	return fmt.Errorf("looking up %s in %s: %w: %w", f.m, f.d.name, ErrUnreachable, trouble{first})
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
	if err == nil && lookup {
		return f.under(b), nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
	}
	return b, err
}

// under notes a record, and gives it to the client under our head where the one that it came under was proved before:
// one history has one place for a record, so that the client need not prove that head again.
func (f *flight) under(record []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookup = record
	_, _, head, err := tlog.ParseRecord(record)
	if err != nil || f.afresh {
		return record
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if !f.d.proved[string(head)] {
		return record
	}
	f.proved = true
	return slices.Concat(record[:len(record)-len(head)], f.d.head)
}

// ReadConfig gives the key or the head. A client asks for the head when it starts, and again when the record brought it
// another one. From the empty tree (nil) on it need not prove that our head contains itself.
func (f *flight) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(f.d.vkey), nil
	}
	f.mu.Lock()
	f.configs++
	empty := f.proved || f.configs == 1 && !f.afresh
	f.mu.Unlock()
	if empty {
		return nil, nil
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.d.head, nil // nil is the empty tree
}

func (f *flight) WriteConfig(_ string, old, head []byte) error {
	f.mu.Lock()
	ours := f.proved
	f.mu.Unlock()
	if ours {
		return nil
	}
	err := f.d.swap(f.ctx, old, head)
	if err != nil && !errors.Is(err, sumdb.ErrWriteConflict) { // our disk: the client would call it an answer that does not verify
		f.mu.Lock()
		defer f.mu.Unlock()
		f.errs = append(f.errs, err)
	}
	return err
}

func (f *flight) ReadCache(file string) ([]byte, error) {
	if f.afresh {
		return nil, fs.ErrNotExist
	}
	b, err := f.d.store.Read(f.ctx, "sumdb/"+file, maxLookup)
	if err == nil && strings.HasPrefix(file, f.d.name+"/lookup/") {
		return f.under(b), nil
	}
	return b, err
}

// WriteCache is called with what was proved. What is not kept is asked for
// again; so is a record, however true, that stands under another's name.
func (f *flight) WriteCache(file string, data []byte) {
	if strings.HasPrefix(file, f.d.name+"/lookup/") && !bytes.Contains(data, []byte("\n"+f.m.Path+" "+f.m.Version+" ")) {
		return
	}
	if err := f.d.store.Keep(f.ctx, "sumdb/"+file, data); err != nil {
		f.d.log.LogAttrs(f.ctx, slog.LevelWarn, "checksum file not kept",
			slog.String("sumdb", f.d.name), slog.String("file", file), slog.Any("err", err))
		return
	}
	if tile, err := tlog.ParseTilePath(strings.TrimPrefix(file, f.d.name+"/")); err == nil {
		f.d.dropPartial(f.ctx, tile)
	}
}

func (f *flight) Log(msg string) {
	f.d.log.LogAttrs(f.ctx, slog.LevelDebug, "checksum database client", slog.String("text", msg))
}

func (f *flight) SecurityError(msg string) { f.d.stop(f.ctx, msg) }

// maxProved is how many heads are remembered as proved, about 250 bytes each.
const maxProved = 1024

// proves remembers that the head of a proved record is one of our history.
func (d *Database) proves(record []byte) {
	_, _, head, err := tlog.ParseRecord(record)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.proved) >= maxProved {
		clear(d.proved)
	}
	d.proved[string(head)] = true
}

// swap is the compare-and-swap of the head, on disk before it counts.
func (d *Database) swap(ctx context.Context, old, head []byte) error {
	tree, err := d.open(head)
	if err != nil {
		return err
	}
	if err := d.swapLocked(ctx, old, head, tree); err != nil {
		return err
	}
	d.seen(ctx, tree, head)
	return nil
}

func (d *Database) swapLocked(ctx context.Context, old, head []byte, tree tlog.Tree) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !bytes.Equal(d.head, old) {
		return sumdb.ErrWriteConflict
	}
	if err := d.store.Swap(ctx, d.file("latest"), old, head); err != nil {
		return d.adopt(ctx, err)
	}
	d.head, d.tree = head, tree
	return nil
}

// adopt takes over the head that another process over the same store has put
// in front of ours: it has proved that it continues the one that we knew.
func (d *Database) adopt(ctx context.Context, err error) error {
	head, rerr := d.store.Read(ctx, d.file("latest"), maxLookup)
	if rerr != nil || bytes.Equal(head, d.head) {
		return err
	}
	tree, oerr := d.open(head)
	if oerr != nil || tree.N <= d.tree.N {
		return errors.Join(err, oerr)
	}
	d.head, d.tree = head, tree
	return sumdb.ErrWriteConflict
}

// dropPartial removes the partial tiles that a full one contains.
func (d *Database) dropPartial(ctx context.Context, full tlog.Tile) {
	if full.W != 1<<full.H {
		return
	}
	dir := d.file(full.Path() + ".p")
	names, err := d.store.Names(ctx, dir)
	for _, n := range names {
		if err == nil {
			err = d.store.Remove(ctx, path.Join(dir, n))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // they cost a little disk, no more
		d.log.LogAttrs(ctx, slog.LevelDebug, "partial tiles not removed", slog.String("sumdb", d.name), slog.String("tile", full.Path()), slog.Any("err", err))
	}
}

// stop ends the use of the database, across restarts.
func (d *Database) stop(ctx context.Context, msg string) {
	ctx = context.WithoutCancel(ctx) // it holds though the question was given up
	d.mu.Lock()
	d.security = fmt.Errorf("%w: %s", ErrSecurity, msg)
	d.mu.Unlock()
	err := d.store.Replace(ctx, d.file("security-error"), []byte(msg+"\n"))
	d.log.LogAttrs(ctx, slog.LevelError, "checksum database misbehaves; nothing it covers is taken in any more: compare the heads with those that others see, "+
		"and only if it was a mistake remove the file security-error in its folder of the store and start again",
		slog.String("sumdb", d.name), slog.String("text", msg), slog.Any("keeping_err", err))
}
