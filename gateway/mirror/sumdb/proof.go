package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"
)

// An Offer is one signed head of a database with records and tiles that came
// from elsewhere: a bundle, or the module cache of a go command. All that is
// taken from it is proved under its head, whatever the files say of themselves.
type Offer struct {
	d    *Database
	from Fetch
	head []byte
	tree tlog.Tree
	keep bool
	only bool

	whole bool
}

// OfferOptions say what comes from elsewhere, and what may be done with it.
type OfferOptions struct {
	// Head is the signed head under which records are proved.
	Head []byte
	// From reads "/lookup/…" and "/tile/…"; what it does not have is fs.ErrNotExist.
	From Fetch
	// Keep makes the head ours, if it is newer, and stores what was proved.
	Keep bool
	// Only asks nobody for tiles that From does not have.
	Only bool
	// Whole wants Head itself in every record, as Export writes them.
	Whole bool
}

// Offered checks that an offer's head is signed by the database and is of one
// history with the newest head that is known. Two histories are the end of the
// database, as in every answer of its own.
func (d *Database) Offered(ctx context.Context, o OfferOptions) (*Offer, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	tree, err := d.open(o.Head)
	if err != nil {
		return nil, fmt.Errorf("%w: head: %w", ErrInvalid, err)
	}
	f := &Offer{d: d, from: o.From, head: o.Head, tree: tree, keep: o.Keep, only: o.Only, whole: o.Whole}
	for {
		d.mu.Lock()
		head, mine := d.head, d.tree
		d.mu.Unlock()
		older, newer := mine, tree
		if tree.N < mine.N {
			older, newer = tree, mine
		}
		if older.N > 0 {
			if err := f.oneHistory(ctx, older, newer); err != nil {
				return nil, err
			}
		}
		if !o.Keep || tree.N <= mine.N {
			return f, nil
		}
		if err := d.swap(ctx, head, o.Head); !errors.Is(err, sumdb.ErrWriteConflict) {
			return f, err
		}
	}
}

// oneHistory proves that newer continues older.
func (f *Offer) oneHistory(ctx context.Context, older, newer tlog.Tree) error {
	h, err := tlog.TreeHash(older.N, tlog.TileHashReader(newer, f.reader(ctx)))
	if err != nil {
		return fmt.Errorf("%w: nothing here proves that heads of %d and %d records are of one history: %w", ErrInvalid, older.N, newer.N, trouble{err})
	}
	if h != older.Hash {
		f.d.stop(ctx, fmt.Sprintf("two histories: a tree of %d records and one of %d contradict each other\n%s", older.N, newer.N, f.head))
		return f.d.Err()
	}
	return nil
}

// Sums gives the two hashes of a version out of the offer's record, once that
// is proved. A record that is not offered is fs.ErrNotExist.
func (f *Offer) Sums(ctx context.Context, m module.Version) (zip, mod string, err error) {
	name, err := lookupName(m)
	if err != nil {
		return "", "", err
	}
	msg, err := f.from(ctx, "/"+name, maxLookup)
	if err != nil {
		return "", "", fmt.Errorf("reading the record of %s: %w", m, err)
	}
	id, text, head, err := tlog.ParseRecord(msg)
	if err == nil && f.whole && !bytes.Equal(head, f.head) {
		err = errors.New("its head is another one")
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: record of %s: %w", ErrInvalid, m, err)
	}
	if err := f.proved(ctx, id, text); err != nil {
		return "", "", fmt.Errorf("%w: record of %s: %w", ErrInvalid, m, trouble{err})
	}
	lines := strings.Split(string(text), "\n")
	zip, mod = hashIn(lines, m.Path+" "+m.Version+" "), hashIn(lines, m.Path+" "+m.Version+"/go.mod ")
	if zip == "" || mod == "" {
		return "", "", fmt.Errorf("%w: record of %s: %w", ErrInvalid, m, errAnother)
	}
	if !f.keep {
		return zip, mod, nil
	}
	record, err := tlog.FormatRecord(id, text)
	if err != nil {
		return "", "", fmt.Errorf("%w: record of %s: %w", ErrInvalid, m, err)
	}
	// Under one head: a client that knows no other needs no proof between two.
	return zip, mod, f.d.store.Keep(ctx, f.d.file(name), append(record, f.head...))
}

