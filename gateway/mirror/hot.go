package mirror

import (
	"bytes"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// File is one answer. Its bytes are verified and never change.
type File struct {
	io.ReadSeekCloser
	// Size is in bytes.
	Size int64
	// ModTime is when the file was stored; zero where it is not a stored one.
	ModTime time.Time
	// ETag is strong: the quoted SHA-256 of the bytes.
	ETag string
	// ContentType is as the protocol has it for the kind.
	ContentType string
	// Hash is "h1:…" of a .mod or zip, "sha256:…" of anything else.
	Hash string
	// Cache is where the bytes were: "memory", "disk" or "upstream".
	Cache string
	// Version is the canonical version; of a query the one that it resolved to.
	Version string
	// Facts are those of the version.
	Facts Facts
	// Body is the whole file where it is in memory, else nil. It must not be changed.
	Body []byte
	// touched is the tick in which the version was last noted as used; of templates.
	touched *atomic.Int64

	// Stale is set on a list or @latest that could not be renewed; Age is how old one is.
	Stale bool
	Age   time.Duration
}

// memory is a File over bytes, in one allocation.
type memory struct {
	File
	r reader
}

type reader struct{ bytes.Reader }

func (*reader) Close() error { return nil }

// open makes a File of a template with a Body.
func open(f *File, tier string) *File {
	m := &memory{File: *f}
	m.r.Reset(f.Body)
	m.ReadSeekCloser = &m.r
	m.Cache = tier
	return &m.File
}

// hot keeps templates of verified files by target, least recently used out
// first, bounded in bytes. Zips are there without their bytes.
type hot struct {
	mu    sync.Mutex // guards all below
	lru   *simplelru.LRU[Target, *File]
	bytes int64
	limit int64
}

// overhead is what an entry costs beside its body: key, template, list element.
const overhead = 512

func newHot(limit int64) *hot {
	h := &hot{limit: limit}
	// The error is for sizes below one.
	h.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ Target, f *File) { h.bytes -= overhead + int64(len(f.Body)) })
	return h
}

func (h *hot) get(t Target) *File {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, _ := h.lru.Get(t)
	return f
}

func (h *hot) put(t Target, f *File) {
	cost := overhead + int64(len(f.Body))
	if cost > h.limit/8 {
		return // one file must not push out all others
	}
	if f.touched == nil {
		f.touched = new(atomic.Int64)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lru.Remove(t)
	h.lru.Add(t, f)
	for h.bytes += cost; h.bytes > h.limit; {
		h.lru.RemoveOldest()
	}
}

func (h *hot) remove(t Target) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lru.Remove(t)
}

// zipFile is a File over a stored zip.
func zipFile(template *File, f io.ReadSeekCloser, tier string) *File {
	z := *template
	z.ReadSeekCloser = f
	z.Cache = tier
	return &z
}
