package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/feeds"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

func library(i int) string {
	return fmt.Sprintf("module example.com/lib%d@v1.0.0\n-- go.mod --\nmodule example.com/lib%d\n", i, i)
}

// line is one line of the public index (https://index.golang.org).
type line struct {
	Path, Version string
	Timestamp     time.Time
}

func lines(tb testing.TB, body string) (all []line) {
	tb.Helper()
	for text := range strings.Lines(body) {
		var l line
		must(tb, json.Unmarshal([]byte(text), &l))
		all = append(all, l)
	}
	return all
}

func TestC51Index(t *testing.T) {
	b := newBench(t, library(0), library(1), library(2), library(3))
	for i := range 4 {
		if w := b.ask("GET", fmt.Sprintf("/example.com/lib%d/@v/v1.0.0.mod", i), b.bearer()); w.Code != 200 {
			t.Fatalf("fetching: %d %s", w.Code, w.Body)
		}
	}
	w := b.ask("GET", "/index", b.bearer())
	all := lines(t, w.Body.String())
	if w.Code != 200 || len(all) != 4 || w.Header().Get("Content-Type") != "application/x-ndjson" || w.Header().Get("Cache-Control") != "private, no-cache" {
		t.Fatalf("index: %d %v\n%s", w.Code, w.Header(), w.Body)
	}
	if all[1].Path != "example.com/lib1" || all[1].Version != "v1.0.0" || !all[1].Timestamp.After(all[0].Timestamp) {
		t.Errorf("entries %+v are not in the order in which they came", all)
	}
	since := url.QueryEscape(all[2].Timestamp.Format(time.RFC3339Nano))
	for _, tt := range []struct {
		name, query string
		status      int
		want        []line
	}{
		{"since is inclusive", "?since=" + since, 200, all[2:]},
		{"limit", "?limit=2", 200, all[:2]},
		{"both", "?since=" + since + "&limit=1", 200, all[2:3]},
		{"limit beyond the most", "?limit=99999", 200, all},
		{"nothing since", "?since=2999-01-01T00:00:00Z", 200, nil},
		{"long ago", "?since=0001-01-01T00:00:00Z", 200, all},
		{"no time", "?since=yesterday", 400, nil},
		{"no number", "?limit=many", 400, nil},
		{"limit of nothing", "?limit=0", 400, nil},
		{"limit below", "?limit=-1", 400, nil},
		{"no query", "?%zz", 400, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := b.ask("GET", "/index"+tt.query, b.bearer())
			if w.Code != tt.status {
				t.Fatalf("%s: %d, want %d: %s", tt.query, w.Code, tt.status, w.Body)
			}
			if tt.status != 200 {
				return
			}
			if diff := cmp.Diff(tt.want, lines(t, w.Body.String())); diff != "" {
				t.Errorf("index%s (-want +got):\n%s", tt.query, diff)
			}
		})
	}
	if w := b.ask("HEAD", "/index", b.bearer()); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("C8 HEAD: %d, %d bytes", w.Code, w.Body.Len())
	}
	if w := b.ask("POST", "/index", b.bearer()); w.Code != 405 || w.Header().Get("Allow") == "" {
		t.Errorf("C8 POST: %d", w.Code)
	}
	if w := b.ask("GET", "/index"); w.Code != 401 {
		t.Errorf("without a credential: %d", w.Code)
	}
	if w := b.ask("GET", "/index/", b.bearer()); w.Code != 400 && w.Code != 404 {
		t.Errorf("with a slash: %d", w.Code)
	}
	records := map[string]int{}
	for _, r := range b.records(t) {
		if r.Action == "index" && r.Kind == audit.KindDecision {
			records[fmt.Sprintf("%s %d", r.Decision.Effect, r.Decision.Status)]++
		}
	}
	if diff := cmp.Diff(map[string]int{"allow 200": 8, "deny 400": 5, "deny 401": 1, "deny 405": 1}, records); diff != "" {
		t.Errorf("audit records of /index (-want +got):\n%s", diff)
	}
}

