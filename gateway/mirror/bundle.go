package mirror

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// ErrBundle means that a bundle is not whole, or not what it says; nothing of it was taken in.
var ErrBundle = errors.New("bundle is refused")

// manifestName is the last entry of a bundle: it lists all before it.
const manifestName = "manifest.json"

// Limits of a bundle that is read.
const (
	maxBundleEntries = 4 << 20
	maxManifest      = 1 << 30
	zstdMemory       = 64 << 20
	tarBlock         = 512
)

// manifest lists the files of a bundle.
type manifest struct {
	Schema int      `json:"schema"`
	Files  []listed `json:"files"`
}

// listed is one file of a bundle.
type listed struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// packer writes a bundle: a tar of module files in the layout of a file://
// GOPROXY, of records, tiles and heads below sumdb/NAME/, and of the manifest.
type packer struct {
	file  *os.File
	name  string // what the file is called once it is whole
	close []func() error
	tar   *tar.Writer
	list  manifest
}

// newPacker makes the file beside its name; .gz and .zst are compressed.
func newPacker(name string) (*packer, error) {
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("writing %s: %w", name, errors.Join(err, fs.ErrExist))
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	p := &packer{file: f, name: name, list: manifest{Schema: 1}}
	var w io.Writer = f
	switch path.Ext(name) {
	case ".gz", ".tgz":
		z := gzip.NewWriter(f)
		w, p.close = z, append(p.close, z.Close)
	case ".zst":
		z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, errors.Join(err, p.discard())
		}
		w, p.close = z, append(p.close, z.Close)
	}
	p.tar = tar.NewWriter(w)
	p.close = append(p.close, p.tar.Close)
	return p, nil
}

// add copies one file into the bundle.
func (p *packer) add(name string, size int64, r io.Reader) error {
	sum := sha256.New()
	err := p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644})
	if err == nil {
		_, err = io.Copy(io.MultiWriter(p.tar, sum), io.LimitReader(r, size))
	}
	if err != nil {
		return fmt.Errorf("packing %s: %w", name, err)
	}
	p.list.Files = append(p.list.Files, listed{name, size, hex.EncodeToString(sum.Sum(nil))})
	return nil
}

func (p *packer) addBytes(name string, b []byte) error {
	return p.add(name, int64(len(b)), bytes.NewReader(b))
}

// finish writes the manifest; only then has the bundle its name.
func (p *packer) finish() (int64, error) {
	text, err := json.Marshal(p.list)
	if err == nil {
		err = p.addBytes(manifestName, text)
	}
	for i := len(p.close) - 1; i >= 0 && err == nil; i-- {
		err = p.close[i]()
	}
	p.close = nil
	if err == nil {
		err = p.file.Sync()
	}
	var size int64
	if info, serr := p.file.Stat(); serr == nil {
		size = info.Size()
	}
	if err = errors.Join(err, p.file.Close()); err == nil {
		err = os.Link(p.file.Name(), p.name) // fails where the name is taken meanwhile
	}
	if err = errors.Join(err, os.Remove(p.file.Name())); err != nil {
		return 0, fmt.Errorf("writing %s: %w", p.name, err)
	}
	return size, nil
}

// discard removes what was written so far; after finish it does nothing.
func (p *packer) discard() error {
	err := p.file.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return errors.Join(err, os.Remove(p.file.Name()))
}

// unpack brings a bundle into a folder of its own below dir and holds it
// against its manifest. What it says of modules is not believed yet.
func unpack(ctx context.Context, file, dir string) (_ *source, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("opening the bundle: %w", err)
	}
	defer f.Close()
	staged, err := os.MkdirTemp(dir, ".bundle-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for the bundle: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staged))
		}
	}()
	body, closeBody, err := decompressed(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBundle, filepath.Base(file), err)
	}
	defer closeBody()
	if err := unpackInto(ctx, staged, &reading{r: body}); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
	}
	s, err := openSource(ctx, staged)
	if err != nil {
		return nil, err
	}
	s.staged = staged
	return s, nil
}

