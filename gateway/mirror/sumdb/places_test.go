package sumdb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	modsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
)

// place is a folder that heads are kept in, as on a mounted share.
func place(tb testing.TB, dir string) sumdb.Place {
	tb.Helper()
	s, err := store.Open(tb.Context(), dir, store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return sumdb.Place{Name: dir, Store: s}
}

func (b *ownBed) headIn(tb testing.TB, dir string) string {
	tb.Helper()
	head, err := os.ReadFile(filepath.Join(dir, "sumdb", filepath.FromSlash(b.Name()), "latest"))
	if err != nil {
		tb.Fatal(err)
	}
	return string(head)
}

// A backup of the whole machine brings database and head file back together; the place off the machine remembers.
func TestOwnRestoredBackupIsKnownByTheHeadOffTheMachine(t *testing.T) {
	b := startOwn(t)
	share := t.TempDir()
	b.opt.Places = []sumdb.Place{place(t, share)}
	b.reopen(t)
	for i := range 3 {
		b.lookup(t, version(i))
	}
	backup, err := os.ReadFile(b.opt.HeadFile)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		b.lookup(t, version(i))
	}
	newest, err := b.Answer(t.Context(), "latest", true)
	if err != nil || b.headIn(t, share) != string(newest) {
		t.Fatalf("the place has\n%s\nwant\n%s%v", b.headIn(t, share), newest, err)
	}
	restore(t, b, 3)
	if err := os.WriteFile(b.opt.HeadFile, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if err := b.Err(); !errors.Is(err, sumdb.ErrRolledBack) || !strings.Contains(err.Error(), "it has 3 records, and a head of 5 was published") {
		t.Errorf("Err = %v, want ErrRolledBack with both sizes", err)
	}
	if _, err := b.Answer(t.Context(), "lookup/"+version(7).String(), false); !errors.Is(err, sumdb.ErrRolledBack) {
		t.Errorf("a record of a second history: %v", err)
	}
	if b.headIn(t, share) != string(newest) {
		t.Error("the newest head off the machine was overwritten")
	}
	// Without the place nothing would have told.
	b.opt.Places = nil
	b.reopen(t)
	if b.Err() != nil {
		t.Errorf("without places: %v", b.Err())
	}
}

// A place that is away stops what is new, and nothing else; once it is back the log goes on.
func TestOwnPlaceThatIsAway(t *testing.T) {
	b := startOwn(t)
	b.lookup(t, version(0))
	share := filepath.Join(t.TempDir(), "share")
	b.opt.Places = []sumdb.Place{place(t, share)}
	head := filepath.Join(share, "sumdb", filepath.FromSlash(b.Name()), "latest")
	block := func() {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(head), 0o700), os.WriteFile(head, []byte("half"), 0o600)); err != nil { // an unreadable share, or a spoilt one
			t.Fatal(err)
		}
	}
	block()
	b.reopen(t)
	if text, err := b.Answer(t.Context(), "lookup/"+version(0).String(), false); err != nil {
		t.Errorf("a record that a published head covers: %q, %v", text, err)
	}
	if _, err := b.Answer(t.Context(), "lookup/"+version(1).String(), false); !errors.Is(err, sumdb.ErrPlace) || !strings.Contains(err.Error(), "head_places") {
		t.Errorf("a new record while the place cannot be read: %v, want ErrPlace and what to do", err)
	}
	if b.Err() != nil {
		t.Errorf("the log is stopped for good: %v", b.Err())
	}
	if err := os.RemoveAll(head); err != nil {
		t.Fatal(err)
	}
	b.lookup(t, version(1))
	block()
	if _, err := b.Answer(t.Context(), "lookup/"+version(2).String(), false); !errors.Is(err, sumdb.ErrPlace) {
		t.Errorf("a new record while the place cannot be written: %v, want ErrPlace", err)
	}
	if err := os.RemoveAll(head); err != nil {
		t.Fatal(err)
	}
	if text := b.lookup(t, version(2)); !strings.HasPrefix(text, "2\n") {
		t.Errorf("the record once the place is back: %q", text)
	}
	if n := audit(t, b.Own); n != 3 {
		t.Errorf("the log has %d records, want 3", n)
	}
}

