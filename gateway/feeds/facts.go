package feeds

import (
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// Facts are what the feeds say of one version. Each has a state: OK, Missing, Stale or Off.
type Facts struct {
	VulnsState, MalwareState, PopularityState, LookalikeState, ScorecardState string

	// Vulns are the vulnerabilities of the module version by id, AsOf when the database was last changed.
	Vulns map[string]Vuln
	AsOf  time.Time
	// Malware is none, suspected or listed.
	Malware string
	// Popularity is 0 to 5 by powers of ten of importers; Scorecard 0 to 10, -1 unknown.
	Popularity, Scorecard int
	// LookalikeKind is none, org_swap, edit1, edit2 or homoglyph, LookalikeOf the popular name.
	LookalikeOf, LookalikeKind string
}

// Vuln is one vulnerability of a version.
type Vuln struct {
	Severity int    // 1 low to 4 critical
	Fixed    string // first version without it; empty: none
	Kind     string // how far the database looked at it: reviewed, unreviewed, or empty
}

// A Module is what the feeds say of one module, at one time.
type Module struct {
	// Snapshots are the feeds that were looked at: name, hash of the content, and when that was found (RFC 3339, UTC).
	Snapshots []string

	path           string
	vulns, malware *records
	facts          Facts // those that all versions share
}

// Module looks a module up. A name of our own imitates nobody: private tells that it is one.
func (f *Feeds) Module(path string, private bool) Module {
	m := Module{path: path, facts: Facts{
		VulnsState: Off, MalwareState: Off, PopularityState: Off, LookalikeState: Off, ScorecardState: Off,
		Malware: "none", Scorecard: -1, LookalikeKind: "none",
	}}
	if f == nil {
		return m
	}
	now := f.now()
	var label string
	m.vulns, label, m.facts.VulnsState = f.vulns.get(now, f.cfg.MaxAge)
	m.note(label)
	if m.vulns != nil {
		m.facts.AsOf = m.vulns.modified
	}
	m.malware, label, m.facts.MalwareState = f.malware.get(now, f.cfg.MaxAge)
	m.note(label)
	importers, label, state := f.popularity.get(now, f.cfg.MaxAge)
	m.note(label)
	m.facts.PopularityState, m.facts.LookalikeState = state, state
	if importers != nil {
		m.facts.Popularity = bucket(importers.numbers[path])
		if !private {
			m.facts.LookalikeOf, m.facts.LookalikeKind = importers.popular.imitates(path)
		}
	}
	scores, label, state := f.scorecard.get(now, f.cfg.MaxAge)
	m.note(label)
	m.facts.ScorecardState = state
	if scores == nil {
		return m
	}
	if score, known := scores.numbers[path]; known {
		m.facts.Scorecard = min(score, 10)
	} else if state == OK {
		m.facts.ScorecardState = Missing
	}
	return m
}

func (m *Module) note(label string) {
	if label != "" {
		m.Snapshots = append(m.Snapshots, label)
	}
}

// Facts are those of one version.
func (m Module) Facts(version string) Facts {
	facts := m.facts
	for _, at := range placesOf(m.path, version) {
		if m.vulns != nil {
			for _, r := range m.vulns.modules[at.path] {
				if fixed, hit := r.hits(at.version); hit {
					facts.add(r, fixed)
				}
			}
		}
		if m.malware == nil {
			continue
		}
		for _, r := range m.malware.modules[at.path] {
			if _, hit := r.hits(at.version); hit && (!r.suspected || facts.Malware == "none") {
				facts.Malware = map[bool]string{true: "suspected", false: "listed"}[r.suspected]
			}
		}
	}
	return facts
}

// add notes a vulnerability. Of two records under one id the worse counts, and the later fix.
func (f *Facts) add(r *record, fixed string) {
	if f.Vulns == nil {
		f.Vulns = map[string]Vuln{}
	}
	v := Vuln{Severity: r.severity, Fixed: fixed, Kind: r.kind}
	if have, twice := f.Vulns[r.id]; twice {
		v.Severity = max(v.Severity, have.Severity)
		if semver.Compare(have.Fixed, v.Fixed) > 0 {
			v.Fixed = have.Fixed
		}
	}
	f.Vulns[r.id] = v
}

type place struct{ path, version string }

// placesOf is where records name a version. A toolchain, v0.0.1-go1.22.3.linux-amd64, has those of the standard library
// and of the go command, under the Go release.
func placesOf(path, version string) []place {
	release, ok := strings.CutPrefix(version, "v0.0.1-go")
	if path != "golang.org/toolchain" || !ok {
		return []place{{path, version}}
	}
	if i := strings.LastIndexByte(release, '.'); i > 0 { // the platform
		release = release[:i]
	}
	for _, pre := range []string{"rc", "beta"} { // 1.23rc1 is 1.23.0-rc.1 in the database
		if minor, n, found := strings.Cut(release, pre); found {
			release = minor + ".0-" + pre + "." + n
		}
	}
	return []place{{"stdlib", "v" + release}, {"toolchain", "v" + release}}
}
