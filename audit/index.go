package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// An index answers questions about one segment without reading its records. It is derived from them: one that does not
// fit is rebuilt, never believed.
type index struct {
	pages  *pageReader
	first  int64
	count  int64
	head   tlog.Hash // leaf hash of the last record
	oldest int64     // t, ns
	newest int64
	keys   section
	data   section
	events section
	dict   section
	blocks section
	words  uint64 // in the dictionary
}

// A section is a part of an index's content.
type section struct{ off, size int64 }

// openIndex reads the head of the index of the segment that begins at first.
func openIndex(file io.ReaderAt, first, size int64) (*index, error) {
	p, err := newPageReader(file, first, size)
	if err != nil {
		return nil, err
	}
	head, err := p.read(0, indexHead)
	if err != nil {
		return nil, err
	}
	x := &index{pages: p, head: tlog.Hash(head[24:])}
	num := func(at int) int64 { return int64(binary.LittleEndian.Uint64(head[at:])) }
	x.first, x.count, x.oldest, x.newest = num(8), num(16), num(56), num(64)
	for i, s := range []*section{&x.keys, &x.data, &x.events, &x.dict, &x.blocks} {
		*s = section{off: num(72 + 16*i), size: num(80 + 16*i)}
		if s.off < indexHead || s.size < 0 || s.off > p.size || s.size > p.size-s.off {
			return nil, fmt.Errorf("opening index: section %d: %w", i, errIndex)
		}
	}
	if string(head[:8]) != indexMagic || x.first != first || x.count < 0 || x.count > maxIndexed || x.dict.size < 8 {
		return nil, fmt.Errorf("opening index: %w", errIndex)
	}
	words, err := x.at(x.dict, 0, 4)
	if err != nil {
		return nil, err
	}
	x.words = uint64(binary.LittleEndian.Uint32(words))
	if x.words > uint64(x.dict.size)/4 {
		return nil, fmt.Errorf("opening index: dictionary: %w", errIndex)
	}
	return x, nil
}

// memoryIndex is the index of records that are still collected.
func memoryIndex(x *indexer) (*index, error) {
	b := x.encode()
	return openIndex(bytes.NewReader(b), x.first, int64(len(b)))
}

// at reads part of a section.
func (x *index) at(s section, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > s.size-n {
		return nil, fmt.Errorf("reading index: %w", errIndex)
	}
	return x.pages.read(s.off+off, n)
}

// lookup gives fn the data of each entry with this key's hash.
func (x *index) lookup(kind byte, word string, fn func(data []byte) error) error {
	hash := keyHash(string(kind) + word)
	i, err := x.find(x.keys, keyEntry, hash)
	if err != nil {
		return err
	}
	for ; i < x.keys.size/keyEntry; i++ {
		e, err := x.at(x.keys, i*keyEntry, keyEntry)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(e) != hash {
			return nil
		}
		data, err := x.at(x.data, int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:])))
		if err != nil {
			return err
		}
		if err := fn(data); err != nil {
			return err
		}
	}
	return nil
}

// find returns the first entry of a sorted table that is not below want. Hashes are uniform, so the place is guessed
// and hardly ever missed by more than a page or two: a table is searched with one or two reads.
func (x *index) find(s section, entry int64, want uint64) (int64, error) {
	low, high := int64(0), s.size/entry // entries below low are smaller, those from high on are not
	guess, _ := bits.Mul64(want, uint64(high))
	const step = pageSize / 16
	for at := int64(guess); low < high; {
		if high-low > 4*step {
			at = min(max(at, low), high-1)
		} else {
			at = low + (high-low)/2
		}
		e, err := x.at(s, at*entry, 8)
		if err != nil {
			return 0, err
		}
		if binary.LittleEndian.Uint64(e) < want {
			low, at = at+1, at+step
		} else {
			high, at = at, at-step
		}
	}
	return low, nil
}

// records returns the records of a key as numbers within the segment.
func (x *index) records(kind byte, word string) ([]int64, error) {
	var all []int64
	err := x.lookup(kind, word, func(data []byte) error {
		last := int64(-1)
		for len(data) > 0 {
			delta, n := binary.Uvarint(data)
			if n <= 0 || delta >= uint64(x.count-last-1) {
				return fmt.Errorf("reading records of a key: %w", errIndex)
			}
			last += 1 + int64(delta)
			all, data = append(all, last), data[n:]
		}
		return nil
	})
	return all, err
}

