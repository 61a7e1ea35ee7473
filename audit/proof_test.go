package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func (s *saved) keys(t testing.TB) string {
	t.Helper()
	keys, err := NewArchive(s.dir).Keys()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestProve(t *testing.T) {
	t.Parallel()
	s := writeLog(t, manyRecords(5), manyRecords(300), manyRecords(3))
	a, keys := NewArchive(s.dir), s.keys(t)
	t.Run("every record, from segments that are packed and active", func(t *testing.T) {
		want := map[int64]string{}
		if err := Tail(t.Context(), s.dir, TailOptions{}, func(e Entry) error {
			want[e.Seq] = string(e.Raw)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for seq, record := range want {
			text, err := a.Prove(t.Context(), Position{Seq: seq})
			if err != nil {
				t.Fatal(err)
			}
			got, err := CheckProof(text, keys)
			if err != nil || got.Seq != seq || string(got.Record) != record || got.Origin != "audit.test/n1/0" || got.Size != int64(len(want)) {
				t.Fatalf("record %d: %+v, %v", seq, got, err)
			}
		}
	})
	t.Run("by event id, in either case, in full and short", func(t *testing.T) {
		id := asked("zoe", "example.com/m", "v1.0.0", "allow")
		log := writeLog(t, []*Record{id, outcome(id, false)}, manyRecords(2))
		for _, word := range []string{id.EventID, strings.ToLower(id.EventID[:8])} {
			at, err := NewArchive(log.dir).Find(t.Context(), word)
			if err != nil || at.Seq != 1 {
				t.Errorf("Find(%s) = %v, %v; want record 1, the decision", word, at, err)
			}
		}
		if _, err := a.Find(t.Context(), "AAAAAAAA"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Find of nothing = %v", err)
		}
	})
	t.Run("a record that is not there", func(t *testing.T) {
		for _, seq := range []int64{-1, 1 << 40} {
			if _, err := a.Prove(t.Context(), Position{Seq: seq}); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Prove(%d) = %v", seq, err)
			}
		}
	})
	t.Run("a record that was altered, under the untouched checkpoint", func(t *testing.T) {
		bad := writeLog(t, manyRecords(3))
		name, content, _ := bad.lastSegment(t)
		forged := bytes.Replace(content, []byte(`"id":"user-1"`), []byte(`"id":"user-9"`), 1)
		rest, prev := forged, tlog.Hash{}
		for seq := range int64(4) {
			prev, rest = stampFrame(rest, true, seq, 1, prev)
		}
		write(t, name, forged)
		_, err := NewArchive(bad.dir).Prove(t.Context(), Position{Seq: 2})
		wantDamage(t, err, ExitAltered, 2)
	})
}

func TestForgedProofs(t *testing.T) {
	t.Parallel()
	s := writeLog(t, manyRecords(10))
	keys := s.keys(t)
	good, err := NewArchive(s.dir).Prove(t.Context(), Position{Seq: 4})
	if err != nil {
		t.Fatal(err)
	}
	p, err := parseProof(string(good))
	if err != nil {
		t.Fatal(err)
	}
	other := writeLog(t, manyRecords(10))
	change := func(fn func(p *proof)) string {
		q := p
		q.payload, q.hashes, q.checkpoint = slices.Clone(p.payload), slices.Clone(p.hashes), slices.Clone(p.checkpoint)
		fn(&q)
		return q.String()
	}
	forged := strings.Replace(string(p.payload), "user-", "root-", 1)
	for _, tt := range []struct {
		name, text string
		code       int // 0: no proof at all
	}{
		{"A23 another record", change(func(p *proof) { p.payload = []byte(forged) }), ExitAltered},
		{"A23 wrong index", change(func(p *proof) { p.index++ }), ExitAltered},
		{"A23 index behind the tree", change(func(p *proof) { p.index = 1 << 50 }), ExitAltered},
		{"A23 negative index", strings.Replace(string(good), "index 4", "index -4", 1), 0},
		{"A23 index in another spelling", strings.Replace(string(good), "index 4", "index 04", 1), 0},
		{"A23 a hash changed", change(func(p *proof) { p.hashes[0][0] ^= 1 }), ExitAltered},
		{"A23 a hash missing", change(func(p *proof) { p.hashes = p.hashes[1:] }), ExitAltered},
		{"A23 a hash too many", change(func(p *proof) { p.hashes = append(p.hashes, tlog.Hash{}) }), ExitAltered},
		{"A23 more hashes than any tree has", change(func(p *proof) { p.hashes = make([]tlog.Hash, 65) }), 0},
		{"A23 oversized", string(good) + strings.Repeat("x", maxProof), 0},
		{"A23 empty", "", 0},
		{"A23 without its record", strings.Replace(string(good), "extra "+base64.StdEncoding.EncodeToString(p.payload)+"\n", "", 1), 0},
		{"A23 without checkpoint", strings.SplitAfter(string(good), "\n\n")[0], ExitKey},
		{"A21 checkpoint of another log with the same name", change(func(p *proof) { p.checkpoint = read(t, other.checkpoint()) }), ExitKey},
		{"A23 checkpoint with another size", change(func(p *proof) { p.checkpoint = bytes.Replace(p.checkpoint, []byte("\n12\n"), []byte("\n5\n"), 1) }), ExitKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := CheckProof([]byte(tt.text), keys)
			if tt.code == 0 && !errors.Is(err, errProof) {
				t.Errorf("CheckProof = %+v, %v; want no valid proof", got, err)
			}
			if d, ok := errors.AsType[*DamageError](err); tt.code != 0 && (!ok || d.Code != tt.code) {
				t.Errorf("CheckProof = %+v, %v; want code %d", got, err, tt.code)
			}
		})
	}
	t.Run("the good one, with other keys", func(t *testing.T) {
		if _, err := CheckProof(good, keys); err != nil {
			t.Error(err)
		}
		_, err := CheckProof(good, other.keys(t))
		wantDamage(t, err, ExitKey, -1)
	})
}

// FuzzProof: what parses prints back the same, and no text makes the checker panic.
func FuzzProof(f *testing.F) {
	s := writeLog(f, manyRecords(3))
	keys := s.keys(f)
	good, err := NewArchive(s.dir).Prove(f.Context(), Position{Seq: 2})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add("old 3\n\n" + string(read(f, s.checkpoint())))
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := parseProof(text); err == nil && p.String() != text {
			t.Errorf("%q prints back as %q", text, p.String())
		}
		if c, err := parseConsistency(text); err == nil && c.String() != text {
			t.Errorf("%q prints back as %q", text, c.String())
		}
		if shown, err := CheckProof([]byte(text), keys); err == nil && shown.Seq != 2 { // who has not the key has one proof
			t.Errorf("%q is taken for a proof", text)
		}
		_, _ = CheckConsistency([]byte(text), read(t, s.checkpoint()), keys)
	})
}

