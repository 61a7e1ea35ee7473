package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
)

// ImportOptions say what is taken in.
type ImportOptions struct {
	// Source is a folder (a module cache, a file:// GOPROXY, the disk store of
	// Athens) or the file of a bundle.
	Source string
	// Staging is the folder below which a bundle is unpacked; empty: the system's.
	Staging string
	// Modules are patterns as in GOPRIVATE; none mean all.
	Modules []string
	// Offline asks no checksum database beyond what the source and the store have.
	Offline bool
	// Progress is told after each version; it may be nil.
	Progress func(Progress)
}

// Import takes in what a source has, each file verified like one from an
// upstream: zip rules, hashes, checksum database; a .ziphash is never believed.
// Of a folder the good versions are taken and the bad ones are in the report;
// of a bundle all or nothing, and the error is ErrBundle. What is there already
// is compared. An import that was stopped goes on when it is begun again.
func (m *Mirror) Import(ctx context.Context, o ImportOptions) (CareReport, error) {
	if err := m.cfg.Stores(); err != nil {
		return CareReport{}, err
	}
	src, bundle, err := openAny(ctx, o)
	if err != nil {
		return CareReport{}, fmt.Errorf("importing: %w", err)
	}
	defer func() {
		if cerr := src.close(); cerr != nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "import's source not closed", slog.Any("err", cerr))
		}
	}()
	wanted := src.versions[:0:0]
	for _, c := range src.versions {
		if matching(o.Modules, c.Path) {
			wanted = append(wanted, c)
		}
	}
	i := &intake{m: m, src: src, bundle: bundle, alone: o.Offline || bundle || m.up.Island()}
	if bundle {
		// Before the first byte is stored, all is proved once.
		if err := i.prove(ctx, wanted); err != nil {
			return CareReport{Progress: Progress{Total: int64(len(wanted))}}, err
		}
	}
	i.counts = newKeeper(o.Progress, len(wanted))
	if err := i.offers(ctx, true); err != nil {
		return i.counts.report, fmt.Errorf("importing: %w", err)
	}
	if bundle {
		if err := i.tiles(ctx); err != nil {
			return i.counts.report, fmt.Errorf("importing: %w", err)
		}
	}
	err = each(ctx, wanted, i.take)
	return i.counts.report, err
}

func openAny(ctx context.Context, o ImportOptions) (src *source, bundle bool, err error) {
	info, err := os.Stat(o.Source)
	if err != nil {
		return nil, false, err
	}
	if info.IsDir() {
		src, err = openSource(ctx, o.Source)
		return src, false, err
	}
	src, err = unpack(ctx, o.Source, o.Staging)
	return src, true, err
}

// An intake is one import.
type intake struct {
	m      *Mirror
	src    *source
	bundle bool
	alone  bool // nobody is asked
	counts *keeper

	public, origin *sumdb.Offer // nil where the source has nothing of the database
}

// offers reads what the source has of checksum databases. What cannot be used
// of a folder is not: its versions are looked up like any other.
func (i *intake) offers(ctx context.Context, keep bool) error {
	for _, x := range []struct {
		db    *sumdb.Database
		offer **sumdb.Offer
	}{{i.m.vouches, &i.public}, {i.m.origin, &i.origin}} {
		if x.db == nil {
			continue
		}
		var head []byte
		var err error
		if i.bundle {
			head, err = i.src.bundled(x.db)
		} else {
			head, err = i.src.head(ctx, x.db)
		}
		if err != nil {
			return err
		}
		if head == nil {
			continue
		}
		*x.offer, err = x.db.Offered(ctx, sumdb.OfferOptions{Head: head, From: i.src.fetch(x.db.Name()), Keep: keep, Only: i.alone, Whole: i.bundle})
		if err != nil && (i.bundle || errors.Is(err, sumdb.ErrSecurity)) {
			return err
		}
		if err != nil {
			i.m.log.LogAttrs(ctx, slog.LevelWarn, "checksum records of the import's source are of no use", slog.String("sumdb", x.db.Name()), slog.Any("err", err))
			*x.offer = nil
		}
	}
	return nil
}

