package mirror

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"unicode/utf8"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// fetch brings one file in: fetched, verified, on disk, in this order.
func (m *Mirror) fetch(ctx context.Context, t Target) (*File, error) {
	// Another flight may have ended between the caller's look and this one.
	if f, err := m.stored(ctx, t); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := m.modFirst(ctx, t); err != nil {
		return nil, err
	}
	leave, err := m.laneOf(t).enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	f, err := m.taken(ctx, t)
	if err != nil {
		return nil, m.notTaken(t, err)
	}
	m.sighted(ctx, t, f)
	m.hot.put(t, f)
	return f, nil
}

// taken fetches, verifies and keeps a file, or only passes it on.
func (m *Mirror) taken(ctx context.Context, t Target) (*File, error) {
	var b []byte
	var err error
	switch {
	case m.fromGit(t.Path):
		err = m.fetchPrivate(ctx, t)
	case t.Kind == Info:
		b, err = m.fetchInfo(ctx, t)
	case t.Kind == Mod:
		b, err = m.fetchMod(ctx, t)
	case t.Kind == Zip:
		err = m.fetchZip(ctx, t)
	}
	if err != nil {
		return nil, err
	}
	if b == nil { // a zip, or from Git: it is where it belongs
		m.changed(t.module())
		return m.stored(ctx, t)
	}
	if m.passing == nil {
		if err := m.keep(ctx, t, b); err != nil {
			return nil, err
		}
	}
	return m.small(ctx, t, b)
}

// keep stores an .info or .mod.
func (m *Mirror) keep(ctx context.Context, t Target, b []byte) error {
	if err := m.storeOf(t.Path).Publish(ctx, t.upstreamPath(), b); err != nil || t.Kind != Info {
		return err
	}
	return m.rewriteList(ctx, t.Path)
}

// notTaken says why a file did not come in, in words that callers know.
func (m *Mirror) notTaken(t Target, err error) error {
	if errors.Is(err, upstream.ErrNotFound) {
		m.answers.put(t, &answer{at: m.now(), missing: true})
		return notThere(t)
	}
	if c, ok := errors.AsType[*store.ConflictError](err); ok {
		return m.incident(&IncidentError{Kind: "conflict", Module: t.module(), File: t.Kind.String(), Want: c.Stored, Got: c.Offered})
	}
	return fmt.Errorf("taking in %s of %s: %w", t.Kind, t.module(), err)
}

func (m *Mirror) fetchInfo(ctx context.Context, t Target) ([]byte, error) {
	return m.upOf(t.Path).Get(ctx, t.upstreamPath(), maxInfo, func(b []byte) error {
		v, err := checkInfo(b, t.Path)
		if err == nil && v != t.Version {
			err = fmt.Errorf(".info names version %q", v)
		}
		return err
	})
}

// checkInfo reads an .info's version, which must be one of the path.
func checkInfo(b []byte, path string) (string, error) {
	var i infoFile
	if !utf8.Valid(b) {
		return "", errors.New(".info is not UTF-8")
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return "", fmt.Errorf(".info is not the JSON of a version: %w", err)
	}
	if module.CanonicalVersion(i.Version) != i.Version {
		return "", fmt.Errorf(".info names version %q, which is not canonical", i.Version)
	}
	return i.Version, module.Check(path, i.Version)
}

func (m *Mirror) fetchMod(ctx context.Context, t Target) ([]byte, error) {
	var b []byte
	want, err := m.vouched(ctx, t, func(ctx context.Context) (err error) {
		b, err = m.upOf(t.Path).Get(ctx, t.upstreamPath(), maxMod, hasModuleLine)
		return err
	})
	if err != nil {
		return nil, err
	}
	got, err := hashMod(b)
	if err != nil {
		return nil, err
	}
	if want.mod != "" && got != want.mod {
		return nil, m.incident(&IncidentError{Kind: "sumdb", Module: t.module(), File: "mod", Want: want.mod, Got: got})
	}
	if err := checkMod(b); err != nil { // only now: what the database does not vouch for is not parsed
		return nil, fmt.Errorf("%w: .mod of %s: %w", ErrUpstream, t.module(), err)
	}
	if err := m.sameMod(ctx, t.module(), b); err != nil {
		return nil, err
	}
	return b, nil
}

