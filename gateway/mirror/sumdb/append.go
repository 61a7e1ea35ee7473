package sumdb

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// commit brings entries into the log, then publishes its head. Without entries
// it publishes what another process has written.
func (d *Own) commit(ctx context.Context, list []*entry) error {
	if err := d.Err(); err != nil {
		return err
	}
	if err := d.compare(ctx); err != nil {
		return err
	}
	head, tree, err := d.transact(ctx, list)
	if err != nil {
		return fmt.Errorf("writing our checksum log: %w", err)
	}
	d.step("committed")
	return d.publish(ctx, head, tree)
}

// transact appends entries, hashes and a signed head, all or nothing. An entry
// whose version has a record gets its number.
func (d *Own) transact(ctx context.Context, list []*entry) (head []byte, tree tlog.Tree, err error) {
	tx, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	// The row is locked first: one writer at a time, in every process.
	if _, err := tx.ExecContext(ctx, `UPDATE mirror_sumdb_head SET note = note WHERE one = 1`); err != nil {
		return nil, tlog.Tree{}, err
	}
	if head, tree, err = d.proved(ctx, tx); err != nil {
		return nil, tlog.Tree{}, err
	}
	n, err := d.append(ctx, tx, tree.N, list)
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	if head == nil || n > tree.N || d.signatures(head) < len(d.signers) {
		if head, tree, err = d.sign(ctx, tx, n); err != nil {
			return nil, tlog.Tree{}, err
		}
	}
	return head, tree, tx.Commit()
}

// proved reads the head under the lock: ours, over the hashes that are stored,
// and a continuation of the one that was published last.
func (d *Own) proved(ctx context.Context, q querier) ([]byte, tlog.Tree, error) {
	var head string
	if err := q.QueryRowContext(ctx, `SELECT note FROM mirror_sumdb_head WHERE one = 1`).Scan(&head); err != nil {
		return nil, tlog.Tree{}, err
	}
	d.mu.Lock()
	published := append([]tlog.Tree{d.tree}, d.apart...)
	d.mu.Unlock()
	newest := slices.MaxFunc(published, func(a, b tlog.Tree) int { return cmp.Compare(a.N, b.N) })
	if head == "" {
		if newest.N > 0 {
			return nil, tlog.Tree{}, d.refuse(fmt.Errorf("%w: it is empty, and a head of %d records was published", ErrRolledBack, newest.N))
		}
		return nil, tlog.Tree{}, nil
	}
	tree, err := d.open([]byte(head))
	if err != nil {
		return nil, tlog.Tree{}, fmt.Errorf("reading its head: %w", err)
	}
	if tree.N < newest.N {
		return nil, tlog.Tree{}, d.refuse(fmt.Errorf("%w: it has %d records, and a head of %d was published", ErrRolledBack, tree.N, newest.N))
	}
	for _, t := range append(published, tree) {
		if t.N == 0 {
			continue
		}
		hash, err := tlog.TreeHash(t.N, &hashes{ctx: ctx, q: q})
		if err != nil {
			return nil, tlog.Tree{}, err
		}
		if hash != t.Hash {
			return nil, tlog.Tree{}, d.refuse(fmt.Errorf("%w: its hashes do not give the signed head of %d records", ErrRolledBack, t.N))
		}
	}
	return []byte(head), tree, nil
}

// refuse ends the signing until the process starts again.
func (d *Own) refuse(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused == nil {
		d.refused = err
		d.log.LogAttrs(context.Background(), slog.LevelError,
			"our checksum log does not go on: its database is not the one that signed the newest head, as after a restored backup; "+
				"bring back the database with all records, or begin a new log under a new own_sumdb.name, which every client must be told of",
			slog.String("sumdb", d.Name()), slog.String("head_file", d.headFile), slog.Any("err", err))
	}
	return d.refused
}

// append inserts records and their hashes behind the first n and gives the new size.
func (d *Own) append(ctx context.Context, tx *sql.Tx, n int64, list []*entry) (int64, error) {
	reader := &hashes{ctx: ctx, q: tx, fresh: map[int64]tlog.Hash{}}
	for _, e := range list {
		id, _, err := find(ctx, tx, e.m)
		if err == nil {
			e.id = id // the first record stays, whatever is known now
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO mirror_sumdb_records (id, path, version, lines) VALUES ($1, $2, $3, $4)`,
			n, e.m.Path, e.m.Version, e.lines); err != nil {
			return 0, err
		}
		d.step("inserted")
		stored, err := tlog.StoredHashesForRecordHash(n, tlog.RecordHash([]byte(e.lines)), reader)
		if err != nil {
			return 0, err
		}
		first := tlog.StoredHashIndex(0, n)
		for i, h := range stored {
			reader.fresh[first+int64(i)] = h
			if _, err := tx.ExecContext(ctx, `INSERT INTO mirror_sumdb_hashes (id, hash) VALUES ($1, $2)`, first+int64(i), h.String()); err != nil {
				return 0, err
			}
		}
		d.step("hashed")
		e.id = n
		n++
	}
	return n, nil
}

// sign makes the head of the first n records.
func (d *Own) sign(ctx context.Context, tx *sql.Tx, n int64) ([]byte, tlog.Tree, error) {
	hash, err := tlog.TreeHash(n, &hashes{ctx: ctx, q: tx})
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	tree := tlog.Tree{N: n, Hash: hash}
	head, err := note.Sign(&note.Note{Text: string(tlog.FormatTree(tree))}, d.signers...)
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	_, err = tx.ExecContext(ctx, `UPDATE mirror_sumdb_head SET note = $1 WHERE one = 1`, string(head))
	d.step("signed")
	return head, tree, err
}

// hashes is the tlog.HashReader of a database or transaction.
type hashes struct {
	ctx   context.Context // the interface has no room for it
	q     querier
	fresh map[int64]tlog.Hash // written by this transaction
}

func (r *hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	var args []any
	var marks bytes.Buffer
	for i, index := range indexes {
		if h, ok := r.fresh[index]; ok {
			list[i] = h
			continue
		}
		args = append(args, index)
		fmt.Fprintf(&marks, ",$%d", len(args))
	}
	if len(args) == 0 {
		return list, nil
	}
	read, err := r.read(`SELECT id, hash FROM mirror_sumdb_hashes WHERE id IN (`+marks.String()[1:]+`)`, args)
	if err != nil {
		return nil, fmt.Errorf("reading hashes of our checksum log: %w", err)
	}
	for i, index := range indexes {
		if _, ok := r.fresh[index]; ok {
			continue
		}
		h, ok := read[index]
		if !ok {
			return nil, fmt.Errorf("reading hashes of our checksum log: hash %d is gone", index)
		}
		list[i] = h
	}
	return list, nil
}

func (r *hashes) read(query string, args []any) (map[int64]tlog.Hash, error) {
	rows, err := r.q.QueryContext(r.ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	read := map[int64]tlog.Hash{}
	for rows.Next() {
		var id int64
		var text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, err
		}
		if read[id], err = tlog.ParseHash(text); err != nil {
			return nil, err
		}
	}
	return read, rows.Err()
}
