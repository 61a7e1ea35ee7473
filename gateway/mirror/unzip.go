package mirror

import (
	"archive/zip"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/klauspost/compress/flate"
	"golang.org/x/mod/sumdb/dirhash"
)

// hashZip is dirhash.HashZip of an open file. Unpacking is half of what taking a zip in costs: it has a faster inflater
// than the standard library's, and no buffers of its own for each file.
func hashZip(r io.ReaderAt, size int64) (string, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return "", err
	}
	z.RegisterDecompressor(zip.Deflate, inflate)
	names := make([]string, 0, len(z.File))
	files := make(map[string]*zip.File, len(z.File))
	for _, f := range z.File {
		names = append(names, f.Name)
		files[f.Name] = f
	}
	return dirhash.Hash1(names, func(name string) (io.ReadCloser, error) {
		f, err := files[name].Open()
		if err != nil {
			return nil, err
		}
		return copied{f}, nil
	})
}

// hashZipFile is hashZip of a file of the disk.
func hashZipFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	return hashZip(f, info.Size())
}

// inflaters are readers of flate that were closed.
var inflaters sync.Pool

// An inflater unpacks one file of a zip, once.
type inflater struct{ r io.ReadCloser }

func inflate(r io.Reader) io.ReadCloser {
	f, ok := inflaters.Get().(flate.Resetter)
	if !ok {
		return &inflater{flate.NewReader(r)}
	}
	_ = f.Reset(r, nil)                 // fails on a wrong dictionary only
	return &inflater{f.(io.ReadCloser)} //nolint:forcetypeassert // flate's readers are
}

func (f *inflater) Read(b []byte) (int, error) {
	if f.r == nil {
		return 0, fs.ErrClosed
	}
	return f.r.Read(b)
}

func (f *inflater) Close() error {
	if f.r == nil {
		return fs.ErrClosed
	}
	err := f.r.Close()
	inflaters.Put(f.r)
	f.r = nil
	return err
}

// buffers are *[32 << 10]byte.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copied is a file that io.Copy reads without making a buffer.
type copied struct{ io.ReadCloser }

func (c copied) WriteTo(w io.Writer) (int64, error) {
	b := buffers.Get().(*[32 << 10]byte) //nolint:forcetypeassert // the pool has nothing else
	defer buffers.Put(b)
	return io.CopyBuffer(w, c.ReadCloser, b[:]) // an open zip file has no WriteTo, a hash no ReadFrom
}
