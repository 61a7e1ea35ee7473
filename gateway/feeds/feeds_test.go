package feeds_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/gateway/feeds"
)

func open(t *testing.T, cfg feeds.Config, o feeds.Options) *feeds.Feeds {
	t.Helper()
	if o.State == "" {
		o.State = t.TempDir()
	}
	f, err := feeds.Open(t.Context(), cfg, o)
	if err != nil {
		t.Fatalf("Open(%+v) = %v", cfg, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

const malware = `{"id":"MAL-2026-1","affected":[{"package":{"name":"example.com/evil","ecosystem":"Go"},"versions":["1.0.4"]}]}`

func TestFacts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "malware/deep/MAL-2026-1.json"), malware)
	write(t, filepath.Join(dir, "malware/MAL-2026-2.json"), `{"id":"MAL-2026-2","database_specific":{"suspected":true},"affected":[{"package":{"name":"example.com/odd","ecosystem":"Go"}}]}`)
	popularity := write(t, filepath.Join(dir, "popularity.csv"), "module,importers,rank\nexample.com/gorilla/mux,20000,1\nstdlib,900000,0\nexample.com/small/thing,12,2\n")
	scorecard := write(t, filepath.Join(dir, "scorecard.csv"), "# from the scanner\nmodule,score\nexample.com/hello,2.9\n")
	f := open(t, feeds.Config{Vulns: "testdata/vulndb", Malware: filepath.Join(dir, "malware"), Popularity: popularity, Scorecard: scorecard}, feeds.Options{})
	none := feeds.Facts{
		VulnsState: "ok", MalwareState: "ok", PopularityState: "ok", LookalikeState: "ok", ScorecardState: "missing",
		AsOf: time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC), Malware: "none", Scorecard: -1, LookalikeKind: "none",
	}
	for name, tt := range map[string]struct {
		path, version string
		private       bool
		change        func(*feeds.Facts)
	}{
		"nothing known": {"example.com/else", "v1.0.0", false, func(*feeds.Facts) {}},
		"critical": {"example.com/hello", "v1.1.0", false, func(f *feeds.Facts) {
			f.Vulns = map[string]feeds.Vuln{"GO-2026-0001": {Severity: 4, Fixed: "v1.2.0", Kind: "reviewed"}}
			f.Scorecard, f.ScorecardState = 2, "ok"
		}},
		"fixed": {"example.com/hello", "v1.2.0", false, func(f *feeds.Facts) { f.Scorecard, f.ScorecardState = 2, "ok" }},
		"unscored, withdrawn and other ecosystem left out": {"example.com/web", "v1.9.0", false, func(f *feeds.Facts) {
			f.Vulns = map[string]feeds.Vuln{"GO-2026-0002": {Severity: 3, Fixed: "v1.10.0", Kind: "unreviewed"}}
		}},
		"toolchain by its Go release": {"golang.org/toolchain", "v0.0.1-go1.26.0.linux-amd64", false, func(f *feeds.Facts) {
			f.Vulns = map[string]feeds.Vuln{"GO-2026-0004": {Severity: 3, Fixed: "v1.26.1"}}
		}},
		"toolchain candidate": {"golang.org/toolchain", "v0.0.1-go1.26rc1.linux-amd64", false, func(f *feeds.Facts) {
			f.Vulns = map[string]feeds.Vuln{"GO-2026-0004": {Severity: 3, Fixed: "v1.26.1"}}
		}},
		"toolchain fixed": {"golang.org/toolchain", "v0.0.1-go1.26.1.linux-amd64", false, func(*feeds.Facts) {}},
		"malware":         {"example.com/evil", "v1.0.4", false, func(f *feeds.Facts) { f.Malware = "listed" }},
		"version before":  {"example.com/evil", "v1.0.3", false, func(*feeds.Facts) {}},
		"suspected":       {"example.com/odd", "v7.0.0", false, func(f *feeds.Facts) { f.Malware = "suspected" }},
		"popular":         {"example.com/gorilla/mux", "v1.0.0", false, func(f *feeds.Facts) { f.Popularity = 5 }},
		"look-alike": {"example.com/gorila/mux", "v1.0.0", false, func(f *feeds.Facts) {
			f.LookalikeOf, f.LookalikeKind = "example.com/gorilla/mux", "edit1"
		}},
		"a name of our own is none": {"example.com/gorila/mux", "v1.0.0", true, func(*feeds.Facts) {}},
	} {
		t.Run(name, func(t *testing.T) {
			want := none
			tt.change(&want)
			if diff := cmp.Diff(want, f.Module(tt.path, tt.private).Facts(tt.version)); diff != "" {
				t.Errorf("facts of %s@%s (-want +got):\n%s", tt.path, tt.version, diff)
			}
		})
	}
	if s := f.Module("example.com/hello", false).Snapshots; len(s) != 4 || !strings.HasPrefix(s[0], "vulns sha256:") {
		t.Errorf("Snapshots = %q, want one id for each feed", s)
	}
}