// Tile proves one tile that is offered, and keeps it.
func (f *Offer) Tile(ctx context.Context, t tlog.Tile) error {
	last := tlog.StoredHashIndex(t.H*t.L, t.N<<t.H+int64(t.W)-1)
	r := f.reader(ctx)
	if _, err := tlog.TileHashReader(f.tree, r).ReadHashes([]int64{last}); err != nil {
		return fmt.Errorf("%w: tile %s: %w", ErrInvalid, t.Path(), trouble{err})
	}
	for _, got := range r.read {
		if got.tile == t {
			return nil
		}
	}
	return fmt.Errorf("%w: tile %s is not one of the tree of %d records", ErrInvalid, t.Path(), f.tree.N)
}

func (f *Offer) proved(ctx context.Context, id int64, text []byte) error {
	if id < 0 || id >= f.tree.N {
		return fmt.Errorf("its number %d is not below the head's %d", id, f.tree.N)
	}
	hashes, err := tlog.TileHashReader(f.tree, f.reader(ctx)).ReadHashes([]int64{tlog.StoredHashIndex(0, id)})
	if err != nil {
		return err
	}
	if hashes[0] != tlog.RecordHash(text) {
		return errors.New("the signed tree has another record under its number")
	}
	return nil
}

// reader reads tiles from the offer before it asks.
func (f *Offer) reader(ctx context.Context) *tiles {
	return &tiles{d: f.d, ctx: ctx, offer: f, only: f.only}
}

// tile is what the offer has of a tile, cut from the full one if need be.
func (f *Offer) tile(ctx context.Context, t tlog.Tile) ([]byte, error) {
	b, err := f.from(ctx, "/"+t.Path(), maxTile)
	full := t
	full.W = 1 << t.H
	if errors.Is(err, fs.ErrNotExist) && t != full {
		if b, err = f.from(ctx, "/"+full.Path(), maxTile); err == nil && len(b) >= t.W*tlog.HashSize {
			b = b[:t.W*tlog.HashSize]
		}
	}
	return b, err
}

// Newer gives the one of two signed heads that covers more records; what is
// not signed by the database counts for nothing, and nil is none.
func (d *Database) Newer(a, b []byte) []byte {
	ta, erra := d.open(a)
	tb, errb := d.open(b)
	switch {
	case erra != nil && errb != nil:
		return nil
	case errb != nil || erra == nil && ta.N >= tb.N:
		return a
	}
	return b
}

// HeadIn cuts the signed head out of a lookup.
func HeadIn(lookup []byte) []byte {
	_, _, head, err := tlog.ParseRecord(lookup)
	if err != nil {
		return nil
	}
	return head
}

func lookupName(m module.Version) (string, error) {
	p, err := module.EscapePath(m.Path)
	if err != nil {
		return "", err
	}
	v, err := module.EscapeVersion(m.Version)
	if err != nil {
		return "", err
	}
	return "lookup/" + p + "@" + v, nil
}

// Put takes one file of a proof by its name: "latest", "lookup/…" or "tile/…".
type Put func(name string, b []byte) error

