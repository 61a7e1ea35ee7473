package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/audit/schema"
	"github.com/headgate/headgate/audit/sinks"
)

// A joining is an open log and a sink's reader of it.
type joining struct {
	*Log
	t      *testing.T
	reader sinks.Reader
	given  []sinks.Event
}

func newJoining(t *testing.T) *joining {
	t.Helper()
	l, err := Open(Config{Dir: t.TempDir(), SegmentBytes: minSegment}, Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	j := &joining{Log: l, t: t}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	j.reader = j.open(sinks.Position{})
	return j
}

func (j *joining) open(at sinks.Position) sinks.Reader {
	j.t.Helper()
	r, err := exported{j.Log}.Reader(at, schema.Native)
	if err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(r.Close)
	return r
}

// look reads what there is.
func (j *joining) look() (fresh []sinks.Event) {
	j.t.Helper()
	fresh = readAllOf(j.t, j.reader, 500)
	j.given = append(j.given, fresh...)
	return fresh
}

func readAllOf(t *testing.T, r sinks.Reader, records int) (all []sinks.Event) {
	t.Helper()
	for {
		events, err := r.Next(records, 8<<10)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			return all
		}
		all = append(all, events...)
	}
}

// asks appends a decision.
func (j *joining) asks(method, action, effect string) *Record {
	j.t.Helper()
	r := asked("ann", "example.com/m", "v1.0.0", effect)
	r.Method, r.Action, r.File.Cache = method, action, "disk"
	if err := j.Append(context.Background(), r); err != nil {
		j.t.Fatal(err)
	}
	return r
}

// ends notes how serving a request ended, and waits until that is in the log.
func (j *joining) ends(r *Record) *Record {
	out := Begin(r.EventID)
	out.Kind, out.Action, out.Module, out.Version = KindOutcome, r.Action, r.Module, r.Version
	out.Outcome = Outcome{Status: http.StatusOK, Bytes: 7, MS: (out.T - r.T) / 1e6}
	j.Note(out)
	time.Sleep(2 * noteTick)
	synctest.Wait()
	return out
}

// shown is what stands in an event of the native schema.
type shown struct {
	Kind    string   `json:"kind"`
	EventID string   `json:"event_id"`
	Behind  int64    `json:"outcome_seq"`
	Outcome *Outcome `json:"outcome"`
}

// kinds says what events are, such as "decision+outcome".
func kindsOf(t *testing.T, events []sinks.Event) string {
	t.Helper()
	var all []string
	for _, e := range events {
		var s shown
		if err := json.Unmarshal(e.Body, &s); err != nil {
			t.Fatal(err)
		}
		switch {
		case s.Kind == "control":
		case s.Kind == "decision" && s.Outcome != nil:
			if s.Behind <= e.Seq || s.Outcome.Bytes != 7 {
				t.Errorf("a joined event: %s", e.Body)
			}
			all = append(all, "decision+outcome")
		default:
			all = append(all, s.Kind)
		}
	}
	return strings.Join(all, " ")
}

