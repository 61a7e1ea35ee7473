package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// How long answers that may change hold.
const (
	ttlFresh     = time.Minute      // then renewed in the background
	ttlServed    = 5 * time.Minute  // then awaited
	ttlStale     = 24 * time.Hour   // if the upstream is in trouble
	ttlMissing   = time.Minute      // a version or query that is not there
	ttlNoModule  = 10 * time.Minute // a path that is no module
	knownFolder  = ".lists"         // last known lists, below a line with the time of asking
	answerFactor = 128              // what an answer costs beside its body
)

// Release is one version with what is known of it.
type Release struct {
	Version string
	Facts   Facts
}

// Versions are all tagged versions of a module, ascending, without pseudo-versions.
type Versions struct {
	// Releases must not be changed.
	Releases []Release
	// Revision is another number whenever Releases differ: for caches of what is made of them.
	Revision uint64
	// Body is Releases as @v/list has it, ETag its strong tag.
	Body []byte
	ETag string
	// Cache is where the list was: "memory", "disk" or "upstream".
	Cache string
	// Stale tells that the list could not be renewed; Age is how old it is.
	Stale bool
	Age   time.Duration
}

// answer is something that may change: a list, a query's .info, or that nothing is there.
type answer struct {
	at       time.Time
	body     []byte
	missing  bool
	unlisted bool                     // the checksum database has no record
	releases atomic.Pointer[Versions] // of a list, until a fact changes
	latest   atomic.Pointer[File]     // of @latest, until a fact changes
}

// answers keeps them by target, bounded in bytes.
type answers struct {
	mu    sync.Mutex // guards all below
	lru   *simplelru.LRU[Target, *answer]
	bytes int64
	limit int64
}

func newAnswers(limit int64) *answers {
	a := &answers{limit: limit}
	// The error is for sizes below one.
	a.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ Target, x *answer) { a.bytes -= cost(x) })
	return a
}

func cost(x *answer) int64 { return overhead + answerFactor + 8*int64(len(x.body)) }

func (a *answers) get(t Target) *answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	x, _ := a.lru.Get(t)
	return x
}

func (a *answers) put(t Target, x *answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lru.Remove(t)
	a.lru.Add(t, x)
	for a.bytes += cost(x); a.bytes > a.limit && a.lru.Len() > 1; {
		a.lru.RemoveOldest()
	}
}

// Versions lists a module's versions with facts. The errors are those of Open.
func (m *Mirror) Versions(ctx context.Context, modulePath string) (*Versions, error) {
	t := Target{Path: modulePath, Kind: List}
	if err := m.sourced(ctx, modulePath); err != nil {
		return nil, err
	}
	if isCachedOnly(ctx) || m.island(modulePath) {
		body, err := m.storedList(ctx, modulePath)
		if err == nil && len(body) == 0 {
			err = notThere(t)
		}
		if err != nil {
			return nil, err
		}
		v := *m.listed(ctx, modulePath, &answer{body: body})
		v.Cache = "disk"
		return &v, nil
	}
	a, tier, stale, err := m.answer(ctx, t)
	if err != nil {
		return nil, err
	}
	v := *m.listed(ctx, modulePath, a)
	v.Cache, v.Stale, v.Age = tier, stale, m.age(a)
	return &v, nil
}

// revisions numbers what listed makes, in this process.
var revisions atomic.Uint64

// listed gives the versions of an answer, made once until something changes.
func (m *Mirror) listed(ctx context.Context, modulePath string, a *answer) *Versions {
	if v := a.releases.Load(); v != nil {
		return v
	}
	m.learn(ctx, modulePath, strings.Fields(string(a.body)))
	v := m.judged(ctx, modulePath, a.body)
	if m.date(ctx, modulePath, v.Releases) {
		v = m.judged(ctx, modulePath, a.body)
	}
	a.releases.Store(v)
	return v
}