func TestConsistency(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := &saved{dir: dir, layout: layout{dir: dir}}
	var kept [][]byte
	for range 4 {
		l, err := Open(smallConfig(dir), Options{Cluster: "test", Node: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range manyRecords(7) {
			if err := l.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		sealNow(t, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, read(t, s.checkpoint()))
	}
	a, keys := NewArchive(dir), s.keys(t)
	t.Run("the log only grew", func(t *testing.T) {
		for i, since := range kept {
			text, err := a.ProveSince(since)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := CheckConsistency(text, since, keys); err != nil {
				t.Errorf("since checkpoint %d: %v", i, err)
			}
			if i > 0 {
				_, err := CheckConsistency(text, kept[i-1], keys)
				if _, ok := errors.AsType[*DamageError](err); !ok {
					t.Errorf("a proof since checkpoint %d passes for one since checkpoint %d: %v", i, i-1, err)
				}
			}
		}
	})
	t.Run("A20 the whole log rewritten with the stolen key", func(t *testing.T) {
		old, err := readKeys(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := openCheckpoint(kept[1], "audit.test/n1/0", old)
		if err != nil {
			t.Fatal(err)
		}
		s.unpack(t)
		var forged []byte
		for _, first := range s.firsts(t) {
			raw := read(t, s.segment(first))
			forged = append(forged, raw[:frames(t, raw)[len(frames(t, raw))-1]]...)
		}
		forged = bytes.ReplaceAll(forged, []byte(`"id":"user-1"`), []byte(`"id":"user-9"`))
		rest, prev := forged, tlog.Hash{}
		for seq := int64(0); len(rest) > 0; seq++ {
			prev, rest = stampFrame(rest, true, seq, 1, prev)
		}
		if err := os.RemoveAll(s.segments()); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(s.segments(), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, s.segment(0), forged)
		s.resign(t, s.tree(t, forged), "audit.test/n1/0")
		if err := s.verify(t); err != nil {
			t.Fatalf("Verify of a perfect forgery without anything published: %v", err)
		}
		_, err = Verify(t.Context(), dir, VerifyOptions{Checkpoints: []string{string(kept[1])}})
		wantDamage(t, err, ExitConflict, c.size-1)
		_, err = NewArchive(dir).ProveSince(kept[1])
		wantDamage(t, err, ExitConflict, c.size-1)
	})
	t.Run("A15 an older copy of the log", func(t *testing.T) {
		young := writeLog(t, manyRecords(2))
		early := read(t, young.checkpoint())
		c := checkpoint{origin: "audit.test/n1/0", size: 1000, time: time.Now()}
		key, err := loadKey(young.dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		ahead, err := note.Sign(&note.Note{Text: c.String()}, key.signer)
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewArchive(young.dir).ProveSince(ahead)
		if d := wantDamage(t, err, ExitShort, 4); d.SeqTo != 999 {
			t.Errorf("damage %v", d)
		}
		if _, err := NewArchive(young.dir).ProveSince(early); err != nil {
			t.Error(err)
		}
	})
}

// TestTiles proves over more records than one tile covers, with and without tiles, and with one that was altered.
func TestTiles(t *testing.T) {
	t.Parallel()
	const size = 2*65536 + 300
	dir := t.TempDir()
	l := layout{dir: dir}
	if err := os.MkdirAll(l.segments(), 0o700); err != nil {
		t.Fatal(err)
	}
	var leaves []byte
	var tree edge
	for i := range size {
		h := tlog.RecordHash(fmt.Append(nil, i))
		leaves = append(leaves, h[:]...)
		tree.push(h)
	}
	for _, bounds := range [][2]int{{0, 1000}, {1000, 70_001}, {70_001, size}} {
		write(t, l.segment(int64(bounds[0])), nil)
		write(t, l.hashes(int64(bounds[0])), leaves[bounds[0]*tlog.HashSize:bounds[1]*tlog.HashSize])
	}
	check := func(t *testing.T, noTiles bool) error {
		t.Helper()
		r, err := newHashReader(l)
		if err != nil {
			t.Fatal(err)
		}
		r.noTiles = noTiles
		for _, seq := range []int64{0, 999, 1000, 65535, 65536, 70_000, 2*65536 - 1, 2 * 65536, size - 1} {
			p, err := tlog.ProveRecord(size, seq, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(p, size, tree.root(), seq, tlog.Hash(leaves[seq*tlog.HashSize:])); err != nil {
				return fmt.Errorf("record %d: %w", seq, err)
			}
		}
		return nil
	}
	if err := check(t, false); err != nil {
		t.Errorf("without tiles: %v", err)
	}
	log := &Log{layout: l, disk: osDisk{}, stop: make(chan struct{})}
	if err := log.writeTiles(size); err != nil {
		t.Fatal(err)
	}
	for n := range int64(2) {
		if b := read(t, l.tile(1, n)); len(b) != 8192 {
			t.Errorf("tile %d has %d bytes", n, len(b))
		}
	}
	if err := check(t, false); err != nil {
		t.Errorf("with tiles: %v", err)
	}
	spoilt := read(t, l.tile(1, 1))
	for i := range spoilt {
		spoilt[i] ^= 0xff
	}
	write(t, l.tile(1, 1), spoilt)
	if err := check(t, false); err == nil {
		t.Error("an altered tile is not seen")
	}
	if err := check(t, true); err != nil {
		t.Errorf("without the altered tile: %v", err)
	}
	if got, want := l.tile(2, 1234067), "/tile/2/x001/x234/067"; !strings.HasSuffix(got, want) {
		t.Errorf("tile = %s, want …%s", got, want)
	}
}

func TestVerifyFrom(t *testing.T) {
	t.Parallel()
	s := writeLog(t, manyRecords(5), manyRecords(5), manyRecords(5))
	second := s.firsts(t)[1]
	flip := func(name string) {
		b := read(t, name)
		b[len(b)/3] ^= 1
		write(t, name, b)
	}
	verify := func(from int64) error {
		_, err := Verify(t.Context(), s.dir, VerifyOptions{From: from})
		return err
	}
	flip(s.packed(0))
	if err := verify(second); err != nil {
		t.Errorf("from record %d, with damage before it: %v", second, err)
	}
	wantDamage(t, verify(second-1), ExitAltered, 0)
	wantDamage(t, verify(0), ExitAltered, 0)
	flip(s.hashes(0))
	if _, ok := errors.AsType[*DamageError](verify(second)); !ok {
		t.Error("leaf hashes that do not lead to the checkpoint are believed")
	}
}