// decompressed tells gzip and zstd by their first bytes, whatever the file is called.
func decompressed(f io.Reader) (io.Reader, func(), error) {
	r := bufio.NewReaderSize(f, 1<<16)
	magic, err := r.Peek(4)
	if err != nil {
		return nil, nil, fmt.Errorf("reading its first bytes: %w", err)
	}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(zstdMemory), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

// unpackInto writes the entries and compares them with the manifest, the last of them.
func unpackInto(ctx context.Context, dir string, body *reading) error {
	t := tar.NewReader(body)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("opening the folder for the bundle: %w", err)
	}
	defer root.Close()
	found := map[string]listed{}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: it ends without its manifest", ErrBundle)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBundle, err)
		}
		limit := entryLimit(h)
		switch {
		case limit < 0:
			return fmt.Errorf("%w: entry %q is no file of a bundle", ErrBundle, h.Name)
		case h.Size > limit:
			return fmt.Errorf("%w: entry %q has %d bytes, more than %d", ErrBundle, h.Name, h.Size, limit)
		case len(found) == maxBundleEntries:
			return fmt.Errorf("%w: it has more than %d entries", ErrBundle, maxBundleEntries)
		case found[h.Name].Name != "":
			return fmt.Errorf("%w: entry %q stands there twice", ErrBundle, h.Name)
		case h.Name == manifestName:
			return compareManifest(t, body, found)
		}
		if found[h.Name], err = unpackFile(root, h, t); err != nil {
			return err
		}
	}
}

// entryLimit is how long an entry may be; -1 for one that no bundle has.
func entryLimit(h *tar.Header) int64 {
	if h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) || strings.Contains(h.Name, `\`) {
		return -1
	}
	if h.Name == manifestName {
		return maxManifest
	}
	if strings.HasPrefix(h.Name, "sumdb/") {
		if strings.Contains(h.Name, "/lookup/") || strings.Contains(h.Name, "/tile/8/") || strings.HasSuffix(h.Name, "/latest") {
			return maxInfo
		}
		return -1
	}
	if _, k, ok := moduleFile(h.Name); ok && strings.Contains(h.Name, "/@v/") {
		return map[Kind]int64{Info: maxInfo, Mod: maxMod, Zip: maxZip}[k]
	}
	return -1
}

func unpackFile(root *os.Root, h *tar.Header, r io.Reader) (listed, error) {
	name := filepath.FromSlash(h.Name)
	if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return listed{}, fmt.Errorf("unpacking %s: %w", h.Name, err)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return listed{}, fmt.Errorf("unpacking %s: %w", h.Name, err)
	}
	sum, entry := sha256.New(), &reading{r: r}
	n, err := io.Copy(io.MultiWriter(f, sum), entry)
	if entry.err != nil {
		err = fmt.Errorf("%w: %w", ErrBundle, entry.err)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return listed{}, fmt.Errorf("unpacking %s: %w", h.Name, err)
	}
	return listed{h.Name, n, sumText(sum)}, nil
}

func sumText(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// reading keeps the error of the bundle apart from one of the disk, and counts its bytes.
type reading struct {
	r   io.Reader
	n   int64
	err error
}

func (r *reading) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// compareManifest wants each entry in the manifest, and nothing beside, and nothing behind it.
func compareManifest(t *tar.Reader, body *reading, found map[string]listed) error {
	text, err := io.ReadAll(io.LimitReader(t, maxManifest))
	if err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrBundle, err)
	}
	var list manifest
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrBundle, err)
	}
	if list.Schema != 1 {
		return fmt.Errorf("%w: its manifest has schema %d; this gateway reads 1", ErrBundle, list.Schema)
	}
	if len(list.Files) != len(found) {
		return fmt.Errorf("%w: it has %d files and its manifest lists %d", ErrBundle, len(found), len(list.Files))
	}
	for _, want := range list.Files {
		if got := found[want.Name]; got != want {
			return fmt.Errorf("%w: %q is not as its manifest says", ErrBundle, want.Name)
		}
	}
	// The reader takes a tar without its end for one that ends there.
	end := body.n + 2*tarBlock + (tarBlock-int64(len(text))%tarBlock)%tarBlock
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something stands behind its manifest", ErrBundle)
	}
	if body.n < end {
		return fmt.Errorf("%w: it ends too early", ErrBundle)
	}
	return nil
}
