package feeds

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	gocvss30 "github.com/pandatix/go-cvss/30"
	gocvss31 "github.com/pandatix/go-cvss/31"
	gocvss40 "github.com/pandatix/go-cvss/40"
	"golang.org/x/mod/semver"
)

// severities are the words of OSV databases and of this package, as policy counts them.
var severities = map[string]int{"low": 1, "medium": 2, "moderate": 2, "high": 3, "critical": 4}

// osv is what is read of a record (https://ossf.github.io/osv-schema/).
type osv struct {
	ID               string     `json:"id"`
	Modified         time.Time  `json:"modified"`
	Withdrawn        *time.Time `json:"withdrawn"`
	Severity         []score    `json:"severity"`
	Affected         []affected `json:"affected"`
	DatabaseSpecific specific   `json:"database_specific"`
}

type specific struct {
	Severity     string `json:"severity"`      // LOW, MODERATE, HIGH, CRITICAL
	ReviewStatus string `json:"review_status"` // REVIEWED, UNREVIEWED
	Suspected    bool   `json:"suspected"`     // of malware: not proved yet
}

type score struct {
	Type  string `json:"type"`  // CVSS_V3, CVSS_V4
	Score string `json:"score"` // vector
}

type affected struct {
	Package struct {
		Name      string `json:"name"`
		Ecosystem string `json:"ecosystem"`
	} `json:"package"`
	Severity []score `json:"severity"`
	Ranges   []struct {
		Type   string  `json:"type"`
		Events []event `json:"events"`
	} `json:"ranges"`
	Versions []string `json:"versions"`
}

type event struct {
	Introduced   string `json:"introduced"`
	Fixed        string `json:"fixed"`
	LastAffected string `json:"last_affected"`
}

// A record is one vulnerability, or one piece of malware, in one module.
type record struct {
	id        string
	severity  int
	kind      string // review status
	suspected bool
	ranges    []span
	versions  []string // beside the ranges
	all       bool     // neither ranges nor versions: every version
}

// A span is versions from low (inclusive; "" is the first) to high (exclusive, or inclusive where last is set; "" is no end).
type span struct {
	low, high string
	last      bool
}

// parseRecord reads one OSV record into those of its modules; withdrawn ones and other ecosystems have none.
func parseRecord(content []byte, unscored int) (map[string]*record, error) {
	var o osv
	if err := json.Unmarshal(content, &o); err != nil {
		return nil, err
	}
	if o.ID == "" {
		return nil, errors.New("it has no id")
	}
	found := map[string]*record{}
	if o.Withdrawn != nil {
		return found, nil
	}
	for _, a := range o.Affected {
		if a.Package.Ecosystem != "Go" || a.Package.Name == "" {
			continue
		}
		r := found[a.Package.Name]
		if r == nil {
			r = &record{id: o.ID, kind: strings.ToLower(o.DatabaseSpecific.ReviewStatus), suspected: o.DatabaseSpecific.Suspected}
			r.severity = severityOf(append(a.Severity, o.Severity...), o.DatabaseSpecific.Severity, unscored)
			found[a.Package.Name] = r
		}
		if err := r.add(a); err != nil {
			return nil, fmt.Errorf("module %s: %w", a.Package.Name, err)
		}
	}
	return found, nil
}

func (r *record) add(a affected) error {
	ranged := false
	for _, x := range a.Ranges {
		if x.Type != "SEMVER" && x.Type != "ECOSYSTEM" {
			continue // commits name no version
		}
		spans, err := spansOf(x.Events)
		if err != nil {
			return err
		}
		ranged = true
		r.ranges = append(r.ranges, spans...)
	}
	for _, v := range a.Versions {
		r.versions = append(r.versions, "v"+strings.TrimPrefix(v, "v"))
	}
	r.all = r.all || !ranged && len(a.Versions) == 0
	return nil
}

// spansOf turns events into spans. They may come in any order (OSV schema, "Evaluation").
func spansOf(events []event) ([]span, error) {
	type mark struct {
		version string // "" is before all
		kind    int    // 0 ends before it, 1 begins, 2 ends with it
	}
	var marks []mark
	for _, e := range events {
		for kind, v := range []string{e.Fixed, e.Introduced, e.LastAffected} {
			if v == "" {
				continue
			}
			m := mark{"v" + strings.TrimPrefix(v, "v"), kind}
			if v == "0" {
				m.version = ""
			} else if !semver.IsValid(m.version) {
				return nil, fmt.Errorf("event names %q, which is no version", v)
			}
			marks = append(marks, m)
		}
	}
	slices.SortStableFunc(marks, func(a, b mark) int {
		if c := semver.Compare(a.version, b.version); c != 0 { // "" is no version, and the least
			return c
		}
		return a.kind - b.kind
	})
	var spans []span
	open := false
	for _, m := range marks {
		switch {
		case m.kind == 1 && !open:
			spans, open = append(spans, span{low: m.version}), true
		case m.kind != 1 && open:
			spans[len(spans)-1].high, spans[len(spans)-1].last, open = m.version, m.kind == 2, false
		}
	}
	return spans, nil
}

func (s span) holds(version string) bool {
	if semver.Compare(s.low, version) > 0 {
		return false
	}
	c := semver.Compare(version, s.high)
	return s.high == "" || c < 0 || s.last && c == 0
}

// hits tells whether a version is affected, and names the first later version that is not.
func (r *record) hits(version string) (fixed string, hit bool) {
	for _, s := range r.ranges {
		if !s.holds(version) {
			continue
		}
		hit = true
		if s.high != "" && !s.last && semver.Compare(s.high, fixed) > 0 {
			fixed = s.high
		}
	}
	return fixed, hit || r.all || slices.Contains(r.versions, version)
}

// severityOf is the worst that scores say, else the database's word, else unscored.
func severityOf(scores []score, word string, unscored int) int {
	worst := 0
	for _, s := range scores {
		worst = max(worst, severityOfVector(s.Score))
	}
	if worst == 0 {
		worst = severities[strings.ToLower(word)]
	}
	if worst == 0 {
		worst = unscored
	}
	return worst
}

// severityOfVector rates a CVSS vector as its specification does (CVSS 3.1 section 5, 4.0 section 6); 0 if it is none.
func severityOfVector(vector string) int {
	base := 0.0
	switch {
	case strings.HasPrefix(vector, "CVSS:3.0/"):
		if c, err := gocvss30.ParseVector(vector); err == nil {
			base = c.BaseScore()
		}
	case strings.HasPrefix(vector, "CVSS:3.1/"):
		if c, err := gocvss31.ParseVector(vector); err == nil {
			base = c.BaseScore()
		}
	case strings.HasPrefix(vector, "CVSS:4.0/"):
		if c, err := gocvss40.ParseVector(vector); err == nil {
			base = c.Score()
		}
	}
	switch {
	case base >= 9:
		return 4
	case base >= 7:
		return 3
	case base >= 4:
		return 2
	case base > 0:
		return 1
	}
	return 0
}

// parseArchive reads all records of an archive. A database has them in the folder ID, a collection anywhere.
func parseArchive(a *archive, database bool, unscored int) (map[string][]*record, error) {
	modules := map[string][]*record{}
	for _, f := range a.zip.File {
		if path.Ext(f.Name) != ".json" || database && path.Dir(f.Name) != "ID" {
			continue
		}
		content, err := a.file(f.Name)
		if err != nil {
			return nil, err
		}
		found, err := parseRecord(content, unscored)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", f.Name, err)
		}
		for name, r := range found {
			modules[name] = append(modules[name], r)
		}
	}
	return modules, nil
}
