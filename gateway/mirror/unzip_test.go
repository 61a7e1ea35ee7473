package mirror

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/dirhash"
)

// writeZip writes a zip with some files of text and of noise, each stored or deflated.
func writeZip(tb testing.TB, files int) string {
	tb.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	noise := rand.NewChaCha8([32]byte{1})
	for i := range files {
		method := zip.Deflate
		if i%5 == 0 {
			method = zip.Store
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("example.com/m@v1.0.0/f%03d.go", i), Method: method})
		text := []byte(strings.Repeat(fmt.Sprintf("package m // %d\n", i), 10*i))
		if i%3 == 0 {
			text = make([]byte, 100*i)
			noise.Read(text)
		}
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	name := filepath.Join(tb.TempDir(), "m.zip")
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		tb.Fatal(err)
	}
	return name
}

func TestHashZipIsTheGoCommands(t *testing.T) {
	name := writeZip(t, 40)
	want, err := dirhash.HashZip(name, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // the second time with inflaters that were used
		if got, err := hashZipFile(name); got != want || err != nil {
			t.Errorf("hashZipFile = %q, %v; want %q", got, err, want)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b); i += len(b)/60 + 1 { // what is damaged never has the hash, and what was pooled after it is whole
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		theirs := filepath.Join(t.TempDir(), "bad.zip")
		if err := os.WriteFile(theirs, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		other, _ := dirhash.HashZip(theirs, dirhash.Hash1)
		if got, err := hashZipFile(theirs); err == nil && got != other {
			t.Errorf("byte %d changed: %q, want %q as the go command", i, got, other)
		}
	}
	if got, err := hashZipFile(name); got != want || err != nil {
		t.Errorf("after damaged ones: %q, %v; want %q", got, err, want)
	}
	if _, err := hashZipFile(name + ".missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestInflaterIsClosedOnce(t *testing.T) {
	f := inflate(strings.NewReader(""))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed twice: %v; two files would share what is pooled", err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func BenchmarkHashZip(b *testing.B) {
	name := writeZip(b, 1000)
	for way, hash := range map[string]func() (string, error){
		"own":     func() (string, error) { return hashZipFile(name) },
		"dirhash": func() (string, error) { return dirhash.HashZip(name, dirhash.Hash1) },
	} {
		b.Run(way, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := hash(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