// judged makes the versions of a list with what is known of each now.
func (m *Mirror) judged(ctx context.Context, modulePath string, body []byte) *Versions {
	stored := map[string]bool{}
	if esc, err := module.EscapePath(modulePath); err == nil {
		names, err := m.storeOf(modulePath).Names(ctx, esc+"/@v")
		if err != nil {
			m.log.LogAttrs(m.ctx, slog.LevelWarn, "folder not read", slog.String("module", modulePath), slog.Any("err", err))
		}
		for _, n := range names {
			stored[n] = true
		}
	}
	body = m.released(modulePath, body)
	v := &Versions{Body: body, Revision: revisions.Add(1)}
	known := m.recall(ctx, modulePath, "")
	for line := range strings.Lines(string(body)) {
		version := strings.TrimSuffix(line, "\n")
		f := m.listedFacts(ctx, module.Version{Path: modulePath, Version: version}, stored)
		known.tell(version, &f)
		v.Releases = append(v.Releases, Release{version, f})
	}
	f := File{Body: body}
	// A list is hashed without error.
	_ = finish(&f, List)
	v.ETag = f.ETag
	return v
}

func (m *Mirror) listedFacts(ctx context.Context, v module.Version, stored map[string]bool) Facts {
	f := named(v.Version)
	esc, err := module.EscapeVersion(v.Version)
	if err != nil {
		return f
	}
	f.Sumdb = m.sumState(v, func() bool { return stored[esc+".mod"] || stored[esc+".zip"] })
	if stored[esc+".info"] {
		if b, err := m.storeOf(v.Path).Read(ctx, fileTarget(v, Info).upstreamPath(), maxInfo); err == nil {
			f.Published = published(b)
		}
	}
	return f
}

// openList gives the list as it is.
func (m *Mirror) openList(ctx context.Context, t Target) (*File, error) {
	v, err := m.Versions(ctx, t.Path)
	if err != nil {
		return nil, err
	}
	return open(&File{
		Size: int64(len(v.Body)), ETag: v.ETag, ContentType: textPlain, Hash: "sha256:" + strings.Trim(v.ETag, `"`),
		Body: v.Body, Stale: v.Stale, Age: v.Age, Facts: named(""),
	}, v.Cache), nil
}

// Latest gives the version that the upstream's @latest names. The errors are
// those of Open; fs.ErrNotExist sends the go command back to the list.
func (m *Mirror) Latest(ctx context.Context, modulePath string) (Release, error) {
	f, err := m.openAnswer(ctx, Target{Path: modulePath, Kind: Latest})
	if err != nil {
		return Release{}, err
	}
	return Release{f.Version, f.Facts}, f.Close()
}

// openAnswer gives @latest or a query.
func (m *Mirror) openAnswer(ctx context.Context, t Target) (*File, error) {
	if err := m.sourced(ctx, t.Path); err != nil {
		return nil, err
	}
	if isCachedOnly(ctx) || m.island(t.Path) {
		return m.storedAnswer(ctx, t)
	}
	a, tier, stale, err := m.answer(ctx, t)
	if err != nil {
		return nil, err
	}
	f := a.latest.Load()
	if f == nil {
		if f, err = m.answered(ctx, t, a); err != nil {
			return nil, err
		}
		if t.Kind == Latest { // a query's facts are asked for anew each time
			a.latest.Store(f)
		}
	}
	f = open(f, tier)
	f.Stale, f.Age = stale, m.age(a)
	return f, nil
}

// answered makes a template of @latest or a query.
func (m *Mirror) answered(ctx context.Context, t Target, a *answer) (*File, error) {
	version, err := checkInfo(a.body, t.Path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", t, err)
	}
	v := module.Version{Path: t.Path, Version: version}
	if err := m.held(v); err != nil {
		return nil, err
	}
	if t.Kind == Latest {
		m.learnUntagged(ctx, v)
	}
	f := &File{Body: a.body, ContentType: contentTypes[t.Kind], Version: version, Facts: m.dated(ctx, v, m.Facts(ctx, t.Path, version))}
	if f.Facts.Published.IsZero() {
		f.Facts.Published = published(a.body)
	}
	return f, finish(f, t.Kind)
}

// storedAnswer is @latest of an island: its highest stored release, or else version.
func (m *Mirror) storedAnswer(ctx context.Context, t Target) (*File, error) {
	if t.Kind != Latest {
		return nil, notThere(t)
	}
	body, err := m.storedList(ctx, t.Path)
	if err != nil {
		return nil, err
	}
	best := ""
	for v := range strings.FieldsSeq(string(m.released(t.Path, body))) { // ascending
		if best == "" || semver.Prerelease(v) == "" || semver.Prerelease(best) != "" {
			best = v
		}
	}
	if best == "" {
		return nil, notThere(t)
	}
	return m.openFile(ctx, Target{Path: t.Path, Version: best, Kind: Info})
}

