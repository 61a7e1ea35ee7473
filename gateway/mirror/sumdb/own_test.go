package sumdb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/mod/module"
	modsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
)

// ownBed is a log of our own over a database file.
type ownBed struct {
	*sumdb.Own
	dir   string
	db    *sql.DB
	asked atomic.Int64 // questions to the source
	opt   sumdb.OwnOptions
}

const hash1 = "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

func startOwn(tb testing.TB) *ownBed {
	tb.Helper()
	b := &ownBed{dir: tb.TempDir()}
	b.db = openSQL(tb, filepath.Join(b.dir, "state.db"))
	b.opt = sumdb.OwnOptions{
		DB: b.db, Host: "go.corp.example", KeyFile: filepath.Join(b.dir, "sumdb.key"), HeadFile: filepath.Join(b.dir, "sumdb.head"),
		Source: func(_ context.Context, m module.Version) (string, string, error) {
			b.asked.Add(1)
			if strings.HasPrefix(m.Path, "none.example/") {
				return "", "", fmt.Errorf("looking for %s: %w", m, fs.ErrNotExist)
			}
			return hash1, hash1, nil
		},
	}
	b.reopen(tb)
	return b
}

// TestOnPostgres runs the tests of our own database again, on PostgreSQL.
func TestOnPostgres(t *testing.T) {
	statetest.OnPostgres(t, "^TestOwn")
}

func openSQL(tb testing.TB, file string) *sql.DB {
	tb.Helper()
	db := statetest.OpenAt(tb, file)
	text, err := os.ReadFile("../migrations/00001_state.sql")
	if err != nil {
		tb.Fatal(err)
	}
	up, _, _ := strings.Cut(string(text), "-- +goose Down")
	if _, err := db.Exec(up); err != nil && !strings.Contains(err.Error(), "already exists") {
		tb.Fatal(err)
	}
	return db
}

func (b *ownBed) reopen(tb testing.TB) {
	tb.Helper()
	own, err := sumdb.OpenOwn(tb.Context(), b.opt)
	if err != nil {
		tb.Fatal(err)
	}
	b.Own = own
}

func (b *ownBed) lookup(tb testing.TB, m module.Version) string {
	tb.Helper()
	text, err := b.Answer(tb.Context(), "lookup/"+m.String(), false)
	if err != nil {
		tb.Errorf("Answer(lookup %s): %v", m, err)
	}
	return string(text)
}

// audit is what gosumcheck does: a client that trusts the key alone reads every record, tile and head, and proves each
// record's place in the newest tree.
func audit(tb testing.TB, d *sumdb.Own) (records int64) {
	tb.Helper()
	head, err := d.Answer(tb.Context(), "latest", false)
	if err != nil {
		tb.Fatalf("reading the head: %v", err)
	}
	verifier, err := note.NewVerifier(d.Key())
	if err != nil {
		tb.Fatal(err)
	}
	n, err := note.Open(head, note.VerifierList(verifier))
	if err != nil {
		tb.Fatalf("head is not signed by the published key: %v", err)
	}
	tree, err := tlog.ParseTree([]byte(n.Text))
	if err != nil {
		tb.Fatal(err)
	}
	reader := tlog.TileHashReader(tree, &answeredTiles{tb, d})
	seen := map[string]int64{}
	for id := int64(0); id < tree.N; id += 256 {
		width := min(256, tree.N-id)
		tile := tlog.Tile{H: 8, L: -1, N: id / 256, W: int(width)}
		data, err := d.Answer(tb.Context(), tile.Path(), false)
		if err != nil {
			tb.Fatalf("reading %s: %v", tile.Path(), err)
		}
		texts := strings.SplitAfter(string(data), "\n\n")
		for i := range width {
			text := strings.TrimSuffix(texts[i], "\n")
			stored, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, id+i)})
			if err != nil || stored[0] != tlog.RecordHash([]byte(text)) {
				tb.Fatalf("record %d does not prove: %v\n%s", id+i, err, text)
			}
			name, _, _ := strings.Cut(text, " h1:")
			if first, twice := seen[name]; twice {
				tb.Errorf("%s has two records, %d and %d", name, first, id+i)
			}
			seen[name] = id + i
		}
	}
	return tree.N
}

type answeredTiles struct {
	tb testing.TB
	d  *sumdb.Own
}

func (r *answeredTiles) Height() int { return 8 }

