package mirror

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// Facts are what the mirror knows of a version.
type Facts struct {
	// Kind is "release", "prerelease", "pseudo", "incompatible", or "none" without a version.
	Kind string
	// Major is the major version.
	Major int64
	// Sumdb is "verified", "mismatch", "not_listed", "exempt", or "pending"
	// where no file of the version was checked yet.
	Sumdb string
	// Published is the commit time of a stored .info, which its author sets:
	// to show, never to judge. Zero where it is not known.
	Published time.Time
	// FirstSeen is the earliest time at which an age source shows the version;
	// zero where none does. Age is "ok" with it; without it "missing", or "stale"
	// where the index feed was not read for long; and "off" where no source is
	// configured that could show it.
	FirstSeen time.Time
	Age       string
	// Licences are those of the zip.
	Licences Licences
	// Retracted and Deprecated are what the go.mod of the newest version says.
	Retracted, Deprecated Flag
	// Origin is where the stored .info says that the version comes from.
	// OriginDrift is "same" as when it was stored, "moved" where its tag named
	// another commit later, "unknown" without an origin, and "" without a state database.
	Origin      Origin
	OriginDrift string

	indexed bool
	undated bool // the checksum database could show it, and was not asked
}

// Licences are what the zip of a version says. Status is "found" with SPDX IDs,
// sorted, "none", "unknown" where there is a licence file that is not known,
// "missing" where no zip was looked at yet, and "" without a state database.
type Licences struct {
	Status string
	IDs    []string
}

// Flag is a yes or no of a go.mod, with its author's text cut to a short
// printable line. State is "yes", "no", "unknown" where that go.mod could not be
// read, and "" where nobody has asked for the module's list, which names it.
type Flag struct{ State, Text string }

// Origin is a commit of a repository.
type Origin struct{ VCS, URL, Commit string }

// Facts gives what is known of a version without asking anybody.
func (m *Mirror) Facts(ctx context.Context, path, version string) Facts {
	f := named(version)
	if version == "" {
		return f
	}
	t := Target{Path: path, Version: version, Kind: Info}
	if b := m.known(ctx, t); b != nil {
		f.Published = published(b)
	}
	f.Sumdb = m.sumState(t.module(), func() bool {
		for _, k := range []Kind{Mod, Zip} {
			if _, err := m.storeOf(path).Stat(ctx, Target{Path: path, Version: version, Kind: k}.upstreamPath()); err == nil {
				return true
			}
		}
		return false
	})
	m.recall(ctx, path, version).tell(version, &f)
	return f
}

// A recollection is what the state database knows of it.
type recollection struct {
	m      *Mirror
	covers bool // some age source can show the module's versions
	dates  bool // the checksum database can
	rows   map[string]known
	taught *teaching
}

// recall reads what is known of a version, or of all where it is "". A database
// that does not answer makes facts missing, not requests fail.
func (m *Mirror) recall(ctx context.Context, path, version string) recollection {
	visibility, exempt := m.Visibility(path), m.exempt(path)
	r := recollection{m: m, covers: m.ages.covers(visibility, exempt), dates: m.ages.sumdb && visibility == Public && !exempt}
	if m.state == nil {
		return r
	}
	var err1, err2, err3 error
	r.rows, err1 = m.state.versions(ctx, path, version)
	if err1 == nil && m.ages.feed && visibility == Public {
		err2 = m.state.fed(ctx, path, version, r.rows)
	}
	r.taught, err3 = m.state.teaching(ctx, path)
	if err := errors.Join(err1, err2, err3); err != nil {
		m.log.LogAttrs(ctx, slog.LevelError, "facts are missing", slog.String("module", path), slog.Any("err", err))
	}
	return r
}

// tell fills in what is known of a version.
func (r recollection) tell(version string, f *Facts) {
	f.Age = "off"
	if r.m.state == nil {
		return
	}
	k := r.rows[version]
	f.indexed, f.Origin, f.OriginDrift = k.indexed, k.origin, "unknown"
	if k.movedTo != "" {
		f.OriginDrift = "moved"
	} else if k.origin.Commit != "" {
		f.OriginDrift = "same"
	}
	f.Retracted, f.Deprecated = r.taught.flags(version)
	f.Licences = readLicences(k.licences)
	if !r.covers {
		return
	}
	f.FirstSeen = r.m.ages.firstSeen(k)
	f.undated = r.dates && k.number == 0 && r.m.now().Sub(f.FirstSeen) < feedWindow // nothing is older than that for policy
	switch {
	case !f.FirstSeen.IsZero():
		f.Age = "ok"
	case r.m.ages.feed && r.m.feed.stale():
		f.Age = "stale"
	default:
		f.Age = "missing"
	}
}

// sumState is the checksum state; stored tells whether a .mod or zip is there,
// which only verified ones are.
func (m *Mirror) sumState(v module.Version, stored func() bool) string {
	switch {
	case m.incidents.has(v):
		return "mismatch"
	case m.exempt(v.Path):
		return "exempt"
	case stored():
		return "verified"
	}
	if a := m.answers.get(Target{Path: v.Path, Version: v.Version, Kind: Mod}); a != nil && a.unlisted {
		return "not_listed"
	}
	return "pending"
}

