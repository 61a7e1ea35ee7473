package feeds

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Limits of what a feed may hold. The Go vulnerability database has some 5,000 records of 4 KiB, the largest public
// collection of malware some 10,000 of Go.
const (
	maxFile      = 4 << 20   // one record or index
	maxArchive   = 128 << 20 // a .zip
	maxUnpacked  = 1 << 30   // all of its files
	maxFiles     = 200_000
	fetches      = 8 // records at a time
	fetchTimeout = 2 * time.Minute
)

// An archive is the files of a feed, held as the .zip that they came in or were put into.
type archive struct {
	data []byte
	zip  *zip.Reader
	id   string // of its content
}

// openArchive reads a .zip and checks its sizes; nothing is unpacked.
func openArchive(data []byte) (*archive, error) {
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("opening the .zip: %w", err)
	}
	total := uint64(0)
	for _, f := range r.File {
		if f.UncompressedSize64 > maxFile && strings.HasSuffix(f.Name, ".json") && !strings.HasPrefix(f.Name, "index/") {
			return nil, fmt.Errorf("opening the .zip: %s has %d bytes, more than %d", f.Name, f.UncompressedSize64, maxFile)
		}
		total += f.UncompressedSize64
	}
	if len(r.File) > maxFiles || total > maxUnpacked {
		return nil, fmt.Errorf("opening the .zip: %d files of %d bytes in all are more than %d of %d", len(r.File), total, maxFiles, maxUnpacked)
	}
	sum := sha256.Sum256(data)
	return &archive{data: data, zip: r, id: "sha256:" + hex.EncodeToString(sum[:])}, nil
}

// file is the content of one file; fs.ErrNotExist if there is none.
func (a *archive) file(name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fmt.Errorf("reading %q: %w", name, fs.ErrNotExist)
	}
	f, err := a.zip.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer f.Close()
	return limited(f, maxUnpacked/16)
}

// packFolder puts the .json files of a folder into an archive, in order, so that the same files make the same archive.
func packFolder(dir string) (*archive, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the feed's folder: %w", err)
	}
	defer root.Close()
	p := newPacker()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path.Ext(name) != ".json" {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		content, err := limited(f, maxUnpacked/16)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return p.add(name, content)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the feed's folder: %w", err)
	}
	return p.archive()
}

// A packer makes an archive of files.
type packer struct {
	out   bytes.Buffer
	zip   *zip.Writer
	files int
	bytes int64
}

func newPacker() *packer {
	p := &packer{}
	p.zip = zip.NewWriter(&p.out)
	return p
}

func (p *packer) add(name string, content []byte) error {
	p.files++
	p.bytes += int64(len(content))
	if p.files > maxFiles || p.bytes > maxUnpacked {
		return fmt.Errorf("more than %d files or %d bytes", maxFiles, maxUnpacked)
	}
	w, err := p.zip.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate})
	if err == nil {
		_, err = w.Write(content)
	}
	return err
}

func (p *packer) archive() (*archive, error) {
	if err := p.zip.Close(); err != nil {
		return nil, fmt.Errorf("closing the archive: %w", err)
	}
	return openArchive(p.out.Bytes())
}

// fetch gets one file of a feed.
func fetch(ctx context.Context, client *http.Client, url string, limit int64) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", url, err)
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching %s: it answered %s", url, resp.Status)
	}
	body, err := limited(resp.Body, limit)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", url, err)
	}
	return body, nil
}

// readFile reads a local feed.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading the feed: %w", err)
	}
	defer f.Close()
	content, err := limited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return content, nil
}

var errTooLarge = errors.New("it is too large")

func limited(r io.Reader, limit int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", errTooLarge, limit)
	}
	return content, err
}

// keep stores what came from the network, so that a restart does not begin with nothing.
func keep(name string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".feed-*")
	if err != nil {
		return fmt.Errorf("keeping the feed: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing of that name
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("keeping the feed: %w", err)
	}
	return nil
}

// kept reads what keep stored, and when.
func kept(name string, limit int64) ([]byte, time.Time, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("reading the kept feed: %w", err)
	}
	content, err := readFile(name, limit)
	return content, info.ModTime(), err
}

// touch notes that what was kept is still what the feed says.
func touch(name string, now time.Time) error {
	if err := os.Chtimes(name, now, now); err != nil {
		return fmt.Errorf("dating the kept feed: %w", err)
	}
	return nil
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
