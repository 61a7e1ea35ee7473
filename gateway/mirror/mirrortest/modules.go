package mirrortest

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"
	"golang.org/x/tools/txtar"
)

// Module is one version that the server offers.
type Module struct {
	module.Version
	// Time is the commit time in .info; zero is 2024-05-01.
	Time time.Time
	// Files are the files of the module by name; without go.mod one line is made up for .mod.
	Files map[string][]byte
	// Info and Zip, where set, are sent as they are.
	Info, Zip []byte
}

// entry is a Module with what is computed from it, once.
type entry struct {
	Module
	once sync.Once
	zip  string // file name
	h1   string
	err  error
}

// ParseTxtar reads a module version from a txtar archive: the first line of
// its comment is "module PATH@VERSION", its files are the module's files, and
// ".info" and ".mod" override what would be computed.
func ParseTxtar(data []byte) (Module, error) {
	a := txtar.Parse(data)
	line, _, _ := strings.Cut(strings.TrimSpace(string(a.Comment)), "\n")
	p, v, ok := strings.Cut(strings.TrimPrefix(line, "module "), "@")
	if !ok {
		return Module{}, fmt.Errorf("reading a txtar module: first line %q, want \"module PATH@VERSION\"", line)
	}
	m := Module{Version: module.Version{Path: p, Version: v}, Files: map[string][]byte{}}
	for _, f := range a.Files {
		if f.Name == ".info" {
			m.Info = f.Data
			continue
		}
		m.Files[f.Name] = f.Data
	}
	return m, nil
}

// Add offers a module version; the zip is built when first asked for.
func (s *Server) Add(m Module) error {
	if err := module.Check(m.Path, m.Version.Version); err != nil {
		return fmt.Errorf("adding a module: %w", err)
	}
	if m.Time.IsZero() {
		m.Time = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modules[m.Version] = &entry{Module: m}
	return nil
}

// AddBig offers a module version whose zip holds n bytes that do not compress.
func (s *Server) AddBig(path, version string, n int64) error {
	m := Module{Version: module.Version{Path: path, Version: version}}
	if err := s.Add(m); err != nil {
		return err
	}
	name := filepath.Join(s.dir, fmt.Sprintf("big-%d.zip", rand.Uint64()))
	if err := writeBig(name, m.Version, n); err != nil {
		return fmt.Errorf("generating zip of %s: %w", m.Version, err)
	}
	s.mu.Lock()
	e := s.modules[m.Version]
	s.mu.Unlock()
	e.once.Do(func() {
		e.zip = name
		e.h1, e.err = dirhash.HashZip(name, dirhash.Hash1)
	})
	return e.err
}

func writeBig(name string, m module.Version, n int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z := zip.NewWriter(f)
	w, err := z.CreateHeader(&zip.FileHeader{Name: m.String() + "/data.bin", Method: zip.Store})
	if err != nil {
		return err
	}
	if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{1}), n); err != nil {
		return err
	}
	return errors.Join(z.Close(), f.Close())
}

func (e *entry) info() []byte {
	if e.Info != nil {
		return e.Info
	}
	b, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{e.Version.Version, e.Time})
	if err != nil {
		panic(err) // a string and a time always encode
	}
	return b
}

func (e *entry) mod() []byte {
	if b, ok := e.Files[".mod"]; ok {
		return b
	}
	if b, ok := e.Files["go.mod"]; ok {
		return b
	}
	return []byte("module " + e.Path + "\n")
}

// Pack makes the module's zip of its files.
func (m Module) Pack() ([]byte, error) {
	var b bytes.Buffer
	err := modzip.Create(&b, m.Version, (&entry{Module: m}).files())
	return b.Bytes(), err
}

// build writes the zip to the server's folder and computes its hash.
func (e *entry) build(dir string) (string, error) {
	e.once.Do(func() {
		e.zip = filepath.Join(dir, fmt.Sprintf("%d.zip", rand.Uint64()))
		data := e.Zip
		if data == nil {
			data, e.err = e.Pack()
		}
		if e.err == nil {
			e.err = os.WriteFile(e.zip, data, 0o600)
		}
		if e.err == nil && e.Zip != nil {
			e.h1 = sentAsItIs(e.Version, e.zip, data)
			return
		}
		if e.err == nil {
			e.h1, e.err = dirhash.HashZip(e.zip, dirhash.Hash1)
		}
	})
	return e.zip, e.err
}

// sentAsItIs is the hash of a zip that a test made; what is hostile is not unpacked here.
func sentAsItIs(v module.Version, file string, data []byte) string {
	const hostile = "h1:hostile"
	if bytes.Count(data, []byte("PK\x01\x02")) > 1000 {
		return hostile
	}
	if cf, err := modzip.CheckZip(v, file); err != nil || cf.Err() != nil {
		return hostile
	}
	h1, err := dirhash.HashZip(file, dirhash.Hash1)
	if err != nil {
		return hostile
	}
	return h1
}

func (e *entry) files() []modzip.File {
	var list []modzip.File
	for name, data := range e.Files {
		if name != ".mod" {
			list = append(list, file{name, data})
		}
	}
	return list
}

// file is a modzip.File in memory.
type file struct {
	name string
	data []byte
}

func (f file) Path() string                 { return f.name }
func (f file) Lstat() (os.FileInfo, error)  { return f, nil }
func (f file) Open() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(f.data)), nil }
func (f file) Name() string                 { return f.name }
func (f file) Size() int64                  { return int64(len(f.data)) }
func (f file) Mode() os.FileMode            { return 0o644 }
func (f file) ModTime() time.Time           { return time.Time{} }
func (f file) IsDir() bool                  { return false }
func (f file) Sys() any                     { return nil }

// goSum gives the two lines of a checksum record.
func (s *Server) goSum(p, v string) ([]byte, error) {
	s.mu.Lock()
	e := s.modules[module.Version{Path: p, Version: v}]
	wrong := s.wrong[module.Version{Path: p, Version: v}]
	s.mu.Unlock()
	if e == nil || wrong == "drop" {
		return nil, os.ErrNotExist // unwrapped: sumdb.Server knows it by os.IsNotExist
	}
	if _, err := e.build(s.dir); err != nil {
		return nil, err
	}
	hmod, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(e.mod())), nil
	})
	if err != nil {
		return nil, err
	}
	h1 := e.h1
	if wrong == "other" {
		h1 = "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		hmod = h1
	}
	return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", p, v, h1, p, v, hmod), nil
}
