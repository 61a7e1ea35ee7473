package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// Limits of files, in bytes, as golang.org/x/mod/zip has them where it has one.
const (
	maxInfo = 1 << 20
	maxMod  = modzip.MaxGoMod
	maxList = 16 << 20
	maxZip  = modzip.MaxZipFile
)

// Open gives what a target names, verified. The errors: fs.ErrNotExist where
// every upstream said so (or, for an unknown path, without asking),
// ErrUpstream, ErrTimeout, ErrMismatch, ErrNotListed, ErrSumdb,
// ErrNoPrivateSource, ErrPrivate, ErrUnknownSumdb. List and Latest come as the
// upstream has them; Versions gives them with facts, for a policy to filter.
func (m *Mirror) Open(ctx context.Context, t Target) (*File, error) {
	switch t.Kind {
	case Info, Zip:
		return m.openFile(ctx, t)
	case Mod:
		f, err := m.openFile(ctx, t)
		if err == nil {
			m.followed(t, f)
		}
		return f, err
	case Query, Latest:
		return m.openAnswer(ctx, t)
	case List:
		return m.openList(ctx, t)
	case Sumdb:
		return m.openSumdb(ctx, t)
	}
	return nil, fmt.Errorf("opening kind %d: %w", t.Kind, ErrNoRoute)
}

// openFile answers from memory, disk or upstream, in this order.
func (m *Mirror) openFile(ctx context.Context, t Target) (*File, error) {
	if err := m.held(t.module()); err != nil {
		return nil, err
	}
	if f := m.hot.get(t); f != nil {
		m.used.touch(t.module(), f.touched)
		// A zip that was collected meanwhile is one to fetch again.
		if o, err := m.opened(ctx, t, f, "memory"); !errors.Is(err, fs.ErrNotExist) {
			m.metrics.cache.WithLabelValues("memory", "hit").Inc()
			return o, err
		}
	}
	defer m.used.hold(t.module())()
	m.used.touch(t.module(), nil)
	unsourced := m.route(t.Path)
	if unsourced != nil && !errors.Is(unsourced, ErrNoPrivateSource) {
		return nil, unsourced
	}
	f, err := m.stored(ctx, t)
	if err == nil {
		m.metrics.cache.WithLabelValues("disk", "hit").Inc()
		if !f.Facts.indexed || t.Kind == Zip && f.Facts.Licences.Status == "missing" { // stored before there was an index, or just before the power went
			m.sighted(ctx, t, f)
		}
		m.hot.put(t, f)
		return m.aged(ctx, t, f, "disk")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		m.metrics.cache.WithLabelValues("disk", "error").Inc()
		return nil, err
	}
	m.metrics.cache.WithLabelValues("disk", "miss").Inc()
	if unsourced != nil { // what was imported of a private module without a source is served all the same
		return nil, unsourced
	}
	if err := m.mayAsk(ctx, t); err != nil {
		return nil, err
	}
	if m.passing != nil && t.Kind == Zip {
		return m.passZip(ctx, t)
	}
	v, err := m.flight(ctx, t, func(ctx context.Context) (any, error) { return m.fetch(ctx, t) })
	if err != nil {
		m.metrics.cache.WithLabelValues("upstream", resultOf(err)).Inc()
		return nil, err
	}
	m.metrics.cache.WithLabelValues("upstream", "hit").Inc()
	return m.aged(ctx, t, v.(*File), "upstream")
}

// aged is opened for a file that was not in memory. No checksum covers an
// .info, so that its version may have to be dated.
func (m *Mirror) aged(ctx context.Context, t Target, f *File, tier string) (*File, error) {
	if t.Kind == Info && f.Facts.datable() {
		fresh := *f
		fresh.Facts = m.dated(ctx, t.module(), f.Facts)
		f = &fresh
		m.hot.put(t, f)
	}
	return m.opened(ctx, t, f, tier)
}

func resultOf(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "miss"
	}
	return "error"
}

// opened gives a template a reader.
func (m *Mirror) opened(ctx context.Context, t Target, f *File, tier string) (*File, error) {
	if f.Body != nil {
		return open(f, tier), nil
	}
	letGo := m.used.hold(t.module())
	z, err := m.storeOf(t.Path).Open(ctx, t.upstreamPath())
	if err != nil {
		letGo()
		m.hot.remove(t)
		return nil, fmt.Errorf("opening %s: %w", t, err)
	}
	if t.Kind == Zip {
		return zipFile(f, &heldZip{z, letGo}, tier), nil
	}
	letGo()
	return nil, errors.Join(fmt.Errorf("opening %s: no body", t), z.Close())
}

