package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// asideFolder keeps files that did not verify, for who wants to look at them; they are never served.
const asideFolder = ".aside"

// ScrubOptions say how the stores are read again.
type ScrubOptions struct {
	// BytesPerSecond bounds how fast files are read; 0 is as fast as it goes.
	BytesPerSecond int64
	// Repair moves bad files aside, so that the next request fetches them anew.
	Repair bool
	// Progress is told after each file; it may be nil.
	Progress func(Progress)
}

// Scrub reads every module file of both stores again and holds it against its
// hashes: of the checksum record, of what was noted when it came in, and of
// what stands beside it. Each bad file is in the report.
func (m *Mirror) Scrub(ctx context.Context, o ScrubOptions) (CareReport, error) {
	if err := m.cfg.Stores(); err != nil {
		return CareReport{}, err
	}
	counts := newKeeper(o.Progress, 0)
	for _, s := range []*store.Store{m.public, m.private} {
		err := s.Walk(ctx, ".", func(i store.Info) error {
			v, k, ok := moduleFile(i.Name)
			if !ok || !strings.Contains(i.Name, "/@v/") {
				return context.Cause(ctx)
			}
			begun := time.Now()
			if err := m.scrub(ctx, s, v, k, o.Repair); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				counts.fail(v, i.Name, err)
			}
			counts.step(func(r *CareReport) {
				r.Done++
				r.Files++
				r.Bytes += i.Size
			})
			return pace(ctx, i.Size, o.BytesPerSecond, begun)
		})
		if err != nil {
			return counts.report, fmt.Errorf("reading the stores again: %w", err)
		}
	}
	return counts.report, nil
}

// pace waits until so many bytes have taken their time.
func pace(ctx context.Context, n, perSecond int64, begun time.Time) error {
	if perSecond <= 0 {
		return context.Cause(ctx)
	}
	rest := time.Duration(float64(n)/float64(perSecond)*float64(time.Second)) - time.Since(begun)
	if rest <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(rest)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// scrub reads one file again. What is bad is told of, and moved aside if wanted.
func (m *Mirror) scrub(ctx context.Context, s *store.Store, v module.Version, k Kind, repair bool) error {
	want, err := m.expected(ctx, v)
	if err != nil {
		return err
	}
	name := fileTarget(v, k).upstreamPath()
	var bad []string // names of files that are not what they must be
	switch k {
	case Info:
		bad, err = m.scrubInfo(ctx, s, v)
	case Mod:
		bad, err = m.scrubMod(ctx, s, v, want.mod)
	case Zip:
		bad, err = m.scrubZip(ctx, s, v, want.zip)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // collected meanwhile
	}
	if err == nil || len(bad) == 0 {
		return err
	}
	m.metrics.conflicts.Inc()
	m.log.LogAttrs(ctx, slog.LevelError, "stored file is not what it was", slog.String("module", v.Path), slog.String("version", v.Version),
		slog.String("file", name), slog.Bool("moved_aside", repair), slog.Any("err", err))
	if !repair {
		return err
	}
	for _, b := range bad {
		if merr := m.moveAside(ctx, s, b); merr != nil {
			return errors.Join(err, merr)
		}
	}
	m.forget(ctx, v)
	return errors.Join(err, m.rewriteList(ctx, v.Path))
}

// expected are the hashes of a version out of its record, as far as that is at
// hand, and else what was noted when it came in.
func (m *Mirror) expected(ctx context.Context, v module.Version) (sums, error) {
	if m.Visibility(v.Path) == Public && !m.exempt(v.Path) {
		if b, err := m.vouches.Lookup(ctx, v, true); err == nil {
			if want := sumsIn(b, v); want != (sums{}) {
				return want, nil
			}
		}
	}
	return m.recorded(ctx, v)
}

// sumsIn reads the two lines of a record.
func sumsIn(record []byte, v module.Version) sums {
	var s sums
	for line := range strings.Lines(string(record)) {
		line = strings.TrimSuffix(line, "\n")
		if h, ok := strings.CutPrefix(line, v.Path+" "+v.Version+" "); ok {
			s.zip = h
		}
		if h, ok := strings.CutPrefix(line, v.Path+" "+v.Version+"/go.mod "); ok {
			s.mod = h
		}
	}
	return s
}

func (m *Mirror) scrubInfo(ctx context.Context, s *store.Store, v module.Version) ([]string, error) {
	name := fileTarget(v, Info).upstreamPath()
	b, err := s.Read(ctx, name, maxInfo)
	if err != nil {
		return nil, err
	}
	named, err := checkInfo(b, v.Path)
	if err == nil && named != v.Version {
		err = fmt.Errorf(".info names version %q", named)
	}
	return []string{name}, err
}

func (m *Mirror) scrubMod(ctx context.Context, s *store.Store, v module.Version, want string) ([]string, error) {
	name := fileTarget(v, Mod).upstreamPath()
	b, err := s.Read(ctx, name, maxMod)
	if err != nil {
		return nil, err
	}
	got, err := hashMod(b)
	if err == nil && want != "" && got != want {
		err = &IncidentError{Kind: "scrub", Module: v, File: "mod", Want: want, Got: got}
	}
	if err == nil {
		err = checkMod(b)
	}
	return []string{name}, err
}

// scrubZip unpacks a zip. Where its content is right and a file beside it is
// wrong, that one is the bad one.
func (m *Mirror) scrubZip(ctx context.Context, s *store.Store, v module.Version, want string) ([]string, error) {
	name := fileTarget(v, Zip).upstreamPath()
	base := strings.TrimSuffix(name, ".zip")
	beside := []string{base + ".ziphash", name + ".sha256"}
	f, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := s.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	got, err := hashZip(f, info.Size)
	if err != nil {
		return append(beside, name), &IncidentError{Kind: "scrub", Module: v, File: "zip", Want: want, Got: reasonOf(err)}
	}
	noted, err := s.Read(ctx, beside[0], 1024)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	noted = bytes.TrimSpace(noted)
	switch {
	case want != "" && got != want, want == "" && len(noted) > 0 && got != string(noted):
		return append(beside, name), &IncidentError{Kind: "scrub", Module: v, File: "zip", Want: orText(want, string(noted)), Got: got}
	case len(noted) > 0 && got != string(noted):
		return beside[:1], fmt.Errorf("the note beside the zip, %s, is not its hash", path.Base(beside[0]))
	}
	sum, err := s.Read(ctx, beside[1], 1024)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if again, err := s.Sum(ctx, name); err != nil || again == string(sum) {
		return nil, err
	}
	return beside[1:], fmt.Errorf("the note beside the zip, %s, is not its SHA-256", path.Base(beside[1]))
}

func orText(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// moveAside takes a bad file out of service; one that cannot be kept is removed all the same.
func (m *Mirror) moveAside(ctx context.Context, s *store.Store, name string) error {
	if err := m.copyAside(ctx, s, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.LogAttrs(ctx, slog.LevelWarn, "bad file not kept aside", slog.String("file", name), slog.Any("err", err))
	}
	if err := s.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("moving %s aside: %w", name, err)
	}
	return nil
}

func (m *Mirror) copyAside(ctx context.Context, s *store.Store, name string) error {
	f, err := s.Open(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := s.Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := io.Copy(d, f); err != nil {
		return err
	}
	return d.Publish(ctx, path.Join(asideFolder, m.now().UTC().Format("20060102T150405"), name))
}