// A new machine with an empty database and the old key must not begin the log again.
func TestOwnEmptyDatabaseBesideAHeadOffTheMachine(t *testing.T) {
	b := startOwn(t)
	b.opt.Places = []sumdb.Place{place(t, t.TempDir())}
	b.reopen(t)
	b.lookup(t, version(0))
	restore(t, b, 0)
	if err := os.Remove(b.opt.HeadFile); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if !errors.Is(b.Err(), sumdb.ErrRolledBack) {
		t.Errorf("Err = %v, want ErrRolledBack", b.Err())
	}
	if _, err := b.Answer(t.Context(), "latest", false); !errors.Is(err, sumdb.ErrRolledBack) {
		t.Errorf("latest = %v, want ErrRolledBack", err)
	}
}

// While clients change from one key to the next, heads hold under either; the name and the log stay.
func TestOwnKeyRotation(t *testing.T) {
	b := startOwn(t)
	b.lookup(t, version(0))
	name, oldKey := b.Name(), b.Key()
	before := &goClient{key: oldKey, b: b, config: map[string][]byte{}}
	before.check(t, version(0))

	old := filepath.Join(b.dir, "sumdb.old.key")
	if err := os.Rename(b.opt.KeyFile, old); err != nil {
		t.Fatal(err)
	}
	b.opt.OldKeyFiles = []string{old}
	b.reopen(t) // makes the next key
	newKey := b.Key()
	if b.Name() != name || newKey == oldKey {
		t.Fatalf("after the change: %s, want another key of %s", newKey, name)
	}
	head, err := b.Answer(t.Context(), "latest", true)
	if err != nil || bytes.Count(head, []byte("\n— "+name+" ")) != 2 {
		t.Errorf("head is not signed with both keys, %v:\n%s", err, head)
	}
	b.lookup(t, version(1))
	before.check(t, version(1))                                                      // a client that goes on with the old key
	(&goClient{key: newKey, b: b, config: map[string][]byte{}}).check(t, version(1)) // a new client
	moved := &goClient{key: newKey, b: b, config: before.config}                     // one that has met the head with both, and changes
	moved.check(t, version(0))

	b.opt.OldKeyFiles = nil
	b.reopen(t)
	if b.Key() != newKey || b.Err() != nil {
		t.Fatalf("without the old key: %s, %v", b.Key(), b.Err())
	}
	b.lookup(t, version(2))
	moved.check(t, version(2))
	head, err = b.Answer(t.Context(), "latest", true)
	if err != nil || bytes.Count(head, []byte("\n— "+name+" ")) != 1 {
		t.Errorf("later heads have %d signatures, want the new key's, %v", bytes.Count(head, []byte("\n— ")), err)
	}
	if n := audit(t, b.Own); n != 3 {
		t.Errorf("the log has %d records, want 3", n)
	}
	// The keys of another log are no old keys of this one.
	other := startOwn(t)
	b.opt.OldKeyFiles = []string{other.opt.KeyFile}
	if _, err := sumdb.OpenOwn(t.Context(), b.opt); err == nil || !strings.Contains(err.Error(), "keeps its name") {
		t.Errorf("an old key of another name: %v", err)
	}
}

// A goClient asks as the go command does, and remembers heads as it does.
type goClient struct {
	key      string
	b        *ownBed
	mu       sync.Mutex        // guards all below
	config   map[string][]byte // latest heads by name
	security string
}

func (c *goClient) check(tb testing.TB, m module.Version) {
	tb.Helper()
	lines, err := modsumdb.NewClient(c).Lookup(m.Path, m.Version)
	if err != nil || len(lines) != 1 || c.security != "" {
		tb.Errorf("with key %s the client gets %q, %v, security %q", c.key, lines, err, c.security)
	}
}

func (c *goClient) ReadRemote(path string) ([]byte, error) {
	return c.b.Answer(context.Background(), strings.TrimPrefix(path, "/"), false)
}

func (c *goClient) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(c.key), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config[file], nil
}