// mayAsk tells whether a cold file may be asked for.
func (m *Mirror) mayAsk(ctx context.Context, t Target) error {
	if isCachedOnly(ctx) || m.island(t.Path) || m.underCodeHost(t.Path) {
		return notThere(t)
	}
	if a := m.answers.get(t); a != nil && a.missing && m.freshness(t, a) < ttlMissing {
		return notThere(t)
	}
	if (t.Kind == Mod || t.Kind == Zip) && m.incidents.look(ctx, t.module()) {
		return &IncidentError{Kind: "sumdb", Module: t.module(), File: t.Kind.String(), Want: "the incident to be closed", Got: "an earlier mismatch"}
	}
	return nil
}

// stored makes a template of a stored file; fs.ErrNotExist if there is none.
func (m *Mirror) stored(ctx context.Context, t Target) (*File, error) {
	s, name := m.storeOf(t.Path), t.upstreamPath()
	info, err := s.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	f := &File{Size: info.Size, ModTime: info.ModTime, ContentType: contentTypes[t.Kind], Version: t.Version}
	f.Facts = m.Facts(ctx, t.Path, t.Version)
	if t.Kind == Zip {
		return f, zipHashes(ctx, s, f, info)
	}
	if f.Body, err = s.Read(ctx, name, maxMod); err != nil {
		return nil, err
	}
	return f, finish(f, t.Kind)
}

// finish fills what the bytes of a small file tell.
func finish(f *File, k Kind) error {
	sum := sha256.Sum256(f.Body)
	hexSum := hex.EncodeToString(sum[:])
	f.ETag, f.Hash, f.Size = `"`+hexSum+`"`, "sha256:"+hexSum, int64(len(f.Body))
	if k != Mod {
		return nil
	}
	var err error
	f.Hash, err = hashMod(f.Body)
	return err
}

// zipHashName is the note beside a zip that the go command has, too.
func zipHashName(name string) string { return strings.TrimSuffix(name, ".zip") + ".ziphash" }

// zipHashes reads what is noted with a zip and beside it. A note that is missing
// (an imported store, a process that was killed) or cut (a power cut) is made again.
func zipHashes(ctx context.Context, s *store.Store, f *File, zip store.Info) error {
	sum, err := zip.SHA256, error(nil)
	if sum == "" {
		isSum := func(b []byte) bool {
			_, err := hex.DecodeString(string(b))
			return err == nil && len(b) == 2*sha256.Size
		}
		sum, err = noted(ctx, s, zip.Name+".sha256", isSum, func() (string, error) { return s.Sum(ctx, zip.Name) })
	}
	if err == nil {
		f.Hash, err = noted(ctx, s, zipHashName(zip.Name), isH1, func() (string, error) {
			r, err := s.Open(ctx, zip.Name)
			if err != nil {
				return "", err
			}
			defer r.Close()
			return hashZip(r, zip.Size)
		})
	}
	if err != nil {
		return fmt.Errorf("reading hashes of %s: %w", zip.Name, err)
	}
	f.ETag = `"` + sum + `"`
	return nil
}

// noted reads a note, or makes it where it is missing or no note.
func noted(ctx context.Context, s *store.Store, name string, valid func([]byte) bool, compute func() (string, error)) (string, error) {
	b, err := s.Read(ctx, name, 1024)
	if b = bytes.TrimSpace(b); err == nil && valid(b) {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	note, err := compute()
	if err != nil {
		return "", err
	}
	return note, s.Keep(ctx, name, []byte(note))
}

// isH1 tells whether b looks like a hash of dirhash.Hash1.
func isH1(b []byte) bool {
	sum, ok := strings.CutPrefix(string(b), "h1:")
	raw, err := base64.StdEncoding.DecodeString(sum)
	return ok && err == nil && len(raw) == sha256.Size
}

func hashMod(b []byte) (string, error) {
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	})
}

var contentTypes = map[Kind]string{
	List: textPlain, Latest: "application/json", Query: "application/json", Info: "application/json",
	Mod: textPlain, Zip: "application/zip",
}

const textPlain = "text/plain; charset=utf-8"

// published names of a version's files share its module.
func fileTarget(v module.Version, k Kind) Target {
	return Target{Path: v.Path, Version: v.Version, Kind: k}
}

// age is how old an answer is; one from the future is as good as none.
func (m *Mirror) age(a *answer) time.Duration {
	if d := m.now().Sub(a.at); d >= 0 {
		return d
	}
	return 1<<63 - 1
}
