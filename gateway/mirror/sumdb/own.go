package sumdb

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrRolledBack means that the database of our own log is older than the newest
// head that was published, or contradicts it: a restored backup. Signing on
// would make a second history, which every client takes for an attack.
var ErrRolledBack = errors.New("our checksum log is older than its newest published head")

// commitTimeout bounds one transaction; it does not end with a caller that gives up.
const commitTimeout = 30 * time.Second

// Source gives the two hashes ("h1:…") to record of a version that has no
// record yet: of the zip and of the go.mod file. They must be proved. An error
// that matches fs.ErrNotExist means that there is no such version.
type Source func(ctx context.Context, m module.Version) (zip, mod string, err error)

// OwnOptions configures an Own.
type OwnOptions struct {
	// DB has the tables mirror_sumdb_records, _hashes and _head.
	DB *sql.DB
	// Name is the name in the key; empty: that of the key file, or at first start
	// Host with a suffix of chance.
	Name, Host string
	// KeyFile holds the signer key; it is made, 0600, where there is no log yet.
	KeyFile string
	// HeadFile holds the newest published head, apart from the database: a
	// database that is older is a restored one.
	HeadFile string
	// Source is asked once for each version, and no more once it has a record.
	Source Source
	// Logger may be nil.
	Logger *slog.Logger
}

// Own is the checksum database that we sign ourselves: a client that trusts it
// keeps GOSUMDB on for public and private modules alike. It is safe for many
// callers, and for many processes over one database. Its one invariant: a
// version gets one record for ever, and no record is shown before a signed head
// that covers it is on disk, in the database and in the head file.
type Own struct {
	*identity
	db       *sql.DB
	headFile string
	source   Source
	log      *slog.Logger
	step     func(string) // tests stop the process between steps

	writing chan struct{} // of one: whoever put something in writes

	mu      sync.Mutex // guards all below
	waiting []*entry   // for the next transaction
	head    []byte     // newest published note
	tree    tlog.Tree  // what it says
	refused error      // why nothing is signed any more
}

// An entry is a record on its way into the log.
type entry struct {
	m     module.Version
	lines string
	id    int64
	err   error
	done  chan struct{} // closed once id or err is set
}

// OpenOwn reads the log's newest head, or signs the one of an empty tree. A log
// that may not go on is no error of OpenOwn, but of every answer: see Err.
func OpenOwn(ctx context.Context, o OwnOptions) (*Own, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	published, err := os.ReadFile(o.HeadFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the newest head of our checksum log: %w", err)
	}
	var begun string
	if err := o.DB.QueryRowContext(ctx, `SELECT note FROM mirror_sumdb_head WHERE one = 1`).Scan(&begun); err != nil {
		return nil, fmt.Errorf("reading the head of our checksum log: %w", err)
	}
	id, err := loadKey(o, begun != "" || published != nil)
	if err != nil {
		return nil, err
	}
	d := &Own{
		identity: id, db: o.DB, headFile: o.HeadFile, source: o.Source, log: o.Logger,
		step: func(string) {}, writing: make(chan struct{}, 1),
	}
	if published != nil {
		if d.tree, err = d.open(published); err != nil {
			return nil, fmt.Errorf("reading %s: %w", o.HeadFile, err)
		}
		d.head = published
	}
	if err := d.commit(ctx, nil); err != nil && !errors.Is(err, ErrRolledBack) {
		return nil, err
	}
	return d, nil
}

// Name is the name of the database.
func (d *Own) Name() string { return d.verifier.Name() }

// Key is NAME+HASH+KEY, as GOSUMDB takes it.
func (d *Own) Key() string { return d.vkey }

// Err is why the log does not go on, or nil.
func (d *Own) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refused
}

// Size is how many records the newest published head covers.
func (d *Own) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tree.N
}

