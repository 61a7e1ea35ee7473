package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Keys of an index are strings with one of these first bytes.
const (
	keyPath    = 'm' // module path: records
	keyVersion = 'v' // path@version: records
	keySubject = 's' // subject id: records
	keyDevice  = 'd' // device id: records
	keyCode    = 'c' // reason code: records
	keyEffect  = 'e' // allow, deny, error: records
	keyFetches = 'w' // module path: who asked for which of its versions, folded
)

// Flags of a fetch in an index.
const (
	fetchAllow = iota // two bits of effect
	fetchDeny
	fetchError
	fetchZip     = 1 << 2 // the code itself, not what is said about it
	fetchAborted = 1 << 3 // the client did not get all of it
	fetchLate    = 1 << 4 // an aborted outcome whose decision stands in an earlier segment
)

const (
	indexMagic  = "hgindex1"
	indexHead   = 8 + 8 + 8 + 32 + 8 + 8 + 5*16
	blockOf     = 1024 // records whose offset in the segment is kept
	maxIndexed  = 1 << 24
	keyEntry    = 16
	eventEntry  = 8
	eventSuffix = 24 // bits of record number in an event's entry
)

// An indexer collects the records of one segment and makes its index: a table of key hashes, each with its records or
// its folded fetches; a table of event ids; a dictionary; and the offset of every 1,024th record.
type indexer struct {
	first    int64
	count    int64
	head     tlog.Hash // leaf hash of the last record: through the chain it stands for all before it
	oldest   int64     // t, ns
	newest   int64
	blocks   []int64 // offset in the raw segment of every 1,024th record
	events   []uint64
	postings map[string]*posting
	words    lexicon
	fetches  []fetched
	byEvent  map[string]int // decisions, by event id, until their outcome
	parser   briefParser
}

// A posting is the records of one key, as differences.
type posting struct {
	last int64
	data []byte
}

// A fetched is one decision on a version.
type fetched struct {
	who   fetchKey
	t     int64
	count int64
}

// A fetchKey says what fetches are folded by; its strings are numbers in a dictionary.
type fetchKey struct {
	path, version, subject, issuer, device uint32
	flags                                  byte
}

func newIndexer(first int64) *indexer {
	return &indexer{first: first, postings: map[string]*posting{}, words: newLexicon(), byEvent: map[string]int{}}
}

// frame takes the next record, whose frame stands at off.
func (x *indexer) frame(f frame, leaf tlog.Hash, off int64) error {
	b, err := x.parser.parse(f.record())
	if err != nil {
		return fmt.Errorf("indexing record %d: %w", f.seq, err)
	}
	return x.add(b, leaf, off)
}

func (x *indexer) add(b *brief, leaf tlog.Hash, off int64) error {
	if x.count == maxIndexed {
		return fmt.Errorf("indexing segment %d: more than %d records", x.first, maxIndexed)
	}
	n := x.count
	if n%blockOf == 0 {
		x.blocks = append(x.blocks, off)
	}
	x.count++
	x.head = leaf
	if n == 0 || b.T < x.oldest {
		x.oldest = b.T
	}
	if n == 0 || b.T > x.newest {
		x.newest = b.T
	}
	if id, ok := eventKey(b.EventID); ok {
		x.events = append(x.events, id<<eventSuffix|uint64(n))
	}
	x.post(keyPath, b.Module, n)
	if b.Module != "" && b.Version != "" {
		x.post(keyVersion, b.Module+"@"+b.Version, n)
	}
	x.post(keySubject, b.Subject, n)
	x.post(keyDevice, b.Device, n)
	x.post(keyEffect, b.Effect, n)
	for _, code := range b.Codes {
		x.post(keyCode, code, n)
	}
	x.fetch(b)
	return nil
}

