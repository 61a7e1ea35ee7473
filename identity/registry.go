package identity

import (
	"crypto/rand"
	"maps"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// useGranularity is how exactly the last use of a token is kept.
const useGranularity = 10 * 60 // seconds

// A registry is all tokens in memory, so that a request asks no database. The
// lock guards the maps; what changes inside an entry is atomic.
type registry struct {
	ceilings Ceilings
	ghost    *entry // stands in for an id that does not exist

	mu     sync.RWMutex
	byID   map[tokenID]*entry
	owners map[subjectKey]*owner // of an issuer's people; others' attributes are their token's own
	stale  map[subjectKey]bool   // owners whose attributes are newer than the database's
}

type subjectKey struct{ issuer, id string }

// An owner is a person as last asserted by an issuer, shared by all of that
// person's tokens: a group that is lost at the issuer is lost by tokens that are
// older. Jobs, and people whom an administrator named, have one owner per token.
type owner struct {
	subject atomic.Pointer[Subject]
	asOf    int64 // guarded by registry.mu
}

// A person is an owner to be written down.
type person struct {
	subject Subject
	asOf    int64
}

// An entry is one token.
type entry struct {
	row    row // Subject, LastUsed and Revoked in it are those of the load; see below
	scope  Scope
	ends   int64 // seconds: expiry under the ceiling in force
	parent *entry
	lost   bool // it names a parent that does not exist
	owner  *owner

	used        atomic.Int64 // seconds
	revoked     atomic.Int64 // seconds, 0: not
	fingerprint atomic.Pointer[string]
	verifier    atomic.Pointer[verifier] // what Authenticate compares with; the row's is that of the load
	written     int64                    // the use that the database knows; touched by flush alone
	stored      int                      // the version of the pepper that the database knows; touched by flush alone
}

func newRegistry(c Ceilings) *registry {
	r := &registry{ceilings: c, byID: map[tokenID]*entry{}, owners: map[subjectKey]*owner{}, stale: map[subjectKey]bool{}}
	r.ghost = &entry{owner: &owner{}}
	fits := &verifier{}
	_, _ = rand.Read(fits.digest[:]) // it never fails: the program ends instead
	r.ghost.verifier.Store(fits)
	return r
}

// add takes a token in. If its parent is not there yet, link must follow before
// the token can be used.
func (r *registry) add(t row) *entry {
	e := &entry{row: t, scope: t.Scope.cut(t.Class), written: toUnix(t.LastUsed), stored: t.pepper}
	e.verifier.Store(&e.row.verifier)
	longest := t.Created.Add(r.ceilings.ceiling(kindOf(t.Class, t.Exchanged, t.Bound != nil)))
	e.ends = min(toUnix(t.Expires), toUnix(longest))
	e.used.Store(toUnix(t.LastUsed))
	e.revoked.Store(toUnix(t.Revoked))
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.Parent != "" {
		e.parent = r.byID[idOf(t.Parent)]
		e.lost = e.parent == nil
	}
	e.owner = r.own(t)
	e.row.Subject = Subject{}
	r.byID[idOf(t.ID)] = e
	return e
}

// merge takes a token in as another node stored it; what ended stays ended.
func (r *registry) merge(t row) {
	e := r.find(idOf(t.ID))
	if e == r.ghost {
		r.add(t)
		return
	}
	e.revoked.CompareAndSwap(0, toUnix(t.Revoked))
	e.usedAt(toUnix(t.LastUsed))
	if t.pepper != e.verifier.Load().pepper {
		e.verifier.Store(&t.verifier)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.asOf > e.owner.asOf {
		sub := t.Subject
		sub.Method, sub.Assurance = MethodToken, 0
		e.owner.asOf = t.asOf
		e.owner.subject.Store(&sub)
	}
}

// link finds the parents of tokens that were added before them.
func (r *registry) link() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.byID {
		if e.lost {
			e.parent = r.byID[idOf(e.row.Parent)]
			e.lost = e.parent == nil
		}
	}
}

// own finds or makes the owner of a token; the newest attributes win.
func (r *registry) own(t row) *owner {
	sub := t.Subject
	sub.Method, sub.Assurance = MethodToken, 0
	key := subjectKey{sub.Issuer, sub.ID}
	shared := sub.Type == Person && sub.Issuer != ""
	o := r.owners[key]
	if o == nil || !shared {
		o = &owner{asOf: t.asOf}
		o.subject.Store(&sub)
		if shared {
			r.owners[key] = o
		}
	} else if t.asOf > o.asOf {
		o.asOf = t.asOf
		o.subject.Store(&sub)
	}
	return o
}

// asserted notes what an issuer said of a person at a moment and gives the newest
// attributes known. A person who holds no token leaves no trace.
func (r *registry) asserted(sub Subject, asOf int64) Subject {
	key := subjectKey{sub.Issuer, sub.ID}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owners[key]
	if o == nil {
		return sub
	}
	known := *o.subject.Load()
	if asOf < o.asOf {
		known.Method, known.Assurance = sub.Method, sub.Assurance
		return known
	}
	o.asOf = asOf
	next := sub
	next.Method, next.Assurance = MethodToken, 0
	if !reflect.DeepEqual(known, next) {
		o.subject.Store(&next)
		r.stale[key] = true
	}
	return sub
}

// find gives the token of an id, or the ghost, whose digest fits nothing.
func (r *registry) find(id tokenID) *entry {
	r.mu.RLock()
	e := r.byID[id]
	r.mu.RUnlock()
	if e == nil {
		return r.ghost
	}
	return e
}

// state is why a token whose secret matched is refused now, or empty. What ends
// a parent ends its children, without a row of theirs being touched.
func (e *entry) state(now int64) Code {
	for a := e; a != nil; a = a.parent {
		if a.lost || a.revoked.Load() != 0 {
			return TokenRevoked
		}
	}
	for a := e; a != nil; a = a.parent {
		if now >= a.ends {
			return TokenExpired
		}
	}
	if e.row.Class == ClassPerson && now-max(e.used.Load(), toUnix(e.row.Created)) > int64(idle/time.Second) {
		return TokenExpired
	}
	return ""
}

// touch notes a use.
func (e *entry) touch(now int64) {
	if last := e.used.Load(); now-last >= useGranularity {
		e.used.CompareAndSwap(last, now)
	}
}

// usedAt notes a use that another node saw, too.
func (e *entry) usedAt(at int64) {
	for last := e.used.Load(); at > last && !e.used.CompareAndSwap(last, at); last = e.used.Load() {
	}
}

// token is the entry as it is shown.
func (e *entry) token(now int64) Token {
	t := e.row.Token
	t.Subject = *e.owner.subject.Load()
	t.Scope = e.scope
	t.Expires = fromUnix(e.ends)
	t.LastUsed, t.Revoked = fromUnix(e.used.Load()), fromUnix(e.revoked.Load())
	t.State = "active"
	switch e.state(now) {
	case TokenRevoked:
		t.State = "revoked"
	case TokenExpired:
		t.State = "expired"
	}
	return t
}

// entries is a copy of the list of tokens.
func (r *registry) entries() []*entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]*entry, 0, len(r.byID))
	for _, e := range r.byID {
		all = append(all, e)
	}
	return all
}

// takeStale empties the list of owners that are to be written down.
func (r *registry) takeStale() []person {
	r.mu.Lock()
	defer r.mu.Unlock()
	var people []person
	for key := range r.stale {
		o := r.owners[key]
		people = append(people, person{*o.subject.Load(), o.asOf})
	}
	clear(r.stale)
	return people
}

// putBack marks owners again whose writing failed.
func (r *registry) putBack(people []person) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range people {
		r.stale[subjectKey{p.subject.Issuer, p.subject.ID}] = true
	}
}

// sweep forgets tokens that expired before a moment, and people without any.
func (r *registry) sweep(before int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.byID, func(_ tokenID, e *entry) bool { return toUnix(e.row.Expires) < before })
	held := map[*owner]bool{}
	for _, e := range r.byID {
		held[e.owner] = true
	}
	maps.DeleteFunc(r.owners, func(k subjectKey, o *owner) bool { return !held[o] && !r.stale[k] })
}

func idOf(text string) tokenID {
	var id tokenID
	copy(id[:], text)
	return id
}

func toUnix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromUnix(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}
