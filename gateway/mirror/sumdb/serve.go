package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"
)

// headAge is how long a tree head is served before the database is asked for a newer one.
const headAge = 60 * time.Second

// Lookup gives the record of a version as /lookup/ answers it: proved, and
// kept for ever. With cachedOnly a record that is not kept is fs.ErrNotExist.
func (d *Database) Lookup(ctx context.Context, m module.Version, cachedOnly bool) ([]byte, error) {
	p, err := module.EscapePath(m.Path)
	if err != nil {
		return nil, err
	}
	v, err := module.EscapeVersion(m.Version)
	if err != nil {
		return nil, err
	}
	b, err := d.store.Read(ctx, d.file("lookup/"+p+"@"+v), maxLookup)
	if _, _, _, bad := tlog.ParseRecord(b); err == nil && bad != nil {
		err = fmt.Errorf("record of %s is cut: %w", m, fs.ErrNotExist)
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) || cachedOnly {
		return b, err
	}
	f, err := d.ask(ctx, m, func(c *sumdb.Client) error {
		lines, err := c.Lookup(m.Path, m.Version)
		if err == nil && len(lines) == 0 {
			err = errAnother
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f.lookup, nil
}

// Fresh tells whether Latest would answer without asking.
func (d *Database) Fresh() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.head != nil && time.Since(d.asked) < headAge
}

// Latest gives the newest signed head, at most a minute old while the database
// answers, and the newest one seen when it does not.
func (d *Database) Latest(ctx context.Context, cachedOnly bool) ([]byte, error) {
	d.mu.Lock()
	head, fresh := d.head, time.Since(d.asked) < headAge
	d.mu.Unlock()
	if head != nil && (fresh || cachedOnly) {
		return head, nil
	}
	if cachedOnly {
		return nil, fmt.Errorf("head of %s: %w", d.name, fs.ErrNotExist)
	}
	if err := d.Err(); err != nil {
		return nil, err
	}
	msg, err := d.fetch(ctx, "/latest", maxLookup)
	if err == nil {
		err = d.merge(ctx, msg)
	}
	if errors.Is(err, ErrSecurity) || err != nil && head == nil {
		return nil, fmt.Errorf("asking %s for its head: %w", d.name, hide(err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.asked = time.Now()
	}
	return d.head, nil
}

// hide makes a database without an answer ErrUnreachable rather than not found.
func hide(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrUnreachable, trouble{err})
	}
	return err
}

// merge takes a head over if it is newer than ours and continues it; one that
// contradicts ours is the database's end.
func (d *Database) merge(ctx context.Context, msg []byte) error {
	tree, err := d.open(msg)
	if err != nil {
		return fmt.Errorf("%w: head: %w", ErrInvalid, err)
	}
	for {
		d.mu.Lock()
		head, mine := d.head, d.tree
		d.mu.Unlock()
		older, newer := mine, tree
		if tree.N < mine.N {
			older, newer = tree, mine
		}
		if older.N > 0 {
			h, err := tlog.TreeHash(older.N, tlog.TileHashReader(newer, &tiles{d: d, ctx: ctx}))
			if err != nil {
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			if h != older.Hash {
				d.stop(ctx, fmt.Sprintf("two histories: a tree of %d records and one of %d contradict each other\n%s\n%s", mine.N, tree.N, head, msg))
				return d.Err()
			}
		}
		if newer == mine {
			return nil
		}
		if err := d.swap(ctx, head, msg); !errors.Is(err, sumdb.ErrWriteConflict) {
			return err
		}
	}
}

// Tile gives a tile of hashes, or of records where t.L is -1, proved against
// the newest head. One beyond that head is fs.ErrNotExist.
func (d *Database) Tile(ctx context.Context, t tlog.Tile, cachedOnly bool) ([]byte, error) {
	if b, err := d.stored(ctx, t); err == nil || cachedOnly {
		return b, err
	}
	if err := d.Err(); err != nil {
		return nil, err
	}
	level, width := max(t.L, 0), int64(1)<<t.H
	need := (t.N*width + int64(t.W)) << (t.H * level)
	tree, err := d.grown(ctx, need)
	if err != nil {
		return nil, err
	}
	tr := &tiles{d: d, ctx: ctx}
	indexes := []int64{tlog.StoredHashIndex(t.H*level, t.N*width+int64(t.W)-1)}
	if t.L < 0 {
		indexes = indexes[:0]
		for i := range int64(t.W) {
			indexes = append(indexes, tlog.StoredHashIndex(0, t.N*width+i))
		}
	}
	hashes, err := tlog.TileHashReader(tree, tr).ReadHashes(indexes)
	if err != nil {
		return nil, hide(fmt.Errorf("reading tile %s of %s: %w", t.Path(), d.name, err))
	}
	if t.L < 0 {
		return d.data(ctx, t, hashes)
	}
	for _, got := range tr.read {
		if got.tile.L == t.L && got.tile.N == t.N && got.tile.W >= t.W {
			return got.data[:t.W*tlog.HashSize], nil
		}
	}
	return nil, fmt.Errorf("reading tile %s of %s: %w", t.Path(), d.name, ErrInvalid)
}

// stored reads a kept tile, or cuts it from the full one; a cut one is as good as none.
func (d *Database) stored(ctx context.Context, t tlog.Tile) ([]byte, error) {
	b, err := d.store.Read(ctx, d.file(t.Path()), maxData)
	if err == nil && (t.L < 0 && len(b) > 0 || len(b) == t.W*tlog.HashSize) {
		return b, nil
	}
	full := t
	full.W = 1 << t.H
	if b, err = d.store.Read(ctx, d.file(full.Path()), maxTile); t.L >= 0 && err == nil && len(b) == maxTile {
		return b[:t.W*tlog.HashSize], nil
	}
	return nil, fmt.Errorf("tile %s: %w", t.Path(), fs.ErrNotExist)
}

// grown gives a tree of at least n records, asking for a newer head if need be.
func (d *Database) grown(ctx context.Context, n int64) (tlog.Tree, error) {
	d.mu.Lock()
	tree := d.tree
	d.mu.Unlock()
	if tree.N >= n {
		return tree, nil
	}
	msg, err := d.fetch(ctx, "/latest", maxLookup)
	if err == nil {
		err = d.merge(ctx, msg)
	}
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("asking %s for its head: %w", d.name, hide(err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tree.N < n {
		return tlog.Tree{}, fmt.Errorf("tree of %s has %d records: %w", d.name, d.tree.N, fs.ErrNotExist)
	}
	return d.tree, nil
}

// data fetches records and checks each against its hash.
func (d *Database) data(ctx context.Context, t tlog.Tile, hashes []tlog.Hash) ([]byte, error) {
	b, err := d.fetch(ctx, "/"+t.Path(), maxData)
	if err != nil {
		return nil, hide(fmt.Errorf("reading %s of %s: %w", t.Path(), d.name, err))
	}
	rest := b
	for i, h := range hashes {
		// As in lookups, but without the line of the record's number.
		end := bytes.Index(rest, []byte("\n\n"))
		if end < 0 || tlog.RecordHash(rest[:end+1]) != h {
			return nil, fmt.Errorf("record %d of %s in %s: %w", i, t.Path(), d.name, ErrInvalid)
		}
		rest = rest[end+2:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%s of %s is too long: %w", t.Path(), d.name, ErrInvalid)
	}
	return b, d.store.Keep(ctx, d.file(t.Path()), b)
}

// tiles is the tlog.TileReader of one question.
type tiles struct {
	d    *Database
	ctx  context.Context // the interface has no room for it
	read []readTile

	offer *Offer // asked first, where there is one
	only  bool   // nobody else is asked
}

type readTile struct {
	tile tlog.Tile
	data []byte
}

func (r *tiles) Height() int { return 8 }

func (r *tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	var list [][]byte
	for _, t := range want {
		b, err := r.tile(t)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
		r.read = append(r.read, readTile{t, b})
	}
	return list, nil
}

func (r *tiles) tile(t tlog.Tile) ([]byte, error) {
	if r.offer != nil {
		if b, err := r.offer.tile(r.ctx, t); !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	b, err := r.d.stored(r.ctx, t)
	if err == nil || r.only {
		return b, err
	}
	return r.remote(t)
}

// remote asks for a tile, or for the full one if the partial one is gone.
func (r *tiles) remote(t tlog.Tile) ([]byte, error) {
	b, err := r.d.fetch(r.ctx, "/"+t.Path(), maxTile)
	if err == nil || t.W == 1<<t.H {
		return b, err
	}
	full := t
	full.W = 1 << t.H
	b, ferr := r.d.fetch(r.ctx, "/"+full.Path(), maxTile)
	if ferr != nil || len(b) < t.W*tlog.HashSize {
		return nil, err
	}
	return b[:t.W*tlog.HashSize], nil
}

// SaveTiles is called with tiles that the tree vouches for.
func (r *tiles) SaveTiles(list []tlog.Tile, data [][]byte) {
	if r.offer != nil && !r.offer.keep {
		return
	}
	for i, t := range list {
		if _, err := r.d.stored(r.ctx, t); err != nil {
			// What is not kept is asked for again.
			_ = r.d.store.Keep(r.ctx, r.d.file(t.Path()), data[i])
			r.d.dropPartial(r.ctx, t)
		}
	}
}