func (r *answeredTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var list [][]byte
	for _, t := range tiles {
		b, err := r.d.Answer(r.tb.Context(), t.Path(), false)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}
func (r *answeredTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func TestOwnRecordsOnceAndForEver(t *testing.T) {
	b := startOwn(t)
	first := b.lookup(t, version(0))
	if !strings.HasPrefix(first, "0\nexample.com/m v1.0.0 "+hash1+"\nexample.com/m v1.0.0/go.mod "+hash1+"\n\ngo.sum database tree\n1\n") {
		t.Errorf("C41 lookup = %q", first)
	}
	var all sync.WaitGroup
	for i := range 300 { // more than one tile
		all.Go(func() { b.lookup(t, version(i)) })
	}
	all.Wait()
	b.reopen(t)
	again := b.lookup(t, version(0))
	if lines := strings.SplitAfterN(again, "\n\n", 2); !strings.HasPrefix(first, lines[0]) || b.asked.Load() != 300 {
		t.Errorf("C41 the record is %q later, after %d questions to the source", again, b.asked.Load())
	}
	if n := audit(t, b.Own); n != 300 {
		t.Errorf("C42 the log has %d records that prove, want 300", n)
	}
	if zip, mod, err := b.Sums(t.Context(), version(0)); zip != hash1 || mod != hash1 || err != nil {
		t.Errorf("Sums = %q, %q, %v", zip, mod, err)
	}
	if _, _, err := b.Sums(t.Context(), version(999)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Sums of what has no record = %v, want fs.ErrNotExist", err)
	}
}

// The client of the go command reads our log: it checks the signature, the record's proof, and that heads go on.
func TestOwnAnswersTheGoCommandsClient(t *testing.T) {
	b := startOwn(t)
	ops := &clientOps{own: b.Own, config: map[string][]byte{"key": []byte(b.Key())}}
	for i := range 20 {
		c := modsumdb.NewClient(ops)
		lines, err := c.Lookup("example.com/m", version(i).Version)
		if err != nil || len(lines) != 1 || lines[0] != "example.com/m "+version(i).Version+" "+hash1 {
			t.Fatalf("client's lookup %d = %q, %v", i, lines, err)
		}
	}
	if ops.security != "" {
		t.Errorf("client saw: %s", ops.security)
	}
	if _, err := modsumdb.NewClient(ops).Lookup("none.example/m", "v1.0.0"); err == nil {
		t.Error("C44 a version that is not there has a record")
	}
}

type clientOps struct {
	own      *sumdb.Own
	config   map[string][]byte
	security string
}

func (o *clientOps) ReadRemote(path string) ([]byte, error) {
	return o.own.Answer(context.Background(), strings.TrimPrefix(path, "/"), false)
}
func (o *clientOps) ReadConfig(file string) ([]byte, error) { return o.config[file], nil }
func (o *clientOps) WriteConfig(file string, _, b []byte) error {
	o.config[file] = b
	return nil
}
func (o *clientOps) ReadCache(string) ([]byte, error) { return nil, fs.ErrNotExist }
func (o *clientOps) WriteCache(string, []byte)        {}
func (o *clientOps) Log(string)                       {}
func (o *clientOps) SecurityError(msg string)         { o.security = msg }

func TestOwnRefusesToGoOn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(testing.TB, *ownBed)
	}{
		{"restored older database", func(tb testing.TB, b *ownBed) { restore(tb, b, 3) }},
		{"new database", func(tb testing.TB, b *ownBed) { restore(tb, b, 0) }},
		{"other hashes", func(tb testing.TB, b *ownBed) {
			exec1(tb, b.db, `UPDATE mirror_sumdb_hashes SET hash = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='`)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := startOwn(t)
			for i := range 5 {
				b.lookup(t, version(i))
			}
			head, err := os.ReadFile(b.opt.HeadFile)
			if err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, b)
			b.reopen(t)
			if !errors.Is(b.Err(), sumdb.ErrRolledBack) {
				t.Errorf("Err = %v, want ErrRolledBack", b.Err())
			}
			for _, path := range []string{"latest", "lookup/" + version(1).String(), "lookup/" + version(9).String(), "tile/8/0/000.p/1"} {
				if _, err := b.Answer(t.Context(), path, false); !errors.Is(err, sumdb.ErrRolledBack) {
					t.Errorf("Answer(%s) = %v, want ErrRolledBack", path, err)
				}
			}
			if after, _ := os.ReadFile(b.opt.HeadFile); string(after) != string(head) {
				t.Errorf("the newest head was overwritten by\n%s", after)
			}
		})
	}
}