// answer gives something that may change as fresh as the rules want it.
func (m *Mirror) answer(ctx context.Context, t Target) (a *answer, tier string, stale bool, err error) {
	if m.underCodeHost(t.Path) {
		return nil, "", false, notThere(t)
	}
	if a, tier = m.answers.get(t), "memory"; a == nil {
		if a, tier = m.lastKnown(ctx, t), "disk"; a != nil {
			m.answers.put(t, a)
		}
	}
	work := func(ctx context.Context) (any, error) { return m.renew(ctx, t) }
	if a != nil {
		age := m.freshness(t, a)
		switch {
		case a.missing && age < missingTTL(t):
			m.metrics.cache.WithLabelValues(tier, "miss").Inc()
			return nil, tier, false, notThere(t)
		case a.missing:
		case age < ttlFresh:
			m.metrics.cache.WithLabelValues(tier, "hit").Inc()
			return a, tier, false, nil
		case age < ttlServed && t.Kind != Query:
			m.launch(flightKey(t), m.cfg.FetchTimeout, work) // nobody waits for it
			m.metrics.cache.WithLabelValues(tier, "hit").Inc()
			return a, tier, false, nil
		}
	}
	v, err := m.flight(ctx, t, work)
	switch {
	case err == nil:
		m.metrics.cache.WithLabelValues("upstream", "hit").Inc()
		return v.(*answer), "upstream", false, nil
	case errors.Is(err, fs.ErrNotExist):
		m.metrics.cache.WithLabelValues("upstream", "miss").Inc()
		return nil, "", false, err
	case a != nil && !a.missing && t.Kind != Query && m.age(a) < ttlStale && ctx.Err() == nil:
		// Only trouble allows an old answer.
		m.metrics.cache.WithLabelValues(tier, "stale").Inc()
		m.log.LogAttrs(ctx, slog.LevelWarn, "old answer served", slog.String("target", t.String()),
			slog.Duration("age", m.age(a)), slog.Any("err", err))
		return a, tier, true, nil
	}
	m.metrics.cache.WithLabelValues("upstream", "error").Inc()
	return nil, "", false, err
}

func missingTTL(t Target) time.Duration {
	if t.Kind == List {
		return ttlNoModule
	}
	return ttlMissing
}

// renew asks upstream and keeps what it says.
func (m *Mirror) renew(ctx context.Context, t Target) (*answer, error) {
	leave, err := m.laneOf(t).enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if m.fromGit(t.Path) {
		return m.renewPrivate(ctx, t)
	}
	limit, check := int64(maxInfo), func(b []byte) error { _, err := checkInfo(b, t.Path); return err }
	if t.Kind == List {
		limit, check = maxList, func(b []byte) error { _, err := cleanList(b, t.Path); return err }
	}
	body, err := m.upOf(t.Path).Get(ctx, t.upstreamPath(), limit, check)
	if errors.Is(err, upstream.ErrNotFound) {
		return m.gone(ctx, t)
	}
	if err != nil {
		return nil, err
	}
	if t.Kind == List {
		if body, err = cleanList(body, t.Path); err != nil {
			return nil, err
		}
	}
	return m.renewed(ctx, t, body), nil
}

// renewed keeps an answer that was just given.
func (m *Mirror) renewed(ctx context.Context, t Target, body []byte) *answer {
	if t.Kind != List {
		m.moved(ctx, t.Path, body)
	}
	a := &answer{at: m.now(), body: body}
	m.answers.put(t, a)
	if t.Kind == Query || m.passing != nil {
		return a
	}
	if err := m.remember(ctx, t, a); err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "answer not kept on disk", slog.String("target", t.String()), slog.Any("err", err))
	}
	return a
}