func TestJoin(t *testing.T) {
	inBubble(t, "an outcome within five seconds comes with its decision, and holds nothing else back", func(t *testing.T) {
		j := newJoining(t)
		zip := j.asks("GET", "zip", "allow")
		before := j.reader.Position()
		for _, other := range []string{"mod", "zip"} {
			j.asks("GET", other, map[string]string{"mod": "allow", "zip": "deny"}[other])
		}
		if got := kindsOf(t, j.look()); got != "decision decision" {
			t.Fatalf("at once come %q, want the two decisions that need no outcome", got)
		}
		if at := j.reader.Position(); at.Next != before.Next+1 || !j.reader.Waiting() { // the control record of the start is behind it
			t.Errorf("the cursor may stand at %d, want at the decision that waits", at.Next)
		}
		time.Sleep(4 * time.Second)
		if got := kindsOf(t, j.look()); got != "" {
			t.Errorf("after four seconds comes %q", got)
		}
		j.ends(zip)
		got := j.look()
		if kinds := kindsOf(t, got); kinds != "decision+outcome" || got[0].Time.UnixNano() != zip.T || !strings.HasPrefix(got[0].ID, zip.EventID) {
			t.Errorf("with the outcome comes %q, %+v", kinds, got)
		}
		if at := j.reader.Position(); at.Next != j.durable.size || j.reader.Waiting() || j.reader.Joined() != 1 {
			t.Errorf("the cursor may stand at %d of %d, %d outcomes were joined; want at the end, and one", at.Next, j.durable.size, j.reader.Joined())
		}
	})
	inBubble(t, "a HEAD waits, too; what an administrator asked for does not, nor what was made for long", func(t *testing.T) {
		j := newJoining(t)
		head := j.asks(http.MethodHead, "mod", "allow")
		admin := asked("ann", "example.com/m", "v1.0.0", "allow")
		admin.Kind = KindAdmin
		slow := asked("ann", "example.com/m", "v1.0.0", "allow")
		slow.T -= (joinSpan + time.Second).Nanoseconds()
		for _, r := range []*Record{admin, slow} {
			if err := j.Append(context.Background(), r); err != nil {
				t.Fatal(err)
			}
		}
		if got := kindsOf(t, j.look()); got != "admin decision" {
			t.Errorf("at once come %q", got)
		}
		j.ends(admin)
		j.ends(slow)
		j.ends(head)
		if got := kindsOf(t, j.look()); got != "outcome outcome decision+outcome" {
			t.Errorf("then come %q", got)
		}
	})
	inBubble(t, "a later outcome is an event of its own, and so is one that says more, or comes twice", func(t *testing.T) {
		j := newJoining(t)
		late, more, twice := j.asks("GET", "zip", "allow"), j.asks("GET", "zip", "allow"), j.asks("GET", "zip", "allow")
		out := Begin(more.EventID)
		out.Kind, out.Severity, out.Outcome.Aborted = KindOutcome, 5, true
		j.Note(out)
		j.ends(twice)
		j.ends(twice)
		if got := kindsOf(t, j.look()); got != "outcome decision+outcome outcome" {
			t.Errorf("at once come %q", got)
		}
		time.Sleep(joinWithin)
		j.ends(late)
		time.Sleep(2 * time.Second)
		if got := kindsOf(t, j.look()); got != "outcome decision decision" {
			t.Errorf("six seconds later come %q", got)
		}
	})
	inBubble(t, "in a quiet log a decision waits six seconds, and what is written later changes nothing", func(t *testing.T) {
		j := newJoining(t)
		zip := j.asks("GET", "zip", "allow")
		time.Sleep(joinSpan - time.Second/2)
		if got := kindsOf(t, j.look()); got != "" {
			t.Fatalf("too early comes %q", got)
		}
		time.Sleep(time.Second)
		if got := kindsOf(t, j.look()); got != "decision" {
			t.Fatalf("six seconds later comes %q", got)
		}
		out := Begin(zip.EventID) // a disk that hung has held it back
		out.Kind, out.T = KindOutcome, zip.T+1
		if err := j.Append(context.Background(), out); err != nil {
			t.Fatal(err)
		}
		if got := kindsOf(t, j.look()); got != "outcome" {
			t.Errorf("at last comes %q", got)
		}
		if again := kindsOf(t, readAllOf(t, j.open(sinks.Position{}), 3)); again != kindsOf(t, j.given) {
			t.Errorf("read again: %q, want %q", again, kindsOf(t, j.given))
		}
	})
	inBubble(t, "what is promised not to come is not stamped so", func(t *testing.T) {
		j := newJoining(t)
		j.asks("GET", "mod", "allow")
		now := time.Now().UnixNano()
		time.Sleep(time.Second)
		if (exported{j.Log}).passed(now+time.Hour.Nanoseconds(), j.durable.size) || (exported{j.Log}).passed(now, j.durable.size+1) {
			t.Error("it is promised what cannot be")
		}
		if !(exported{j.Log}).passed(now, j.durable.size) || j.notBefore != now+1 {
			t.Errorf("no frame is to be stamped before %d, want before %d", j.notBefore, now+1)
		}
		j.mu.Lock()
		j.notBefore += time.Hour.Nanoseconds() // as if the clock had been put back an hour
		j.mu.Unlock()
		j.asks("GET", "mod", "allow")
		if err := Tail(t.Context(), j.cfg.Dir, TailOptions{Last: 1}, func(e Entry) error {
			if e.Time.UnixNano() < j.notBefore {
				t.Errorf("stamped %s, want %d at least", e.Time, j.notBefore)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever a log holds, a sink's reader gives the same events at whatever pace it reads, from wherever a cursor stood,
// and so does an export; none is missing.
func TestJoinIsRepeatable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJoining(t)
		starts := j.random(t, 700)
		time.Sleep(2 * joinSpan)
		j.look()
		want := map[string]string{}
		for _, e := range j.given {
			if want[e.ID] != "" {
				t.Fatalf("%s comes twice", e.ID)
			}
			want[e.ID] = string(e.Body)
		}
		kinds := kindsOf(t, j.given)
		for _, some := range []string{"decision+outcome", "outcome decision+outcome", "outcome outcome"} {
			if !strings.Contains(kinds, some) {
				t.Fatalf("there is no %q: nothing is shown", some)
			}
		}
		if n := int64(len(want)) + j.reader.Joined(); n != j.durable.size || j.reader.Position().Next != n {
			t.Errorf("%d events and %d joined outcomes of %d records, cursor at %d", len(want), j.reader.Joined(), j.durable.size, j.reader.Position().Next)
		}
		same := func(what string, had int, events []sinks.Event) {
			t.Helper()
			seen := map[string]bool{}
			for _, e := range j.given[:had] {
				seen[e.ID] = true
			}
			for _, e := range events {
				if want[e.ID] != string(e.Body) {
					t.Fatalf("%s: event %s is %s, want %s", what, e.ID, e.Body, want[e.ID])
				}
				seen[e.ID] = true
			}
			if len(seen) != len(want) {
				t.Fatalf("%s: %d events, want %d", what, len(seen), len(want))
			}
		}
		for i, s := range starts {
			r := j.open(s.at)
			again := readAllOf(t, r, 1+rand.N(700))
			same(fmt.Sprintf("start %d, at record %d", i, s.at.Next), s.had, again)
			if had := int64(s.had) + int64(len(again)) - int64(len(want)); had > 2*6000/20+200 { // of six seconds, and those that were asked for at once
				t.Errorf("from record %d on, %d events come again", s.at.Next, had)
			}
		}
		var once []sinks.Event
		if err := Export(t.Context(), j.cfg.Dir, ExportOptions{Schema: schema.Native}, func(e schema.Event) error {
			once = append(once, sinks.Event{ID: e.ID, Body: e.Body})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		same("export", 0, once)
		exportsSince(t, j, want)
	})
}

// exportsSince exports from times on: what it gives is what has those times.
func exportsSince(t *testing.T, j *joining, want map[string]string) {
	t.Helper()
	for range 5 {
		since := j.given[rand.N(len(j.given))].Time
		late := map[string]string{}
		for _, e := range j.given {
			if !e.Time.Before(since) {
				late[e.ID] = want[e.ID]
			}
		}
		got := map[string]string{}
		if err := Export(t.Context(), j.cfg.Dir, ExportOptions{Schema: schema.Native, Since: since}, func(e schema.Event) error {
			got[e.ID] = string(e.Body)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, late) {
			t.Fatalf("since %s come %d events, want %d", since, len(got), len(late))
		}
	}
}

// A start is where a cursor stood when so many events were given.
type start struct {
	at  sinks.Position
	had int
}

// random fills the log with requests that are answered for ever so long, and reads it meanwhile.
func (j *joining) random(t *testing.T, records int) (starts []start) {
	t.Helper()
	for range records {
		r := asked("ann", "example.com/m", "v1.0.0", []string{"allow", "allow", "allow", "deny"}[rand.N(4)])
		r.Action, r.Method = []string{"zip", "zip", "mod"}[rand.N(3)], []string{"GET", "GET", "HEAD"}[rand.N(3)]
		r.Path, r.File.Cache = noise(), "disk"
		j.Note(r)
		for range rand.N(3) {
			time.AfterFunc(rand.N(8*time.Second), func() {
				out := Begin(r.EventID)
				out.Kind, out.Outcome = KindOutcome, Outcome{Status: 200, Bytes: 7}
				j.Note(out)
			})
		}
		time.Sleep(rand.N(40 * time.Millisecond))
		if rand.N(10) > 0 {
			continue
		}
		events, err := j.reader.Next(1+rand.N(40), 20<<10)
		if err != nil {
			t.Fatal(err)
		}
		j.given = append(j.given, events...)
		if at := j.reader.Position(); rand.N(8) == 0 && (len(starts) == 0 || at != starts[len(starts)-1].at) {
			starts = append(starts, start{at, len(j.given)})
		}
	}
	if firsts, err := j.layout.list(); err != nil || len(firsts) < 2 {
		t.Fatalf("%d segments, %v; want several", len(firsts), err)
	}
	return slices.DeleteFunc(starts, func(s start) bool { return s.at.Next == 0 })
}

// A decision that much is written behind is given alone, so that little is held in memory.
func TestJoinBound(t *testing.T) {
	j, now := newJoiner(0), time.Now()
	other := fmt.Appendf(nil, `{"v":1,"kind":"control","event_id":"B","path":%q}`, strings.Repeat("x", 10_000))
	j.take(Entry{Time: now, Raw: fmt.Appendf(nil, `{"v":1,"kind":"decision","event_id":"A","t":%d,"action":"zip","decision":{"effect":"allow"}}`, now.UnixNano())})
	for seq := int64(1); len(j.waiting) > 0; seq++ {
		if j.next(); seq > joinBytes/10_000 {
			t.Fatalf("%d bytes behind it the decision still waits", j.bytes)
		}
		j.take(Entry{Seq: seq, Time: now, Raw: other})
	}
	if u := j.next(); u == nil || u.Seq != 0 || j.bytes < joinBytes {
		t.Errorf("%+v was given %d bytes behind the decision; want it, %d bytes behind", u, j.bytes, joinBytes)
	}
}

// What was appended too late for its decision is not joined, also where another decision is waited for longer.
func TestJoinTooLate(t *testing.T) {
	j, now := newJoiner(0), time.Now()
	raw := func(kind, id string, since time.Duration) []byte {
		return fmt.Appendf(nil, `{"v":1,"kind":%q,"event_id":%q,"t":%d,"action":"zip","decision":{"effect":"allow"}}`, kind, id, now.Add(since).UnixNano())
	}
	j.take(Entry{Seq: 0, Time: now, Raw: raw("decision", "A", 0)})
	j.take(Entry{Seq: 1, Time: now, Raw: raw("decision", "B", -4*time.Second)})
	j.take(Entry{Seq: 2, Time: now.Add(3 * time.Second), Raw: raw("outcome", "B", time.Second)})
	if u := j.next(); u == nil || u.Seq != 2 || u.outcome != nil {
		t.Errorf("%+v is given, want the outcome alone", u)
	}
	j.take(Entry{Seq: 3, Time: now.Add(4 * time.Second), Raw: raw("outcome", "A", 4*time.Second)})
	for _, want := range []int64{0, 1} {
		j.flush()
		if u := j.next(); u == nil || u.Seq != want || (u.outcome != nil) != (want == 0) {
			t.Errorf("%+v is given, want decision %d", u, want)
		}
	}
}