// restore makes the database what it was when it had n records.
func restore(tb testing.TB, b *ownBed, n int) {
	tb.Helper()
	old := &ownBed{dir: tb.TempDir()}
	old.opt = b.opt
	old.db = openSQL(tb, filepath.Join(old.dir, "state.db"))
	old.opt.Places = nil
	old.opt.DB, old.opt.HeadFile = old.db, filepath.Join(old.dir, "sumdb.head")
	if n > 0 {
		old.reopen(tb)
		for i := range n {
			old.lookup(tb, version(i))
		}
	}
	b.db, b.opt.DB = old.db, old.db
}

func exec1(tb testing.TB, db *sql.DB, statement string) {
	tb.Helper()
	if _, err := db.Exec(statement); err != nil {
		tb.Fatal(err)
	}
}

func TestOwnKeyAndName(t *testing.T) {
	b := startOwn(t)
	if !strings.HasPrefix(b.Name(), "go.corp.example/sumdb-") || !strings.HasPrefix(b.Key(), b.Name()+"+") || sumdb.CheckName(b.Name()) != nil {
		t.Errorf("E11 name %q, key %q", b.Name(), b.Key())
	}
	if _, err := sumdb.CheckKey(b.Key()); err != nil {
		t.Errorf("the key as GOSUMDB takes it: %v", err)
	}
	info, err := os.Stat(b.opt.KeyFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want 0600", info.Mode(), err)
	}
	name := b.Name()
	b.opt.Host = "elsewhere.example"
	b.reopen(t)
	if b.Name() != name {
		t.Errorf("another host renamed the log to %s", b.Name())
	}
	b.opt.Name = "other.example/sumdb"
	if _, err := sumdb.OpenOwn(t.Context(), b.opt); err == nil || !strings.Contains(err.Error(), "keeps its name") {
		t.Errorf("another configured name: %v", err)
	}
	b.opt.Name = ""
	if err := os.Rename(b.opt.KeyFile, b.opt.KeyFile+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := sumdb.OpenOwn(t.Context(), b.opt); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a log whose key is gone was begun again: %v", err)
	}
	for _, bad := range []string{"", ".", "/x", "x/", "a b", "Upper.example", "a+b", "a//b", "a/../b", "host:8443", "-x"} {
		if sumdb.CheckName(bad) == nil {
			t.Errorf("CheckName(%q) is fine", bad)
		}
	}
}

// No record is answered before its head is in the head file, even if the disk fails just there.
func TestOwnShowsNothingThatIsNotPublished(t *testing.T) {
	b := startOwn(t)
	b.lookup(t, version(0))
	away := b.opt.HeadFile + ".d"
	once := false
	b.Step(func(step string) {
		if step == "committed" && !once { // from here on the head file cannot be written
			once = true
			if err := errors.Join(os.Rename(b.opt.HeadFile, away), os.Mkdir(b.opt.HeadFile, 0o700), os.WriteFile(filepath.Join(b.opt.HeadFile, "x"), nil, 0o600)); err != nil {
				t.Error(err)
			}
		}
	})
	if text, err := b.Answer(t.Context(), "lookup/"+version(1).String(), false); err == nil {
		t.Fatalf("record answered without a published head: %s", text)
	}
	if _, err := b.Answer(t.Context(), "tile/8/0/000.p/2", false); err == nil || b.Size() != 1 {
		t.Errorf("a tile of the unpublished head was answered; size %d", b.Size())
	}
	b.Step(func(string) {})
	if err := errors.Join(os.RemoveAll(b.opt.HeadFile), os.Rename(away, b.opt.HeadFile)); err != nil {
		t.Fatal(err)
	}
	if text := b.lookup(t, version(1)); !strings.HasPrefix(text, "1\n") || b.asked.Load() != 2 {
		t.Errorf("later the record is %q after %d questions", text, b.asked.Load())
	}
	audit(t, b.Own)
}

