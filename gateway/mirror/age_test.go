package mirror_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

const day = 24 * time.Hour

// withAges gives a mirror a state database and age sources.
func withAges(tb testing.TB, sources ...string) func(*mirror.Config, *mirror.Options) {
	tb.Helper()
	return withState(tb, func(c *mirror.Config) { c.AgeSources = sources })
}

// age is the version's first day as a zip says it, in days from now.
func (b *bench) age(tb testing.TB, version string) (days int, state string) {
	tb.Helper()
	f := b.Facts(tb.Context(), "example.com/m", version)
	if f.FirstSeen.IsZero() {
		return 0, f.Age
	}
	now := time.Now().Add(time.Duration(b.off.Load()))
	return int(now.Unix()/(24*60*60) - f.FirstSeen.Unix()/(24*60*60)), f.Age
}

// A version that others asked for ten days ago is ten days old here, though we see it for the first time.
func TestAgeByRecordNumber(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v1.2.0"))
	state := withAges(t, "index", "sumdb")
	b := start(t, up, state)
	if err := up.Record("example.com/m", "v1.0.0"); err != nil { // others asked for it before anything was asked here
		t.Fatal(err)
	}
	b.must(t, "/example.com/m/@v/v1.1.0.mod") // number 1, under a head of 2 that is seen today
	b.advance(10 * day)
	b.must(t, "/example.com/m/@v/v1.0.0.zip") // number 0
	b.must(t, "/example.com/m/@v/v1.2.0.zip") // number 2, which no head covered before
	for _, tt := range []struct {
		version string
		want    int
	}{{"v1.0.0", 10}, {"v1.1.0", 10}, {"v1.2.0", 0}} {
		if days, state := b.age(t, tt.version); days != tt.want || state != "ok" {
			t.Errorf("%s is %d days old, %s; want %d", tt.version, days, state, tt.want)
		}
	}
	b.advance(5 * day)
	b.reopen(t, state)
	if days, _ := b.age(t, "v1.0.0"); days != 15 {
		t.Errorf("after a restart v1.0.0 is %d days old, want 15", days)
	}
	b.reopen(t, func(c *mirror.Config, o *mirror.Options) { state(c, o); c.AgeSources = []string{"index"} })
	if days, _ := b.age(t, "v1.0.0"); days != 5 {
		t.Errorf("by our index alone v1.0.0 is %d days old, want 5", days)
	}
}

// A list under the source sumdb dates versions that the index knows as young, and asks no more once they have numbers.
func TestAgeByRecordNumberOfAList(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	state := withAges(t, "index")
	b := start(t, up, state)
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	both := func(c *mirror.Config, o *mirror.Options) { state(c, o); c.AgeSources = []string{"index", "sumdb"} }
	b.reopen(t, both)
	b.advance(8 * day)
	v, err := b.Versions(t.Context(), "example.com/m")
	if err != nil || v.Releases[0].Facts.Age != "ok" || v.Releases[1].Facts.Age != "ok" {
		t.Fatalf("Versions = %+v, %v", v, err)
	}
	up.Forget()
	b.reopen(t, both)
	if _, err := b.Versions(t.Context(), "example.com/m"); err != nil || up.Count("*lookup*") != 0 {
		t.Errorf("dated versions were looked up again: %v, %v", up.Requests(), err)
	}
}

// A number of one log says nothing about another: the operator changed mirror.sumdb.
func TestNumberOfAnotherDatabaseDoesNotCount(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	var db *sql.DB
	state := withAges(t, "sumdb")
	b := start(t, up, func(c *mirror.Config, o *mirror.Options) { state(c, o); db = o.DB })
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if _, age := b.age(t, "v1.0.0"); age != "ok" {
		t.Fatalf("age %q", age)
	}
	if _, err := db.Exec(`UPDATE mirror_versions SET sumdb = 'sum.other.example'`); err != nil {
		t.Fatal(err)
	}
	if _, age := b.age(t, "v1.0.0"); age != "missing" {
		t.Errorf("age by another log's number: %q, want missing", age)
	}
}

