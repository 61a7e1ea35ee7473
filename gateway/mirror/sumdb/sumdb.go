// Package sumdb holds one public checksum database: it proves go.sum lines
// against the signed tree, keeps what it proved, and serves it on. It knows
// neither modules' bytes nor where the database is: its caller brings a
// fetcher and a store. Its one invariant: nothing is kept or returned that the
// newest tree head seen, under the compiled-in key, does not vouch for.
package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// keys are the verifier keys of databases that a bare name may mean. The one
// here is the one that the go command has compiled in.
var keys = map[string]string{
	"sum.golang.org": "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8",
}

var (
	// ErrNotListed means that the database has no record of the version. It matches fs.ErrNotExist.
	ErrNotListed = fmt.Errorf("not listed in the checksum database: %w", fs.ErrNotExist)
	// ErrSecurity means that the database contradicted itself; it is not used
	// again until an operator removes the file "security-error" beside its head.
	ErrSecurity = errors.New("checksum database misbehaves")
	// ErrInvalid means that an answer did not hold against the signed tree.
	ErrInvalid = errors.New("checksum database's answer does not verify")
	// ErrUnreachable wraps why the database did not answer.
	ErrUnreachable = errors.New("checksum database out of reach")
)

// Limits of bodies, in bytes.
const (
	maxLookup = 1 << 20
	maxTile   = 8 << 10
	maxData   = 16 << 20
)

// Store has files under names with slashes; store.Store is one. Keep may lose
// a file, Replace may not. Swap is Replace if old is what is there, nil for
// nothing, and an error else.
type Store interface {
	Read(ctx context.Context, name string, maxBytes int64) ([]byte, error)
	Keep(ctx context.Context, name string, b []byte) error
	Replace(ctx context.Context, name string, b []byte) error
	Swap(ctx context.Context, name string, old, b []byte) error
	Names(ctx context.Context, dir string) ([]string, error)
	Remove(ctx context.Context, name string) error
}

// Fetch gets "/lookup/…", "/tile/…" or "/latest" of the database; a 404 must
// match fs.ErrNotExist.
type Fetch func(ctx context.Context, path string, maxBytes int64) ([]byte, error)

// Options configures a Database.
type Options struct {
	// Key is NAME+HASH+KEY as GOSUMDB takes it, or the bare name of a database whose key is compiled in.
	Key string
	// Fetch asks the database.
	Fetch Fetch
	// Store keeps lookups, tiles and the newest head below "sumdb/NAME/".
	Store Store
	// Seen, if set, is told of each newer head as it is taken over: now the tree
	// has so many records. Many may call it at once.
	Seen func(ctx context.Context, tree tlog.Tree, head []byte)
	// Logger may be nil.
	Logger *slog.Logger
}

// Database is one checksum database. It is safe for many callers.
type Database struct {
	name     string
	vkey     string
	verifier note.Verifier
	fetch    Fetch
	store    Store
	seen     func(ctx context.Context, tree tlog.Tree, head []byte)
	log      *slog.Logger

	mu       sync.Mutex      // guards all below
	head     []byte          // newest signed note
	tree     tlog.Tree       // what it says
	proved   map[string]bool // heads that it was proved to contain
	asked    time.Time       // when Latest last asked
	security error
}

// CheckKey tells whether Options.Key would be taken, and the database's name.
func CheckKey(key string) (string, error) {
	v, _, err := parseKey(key)
	if err != nil {
		return "", err
	}
	return v.Name(), nil
}

func parseKey(key string) (note.Verifier, string, error) {
	if !strings.Contains(key, "+") {
		if keys[key] == "" {
			return nil, "", fmt.Errorf("the key of checksum database %q is not compiled in; want NAME+HASH+KEY", key)
		}
		key = keys[key]
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return nil, "", fmt.Errorf("reading a checksum database key: %w; want NAME+HASH+KEY", err)
	}
	if !fs.ValidPath(v.Name()) || strings.ContainsAny(v.Name(), "%?#!\\") {
		return nil, "", fmt.Errorf("checksum database name %q is no path", v.Name())
	}
	return v, key, nil
}

// Open makes a Database and reads the newest head that the store has. It asks nobody.
func Open(ctx context.Context, o Options) (*Database, error) {
	v, vkey, err := parseKey(o.Key)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Database{name: v.Name(), vkey: vkey, verifier: v, fetch: o.Fetch, store: o.Store, seen: o.Seen, log: o.Logger, proved: map[string]bool{}}
	if d.seen == nil {
		d.seen = func(context.Context, tlog.Tree, []byte) {}
	}
	if b, err := o.Store.Read(ctx, d.file("security-error"), maxLookup); err == nil {
		d.security = fmt.Errorf("%w: %s", ErrSecurity, bytes.TrimSpace(b))
	}
	head, err := o.Store.Read(ctx, d.file("latest"), maxLookup)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err == nil {
		d.tree, err = d.open(head)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the head of %s: %w", d.name, err)
	}
	d.head = head
	return d, nil
}

// Name is the name of the database.
func (d *Database) Name() string { return d.name }

// Err is why the database is not used any more, or nil.
func (d *Database) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.security
}

func (d *Database) file(name string) string { return path.Join("sumdb", d.name, name) }

// open verifies a signed head.
func (d *Database) open(head []byte) (tlog.Tree, error) {
	n, err := note.Open(head, note.VerifierList(d.verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	return tlog.ParseTree([]byte(n.Text))
}

// A Record is what a checksum database has of a version.
type Record struct {
	// Number is its place in the log, from 0.
	Number int64
	// Zip and Mod are the hashes ("h1:…") of the zip and of the go.mod file.
	Zip, Mod string
}

// Record gives the proved record of a version. The error is ErrNotListed,
// ErrSecurity, ErrInvalid or ErrUnreachable, with what lies below it.
func (d *Database) Record(ctx context.Context, m module.Version) (Record, error) {
	var r Record
	f, err := d.ask(ctx, m, func(c *sumdb.Client) error {
		plain, err := c.Lookup(m.Path, m.Version)
		if err != nil {
			return err
		}
		// The same record: from the client's memory, not asked again.
		gomod, err := c.Lookup(m.Path, m.Version+"/go.mod")
		if err != nil {
			return err
		}
		r.Zip = hashIn(plain, m.Path+" "+m.Version+" ")
		r.Mod = hashIn(gomod, m.Path+" "+m.Version+"/go.mod ")
		if r.Zip == "" || r.Mod == "" {
			return errAnother // no line is no proof: an empty answer must never pass for a match
		}
		return nil
	})
	if err != nil {
		return Record{}, err
	}
	// The client has proved that the record stands at the number that it names.
	if r.Number, _, _, err = tlog.ParseRecord(f.lookup); err != nil {
		return Record{}, fmt.Errorf("reading the record of %s in %s: %w: %w", m, d.name, ErrInvalid, err)
	}
	return r, nil
}

// errAnother is a record that is proved but does not speak of the version asked for.
var errAnother = errors.New("the record is of another version")

func hashIn(lines []string, prefix string) string {
	for _, l := range lines {
		if h, ok := strings.CutPrefix(l, prefix); ok && strings.HasPrefix(h, "h1:") {
			return h
		}
	}
	return ""
}