func (x *indexer) post(kind byte, word string, n int64) {
	if word == "" {
		return
	}
	key := string(kind) + word
	p := x.postings[key]
	if p == nil {
		p = &posting{last: -1}
		x.postings[key] = p
	}
	if p.last == n { // a code that stands there twice
		return
	}
	p.data = binary.AppendUvarint(p.data, uint64(n-p.last-1))
	p.last = n
}

// fetch notes a decision, or what became of one.
func (x *indexer) fetch(b *brief) {
	if b.Kind == KindOutcome {
		if i, ok := x.byEvent[b.EventID]; ok {
			delete(x.byEvent, b.EventID)
			if b.Aborted {
				x.fetches[i].who.flags |= fetchAborted
			}
			return
		}
	}
	flags, ok := b.fetch()
	if !ok {
		return
	}
	if b.Kind == KindDecision && flags&3 == fetchAllow {
		x.byEvent[b.EventID] = len(x.fetches)
	}
	x.fetches = append(x.fetches, fetched{
		who: fetchKey{
			path: x.words.number(b.Module), version: x.words.number(b.Version), subject: x.words.number(b.Subject),
			issuer: x.words.number(b.Issuer), device: x.words.number(b.Device), flags: flags,
		},
		t: b.T, count: max(b.Count, 1),
	})
}

// A lexicon numbers words as they come.
type lexicon struct {
	numbers map[string]uint32
	words   []string
}

func newLexicon() lexicon { return lexicon{numbers: map[string]uint32{}} }

func (l *lexicon) number(word string) uint32 {
	n, ok := l.numbers[word]
	if !ok {
		n = uint32(len(l.words))
		l.numbers[word] = n
		l.words = append(l.words, word)
	}
	return n
}

// keyHash is what a key stands under. It is uniform, so that a table of them can be searched by interpolation; two keys
// that meet are told apart by what the records say.
func keyHash(key string) uint64 {
	sum := sha256.Sum256([]byte(key))
	return binary.BigEndian.Uint64(sum[:])
}

// eventKey is what an event id stands under: 40 bits of its first 8 characters, which are what people are shown.
func eventKey(id string) (key uint64, ok bool) {
	if len(id) < shortEvent {
		return 0, false
	}
	return keyHash(strings.ToUpper(id[:shortEvent])) >> 24, true
}

// shortEvent is how many characters of an event id a refusal shows.
const shortEvent = 8

// encode returns the index as it stands in a file. The indexer can take more records afterwards.
func (x *indexer) encode() []byte {
	dict, rank := x.dictionary()
	data := x.folded(rank)
	keys := make([]byte, 0, keyEntry*(len(data.spans)+len(x.postings)))
	for key, p := range x.postings {
		data.put(keyHash(key), p.data)
	}
	slices.SortFunc(data.spans, func(a, b span) int {
		if a.hash != b.hash {
			if a.hash < b.hash {
				return -1
			}
			return 1
		}
		return int(int64(a.off) - int64(b.off))
	})
	for _, s := range data.spans {
		keys = binary.LittleEndian.AppendUint64(keys, s.hash)
		keys = binary.LittleEndian.AppendUint32(keys, s.off)
		keys = binary.LittleEndian.AppendUint32(keys, s.size)
	}
	events := slices.Clone(x.events)
	slices.Sort(events)
	var eventTable, blocks []byte
	for _, e := range events {
		eventTable = binary.LittleEndian.AppendUint64(eventTable, e)
	}
	for _, off := range x.blocks {
		blocks = binary.LittleEndian.AppendUint64(blocks, uint64(off))
	}
	return sealPages(x.assemble(keys, data.bytes, eventTable, dict, blocks), x.first)
}

// assemble puts the head before the sections.
func (x *indexer) assemble(sections ...[]byte) []byte {
	out := append(make([]byte, 0, indexHead), indexMagic...)
	out = binary.LittleEndian.AppendUint64(out, uint64(x.first))
	out = binary.LittleEndian.AppendUint64(out, uint64(x.count))
	out = append(out, x.head[:]...)
	out = binary.LittleEndian.AppendUint64(out, uint64(x.oldest))
	out = binary.LittleEndian.AppendUint64(out, uint64(x.newest))
	off := uint64(indexHead)
	for _, s := range sections {
		out = binary.LittleEndian.AppendUint64(out, off)
		out = binary.LittleEndian.AppendUint64(out, uint64(len(s)))
		off += uint64(len(s))
	}
	for _, s := range sections {
		out = append(out, s...)
	}
	return out
}

