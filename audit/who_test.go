package audit

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// asked is a record of somebody who asked for a version.
func asked(subject, module, version, effect string) *Record {
	r := benchRecord()
	r.Subject.ID, r.Module, r.Version, r.Decision.Effect = subject, module, version, effect
	return r
}

// outcome is what became of a request.
func outcome(of *Record, aborted bool) *Record {
	o := Begin(of.EventID)
	o.Kind, o.Action, o.Module, o.Version = KindOutcome, of.Action, of.Module, of.Version
	o.Subject, o.Device = of.Subject, of.Device
	o.Outcome = Outcome{Status: 200, Aborted: aborted}
	return o
}

// writeLog writes records in sealed segments; the last of them stays active.
func writeLog(t testing.TB, segments ...[]*Record) *saved {
	t.Helper()
	s := &saved{dir: t.TempDir()}
	s.layout = layout{dir: s.dir}
	l, err := Open(smallConfig(s.dir), Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	for i, records := range segments {
		for _, r := range records {
			if err := l.Append(context.Background(), r); err != nil {
				t.Fatal(err)
			}
		}
		if i+1 < len(segments) {
			sealNow(t, l)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

// sealNow goes on to the next segment and waits until the one before is sealed.
func sealNow(t testing.TB, l *Log) {
	t.Helper()
	l.mu.Lock()
	for l.busy {
		l.idle.Wait()
	}
	l.active.begun = time.Now().Add(-2 * segmentLife)
	l.mu.Unlock()
	r := Begin("") // control records do not begin a segment
	r.Kind = KindAuth
	if err := l.Append(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	waitSealed(l)
}

func who(t testing.TB, dir string, q WhoQuery) *WhoAnswer {
	t.Helper()
	answer, err := NewArchive(dir).Who(t.Context(), q)
	if err != nil {
		t.Fatalf("Who(%+v): %v", q, err)
	}
	return answer
}

// lines are fetches as short words, for comparing.
func lines(fetches []Fetch) []string {
	var all []string
	for _, f := range fetches {
		s := fmt.Sprintf("%s %s %s %s ×%d", f.Version, f.Subject, f.Effect, f.What, f.Count)
		if f.Aborted {
			s += " aborted"
		}
		all = append(all, s)
	}
	return all
}

func TestWho(t *testing.T) {
	t.Parallel()
	const m = "example.com/m"
	broken, late := asked("bob", m, "v1.0.0", "allow"), asked("cat", m, "v1.0.0", "allow")
	info := asked("dan", m, "v1.0.0", "allow")
	info.Action = "info"
	head := asked("eve", m, "v1.0.0", "allow")
	head.Method = "HEAD"
	s := writeLog(
		t,
		[]*Record{asked("ann", m, "v1.0.0", "allow"), broken, outcome(broken, true), late, info, asked("x", "example.com/other", "v1.0.0", "allow")},
		[]*Record{outcome(late, true), asked("ann", m, "v1.0.0", "allow"), asked("ann", m, "v1.1.0", "deny"), head},
		[]*Record{asked("ann", m, "v1.0.0", "allow"), asked("fay", m, "v1.0.0", "error")},
	)
	t.Run("everybody, over sealed segments and the active one", func(t *testing.T) {
		got := who(t, s.dir, WhoQuery{Module: m, Version: "v1.0.0"})
		want := []string{
			"v1.0.0 ann allow zip ×3", "v1.0.0 bob allow zip ×1 aborted", "v1.0.0 cat allow zip ×1 aborted",
			"v1.0.0 dan allow metadata ×1", "v1.0.0 eve allow metadata ×1", "v1.0.0 fay error zip ×1",
		}
		words := lines(got.Fetches)
		slices.Sort(words)
		if diff := cmp.Diff(want, words); diff != "" {
			t.Errorf("who (-want +got):\n%s", diff)
		}
		if got.Covered.Segments != 3 || got.Covered.Rebuilt != 0 || len(got.Covered.Missing) != 0 || got.Covered.Records < 12 {
			t.Errorf("covered %+v", got.Covered)
		}
		ann := got.Fetches[slices.IndexFunc(got.Fetches, func(f Fetch) bool { return f.Subject == "ann" })]
		if !ann.First.Before(ann.Last) || ann.Device != "laptop-9" || ann.Issuer != "corp" {
			t.Errorf("ann: %+v", ann)
		}
	})
	t.Run("all versions", func(t *testing.T) {
		if got := lines(who(t, s.dir, WhoQuery{Module: m}).Fetches); got[len(got)-1] != "v1.1.0 ann deny zip ×1" || len(got) != 7 {
			t.Errorf("who = %q", got)
		}
	})
	t.Run("delivered leaves out what was broken off, refused, or no code", func(t *testing.T) {
		if got := lines(who(t, s.dir, WhoQuery{Module: m, Delivered: true}).Fetches); !slices.Equal(got, []string{"v1.0.0 ann allow zip ×3"}) {
			t.Errorf("who = %q", got)
		}
	})
	t.Run("refused", func(t *testing.T) {
		if got := lines(who(t, s.dir, WhoQuery{Module: m, Refused: true}).Fetches); !slices.Equal(got, []string{"v1.0.0 fay error zip ×1", "v1.1.0 ann deny zip ×1"}) {
			t.Errorf("who = %q", got)
		}
	})
	t.Run("from the records, checked against the tree, the answer is the same", func(t *testing.T) {
		plain, checked := who(t, s.dir, WhoQuery{Module: m}), who(t, s.dir, WhoQuery{Module: m, Verify: true})
		if diff := cmp.Diff(plain, checked); diff != "" {
			t.Errorf("-index +records:\n%s", diff)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		if got := who(t, s.dir, WhoQuery{Module: m, Version: "v9.0.0"}); len(got.Fetches) != 0 {
			t.Errorf("who = %+v", got.Fetches)
		}
	})
}

func TestIndexIsNeverBelieved(t *testing.T) {
	t.Parallel()
	const m = "example.com/m"
	s := writeLog(t, []*Record{asked("ann", m, "v1.0.0", "allow")}, []*Record{asked("bob", m, "v1.0.0", "allow")}, nil)
	name := s.index(0)
	good := read(t, name)
	want := lines(who(t, s.dir, WhoQuery{Module: m}).Fetches)
	check := func(t *testing.T, rebuilt int) {
		t.Helper()
		got := who(t, s.dir, WhoQuery{Module: m})
		if !slices.Equal(lines(got.Fetches), want) || got.Covered.Rebuilt != rebuilt || len(got.Covered.Missing) > 0 {
			t.Errorf("who = %q, covered %+v; want %q, %d rebuilt", lines(got.Fetches), got.Covered, want, rebuilt)
		}
	}
	t.Run("each byte changed in turn", func(t *testing.T) {
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= 1 << (i % 8)
			write(t, name, bad)
			got := who(t, s.dir, WhoQuery{Module: m})
			if !slices.Equal(lines(got.Fetches), want) || got.Covered.Rebuilt != 1 {
				t.Fatalf("byte %d changed: who = %q, covered %+v", i, lines(got.Fetches), got.Covered)
			}
		}
	})
	t.Run("cut", func(t *testing.T) {
		for _, n := range []int{0, 1, 5, 100, len(good) - 1} {
			write(t, name, good[:n])
			check(t, 1)
		}
	})
	t.Run("gone", func(t *testing.T) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		check(t, 1)
	})
	t.Run("of another log's segment, with a good CRC", func(t *testing.T) {
		other := writeLog(t, []*Record{asked("mallory", m, "v1.0.0", "allow")}, nil)
		write(t, name, read(t, other.index(0)))
		check(t, 1)
	})
	t.Run("back in place", func(t *testing.T) {
		write(t, name, good)
		check(t, 0)
	})
	t.Run("an altered record is found with --verify, not by the index", func(t *testing.T) {
		s.unpack(t)
		raw := read(t, s.segment(0))
		f, n, err := parseFrame(raw[frames(t, raw)[1]:])
		if err != nil {
			t.Fatal(err)
		}
		at := frames(t, raw)[1]
		forged := strings.Replace(string(f.record()), `"id":"ann"`, `"id":"bob"`, 1)
		frame := appendFrame(nil, KindDecision, []byte(forged))
		stampFrame(frame, true, f.seq, f.time, f.prev())
		write(t, s.segment(0), slices.Concat(raw[:at], frame, raw[at+n:]))
		check(t, 0)
		_, err = NewArchive(s.dir).Who(t.Context(), WhoQuery{Module: m, Verify: true})
		wantDamage(t, err, ExitAltered, 1)
	})
	t.Run("no index and no records: the answer says that it is incomplete", func(t *testing.T) {
		for _, n := range []string{s.segment(0), name} {
			if err := os.Remove(n); err != nil {
				t.Fatal(err)
			}
		}
		got := who(t, s.dir, WhoQuery{Module: m})
		if len(got.Covered.Missing) == 0 {
			t.Errorf("covered %+v", got.Covered)
		}
	})
}

// TestArchiveFollows asks one archive while the log grows, is sealed and grows on.
func TestArchiveFollows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := Open(smallConfig(dir), Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	a := NewArchive(dir)
	for i := 1; i <= 6; i++ {
		if err := l.Append(t.Context(), asked("ann", "example.com/m", "v1.0.0", "allow")); err != nil {
			t.Fatal(err)
		}
		got, err := a.Who(t.Context(), WhoQuery{Module: "example.com/m"})
		if err != nil || len(got.Fetches) != 1 || got.Fetches[0].Count != int64(i) {
			t.Errorf("after record %d: %v, %v", i, got, err)
		}
		if i%2 == 0 {
			sealNow(t, l)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	var segments [][]*Record
	var all []*Record
	rng := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for range 3 {
		var segment []*Record
		for range 1500 {
			r := asked(fmt.Sprintf("user-%d", rng.IntN(20)), fmt.Sprintf("example.com/m%d", rng.IntN(10)), fmt.Sprintf("v1.0.%d", rng.IntN(5)), "allow")
			r.T = start.Add(time.Duration(len(all)) * time.Second).UnixNano()
			if rng.IntN(10) == 0 {
				r.Decision.Effect, r.Decision.Codes = "deny", []string{"VERSION-TOO-NEW"}
			}
			segment, all = append(segment, r), append(all, r)
		}
		segments = append(segments, segment)
	}
	s := writeLog(t, segments...)
	a := NewArchive(s.dir)
	queries := map[string]SearchQuery{
		"subject":            {Subject: "user-3"},
		"module":             {Module: "example.com/m4"},
		"version":            {Module: "example.com/m4", Version: "v1.0.2"},
		"code":               {Code: "VERSION-TOO-NEW"},
		"effect and subject": {Effect: "deny", Subject: "user-7"},
		"device":             {Device: "laptop-9", Subject: "user-1", Effect: "deny"},
		"time":               {Since: start.Add(1400 * time.Second), Until: start.Add(1600 * time.Second), Module: "example.com/m1"},
		"event":              {EventID: strings.ToLower(all[2000].EventID[:8])},
		"event in full":      {EventID: all[4000].EventID},
		"nothing":            {Subject: "nobody"},
	}
	for name, q := range queries {
		t.Run(name, func(t *testing.T) {
			var want, got []string
			for _, r := range slices.Backward(all) {
				if q.fits(briefOf(t, r)) {
					want = append(want, r.EventID)
				}
			}
			end, err := a.Search(t.Context(), q, func(_ Position, e Entry) error {
				got = append(got, eventID(e.Raw))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" || end.Found != len(want) || end.More {
				t.Errorf("end %+v (-want +got):\n%s", end, diff)
			}
		})
	}
	t.Run("page by page", func(t *testing.T) {
		q := SearchQuery{Effect: "deny", Limit: 7}
		seen := map[string]bool{}
		for {
			end, err := a.Search(t.Context(), q, func(_ Position, e Entry) error {
				if id := eventID(e.Raw); seen[id] {
					t.Errorf("%s came twice", id)
				} else {
					seen[id] = true
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if !end.More {
				break
			}
			back, err := ParsePosition(end.Last.String())
			if err != nil || back != end.Last {
				t.Fatalf("ParsePosition(%s) = %v, %v", end.Last, back, err)
			}
			q.Before = end.Last
		}
		want := 0
		for _, r := range all {
			if r.Decision.Effect == "deny" {
				want++
			}
		}
		if len(seen) != want {
			t.Errorf("%d records in pages, want %d", len(seen), want)
		}
	})
	t.Run("wrong use", func(t *testing.T) {
		for _, q := range []SearchQuery{{Version: "v1.0.0"}, {EventID: "short"}} {
			if _, err := a.Search(t.Context(), q, nil); err == nil {
				t.Errorf("Search(%+v) is taken", q)
			}
		}
	})
}

func briefOf(t testing.TB, r *Record) *brief {
	t.Helper()
	b, err := new(briefParser).parse((&encoder{secrets: newSecrets(make([]byte, 32))}).encode(r, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzIndex opens any bytes as an index, with good page sums: it may be refused, and never panics or reads outside.
func FuzzIndex(f *testing.F) {
	x := newIndexer(7)
	for i, subject := range []string{"ann", "bob"} {
		b, err := new(briefParser).parse((&encoder{secrets: newSecrets(make([]byte, 32))}).encode(asked(subject, "example.com/m", "v1.0.0", "allow"), "n1"))
		if err != nil {
			f.Fatal(err)
		}
		if err := x.add(b, [32]byte{byte(i)}, int64(100*i)); err != nil {
			f.Fatal(err)
		}
	}
	good := x.encode()
	f.Add(good[:len(good)-4])
	f.Fuzz(func(t *testing.T, content []byte) {
		sealed := sealPages(content, 7)
		x, err := openIndex(bytes.NewReader(sealed), 7, int64(len(sealed)))
		if err != nil {
			return
		}
		words := newLexicon()
		_, _ = x.fetches("example.com/m", "", &words)
		_, _ = x.records(keySubject, "ann")
		_, _ = x.event("ABCDEFGH")
		_, _ = x.block(0)
	})
}