// maxParsed is the longest go.mod, in bytes, that is parsed: the parse takes
// some thirty times as much memory. The longest that are known have 100 kB.
const maxParsed = 512 << 10

// checkMod wants what the go command can read, with a module line; its path
// may be another one, as in forks.
func checkMod(b []byte) error {
	if len(b) > maxParsed {
		return hasModuleLine(b)
	}
	f, err := modfile.ParseLax("go.mod", b, nil)
	if err != nil {
		return err
	}
	if f.Module == nil {
		return errNoModule
	}
	return nil
}

var errNoModule = errors.New("go.mod has no module line")

// hasModuleLine is what tells a go.mod from a page of a server, without parsing it.
func hasModuleLine(b []byte) error {
	if modfile.ModulePath(b) == "" {
		return errNoModule
	}
	return nil
}

func (m *Mirror) fetchZip(ctx context.Context, t Target) error {
	d, err := m.storeOf(t.Path).Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	h1, err := m.draftZip(ctx, t, d)
	if err != nil {
		return err
	}
	return m.publishZip(ctx, d, t, h1)
}

// draftZip fetches a zip into d and verifies it.
func (m *Mirror) draftZip(ctx context.Context, t Target, d *store.Draft) (h1 string, err error) {
	want, err := m.vouched(ctx, t, func(ctx context.Context) error {
		return m.upOf(t.Path).Fetch(ctx, upstream.Request{Path: t.upstreamPath(), MaxBytes: maxZip}, d)
	})
	if err != nil {
		return "", err
	}
	h1, err = m.checkZip(ctx, d.File(), t.module(), want)
	return h1, m.opening(err)
}

// publishZip publishes a zip and then notes its hashes beside it: notes of a
// zip that never came would be orphans, and a reader makes those that are missing.
func (m *Mirror) publishZip(ctx context.Context, d *store.Draft, t Target, h1 string) error {
	name, s := t.upstreamPath(), m.storeOf(t.Path)
	if err := d.Publish(ctx, name); err != nil {
		return err
	}
	info, err := s.Stat(ctx, name)
	if err == nil && info.SHA256 == "" {
		err = s.Keep(ctx, name+".sha256", []byte(d.SHA256()))
	}
	if err == nil {
		err = s.Keep(ctx, zipHashName(name), []byte(h1))
	}
	return err
}

// checkZip holds a zip against the rules of module zips and its hashes. Other
// hashes are an *IncidentError, which is its caller's to tell of.
func (m *Mirror) checkZip(ctx context.Context, file string, v module.Version, want sums) (string, error) {
	garbage := func(err error) (string, error) {
		return "", fmt.Errorf("%w: zip is not one of %s: %w", ErrUpstream, v, err)
	}
	if err := checkDirectory(file); err != nil {
		return garbage(err)
	}
	if _, err := modzip.CheckZip(v, file); err != nil {
		return garbage(err)
	}
	mod, err := zipMod(file, v)
	if err != nil {
		return garbage(err)
	}
	// Hashing unpacks every file, so declared sizes and checksums are proved as well.
	h1, err := hashZipFile(file)
	if err != nil {
		return garbage(err)
	}
	if want.zip == "" {
		if want, err = m.recorded(ctx, v); err != nil {
			return "", err
		}
	}
	if want.zip != "" && h1 != want.zip {
		return "", &IncidentError{Kind: "sumdb", Module: v, File: "zip", Want: want.zip, Got: h1}
	}
	if want.mod == "" { // exempt or private: a stored .mod is all there is to hold it against
		if b := m.known(ctx, fileTarget(v, Mod)); b != nil {
			if want.mod, err = hashMod(b); err != nil {
				return "", err
			}
		}
	}
	if mod != "" && want.mod != "" && mod != want.mod {
		return "", &IncidentError{Kind: "sumdb", Module: v, File: "zip", Want: "go.mod " + want.mod, Got: "go.mod " + mod}
	}
	return h1, nil
}