// Who may not list a module does not see it in the index, and what is hidden counts for no limit.
func TestC51IndexIsFilteredForTheCaller(t *testing.T) {
	b := newBench(t, library(0), library(1), library(2))
	for i := range 3 {
		b.ask("GET", fmt.Sprintf("/example.com/lib%d/@v/v1.0.0.mod", i), b.bearer())
	}
	draft, err := b.identity.Draft(t.Context(), identity.TokenRequest{
		Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: "bob"},
		Scope: identity.Scope{Modules: []string{"example.com/lib2"}, Actions: []string{"discover"}},
	})
	must(t, err)
	narrow, err := b.identity.Issue(t.Context(), draft)
	must(t, err)
	w := b.ask("GET", "/index?limit=1", "Authorization: Bearer "+narrow)
	if all := lines(t, w.Body.String()); len(all) != 1 || all[0].Path != "example.com/lib2" {
		t.Errorf("a narrow token sees %v", all)
	}
	var withheld int
	for _, r := range b.records(t) {
		if r.Action == "index" && r.Subject.ID == "bob" {
			withheld = r.Decision.Withheld
		}
	}
	if withheld != 2 {
		t.Errorf("the record says that %d were withheld, want 2", withheld)
	}
	// More than a page is hidden before the next one that is not.
	_, err = b.db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 4500)
		INSERT INTO mirror_versions (path, version, seen, indexed, published, origin_vcs, origin_url, origin, moved_to, mod_hash, zip_hash)
		SELECT 'example.com/' || CASE WHEN i = 4500 THEN 'lib2' ELSE 'lib0' END, 'v1.1.' || i, 0, 4000000000000000 + i, 0, '', '', '', '', '', '' FROM n`)
	must(t, err)
	w = b.ask("GET", "/index?limit=2", "Authorization: Bearer "+narrow)
	if all := lines(t, w.Body.String()); len(all) != 2 || all[1].Version != "v1.1.4500" {
		t.Errorf("behind what is hidden a narrow token sees %v", all)
	}
}

func TestOwnSumdbThroughTheGateway(t *testing.T) {
	b := newBench(t, hello)
	key, err := b.mirror.OwnSumdb()
	must(t, err)
	name, _, _ := strings.Cut(key, "+")
	own := "/sumdb/" + name
	draft, err := b.identity.Draft(t.Context(), identity.TokenRequest{
		Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: "bob"},
		Scope: identity.Scope{Modules: []string{"example.com/other"}, Actions: []string{"discover", "metadata"}},
	})
	must(t, err)
	narrow, err := b.identity.Issue(t.Context(), draft)
	must(t, err)
	lookup := own + "/lookup/example.com/hello@v1.0.0"
	for _, tt := range []struct {
		name, target, bearer string
		status               int
		code, cache          string
	}{
		{"C46 judged before the lookup", lookup, "Authorization: Bearer " + narrow, 403, "SCOPE", "no-store"},
		{"C41 lookup", lookup, b.bearer(), 200, "", "private, no-cache"},
		{"C40 supported", own + "/supported", b.bearer(), 200, "", ""},
		{"C43 latest", own + "/latest", b.bearer(), 200, "", "private, no-cache"},
		{"C42 tile", own + "/tile/8/0/000.p/1", b.bearer(), 200, "", "private, max-age=86400, immutable"},
		{"C42 records in bulk", own + "/tile/8/data/000.p/1", b.bearer(), 403, "SUMDB-AUDITORS-ONLY", "no-store"},
		{"C42 needs a credential", own + "/latest", "X-None: 1", 401, "CREDENTIAL-MISSING", "no-store"},
		{"C44 not listed", own + "/lookup/example.com/hello@v1.0.7", b.bearer(), 404, "NOT-FOUND", "no-store"},
		{"T35 name beyond ours", own + "x/latest", b.bearer(), 403, "SUMDB-NOT-ALLOWED", "no-store"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := b.upstream.Count("*lookup*")
			w := b.ask("GET", tt.target, tt.bearer)
			if w.Code != tt.status || w.Header().Get("Headgate-Code") != tt.code || tt.cache != "" && w.Header().Get("Cache-Control") != tt.cache {
				t.Errorf("%s: %d %q %q: %s", tt.target, w.Code, w.Header().Get("Headgate-Code"), w.Header().Get("Cache-Control"), w.Body)
			}
			if tt.code == "SCOPE" && b.upstream.Count("*lookup*") != before {
				t.Error("a refused lookup asked the public database")
			}
		})
	}
}

func TestResourceOfFacts(t *testing.T) {
	const today = 1000
	name := policy.NewName("example.com/m", "public")
	at := func(day int64) time.Time { return time.Unix(day*24*60*60+7, 0) }
	for _, tt := range []struct {
		name  string
		facts mirror.Facts
		want  func(*policy.Facts)
	}{
		{"nothing known", mirror.Facts{Sumdb: "verified"}, func(*policy.Facts) {}},
		{"age off", mirror.Facts{Age: "off", FirstSeen: at(990)}, func(f *policy.Facts) { f.Known.Age = "off" }},
		{"age missing is young", mirror.Facts{Age: "missing"}, func(f *policy.Facts) { f.Known.Age = "missing" }},
		{"age", mirror.Facts{Age: "ok", FirstSeen: at(993)}, func(f *policy.Facts) { f.Known.Age, f.FirstSeenDay, f.AgeDays = "ok", 993, 7 }},
		{"old ages saturate", mirror.Facts{Age: "ok", FirstSeen: at(5)}, func(f *policy.Facts) { f.Known.Age, f.FirstSeenDay, f.AgeDays = "ok", 5, 90 }},
		{"seen tomorrow", mirror.Facts{Age: "ok", FirstSeen: at(1001)}, func(f *policy.Facts) { f.Known.Age, f.FirstSeenDay = "ok", 1001 }},
		{"retracted", mirror.Facts{Retracted: mirror.Flag{State: "yes", Text: "leaks"}, Deprecated: mirror.Flag{State: "no"}}, func(f *policy.Facts) {
			f.Retracted, f.Deprecated.State = policy.Flag{State: "yes", Text: "leaks"}, "no"
			f.Known.Retracted, f.Known.Deprecated = "ok", "ok"
		}},
		{"retraction unreadable", mirror.Facts{Retracted: mirror.Flag{State: "unknown"}}, func(f *policy.Facts) { f.Known.Retracted = "missing" }},
		{"origin moved", mirror.Facts{OriginDrift: "moved", Origin: mirror.Origin{VCS: "git", URL: "u", Commit: "c"}}, func(f *policy.Facts) {
			f.OriginDrift, f.Known.Origin, f.Provenance = "moved", "ok", &policy.Origin{VCS: "git", Repo: "u", Commit: "c"}
		}},
		{"licences", mirror.Facts{Licences: mirror.Licences{Status: "found", IDs: []string{"MIT"}}}, func(f *policy.Facts) {
			f.Licences, f.Known.Licences = policy.Licences{IDs: map[string]bool{"MIT": true}, Status: "found"}, "ok"
		}},
		{"no zip looked at", mirror.Facts{Licences: mirror.Licences{Status: "missing"}}, func(f *policy.Facts) { f.Known.Licences = "missing" }},
		{"age stale", mirror.Facts{Age: "stale"}, func(f *policy.Facts) { f.Known.Age = "stale" }},
		{"origin unknown", mirror.Facts{OriginDrift: "unknown"}, func(f *policy.Facts) { f.Known.Origin = "missing" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := policy.NewFacts("v1.0.0", "release", 1)
			want.Sumdb, want.Known.Sumdb = tt.facts.Sumdb, "ok"
			tt.want(&want)
			tt.facts.Kind, tt.facts.Major = "release", 1
			got := resourceOf(name, mirror.Release{Version: "v1.0.0", Facts: tt.facts}, (*feeds.Feeds)(nil).Module(name.Path, false).Facts("v1.0.0"), today)
			if diff := cmp.Diff(want, got.Facts); diff != "" {
				t.Errorf("resourceOf (-want +got):\n%s", diff)
			}
		})
	}
}

// C51: 100 publishers at once and a follower that reads on from its last line: it misses nothing and sees nothing twice.
func TestC51FollowerMissesNothing(t *testing.T) {
	const publishers, each = 100, 20
	b := newBench(t)
	// What is published comes in by the database alone, as from other nodes.
	publish := func(path, version string) error {
		tx, err := b.db.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		var place int64
		err = tx.QueryRow(`UPDATE mirror_index_clock SET last = CASE WHEN last < $1 THEN $1 ELSE last + 1 END WHERE one = 1 RETURNING last`,
			time.Now().UnixMicro()).Scan(&place)
		if err == nil {
			_, err = tx.Exec(`INSERT INTO mirror_versions (path, version, seen, indexed, published, origin_vcs, origin_url, origin, moved_to, mod_hash, zip_hash)
				VALUES ($1, $2, 0, $3, 0, '', '', '', '', '', '')`, path, version, place)
		}
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	var all sync.WaitGroup
	for p := range publishers {
		all.Go(func() {
			for i := range each {
				if err := publish(fmt.Sprintf("example.com/p%d", p), fmt.Sprintf("v1.%d.0", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	over := make(chan struct{})
	go func() { all.Wait(); close(over) }()
	seen := map[string]bool{}
	since := ""
	var last time.Time
	for done := false; !done; {
		select {
		case <-over:
			done = true // one last look
		default:
		}
		for more := true; more; {
			w := b.ask("GET", "/index?limit=77&since="+url.QueryEscape(since), b.bearer())
			if w.Code != 200 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			page := lines(t, w.Body.String())
			more = len(page) == 77
			for _, l := range page {
				key := l.Path + "@" + l.Version
				if l.Timestamp.Equal(last) && seen[key] {
					continue // since is inclusive: the last line comes again
				}
				if seen[key] || !l.Timestamp.After(last) {
					t.Fatalf("%s at %v comes again, or behind %v", key, l.Timestamp, last)
				}
				seen[key], last = true, l.Timestamp
			}
			since = last.Format(time.RFC3339Nano)
		}
	}
	if len(seen) != publishers*each {
		t.Errorf("the follower saw %d entries, want %d", len(seen), publishers*each)
	}
}

// A bad query is refused with a text that says so; only an auditor reads the records of our own database in bulk.
func TestIndexQueryText(t *testing.T) {
	b := newBench(t)
	for _, query := range []string{"?since=yesterday", "?since=2026-13-01T00:00:00Z", "?limit=x", "?limit=0"} {
		w := b.ask("GET", "/index"+query, b.bearer())
		if w.Code != 400 || !strings.Contains(w.Body.String(), "RFC 3339") || strings.Contains(w.Body.String(), "yesterday") {
			t.Errorf("%s: %d\n%s", query, w.Code, w.Body)
		}
	}
}

func TestC42AuditorReadsRecordsInBulk(t *testing.T) {
	b := newBench(t, hello)
	key, err := b.mirror.OwnSumdb()
	must(t, err)
	name, _, _ := strings.Cut(key, "+")
	if w := b.ask("GET", "/sumdb/"+name+"/lookup/example.com/hello@v1.0.0", b.bearer()); w.Code != 200 {
		t.Fatalf("lookup: %d %s", w.Code, w.Body)
	}
	draft, err := b.identity.Draft(t.Context(), identity.TokenRequest{
		Class: identity.ClassAdmin, Subject: identity.Subject{Type: identity.Person, ID: "eve"}, Scope: identity.Scope{Actions: []string{identity.ActionAdmin}},
	})
	must(t, err)
	auditor, err := b.identity.Issue(t.Context(), draft)
	must(t, err)
	tile := "/sumdb/" + name + "/tile/8/data/000.p/1"
	for _, tt := range []struct {
		bearer, code string
		status       int
	}{
		{b.bearer(), "SUMDB-AUDITORS-ONLY", 403},
		{"Authorization: Bearer " + auditor, "", 200},
		{b.bearer(), "SUMDB-AUDITORS-ONLY", 403}, // nothing of it is kept for others
	} {
		w := b.ask("GET", tile, tt.bearer)
		if w.Code != tt.status || w.Header().Get("Headgate-Code") != tt.code || (w.Code == 200) != strings.Contains(w.Body.String(), "example.com/hello v1.0.0 h1:") {
			t.Errorf("%d %q: %s; want %d", w.Code, w.Header().Get("Headgate-Code"), w.Body, tt.status)
		}
	}
}

// BenchmarkIndex pages through 100,000 entries.
func BenchmarkIndex(b *testing.B) {
	const n = 100_000
	bench := newBench(b)
	_, err := bench.db.Exec(fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
		INSERT INTO mirror_versions (path, version, seen, indexed, published, origin_vcs, origin_url, origin, moved_to, mod_hash, zip_hash)
		SELECT 'example.com/m' || (i %% 5000), 'v1.' || i || '.0', 0, 1700000000000000 + i, 0, '', '', '', '', '', '' FROM n`, n))
	must(b, err)
	for b.Loop() {
		since, got := "", 0
		for page := mirror.MaxIndex; page == mirror.MaxIndex; {
			w := bench.ask("GET", "/index?since="+url.QueryEscape(since), bench.bearer())
			all := lines(b, w.Body.String())
			page = len(all)
			got += page
			if page > 0 {
				since = all[page-1].Timestamp.Add(time.Microsecond).Format(time.RFC3339Nano)
			}
		}
		if got != n {
			b.Fatalf("%d entries, want %d", got, n)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
