package audit

import (
	"bytes"
	"net/http"
	"slices"
	"time"

	"github.com/valyala/fastjson"
	"golang.org/x/mod/sumdb/tlog"
)

// Limits within which decision and outcome of a request are one event. All are judged by what stands in the log, so that
// whoever reads it again, from wherever, makes the same events of it.
const (
	joinWithin = 5 * time.Second          // the outcome's t is from the decision's
	joinSpan   = joinWithin + time.Second // what is appended later than that behind the decision's t belongs to none
	joinBytes  = 32 << 20                 // nor what has more records between; so what is waited with is bounded
)

// A unit is what becomes one event: a record, and the outcome that belongs to it where there is one.
type unit struct {
	Entry
	outcome *Entry
}

// before is the place before what is lost if u is; what stands before from is not.
func (u *unit) before(from int64) int64 {
	if u.Seq < from && u.outcome != nil {
		return u.outcome.Seq
	}
	return u.Seq
}

// A joiner makes units of the records of one epoch, taken in order. A decision whose outcome has to come is given when it
// has come, or when it can no longer come; anything else is given at once. Each entry's Raw must be the joiner's own.
type joiner struct {
	from    int64 // what lies wholly before was given already
	json    fastjson.Parser
	bytes   int64 // of records taken
	waiting []*pending
	past    []*pending // those before from
	byID    map[string]*pending
	ready   []unit
	joined  []int64 // outcomes that were given with their decision and are not counted yet
}

// A pending is a decision whose outcome has to come.
type pending struct {
	Entry
	id    string
	t     int64
	until int64 // append time up to which the outcome may come
	bytes int64 // taken before it
	given bool
}

func newJoiner(from int64) *joiner { return &joiner{from: from, byID: map[string]*pending{}} }

// take takes the next record.
func (j *joiner) take(e Entry) {
	at := e.Time.UnixNano()
	j.bytes += int64(len(e.Raw))
	j.expire(func(p *pending) bool { return p.until < at || j.bytes-p.bytes > joinBytes })
	if n := len(j.past); n > 0 && at > j.past[n-1].Time.Add(joinSpan).UnixNano() {
		for _, p := range j.past {
			j.forget(p)
		}
		j.past = nil
	}
	if j.waits(e) || j.joins(e) || e.Seq < j.from {
		return
	}
	j.ready = append(j.ready, unit{Entry: e})
}

// waits keeps a decision whose outcome has to come. A body that is held whole in memory needs none: the decision has its
// status and size. Zips are streamed, and nothing tells how much of a body a HEAD would have had.
func (j *joiner) waits(e Entry) bool {
	if !bytes.Contains(e.Raw, []byte(`"action":"zip"`)) && !bytes.Contains(e.Raw, []byte(`"method":"HEAD"`)) {
		return false // most are not even read
	}
	v, err := j.json.ParseBytes(e.Raw)
	if err != nil || Kind(text(v.Get("kind"))) != KindDecision || text(v.Get("decision", "effect")) != "allow" || v.Exists("outcome") {
		return false
	}
	streamed := text(v.Get("action")) == "zip" && text(v.Get("file", "cache")) != "memory"
	if !streamed && text(v.Get("method")) != http.MethodHead {
		return false
	}
	p := &pending{Entry: e, id: text(v.Get("event_id")), t: v.GetInt64("t"), bytes: j.bytes}
	p.until = min(p.t, e.Time.UnixNano()) + joinSpan.Nanoseconds()
	if p.until < e.Time.UnixNano() { // making its answer took so long
		return false
	}
	if e.Seq < j.from {
		j.past = append(j.past, p)
	} else {
		j.waiting = append(j.waiting, p)
	}
	j.byID[p.id] = p
	return true
}

