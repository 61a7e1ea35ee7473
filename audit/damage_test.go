package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A saved log is one whose files a test may change.
type saved struct {
	dir string
	layout
	ids []string // event ids by seq; "" for control records
}

// saveLog writes records, sealing a segment after each of the given numbers of them, and closes.
func saveLog(t testing.TB, perSegment ...int) *saved {
	t.Helper()
	s := &saved{dir: t.TempDir()}
	s.layout = layout{dir: s.dir}
	l, err := Open(smallConfig(s.dir), Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range perSegment {
		for range n {
			if err := l.Append(context.Background(), benchRecord()); err != nil {
				t.Fatal(err)
			}
		}
		if i+1 < len(perSegment) {
			l.mu.Lock()
			l.active.begun = time.Now().Add(-2 * segmentLife)
			l.mu.Unlock()
		}
	}
	waitSealed(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.unpack(t)
	ids := eventIDs(t, s.dir)
	s.ids = make([]string, len(ids))
	for id, seq := range ids {
		s.ids[seq] = id
	}
	return s
}

// unpack makes raw files of packed segments, as they are before they are packed.
func (s *saved) unpack(t testing.TB) {
	t.Helper()
	firsts, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range firsts {
		f, err := s.openSegment(first)
		if err != nil {
			t.Fatal(err)
		}
		if f.packed != nil {
			raw, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
			if err != nil {
				t.Fatal(err)
			}
			write(t, s.segment(first), raw)
			if err := os.Remove(s.packed(first)); err != nil {
				t.Fatal(err)
			}
		}
		f.close()
	}
}

// waitSealed waits until every full segment is sealed and packed.
func waitSealed(l *Log) {
	for sealed := false; !sealed; runtime.Gosched() {
		l.mu.Lock()
		sealed = len(l.unseal) == 0 && len(l.unpacked) == 0
		l.mu.Unlock()
	}
}

func (s *saved) verify(t testing.TB) error {
	t.Helper()
	_, err := Verify(t.Context(), s.dir, VerifyOptions{})
	return err
}

func (s *saved) open(o Options) error {
	o.Cluster, o.Node = "test", "n1"
	l, err := Open(smallConfig(s.dir), o)
	if err != nil {
		return err
	}
	return l.Close()
}

// lastSegment returns the name of the last segment, its content and where its frames begin; the last is its end.
func (s *saved) lastSegment(t testing.TB) (name string, content []byte, offsets []int) {
	t.Helper()
	firsts, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	name = s.segment(firsts[len(firsts)-1])
	return name, read(t, name), frames(t, read(t, name))
}

func frames(t testing.TB, content []byte) (offsets []int) {
	t.Helper()
	for at := 0; ; {
		offsets = append(offsets, at)
		_, n, err := parseFrame(content[at:])
		if err != nil {
			return offsets
		}
		at += n
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantDamage(t testing.TB, err error, code int, seq int64) *DamageError {
	t.Helper()
	d, ok := errors.AsType[*DamageError](err)
	if !ok || d.Code != code || d.Seq != seq {
		t.Fatalf("got %v; want code %d at record %d", err, code, seq)
	}
	return d
}

func TestTampering(t *testing.T) {
	t.Parallel()
	t.Run("A18 each byte of a sealed segment changed in turn", func(t *testing.T) {
		s := saveLog(t, 3, 1)
		name := s.segment(0)
		sealed := read(t, name)
		offsets := frames(t, sealed)
		if len(sealed) != offsets[len(offsets)-1] {
			t.Fatalf("segment of %d bytes was not sealed", len(sealed))
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for i, c := range sealed {
			if i > 2*(offsets[1]-offsets[0]) && i%4 != 0 { // every byte of two records, then samples
				continue
			}
			if _, err := f.WriteAt([]byte{c ^ 1<<(i%8)}, int64(i)); err != nil {
				t.Fatal(err)
			}
			seq, _ := slices.BinarySearch(offsets, i+1)
			wantDamage(t, s.verify(t), ExitAltered, int64(seq-1))
			if _, err := f.WriteAt([]byte{c}, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.verify(t); err != nil {
			t.Errorf("Verify of the restored log: %v", err)
		}
	})
	t.Run("a byte changed in any record, the last one included, is named with its event", func(t *testing.T) {
		s := saveLog(t, 20)
		name, content, offsets := s.lastSegment(t)
		for seq := range len(offsets) - 1 {
			changed := bytes.Clone(content)
			changed[offsets[seq+1]-5] ^= 0x20
			write(t, name, changed)
			d := wantDamage(t, s.verify(t), ExitAltered, int64(seq))
			if d.EventID != s.ids[seq] {
				t.Errorf("record %d: event %q, want %q", seq, d.EventID, s.ids[seq])
			}
			if seq == 7 {
				wantDamage(t, s.open(Options{}), ExitAltered, int64(seq))
			}
		}
	})
	t.Run("a record changed with its CRC made good is named by chain or checkpoint", func(t *testing.T) {
		s := saveLog(t, 20)
		name, content, offsets := s.lastSegment(t)
		for seq := range len(offsets) - 1 {
			changed := bytes.Clone(content)
			frame := changed[offsets[seq]:offsets[seq+1]]
			i := bytes.Index(frame, []byte(`"v":1`))
			frame[i+4] = '2'
			f, _, _ := parseFrame(content[offsets[seq]:])
			stampFrame(frame, f.mark&markBatch != 0, f.seq, f.time, f.prev())
			write(t, name, changed)
			d := wantDamage(t, s.verify(t), ExitAltered, int64(seq))
			if d.EventID != s.ids[seq] {
				t.Errorf("record %d: event %q, want %q", seq, d.EventID, s.ids[seq])
			}
		}
	})
	t.Run("the link to the record before changed with its CRC made good", func(t *testing.T) {
		s := saveLog(t, 20)
		name, content, offsets := s.lastSegment(t)
		for _, seq := range []int{5, 18} {
			changed := bytes.Clone(content)
			f, _, _ := parseFrame(content[offsets[seq]:])
			stampFrame(changed[offsets[seq]:offsets[seq+1]], false, f.seq, f.time, tlog.Hash{1})
			write(t, name, changed)
			wantDamage(t, s.verify(t), ExitAltered, int64(seq))
		}
	})
	t.Run("A19 a record removed, all after it renumbered, chain and CRC recomputed", func(t *testing.T) {
		s := saveLog(t, 20)
		published := string(read(t, s.checkpoint()))
		name, content, offsets := s.lastSegment(t)
		forged := append(bytes.Clone(content[:offsets[9]]), content[offsets[10]:]...)
		rest, prev := forged, tlog.Hash{}
		for seq := range int64(len(offsets) - 2) {
			prev, rest = stampFrame(rest, true, seq, 1, prev)
		}
		write(t, name, forged)
		wantDamage(t, s.verify(t), ExitShort, int64(len(offsets)-2))
		wantDamage(t, s.open(Options{}), ExitShort, int64(len(offsets)-2))
		// And the checkpoint made anew with the stolen key: only what was published tells.
		s.resign(t, s.tree(t, forged), "audit.test/n1/0")
		if err := s.verify(t); err != nil {
			t.Fatalf("Verify of a perfect forgery without anything published: %v", err)
		}
		_, err := Verify(t.Context(), s.dir, VerifyOptions{Checkpoints: []string{published}})
		wantDamage(t, err, ExitShort, int64(len(offsets)-2))
	})
	t.Run("A21 checkpoint of another log", func(t *testing.T) {
		s, other := saveLog(t, 3), saveLog(t, 3)
		write(t, s.checkpoint(), read(t, other.checkpoint()))
		wantDamage(t, s.verify(t), ExitKey, -1)
		wantDamage(t, s.open(Options{}), ExitKey, -1)
	})
	t.Run("A21 checkpoint of another origin under the right key", func(t *testing.T) {
		s := saveLog(t, 3)
		_, content, _ := s.lastSegment(t)
		s.resign(t, s.tree(t, content), "audit.test/n2/0")
		wantDamage(t, s.verify(t), ExitKey, -1)
	})
	t.Run("A22 two checkpoints of one size with different roots", func(t *testing.T) {
		s := saveLog(t, 3)
		published := string(read(t, s.checkpoint()))
		_, content, offsets := s.lastSegment(t)
		tree := s.tree(t, content)
		tree.roots[0][0] ^= 1
		s.resign(t, tree, "audit.test/n1/0")
		_, err := Verify(t.Context(), s.dir, VerifyOptions{Checkpoints: []string{published}})
		wantDamage(t, err, ExitConflict, int64(len(offsets)-2))
	})
	t.Run("a checkpoint taken away", func(t *testing.T) {
		s := saveLog(t, 3)
		if err := os.Remove(s.checkpoint()); err != nil {
			t.Fatal(err)
		}
		wantDamage(t, s.verify(t), ExitMissing, -1)
		wantDamage(t, s.open(Options{}), ExitMissing, -1)
	})
}

// tree returns the tree over a segment's frames.
func (s *saved) tree(t testing.TB, content []byte) (tree edge) {
	t.Helper()
	var scratch bytes.Buffer
	for {
		f, n, err := parseFrame(content)
		if err != nil {
			return tree
		}
		tree.push(f.leaf(&scratch))
		content = content[n:]
	}
}

// resign replaces the checkpoint, with the log's own key.
func (s *saved) resign(t testing.TB, tree edge, origin string) {
	t.Helper()
	key, err := loadKey(s.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := checkpoint{origin: origin, size: tree.size, root: tree.root(), time: time.Now()}.sign(key.signer)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.checkpoint(), signed)
}

func TestCheckpointSignatures(t *testing.T) {
	const name = "audit.test/n1/0"
	now := time.Unix(1_800_000_000, 0)
	key := func() (note.Signer, keyWindow) {
		secret, public, err := note.GenerateKey(nil, name)
		if err != nil {
			t.Fatal(err)
		}
		signer, _ := note.NewSigner(secret)
		verifier, err := note.NewVerifier(public)
		if err != nil {
			t.Fatal(err)
		}
		return signer, keyWindow{verifier: verifier, text: public, from: now.Add(-time.Hour), to: now.Add(keyLife)}
	}
	ours, window := key()
	c := checkpoint{origin: name, size: 3, root: tlog.Hash{7}, time: now}
	sign := func(c checkpoint, signers ...note.Signer) []byte {
		b, err := note.Sign(&note.Note{Text: c.String()}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	strangers := make([]note.Signer, 101)
	for i := range strangers {
		strangers[i], _ = key()
	}
	late, early := c, c
	late.time, early.time = now.Add(keyLife), now.Add(-2*time.Hour)
	for _, tt := range []struct {
		name   string
		signed []byte
		want   string // "" for good
	}{
		{"our key", sign(c, ours), ""},
		{"A24 unknown extra signatures are ignored", sign(c, strangers[0], ours, strangers[1]), ""},
		{"A24 a known one is still required", sign(c, strangers[0]), "no verifiable signatures"},
		{"A24 more than 100 are refused", sign(c, append([]note.Signer{ours}, strangers...)...), "malformed note"},
		{"after the key's window", sign(late, ours), "outside the window"},
		{"before the key's window", sign(early, ours), "outside the window"},
		{"text changed after signing", bytes.Replace(sign(c, ours), []byte("\n3\n"), []byte("\n4\n"), 1), "invalid signature"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := openCheckpoint(tt.signed, name, keyring{window})
			if tt.want == "" && (err != nil || got != c) {
				t.Errorf("openCheckpoint = %v, %v; want %v", got, err, c)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("openCheckpoint = %v; want an error with %q", err, tt.want)
			}
		})
	}
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	t.Run("A7 last segment cut at each byte of its last frame", func(t *testing.T) {
		s := saveLog(t, 3)
		name, content, offsets := s.lastSegment(t)
		s.checkpointBefore(t, content[:offsets[len(offsets)-2]])
		checkpoint := read(t, s.checkpoint())
		start, end := offsets[len(offsets)-2], offsets[len(offsets)-1]
		for cut := start; cut < end; cut += 1 + cut%23 {
			write(t, name, content[:cut])
			write(t, s.checkpoint(), checkpoint)
			if cut == start+1 || cut == end-1 { // verify looks for a while whether a live log is still writing there
				wantDamage(t, s.verify(t), ExitTorn, int64(len(offsets)-2))
			}
			if err := s.open(Options{}); err != nil {
				t.Fatalf("Open with the segment cut at %d: %v", cut, err)
			}
			if err := s.verify(t); err != nil {
				t.Fatalf("Verify after recovery at %d: %v", cut, err)
			}
			kept, _ := filepath.Glob(filepath.Join(s.dir, "quarantine", "*"))
			if want := min(cut-start, 1); len(kept) != want {
				t.Fatalf("cut at %d: %d files in quarantine, want %d", cut, len(kept), want)
			}
			for _, k := range kept {
				if got := read(t, k); !bytes.HasPrefix(content[start:cut], got) || !isZero(content[start+len(got):cut]) {
					t.Errorf("cut at %d: the quarantine holds other bytes", cut)
				}
				if err := os.Remove(k); err != nil {
					t.Fatal(err)
				}
			}
			if recovered := bytes.Contains(read(t, name), []byte(`"what":"recover"`)); recovered != (cut > start) {
				t.Errorf("cut at %d: control record of the recovery: %v", cut, recovered)
			}
		}
	})
	t.Run("A7 a write cut in its middle with its end on disk", func(t *testing.T) {
		s := saveLog(t, 6)
		name, content, offsets := s.lastSegment(t)
		first := 3 // of a batch of all that follow
		s.checkpointBefore(t, content[:offsets[first]])
		_, prev := restamp(content[:offsets[first]], 0, tlog.Hash{})
		restamp(content[offsets[first]:offsets[len(offsets)-1]], int64(first), prev)
		clear(content[offsets[first+1]:offsets[first+2]])
		write(t, name, content)
		wantDamage(t, s.verify(t), ExitTorn, int64(first+1))
		if err := s.open(Options{}); err != nil {
			t.Fatal(err)
		}
		if err := s.verify(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("a later write behind damage is no torn tail", func(t *testing.T) {
		s := saveLog(t, 6)
		name, content, offsets := s.lastSegment(t)
		s.checkpointBefore(t, content[:offsets[2]])
		clear(content[offsets[3]:offsets[4]])
		write(t, name, content)
		wantDamage(t, s.open(Options{}), ExitAltered, 3)
	})
	t.Run("A8 zeros to the end of the segment are a clean end", func(t *testing.T) {
		s := saveLog(t, 3)
		name, content, offsets := s.lastSegment(t)
		write(t, name, append(content[:offsets[len(offsets)-1]], make([]byte, minSegment)...))
		if err := errors.Join(s.verify(t), s.open(Options{}), s.verify(t)); err != nil {
			t.Error(err)
		}
		if kept, _ := filepath.Glob(filepath.Join(s.dir, "quarantine", "*")); len(kept) > 0 {
			t.Errorf("quarantine holds %v", kept)
		}
	})
	t.Run("A9 last segment deleted", func(t *testing.T) {
		s := saveLog(t, 4, 3)
		name, _, _ := s.lastSegment(t)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		wantDamage(t, s.verify(t), ExitShort, 5)
		d := wantDamage(t, s.open(Options{}), ExitShort, 5)
		if d.SeqTo != int64(len(s.ids)-1) {
			t.Errorf("missing up to %d, want %d", d.SeqTo, len(s.ids)-1)
		}
		if err := s.open(Options{AcceptDamage: true}); err != nil {
			t.Fatalf("Open with AcceptDamage: %v", err)
		}
		report, err := Verify(t.Context(), s.dir, VerifyOptions{})
		if err != nil || len(report.Accepted) != 1 || report.Epochs != 2 {
			t.Errorf("Verify of the new epoch = %+v, %v", report, err)
		}
		if first := read(t, layout{dir: s.dir, epoch: 1}.segment(0)); !bytes.Contains(first[:2048], []byte(`"what":"gap","seq_from":5`)) {
			t.Errorf("first record of the new epoch: %q", first[:500])
		}
		if err := s.open(Options{}); err != nil {
			t.Errorf("Open of the new epoch: %v", err)
		}
	})
	t.Run("A10 middle segment deleted", func(t *testing.T) {
		s := saveLog(t, 4, 3, 3)
		if err := os.Remove(s.segment(5)); err != nil {
			t.Fatal(err)
		}
		d := wantDamage(t, s.verify(t), ExitMissing, 5)
		if firsts, _ := s.list(); d.SeqTo != firsts[1]-1 {
			t.Errorf("missing up to %d, want %d", d.SeqTo, firsts[1]-1)
		}
		wantDamage(t, s.open(Options{}), ExitMissing, 5)
	})
	t.Run("A10 first segment deleted", func(t *testing.T) {
		s := saveLog(t, 4, 3)
		if err := os.Remove(s.segment(0)); err != nil {
			t.Fatal(err)
		}
		d := wantDamage(t, s.verify(t), ExitMissing, 0)
		if d.SeqTo != 4 {
			t.Errorf("missing up to %d, want 4", d.SeqTo)
		}
		wantDamage(t, s.open(Options{}), ExitMissing, 0)
	})
	t.Run("A12 crash between creating a segment and syncing its folder", func(t *testing.T) {
		s := saveLog(t, 3)
		other := saveLog(t, 3)
		_, content, _ := other.lastSegment(t)
		write(t, s.spare(), content) // worse than a crash can leave: a spare with content
		write(t, s.hashes(0)+".tmp", []byte("half"))
		if err := errors.Join(s.verify(t), s.open(Options{}), s.verify(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("A12 the new segment's name did not reach the disk", func(t *testing.T) {
		s := saveLog(t, 3)
		firsts, _ := s.list()
		write(t, s.spare(), make([]byte, minSegment))
		if len(firsts) != 1 {
			t.Fatal(firsts)
		}
		if err := errors.Join(s.open(Options{}), s.verify(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("A13 crash between sealing and checkpoint", func(t *testing.T) {
		s := saveLog(t, 4, 3)
		report, err := Verify(t.Context(), s.dir, VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{s.hashes(0)} { // sealing half done
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		again, err := Verify(t.Context(), s.dir, VerifyOptions{})
		if err != nil || again.Root != report.Root {
			t.Errorf("Verify = %v, %v; want root %v", again.Root, err, report.Root)
		}
		if err := errors.Join(s.open(Options{}), s.verify(t)); err != nil {
			t.Error(err)
		}
	})
}

// restamp makes frames one write, numbered from seq.
func restamp(frames []byte, seq int64, prev tlog.Hash) (next int64, last tlog.Hash) {
	for first := true; len(frames) > 0; first = false {
		frames[8] &^= markBatch
		prev, frames = stampFrame(frames, first, seq, 1, prev)
		seq++
	}
	return seq, prev
}

// checkpointBefore signs a checkpoint of an earlier state, as a crash within a second would have left it.
func (s *saved) checkpointBefore(t testing.TB, content []byte) {
	t.Helper()
	s.resign(t, s.tree(t, content), "audit.test/n1/0")
}

func TestOneTreeWithTlog(t *testing.T) {
	var tree edge
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, hashes[i])
		}
		return out, nil
	})
	for n := range int64(70) {
		want, err := tlog.TreeHash(n, reader)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.root(); n > 0 && got != want {
			t.Errorf("root of %d leaves = %v, want %v", n, got, want)
		}
		data := fmt.Append(nil, "record ", n)
		stored, err := tlog.StoredHashes(n, data, reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, stored...)
		tree.push(tlog.RecordHash(data))
	}
}

func TestKeyChange(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(smallConfig(dir), Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old := read(t, epochKeys(dir, 0).list)
	if l, err = open(smallConfig(dir), Options{}, osDisk{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	key, err := loadKey(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = newKey(osDisk{}, dir, 0, key.signer.Name(), key, time.Now()); err != nil {
		t.Fatal(err)
	}
	if l, err = Open(smallConfig(dir), Options{}); err != nil {
		t.Fatalf("Open with a new key: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), dir, VerifyOptions{}); err != nil {
		t.Errorf("Verify with both keys: %v", err)
	}
	_, err = Verify(t.Context(), dir, VerifyOptions{Keys: string(old)})
	wantDamage(t, err, ExitKey, -1)
	if both, err := openKeys(read(t, epochKeys(dir, 0).list)); err != nil || len(both) != 2 || len(key.ring) != 2 {
		t.Errorf("key list = %v, %v", both, err)
	}
}