// dictionary returns the words in order, as offsets and text, and the place of each in that order.
func (x *indexer) dictionary() (section []byte, rank []uint32) {
	words := slices.Sorted(maps.Keys(x.words.numbers))
	rank = make([]uint32, len(words))
	section = binary.LittleEndian.AppendUint32(nil, uint32(len(words)))
	size := 0
	for i, w := range words {
		rank[x.words.numbers[w]] = uint32(i)
		section = binary.LittleEndian.AppendUint32(section, uint32(size))
		size += len(w)
	}
	section = binary.LittleEndian.AppendUint32(section, uint32(size))
	return append(section, strings.Join(words, "")...), rank
}

// spans are pieces of the index's data, each under a key's hash.
type spans struct {
	bytes []byte
	spans []span
}

type span struct {
	hash      uint64
	off, size uint32
}

func (s *spans) put(hash uint64, data []byte) {
	s.spans = append(s.spans, span{hash: hash, off: uint32(len(s.bytes)), size: uint32(len(data))})
	s.bytes = append(s.bytes, data...)
}

// A tally is how often and when somebody fetched a version.
type tally struct {
	count       int64
	first, last int64 // t, ns
}

func (t tally) plus(o tally) tally {
	if t.count == 0 {
		return o
	}
	return tally{count: t.count + o.count, first: min(t.first, o.first), last: max(t.last, o.last)}
}

// folded counts the fetches of each path: path, versions, and for each version who.
func (x *indexer) folded(rank []uint32) *spans {
	tallies := make(map[fetchKey]tally, len(x.fetches)/4)
	for _, f := range x.fetches {
		tallies[f.who] = tallies[f.who].plus(tally{count: f.count, first: f.t, last: f.t})
	}
	all := make([]fetchKey, 0, len(tallies))
	for k := range tallies {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b fetchKey) int { return a.compare(b, rank) })
	out := &spans{}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].path == all[0].path {
			n++
		}
		out.put(keyHash(string(keyFetches)+x.words.words[all[0].path]), x.pathBlock(all[:n], tallies, rank))
		all = all[n:]
	}
	return out
}

func (k fetchKey) compare(o fetchKey, rank []uint32) int {
	for _, pair := range [...][2]uint32{{k.path, o.path}, {k.version, o.version}, {k.subject, o.subject}, {k.issuer, o.issuer}, {k.device, o.device}} {
		if pair[0] != pair[1] {
			return int(rank[pair[0]]) - int(rank[pair[1]])
		}
	}
	return int(k.flags) - int(o.flags)
}

// pathBlock writes the fetches of one path.
func (x *indexer) pathBlock(keys []fetchKey, tallies map[fetchKey]tally, rank []uint32) []byte {
	out := binary.AppendUvarint(nil, uint64(rank[keys[0].path]))
	for len(keys) > 0 {
		version := keys[0].version
		var block []byte
		for len(keys) > 0 && keys[0].version == version {
			k, t := keys[0], tallies[keys[0]]
			keys = keys[1:]
			block = append(block, k.flags)
			for _, n := range []uint64{
				uint64(rank[k.subject]), uint64(rank[k.issuer]), uint64(rank[k.device]),
				uint64(t.count), uint64(t.first - x.oldest), uint64(t.last - t.first),
			} {
				block = binary.AppendUvarint(block, n)
			}
		}
		out = binary.AppendUvarint(out, uint64(rank[version]))
		out = binary.AppendUvarint(out, uint64(len(block)))
		out = append(out, block...)
	}
	return out
}
