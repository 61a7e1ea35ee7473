package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/sync/errgroup"
)

// lookups is how many versions are dated at a time.
const lookups = 16

// maxText is the longest text of an author, in bytes, that facts carry.
const maxText = 200

// sighted notes that a file of a version is stored. A failure costs facts, not the file.
func (m *Mirror) sighted(ctx context.Context, t Target, f *File) {
	if m.state == nil {
		return
	}
	x := &sighting{v: t.module(), stored: true, proved: t.Kind != Info} // no checksum covers an .info
	switch t.Kind {
	case Info:
		i := readInfo(f.Body)
		x.published, x.origin = i.Time, i.origin()
	case Mod:
		x.modHash = f.Hash
	case Zip:
		x.zipHash = f.Hash
		x.licences = m.findLicences(ctx, t)
	}
	if err := m.state.note(ctx, x); err != nil {
		m.log.LogAttrs(ctx, slog.LevelError, "version not noted in the state database; it is when it is next read from disk",
			slog.String("target", t.String()), slog.Any("err", err))
		return
	}
	m.changed(x.v)
	f.Facts = m.Facts(ctx, t.Path, t.Version)
}

// moved compares the commit in a fresh .info with the one that the version had
// when it was first stored. Another one is an incident: the tag was moved.
func (m *Mirror) moved(ctx context.Context, path string, info []byte) {
	i := readInfo(info)
	if m.state == nil || i.origin().Commit == "" {
		return
	}
	v := module.Version{Path: path, Version: i.Version}
	rows, err := m.state.versions(ctx, v.Path, v.Version)
	first := rows[v.Version]
	if err != nil || first.origin.Commit == "" || first.origin.Commit == i.Origin.Hash || first.movedTo != "" {
		return // a database that is away is noticed where its answer counts
	}
	err = m.state.note(ctx, &sighting{v: v, movedTo: i.Origin.Hash})
	m.metrics.conflicts.Inc()
	m.log.LogAttrs(ctx, slog.LevelError, "tag moved: its version names another commit than when it was stored",
		slog.String("module", v.Path), slog.String("version", v.Version), slog.String("was", first.origin.Commit),
		slog.String("is", i.Origin.Hash), slog.Any("noting_err", err))
	m.changed(v)
}

// learn reads what a module's newest go.mod says of all versions, if that is
// not known yet. It waits for the answer where nothing at all is known, at most
// as long as facts are waited for.
func (m *Mirror) learn(ctx context.Context, path string, versions []string) {
	newest := newestOf(versions)
	if m.state == nil || newest == "" {
		return
	}
	have, err := m.state.teaching(ctx, path)
	if err == nil && have == nil {
		have, err = &teaching{}, m.state.listed(ctx, path)
	}
	if err != nil || have.newest == newest {
		return
	}
	work := func(ctx context.Context) (any, error) { return nil, m.study(ctx, path, newest) }
	if isCachedOnly(ctx) || m.island(path) {
		_, err = work(WithCachedOnly(ctx))
	} else {
		ch, _ := m.launch("study "+path, m.cfg.FetchTimeout, work)
		if have.newest != "" {
			return // the old ones hold until the flight is over
		}
		select {
		case r := <-ch:
			err = r.Err
		case <-time.After(m.cfg.FactsWait):
		case <-ctx.Done():
		}
	}
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelDebug, "retractions not known", slog.String("module", path), slog.Any("err", err))
	}
}

// learnUntagged is learn for a module without tags: there the go.mod of
// @latest, a pseudo-version, speaks for all (https://go.dev/ref/mod#go-mod-file-retract).
func (m *Mirror) learnUntagged(ctx context.Context, latest module.Version) {
	if !module.IsPseudoVersion(latest.Version) {
		return
	}
	if list := m.answers.get(Target{Path: latest.Path, Kind: List}); list == nil || len(list.body) == 0 {
		m.learn(ctx, latest.Path, []string{latest.Version})
	}
}

// study stores what a version's go.mod says of its siblings.
func (m *Mirror) study(ctx context.Context, path, version string) error {
	f, err := m.openFile(ctx, Target{Path: path, Version: version, Kind: Mod})
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("reading go.mod of %s@%s: %w", path, version, err)
	}
	t, err := readTeaching(b)
	if err != nil {
		return fmt.Errorf("reading go.mod of %s@%s: %w", path, version, err)
	}
	t.newest = version
	if err := m.state.teach(ctx, path, t); err != nil {
		return err
	}
	// Facts of any version may differ now.
	err = m.changedAll(ctx, path)
	m.changed(module.Version{Path: path, Version: version})
	return err
}