// prove checks a whole bundle and stores nothing.
func (i *intake) prove(ctx context.Context, all []*candidate) error {
	if err := i.offers(ctx, false); err != nil {
		return fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if err := i.tiles(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrBundle, err)
	}
	i.counts = newKeeper(nil, len(all))
	if err := each(ctx, all, i.check); err != nil {
		return err
	}
	if r := i.counts.report; r.Failed > 0 {
		f := r.Failures[0]
		return fmt.Errorf("%w: %d of %d versions do not verify; the first: %s of %s@%s: %s", ErrBundle, r.Failed, len(all), f.File, f.Module, f.Version, f.Reason)
	}
	return nil
}

// tiles proves every tile of a bundle: clients will want those, too, that no record needs.
func (i *intake) tiles(ctx context.Context) error {
	for db, offer := range map[*sumdb.Database]*sumdb.Offer{i.m.vouches: i.public, i.m.origin: i.origin} {
		if offer == nil {
			continue
		}
		root := path.Join("sumdb", db.Name())
		err := fs.WalkDir(i.src.root.FS(), path.Join(root, "tile"), func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
				return context.Cause(ctx)
			}
			if err != nil {
				return err
			}
			t, err := tlog.ParseTilePath(strings.TrimPrefix(name, root+"/"))
			if err == nil && (t.H != 8 || t.L < 0) {
				err = errors.New("it is no tile of hashes")
			}
			if err != nil {
				return fmt.Errorf("tile %s: %w", name, err)
			}
			return offer.Tile(ctx, t)
		})
		if err != nil {
			return fmt.Errorf("checking tiles of %s: %w", db.Name(), err)
		}
	}
	return nil
}