// TestP4States walks a feed through off, missing, ok and stale.
func TestP4States(t *testing.T) {
	var nobody *feeds.Feeds
	if got := nobody.Module("example.com/hello", false).Facts("v1.1.0"); got.VulnsState != "off" || got.MalwareState != "off" || got.LookalikeState != "off" {
		t.Errorf("facts without feeds = %+v, want all off", got)
	}
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		db := filepath.Join(dir, "db")
		f := open(t, feeds.Config{Vulns: db, Refresh: time.Minute, MaxAge: time.Hour}, feeds.Options{})
		state := func() string { return f.Module("example.com/hello", false).Facts("v1.1.0").VulnsState }
		if got := state(); got != "missing" {
			t.Errorf("state before the folder is there = %s, want missing", got)
		}
		if err := os.CopyFS(db, os.DirFS("testdata/vulndb")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := state(); got != "ok" {
			t.Errorf("state with the folder = %s, want ok", got)
		}
		write(t, filepath.Join(db, "ID/GO-2026-0001.json"), "{")
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if got := f.Module("example.com/hello", false).Facts("v1.1.0"); got.VulnsState != "ok" || len(got.Vulns) != 1 {
			t.Errorf("facts while the folder is broken = %+v, want the last good ones", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := f.Module("example.com/hello", false).Facts("v1.1.0"); got.VulnsState != "stale" || len(got.Vulns) != 1 {
			t.Errorf("facts two hours later = %+v, want stale", got)
		}
	})
}

// A server serves a folder and remembers what it was asked for.
type server struct {
	*httptest.Server
	dir string

	mu    sync.Mutex // guards asked and down
	asked []string
	down  bool
}

func serve(t *testing.T, dir string) *server {
	t.Helper()
	s := &server{dir: dir}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.RequestURI())
		down := s.down
		s.mu.Unlock()
		if down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		http.FileServer(http.Dir(s.dir)).ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func (s *server) fail(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// await asks until the feed of vulnerabilities is in a state.
func await(t *testing.T, f *feeds.Feeds, want func(feeds.Facts) bool) feeds.Facts {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		if got := f.Module("example.com/hello", false).Facts("v1.1.0"); want(got) {
			return got
		}
	}
	t.Fatalf("facts are %+v for 20 s", f.Module("example.com/hello", false).Facts("v1.1.0"))
	return feeds.Facts{}
}

func isOK(f feeds.Facts) bool { return f.VulnsState == "ok" }

// TestDatabase fetches a database over the network, whole, then only what changed, and starts again from what was kept.
func TestDatabase(t *testing.T) {
	dir, state := filepath.Join(t.TempDir(), "db"), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/vulndb")); err != nil {
		t.Fatal(err)
	}
	s := serve(t, dir)
	cfg := feeds.Config{Vulns: s.URL, Refresh: time.Second}
	f := open(t, cfg, feeds.Options{State: state})
	for _, path := range []string{"corp.example/secret", "example.com/hello"} {
		f.Module(path, path != "example.com/hello")
	}
	if got := await(t, f, isOK); len(got.Vulns) != 1 {
		t.Errorf("facts = %+v, want one vulnerability", got)
	}
	asked := s.take()
	for _, name := range []string{"/index/db.json", "/index/modules.json", "/index/vulns.json", "/ID/GO-2026-0001.json", "/ID/GO-2026-0004.json"} {
		if !strings.Contains(strings.Join(asked, "\n"), name) {
			t.Errorf("%s was not fetched; asked for %s", name, asked)
		}
	}
	for _, request := range asked {
		if strings.Contains(request, "example") || strings.Contains(request, "corp") {
			t.Errorf("P44 a module's name left: %s", request)
		}
	}
	change(t, dir)
	await(t, f, func(f feeds.Facts) bool { return len(f.Vulns) == 0 })
	for _, request := range s.take() {
		if strings.HasPrefix(request, "/ID/") && request != "/ID/GO-2026-0001.json" {
			t.Errorf("%s was fetched again, and had not changed", request)
		}
	}
	f.Close()

	t.Run("restart without the network", func(t *testing.T) {
		s.fail(true)
		again := open(t, cfg, feeds.Options{State: state})
		if got := again.Module("example.com/web", false).Facts("v1.0.0"); got.VulnsState != "ok" || len(got.Vulns) != 1 {
			t.Errorf("facts of what was kept = %+v, want ok", got)
		}
	})
	t.Run("database that went back", func(t *testing.T) {
		s.fail(false)
		write(t, filepath.Join(dir, "index/db.json"), `{"modified":"2020-01-01T00:00:00Z"}`)
		registry := prometheus.NewRegistry()
		again := open(t, cfg, feeds.Options{State: state, Registerer: registry})
		awaitError(t, registry)
		if got := again.Module("example.com/hello", false).Facts("v1.1.0"); got.AsOf.Year() != 2026 {
			t.Errorf("database as of %s is in force, want the newer one", got.AsOf)
		}
	})
}