// zipMod gives the hash of the root go.mod in a zip, "" without one; links are refused.
func zipMod(file string, v module.Version) (string, error) {
	z, err := zip.OpenReader(file)
	if err != nil {
		return "", err
	}
	defer z.Close()
	hash := ""
	for _, f := range z.File {
		if f.Mode().Type()&^fs.ModeDir != 0 {
			return "", fmt.Errorf("%s is a link or device", f.Name)
		}
		if f.Name == v.String()+"/go.mod" {
			hash, err = dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return f.Open() })
			if err != nil {
				return "", err
			}
		}
	}
	return hash, nil
}

// sums are what the checksum database vouches for; empty where a path is exempt.
type sums struct{ zip, mod string }

// vouched fetches a file while the database is asked for its hashes. Where
// either fails the other is given up, and where both do, it counts first that
// the file is not there: a version that does not exist is listed nowhere.
func (m *Mirror) vouched(ctx context.Context, t Target, fetch func(context.Context) error) (sums, error) {
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	var want sums
	var unproved error
	var asked sync.WaitGroup
	asked.Go(func() {
		if want, unproved = m.sums(both, t.module()); unproved != nil {
			cancel()
		}
	})
	err := fetch(both)
	if err != nil {
		cancel()
	}
	asked.Wait()
	switch {
	case errors.Is(err, upstream.ErrNotFound), unproved == nil, errors.Is(unproved, context.Canceled):
		return want, err
	case !errors.Is(unproved, ErrNotListed):
		return want, unproved
	case err != nil && !errors.Is(err, context.Canceled):
		return want, err // trouble: the version may well exist
	}
	if _, err := m.upOf(t.Path).Get(ctx, fileTarget(t.module(), Info).upstreamPath(), maxInfo, nil); errors.Is(err, upstream.ErrNotFound) {
		return want, err
	}
	m.metrics.sumdb.WithLabelValues("not_listed").Inc()
	m.answers.put(fileTarget(t.module(), Mod), &answer{at: m.now(), unlisted: true})
	return want, unproved
}

// sums asks the database; what it says no to is not taken in.
func (m *Mirror) sums(ctx context.Context, v module.Version) (sums, error) {
	if m.exempt(v.Path) || m.Visibility(v.Path) == Private {
		return sums{}, nil
	}
	r, err := m.vouches.Record(ctx, v)
	if err == nil {
		if m.state != nil && m.ages.sumdb {
			m.state.hint(v, r.Number+1)
		}
		return sums{r.Zip, r.Mod}, nil
	}
	return sums{}, m.sumdbError(v, err)
}

// sumdbError counts why the database did not vouch and says it in our words.
func (m *Mirror) sumdbError(v module.Version, err error) error {
	switch {
	case errors.Is(err, sumdb.ErrNotListed):
		return fmt.Errorf("%w: %s", ErrNotListed, v)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, sumdb.ErrSecurity):
		m.metrics.sumdb.WithLabelValues("security").Inc()
		return fmt.Errorf("%w: %w: %w: %w", ErrSumdbForked, ErrSumdb, ErrUpstream, err)
	case errors.Is(err, sumdb.ErrInvalid):
		m.metrics.sumdb.WithLabelValues("invalid").Inc()
	default:
		m.metrics.sumdb.WithLabelValues("unreachable").Inc()
		if errors.Is(err, ErrTimeout) {
			return fmt.Errorf("%w: %w", ErrSumdb, err)
		}
	}
	return fmt.Errorf("%w: %w: %w", ErrSumdb, ErrUpstream, err)
}
