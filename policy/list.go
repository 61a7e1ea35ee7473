package policy

import (
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"
)

// maxListed is how many versions of lists a generation keeps the answers of, about 1 kB each.
const maxListed = 1 << 15

// lists keeps the answers to whole lists, so that a list that nothing happened to is one lookup and one comparison. It
// dies with its generation. What was judged is kept beside the answers and compared: an answer needs no dropping when a
// fact changes, it no longer fits.
type lists struct {
	most int // versions of all lists

	mu      sync.Mutex // guards all below
	entries map[string]*listed
	kept    int // versions in entries
}

// listed is one list. It never changes.
type listed struct {
	resources []Resource
	decisions []Decision // as the cache would give them
	until     time.Time
}

func newLists() *lists { return &lists{most: maxListed, entries: map[string]*listed{}} }

// listKey writes what the answers to a list depend on beside its versions: what guards look at, and what the read-set
// has of the asker, the action and the context. One path has one list for each.
func (e *entryPoint) listKey(enc *encoder, in *Input, path string) {
	enc.buf = enc.buf[:0]
	enc.text(in.Subject.Type)
	enc.text(in.Action.Name)
	enc.text(path)
	one := inputs.Get().(*Input)
	*one = *in
	one.Resource = Resource{}
	enc.reads(e.reads.root, reflect.ValueOf(one).Elem())
	*one = Input{}
	inputs.Put(one)
}

// get gives a copy of the answers to these very versions, nil if they are not known.
func (l *lists) get(key []byte, resources []Resource) []Decision {
	l.mu.Lock()
	known := l.entries[string(key)]
	l.mu.Unlock()
	if known == nil || len(known.resources) != len(resources) || !time.Now().Before(known.until) {
		return nil
	}
	for i := range resources {
		if !resources[i].equal(&known.resources[i]) {
			return nil
		}
	}
	return slices.Clone(known.decisions)
}

// put keeps the answers to a list in place of those to an earlier state of it. Any other goes where there is no room.
func (l *lists) put(key []byte, resources []Resource, decisions []Decision) {
	if len(resources) > l.most {
		return
	}
	fresh := &listed{resources: make([]Resource, len(resources)), decisions: slices.Clone(decisions), until: time.Now().Add(maxEntryLife)}
	for i := range resources {
		fresh.resources[i] = resources[i].clone()
		if e := &fresh.decisions[i].Eval; e.KeyHash != "" { // a guard's answer is never out of a cache
			e.Cached, e.NS = true, 0
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(string(key))
	for other := range l.entries { // Go's maps begin at a random place
		if l.kept+len(resources) <= l.most {
			break
		}
		l.drop(other)
	}
	l.entries[string(key)] = fresh
	l.kept += len(resources)
}

func (l *lists) drop(key string) {
	if old := l.entries[key]; old != nil {
		l.kept -= len(old.resources)
		delete(l.entries, key)
	}
}

// equal compares every field, read or not: that costs less than to choose, and misses nothing.
func (r *Resource) equal(o *Resource) bool {
	return r.Version == o.Version && r.Kind == o.Kind && r.Major == o.Major && r.FirstSeenDay == o.FirstSeenDay &&
		r.PublishedDay == o.PublishedDay && r.AgeDays == o.AgeDays && r.Retracted == o.Retracted && r.Deprecated == o.Deprecated &&
		r.Sumdb == o.Sumdb && r.OriginDrift == o.OriginDrift && r.Malware == o.Malware && r.Popularity == o.Popularity &&
		r.Scorecard == o.Scorecard && r.Lookalike == o.Lookalike && r.Quarantine == o.Quarantine && r.Known == o.Known &&
		r.Vulns.MaxSeverity == o.Vulns.MaxSeverity && r.Vulns.AsOfDay == o.Vulns.AsOfDay && maps.Equal(r.Vulns.IDs, o.Vulns.IDs) &&
		r.Licences.Status == o.Licences.Status && maps.Equal(r.Licences.IDs, o.Licences.IDs) &&
		(r.Provenance == nil) == (o.Provenance == nil) && (r.Provenance == nil || *r.Provenance == *o.Provenance) &&
		r.Type == o.Type && r.Path == o.Path && r.Host == o.Host && r.Org == o.Org && r.Visibility == o.Visibility &&
		slices.Equal(r.Prefixes, o.Prefixes)
}

// clone shares nothing with the caller, who may go on to change what it asked about.
func (r *Resource) clone() Resource {
	c := *r
	c.Prefixes = slices.Clone(r.Prefixes)
	c.Vulns.IDs, c.Licences.IDs = maps.Clone(r.Vulns.IDs), maps.Clone(r.Licences.IDs)
	if r.Provenance != nil {
		origin := *r.Provenance
		c.Provenance = &origin
	}
	return c
}