func (c *goClient) WriteConfig(file string, old, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(c.config[file], old) {
		return modsumdb.ErrWriteConflict
	}
	c.config[file] = b
	return nil
}
func (c *goClient) ReadCache(string) ([]byte, error) { return nil, fs.ErrNotExist }
func (c *goClient) WriteCache(string, []byte)        {}
func (c *goClient) Log(string)                       {}
func (c *goClient) SecurityError(msg string)         { c.security = msg }

// 1,000 callers at once, for 250 versions in two processes: one record each, in few transactions.
func TestOwnThousandAtOnce(t *testing.T) {
	const callers, versions = 1000, 250
	b := startOwn(t)
	second, err := sumdb.OpenOwn(t.Context(), b.opt)
	if err != nil {
		t.Fatal(err)
	}
	var commits sync.Map
	var n int64
	var mu sync.Mutex
	count := func(step string) {
		if step == "committed" {
			mu.Lock()
			defer mu.Unlock()
			n++
		}
	}
	b.Step(count)
	second.Step(count)
	var all sync.WaitGroup
	for i := range callers {
		own := []*sumdb.Own{b.Own, second}[i%2]
		all.Go(func() {
			text, err := own.Answer(context.Background(), "lookup/"+version(i/2%versions).String(), false)
			id, _, _, perr := tlog.ParseRecord(text)
			if err := errors.Join(err, perr); err != nil {
				t.Error(err)
				return
			}
			if first, known := commits.LoadOrStore(i/2%versions, id); known && first != id {
				t.Errorf("version %d has the numbers %v and %d", i/2%versions, first, id)
			}
		})
	}
	all.Wait()
	if got := audit(t, b.Own); got != versions {
		t.Errorf("the log has %d records, want %d", got, versions)
	}
	mu.Lock()
	defer mu.Unlock()
	if n > versions {
		t.Errorf("%d transactions for %d records: they are not written together", n, versions)
	}
	t.Logf("%d callers in two processes, %d records: %d transactions", callers, versions, n)
}

// An auditor re-reads the whole log by its tiles alone: each record's hash stands in the tree, and no version twice.
func TestC42AuditorReadsTheWholeLog(t *testing.T) {
	const n = 300 // more than a full tile
	b := startOwn(t)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if _, err := b.Answer(context.Background(), "lookup/"+version(i).String(), false); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	msg, err := b.Answer(t.Context(), "latest", true)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(b.Key())
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Open(msg, note.VerifierList(verifier))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := tlog.ParseTree([]byte(signed.Text))
	if err != nil || tree.N != n {
		t.Fatalf("head of %d records, %v", tree.N, err)
	}
	seen := map[string]bool{}
	var stored []tlog.Hash // the whole tree, made again from the records
	reader := tlog.HashReaderFunc(func(indexes []int64) (list []tlog.Hash, err error) {
		for _, i := range indexes {
			list = append(list, stored[i])
		}
		return list, nil
	})
	for first := int64(0); first < n; first += 256 {
		tile := tlog.Tile{H: 8, L: -1, N: first / 256, W: int(min(256, n-first))}
		b, err := b.Answer(t.Context(), tile.Path(), true)
		if err != nil {
			t.Fatal(err)
		}
		for i := first; i < first+int64(tile.W); i++ {
			text, rest, ok := bytes.Cut(b, []byte("\n\n"))
			if !ok {
				t.Fatalf("record %d of %s is cut: %q", i, tile.Path(), b)
			}
			record := append(text, '\n')
			b = rest
			hashes, err := tlog.StoredHashes(i, record, reader)
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, hashes...)
			name, _, _ := strings.Cut(string(record), " h1:")
			if seen[name] {
				t.Errorf("%s has a second record", name)
			}
			seen[name] = true
		}
		if len(b) != 0 {
			t.Errorf("%s has %d bytes too many", tile.Path(), len(b))
		}
	}
	hash, err := tlog.TreeHash(n, reader)
	if err != nil || hash != tree.Hash {
		t.Errorf("the records give the tree %v, %v; signed is %v", hash, err, tree.Hash)
	}
	fmt.Fprintln(t.Output(), len(seen), "records")
}
