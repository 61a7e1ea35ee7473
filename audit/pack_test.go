package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/tlog"
)

// rawSegment is the content of a sealed segment with n records, and what it is packed.
func rawSegment(t testing.TB, n int) (raw, packed []byte) {
	t.Helper()
	e := &encoder{secrets: newSecrets(make([]byte, 32))}
	var prev tlog.Hash
	for seq := range n {
		frame := appendFrame(nil, KindDecision, e.encode(asked("ann", "example.com/m", "v1.0.0", "allow"), "n1"))
		prev, _ = stampFrame(frame, true, int64(seq), int64(seq), prev)
		raw = append(raw, frame...)
	}
	out, err := pack(bytes.NewReader(raw), layout{}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw, out
}

func TestPacked(t *testing.T) {
	t.Parallel()
	raw, out := rawSegment(t, 2*blockOf+100)
	open := func(t *testing.T) *packed {
		t.Helper()
		p, err := openPacked(bytes.NewReader(out), int64(len(out)), layout{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.close)
		return p
	}
	t.Run("any zstd tool unpacks it", func(t *testing.T) {
		r, err := zstd.NewReader(bytes.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("unpacked %d bytes, %v; want the %d of the raw segment", len(got), err, len(raw))
		}
		t.Logf("%d bytes packed into %d", len(raw), len(out))
	})
	t.Run("each part of it reads as the raw segment does", func(t *testing.T) {
		p := open(t)
		if len(p.blocks) != 3 {
			t.Fatalf("%d blocks, want 3", len(p.blocks))
		}
		for _, off := range []int64{0, 1, p.blocks[1].raw - 1, p.blocks[1].raw, p.blocks[2].raw - 10, p.blocks[2].raw, int64(len(raw)) - 3, int64(len(raw)), int64(len(raw)) + 9} {
			for _, n := range []int{0, 1, 20, scanWindow, len(raw)} {
				want, got := make([]byte, n), make([]byte, n)
				m, werr := bytes.NewReader(raw).ReadAt(want, off)
				k, gerr := p.ReadAt(got, off)
				if k != m || !bytes.Equal(got, want) || n > 0 && !errors.Is(gerr, werr) {
					t.Errorf("ReadAt(%d bytes, %d) = %d, %v; want %d, %v", n, off, k, gerr, m, werr)
				}
			}
		}
	})
	t.Run("a block is read alone", func(t *testing.T) {
		bad := slices.Clone(out)
		p := open(t)
		bad[p.blocks[0].off+30] ^= 1
		p.file = bytes.NewReader(bad)
		if _, err := p.ReadAt(make([]byte, 100), p.blocks[1].raw); err != nil {
			t.Errorf("reading the second block with the first one damaged: %v", err)
		}
		_, err := p.ReadAt(make([]byte, 100), 0)
		if d := wantDamage(t, err, ExitAltered, 0); d.SeqTo != blockOf-1 {
			t.Errorf("damage %v; want it to end with record %d", d, blockOf-1)
		}
	})
	t.Run("more follows, or less is there", func(t *testing.T) {
		for _, bad := range [][]byte{nil, out[:1], out[1:], out[:len(out)-1], append(slices.Clone(out), 0), slices.Concat(out, out)} {
			if _, err := openPacked(bytes.NewReader(bad), int64(len(bad)), layout{}, 0); !isDamage(err) {
				t.Errorf("opening %d bytes = %v", len(bad), err)
			}
		}
	})
}

func TestPackedTampering(t *testing.T) {
	t.Parallel()
	t.Run("A18 each bit of a packed segment flipped in turn", func(t *testing.T) {
		_, out := rawSegment(t, 90) // 64 KiB
		buf := make([]byte, 1<<17)
		for i := range 8 * len(out) {
			out[i/8] ^= 1 << (i % 8)
			p, err := openPacked(bytes.NewReader(out), int64(len(out)), layout{}, 0)
			if err == nil {
				_, err = p.ReadAt(buf, 0)
				p.close()
			}
			if d, ok := errors.AsType[*DamageError](err); !ok || d.Code != ExitAltered || d.Seq != 0 {
				t.Fatalf("bit %d of byte %d: %v", i%8, i/8, err)
			}
			out[i/8] ^= 1 << (i % 8)
		}
	})
	t.Run("A18 verify names the records, and the gateway refuses to start on them no less than on raw ones", func(t *testing.T) {
		s := writeLog(t, make([]*Record, 0), manyRecords(30), nil)
		name := s.packed(1)
		good := read(t, name)
		for i := 0; i < len(good); i += 97 {
			bad := slices.Clone(good)
			bad[i] ^= 0x10
			write(t, name, bad)
			wantDamage(t, s.verify(t), ExitAltered, 1)
		}
		write(t, name, good)
		if err := s.verify(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("A19 records taken out of a packed segment and the rest packed anew", func(t *testing.T) {
		s := writeLog(t, manyRecords(10), manyRecords(10), nil)
		first := s.firsts(t)[1]
		s.unpack(t)
		raw := read(t, s.segment(first))
		at := frames(t, raw)
		out, err := pack(bytes.NewReader(slices.Concat(raw[:at[3]], raw[at[4]:])), s.layout, first, nil)
		if err != nil {
			t.Fatal(err)
		}
		write(t, s.packed(first), out)
		if err := os.Remove(s.segment(first)); err != nil {
			t.Fatal(err)
		}
		wantDamage(t, s.verify(t), ExitAltered, first+3)
	})
	t.Run("A10 a packed segment deleted", func(t *testing.T) {
		s := writeLog(t, manyRecords(10), manyRecords(10), nil)
		firsts := s.firsts(t)
		if err := os.Remove(s.packed(firsts[1])); err != nil {
			t.Fatal(err)
		}
		if d := wantDamage(t, s.verify(t), ExitMissing, firsts[1]); d.SeqTo != firsts[2]-1 {
			t.Errorf("%v; want up to record %d", d, firsts[2]-1)
		}
		wantDamage(t, s.open(Options{}), ExitMissing, firsts[1])
	})
}

func manyRecords(n int) []*Record {
	var all []*Record
	for i := range n {
		all = append(all, asked(fmt.Sprintf("user-%d", i%3), "example.com/m", "v1.0.0", "allow"))
	}
	return all
}

func (s *saved) firsts(t testing.TB) []int64 {
	t.Helper()
	firsts, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	return firsts
}

// TestCrashWhilePacking stops before each operation of indexing and packing in turn, as a crash would.
func TestCrashWhilePacking(t *testing.T) {
	t.Parallel()
	t.Run("A14 the original stays until its copy is whole, no seq twice", func(t *testing.T) {
		s := saveLog(t, 5, 3)
		if err := os.Remove(s.index(0)); err != nil {
			t.Fatal(err)
		}
		want := eventIDs(t, s.dir)
		var done []string
		for n := 1; ; n++ {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
				t.Fatal(err)
			}
			count, last := 0, ""
			crash := func(op, name string) error {
				if count++; count < n {
					return nil
				}
				if last == "" {
					last = op
				}
				return syscall.EIO
			}
			l := &Log{layout: layout{dir: dir}, disk: faultDisk{before: crash}, stop: make(chan struct{})}
			err := l.packOne(0)
			if got := eventIDs(t, dir); !cmp.Equal(got, want) {
				t.Errorf("after a crash before operation %d (%s): records differ", n, last)
			}
			if _, err := Verify(t.Context(), dir, VerifyOptions{}); err != nil {
				t.Errorf("after a crash before operation %d (%s): %v", n, last, err)
			}
			reopened := &saved{dir: dir, layout: layout{dir: dir}}
			again, oerr := Open(smallConfig(dir), Options{Cluster: "test", Node: "n1"})
			if oerr != nil {
				t.Fatalf("Open after a crash before operation %d (%s): %v", n, last, oerr)
			}
			waitSealed(again)
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			reopened.wantPacked(t, 0)
			eventIDs(t, dir) // none twice
			if err == nil {
				break
			}
			done = append(done, last)
		}
		if !slices.Contains(done, "rename") || !slices.Contains(done, "remove") || len(done) < 12 {
			t.Errorf("crashes before %s only", strings.Join(done, ", "))
		}
	})
}

// wantPacked checks that a segment is packed and indexed, that its raw file is gone and no leftover stands there.
func (s *saved) wantPacked(t testing.TB, first int64) {
	t.Helper()
	for name, want := range map[string]bool{
		s.packed(first): true, s.index(first): true, s.hashes(first): true, s.segment(first): false,
		s.packed(first) + ".tmp": false, s.index(first) + ".tmp": false,
	} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", name, err, want)
		}
	}
}

// FuzzPacked opens any bytes as a packed segment: what is read is a whole, valid one, or an error.
func FuzzPacked(f *testing.F) {
	p, err := newPacker()
	if err != nil {
		f.Fatal(err)
	}
	p.add([]byte("a frame"))
	p.add([]byte("another"))
	f.Add(p.finish())
	f.Add([]byte(packMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := openPacked(bytes.NewReader(b), int64(len(b)), layout{}, 0)
		if err != nil {
			return
		}
		defer p.close()
		_, _ = p.ReadAt(make([]byte, 100), 0)
	})
}
