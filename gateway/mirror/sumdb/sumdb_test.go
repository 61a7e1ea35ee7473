package sumdb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// bed is a Database over a test upstream.
type bed struct {
	*sumdb.Database
	up    *mirrortest.Server
	store *store.Store
	opt   sumdb.Options
	mu    sync.Mutex
	seen  []int64 // sizes of the heads that Seen was told of, guarded by mu
}

func module1(v string) string {
	return "module example.com/m@" + v + "\n-- go.mod --\nmodule example.com/m\n"
}

// start offers n versions of example.com/m.
func start(tb testing.TB, n int) *bed {
	tb.Helper()
	up := mirrortest.Start(tb)
	for i := range n {
		m, err := mirrortest.ParseTxtar([]byte(module1(fmt.Sprintf("v1.%d.0", i))))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	list, err := upstream.Parse(up.URL, upstream.ParseOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	c, err := upstream.New(upstream.Options{List: list})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	s, err := store.Open(tb.Context(), tb.TempDir(), store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	b := &bed{up: up, store: s, opt: sumdb.Options{Key: up.Key(), Store: s, Fetch: func(ctx context.Context, path string, limit int64) ([]byte, error) {
		return c.Get(ctx, "sumdb/"+up.Sumdb()+path, limit, nil)
	}}}
	b.opt.Seen = func(_ context.Context, tree tlog.Tree, _ []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.seen = append(b.seen, tree.N)
	}
	b.open(tb)
	return b
}

func (b *bed) open(tb testing.TB) {
	tb.Helper()
	d, err := sumdb.Open(tb.Context(), b.opt)
	if err != nil {
		tb.Fatal(err)
	}
	b.Database = d
}

func version(i int) module.Version {
	return module.Version{Path: "example.com/m", Version: fmt.Sprintf("v1.%d.0", i)}
}

// grow brings n records into the log.
func (b *bed) grow(tb testing.TB, n int) {
	tb.Helper()
	for i := range n {
		if _, err := b.Record(tb.Context(), version(i)); err != nil {
			tb.Fatal(err)
		}
	}
}

func TestRecord(t *testing.T) {
	b := start(t, 2)
	first, err := b.Record(t.Context(), version(0))
	if err != nil || !strings.HasPrefix(first.Zip, "h1:") || !strings.HasPrefix(first.Mod, "h1:") || first.Zip == first.Mod || first.Number != 0 {
		t.Fatalf("Record = %+v, %v", first, err)
	}
	b.up.Forget()
	if again, err := b.Record(t.Context(), version(0)); err != nil || again != first || len(b.up.Requests()) > 0 {
		t.Errorf("C41 again = %+v, %v with requests %v; want the same without", again, err, b.up.Requests())
	}
	if _, err := b.Record(t.Context(), version(7)); !errors.Is(err, sumdb.ErrNotListed) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("C44 Sums of what is not listed = %v, want ErrNotListed", err)
	}
	b.up.Break("*/lookup/*", mirrortest.Fault{Status: 500})
	if _, err := b.Record(t.Context(), version(1)); !errors.Is(err, sumdb.ErrUnreachable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Record out of reach = %v, want ErrUnreachable", err)
	}
	b.up.Clear()
	if r, err := b.Record(t.Context(), version(1)); err != nil || r.Number != 1 {
		t.Errorf("the second record = %+v, %v; an error was kept?", r, err)
	}
}

func TestRecordOfAnotherVersionIsNoMatch(t *testing.T) {
	b := start(t, 2)
	b.grow(t, 2)
	// The record of v1.1.0 where that of v1.0.0 was asked for: true, signed, and no answer.
	other, err := b.Lookup(t.Context(), version(1), true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b.opt.Store = s
	b.open(t)
	b.up.Break("*/lookup/*", mirrortest.Fault{Body: other})
	if r, err := b.Record(t.Context(), version(0)); !errors.Is(err, sumdb.ErrInvalid) {
		t.Errorf("Record = %+v, %v; want ErrInvalid", r, err)
	}
	if rec, err := b.Lookup(t.Context(), version(0), false); !errors.Is(err, sumdb.ErrInvalid) {
		t.Errorf("Lookup = %q, %v; want ErrInvalid", rec, err)
	}
	b.up.Clear()
	if _, err := b.Record(t.Context(), version(0)); err != nil {
		t.Errorf("the other record was kept: %v", err)
	}
}

// A head that was proved once vouches for more records without being proved again; what comes under it is still proved.
func TestRecordUnderAKnownHead(t *testing.T) {
	b := start(t, 310)
	b.grow(t, 310)
	fresh := func() *store.Store {
		s, err := store.Open(t.Context(), t.TempDir(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	b.opt.Store = fresh()
	b.open(t)
	for _, i := range []int{5, 300, 10, 301} {
		if r, err := b.Record(t.Context(), version(i)); err != nil || r.Number != int64(i) {
			t.Fatalf("record %d = %+v, %v", i, r, err)
		}
	}
	true11, err := b.Lookup(t.Context(), version(11), false)
	if err != nil {
		t.Fatal(err)
	}
	b.opt.Store = fresh()
	b.open(t)
	if _, err := b.Record(t.Context(), version(12)); err != nil {
		t.Fatal(err)
	}
	end := bytes.Index(true11, []byte("\n\n")) + 2
	record, head := true11[:end], true11[end:]
	for name, forged := range map[string][]byte{
		"other hash":       slices.Concat(bytes.Replace(record, []byte("h1:"), []byte("h1:A"), 1), head),
		"other number":     slices.Concat(bytes.Replace(record, []byte("11\n"), []byte("13\n"), 1), head),
		"beyond the head":  slices.Concat(bytes.Replace(record, []byte("11\n"), []byte("700\n"), 1), head),
		"unsigned head":    slices.Concat(record, head[:bytes.Index(head, []byte("\n\n"))+2]),
		"other signature":  slices.Concat(record, bytes.Replace(head, []byte("310\n"), []byte("311\n"), 1)),
		"another's record": bytes.Replace(slices.Concat(record, head), []byte("v1.11.0"), []byte("v1.12.0"), -1),
	} {
		b.up.Break("*/lookup/*", mirrortest.Fault{Body: forged})
		if r, err := b.Record(t.Context(), version(11)); !errors.Is(err, sumdb.ErrInvalid) {
			t.Errorf("C43 %s: Record = %+v, %v; want ErrInvalid", name, r, err)
		}
	}
	b.up.Clear()
	if _, err := b.Record(t.Context(), version(11)); err != nil {
		t.Errorf("the true record after forged ones: %v", err)
	}
}

func TestLookupServesProvedRecords(t *testing.T) {
	b := start(t, 3)
	rec, err := b.Lookup(t.Context(), version(1), false)
	if err != nil || !bytes.Contains(rec, []byte("example.com/m v1.1.0/go.mod h1:")) {
		t.Fatalf("Lookup = %q, %v", rec, err)
	}
	b.up.Break("*", mirrortest.Fault{Status: 500})
	if again, err := b.Lookup(t.Context(), version(1), true); err != nil || !bytes.Equal(again, rec) {
		t.Errorf("C41 Lookup with the database gone = %q, %v", again, err)
	}
	if _, err := b.Lookup(t.Context(), version(2), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("C52 Lookup of what is not kept = %v, want fs.ErrNotExist", err)
	}
	b.up.Clear()
	b.up.Break("*/lookup/*", mirrortest.Fault{Flip: true})
	if _, err := b.Lookup(t.Context(), version(2), false); !errors.Is(err, sumdb.ErrInvalid) && !errors.Is(err, sumdb.ErrNotListed) {
		t.Errorf("Lookup of a spoilt record = %v, want ErrInvalid", err)
	}
	b.up.Clear()
	if _, err := b.Lookup(t.Context(), version(2), false); err != nil {
		t.Errorf("the spoilt record was kept: %v", err)
	}
}

func TestTilesAreProvedAndKept(t *testing.T) {
	const n = 270
	b := start(t, n)
	b.grow(t, n)
	for _, tt := range []struct {
		name string
		tile tlog.Tile
		size int
	}{
		{"C42 full tile", tlog.Tile{H: 8, L: 0, N: 0, W: 256}, 8192},
		{"C42 partial tile", tlog.Tile{H: 8, L: 0, N: 1, W: n - 256}, (n - 256) * 32},
		{"C42 older partial tile", tlog.Tile{H: 8, L: 0, N: 1, W: 3}, 3 * 32},
		{"C42 part of a full tile", tlog.Tile{H: 8, L: 0, N: 0, W: 17}, 17 * 32},
		{"C42 upper level", tlog.Tile{H: 8, L: 1, N: 0, W: 1}, 32},
		{"C42 records", tlog.Tile{H: 8, L: -1, N: 1, W: 5}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want, err := b.opt.Fetch(t.Context(), "/"+tt.tile.Path(), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			got, err := b.Tile(t.Context(), tt.tile, false)
			if err != nil || !bytes.Equal(got, want) || tt.size >= 0 && len(got) != tt.size {
				t.Errorf("Tile(%s) = %d bytes, %v; want the database's %d", tt.tile.Path(), len(got), err, len(want))
			}
			if _, err := b.Tile(t.Context(), tt.tile, true); err != nil {
				t.Errorf("not kept: %v", err)
			}
		})
	}
	if _, err := b.Tile(t.Context(), tlog.Tile{H: 8, L: 0, N: 9, W: 1}, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tile beyond the tree = %v, want fs.ErrNotExist", err)
	}
}

func TestSpoiltTileIsNotKept(t *testing.T) {
	b := start(t, 3)
	b.grow(t, 3)
	head, err := b.Latest(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := store.Open(t.Context(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if err := fresh.Replace(t.Context(), "sumdb/"+b.Name()+"/latest", head); err != nil {
		t.Fatal(err)
	}
	b.opt.Store = fresh
	b.open(t)
	for _, level := range []int{0, -1} {
		tile := tlog.Tile{H: 8, L: level, N: 0, W: 3}
		b.up.Break("*/tile/*", mirrortest.Fault{Flip: true})
		if _, err := b.Tile(t.Context(), tile, false); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Tile(%s) spoilt = %v, want trouble", tile.Path(), err)
		}
		b.up.Clear()
		if _, err := b.Tile(t.Context(), tile, false); err != nil {
			t.Errorf("Tile(%s) afterwards = %v", tile.Path(), err)
		}
	}
}

func TestLatest(t *testing.T) {
	b := start(t, 5)
	b.grow(t, 1)
	first, err := b.Latest(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	b.up.Forget()
	if again, err := b.Latest(t.Context(), false); err != nil || !bytes.Equal(again, first) || len(b.up.Requests()) > 0 {
		t.Errorf("C43 within a minute: %v, requests %v", err, b.up.Requests())
	}
	b.grow(t, 5)
	b.open(t)
	b.up.Break("*", mirrortest.Fault{Status: 500})
	head, err := b.Latest(t.Context(), false)
	if err != nil || bytes.Equal(head, first) {
		t.Errorf("C43 with the database gone: %v; want the newest head seen, across a restart", err)
	}
	if len(b.seen) < 2 || b.seen[0] != 1 || b.seen[len(b.seen)-1] != 5 || !slices.IsSorted(b.seen) {
		t.Errorf("sizes of the heads seen: %v, want them to rise from 1 to 5", b.seen)
	}
}

func TestRollbackIsFatalEverywhere(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  func(*bed) error
	}{
		{"lookup", func(b *bed) error { _, err := b.Record(t.Context(), version(5)); return err }},
		{"latest", func(b *bed) error { b.open(t); _, err := b.Latest(t.Context(), false); return err }},
		{"tile", func(b *bed) error {
			_, err := b.Tile(t.Context(), tlog.Tile{H: 8, L: 0, N: 0, W: 7}, false)
			return err
		}},
	} {
		t.Run("C43 fork seen by "+tt.name, func(t *testing.T) {
			b := start(t, 9)
			b.grow(t, 4)
			b.up.Fork(8)
			if err := tt.ask(b); !errors.Is(err, sumdb.ErrSecurity) {
				t.Fatalf("%s after a fork = %v, want ErrSecurity", tt.name, err)
			}
			b.up.Forget()
			b.open(t)
			if _, err := b.Record(t.Context(), version(8)); !errors.Is(err, sumdb.ErrSecurity) || len(b.up.Requests()) > 0 {
				t.Errorf("after a restart = %v, requests %v; want ErrSecurity and none", err, b.up.Requests())
			}
		})
	}
}

func TestManyAtOnceKeepOneHistory(t *testing.T) {
	const n = 64
	b := start(t, n)
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { _, errs[i] = b.Record(context.Background(), version(i)) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	head, err := b.Latest(t.Context(), false)
	if err != nil || !bytes.Contains(head, fmt.Appendf(nil, "\n%d\n", n)) {
		t.Errorf("head after %d lookups = %q, %v", n, head, err)
	}
}

func TestKeys(t *testing.T) {
	if name, err := sumdb.CheckKey("sum.golang.org"); err != nil || name != "sum.golang.org" {
		t.Errorf("CheckKey of the public database = %q, %v", name, err)
	}
	for _, bad := range []string{"sum.unknown.example", "a+b+c", ""} {
		if _, err := sumdb.CheckKey(bad); err == nil {
			t.Errorf("CheckKey(%q): no error", bad)
		}
	}
}

func TestSpoiltHeadOnDisk(t *testing.T) {
	b := start(t, 1)
	b.grow(t, 1)
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	name := filepath.Join(dir, "sumdb", b.Name(), "latest")
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("half"), 0o644)); err != nil {
		t.Fatal(err)
	}
	b.opt.Store = s
	if _, err := sumdb.Open(t.Context(), b.opt); err == nil {
		t.Error("Open with a spoilt head: no error; forgetting it would allow a rollback")
	}
}

func TestSpoiltFilesHealThemselves(t *testing.T) {
	b := start(t, 3)
	b.grow(t, 2)
	for _, tt := range []struct {
		name string
		data []byte
	}{
		{"lookup/example.com/m@v1.0.0", nil},
		{"tile/8/0/000.p/2", make([]byte, 64)},
		{"tile/8/0/000.p/2", []byte("cut")},
	} {
		if err := b.store.Replace(t.Context(), "sumdb/"+b.Name()+"/"+tt.name, tt.data); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Record(t.Context(), version(0)); err != nil {
			t.Errorf("with %s spoilt: %v", tt.name, err)
		}
		if _, err := b.Lookup(t.Context(), version(0), false); err != nil {
			t.Errorf("with %s spoilt, serving: %v", tt.name, err)
		}
	}
}
