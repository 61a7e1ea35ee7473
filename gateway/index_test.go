package gateway

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/audit"
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
			got := resourceOf(name, mirror.Release{Version: "v1.0.0", Facts: tt.facts}, today)
			if diff := cmp.Diff(want, got.Facts); diff != "" {
				t.Errorf("resourceOf (-want +got):\n%s", diff)
			}
		})
	}
}