// open verifies a signed head.
func (d *Own) open(head []byte) (tlog.Tree, error) {
	n, err := note.Open(head, note.VerifierList(d.verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	return tlog.ParseTree([]byte(n.Text))
}

// Sums gives what is recorded of a version, the hash of its zip and that of its
// go.mod; fs.ErrNotExist if it has no record.
func (d *Own) Sums(ctx context.Context, m module.Version) (zip, mod string, err error) {
	_, lines, err := find(ctx, d.db, m)
	if err != nil {
		return "", "", err
	}
	list := strings.Split(lines, "\n")
	return hashIn(list, m.Path+" "+m.Version+" "), hashIn(list, m.Path+" "+m.Version+"/go.mod "), nil
}

// A querier is a database or a transaction in it.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func find(ctx context.Context, q querier, m module.Version) (id int64, lines string, err error) {
	err = q.QueryRowContext(ctx, `SELECT id, lines FROM mirror_sumdb_records WHERE path = $1 AND version = $2`, m.Path, m.Version).Scan(&id, &lines)
	if errors.Is(err, sql.ErrNoRows) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return 0, "", fmt.Errorf("finding the record of %s: %w", m, err)
	}
	return id, lines, nil
}

// record appends what the source says of a version and gives its number. Callers
// that come together share one transaction: the first of them writes for all.
func (d *Own) record(ctx context.Context, m module.Version) (int64, error) {
	zip, mod, err := d.source(ctx, m)
	if err != nil {
		return 0, err
	}
	if !strings.HasPrefix(zip, "h1:") || !strings.HasPrefix(mod, "h1:") {
		return 0, fmt.Errorf("recording %s: %w: hashes %q and %q", m, ErrInvalid, zip, mod)
	}
	e := &entry{
		m: m, done: make(chan struct{}),
		lines: fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", m.Path, m.Version, zip, m.Path, m.Version, mod),
	}
	d.mu.Lock()
	d.waiting = append(d.waiting, e)
	d.mu.Unlock()
	select {
	case d.writing <- struct{}{}:
		d.write(ctx)
		<-d.writing
	case <-e.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx) // another caller writes it, or the next one: it is true all the same
	}
	<-e.done
	return e.id, e.err
}

// write commits all that waits. Only who holds writing calls it.
func (d *Own) write(ctx context.Context) {
	d.mu.Lock()
	list := d.waiting
	d.waiting = nil
	d.mu.Unlock()
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	err := d.commit(ctx, list)
	for _, e := range list {
		if e.err == nil {
			e.err = err
		}
		close(e.done)
	}
}

// commit brings entries into the log, then publishes its head. Without entries
// it publishes what another process has written.
func (d *Own) commit(ctx context.Context, list []*entry) error {
	if err := d.Err(); err != nil {
		return err
	}
	head, tree, err := d.transact(ctx, list)
	if err != nil {
		return fmt.Errorf("writing our checksum log: %w", err)
	}
	d.step("committed")
	return d.publish(head, tree)
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
	if head == nil || n > tree.N {
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
	newest := d.tree
	d.mu.Unlock()
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
	for _, t := range []tlog.Tree{tree, newest} {
		hash, err := tlog.TreeHash(t.N, &hashes{ctx: ctx, q: q})
		if err != nil {
			return nil, tlog.Tree{}, err
		}
		if t.N > 0 && hash != t.Hash {
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
			"our checksum log does not go on; restore the database that the head file belongs to, or begin a new log under a new name",
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
	head, err := note.Sign(&note.Note{Text: string(tlog.FormatTree(tree))}, d.signer)
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	_, err = tx.ExecContext(ctx, `UPDATE mirror_sumdb_head SET note = $1 WHERE one = 1`, string(head))
	d.step("signed")
	return head, tree, err
}

// publish puts a committed head into the head file, and only then shows it.
func (d *Own) publish(head []byte, tree tlog.Tree) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.head != nil && tree.N <= d.tree.N {
		return nil
	}
	if err := replaceFile(d.headFile, head); err != nil {
		return fmt.Errorf("writing the newest head of our checksum log: %w", err)
	}
	d.step("published")
	d.head, d.tree = head, tree
	return nil
}

// covering makes the published head cover n records, where another process has
// written them. What no head covers is fs.ErrNotExist.
func (d *Own) covering(ctx context.Context, n int64) error {
	if d.Size() >= n {
		return nil
	}
	if err := d.commit(ctx, nil); err != nil {
		return err
	}
	if size := d.Size(); size < n {
		return fmt.Errorf("our checksum log has %d records: %w", size, fs.ErrNotExist)
	}
	return nil
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
