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
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// layout names the files of one epoch.
type layout struct {
	dir   string // of the log
	epoch int64
}

func (l layout) folder() string     { return filepath.Join(l.dir, "epoch", strconv.FormatInt(l.epoch, 10)) }
func (l layout) segments() string   { return filepath.Join(l.folder(), "segment") }
func (l layout) checkpoint() string { return filepath.Join(l.folder(), "checkpoint") }
func (l layout) spare() string      { return filepath.Join(l.segments(), "next") }

func (l layout) segment(first int64) string {
	return filepath.Join(l.segments(), fmt.Sprintf("%020d.log", first))
}

func (l layout) hashes(first int64) string {
	return filepath.Join(l.segments(), fmt.Sprintf("%020d.hashes", first))
}

func (l layout) index(first int64) string {
	return filepath.Join(l.segments(), fmt.Sprintf("%020d.idx", first))
}

func (l layout) packed(first int64) string { return l.segment(first) + ".zst" }

// list returns the first sequence numbers of the epoch's segments, in order; none if there is no epoch.
func (l layout) list() ([]int64, error) {
	entries, err := os.ReadDir(l.segments())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing segments: %w", err)
	}
	var firsts []int64
	for _, e := range entries {
		digits, ok := strings.CutSuffix(strings.TrimSuffix(e.Name(), ".zst"), ".log")
		if !ok || len(digits) != 20 {
			continue
		}
		first, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || first < 0 {
			continue
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	return slices.Compact(firsts), nil // a raw one and its packed copy, where a crash came between
}

// A segmentFile is a segment open for reading: what it reads is the raw segment, also where that is packed.
type segmentFile struct {
	io.ReaderAt
	file   *os.File
	packed *packed // nil for a raw one
}

// openSegment opens a segment for reading. The raw file is the original as long as it is there.
func (l layout) openSegment(first int64) (*segmentFile, error) {
	f, err := os.Open(l.segment(first))
	if err == nil {
		return &segmentFile{ReaderAt: f, file: f}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening segment: %w", err)
	}
	if f, err = os.Open(l.packed(first)); err != nil {
		return nil, fmt.Errorf("opening segment: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening segment: %w", err), f.Close())
	}
	p, err := openPacked(f, info.Size(), l, first)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segmentFile{ReaderAt: p, file: f, packed: p}, nil
}

func (s *segmentFile) close() {
	if s.packed != nil {
		s.packed.close()
	}
	_ = s.file.Close() // only read
}

// sync makes durable what was read: frames that can be read may still be in the page cache alone.
func (s *segmentFile) sync() error {
	if err := retry(func() error { return unix.Fdatasync(int(s.file.Fd())) }); err != nil {
		return fmt.Errorf("syncing %s: %w", s.file.Name(), err)
	}
	return nil
}

// hasSegment reports whether a segment's records are there, raw or packed.
func (l layout) hasSegment(first int64) bool {
	_, err := os.Stat(l.segment(first))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(l.packed(first))
	}
	return err == nil
}

// readHashes reads the leaf hashes of a sealed segment of count records; ok is false if they are not there in full.
func (l layout) readHashes(first, count int64) (hashes []byte, ok bool, err error) {
	b, err := os.ReadFile(l.hashes(first))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading leaf hashes: %w", err)
	}
	return b, int64(len(b)) == count*tlog.HashSize, nil
}

// lastHash returns the leaf hash of the last record of a sealed segment.
func (l layout) lastHash(first int64) (tlog.Hash, error) {
	f, err := os.Open(l.hashes(first))
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("reading leaf hashes: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("reading leaf hashes: %w", err)
	}
	var h tlog.Hash
	if _, err := f.ReadAt(h[:], info.Size()-tlog.HashSize); err != nil {
		return tlog.Hash{}, fmt.Errorf("reading leaf hashes: %w", err)
	}
	return h, nil
}

// epochs returns the numbers of the log's epochs, in order.
func epochs(dir string) ([]int64, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "epoch"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing epochs: %w", err)
	}
	var all []int64
	for _, e := range entries {
		if n, err := parseDecimal(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, nil
}

// A scanner reads the frames of one segment in order, through a window of bounded size.
type scanner struct {
	file io.ReaderAt
	buf  []byte
	have []byte // unread part of buf
	off  int64  // of have in the file
	raw  []byte // the last frame that next returned, as it stands in the file
}

const scanWindow = 256 << 10

func newScanner(file io.ReaderAt, off int64) *scanner {
	return &scanner{file: file, buf: make([]byte, scanWindow), off: off}
}

// next returns the next frame, valid until the call after: io.EOF where the file ends or zeros begin, errFrame at
// anything else that is no valid frame. The scanner stays where it is after an error, and reads the file afresh.
func (s *scanner) next() (frame, error) {
	f, n, err := parseFrame(s.have)
	if err != nil {
		if err := s.fill(); err != nil {
			return frame{}, err
		}
		if f, n, err = parseFrame(s.have); err != nil {
			if isZero(s.have[:min(len(s.have), frameHead)]) {
				err = io.EOF
			}
			s.have = s.have[:0]
			return frame{}, err
		}
	}
	s.raw, s.have = s.have[:n], s.have[n:]
	s.off += int64(n)
	return f, nil
}

func (s *scanner) fill() error {
	n, err := s.file.ReadAt(s.buf, s.off)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading segment at %d: %w", s.off, err)
	}
	s.have = s.buf[:n]
	return nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// A tail is what stands behind the last good frame of a segment.
type tail struct {
	bytes int64  // to the last one that is not zero; 0 is a clean end
	later bool   // a valid frame of a later write stands there, so what is damaged was acknowledged
	head  []byte // the beginning, to look for an event id in
}

// inspectTail reads a segment from off, where the record numbered seq should stand, to its end.
func inspectTail(file io.ReaderAt, off, seq int64) (tail, error) {
	var t tail
	const step = scanWindow / 2
	buf, zeros := make([]byte, step+frameHead+maxPayload), make([]byte, 4096)
	for at := off; ; at += step {
		n, err := file.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return tail{}, fmt.Errorf("reading end of segment at %d: %w", at, err)
		}
		if at == off {
			t.head = slices.Clone(buf[:min(n, maxPayload)])
		}
		try := 0 // where to look for a block of zeros again: a preallocated segment is little else
		for i := 0; i < min(n, step); i++ {
			if i >= try && bytes.HasPrefix(buf[i:n], zeros) {
				i += len(zeros) - frameHead // a frame may begin in the last zeros: its length has low bytes of 0
				continue
			} else if i >= try {
				try = i + len(zeros)
			}
			if buf[i] != 0 {
				t.bytes = at + int64(i) + 1 - off
			}
			if t.later || at == off && i == 0 || i+frameHead > n || buf[i+8]&^markKind != markVersion|markBatch {
				continue
			}
			if f, _, err := parseFrame(buf[i:n]); err == nil && f.seq > seq {
				t.later = true
			}
		}
		if n < len(buf) {
			return t, nil
		}
	}
}
