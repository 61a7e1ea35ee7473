package mirrortest

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/mod/module"
)

// HostileZip is a zip that no mirror may take in.
type HostileZip struct {
	// Name says what is wrong with it.
	Name string
	// Make builds it.
	Make func() ([]byte, error)
}

// HostileZips are zips that break a rule of module zips each, or would fill
// memory or disk, all of one version.
func HostileZips(v module.Version) []HostileZip {
	p := v.String() + "/"
	files := func(names ...string) func() ([]byte, error) {
		return func() ([]byte, error) { return build(names, strings.Repeat("x", 64)) }
	}
	other := v.Path + "@" + v.Version + "1/"
	return []HostileZip{
		{"not a zip", func() ([]byte, error) { return []byte("<html>sign in</html>"), nil }},
		{"dot dot in a name", files(p + "../../../etc/cron.d/x")},
		{"backslashes in a name", files(p + `..\..\x`)},
		{"absolute name", files("/etc/cron.d/x")},
		{"entries of another version", files(p+"a.go", other+"b.go")},
		{"case twins", files(p+"a.go", p+"A.go")},
		{"the same name twice", files(p+"a.go", p+"a.go")},
		{"file and folder of one name", files(p+"a", p+"a/b.go")},
		{"go.mod in a folder", files(p+"a.go", p+"sub/go.mod")},
		{"GO.MOD", files(p + "GO.MOD")},
		{"symlink", func() ([]byte, error) { return linked(p) }},
		{"bomb of 2 GB", func() ([]byte, error) { return Bomb(p, 24, 90<<20) }},
		{"bomb of one file that lies about its size", func() ([]byte, error) { return lying(p) }},
		{"list of 300,000 files", func() ([]byte, error) { return build(many(p, 300_000), "") }},
		{"list that is longer than declared", func() ([]byte, error) { return longer(p) }},
		{"zip64 records behind small ones", func() ([]byte, error) { return hidden64(p) }},
		{"folders in folders", func() ([]byte, error) { return build(deep(p), "") }},
	}
}

// build makes a zip of names, each with the same content.
func build(names []string, content string) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range names {
		if content == "" {
			if _, err := z.CreateRaw(&zip.FileHeader{Name: name}); err != nil {
				return nil, err
			}
			continue
		}
		w, err := z.Create(name)
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		if err != nil {
			return nil, err
		}
	}
	err := z.Close()
	return b.Bytes(), err
}

func many(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return names
}

// deep gives names whose folders, each kept by its whole path, would fill gigabytes.
func deep(prefix string) []string {
	names := make([]string, 2000)
	for i := range names {
		names[i] = fmt.Sprintf("%sA%d/%sx", prefix, i, strings.Repeat("d/", 1500))
	}
	return names
}

func linked(prefix string) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	h := &zip.FileHeader{Name: prefix + "link"}
	h.SetMode(fs.ModeSymlink | 0o777)
	w, err := z.CreateHeader(h)
	if err == nil {
		_, err = io.WriteString(w, "/etc/passwd")
	}
	err = errors.Join(err, z.Close())
	return b.Bytes(), err
}

// Bomb is a small zip of n files of size zeros each, a multiple of 1 MiB.
func Bomb(prefix string, n int, size int64) ([]byte, error) {
	packed, err := deflatedZeros(size)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range n {
		f, err := z.CreateRaw(&zip.FileHeader{
			Name: fmt.Sprintf("%sf%d", prefix, i), Method: zip.Deflate,
			UncompressedSize64: uint64(size), CompressedSize64: uint64(len(packed)),
		})
		if err == nil {
			_, err = f.Write(packed)
		}
		if err != nil {
			return nil, err
		}
	}
	err = z.Close()
	return b.Bytes(), err
}

// deflatedZeros packs zeros, whole MiB of them: one MiB, repeated, since blocks that were flushed can follow each other.
func deflatedZeros(size int64) ([]byte, error) {
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(make([]byte, 1<<20))
	err = errors.Join(err, w.Flush())
	flushed := packed.Len()
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return slices.Concat(bytes.Repeat(packed.Bytes()[:flushed], int(size>>20)), packed.Bytes()[flushed:]), nil
}

// lying declares 10 bytes for a file of 600 MB.
func lying(prefix string) ([]byte, error) {
	b, err := Bomb(prefix, 1, 600<<20)
	if err == nil {
		binary.LittleEndian.PutUint32(b[bytes.LastIndex(b, []byte("PK\x01\x02"))+24:], 10)
	}
	return b, err
}

// longer declares one entry where archive/zip reads 65,537: it compares 16 bits of the number alone.
func longer(prefix string) ([]byte, error) {
	b, err := build(many(prefix, 1<<16+1), "")
	if err != nil {
		return nil, err
	}
	end := bytes.LastIndex(b, []byte("PK\x05\x06"))
	// The writer made it a zip64, which the small record now denies.
	offset := binary.LittleEndian.Uint64(b[end-20-56+48:])
	clear(b[end-20-56 : end])
	binary.LittleEndian.PutUint16(b[end+10:], 1)
	binary.LittleEndian.PutUint32(b[end+12:], 100)
	binary.LittleEndian.PutUint32(b[end+16:], uint32(offset))
	return b, nil
}

// hidden64 has a small record that looks harmless, and one number in it that makes archive/zip believe the large one.
func hidden64(prefix string) ([]byte, error) {
	b, err := build(many(prefix, 1<<16+1), "")
	if err != nil {
		return nil, err
	}
	end := bytes.LastIndex(b, []byte("PK\x05\x06"))
	binary.LittleEndian.PutUint32(b[end+12:], 100)
	binary.LittleEndian.PutUint32(b[end+16:], 100)
	return b, nil
}
