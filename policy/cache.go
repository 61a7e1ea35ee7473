package policy

import (
	"context"
	"hash/maphash"
	"sync"
	"time"
)

const (
	shards       = 64
	maxPerShard  = 1 << 14 // a million entries in all
	maxEntryLife = 24 * time.Hour
)

// cache keeps the answers of one entry point of one generation under the values that they depend on, and makes sure
// that each is worked out once. It dies with its generation; nothing is ever deleted from it by name.
type cache struct {
	seed   maphash.Seed
	most   int // entries of a shard
	shards [shards]shard
}

type shard struct {
	mu      sync.RWMutex      // guards entries and seen
	entries map[string]*entry // by full key: the hash only chooses the shard
	seen    map[uint64]bool   // hashes of keys that came once while the shard was full
}

// entry is one answer, or the flight towards it.
type entry struct {
	done     chan struct{} // closed when decision and err are set
	decision Decision
	err      error
	until    time.Time
}

func newCache() *cache {
	c := &cache{seed: maphash.MakeSeed(), most: maxPerShard}
	for i := range c.shards {
		c.shards[i].entries, c.shards[i].seen = map[string]*entry{}, map[uint64]bool{}
	}
	return c
}

// get answers from the cache, or lets one caller work the answer out while the others wait for it, each no longer than
// its own ctx. An error goes to those who waited for it and is not kept; if it came from the working caller's own ctx,
// another takes over.
func (c *cache) get(ctx context.Context, key []byte, work func() (Decision, error)) (Decision, error) {
	hash := maphash.Bytes(c.seed, key)
	s := &c.shards[hash%shards]
	for {
		s.mu.RLock()
		e := s.entries[string(key)]
		s.mu.RUnlock()
		if e == nil {
			var mine bool
			if e, mine = s.join(key, hash, c.most); mine {
				s.finish(e, key, work)
				return e.decision, e.err
			}
		}
		select {
		case <-e.done:
		default:
			select {
			case <-e.done:
			case <-ctx.Done():
				return Decision{}, context.Cause(ctx)
			}
		}
		switch {
		case e.err == nil && time.Now().Before(e.until):
			d := e.decision
			d.Eval.Cached, d.Eval.NS = true, 0
			return d, nil
		case e.err == nil:
			s.drop(e, key)
		case !isCallerGone(e.err):
			return Decision{}, e.err
		}
	}
}

// join finds the entry of a key or makes it; mine tells who has to fill it. A full shard takes a key in when it comes the
// second time, so that a flood of keys that come once evicts nothing.
func (s *shard) join(key []byte, hash uint64, most int) (e *entry, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[string(key)]; e != nil {
		return e, false
	}
	if len(s.entries) >= most {
		if !s.seen[hash] {
			if len(s.seen) >= most {
				clear(s.seen)
			}
			s.seen[hash] = true
			return &entry{done: make(chan struct{})}, true
		}
		delete(s.seen, hash)
		for other := range s.entries { // any one: Go's maps begin at a random place
			delete(s.entries, other)
			break
		}
	}
	e = &entry{done: make(chan struct{})}
	s.entries[string(key)] = e
	return e, true
}

// finish fills the entry, also when work panics, so that nobody waits for ever.
func (s *shard) finish(e *entry, key []byte, work func() (Decision, error)) {
	e.err = errUnfinished
	defer func() {
		if e.err != nil {
			s.drop(e, key)
		}
		close(e.done)
	}()
	e.decision, e.err = work()
	e.until = time.Now().Add(maxEntryLife)
}

func (s *shard) drop(e *entry, key []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[string(key)] == e {
		delete(s.entries, string(key))
	}
}
