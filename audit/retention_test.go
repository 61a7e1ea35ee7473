package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/audit/sinks"
)

// year is when all that a test writes is past its retention.
func year() time.Time { return time.Now().Add(DefaultRetention + time.Hour) }

// inBubble is t.Run where time goes by as fast as nobody needs it: a removal waits for a checkpoint.
func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// aging is an open log of four sealed segments and the active one, and what was kept of it elsewhere.
type aging struct {
	*saved
	log               *Log
	proof, checkpoint []byte // of record 1, and of the log before anything was removed
	firsts            []int64
}

func newAging(t testing.TB, cfg Config, o Options) *aging {
	t.Helper()
	return newAgingOn(t, cfg, o, osDisk{})
}

func newAgingOn(t testing.TB, cfg Config, o Options, d disk) *aging {
	t.Helper()
	a := &aging{saved: &saved{dir: t.TempDir()}}
	a.layout = layout{dir: a.dir}
	cfg.Dir, cfg.SegmentBytes = a.dir, minSegment
	o.Cluster, o.Node = "test", "n1"
	var err error
	if a.log, err = open(cfg, o, d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.log.Close() }) // where the test did not
	for range 4 {
		for range 3 {
			if err := a.log.Append(context.Background(), asked("ann", "example.com/m", "v1.0.0", "allow")); err != nil {
				t.Fatal(err)
			}
		}
		sealNow(t, a.log)
	}
	if a.proof, err = a.log.proveSigned(1); err != nil {
		t.Fatal(err)
	}
	a.checkpoint = read(t, a.layout.checkpoint())
	a.firsts = a.list1(t)
	return a
}

// withSinks is a configuration with one sink, which delivers nothing unless a test says so.
func withSinks(t testing.TB) Config {
	return Config{Sinks: []sinks.Config{{Name: "soc", Type: "file", Path: filepath.Join(t.TempDir(), "soc.jsonl")}}}
}

// delivered says that the sink has delivered all before a record.
func (a *aging) delivered(t testing.TB, epoch, next int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(a.dir, "cursors"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(a.dir, "cursors", "soc.json"), fmt.Appendf(nil, `{"origin":"audit.test/n1/%d","epoch":%[1]d,"next":%d,"tree":""}`, epoch, next))
}

func (a *aging) list1(t testing.TB) []int64 {
	t.Helper()
	firsts, err := a.list()
	if err != nil {
		t.Fatal(err)
	}
	return firsts
}

// expire removes what is due in a year, and returns the first record that is still there.
func (a *aging) expire(t testing.TB) int64 {
	t.Helper()
	if err := a.log.expire(year()); err != nil {
		t.Fatalf("expire: %v", err)
	}
	return a.list1(t)[0]
}