func TestOwnErrors(t *testing.T) {
	b := startOwn(t)
	trouble := errors.New("source is away")
	for _, tt := range []struct {
		name, path string
		only       bool
		source     sumdb.Source
		want       error
	}{
		{"C44 not there", "lookup/none.example/m@v1.0.0", false, nil, fs.ErrNotExist},
		{"recorded only", "lookup/example.com/m@v1.0.0", true, nil, fs.ErrNotExist},
		{"trouble is not not found", "lookup/example.com/m@v1.0.0", false, func(context.Context, module.Version) (string, string, error) { return "", "", trouble }, trouble},
		{"no hashes", "lookup/example.com/m@v1.0.0", false, func(context.Context, module.Version) (string, string, error) { return "", "", nil }, sumdb.ErrInvalid},
		{"no zip hash", "lookup/example.com/m@v1.0.0", false, func(context.Context, module.Version) (string, string, error) { return "", hash1, nil }, sumdb.ErrInvalid},
		{"no go.mod hash", "lookup/example.com/m@v1.0.0", false, func(context.Context, module.Version) (string, string, error) { return hash1, "", nil }, sumdb.ErrInvalid},
		{"tile beyond the head", "tile/8/0/000.p/200", false, nil, fs.ErrNotExist},
		{"full tile beyond the head", "tile/8/3/000", false, nil, fs.ErrNotExist},
		{"level that overflows", "tile/8/63/000.p/1", false, nil, fs.ErrNotExist},
		{"number that overflows", "tile/8/0/x999/x999/x999/x999/x999/x999/999", false, nil, fs.ErrNotExist},
		{"records that overflow", "tile/8/data/x999/x999/x999/x999/x999/x999/999", false, nil, fs.ErrNotExist},
		{"other height", "tile/30/1/x001/000", false, nil, fs.ErrNotExist},
		{"number that overflows when shifted", "tile/8/2/x999/x999/x999/x999/x999/999", false, nil, fs.ErrNotExist},
		{"no such verb", "search", false, nil, fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opt := b.opt
			if tt.source != nil {
				opt.Source = tt.source
			}
			own, err := sumdb.OpenOwn(t.Context(), opt)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := own.Answer(t.Context(), tt.path, tt.only); !errors.Is(err, tt.want) || errors.Is(err, fs.ErrNotExist) != errors.Is(tt.want, fs.ErrNotExist) {
				t.Errorf("Answer(%s) = %q, %v, want %v", tt.path, got, err, tt.want)
			}
		})
	}
	if b.Size() != 0 {
		t.Errorf("failed lookups left %d records", b.Size())
	}
}

// Two processes over one database, each with a head file of its own.
func TestOwnTwoWriters(t *testing.T) {
	b := startOwn(t)
	opt := b.opt
	opt.DB, opt.HeadFile = openSQL(t, filepath.Join(b.dir, "state.db")), filepath.Join(b.dir, "other.head")
	other, err := sumdb.OpenOwn(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	const n = 60
	answers := [2][n]string{}
	var all sync.WaitGroup
	for w, own := range []*sumdb.Own{b.Own, other} {
		for i := range n {
			all.Go(func() {
				text, err := own.Answer(t.Context(), "lookup/"+version(i).String(), false)
				if err != nil {
					t.Errorf("writer %d, lookup %d: %v", w, i, err)
				}
				var head string
				answers[w][i], head, _ = strings.Cut(string(text), "\n\n")
				var id, size int64
				_, err1 := fmt.Sscan(answers[w][i], &id)
				_, err2 := fmt.Sscan(strings.TrimPrefix(head, "go.sum database tree\n"), &size)
				if err := errors.Join(err1, err2); err != nil || size <= id {
					t.Errorf("writer %d answered record %d under a head of %d: %v", w, id, size, err)
				}
			})
		}
	}
	all.Wait()
	b.lookup(t, version(n)) // the other one has not heard of it
	if text, err := other.Answer(t.Context(), "lookup/"+version(n).String(), false); err != nil || !strings.Contains(string(text), fmt.Sprintf("database tree\n%d\n", n+1)) {
		t.Errorf("record of another writer = %v, under a head that does not cover it:\n%s", err, text)
	}
	for i := range n {
		if answers[0][i] != answers[1][i] {
			t.Errorf("two writers, two records: %q and %q", answers[0][i], answers[1][i])
		}
	}
	b.reopen(t)
	if got := audit(t, b.Own); got != n+1 {
		t.Errorf("%d records prove, want %d", got, n+1)
	}
}

// E16: kill -9 after each step of a write. Whatever was answered is there, what is there proves, and the log goes on.
func TestOwnKilledBetweenSteps(t *testing.T) {
	if dir := os.Getenv("OWN_KILL_DIR"); dir != "" {
		dieAt(t, dir, os.Getenv("OWN_KILL_STEP"))
		return
	}
	for _, step := range []string{"inserted", "hashed", "signed", "committed", "published"} {
		t.Run("E16 "+step, func(t *testing.T) {
			b := startOwn(t)
			for i := range 3 {
				b.lookup(t, version(i))
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestOwnKilledBetweenSteps$")
			cmd.Env = append(os.Environ(), "OWN_KILL_DIR="+b.dir, "OWN_KILL_STEP="+step)
			out, err := cmd.CombinedOutput()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if status, sys := exit.Sys().(syscall.WaitStatus); !ok || !sys || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the child ended with %v, want SIGKILL:\n%s", err, out)
			}
			b.reopen(t)
			if err := b.Err(); err != nil {
				t.Fatalf("after a kill at %s the log does not go on: %v", step, err)
			}
			want := int64(3)
			if step == "committed" || step == "published" {
				want = 4
			}
			if n := audit(t, b.Own); n != want {
				t.Errorf("after a kill at %s there are %d records, want %d", step, n, want)
			}
			if text := b.lookup(t, version(3)); !strings.HasPrefix(text, "3\n") {
				t.Errorf("the killed record is %q now", text)
			}
			audit(t, b.Own)
		})
	}
}

// dieAt writes one record in this process and kills it at a step.
func dieAt(t *testing.T, dir, at string) {
	b := &ownBed{dir: dir, db: openSQL(t, filepath.Join(dir, "state.db"))}
	b.opt = sumdb.OwnOptions{
		DB: b.db, KeyFile: filepath.Join(dir, "sumdb.key"), HeadFile: filepath.Join(dir, "sumdb.head"),
		Source: func(context.Context, module.Version) (string, string, error) { return hash1, hash1, nil },
	}
	b.reopen(t)
	b.Step(func(step string) {
		if step == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // nothing after it runs
			select {}
		}
	})
	b.lookup(t, version(3))
}