// named are the facts that the version's text tells.
func named(version string) Facts {
	f := Facts{Kind: "release", Sumdb: "pending"}
	switch {
	case version == "":
		return Facts{Kind: "none", Sumdb: "pending"}
	case module.IsPseudoVersion(version):
		f.Kind = "pseudo"
	case strings.HasSuffix(version, "+incompatible"):
		f.Kind = "incompatible"
	case semver.Prerelease(version) != "":
		f.Kind = "prerelease"
	}
	// A canonical version's major is a number; of a query it stays 0.
	_, _ = fmt.Sscanf(semver.Major(version), "v%d", &f.Major)
	return f
}

// published reads the time of an .info; zero if it has none.
func published(info []byte) time.Time {
	return readInfo(info).Time
}

// infoFile is what of an .info is checked; other fields pass.
type infoFile struct {
	Version string
	Time    time.Time
	Origin  struct{ VCS, URL, Hash string }
}

func (i infoFile) origin() Origin {
	return Origin{VCS: i.Origin.VCS, URL: i.Origin.URL, Commit: i.Origin.Hash}
}

// changed forgets what memory says about a version, after a file or incident came in.
func (m *Mirror) changed(v module.Version) {
	defer m.remind(v, m.remembered(v))
	for _, k := range []Kind{Info, Mod, Zip} {
		m.hot.remove(Target{Path: v.Path, Version: v.Version, Kind: k})
	}
	if a := m.answers.get(Target{Path: v.Path, Kind: List}); a != nil {
		a.releases.Store(nil)
	}
	if a := m.answers.get(Target{Path: v.Path, Kind: Latest}); a != nil {
		a.latest.Store(nil)
	}
}

// incidentDir holds one file for each version with an open incident. An
// operator closes it by removing the file and starting again.
const incidentDir = ".incidents"

// incidents are versions for which an upstream sent bytes that do not match.
type incidents struct {
	store *store.Store
	mu    sync.Mutex // guards known
	known map[module.Version]bool
}

func openIncidents(ctx context.Context, s *store.Store) (*incidents, error) {
	i := &incidents{store: s, known: map[module.Version]bool{}}
	names, err := s.Names(ctx, incidentDir)
	if err != nil {
		return nil, fmt.Errorf("reading incidents: %w", err)
	}
	for _, n := range names {
		b, err := s.Read(ctx, path.Join(incidentDir, n), 64<<10)
		if err != nil {
			return nil, fmt.Errorf("reading incidents: %w", err)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if p, v, ok := strings.Cut(line, "@"); ok {
			i.known[module.Version{Path: p, Version: v}] = true
		}
	}
	return i, nil
}

func (i *incidents) has(v module.Version) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.known[v]
}

// look is has for what is about to be fetched: another gateway over the same
// store may have opened an incident since.
func (i *incidents) look(ctx context.Context, v module.Version) bool {
	if i.has(v) {
		return true
	}
	if _, err := i.store.Stat(ctx, incidentName(v)); err != nil {
		return false // trouble with the store shows when the file is stored
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.known[v] = true
	return true
}

func incidentName(v module.Version) string {
	return path.Join(incidentDir, strings.ReplaceAll(v.Path, "/", "+")+"@"+v.Version)
}

// open records an incident, in memory first: the version is suspect even if the disk is full.
func (i *incidents) open(ctx context.Context, v module.Version, text string) error {
	i.mu.Lock()
	i.known[v] = true
	i.mu.Unlock()
	return i.store.Replace(ctx, incidentName(v), []byte(v.String()+"\n"+text+"\n"))
}

// incident records bytes that do not match, and returns the error.
func (m *Mirror) incident(e *IncidentError) error {
	m.log.LogAttrs(m.ctx, slog.LevelError, "bytes do not match: file refused",
		slog.String("module", e.Module.Path), slog.String("version", e.Module.Version), slog.String("file", e.File),
		slog.String("kind", e.Kind), slog.String("want", e.Want), slog.String("got", e.Got))
	if e.Kind == "conflict" {
		m.metrics.conflicts.Inc()
		return e
	}
	m.metrics.sumdb.WithLabelValues("mismatch").Inc()
	err := m.incidents.open(m.ctx, e.Module, e.Error())
	m.changed(e.Module)
	if m.state != nil {
		err = errors.Join(err, m.state.inTransaction(m.ctx, e.Module, func(*sql.Tx) error { return nil }))
	}
	return errors.Join(e, err)
}

func (m *Mirror) storeOf(path string) *store.Store {
	if m.Visibility(path) == Private {
		return m.private
	}
	return m.public
}

// notThere is a target that its origin, or the store, does not have.
func notThere(t Target) error {
	what := t.Path
	if t.Version != "" {
		what += "@" + t.Version
	}
	return fmt.Errorf("%s of %s: %w", t.Kind, what, fs.ErrNotExist)
}