// gone keeps that nothing is there; of a module with stored versions these stay listed.
func (m *Mirror) gone(ctx context.Context, t Target) (*answer, error) {
	if t.Kind == List {
		body, err := m.storedList(ctx, t.Path)
		if err != nil {
			return nil, err
		}
		if len(body) > 0 {
			m.log.LogAttrs(m.ctx, slog.LevelWarn, "module is gone upstream; stored versions are listed", slog.String("module", t.Path))
			a := &answer{at: m.now(), body: body}
			m.answers.put(t, a)
			return a, nil
		}
	}
	m.answers.put(t, &answer{at: m.now(), missing: true})
	return nil, notThere(t)
}

// Limits of a list, beside its bytes: each version is judged, with facts, in
// one call. The longest list that is known, golang.org/toolchain's, has some 10,000.
const (
	maxLines    = 100_000
	maxVersions = 15_000
)

// cleanList takes the canonical tagged versions of the path, sorted, once
// each. A body with none of them but with other text is no list.
func cleanList(b []byte, modulePath string) ([]byte, error) {
	if n := bytes.Count(b, []byte("\n")); n > maxLines {
		return nil, fmt.Errorf("it has %d lines, more than %d", n, maxLines)
	}
	versions := map[string]bool{}
	other := false
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || versions[string(fields[0])] {
			continue
		}
		v := string(fields[0]) // a second field may be the time
		if module.CanonicalVersion(v) != v || module.Check(modulePath, v) != nil {
			other = other || !semver.IsValid(v)
			continue
		}
		if !module.IsPseudoVersion(v) {
			versions[v] = true
		}
	}
	switch {
	case other && len(versions) == 0:
		return nil, errors.New("it is not a list of versions")
	case len(versions) > maxVersions:
		return nil, fmt.Errorf("it has %d versions, more than %d", len(versions), maxVersions)
	}
	return joinVersions(slices.Collect(maps.Keys(versions))), nil
}

func joinVersions(versions []string) []byte {
	semver.Sort(versions)
	var b bytes.Buffer
	for _, v := range slices.Compact(versions) {
		b.WriteString(v)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// storedList lists versions whose .info is stored: those that a client can choose.
func (m *Mirror) storedList(ctx context.Context, modulePath string) ([]byte, error) {
	esc, err := module.EscapePath(modulePath)
	if err != nil {
		return nil, err
	}
	names, err := m.storeOf(modulePath).Names(ctx, esc+"/@v")
	if err != nil {
		return nil, fmt.Errorf("listing %s in the store: %w", modulePath, err)
	}
	var versions []string
	for _, n := range names {
		e, ok := strings.CutSuffix(n, ".info")
		v, err := module.UnescapeVersion(e)
		if ok && err == nil && !module.IsPseudoVersion(v) {
			versions = append(versions, v)
		}
	}
	return joinVersions(versions), nil
}

// rewriteList keeps @v/list true to the store, for who reads it as a file://
// GOPROXY. It looks again after it wrote: who writes last, of flights and
// gateways that add versions at once, has then seen all of them.
func (m *Mirror) rewriteList(ctx context.Context, modulePath string) error {
	body, err := m.storedList(ctx, modulePath)
	for err == nil {
		err = m.storeOf(modulePath).Keep(ctx, Target{Path: modulePath, Kind: List}.upstreamPath(), body)
		before := body
		if err == nil {
			body, err = m.storedList(ctx, modulePath)
		}
		if bytes.Equal(before, body) {
			break
		}
	}
	return err
}

// remember keeps a list or @latest for times of trouble, restarts included.
func (m *Mirror) remember(ctx context.Context, t Target, a *answer) error {
	body := append(a.at.UTC().AppendFormat(nil, time.RFC3339Nano), '\n')
	return m.storeOf(t.Path).Replace(ctx, path.Join(knownFolder, t.upstreamPath()), append(body, a.body...))
}

// lastKnown is what remember kept, or nil.
func (m *Mirror) lastKnown(ctx context.Context, t Target) *answer {
	if t.Kind == Query {
		return nil
	}
	b, err := m.storeOf(t.Path).Read(ctx, path.Join(knownFolder, t.upstreamPath()), maxList+64)
	if err != nil {
		return nil
	}
	line, body, _ := bytes.Cut(b, []byte("\n"))
	at, err := time.Parse(time.RFC3339Nano, string(line))
	if err != nil {
		return nil // none of ours: asked for again
	}
	return &answer{at: at, body: body}
}