// FuzzOwnAnswer: no path makes the log panic, answer without a record, or sign what it does not have.
func FuzzOwnAnswer(f *testing.F) {
	for _, seed := range []string{"latest", "lookup/example.com/m@v1.0.0", "tile/8/0/000.p/1", "tile/8/data/000.p/1", "tile/8/63/000", "lookup/@", "lookup/a.b/!c@v1.0.0-x+incompatible"} {
		f.Add(seed)
	}
	b := startOwn(f)
	b.lookup(f, version(0))
	f.Fuzz(func(t *testing.T, path string) {
		text, err := b.Answer(t.Context(), path, true)
		if err == nil && len(text) == 0 {
			t.Errorf("Answer(%q) is empty", path)
		}
		if b.Size() != 1 {
			t.Errorf("Answer(%q) made a record", path)
		}
	})
}

// BenchmarkOwnLookup asks a log of 10,000 records for records that it has.
func BenchmarkOwnLookup(b *testing.B) {
	bed := startOwn(b)
	var all sync.WaitGroup
	slots := make(chan struct{}, 256)
	for i := range 10000 {
		slots <- struct{}{}
		all.Go(func() {
			bed.lookup(b, version(i))
			<-slots
		})
	}
	all.Wait()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		bed.lookup(b, version(i*7919%10000))
		i++
	}
}

// BenchmarkOwnRecord appends records one after the other: what a cold lookup costs beside its source.
func BenchmarkOwnRecord(b *testing.B) {
	bed := startOwn(b)
	i := 0
	for b.Loop() {
		bed.lookup(b, version(i))
		i++
	}
}

// Gateways that start at once over one key file sign with one key.
func TestOwnKeyIsMadeOnce(t *testing.T) {
	b, dir := startOwn(t), t.TempDir()
	b.opt.DB, b.opt.KeyFile = openSQL(t, filepath.Join(dir, "state.db")), filepath.Join(dir, "new", "sumdb.key")
	keys := make([]string, 8)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			opt := b.opt
			opt.HeadFile = filepath.Join(dir, fmt.Sprint(i, ".head"))
			own, err := sumdb.OpenOwn(t.Context(), opt)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = own.Key()
		})
	}
	group.Wait()
	if slices.Sort(keys); keys[0] != keys[len(keys)-1] || keys[0] == "" {
		t.Errorf("keys: %q", slices.Compact(keys))
	}
}
