package feeds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// records are the OSV records of a feed, by module. They are never changed.
type records struct {
	archive  *archive
	modules  map[string][]*record
	modified time.Time // what the database says of itself; zero for a collection
}

func (r *records) digest() string { return r.archive.id }

// A collection loads OSV records.
type collection struct {
	where    string
	kept     string
	database bool // in the layout of the Go vulnerability database
	unscored int
	client   *http.Client
}

// Files of the Go vulnerability database (https://go.dev/doc/security/vuln/database#api).
const (
	indexDB      = "index/db.json"
	indexModules = "index/modules.json"
	indexVulns   = "index/vulns.json"
)

var recordID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

func (c *collection) restore() (*records, time.Time, error) {
	content, at, err := kept(c.kept, maxArchive)
	if err != nil {
		return nil, at, err
	}
	a, err := openArchive(content)
	if err != nil {
		return nil, at, err
	}
	r, err := c.parse(a, nil)
	return r, at, err
}

// load reads the collection. What came from the network is kept beside.
func (c *collection) load(ctx context.Context, before *records) (*records, error) {
	a, err := c.archive(ctx, before)
	if err != nil {
		return nil, err
	}
	if before != nil && a.id == before.archive.id {
		if remote(c.where) {
			err = touch(c.kept, time.Now())
			if errors.Is(err, os.ErrNotExist) {
				err = keep(c.kept, a.data)
			}
		}
		return before, err
	}
	r, err := c.parse(a, before)
	if err == nil && remote(c.where) {
		err = keep(c.kept, a.data)
	}
	return r, err
}

func (c *collection) archive(ctx context.Context, before *records) (*archive, error) {
	isZip := strings.HasSuffix(c.where, ".zip")
	var content []byte
	var err error
	switch {
	case remote(c.where) && isZip:
		content, err = fetch(ctx, c.client, c.where, maxArchive)
	case remote(c.where):
		return c.download(ctx, before)
	case isZip:
		content, err = readFile(c.where, maxArchive)
	default:
		return packFolder(c.where)
	}
	if err != nil {
		return nil, err
	}
	return openArchive(content)
}

// parse reads an archive, which must not be older than the one before it: an old database forgets vulnerabilities.
func (c *collection) parse(a *archive, before *records) (*records, error) {
	r := &records{archive: a}
	var err error
	if c.database {
		if r.modified, err = modifiedOf(a); err != nil {
			return nil, err
		}
		if before != nil && r.modified.Before(before.modified) {
			return nil, fmt.Errorf("the database went back from %s to %s", before.modified.Format(time.RFC3339), r.modified.Format(time.RFC3339))
		}
	}
	r.modules, err = parseArchive(a, c.database, c.unscored)
	if err == nil && len(r.modules) == 0 {
		err = errors.New("it has no record of a Go module")
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func modifiedOf(a *archive) (time.Time, error) {
	content, err := a.file(indexDB)
	if err != nil {
		return time.Time{}, fmt.Errorf("this is no Go vulnerability database: %w", err)
	}
	var db struct {
		Modified time.Time `json:"modified"`
	}
	if err := json.Unmarshal(content, &db); err != nil || db.Modified.IsZero() {
		return time.Time{}, fmt.Errorf("reading %s: it names no time: %w", indexDB, err)
	}
	return db.Modified, nil
}

// download gets a whole database over the network: its indexes, and every record that changed. What is asked for
// depends on the database alone.
func (c *collection) download(ctx context.Context, before *records) (*archive, error) {
	base := strings.TrimSuffix(c.where, "/") + "/"
	files := map[string][]byte{}
	for _, name := range []string{indexDB, indexModules, indexVulns} {
		content, err := fetch(ctx, c.client, base+name, maxUnpacked/16)
		if err != nil {
			return nil, err
		}
		files[name] = content
		if name == indexDB && before != nil && same(before.archive, name, content) {
			return before.archive, nil
		}
	}
	index, err := vulnsOf(files[indexVulns])
	if err != nil {
		return nil, err
	}
	have := map[string]time.Time{}
	if before != nil {
		if old, err := before.archive.file(indexVulns); err == nil {
			have, _ = vulnsOf(old) // of no use, then all records are fetched
		}
	}
	contents := make([][]byte, len(index))
	var group errgroup.Group
	group.SetLimit(fetches)
	for i, id := range sorted(index) {
		name := path.Join("ID", id+".json")
		if have[id].Equal(index[id]) && before != nil {
			if contents[i], err = before.archive.file(name); err == nil {
				continue
			}
		}
		group.Go(func() (err error) {
			contents[i], err = fetch(ctx, c.client, base+name, maxFile)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, id := range sorted(index) {
		files[path.Join("ID", id+".json")] = contents[i]
	}
	p := newPacker()
	for _, name := range sorted(files) {
		if err := p.add(name, files[name]); err != nil {
			return nil, fmt.Errorf("packing %s: %w", name, err)
		}
	}
	return p.archive()
}

func same(a *archive, name string, content []byte) bool {
	old, err := a.file(name)
	return err == nil && string(old) == string(content)
}

// vulnsOf reads which records there are, and when each was changed.
func vulnsOf(content []byte) (map[string]time.Time, error) {
	var list []struct {
		ID       string    `json:"id"`
		Modified time.Time `json:"modified"`
	}
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, fmt.Errorf("reading %s: %w", indexVulns, err)
	}
	if len(list) > maxFiles {
		return nil, fmt.Errorf("reading %s: %d records are more than %d", indexVulns, len(list), maxFiles)
	}
	found := make(map[string]time.Time, len(list))
	for _, v := range list {
		if !recordID.MatchString(v.ID) {
			return nil, fmt.Errorf("reading %s: %q is no id", indexVulns, v.ID)
		}
		found[v.ID] = v.Modified
	}
	return found, nil
}

// ErrNotRead means that a feed is configured, but was never read.
var ErrNotRead = errors.New("feed was not read yet")

// Vulndb gives one file of the vulnerability database as it was published: index/modules.json, ID/GO-2024-0001.json and
// the like. It is fs.ErrNotExist where there is none, or no database, and ErrNotRead before it could be read.
func (f *Feeds) Vulndb(name string) ([]byte, error) {
	if f == nil || f.cfg.Vulns == "" || path.Dir(name) != "index" && path.Dir(name) != "ID" {
		return nil, fmt.Errorf("reading %s: %w", name, fs.ErrNotExist)
	}
	r, _, state := f.vulns.get(f.now(), f.cfg.MaxAge)
	if state == Missing {
		return nil, fmt.Errorf("reading %s: %w", name, ErrNotRead)
	}
	return r.archive.file(name)
}