// said returns the log's own records of removals.
func (a *aging) said(t testing.TB) (all []Control) {
	t.Helper()
	err := Tail(t.Context(), a.dir, TailOptions{}, func(e Entry) error {
		r, err := parseRecord(e.Raw)
		if err == nil && r.Kind == KindControl && r.Control.What == removal {
			all = append(all, r.Control)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (a *aging) close(t testing.TB) {
	t.Helper()
	if err := a.log.Close(); err != nil {
		t.Fatal(err)
	}
}

// What stays provable after the records are gone: the tree, what was proved before, and that the log only grew.
func TestRetention(t *testing.T) { synctest.Test(t, retention) }

func retention(t *testing.T) {
	a := newAging(t, Config{}, Options{})
	if err := a.log.expire(time.Now()); err != nil || len(a.said(t)) != 0 || a.list1(t)[0] != 0 {
		t.Fatalf("records of today are removed: %v", err)
	}
	newest := a.firsts[len(a.firsts)-1]
	if first := a.expire(t); first != newest {
		t.Fatalf("first record left is %d, want %d, of the active segment", first, newest)
	}
	said := a.said(t)
	if len(said) != 1 || said[0].SeqFrom != 0 || said[0].SeqTo != newest-1 || said[0].Count != newest || said[0].Bytes == 0 || said[0].Root == "" {
		t.Errorf("the log says %+v; want one removal up to record %d", said, newest-1)
	}
	if a.expire(t); len(a.said(t)) != 1 {
		t.Error("nothing more is due, and a removal is recorded all the same")
	}
	keys := a.keys(t)
	if _, err := CheckProof(a.proof, keys); err != nil {
		t.Errorf("a proof made before: %v", err)
	}
	archive := NewArchive(a.dir)
	grew, err := archive.ProveSince(a.checkpoint)
	if err != nil {
		t.Fatalf("ProveSince: %v", err)
	}
	if _, err := CheckConsistency(grew, a.checkpoint, keys); err != nil {
		t.Errorf("consistency with a checkpoint from before: %v", err)
	}
	if _, err := archive.Prove(t.Context(), Position{Seq: 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Prove of a removed record = %v", err)
	}
	answer := who(t, a.dir, WhoQuery{Module: "example.com/m"})
	if len(answer.Fetches) != 0 || answer.Covered.Expired != newest || len(answer.Covered.Missing) != 0 {
		t.Errorf("Who: %+v; want nothing, and %d records expired", answer, newest)
	}
	a.close(t)
	if err := a.verify(t); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if _, err := Verify(t.Context(), a.dir, VerifyOptions{Checkpoints: []string{string(a.checkpoint)}, Keys: keys}); err != nil {
		t.Errorf("Verify with a checkpoint and the keys from before: %v", err)
	}
	if err := a.open(Options{}); err != nil {
		t.Errorf("the next start: %v", err)
	}
}

func TestRetentionKeepsWhatIsNeeded(t *testing.T) {
	inBubble(t, "A53 a sink lags", func(t *testing.T) {
		a := newAging(t, withSinks(t), Options{})
		if first := a.expire(t); first != 0 {
			t.Errorf("the sink never delivered anything: first record left is %d", first)
		}
		for _, seq := range []int64{0, 1, a.firsts[1] - 1, a.firsts[1], a.firsts[3] + 1, a.firsts[4]} {
			a.delivered(t, 0, seq)
			want := int64(0)
			for _, first := range a.firsts {
				if first <= seq {
					want = first
				}
			}
			if first := a.expire(t); first != want {
				t.Errorf("the sink is at %d: first record left is %d, want %d", seq, first, want)
			}
		}
		if n := len(a.said(t)); n != 3 {
			t.Errorf("%d removals recorded, want 3", n)
		}
		a.close(t)
		if err := a.verify(t); err != nil {
			t.Errorf("Verify: %v", err)
		}
	})
	inBubble(t, "A53 a cursor that cannot be read", func(t *testing.T) {
		a := newAging(t, withSinks(t), Options{})
		a.delivered(t, 0, a.firsts[4])
		write(t, filepath.Join(a.dir, "cursors", "soc.json"), []byte("{"))
		if err := a.log.expire(year()); err == nil || a.list1(t)[0] != 0 {
			t.Errorf("expire: %v", err)
		}
	})
	inBubble(t, "A53 a place that is away", func(t *testing.T) {
		s := &shelf{away: true}
		a := newAging(t, Config{Publish: []Publication{{Name: "worm", Location: "there"}}}, Options{
			Objects: func(context.Context, string) (Objects, error) { return s, nil },
		})
		time.Sleep(2 * publishEvery)
		if first := a.expire(t); first != 0 {
			t.Errorf("nothing is published: first record left is %d", first)
		}
		s.setAway(false)
		time.Sleep(2 * publishEvery)
		left := a.expire(t)
		if left == 0 {
			t.Error("all is published, and nothing went")
		}
		if there := len(s.names(".log.zst")); there < len(a.firsts)-1 {
			t.Errorf("%d segments are published, want %d", there, len(a.firsts)-1)
		}
	})
	inBubble(t, "A53 a sink that is new reads from the first record left on", func(t *testing.T) {
		a := newAging(t, Config{}, Options{})
		left := a.expire(t)
		r, err := exported{a.log}.Reader(sinks.Position{}, "native")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		events, err := r.Next(1, 1<<20)
		if err != nil || len(events) != 1 || events[0].Seq != left {
			t.Fatalf("events %+v, %v; want record %d", events, err, left)
		}
		again, err := exported{a.log}.Reader(r.Position(), "native") // its place in the tree is the true one
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	})
	inBubble(t, "legal hold", func(t *testing.T) {
		for day, kept := range map[string]bool{
			time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly): true, time.Now().UTC().AddDate(0, 0, 2).Format(time.DateOnly): false,
		} {
			a := newAging(t, Config{Hold: day}, Options{})
			if first := a.expire(t); (first == 0) != kept {
				t.Errorf("hold from %s on: first record left is %d", day, first)
			}
		}
	})
	inBubble(t, "the shortest retention", func(t *testing.T) {
		a := newAging(t, Config{Retention: time.Hour}, Options{})
		if err := a.log.expire(time.Now().Add(59 * time.Minute)); err != nil || a.list1(t)[0] != 0 {
			t.Errorf("removed too early: %v", err)
		}
		if err := a.log.expire(time.Now().Add(61 * time.Minute)); err != nil || a.list1(t)[0] == 0 {
			t.Errorf("not removed: %v", err)
		}
	})
}

// Whoever removes records without the log saying so is found, at start no less than by verify.
func TestRemovalWithoutARecord(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(t *testing.T, a *aging)
		code int
	}{
		"the proof taken away": {func(t *testing.T, a *aging) { remove(t, a.removed()) }, ExitMissing},
		"A10 more removed than the log says": {func(t *testing.T, a *aging) {
			remove(t, a.packed(a.firsts[2]))
			remove(t, a.index(a.firsts[2]))
		}, ExitMissing},
		"a proof of another record": {func(t *testing.T, a *aging) { write(t, a.removed(), a.proof) }, ExitAltered},
		"no proof at all":           {func(t *testing.T, a *aging) { write(t, a.removed(), []byte("x")) }, ExitAltered},
		"a proof that does not hold": {func(t *testing.T, a *aging) {
			text := strings.Replace(string(read(t, a.removed())), "index ", "index 1", 1)
			write(t, a.removed(), []byte(text))
		}, ExitAltered},
		"leaf hashes of a removed segment changed": {func(t *testing.T, a *aging) {
			b := read(t, a.hashes(0))
			b[5] ^= 1
			write(t, a.hashes(0), b)
		}, ExitAltered},
		"leaf hashes of a removed segment taken away": {func(t *testing.T, a *aging) { remove(t, a.hashes(0)) }, ExitMissing},
		"leaf hashes of a removed segment cut":        {func(t *testing.T, a *aging) { write(t, a.hashes(0), read(t, a.hashes(0))[:40]) }, ExitAltered},
	} {
		inBubble(t, name, func(t *testing.T) {
			a := newAging(t, withSinks(t), Options{})
			a.delivered(t, 0, a.firsts[2])
			if first := a.expire(t); first != a.firsts[2] {
				t.Fatalf("first record left is %d, want %d", first, a.firsts[2])
			}
			a.close(t)
			tt.do(t, a)
			for where, err := range map[string]error{"verify": a.verify(t), "start": a.open(Options{})} {
				if d, ok := errors.AsType[*DamageError](err); !ok || d.Code != tt.code {
					t.Errorf("%s: %v; want code %d", where, err, tt.code)
				}
			}
		})
	}
}

func remove(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// A removal that was cut short, wherever that was, is taken up again, and the log is whole all the time.
func TestRemovalCutShort(t *testing.T) {
	inBubble(t, "before its proof was written nothing goes", func(t *testing.T) {
		a := newAging(t, Config{}, Options{})
		if err := os.Mkdir(a.removed(), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := a.log.expire(year()); err == nil {
			t.Fatal("expire without a place for its proof: no error")
		}
		if a.list1(t)[0] != 0 {
			t.Error("records went before it was proved that they go")
		}
		remove(t, a.removed())
		if first := a.expire(t); first != a.firsts[4] {
			t.Errorf("first record left is %d, want %d", first, a.firsts[4])
		}
	})
	inBubble(t, "A17 some files went, in any order", func(t *testing.T) {
		a := newAging(t, Config{}, Options{})
		kept := map[int64][]byte{}
		for _, first := range []int64{0, a.firsts[2]} {
			kept[first] = read(t, a.packed(first))
		}
		a.expire(t)
		a.close(t)
		for first, b := range kept { // the power went before their removal was on disk
			write(t, a.packed(first), b)
		}
		if err := a.verify(t); err != nil {
			t.Errorf("Verify: %v", err)
		}
		l, err := Open(smallConfig(a.dir), Options{Cluster: "test", Node: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		waitSealed(l) // they get their indexes again
		if err := l.expire(year()); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if first := a.list1(t)[0]; first != a.firsts[4] {
			t.Errorf("first record left is %d, want %d", first, a.firsts[4])
		}
		if err := a.verify(t); err != nil {
			t.Errorf("Verify at last: %v", err)
		}
	})
}

// Damage that was accepted stays accepted when the record that names it is past its retention.
func TestAcceptedDamageOutlivesItsRecord(t *testing.T) {
	synctest.Test(t, acceptedDamageOutlivesItsRecord)
}

func acceptedDamageOutlivesItsRecord(t *testing.T) {
	a := newAging(t, Config{}, Options{})
	a.close(t)
	remove(t, a.packed(a.firsts[1]))
	l, err := Open(smallConfig(a.dir), Options{Cluster: "test", Node: "n1", AcceptDamage: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		sealNow(t, l)
	}
	if err := errors.Join(l.expire(year()), l.Close()); err != nil {
		t.Fatal(err)
	}
	second := layout{dir: a.dir, epoch: 1}
	if firsts, err := second.list(); err != nil || firsts[0] == 0 {
		t.Fatalf("segments left: %v, %v", firsts, err)
	}
	report, err := Verify(t.Context(), a.dir, VerifyOptions{})
	if err != nil || len(report.Accepted) != 1 {
		t.Errorf("Verify: %v, accepted %v", err, report.Accepted)
	}
	write(t, second.firstRecord(), a.proof)
	if _, err := Verify(t.Context(), a.dir, VerifyOptions{}); err == nil {
		t.Error("damage is accepted by a record of another epoch")
	}
}

func TestRetentionConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  Config
		says string
	}{
		"defaults": {Config{}, ""}, "an hour": {Config{Retention: time.Hour}, ""}, "a day to hold from": {Config{Hold: "2026-01-31"}, ""},
		"too short": {Config{Retention: time.Minute}, "retention: 1m0s is too short"}, "negative": {Config{Retention: -time.Hour}, "retention: "},
		"no day": {Config{Hold: "2026-02-30"}, "hold: \"2026-02-30\" is no day"}, "a word": {Config{Hold: "all"}, "hold: "},
	} {
		errs := tt.cfg.Validate()
		if (len(errs) == 0) != (tt.says == "") || len(errs) > 0 && !strings.HasPrefix(errs[0].Error(), tt.says) {
			t.Errorf("%s: %v, want %q", name, errs, tt.says)
		}
	}
}