// Export gives put all that proves the records of versions under the newest
// head: the head, the records with it, and the tiles between. Tiles that prove
// earlier exported heads come along, so that who imported one can go on. With
// only nobody is asked.
func (d *Database) Export(ctx context.Context, versions []module.Version, only bool, put Put) error {
	for _, m := range versions { // first, since a new record may need a newer head
		if _, err := d.Lookup(ctx, m, only); err != nil {
			return fmt.Errorf("exporting the record of %s in %s: %w", m, d.name, err)
		}
	}
	head, err := d.Latest(ctx, only)
	if err != nil {
		return fmt.Errorf("exporting proofs of %s: %w", d.name, err)
	}
	tree, err := d.open(head)
	if err != nil {
		return fmt.Errorf("exporting proofs of %s: %w", d.name, err)
	}
	p := &proof{tree: tree, head: head, put: put, done: map[string]bool{}, reader: &tiles{d: d, ctx: ctx, only: only}}
	err = p.export(versions, func(m module.Version) ([]byte, error) { return d.Lookup(ctx, m, only) })
	if err == nil {
		err = d.exported(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("exporting proofs of %s: %w", d.name, err)
	}
	return nil
}

// exported proves the heads of earlier exports, and remembers this one.
func (d *Database) exported(ctx context.Context, p *proof) error {
	old, err := d.store.Read(ctx, d.file("exported"), maxData)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for note := range bytes.SplitSeq(old, []byte("\x00")) {
		if len(note) == 0 {
			continue
		}
		tree, err := d.open(note)
		if err != nil {
			return err
		}
		if err := p.continues(tree); err != nil {
			return err
		}
	}
	if bytes.Contains(old, p.head) {
		return nil
	}
	return d.store.Replace(ctx, d.file("exported"), append(append(old, p.head...), 0))
}

// Export is that of Database, for our own.
func (d *Own) Export(ctx context.Context, versions []module.Version, put Put) error {
	for _, m := range versions { // first, since a version without record gets one
		name, err := lookupName(m)
		if err != nil {
			return err
		}
		if _, err := d.Answer(ctx, name, false); err != nil {
			return fmt.Errorf("exporting the record of %s in %s: %w", m, d.Name(), err)
		}
	}
	head, err := d.Answer(ctx, "latest", true)
	if err != nil {
		return fmt.Errorf("exporting proofs of %s: %w", d.Name(), err)
	}
	tree, err := d.open(head)
	if err != nil {
		return fmt.Errorf("exporting proofs of %s: %w", d.Name(), err)
	}
	p := &proof{tree: tree, head: head, put: put, done: map[string]bool{}, reader: ownTiles{d, ctx}}
	err = p.export(versions, func(m module.Version) ([]byte, error) {
		name, err := lookupName(m)
		if err != nil {
			return nil, err
		}
		return d.Answer(ctx, name, true)
	})
	if err == nil && tree.N > 0 {
		// All tiles of our log are at hand, and few: who has an older head can go on.
		err = p.all()
	}
	if err != nil {
		return fmt.Errorf("exporting proofs of %s: %w", d.Name(), err)
	}
	return nil
}

// ownTiles is the tlog.TileReader of our own log.
type ownTiles struct {
	d   *Own
	ctx context.Context // the interface has no room for it
}

func (ownTiles) Height() int { return 8 }

func (r ownTiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	list := make([][]byte, len(want))
	for i, t := range want {
		var err error
		if list[i], err = r.d.Answer(r.ctx, t.Path(), true); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (ownTiles) SaveTiles([]tlog.Tile, [][]byte) {}

// A proof is what an export has given so far. It is the tlog.TileReader of its
// own questions, so that each tile that proves something is given once.
type proof struct {
	tree   tlog.Tree
	head   []byte
	reader tlog.TileReader
	put    Put
	done   map[string]bool
	err    error // of put, within SaveTiles
}

func (p *proof) Height() int { return 8 }

func (p *proof) ReadTiles(want []tlog.Tile) ([][]byte, error) { return p.reader.ReadTiles(want) }

func (p *proof) SaveTiles(list []tlog.Tile, data [][]byte) {
	p.reader.SaveTiles(list, data)
	for i, t := range list {
		if name := t.Path(); !p.done[name] && p.err == nil {
			p.done[name] = true
			p.err = p.put(name, data[i])
		}
	}
}

func (p *proof) export(versions []module.Version, lookup func(module.Version) ([]byte, error)) error {
	if err := p.put("latest", p.head); err != nil {
		return err
	}
	for _, m := range versions {
		if err := p.record(m, lookup); err != nil {
			return fmt.Errorf("record of %s: %w", m, err)
		}
	}
	return nil
}

func (p *proof) record(m module.Version, lookup func(module.Version) ([]byte, error)) error {
	msg, err := lookup(m)
	if err != nil {
		return err
	}
	id, text, _, err := tlog.ParseRecord(msg)
	if err != nil {
		return err
	}
	if id >= p.tree.N {
		return fmt.Errorf("%w: number %d is not below the head's %d", ErrInvalid, id, p.tree.N)
	}
	hashes, err := tlog.TileHashReader(p.tree, p).ReadHashes([]int64{tlog.StoredHashIndex(0, id)})
	if err == nil {
		err = p.err
	}
	if err != nil {
		return err
	}
	if hashes[0] != tlog.RecordHash(text) {
		return fmt.Errorf("%w: the signed tree has another record under number %d", ErrInvalid, id)
	}
	name, err := lookupName(m)
	if err != nil {
		return err
	}
	record, err := tlog.FormatRecord(id, text)
	if err != nil {
		return err
	}
	return p.put(name, append(record, p.head...))
}

// continues gives the tiles that prove that the head continues an older one.
func (p *proof) continues(older tlog.Tree) error {
	if older.N == 0 || older.N > p.tree.N {
		return nil
	}
	h, err := tlog.TreeHash(older.N, tlog.TileHashReader(p.tree, p))
	if err == nil {
		err = p.err
	}
	if err == nil && h != older.Hash {
		err = fmt.Errorf("%w: an exported head of %d records is of another history", ErrInvalid, older.N)
	}
	return err
}

// all gives every tile of the tree.
func (p *proof) all() error {
	r := tlog.TileHashReader(p.tree, p)
	for _, t := range tlog.NewTiles(8, 0, p.tree.N) {
		if _, err := r.ReadHashes([]int64{tlog.StoredHashIndex(t.H*t.L, t.N<<t.H+int64(t.W)-1)}); err != nil {
			return err
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}