// joins gives a decision together with its outcome. An outcome that says more than how it ended is an event of its own.
func (j *joiner) joins(e Entry) bool {
	if len(j.byID) == 0 || !bytes.Contains(e.Raw, []byte(`"kind":"outcome"`)) {
		return false
	}
	v, err := j.json.ParseBytes(e.Raw)
	if err != nil || Kind(text(v.Get("kind"))) != KindOutcome || v.Exists("change") || v.Exists("severity") {
		return false
	}
	p := j.byID[text(v.Get("event_id"))]
	if p == nil || p.until < e.Time.UnixNano() || j.bytes-p.bytes > joinBytes {
		return false
	}
	if apart := time.Duration(v.GetInt64("t") - p.t); apart.Abs() > joinWithin {
		return false
	}
	j.forget(p)
	if e.Seq < j.from {
		return true
	}
	how := []byte("{}")
	if o := v.Get("outcome"); o != nil {
		how = o.MarshalTo(nil)
	}
	whole := p.Entry
	whole.Raw = slices.Concat(p.Raw[:len(p.Raw)-1], []byte(`,"outcome":`), how, []byte("}"))
	j.ready = append(j.ready, unit{whole, &e})
	j.joined = append(j.joined, e.Seq)
	p.given, p.Raw = true, nil
	return true
}

func (j *joiner) forget(p *pending) {
	if j.byID[p.id] == p {
		delete(j.byID, p.id)
	}
}

// expire gives decisions alone, from the oldest on, as long as their outcome can no longer come.
func (j *joiner) expire(over func(*pending) bool) {
	for len(j.waiting) > 0 {
		p := j.waiting[0]
		if !p.given && !over(p) {
			return
		}
		j.waiting[0], j.waiting = nil, j.waiting[1:]
		if !p.given {
			j.forget(p)
			j.ready = append(j.ready, unit{Entry: p.Entry})
		}
	}
}

// flush gives all that is left, where no more records come.
func (j *joiner) flush() { j.expire(func(*pending) bool { return true }) }

// next returns the next unit, nil if there is none.
func (j *joiner) next() *unit {
	if len(j.ready) == 0 {
		return nil
	}
	u := j.ready[0]
	if j.ready = j.ready[1:]; len(j.ready) == 0 {
		j.ready = nil
	}
	return &u
}

// first returns the first record that was taken and not given, end if there is none.
func (j *joiner) first(end int64) int64 {
	j.expire(func(*pending) bool { return false })
	if len(j.waiting) > 0 {
		end = min(end, j.waiting[0].Seq)
	}
	for _, u := range j.ready {
		end = min(end, u.before(j.from))
	}
	return end
}

// counted returns how many outcomes before a record were given with their decision, each once.
func (j *joiner) counted(before int64) (n int64) {
	i, _ := slices.BinarySearch(j.joined, before)
	j.joined = j.joined[i:]
	return int64(i)
}

// recall takes the records before one, as far back as outcomes behind it may belong to their decisions. What cannot be
// read there is not joined.
func recall(l layout, at int64) *joiner {
	j := newJoiner(at)
	firsts, err := l.list()
	if err != nil {
		return j
	}
	i, _ := slices.BinarySearch(firsts, at)
	for i--; i >= 0; i-- {
		j = newJoiner(at)
		oldest, newest := j.recall(l, firsts[i], at)
		if newest.Sub(oldest) > joinSpan || j.bytes > joinBytes {
			break
		}
	}
	return j
}

// recall takes the records from the beginning of a segment on.
func (j *joiner) recall(l layout, first, at int64) (oldest, newest time.Time) {
	for next := first; next < at; {
		f, err := l.openSegment(next)
		if err != nil {
			return oldest, newest
		}
		begun := next
		var scratch bytes.Buffer
		for s := newScanner(f, 0); next < at; next++ {
			fr, err := s.next()
			if err != nil || fr.seq != next {
				break
			}
			if newest = time.Unix(0, fr.time); oldest.IsZero() {
				oldest = newest
			}
			j.take(Entry{Seq: fr.seq, Time: newest, Leaf: fr.leaf(&scratch), Raw: slices.Clone(fr.record())})
		}
		f.close()
		if next == begun {
			return oldest, newest
		}
	}
	return oldest, newest
}

// A trail follows a reader to the first record that was not given, where a sink's cursor may stand.
type trail struct {
	tree   edge
	leaves []tlog.Hash // of the records between
}

// follow goes on to a record.
func (t *trail) follow(to int64) {
	n := to - t.tree.size
	for _, leaf := range t.leaves[:n] {
		t.tree.push(leaf)
	}
	if t.leaves = t.leaves[n:]; len(t.leaves) == 0 {
		t.leaves = nil
	}
}
