package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Tiles hold what lies above the leaves, 256 hashes each, so that a proof does not hash the whole log. Their names are
// those of C2SP tlog-tiles; tiles of level 0 are not written, since .hashes holds the leaves. A tile is derived: a proof
// that it spoils is made again without it.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tile names the n-th full tile of a level.
func (l layout) tile(level int, n int64) string {
	name := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		name = fmt.Sprintf("x%03d/%s", n%1000, name)
	}
	return filepath.Join(l.folder(), "tile", fmt.Sprint(level), filepath.FromSlash(name))
}

// A hashReader gives the hashes of one epoch's tree: from tiles, leaf hashes of sealed segments, and the records of
// those that have none yet. It is a tlog.HashReader.
type hashReader struct {
	layout
	firsts  []int64
	noTiles bool
	scanned map[int64][]byte // leaf hashes, by first seq of their segment
}

func newHashReader(l layout) (*hashReader, error) {
	firsts, err := l.list()
	return &hashReader{layout: l, firsts: l.withRemoved(firsts), scanned: map[int64][]byte{}}, err
}

// ReadHashes implements tlog.HashReader.
func (r *hashReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		h, err := r.subtree(level, n)
		if err != nil {
			return nil, err
		}
		out[i] = h
	}
	return out, nil
}

// subtree returns the root of the n-th subtree of 2^level leaves.
func (r *hashReader) subtree(level int, n int64) (tlog.Hash, error) {
	if level >= tileHeight && !r.noTiles {
		if h, ok, err := r.fromTile(level, n); ok || err != nil {
			return h, err
		}
	}
	if level > tileHeight {
		left, err := r.subtree(level-1, 2*n)
		if err != nil {
			return tlog.Hash{}, err
		}
		right, err := r.subtree(level-1, 2*n+1)
		return tlog.NodeHash(left, right), err
	}
	leaves, err := r.leaves(n<<level, 1<<level)
	if err != nil {
		return tlog.Hash{}, err
	}
	return combine(leaves), nil
}

// fromTile makes the same from a tile, if it is there.
func (r *hashReader) fromTile(level int, n int64) (h tlog.Hash, ok bool, err error) {
	above := level % tileHeight // levels above the tile's own hashes
	start := n << above
	b, err := os.ReadFile(r.tile(level/tileHeight, start/tileWidth))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) != tileWidth*tlog.HashSize {
		return tlog.Hash{}, false, nil
	}
	if err != nil {
		return tlog.Hash{}, false, fmt.Errorf("reading tile: %w", err)
	}
	at := start % tileWidth * tlog.HashSize
	return combine(b[at : at+tlog.HashSize<<above]), true, nil
}

// combine returns the root above hashes, a power of two of them. It uses their room.
func combine(hashes []byte) tlog.Hash {
	for len(hashes) > tlog.HashSize {
		half := hashes[:0]
		for at := 0; at < len(hashes); at += 2 * tlog.HashSize {
			h := tlog.NodeHash(tlog.Hash(hashes[at:]), tlog.Hash(hashes[at+tlog.HashSize:]))
			half = append(half, h[:]...)
		}
		hashes = half
	}
	return tlog.Hash(hashes)
}

// leaves returns count leaf hashes from seq on.
func (r *hashReader) leaves(seq, count int64) ([]byte, error) {
	out := make([]byte, 0, count*tlog.HashSize)
	for count > 0 {
		i, ok := slices.BinarySearch(r.firsts, seq)
		if !ok {
			i--
		}
		if i < 0 {
			return nil, fmt.Errorf("reading leaf hash %d: %w", seq, fs.ErrNotExist)
		}
		n := count
		if i+1 < len(r.firsts) {
			n = min(n, r.firsts[i+1]-seq)
		}
		b, err := r.segmentLeaves(r.firsts[i], seq-r.firsts[i], n)
		if err != nil {
			return nil, fmt.Errorf("reading leaf hash %d: %w", seq, err)
		}
		out = append(out, b...)
		seq, count = seq+n, count-n
	}
	return out, nil
}

// segmentLeaves reads leaf hashes of one segment.
func (r *hashReader) segmentLeaves(first, skip, count int64) ([]byte, error) {
	hashes, ok := r.scanned[first]
	if !ok {
		f, err := os.Open(r.hashes(first))
		if err == nil {
			defer f.Close()
			b := make([]byte, count*tlog.HashSize)
			_, err = f.ReadAt(b, skip*tlog.HashSize)
			return b, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if hashes, err = scanLeaves(r.layout, first); err != nil {
			return nil, err
		}
		r.scanned[first] = hashes
	}
	if (skip+count)*tlog.HashSize > int64(len(hashes)) {
		return nil, io.ErrUnexpectedEOF
	}
	return hashes[skip*tlog.HashSize : (skip+count)*tlog.HashSize], nil
}

// scanLeaves hashes the records of a segment.
func scanLeaves(l layout, first int64) ([]byte, error) {
	f, err := l.openSegment(first)
	if err != nil {
		return nil, err
	}
	defer f.close()
	var hashes, scratch bytes.Buffer
	s := newScanner(f, 0)
	for {
		fr, err := s.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errFrame) { // a write under way, at most: the checkpoint counts none of it
			return hashes.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		leaf := fr.leaf(&scratch)
		hashes.Write(leaf[:])
	}
}

// writeTiles writes the full tiles of a tree of this size that are not there yet.
func (l *Log) writeTiles(size int64) error {
	r, err := newHashReader(l.layout)
	if err != nil {
		return err
	}
	for level := 1; size>>(tileHeight*(level+1)) > 0; level++ {
		end := size >> (tileHeight * (level + 1))
		n := end
		for n > 0 && !exists(l.layout.tile(level, n-1)) {
			n--
		}
		for ; n < end && !stopped(l.stop); n++ {
			if err := l.writeTile(r, level, n); err != nil {
				return err
			}
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func (l *Log) writeTile(r *hashReader, level int, n int64) error {
	indexes := make([]int64, tileWidth)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(level*tileHeight, n*tileWidth+int64(i))
	}
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return fmt.Errorf("making tile %d of level %d: %w", n, level, err)
	}
	b := make([]byte, 0, tileWidth*tlog.HashSize)
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	name := l.layout.tile(level, n)
	if err := makeDirs(l.disk, l.layout.folder(), filepath.Dir(name)); err != nil {
		return err
	}
	return writeFile(l.disk, name, b)
}

// makeDirs makes the folders from base, which exists, down to name.
func makeDirs(d disk, base, name string) error {
	if name == base {
		return nil
	}
	if err := makeDirs(d, base, filepath.Dir(name)); err != nil {
		return err
	}
	return makeDir(d, name)
}