func readTeaching(mod []byte) (*teaching, error) {
	if len(mod) > maxParsed {
		return nil, fmt.Errorf("it has %d bytes, too many to be parsed", len(mod))
	}
	f, err := modfile.ParseLax("go.mod", mod, nil)
	if err != nil {
		return nil, err
	}
	t := &teaching{}
	if f.Module != nil {
		t.deprecated = plainText(f.Module.Deprecated)
	}
	for _, r := range f.Retract {
		t.retracted = append(t.retracted, interval{r.Low, r.High, plainText(r.Rationale)})
	}
	return t, nil
}

// plainText is an author's text as one short printable line.
func plainText(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsGraphic(r) || r == ' ' }), " ")
	return s[:min(len(s), maxText)]
}

// flags are what the newest go.mod says of a version.
func (t *teaching) flags(version string) (retracted, deprecated Flag) {
	switch {
	case t == nil:
		return Flag{}, Flag{}
	case t.newest == "":
		return Flag{State: "unknown"}, Flag{State: "unknown"}
	}
	retracted, deprecated = Flag{State: "no"}, Flag{State: "no"}
	for _, i := range t.retracted {
		if semver.Compare(i.Low, version) <= 0 && semver.Compare(version, i.High) <= 0 {
			retracted = Flag{State: "yes", Text: i.Rationale}
		}
	}
	if t.deprecated != "" {
		deprecated = Flag{State: "yes", Text: t.deprecated}
	}
	return retracted, deprecated
}

// newestOf is the version whose go.mod the go command reads for retractions:
// the highest release, or else prerelease; +incompatible ones only where there
// is no other.
func newestOf(versions []string) string {
	rank := func(v string) int {
		switch {
		case strings.HasSuffix(v, "+incompatible"):
			return 0
		case semver.Prerelease(v) != "":
			return 1
		}
		return 2
	}
	best := ""
	for _, v := range versions {
		if best == "" || rank(v) > rank(best) || rank(v) == rank(best) && semver.Compare(v, best) > 0 {
			best = v
		}
	}
	return best
}

// date looks up the versions whose age is not known, newest first: a proved
// checksum record shows that their content exists. It waits no longer than
// facts are waited for; what takes longer goes on behind it. It tells whether
// anything was looked up.
func (m *Mirror) date(ctx context.Context, path string, releases []Release) bool {
	if m.state == nil || !m.ages.index && !m.ages.sumdb || isCachedOnly(ctx) || m.up.Island() || m.Visibility(path) != Public || m.exempt(path) {
		return false
	}
	var young []string
	for _, r := range slices.Backward(releases) {
		if r.Facts.datable() {
			young = append(young, r.Version)
		}
	}
	if len(young) == 0 {
		return false
	}
	ch, _ := m.launch("dates "+path+" "+young[0], m.cfg.FetchTimeout, func(ctx context.Context) (any, error) {
		var group errgroup.Group
		group.SetLimit(lookups)
		for _, version := range young {
			group.Go(func() error { return m.prove(ctx, module.Version{Path: path, Version: version}) })
		}
		return nil, group.Wait()
	})
	select {
	case <-ch: // a version that could not be dated stays young
	case <-time.After(m.cfg.FactsWait):
	case <-ctx.Done():
	}
	return true
}

// prove notes a version whose checksum record is proved.
func (m *Mirror) prove(ctx context.Context, v module.Version) error {
	want, err := m.sums(ctx, v) // which leaves the record's number as a hint
	if err != nil {
		return err
	}
	if err := m.state.note(ctx, &sighting{v: v, proved: true, modHash: want.mod, zipHash: want.zip}); err != nil {
		return err
	}
	m.changed(v)
	return nil
}

// datable tells that the checksum database may show a version, or show it to be older than it seems.
func (f Facts) datable() bool { return f.undated || f.Age == "missing" || f.Age == "stale" }

// dated is the facts of a version once its age was looked for.
func (m *Mirror) dated(ctx context.Context, v module.Version, f Facts) Facts {
	if !f.datable() {
		return f
	}
	if !m.date(ctx, v.Path, []Release{{v.Version, f}}) {
		return f
	}
	return m.Facts(ctx, v.Path, v.Version)
}

// readInfo reads an .info; what it does not have is empty.
func readInfo(b []byte) infoFile {
	var i infoFile
	if err := json.Unmarshal(b, &i); err != nil {
		return infoFile{}
	}
	return i
}