// event returns the records that may have an event id with this beginning of at least eight characters.
func (x *index) event(id string) ([]int64, error) {
	key, ok := eventKey(id)
	if !ok {
		return nil, nil
	}
	i, err := x.find(x.events, eventEntry, key<<eventSuffix)
	if err != nil {
		return nil, err
	}
	var all []int64
	for ; i < x.events.size/eventEntry; i++ {
		e, err := x.at(x.events, i*eventEntry, eventEntry)
		if err != nil {
			return nil, err
		}
		n := binary.LittleEndian.Uint64(e)
		if n>>eventSuffix != key {
			break
		}
		all = append(all, int64(n&(maxIndexed-1)))
	}
	return all, nil
}

// word returns a string of the dictionary.
func (x *index) word(n uint64) ([]byte, error) {
	if n >= x.words {
		return nil, fmt.Errorf("reading dictionary of index: %w", errIndex)
	}
	offsets, err := x.at(x.dict, 4+4*int64(n), 8)
	if err != nil {
		return nil, err
	}
	from, to := int64(binary.LittleEndian.Uint32(offsets)), int64(binary.LittleEndian.Uint32(offsets[4:]))
	return x.at(x.dict, 8+4*int64(x.words)+from, to-from)
}

// block returns where in the raw segment the n-th block of 1,024 records begins.
func (x *index) block(n int64) (int64, error) {
	b, err := x.at(x.blocks, 8*n, 8)
	if err != nil {
		return 0, err
	}
	return int64(binary.LittleEndian.Uint64(b)), nil
}

// A found is one tally of one segment.
type found struct {
	who   fetchKey
	tally tally
}

// fetches returns every tally of a module, or of one of its versions. Words get their numbers in words.
func (x *index) fetches(path, version string, words *lexicon) ([]found, error) {
	var all []found
	err := x.lookup(keyFetches, path, func(data []byte) error {
		r := uvarints{data: data}
		if name, err := x.word(r.next()); err != nil || string(name) != path {
			return err
		}
		known := make([]uint32, x.words) // by this index's numbers: 1 more than the number in words, 0 if not met yet
		for len(r.data) > 0 && !r.bad {
			name, err := x.word(r.next())
			if err != nil {
				return err
			}
			block := r.bytes(r.next())
			if version != "" && string(name) != version {
				continue
			}
			who := fetchKey{path: words.number(path), version: words.number(string(name))}
			if all, err = x.version(all, who, block, func(n uint64) (uint32, error) { return x.number(n, known, words) }); err != nil {
				return err
			}
		}
		return r.err()
	})
	return all, err
}

// version adds the tallies of one version.
func (x *index) version(all []found, who fetchKey, block []byte, number func(uint64) (uint32, error)) ([]found, error) {
	r := uvarints{data: block}
	for len(r.data) > 0 && !r.bad {
		who.flags = r.bytes(1)[0]
		for _, n := range []*uint32{&who.subject, &who.issuer, &who.device} {
			var err error
			if *n, err = number(r.next()); err != nil {
				return nil, err
			}
		}
		t := tally{count: int64(r.next())}
		t.first = x.oldest + int64(r.next())
		t.last = t.first + int64(r.next())
		all = append(all, found{who, t})
	}
	return all, r.err()
}

// number turns this index's number of a word into that of a lexicon for many indexes.
func (x *index) number(n uint64, known []uint32, words *lexicon) (uint32, error) {
	if n < uint64(len(known)) && known[n] > 0 {
		return known[n] - 1, nil
	}
	word, err := x.word(n)
	if err != nil {
		return 0, err
	}
	number, ok := words.numbers[string(word)] // makes no string of a word that is known, as most are
	if !ok {
		number = words.number(string(word))
	}
	known[n] = number + 1
	return number, nil
}

// uvarints reads numbers and remembers that one was missing.
type uvarints struct {
	data []byte
	bad  bool
}

func (r *uvarints) next() uint64 {
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.bad, r.data = true, nil
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *uvarints) bytes(n uint64) []byte {
	if n > uint64(len(r.data)) {
		r.bad, r.data = true, nil
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *uvarints) err() error {
	if r.bad {
		return fmt.Errorf("reading fetches of index: %w", errIndex)
	}
	return nil
}
