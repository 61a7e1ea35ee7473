package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A search index is kept in pages of 4 KiB, each with its own CRC-32C at its end, so that a question checks what it
// reads without reading the rest. The CRC also covers the page's number and the segment's, so that a page that ended
// up elsewhere does not pass.
const (
	pageSize = 4096
	pageData = pageSize - 4
)

// errIndex says that an index is not what was written, or not of this segment. It is then rebuilt.
var errIndex = errors.New("search index does not fit its segment")

// sealPages cuts content into pages.
func sealPages(content []byte, first int64) []byte {
	out := make([]byte, 0, len(content)+4*(len(content)/pageData+1))
	for n := int64(0); len(content) > 0; n++ {
		data := content[:min(pageData, len(content))]
		content = content[len(data):]
		out = append(out, data...)
		out = binary.LittleEndian.AppendUint32(out, pageSum(data, first, n))
	}
	return out
}

func pageSum(data []byte, first, n int64) uint32 {
	var where [16]byte
	binary.LittleEndian.PutUint64(where[:], uint64(first))
	binary.LittleEndian.PutUint64(where[8:], uint64(n))
	return crc32.Update(crc32.Checksum(data, castagnoli), castagnoli, where[:])
}

// A pageReader reads what sealPages wrote, and keeps the pages it has read.
type pageReader struct {
	file  io.ReaderAt
	first int64
	size  int64 // of the content
	pages map[int64][]byte
}

func newPageReader(file io.ReaderAt, first, size int64) (*pageReader, error) {
	whole, rest := size/pageSize, size%pageSize
	if rest > 0 && rest <= 4 {
		return nil, fmt.Errorf("opening index of %d bytes: %w", size, errIndex)
	}
	return &pageReader{file: file, first: first, size: whole*pageData + max(rest-4, 0), pages: map[int64][]byte{}}, nil
}

// page returns the n-th page's data.
func (p *pageReader) page(n int64) ([]byte, error) {
	if data, ok := p.pages[n]; ok {
		return data, nil
	}
	size := min(pageData, p.size-n*pageData)
	buf := make([]byte, size+4)
	if _, err := p.file.ReadAt(buf, n*pageSize); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading index page %d: %w", n, err)
	}
	data := buf[:size]
	if pageSum(data, p.first, n) != binary.LittleEndian.Uint32(buf[size:]) {
		return nil, fmt.Errorf("reading index page %d: %w", n, errIndex)
	}
	p.pages[n] = data
	return data, nil
}

// read returns n bytes at off, which may be part of a page and must not be changed.
func (p *pageReader) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > p.size-n {
		return nil, fmt.Errorf("reading %d bytes of index at %d: %w", n, off, errIndex)
	}
	if n == 0 {
		return nil, nil
	}
	at, skip := off/pageData, off%pageData
	data, err := p.page(at)
	if err != nil {
		return nil, err
	}
	if skip+n <= int64(len(data)) {
		return data[skip : skip+n], nil
	}
	out := append(make([]byte, 0, n), data[skip:]...)
	for int64(len(out)) < n {
		at++
		if data, err = p.page(at); err != nil {
			return nil, err
		}
		out = append(out, data[:min(n-int64(len(out)), int64(len(data)))]...)
	}
	return out, nil
}
