package gateway

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/feeds"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/policy"
)

// feed gives the bench feeds out of a folder: the records of package feeds, and what the test writes.
func (b *bench) feed(tb testing.TB, files map[string]string) {
	tb.Helper()
	dir := tb.TempDir()
	must(tb, os.CopyFS(filepath.Join(dir, "vulndb"), os.DirFS("feeds/testdata/vulndb")))
	for name, content := range files {
		must(tb, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(tb, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	cfg := feeds.Config{Vulns: filepath.Join(dir, "vulndb")}
	if _, ok := files["malware/m.json"]; ok {
		cfg.Malware = filepath.Join(dir, "malware")
	}
	if _, ok := files["popular.csv"]; ok {
		cfg.Popularity = filepath.Join(dir, "popular.csv")
	}
	f, err := feeds.Open(tb.Context(), cfg, feeds.Options{State: filepath.Join(dir, "state")})
	must(tb, err)
	tb.Cleanup(func() { f.Close() })
	b.feeds = f
}

func version(name, v string) string {
	return "module example.com/" + name + "@" + v + "\n-- go.mod --\nmodule example.com/" + name + "\n-- m.go --\npackage m // " + v + "\n"
}

// The default bundle on what feeds say: hidden from list and latest, refused by name, its .mod still there (P40).
func TestFeedsActInPolicy(t *testing.T) {
	b := newBench(t, version("hello", "v1.0.0"), version("hello", "v1.1.0"), version("hello", "v1.2.0"), version("hello", "v1.3.0"),
		version("evil", "v1.0.4"), version("evil", "v1.0.3"), version("gorila/mux", "v1.0.0"), version("web", "v1.0.0"), version("web", "v1.10.0"), version("calm", "v1.0.0"))
	b.feed(t, map[string]string{
		"malware/m.json": `{"id":"MAL-1","affected":[{"package":{"name":"example.com/evil","ecosystem":"Go"},"versions":["1.0.4"]}]}`,
		"popular.csv":    "module,importers\nexample.com/gorilla/mux,20000\n",
		"vulndb/ID/GO-2026-0009.json": `{"id":"GO-2026-0009","modified":"2026-10-01T10:00:00Z","affected":[{"package":{"name":"example.com/calm","ecosystem":"Go"},
			"ranges":[{"type":"SEMVER","events":[{"introduced":"0"}]}]}]}`,
	})
	for _, tt := range []struct {
		path, code string
		status     int
		says       []string
	}{
		{"/example.com/hello/@v/list", "", 200, []string{"v1.0.0\nv1.2.0\nv1.3.0\n"}},
		{"/example.com/hello/@v/v1.1.0.zip", "VULNERABLE", 403, []string{"VULNERABLE: GO-2026-0001 is of severity critical, fixed in v1.2.0", "works now: v1.2.0"}},
		{"/example.com/hello/@v/v1.1.0.info", "VULNERABLE", 403, []string{"works now: v1.2.0"}},
		{"/example.com/hello/@v/v1.1.0.mod", "", 200, nil},
		{"/example.com/hello/@v/v1.2.0.zip", "", 200, nil},
		{"/example.com/evil/@v/list", "", 200, []string{"v1.0.3\n"}},
		{"/example.com/evil/@v/v1.0.4.zip", "MALWARE", 403, []string{"MALWARE: this version is listed as malware", "works now: v1.0.3"}},
		{"/example.com/evil/@v/v1.0.4.mod", "", 200, nil},
		{"/example.com/evil/@latest", "", 200, []string{"v1.0.3"}},
		{"/example.com/gorila/mux/@v/list", "", 200, nil},
		{"/example.com/gorila/mux/@latest", "LOOKALIKE", 403, []string{"can be mistaken for example.com/gorilla/mux"}},
		{"/example.com/gorila/mux/@v/v1.0.0.zip", "LOOKALIKE", 403, []string{"LOOKALIKE", "example.com/gorila/mux"}},
		{"/example.com/web/@v/v1.0.0.zip", "VULNERABLE", 403, []string{"GO-2026-0002 is of severity high, fixed in v1.10.0", "works now: v1.10.0"}}, // without a score
		{"/example.com/web/@v/v1.10.0.zip", "", 200, nil},
		{"/example.com/calm/@v/v1.0.0.zip", "", 200, nil},
	} {
		w := b.ask("GET", tt.path, b.bearer())
		if w.Code != tt.status || w.Header().Get("Headgate-Code") != tt.code {
			t.Errorf("%s: %d %q, want %d %q\n%s", tt.path, w.Code, w.Header().Get("Headgate-Code"), tt.status, tt.code, w.Body)
		}
		for _, text := range tt.says {
			if !strings.Contains(w.Body.String(), text) {
				t.Errorf("%s does not say %q:\n%s", tt.path, text, w.Body)
			}
		}
		if body := w.Body.String(); w.Code == 403 && (len(body) > 648 || strings.Count(body, "\n") > 8) {
			t.Errorf("%s: refusal of %d bytes, more than a terminal shows:\n%s", tt.path, len(body), body)
		}
	}
	if w := b.ask("GET", "/example.com/calm/@v/v1.0.0.zip", b.bearer()); !strings.Contains(w.Header().Get("Headgate-Warning"), "VULNERABLE") {
		t.Errorf("a known vulnerability without a fix: warning %q", w.Header().Get("Headgate-Warning"))
	}
	records := b.records(t)
	last := records[len(records)-1]
	if !slices.ContainsFunc(last.Eval.Facts, func(id string) bool { return strings.HasPrefix(id, "vulns sha256:") }) {
		t.Errorf("the record names no snapshot of the feed: %+v", last.Eval)
	}
}

// P4: a feed that is configured and cannot be read refuses what its rules would judge, with remedy wait and the fact's name.
func TestP4MissingFeedRefusesWithWait(t *testing.T) {
	b := newBench(t, version("hello", "v1.0.0"))
	f, err := feeds.Open(t.Context(), feeds.Config{Vulns: filepath.Join(t.TempDir(), "away")}, feeds.Options{State: t.TempDir()})
	must(t, err)
	t.Cleanup(func() { f.Close() })
	b.feeds = f
	w := b.ask("GET", "/example.com/hello/@v/v1.0.0.zip", b.bearer())
	if w.Code != 403 || !strings.Contains(w.Body.String(), "waits for: vulns") {
		t.Errorf("%d, want 403 that waits for vulns:\n%s", w.Code, w.Body)
	}
	if w := b.ask("GET", "/example.com/hello/@v/list", b.bearer()); w.Code != 200 || w.Body.Len() > 0 {
		t.Errorf("its list: %d %q, want an empty one", w.Code, w.Body)
	}
	if w := b.ask("GET", "/-/vulndb/index/db.json", b.bearer()); w.Code != 503 {
		t.Errorf("/-/vulndb/ of a database that is away: %d, want 503", w.Code)
	}
}

// govulncheck asks for NAME.json.gz with the user and password of its URL.
func TestVulndb(t *testing.T) {
	b := newBench(t)
	if w := b.ask("GET", "/-/vulndb/index/db.json", b.bearer()); w.Code != 404 {
		t.Errorf("without a database: %d, want 404", w.Code)
	}
	b.feed(t, nil)
	if w := b.ask("GET", "/-/vulndb/index/db.json"); w.Code != 401 {
		t.Errorf("of a stranger: %d, want 401", w.Code)
	}
	if w := b.ask("POST", "/-/vulndb/index/db.json", b.bearer()); w.Code != 405 {
		t.Errorf("POST: %d, want 405", w.Code)
	}
	for _, name := range []string{"ID/none.json", "ID/GO-2026-0001", "ID/", "", "feeds.go", "ID/GO-2026-0001.json.gz.gz"} {
		if w := b.ask("GET", "/-/vulndb/"+name, b.bearer()); w.Code != 404 && w.Code != 400 {
			t.Errorf("%q: %d, want 404", name, w.Code)
		}
	}
	w := b.ask("GET", "/-/vulndb/index/modules.json.gz", b.bearer())
	z, err := gzip.NewReader(w.Body)
	must(t, err)
	content, err := io.ReadAll(z)
	must(t, err)
	var modules []struct{ Path string }
	if err := json.Unmarshal(content, &modules); err != nil || len(modules) != 3 {
		t.Errorf("index/modules.json.gz holds %d modules, %v, want 3", len(modules), err)
	}
	records := b.records(t)
	if last := records[len(records)-1]; last.Action != "vulndb" || last.Subject.ID != "ann" || last.Decision.Effect != "allow" {
		t.Errorf("the last record is %s by %s, %s", last.Action, last.Subject.ID, last.Decision.Effect)
	}
}

// TestNearest proposes a version in place of one that is not fit.
func TestNearest(t *testing.T) {
	for name, tt := range map[string]struct{ version, visible, want string }{
		"next one after it":                 {"v1.2.0", "v1.1.0 v1.2.1 v1.10.0", "v1.2.1"},
		"none after it: highest before":     {"v1.10.0", "v1.2.0 v1.9.0", "v1.9.0"},
		"no prerelease for a release":       {"v1.2.0", "v1.1.0 v1.3.0-rc.1", "v1.1.0"},
		"a prerelease for a prerelease":     {"v1.3.0-rc.1", "v1.2.0 v1.3.0-rc.2", "v1.3.0-rc.2"},
		"a release before a prerelease":     {"v1.3.0", "v1.2.0 v1.2.9-rc.1", "v1.2.0"},
		"no +incompatible for a module":     {"v1.9.0", "v1.8.0 v2.0.0+incompatible", "v1.8.0"},
		"+incompatible for one of its kind": {"v2.0.0+incompatible", "v1.8.0 v2.0.1+incompatible", "v2.0.1+incompatible"},
		"pseudo-version: the next release":  {"v1.2.1-0.20260101000000-abcdefabcdef", "v1.2.0 v1.2.1", "v1.2.1"},
		"nothing":                           {"v1.2.0", "", ""},
		"not itself":                        {"v1.2.0", "v1.2.0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var releases []mirror.Release
			var decisions []policy.Decision
			for _, v := range strings.Fields(tt.visible) {
				releases = append(releases, mirror.Release{Version: v}, mirror.Release{Version: "v9.9.9"})
				decisions = append(decisions, policy.Decision{Visible: true}, policy.Decision{})
			}
			if got := nearest(tt.version, releases, decisions); got != tt.want {
				t.Errorf("nearest(%s, %s) = %q, want %q", tt.version, tt.visible, got, tt.want)
			}
		})
	}
}

// P39: what a hidden newest version retracts is not offered, also where no rule hides what is retracted.
func TestHideRetracted(t *testing.T) {
	retracted := mirror.Facts{Retracted: mirror.Flag{State: "yes"}}
	releases := []mirror.Release{{Version: "v1.0.0"}, {Version: "v1.1.0", Facts: retracted}, {Version: "v1.2.0"}, {Version: "v1.3.0-rc.1"}}
	for name, tt := range map[string]struct {
		hidden string
		want   string
	}{
		"newest is hidden":        {"v1.2.0", "v1.0.0 v1.3.0-rc.1"},
		"newest is not":           {"v1.0.0", "v1.1.0 v1.2.0 v1.3.0-rc.1"},
		"prerelease is no newest": {"v1.3.0-rc.1", "v1.0.0 v1.1.0 v1.2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			decisions := make([]policy.Decision, len(releases))
			for i := range decisions {
				decisions[i].Visible = releases[i].Version != tt.hidden
			}
			hideRetracted(releases, decisions)
			var got []string
			for i, d := range decisions {
				if d.Visible {
					got = append(got, releases[i].Version)
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("visible are %s, want %s", got, tt.want)
			}
		})
	}
	hideRetracted(nil, nil)
}
