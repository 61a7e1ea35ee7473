package sumdb

import (
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

// ErrPlace means that a place of heads cannot be read or written, so that
// nothing new is signed: with it goes the proof that the log is not a restored one.
var ErrPlace = errors.New("newest head of our checksum log cannot be compared or kept")

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
	// OldKeyFiles hold keys that sign beside it while clients change to it. With
	// one of them, KeyFile is made under the same name where it is missing.
	OldKeyFiles []string
	// HeadFile holds the newest published head, apart from the database: a
	// database that is older is a restored one.
	HeadFile string
	// Places hold it as well, off the machine: they outlive what a backup of the
	// machine brings back.
	Places []Place
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
	places   []Place
	source   Source
	log      *slog.Logger
	step     func(string) // tests stop the process between steps

	writing    chan struct{} // of one: whoever put something in writes
	publishing sync.Mutex    // held while a head is written to its places

	mu         sync.Mutex  // guards all below
	waiting    []*entry    // for the next transaction
	head       []byte      // newest published note
	tree       tlog.Tree   // what it says
	compared   bool        // the places were read
	everywhere bool        // head is in the head file and in all places
	apart      []tlog.Tree // what they had then
	refused    error       // why nothing is signed any more
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
	id, err := loadKeys(o, begun != "" || published != nil)
	if err != nil {
		return nil, err
	}
	d := &Own{
		identity: id, db: o.DB, headFile: o.HeadFile, places: o.Places, source: o.Source, log: o.Logger,
		step: func(string) {}, writing: make(chan struct{}, 1),
	}
	if published != nil {
		if d.tree, err = d.open(published); err != nil {
			return nil, fmt.Errorf("reading %s: %w", o.HeadFile, err)
		}
		d.head = published
	}
	err = d.commit(ctx, nil)
	if errors.Is(err, ErrPlace) {
		d.log.LogAttrs(ctx, slog.LevelError, "our checksum log signs nothing new until the place can be used again", slog.Any("err", err))
	} else if err != nil && !errors.Is(err, ErrRolledBack) {
		return nil, err
	}
	return d, nil
}

// Name is the name of the database.
func (d *Own) Name() string { return d.name }

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

// open verifies a signed head: one of our keys is enough.
func (d *Own) open(head []byte) (tlog.Tree, error) {
	n, err := note.Open(head, d.verifiers)
	if err != nil {
		return tlog.Tree{}, err
	}
	return tlog.ParseTree([]byte(n.Text))
}

// signatures counts how many of our keys have signed a head.
func (d *Own) signatures(head []byte) int {
	n, err := note.Open(head, d.verifiers)
	if err != nil {
		return 0
	}
	return len(n.Sigs)
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