// awaitError waits until the feed of vulnerabilities could not be read.
func awaitError(t *testing.T, r *prometheus.Registry) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(metrics(t, r), `feed_reads_total{feed="vulns",result="error"} 1`); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the feed was not refused:\n%s", metrics(t, r))
		}
	}
}

// change fixes GO-2026-0001 in an earlier version.
func change(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"ID/GO-2026-0001.json", "index/vulns.json", "index/db.json"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "2026-11-02T10", "2026-11-03T10")
		write(t, filepath.Join(dir, name), strings.Replace(text, `"fixed":"1.2.0"`, `"fixed":"1.1.0"`, 1))
	}
}

func metrics(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	var b strings.Builder
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			b.WriteString(strings.TrimPrefix(family.GetName(), "headgate_") + "{")
			for i, l := range m.Label {
				if i > 0 {
					b.WriteByte(',')
				}
				b.WriteString(l.GetName() + `="` + l.GetValue() + `"`)
			}
			b.WriteString("} ")
			if m.Counter != nil && m.Counter.GetValue() >= 1 {
				b.WriteString("1")
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// TestHostileFeeds gives what cannot be a feed: the state is missing, and nothing is in force.
func TestHostileFeeds(t *testing.T) {
	dir := t.TempDir()
	zipped := func(files map[string]string) string {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for name, content := range files {
			f, err := w.Create(name)
			if err == nil {
				_, err = f.Write([]byte(content))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	record, err := os.ReadFile("testdata/vulndb/ID/GO-2026-0001.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"no zip":           "hello",
		"cut":              zipped(map[string]string{"index/db.json": `{"modified":"2026-01-01T00:00:00Z"}`, "ID/A.json": string(record)})[:100],
		"no index":         zipped(map[string]string{"ID/A.json": string(record)}),
		"no time":          zipped(map[string]string{"index/db.json": `{}`, "ID/A.json": string(record)}),
		"no record":        zipped(map[string]string{"index/db.json": `{"modified":"2026-01-01T00:00:00Z"}`}),
		"a broken record":  zipped(map[string]string{"index/db.json": `{"modified":"2026-01-01T00:00:00Z"}`, "ID/A.json": string(record), "ID/B.json": `{`}),
		"P11 giant record": zipped(map[string]string{"index/db.json": `{"modified":"2026-01-01T00:00:00Z"}`, "ID/A.json": string(record) + strings.Repeat(" ", 5<<20)}),
		"P11 JSON too deep": zipped(map[string]string{
			"index/db.json": `{"modified":"2026-01-01T00:00:00Z"}`, "ID/A.json": strings.Repeat(`{"x":`, 20000),
		}),
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".zip"), content)
			got := open(t, feeds.Config{Vulns: file}, feeds.Options{}).Module("example.com/hello", false).Facts("v1.1.0")
			if got.VulnsState != "missing" || len(got.Vulns) > 0 {
				t.Errorf("facts = %+v, want missing", got)
			}
		})
	}
	for name, content := range map[string]string{
		"no header": "", "other columns": "name,count\na.test/b,1\n", "no number": "module,importers\na.test/b,many\n", "negative": "module,importers\na.test/b,-1\n",
		"no module": "module,importers\n", "ragged": "module,importers\na.test/b\n", "not a number": "module,importers\na.test/b,NaN\n",
	} {
		t.Run("popularity "+name, func(t *testing.T) {
			file := write(t, filepath.Join(dir, "p.csv"), content)
			if got := open(t, feeds.Config{Popularity: file}, feeds.Options{}).Module("a.test/b", false).Facts("v1.0.0"); got.PopularityState != "missing" {
				t.Errorf("facts = %+v, want missing", got)
			}
		})
	}
	t.Run("symlink out of the folder", func(t *testing.T) {
		db := filepath.Join(dir, "linked")
		if err := os.CopyFS(db, os.DirFS("testdata/vulndb")); err != nil {
			t.Fatal(err)
		}
		secret := write(t, filepath.Join(dir, "secret.json"), `{"id":"SECRET"}`)
		if err := os.Symlink(secret, filepath.Join(db, "ID/SECRET.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, feeds.Config{Vulns: db}, feeds.Options{}).Vulndb("ID/SECRET.json"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Vulndb() of a link = %v, want fs.ErrNotExist", err)
		}
	})
	t.Run("redirect", func(t *testing.T) {
		var hits atomic.Int64
		other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
		t.Cleanup(other.Close)
		from := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
		t.Cleanup(from.Close)
		registry := prometheus.NewRegistry()
		open(t, feeds.Config{Vulns: from.URL}, feeds.Options{Registerer: registry})
		awaitError(t, registry)
		if hits.Load() > 0 {
			t.Error("a redirect was followed")
		}
	})
}

func TestVulndb(t *testing.T) {
	f := open(t, feeds.Config{Vulns: "testdata/vulndb"}, feeds.Options{})
	want, err := os.ReadFile("testdata/vulndb/index/modules.json")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Vulndb("index/modules.json"); err != nil || string(got) != string(want) {
		t.Errorf("Vulndb(index/modules.json) = %q, %v, want the file", got, err)
	}
	for _, name := range []string{"", "index", "ID/none.json", "../feeds.go", "ID/../index/db.json", "/index/db.json", "index/db.json/"} {
		if got, err := f.Vulndb(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Vulndb(%q) = %q, %v, want fs.ErrNotExist", name, got, err)
		}
	}
	if _, err := open(t, feeds.Config{}, feeds.Options{}).Vulndb("index/db.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Vulndb() without a database = %v, want fs.ErrNotExist", err)
	}
	if _, err := open(t, feeds.Config{Vulns: filepath.Join(t.TempDir(), "none")}, feeds.Options{}).Vulndb("index/db.json"); !errors.Is(err, feeds.ErrNotRead) {
		t.Errorf("Vulndb() of a database that is away = %v, want ErrNotRead", err)
	}
}

func TestConfigValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  feeds.Config
		want string
	}{
		"empty":                 {feeds.Config{}, ""},
		"folder":                {feeds.Config{Vulns: "/srv/vulndb", Malware: "malware"}, ""},
		"https":                 {feeds.Config{Vulns: "https://vuln.example", Malware: "https://osv.example/Go.zip"}, ""},
		"http on loopback":      {feeds.Config{Vulns: "http://127.0.0.1:8000/db"}, ""},
		"http":                  {feeds.Config{Vulns: "http://vuln.example"}, "vulns: "},
		"other scheme":          {feeds.Config{Popularity: "ftp://vuln.example/x.csv"}, "popularity: "},
		"credential in the URL": {feeds.Config{Scorecard: "https://u:secret@vuln.example/x.csv"}, "scorecard: "},
		"collection over a URL": {feeds.Config{Malware: "https://osv.example/Go"}, "malware: "},
		"no severity":           {feeds.Config{Unscored: "bad"}, "unscored: "},
		"refresh too short":     {feeds.Config{Refresh: time.Millisecond}, "refresh: "},
		"max_age below refresh": {feeds.Config{Refresh: time.Hour, MaxAge: time.Minute}, "max_age: "},
	} {
		t.Run(name, func(t *testing.T) {
			errs := tt.cfg.Validate()
			if tt.want == "" {
				if len(errs) > 0 {
					t.Errorf("Validate() = %v, want none", errs)
				}
				return
			}
			if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want) || strings.Contains(errs[0].Error(), "secret") {
				t.Errorf("Validate() = %v, want one that begins with %q and hides passwords", errs, tt.want)
			}
		})
	}
	if off := (feeds.Config{Vulns: "x"}).Off(); !cmp.Equal(off, []string{"lookalike", "malware", "popularity", "scorecard"}) {
		t.Errorf("Off() = %q", off)
	}
}
