package mirror

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Limits of a zip's list of files. archive/zip and x/mod/zip read all of it
// into memory, as far as it goes and whatever it declares: a zip of 500 MiB
// could list millions of empty files, or folders within folders without end.
const (
	maxDirectory = 16 << 20 // bytes
	maxListed    = 100_000
	maxName      = 1024 // bytes of one name
	maxDepth     = 128  // folders of one name
	maxFolders   = 4 << 20
)

// Signatures and lengths of https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.
const (
	entrySignature = "PK\x01\x02"
	endSignature   = "PK\x05\x06"
	end64Signature = "PK\x06\x06"
	locSignature   = "PK\x06\x07"
	entryLen       = 46
	endLen         = 22
	end64Len       = 56
	locLen         = 20
)

// directory is where a zip's list of files is, and what is said of it.
type directory struct{ offset, size, records, end uint64 }

// checkDirectory wants the list of files to be where and as long as it is
// declared, and within limits, before anybody reads it into memory.
func checkDirectory(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	d, err := findDirectory(f, info.Size())
	if err != nil {
		return err
	}
	switch {
	case d.size > maxDirectory:
		return fmt.Errorf("its list of files has %d bytes, more than %d", d.size, maxDirectory)
	case d.records > maxListed:
		return fmt.Errorf("it lists %d files, more than %d", d.records, maxListed)
	case d.offset > d.end || d.end-d.offset != d.size:
		return errors.New("its list of files is not where it is declared")
	}
	return d.walk(bufio.NewReader(io.NewSectionReader(f, int64(d.offset), info.Size()-int64(d.offset))))
}

// findDirectory reads the end records as archive/zip does.
func findDirectory(r io.ReaderAt, size int64) (directory, error) {
	tail := make([]byte, min(size, 64<<10+endLen))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil {
		return directory{}, err
	}
	i := bytes.LastIndex(tail, []byte(endSignature))
	if i < 0 || len(tail)-i < endLen || int(binary.LittleEndian.Uint16(tail[i+20:])) != len(tail)-i-endLen {
		return directory{}, zip.ErrFormat
	}
	at := size - int64(len(tail)) + int64(i)
	b := tail[i:]
	d := directory{
		records: uint64(binary.LittleEndian.Uint16(b[10:])), size: uint64(binary.LittleEndian.Uint32(b[12:])),
		offset: uint64(binary.LittleEndian.Uint32(b[16:])), end: uint64(at),
	}
	return d, d.find64(r, at)
}

// find64 reads the larger record of a zip64 where there is one, though the small one may not say so: readers differ in
// when they believe which, so both must agree as far as the small one goes.
func (d *directory) find64(r io.ReaderAt, at int64) error {
	loc := make([]byte, locLen)
	if at < locLen+end64Len {
		return nil
	}
	if _, err := r.ReadAt(loc, at-locLen); err != nil {
		return err
	}
	if string(loc[:4]) != locSignature {
		return nil
	}
	where := at - locLen - end64Len
	b := make([]byte, end64Len)
	if _, err := r.ReadAt(b, where); err != nil {
		return err
	}
	if string(b[:4]) != end64Signature || binary.LittleEndian.Uint64(loc[8:]) != uint64(where) {
		return errors.New("its zip64 records are not where they are declared")
	}
	small := *d
	d.records, d.size, d.offset = binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:]), binary.LittleEndian.Uint64(b[48:])
	d.end = uint64(where)
	if small.records != min(d.records, 0xffff) || small.size != min(d.size, 0xffffffff) || small.offset != min(d.offset, 0xffffffff) {
		// archive/zip's writer puts the largest number into all three.
		if small.records != 0xffff || small.size != 0xffffffff || small.offset != 0xffffffff {
			return errors.New("its two end records contradict each other")
		}
	}
	return nil
}

// walk reads the list as archive/zip would, which goes on until something is no entry, and keeps none of it.
func (d *directory) walk(r *bufio.Reader) error {
	folders := folders{seen: map[string]bool{}}
	var read, records uint64
	for header := make([]byte, entryLen); ; records++ {
		if _, err := io.ReadFull(r, header); err != nil || string(header[:4]) != entrySignature {
			break // the end records, if all is well
		}
		n := int(binary.LittleEndian.Uint16(header[28:]))
		rest := int(binary.LittleEndian.Uint16(header[30:])) + int(binary.LittleEndian.Uint16(header[32:]))
		if read += uint64(entryLen + n + rest); read > d.size || records >= d.records {
			return errors.New("its list of files is longer than declared")
		}
		if n > maxName {
			return fmt.Errorf("a name has %d bytes, more than %d", n, maxName)
		}
		name := make([]byte, n)
		if _, err := io.ReadFull(r, name); err != nil {
			return err
		}
		if _, err := r.Discard(rest); err != nil {
			return err
		}
		if err := folders.add(string(name)); err != nil {
			return err
		}
	}
	if read != d.size || records != d.records {
		return errors.New("its list of files is shorter than declared")
	}
	return nil
}

// folders adds up the names of all folders: x/mod/zip keeps each of them by its whole path.
type folders struct {
	seen  map[string]bool
	bytes int
}

func (f *folders) add(name string) error {
	if strings.Count(name, "/") > maxDepth {
		return fmt.Errorf("a name is more than %d folders deep", maxDepth)
	}
	for i := strings.LastIndexByte(name, '/'); i >= 0 && !f.seen[name[:i]]; i = strings.LastIndexByte(name[:i], '/') {
		f.seen[name[:i]] = true
		if f.bytes += i; f.bytes > maxFolders {
			return fmt.Errorf("its folders' names have more than %d bytes", maxFolders)
		}
	}
	return nil
}