func TestAgeIsOffWhereNoSourceCouldShowIt(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("corp.example/x", "v1.0.0"), module("exempt.example/x", "v1.0.0"))
	sources := func(list ...string) *bench {
		return start(t, up, withState(t, func(c *mirror.Config) {
			c.AgeSources, c.SumdbExempt = list, []string{"exempt.example"}
			c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example/*"}}}
		}))
	}
	for _, tt := range []struct {
		sources string
		path    string
		want    string
	}{
		{"sumdb", "example.com/m", "missing"},
		{"sumdb", "corp.example/x", "off"},
		{"sumdb", "exempt.example/x", "off"},
		{"index sumdb", "corp.example/x", "missing"},
		{"index sumdb", "exempt.example/x", "missing"},
		{"", "example.com/m", "off"},
	} {
		if f := sources(strings.Fields(tt.sources)...).Facts(t.Context(), tt.path, "v1.0.0"); f.Age != tt.want {
			t.Errorf("sources %q: age of %s is %q, want %q", tt.sources, tt.path, f.Age, tt.want)
		}
	}
}

func TestLicencesAreReadOnce(t *testing.T) {
	licensed := "module example.com/m@v1.0.0\n-- go.mod --\nmodule example.com/m\n-- m.go --\n// SPDX-License-Identifier: AGPL-3.0-only\npackage m\n"
	up := mirrortest.Start(t, licensed, module("example.com/m", "v1.1.0"))
	var db *sql.DB
	state := withState(t)
	b := start(t, up, func(c *mirror.Config, o *mirror.Options) { state(c, o); db = o.DB })
	if f := b.Facts(t.Context(), "example.com/m", "v1.0.0"); f.Licences.Status != "missing" {
		t.Errorf("before the zip: %+v", f.Licences)
	}
	_, f := b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if got := f.Facts.Licences; got.Status != "found" || !slices.Equal(got.IDs, []string{"AGPL-3.0", "AGPL-3.0-only"}) {
		t.Errorf("licences = %+v", got)
	}
	if _, f := b.must(t, "/example.com/m/@v/v1.1.0.zip"); f.Facts.Licences.Status != "none" {
		t.Errorf("licences of a zip without one = %+v", f.Facts.Licences)
	}
	// What the database has is not looked for again; what it lost, or never had, is.
	if _, err := db.Exec(`UPDATE mirror_versions SET licences = CASE version WHEN 'v1.0.0' THEN 'found MIT' ELSE '' END`); err != nil {
		t.Fatal(err)
	}
	b.reopen(t, state)
	if _, f := b.must(t, "/example.com/m/@v/v1.0.0.zip"); !slices.Equal(f.Facts.Licences.IDs, []string{"MIT"}) {
		t.Errorf("licences were looked for again: %+v", f.Facts.Licences)
	}
	if _, f := b.must(t, "/example.com/m/@v/v1.1.0.zip"); f.Facts.Licences.Status != "none" {
		t.Errorf("licences of a zip stored before they were looked for = %+v", f.Facts.Licences)
	}
	off := start(t, up, nil)
	if _, f := off.must(t, "/example.com/m/@v/v1.0.0.zip"); f.Facts.Licences.Status != "" {
		t.Errorf("without a state database: %+v", f.Facts.Licences)
	}
}

// An index is a feed of the test, in the form of https://index.golang.org.
type index struct {
	*httptest.Server
	mu      sync.Mutex // guards all below
	entries []mirror.Entry
	asked   []url.Values
	body    func(url.Values) string // sent instead of entries
	status  int
}

func startIndex(tb testing.TB) *index {
	tb.Helper()
	x := &index{}
	x.Server = httptest.NewServer(x)
	tb.Cleanup(x.Close)
	return x
}

func (x *index) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked = append(x.asked, r.URL.Query())
	if x.status != 0 {
		w.WriteHeader(x.status)
		return
	}
	if x.body != nil {
		_, _ = w.Write([]byte(x.body(r.URL.Query())))
		return
	}
	since, err := time.Parse(time.RFC3339Nano, r.URL.Query().Get("since"))
	if err != nil || r.URL.Path != "/index" || r.URL.Query().Get("limit") != "2000" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	sent := 0
	for _, e := range x.entries {
		if !e.Timestamp.Before(since) && sent < 2000 {
			_ = json.NewEncoder(w).Encode(e)
			sent++
		}
	}
}

func (x *index) add(path, version string, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.entries = append(x.entries, mirror.Entry{Path: path, Version: version, Timestamp: at.Truncate(time.Microsecond)})
}

// answer makes it send what a hostile one would.
func (x *index) answer(status int, body func(url.Values) string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.status, x.body = status, body
}

func (x *index) questions() []url.Values {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.asked)
}

// withFeed gives a mirror the feed as an age source.
func withFeed(tb testing.TB, x *index, more ...func(*mirror.Config)) func(*mirror.Config, *mirror.Options) {
	tb.Helper()
	return withState(tb, append([]func(*mirror.Config){func(c *mirror.Config) {
		c.AgeSources, c.IndexFeed = []string{"feed"}, x.URL+"/index"
	}}, more...)...)
}

// read reads the feed to its end.
func (b *bench) readFeed(tb testing.TB) {
	tb.Helper()
	for more := true; more; {
		var err error
		if more, err = b.ReadFeed(tb.Context()); err != nil {
			tb.Fatal(err)
		}
	}
}

func TestAgeByFeed(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	x := startIndex(t)
	now := time.Now()
	x.add("example.com/m", "v1.0.0", now.Add(-80*day))
	for i := range 4321 { // more than two pages
		x.add(fmt.Sprintf("example.com/other%d", i), "v1.0.0", now.Add(-40*day+time.Duration(i)*time.Second))
	}
	x.add("corp.example/secret", "v1.0.0", now.Add(-10*day))
	x.add("example.com/m", "v1.1.0", now.Add(-9*day))
	state := withFeed(t, x, func(c *mirror.Config) { c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example/*"}}} })
	var db *sql.DB
	b := start(t, up, func(c *mirror.Config, o *mirror.Options) { state(c, o); db = o.DB })
	b.readFeed(t)
	for version, want := range map[string]int{"v1.0.0": 80, "v1.1.0": 9} {
		if days, age := b.age(t, version); days != want || age != "ok" {
			t.Errorf("%s is %d days old, %s; want %d", version, days, age, want)
		}
	}
	var private int
	if err := db.QueryRow(`SELECT count(*) FROM mirror_feed WHERE path LIKE 'corp%'`).Scan(&private); err != nil || private != 0 {
		t.Errorf("%d private names were kept, %v", private, err)
	}
	if f := b.Facts(t.Context(), "corp.example/secret", "v1.0.0"); f.Age != "off" {
		t.Errorf("a private module is dated by a public feed: %+v", f)
	}
	for _, q := range x.questions() {
		if len(q) != 2 {
			t.Errorf("the feed was asked %v, want since and limit alone", q)
		}
	}
	// A restart reads on from where it was; a warm file learns what the feed shows.
	_, f := b.must(t, "/example.com/m/@v/v1.1.0.zip")
	if f.Facts.Age != "ok" {
		t.Errorf("facts of a zip: %+v", f.Facts)
	}
	n := len(x.questions())
	b.reopen(t, state)
	b.readFeed(t)
	for _, q := range x.questions()[n:] {
		if since, err := time.Parse(time.RFC3339Nano, q.Get("since")); err != nil || since.Before(now.Add(-41*day)) { // not from the beginning
			t.Errorf("after a restart the feed was asked since %v, %v", since, err)
		}
	}
	// After 90 days entries go; what is stored here keeps its day.
	b.advance(95 * day)
	b.readFeed(t)
	var kept int
	if err := db.QueryRow(`SELECT count(*) FROM mirror_feed`).Scan(&kept); err != nil || kept != 0 {
		t.Errorf("%d entries are kept after 95 days, %v", kept, err)
	}
	if days, age := b.age(t, "v1.1.0"); days != 104 || age != "ok" {
		t.Errorf("a stored version is %d days old, %s; want 104", days, age)
	}
}

func TestFeedGetsStale(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	x := startIndex(t)
	b := start(t, up, withFeed(t, x))
	b.readFeed(t)
	if _, age := b.age(t, "v1.0.0"); age != "missing" {
		t.Errorf("a version that the feed does not show: %q, want missing", age)
	}
	x.answer(403, nil) // after several of 503, here and in the background, it would be left alone for a while
	b.advance(25 * time.Hour)
	if _, err := b.ReadFeed(t.Context()); err == nil {
		t.Error("reading a feed that answers 403: no error")
	}
	if _, age := b.age(t, "v1.0.0"); age != "stale" {
		t.Errorf("a day without the feed: %q, want stale", age)
	}
	x.answer(0, nil)
	b.readFeed(t)
	if _, age := b.age(t, "v1.0.0"); age != "missing" {
		t.Errorf("with the feed back: %q, want missing", age)
	}
}

// A feed that lies gains nothing: it can make no version older than the time up to which it was read, cannot stop the
// reading for good, and costs bounded memory.
func TestHostileFeed(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	now := time.Now().UTC()
	line := func(path, version string, at time.Time) string {
		return fmt.Sprintf("{\"Path\":%q,\"Version\":%q,\"Timestamp\":%q}\n", path, version, at.Format(time.RFC3339Nano))
	}
	fixed := func(body string) func(url.Values) string { return func(url.Values) string { return body } }
	for _, tt := range []struct {
		name string
		body func(url.Values) string
	}{
		{"time to come", fixed(line("example.com/m", "v1.0.0", now.Add(day)))},
		{"out of order", fixed(line("example.com/a", "v1.0.0", now.Add(-time.Hour)) + line("example.com/m", "v1.0.0", now.Add(-50*day)))},
		{"before what was asked for", fixed(line("example.com/m", "v1.0.0", now.Add(-99*day)))},
		{"the year 1", fixed(line("example.com/m", "v1.0.0", time.Time{}))},
		{"no JSON", fixed("<html>\n")},
		{"no path", fixed(`{"Version":"v1.0.0","Timestamp":"2026-01-01T00:00:00Z"}` + "\n")},
		{"long line", fixed(line("example.com/"+strings.Repeat("a", 5000), "v1.0.0", now))},
		{"long page", fixed(strings.Repeat(line("example.com/a", "v1.0.0", now), 3000))},
		{"endless page", fixed(strings.Repeat(strings.Repeat("x", 100)+"\n", 60_000))},
		{"one endless line", fixed(strings.Repeat(" ", 5<<20))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := startIndex(t)
			x.answer(0, tt.body)
			b := start(t, up, withFeed(t, x))
			for range 2 {
				if _, err := b.ReadFeed(t.Context()); err == nil {
					t.Error("no error")
				}
			}
			if days, age := b.age(t, "v1.0.0"); age == "ok" {
				t.Errorf("the version is %d days old by a feed that lies", days)
			}
			x.add("example.com/m", "v1.0.0", now.Add(-3*day))
			x.answer(0, nil)
			b.readFeed(t)
			if days, age := b.age(t, "v1.0.0"); days != 3 || age != "ok" {
				t.Errorf("once it tells the truth: %d days, %s; want 3", days, age)
			}
		})
	}
	t.Run("made older later", func(t *testing.T) {
		x := startIndex(t)
		x.add("example.com/other", "v1.0.0", now.Add(-time.Hour))
		b := start(t, up, withFeed(t, x))
		b.readFeed(t)
		x.answer(0, fixed(line("example.com/m", "v1.0.0", now.Add(-30*day))))
		if _, err := b.ReadFeed(t.Context()); err == nil {
			t.Error("an entry from before what was read is taken")
		}
		if _, age := b.age(t, "v1.0.0"); age == "ok" {
			t.Error("a version was made older")
		}
	})
	t.Run("one instant that never ends", func(t *testing.T) {
		x := startIndex(t)
		for i := range 2500 {
			x.add(fmt.Sprintf("example.com/a%d", i), "v1.0.0", now.Add(-2*day))
		}
		x.add("example.com/m", "v1.0.0", now.Add(-day))
		b := start(t, up, withFeed(t, x))
		b.readFeed(t)
		if days, age := b.age(t, "v1.0.0"); days != 1 || age != "ok" {
			t.Errorf("behind it: %d days, %s; want 1", days, age)
		}
	})
	t.Run("a clock that is a little ahead", func(t *testing.T) {
		x := startIndex(t)
		x.add("example.com/m", "v1.0.0", now.Add(2*time.Minute))
		b := start(t, up, withFeed(t, x))
		b.readFeed(t)
		x.mu.Lock()
		x.entries = nil
		x.mu.Unlock()
		x.add("example.com/late", "v1.0.0", time.Now().Add(time.Second)) // behind the entry ahead, before the cursor that it must not move
		b.advance(time.Minute)
		b.readFeed(t)
		if f := b.Facts(t.Context(), "example.com/late", "v1.0.0"); f.Age != "ok" {
			t.Errorf("an entry was passed over: %+v", f)
		}
	})
}

// Nothing waits for the feed: neither the start nor a request.
func TestFeedIsNeverAwaited(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	hang := make(chan struct{})
	x := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	defer x.Close()
	defer close(hang)
	b := start(t, up, withState(t, func(c *mirror.Config) { c.AgeSources, c.IndexFeed = []string{"feed"}, x.URL+"/index" }))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, path := range []string{"/example.com/m/@v/v1.0.0.info", "/example.com/m/@v/v1.0.0.zip", "/example.com/m/@v/list"} {
		if _, _, err := b.get(ctx, path); err != nil {
			t.Errorf("Open(%s) beside a feed that hangs: %v", path, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Errorf("closing beside a feed that hangs: %v", err)
	}
}

func FuzzParseFeed(f *testing.F) {
	f.Add([]byte(`{"Path":"example.com/m","Version":"v1.0.0","Timestamp":"2026-11-20T10:00:00.000001Z"}`+"\n"), int64(0))
	f.Add([]byte("\n\n{}\n"), int64(1))
	f.Fuzz(func(t *testing.T, b []byte, offset int64) {
		since := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(offset % int64(day)))
		until := since.Add(30 * day)
		page, err := mirror.ParseFeed(b, since, until)
		if err != nil {
			if !errors.Is(err, mirror.ErrFeed) {
				t.Fatalf("ParseFeed(%q) = %v", b, err)
			}
			return
		}
		var again []byte
		for i, e := range page {
			if e.Timestamp.Before(since) || e.Timestamp.After(until) || i > 0 && e.Timestamp.Before(page[i-1].Timestamp) || e.Path == "" || e.Version == "" {
				t.Fatalf("entry %d of %q is %+v", i, b, e)
			}
			line, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			again = append(append(again, line...), '\n')
		}
		second, err := mirror.ParseFeed(again, since, until)
		if err != nil && len(again) < 4<<10 || err == nil && len(second) != len(page) {
			t.Fatalf("what was printed again has %d entries, %v; want %d", len(second), err, len(page))
		}
	})
}

// Whatever sizes are seen in whatever order, the table gives the earliest day that any of them proves.
func TestDatedSizes(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var sizes [][2]int64
		for range random.IntN(20) {
			sizes = append(sizes, [2]int64{random.Int64N(15), random.Int64N(50)})
		}
		reached := mirror.Reached(sizes)
		for n := int64(1); n < 52; n++ {
			want := int64(-1)
			for _, s := range sizes {
				if s[1] >= n && (want < 0 || s[0] < want) {
					want = s[0]
				}
			}
			if got := reached(n); got != want {
				t.Fatalf("seed %d: %v reached %d on day %d, want %d", seed, sizes, n, got, want)
			}
		}
	}
}

func TestShippedSizes(t *testing.T) {
	list, err := mirror.ShippedSizes("sum.golang.org")
	if err != nil || len(list) < 4 {
		t.Fatalf("ShippedSizes = %v, %v", list, err)
	}
	for i, d := range list {
		if i > 0 && (d[0] <= list[i-1][0] || d[1] <= list[i-1][1]) {
			t.Errorf("row %d, %v, does not rise from %v", i, d, list[i-1])
		}
	}
	if other, err := mirror.ShippedSizes("sum.example.test"); err != nil || len(other) != 0 {
		t.Errorf("of another database: %v, %v", other, err)
	}
}