// check verifies the files of a bundle's version where they were unpacked.
func (i *intake) check(ctx context.Context, c *candidate) {
	file := "record"
	want, err := i.vouch(ctx, c.Version)
	if err == nil {
		for _, k := range []Kind{Mod, Zip, Info} {
			name, ok := c.files[k]
			if !ok {
				continue
			}
			file = k.String()
			switch k {
			case Mod:
				_, err = i.mod(c, want)
			case Zip:
				_, err = i.m.checkZip(ctx, filepath.Join(i.src.root.Name(), filepath.FromSlash(name)), c.Version, want)
			case Info:
				_, err = i.info(c)
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		i.counts.fail(c.Version, file, err)
	}
}

// take brings one version in: .mod, zip, and last the .info, which lists it.
func (i *intake) take(ctx context.Context, c *candidate) {
	defer i.m.used.hold(c.Version)()
	x := &sighting{v: c.Version}
	done := taken{}
	file := "record"
	want, err := i.vouch(ctx, c.Version)
	if err == nil {
		for _, k := range []Kind{Mod, Zip, Info} {
			if _, ok := c.files[k]; !ok {
				continue
			}
			file = k.String()
			if err = i.takeFile(ctx, c, k, want, x, &done); err != nil {
				break
			}
		}
	}
	if x.stored {
		err = errors.Join(err, i.noted(ctx, x))
	}
	if conflict, ok := errors.AsType[*store.ConflictError](err); ok {
		err = &IncidentError{Kind: "conflict", Module: c.Version, File: file, Want: conflict.Stored, Got: conflict.Offered}
	}
	if err != nil && ctx.Err() != nil {
		return // stopped, not failed
	}
	if err != nil {
		i.refused(ctx, c.Version, err)
		i.counts.fail(c.Version, file, err)
	}
	i.counts.step(func(r *CareReport) {
		r.Done++
		r.Bytes += done.bytes
		r.Files += done.files
		switch {
		case err != nil:
		case done.files > 0:
			r.Versions++
		default:
			r.Had++
		}
	})
}

// taken is what came in of one version.
type taken struct{ files, bytes int64 }

func (i *intake) takeFile(ctx context.Context, c *candidate, k Kind, want sums, x *sighting, done *taken) error {
	var had bool
	var n int64
	var err error
	switch k {
	case Mod:
		had, n, err = i.takeMod(ctx, c, want, x)
	case Zip:
		had, n, err = i.takeZip(ctx, c, want, x)
	default:
		had, n, err = i.takeInfo(ctx, c, x)
	}
	if err != nil {
		return err
	}
	x.stored = true
	x.proved = x.proved || k != Info // no checksum covers an .info
	done.bytes += n
	if !had {
		done.files++
	}
	return nil
}

// noted brings the version into the index, and out of what memory says.
func (i *intake) noted(ctx context.Context, x *sighting) error {
	i.m.forget(ctx, x.v)
	i.m.used.touch(x.v, nil)
	if i.m.state == nil {
		return nil
	}
	return i.m.state.note(ctx, x)
}

// refused tells of bytes that do not match. The source is suspect and not the
// version, so that others may still have it.
func (i *intake) refused(ctx context.Context, v module.Version, err error) {
	e, ok := errors.AsType[*IncidentError](err)
	if !ok {
		return
	}
	i.m.metrics.conflicts.Inc()
	i.m.log.LogAttrs(ctx, slog.LevelError, "bytes do not match: file not imported", slog.String("module", v.Path), slog.String("version", v.Version),
		slog.String("file", e.File), slog.String("kind", e.Kind), slog.String("want", e.Want), slog.String("got", e.Got))
}

// vouch gives the hashes that a version must have.
func (i *intake) vouch(ctx context.Context, v module.Version) (sums, error) {
	var origin sums
	if i.origin != nil {
		var err error
		if origin.zip, origin.mod, err = i.origin.Sums(ctx, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return sums{}, err
		}
	}
	var want sums
	var err error
	switch visibility := i.m.Visibility(v.Path); {
	case visibility == Unknown:
		return sums{}, errors.New("its path is the beginning of a private pattern, so that it is never served")
	case visibility == Private && i.bundle && origin.zip == "":
		return sums{}, errors.New("no checksum database vouches for this private module; set mirror.origin_sumdb to the key of the gateway that made the bundle")
	case visibility == Private, i.m.exempt(v.Path):
		want, err = i.m.recorded(ctx, v)
	default:
		want, err = i.vouched(ctx, v)
	}
	if err != nil {
		return sums{}, err
	}
	if want.zip == "" {
		want.zip = origin.zip
	}
	if want.mod == "" {
		want.mod = origin.mod
	}
	if origin.zip != "" && want != origin {
		return sums{}, &IncidentError{Kind: "sumdb", Module: v, File: "record", Want: want.zip, Got: origin.zip}
	}
	return want, nil
}

// vouched asks the public database: what of it the source carries, then what
// is stored, then itself.
func (i *intake) vouched(ctx context.Context, v module.Version) (sums, error) {
	var offered error // why the source's own record is of no use
	if i.public != nil {
		zip, mod, err := i.public.Sums(ctx, v)
		if err == nil {
			return sums{zip, mod}, nil
		}
		if errors.Is(err, sumdb.ErrSecurity) || i.bundle && !errors.Is(err, fs.ErrNotExist) {
			return sums{}, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			offered = err
		}
	}
	if !i.alone {
		return i.m.sums(ctx, v)
	}
	r, err := i.m.vouches.Record(WithCachedOnly(ctx), v)
	if err != nil {
		return sums{}, errors.Join(fmt.Errorf("%w: its record is not at hand, and nobody may be asked", ErrSumdb), offered)
	}
	return sums{r.Zip, r.Mod}, nil
}

// mod reads and verifies a .mod.
func (i *intake) mod(c *candidate, want sums) ([]byte, error) {
	b, err := i.src.read(c.files[Mod], maxMod)
	if err == nil {
		err = checkMod(b)
	}
	if err != nil {
		return nil, err
	}
	got, err := hashMod(b)
	if err == nil && want.mod != "" && got != want.mod {
		err = &IncidentError{Kind: "sumdb", Module: c.Version, File: "mod", Want: want.mod, Got: got}
	}
	return b, err
}

func (i *intake) takeMod(ctx context.Context, c *candidate, want sums, x *sighting) (had bool, n int64, err error) {
	b, err := i.mod(c, want)
	if err != nil {
		return false, 0, err
	}
	if x.modHash, err = hashMod(b); err != nil {
		return false, 0, err
	}
	s, name := i.m.storeOf(c.Path), fileTarget(c.Version, Mod).upstreamPath()
	_, missing := s.Stat(ctx, name)
	return missing == nil, int64(len(b)), s.Publish(ctx, name, b)
}

// info reads and verifies the shape of an .info; no checksum covers it.
func (i *intake) info(c *candidate) ([]byte, error) {
	b, err := i.src.read(c.files[Info], maxInfo)
	if err != nil {
		return nil, err
	}
	named, err := checkInfo(b, c.Path)
	if err == nil && named != c.Version.Version {
		err = fmt.Errorf(".info names version %q", named)
	}
	return b, err
}

// takeInfo keeps the first .info for ever. Another one is as good if it names
// the same time and commit.
func (i *intake) takeInfo(ctx context.Context, c *candidate, x *sighting) (had bool, n int64, err error) {
	b, err := i.info(c)
	if err != nil {
		return false, 0, err
	}
	s, name := i.m.storeOf(c.Path), fileTarget(c.Version, Info).upstreamPath()
	first, err := s.Read(ctx, name, maxInfo)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		first = b
		if err = s.Publish(ctx, name, b); err == nil {
			err = i.m.rewriteList(ctx, c.Path)
		}
	case err == nil:
		had = true
		if was, is := readInfo(first), readInfo(b); !was.Time.Equal(is.Time) || was.Origin.Hash != "" && is.Origin.Hash != "" && was.Origin.Hash != is.Origin.Hash {
			err = &IncidentError{
				Kind: "conflict", Module: c.Version, File: "info",
				Want: fmt.Sprint(was.Time, " ", was.Origin.Hash), Got: fmt.Sprint(is.Time, " ", is.Origin.Hash),
			}
		}
	}
	told := readInfo(first)
	x.published, x.origin = told.Time, told.origin()
	return had, int64(len(b)), err
}

// takeZip copies a zip into a draft, verifies that and publishes it. One that
// is stored already is compared, by its bytes and then by its content.
func (i *intake) takeZip(ctx context.Context, c *candidate, want sums, x *sighting) (had bool, n int64, err error) {
	f, size, err := i.src.open(c.files[Zip])
	if err != nil {
		return false, 0, err
	}
	defer f.Close()
	if size > maxZip {
		return false, 0, fmt.Errorf("zip has %d bytes, more than %d", size, int64(maxZip))
	}
	s, t := i.m.storeOf(c.Path), fileTarget(c.Version, Zip)
	d, err := s.Draft()
	if err != nil {
		return false, 0, err
	}
	defer d.Discard()
	if n, err = io.Copy(d, &stoppable{ctx, io.LimitReader(f, maxZip+1)}); err != nil {
		return false, n, err
	}
	stored := &File{}
	if info, missing := s.Stat(ctx, t.upstreamPath()); missing == nil {
		if err := zipHashes(ctx, s, stored, info); err != nil {
			return false, n, err
		}
		if stored.ETag == `"`+d.SHA256()+`"` {
			x.zipHash = stored.Hash
			return true, n, nil
		}
	}
	if x.zipHash, err = i.m.checkZip(ctx, d.File(), c.Version, want); err != nil {
		return false, n, err
	}
	if stored.ETag == "" {
		return false, n, i.m.publishZip(ctx, d, t, x.zipHash)
	}
	if stored.Hash != x.zipHash {
		return true, n, &IncidentError{Kind: "conflict", Module: c.Version, File: "zip", Want: stored.Hash, Got: x.zipHash}
	}
	return true, n, nil // another packing of the same content
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context // of one copy
	r   io.Reader
}

func (s *stoppable) Read(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(b)
}
