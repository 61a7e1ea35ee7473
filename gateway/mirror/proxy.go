package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/mod/module"
)

// Values of Config.Mode.
const (
	modeCache = "cache"
	modeProxy = "proxy"
)

// ErrNothingStored means that in mode proxy there is no store to import,
// export, prefetch, verify or clean.
var ErrNothingStored = errors.New("mirror.mode is proxy: modules are passed on and not stored")

// Stores is ErrNothingStored in mode proxy: what works on stored modules asks it first.
func (c Config) Stores() error {
	if c.Mode == modeProxy {
		return ErrNothingStored
	}
	return nil
}

func (c Config) validateMode(bad func(string, ...any)) {
	switch c.Mode {
	case "", modeCache:
	case modeProxy:
		if c.Offline {
			bad("offline: nobody is asked and mode is proxy, which stores nothing; want one of the two")
		}
		for i, r := range c.Private {
			if len(r.Hosts) > 0 {
				bad("private[%d].hosts: Git needs a store, and mode is proxy; want private[%d].upstream", i, i)
			}
		}
	default:
		bad("mode: %q is no mode; want cache or proxy", c.Mode)
	}
}

// passing are the zips of mode proxy that somebody waits for or reads. Those
// who come meanwhile share them; after the last one nothing is left.
type passing struct {
	mu     sync.Mutex // guards all below
	zips   map[Target]*passingZip
	number uint64
}

// passingZip is one zip, in a file without a name.
type passingZip struct {
	target Target
	flight string // the key of its fetch

	users    int      // guarded by passing.mu: callers, and the fetch itself
	file     *os.File // set by the fetch, closed with the last user
	template *File
}

func newPassing() *passing { return &passing{zips: map[Target]*passingZip{}} }

// join makes the caller a user of a target's zip; leave ends it.
func (p *passing) join(t Target) *passingZip {
	p.mu.Lock()
	defer p.mu.Unlock()
	z := p.zips[t]
	if z == nil {
		p.number++
		z = &passingZip{target: t, flight: flightKey(t) + " " + strconv.FormatUint(p.number, 10)}
		p.zips[t] = z
	}
	z.users++
	return z
}

func (p *passing) stay(z *passingZip) {
	p.mu.Lock()
	defer p.mu.Unlock()
	z.users++
}

func (p *passing) leave(z *passingZip) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if z.users--; z.users > 0 {
		return nil
	}
	if p.zips[z.target] == z {
		delete(p.zips, z.target)
	}
	if z.file == nil {
		return nil
	}
	f := z.file
	z.file, z.template = nil, nil
	return f.Close()
}

// passZip is openFile of a zip in mode proxy.
func (m *Mirror) passZip(ctx context.Context, t Target) (*File, error) {
	z := m.passing.join(t)
	_, err := m.wait(ctx, z.flight, m.limit(t), func(ctx context.Context) (any, error) {
		m.passing.stay(z) // the fetch outlives its callers, and they it
		return nil, errors.Join(m.fetchPassing(ctx, z), m.passing.leave(z))
	})
	if err != nil {
		m.metrics.cache.WithLabelValues("upstream", resultOf(err)).Inc()
		return nil, errors.Join(err, m.passing.leave(z))
	}
	m.metrics.cache.WithLabelValues("upstream", "hit").Inc()
	f := *z.template
	f.Cache = "upstream"
	f.ReadSeekCloser = &passingReader{
		SectionReader: io.NewSectionReader(z.file, 0, f.Size),
		leave:         sync.OnceValue(func() error { return m.passing.leave(z) }),
	}
	return &f, nil
}

// passingReader is one caller's view of a zip.
type passingReader struct {
	*io.SectionReader
	leave func() error
}

func (r *passingReader) Close() error { return r.leave() }

// fetchPassing fetches and verifies a zip, and takes its name away.
func (m *Mirror) fetchPassing(ctx context.Context, z *passingZip) error {
	if z.file != nil {
		return nil // another of its flights was faster
	}
	t := z.target
	if err := m.modFirst(ctx, t); err != nil {
		return err
	}
	leave, err := m.laneOf(t).enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	d, err := m.storeOf(t.Path).Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	h1, err := m.draftZip(ctx, t, d)
	if err != nil {
		return m.notTaken(t, err)
	}
	f := &File{
		Size: d.Size(), ModTime: m.now(), ContentType: contentTypes[Zip], Version: t.Version,
		Hash: h1, ETag: `"` + d.SHA256() + `"`, Facts: m.Facts(ctx, t.Path, t.Version),
	}
	m.sighted(ctx, t, f)
	f.Facts.verified()
	file, err := d.Take()
	if err != nil {
		return err
	}
	z.file, z.template = file, f
	return nil
}

// small makes a template of an .info or .mod that was just verified.
func (m *Mirror) small(ctx context.Context, t Target, b []byte) (*File, error) {
	m.changed(t.module())
	f := &File{Body: b, ModTime: m.now(), ContentType: contentTypes[t.Kind], Version: t.Version, Facts: m.Facts(ctx, t.Path, t.Version)}
	if t.Kind == Info {
		f.Facts.Published = published(b)
	} else {
		f.Facts.verified()
	}
	return f, finish(f, t.Kind)
}

// remembered are a version's small files in memory, which in mode proxy are
// nowhere else: when its facts change they stay, and remind gives them new ones.
func (m *Mirror) remembered(v module.Version) map[Target]*File {
	files := map[Target]*File{}
	if m.passing == nil {
		return files
	}
	for _, k := range []Kind{Info, Mod} {
		if t := fileTarget(v, k); m.hot.get(t) != nil {
			files[t] = m.hot.get(t)
		}
	}
	return files
}

func (m *Mirror) remind(v module.Version, files map[Target]*File) {
	for t, f := range files { // first all, since facts are read from them
		m.hot.put(t, f)
	}
	for t, f := range files {
		fresh := *f
		fresh.Facts = m.Facts(m.ctx, v.Path, v.Version)
		if t.Kind == Mod && !m.incidents.has(v) {
			fresh.Facts.verified()
		}
		m.hot.put(t, &fresh)
	}
}

// verified is for facts that come with bytes which were just verified.
func (f *Facts) verified() {
	if f.Sumdb == "pending" {
		f.Sumdb = "verified"
	}
}

// known are the bytes of an .info or .mod that is stored, or in mode proxy in memory; nil where it is not.
func (m *Mirror) known(ctx context.Context, t Target) []byte {
	if m.passing != nil {
		if f := m.hot.get(t); f != nil {
			return f.Body
		}
		return nil
	}
	b, err := m.storeOf(t.Path).Read(ctx, t.upstreamPath(), maxMod)
	if err != nil {
		return nil
	}
	return b
}

// passedSums is storedSums where nothing is stored: the hashes of what was verified just now.
func (m *Mirror) passedSums(ctx context.Context, v module.Version) (zipHash, modHash string, err error) {
	var hashes []string
	for _, k := range []Kind{Zip, Mod} {
		f, err := m.openFile(ctx, fileTarget(v, k))
		if err != nil {
			return "", "", err
		}
		hashes = append(hashes, f.Hash)
		if err := f.Close(); err != nil {
			return "", "", fmt.Errorf("closing %s of %s: %w", k, v, err)
		}
	}
	return hashes[0], hashes[1], nil
}
