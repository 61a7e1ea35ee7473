package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
)

// openOwn opens the checksum database that we sign ourselves.
func (m *Mirror) openOwn(ctx context.Context, o Options) error {
	var places []sumdb.Place
	for i, location := range m.cfg.OwnSumdb.HeadPlaces {
		s, err := store.Open(ctx, location, store.Options{Scratch: filepath.Join(o.State, "scratch", fmt.Sprintf("heads-%d", i))})
		if err != nil {
			return fmt.Errorf("own_sumdb.head_places[%d]: %w", i, err)
		}
		m.places = append(m.places, s)
		places = append(places, sumdb.Place{Name: location, Store: s})
	}
	own, err := sumdb.OpenOwn(ctx, sumdb.OwnOptions{
		DB: o.DB, Name: m.cfg.OwnSumdb.Name, Host: o.Host,
		KeyFile: m.cfg.OwnSumdb.KeyFile, OldKeyFiles: m.cfg.OwnSumdb.OldKeyFiles,
		HeadFile: filepath.Join(o.State, "sumdb.head"), Places: places,
		Source: m.ownSums, Logger: m.log,
	})
	if err != nil {
		return err
	}
	if m.databases[own.Name()] != nil {
		return fmt.Errorf("own_sumdb.name: %s is the name of a public checksum database", own.Name())
	}
	m.own = own
	m.sumdbNames = append(m.sumdbNames, own.Name())
	return nil
}

// OwnSumdb is the verifier key of our own checksum database, as GOSUMDB takes
// it; "" where there is none. The error tells why it answers nothing.
func (m *Mirror) OwnSumdb() (key string, err error) {
	if m.own == nil {
		return "", nil
	}
	return m.own.Key(), m.own.Err()
}

// openOwnSumdb answers from our own database. A lookup makes the record where
// there is none; that may take as long as the fetch of a private module.
func (m *Mirror) openOwnSumdb(ctx context.Context, t Target) (*File, error) {
	if strings.HasPrefix(t.Tail, "tile/8/data/") && !isAuditor(ctx) {
		return nil, fmt.Errorf("%s of %s: %w", t.Tail, t.Sumdb, ErrAuditors)
	}
	f := &File{ContentType: textPlain, Version: t.Version}
	if strings.HasPrefix(t.Tail, "tile/") {
		f.ContentType = "application/octet-stream"
	}
	if t.Path != "" {
		if m.Visibility(t.Path) == Unknown {
			return nil, notThere(t)
		}
		f.Facts = m.Facts(ctx, t.Path, t.Version)
	}
	body, err := m.own.Answer(ctx, t.Tail, true)
	tier := "disk"
	if errors.Is(err, fs.ErrNotExist) && t.Path != "" {
		body, err = m.newRecord(ctx, t)
		tier = "upstream"
	}
	if errors.Is(err, sumdb.ErrRolledBack) || errors.Is(err, sumdb.ErrPlace) {
		m.metrics.sumdb.WithLabelValues("security").Inc()
		err = fmt.Errorf("%w: %w", ErrOwnSumdb, err)
	}
	if err != nil {
		return nil, err
	}
	f.Body = body
	if err := finish(f, Sumdb); err != nil {
		return nil, err
	}
	if t.Tail != "latest" && !strings.HasPrefix(t.Tail, "tile/8/data/") { // what is hot is given to everybody
		m.hot.put(t, f)
	}
	return open(f, tier), nil
}

type auditor struct{}

// WithAuditor lets calls read the records of our own checksum database in bulk, which name private modules.
func WithAuditor(ctx context.Context) context.Context {
	return context.WithValue(ctx, auditor{}, true)
}

func isAuditor(ctx context.Context) bool { return ctx.Value(auditor{}) != nil }

func (m *Mirror) newRecord(ctx context.Context, t Target) ([]byte, error) {
	if isCachedOnly(ctx) { // a flight would not know
		return m.own.Answer(ctx, t.Tail, false)
	}
	v, err := m.flight(ctx, t, func(ctx context.Context) (any, error) { return m.own.Answer(ctx, t.Tail, false) })
	if err != nil {
		return nil, err
	}
	return v.([]byte), nil
}

// ownSums is what our own database records of a version: of a private module
// what the verified bytes in the store hash to, of any other what the public
// database vouches for, and never what an upstream sent.
func (m *Mirror) ownSums(ctx context.Context, v module.Version) (zipHash, modHash string, err error) {
	if m.Visibility(v.Path) == Private {
		return m.storedSums(ctx, v)
	}
	r, err := m.vouches.Record(ctx, v)
	if errors.Is(err, sumdb.ErrNotListed) {
		return "", "", notThere(fileTarget(v, Sumdb))
	}
	if err != nil {
		return "", "", m.sumdbError(v, err)
	}
	return r.Zip, r.Mod, nil
}

// recorded are the hashes of a version that no public record speaks of: those
// in our own database, or what was noted when its bytes first came in. Bytes
// that come in again, as after a deletion, must be the same. Of what never was
// here they are empty.
func (m *Mirror) recorded(ctx context.Context, v module.Version) (sums, error) {
	if m.own != nil && m.Visibility(v.Path) == Private {
		zipHash, modHash, err := m.own.Sums(ctx, v)
		if !errors.Is(err, fs.ErrNotExist) {
			return sums{zipHash, modHash}, err
		}
	}
	return m.noted(ctx, v)
}

// storedSums hashes the zip and go.mod of a private module, which are taken in first.
func (m *Mirror) storedSums(ctx context.Context, v module.Version) (zipHash, modHash string, err error) {
	if m.passing != nil {
		return m.passedSums(ctx, v)
	}
	for _, k := range []Kind{Zip, Mod} {
		t := fileTarget(v, k)
		if _, err := m.private.Stat(ctx, t.upstreamPath()); errors.Is(err, fs.ErrNotExist) {
			f, err := m.openFile(ctx, t)
			if err != nil {
				return "", "", err
			}
			if err := f.Close(); err != nil {
				return "", "", err
			}
		}
	}
	mod, err := m.private.Read(ctx, fileTarget(v, Mod).upstreamPath(), maxMod)
	if err != nil {
		return "", "", fmt.Errorf("reading .mod of %s: %w", v, err)
	}
	if modHash, err = hashMod(mod); err != nil {
		return "", "", err
	}
	// The bytes are hashed again: a record is for ever, the note beside the zip is not.
	f, err := m.private.Open(ctx, fileTarget(v, Zip).upstreamPath())
	if err != nil {
		return "", "", fmt.Errorf("reading zip of %s: %w", v, err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", "", fmt.Errorf("reading zip of %s: %w", v, err)
	}
	zipHash, err = hashZip(f, size)
	if err != nil {
		return "", "", fmt.Errorf("hashing zip of %s: %w", v, err)
	}
	return zipHash, modHash, nil
}
