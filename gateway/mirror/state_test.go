package mirror_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	xmodule "golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// TestOnPostgres runs what keeps state again, on PostgreSQL.
func TestOnPostgres(t *testing.T) {
	statetest.OnPostgres(t, "^(TestStoreOlder|TestUntagged|TestAge|TestLicences|TestSecondBundle|TestQuarantine|TestAnotherGateways|TestOtherBytesAfter|TestForkedPublic|TestC46|TestOwnDatabase|TestC51|TestIndex|TestRetraction|TestUnreadable|TestMovedTag|TestAnotherGateway|TestTwoGateways)")
}

// withState gives a mirror a state database, and one age source.
func withState(tb testing.TB, more ...func(*mirror.Config)) func(*mirror.Config, *mirror.Options) {
	tb.Helper()
	dir := tb.TempDir()
	db := statetest.OpenAt(tb, filepath.Join(dir, "state.db"))
	return func(c *mirror.Config, o *mirror.Options) {
		c.AgeSources, c.FactsWait = []string{"index"}, 2*time.Second
		o.DB, o.State, o.Host = db, dir, "go.corp.example"
		for _, f := range more {
			f(c)
		}
	}
}

// own is the path of the bench's own checksum database.
func (b *bench) own(tb testing.TB) string {
	tb.Helper()
	key, err := b.OwnSumdb()
	if err != nil {
		tb.Fatal(err)
	}
	name, _, _ := strings.Cut(key, "+")
	return "/sumdb/" + name
}

// record gives the go.sum lines of a lookup's answer.
func record(answer string) string {
	_, rest, _ := strings.Cut(answer, "\n")
	lines, _, _ := strings.Cut(rest, "\n\n")
	return lines
}

func TestC46PublicRecordsAreCopiedNotHashed(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("golang.org/toolchain", "v0.0.1-go1.26.0.linux-amd64"))
	up.Break("*.zip", mirrortest.Fault{Flip: true})
	up.Break("*.mod", mirrortest.Fault{Flip: true})
	state := withState(t)
	b := start(t, up, state)
	for _, v := range []string{"example.com/m@v1.0.0", "golang.org/toolchain@v0.0.1-go1.26.0.linux-amd64"} {
		ours, _ := b.must(t, b.own(t)+"/lookup/"+v)
		theirs, _ := b.must(t, "/sumdb/sum.example.test/lookup/"+v)
		if record(ours) != record(theirs) || !strings.Contains(ours, "go.corp.example/sumdb-") {
			t.Errorf("our record is\n%s\ntheirs\n%s", ours, theirs)
		}
	}
	if n := up.Count("*.zip") + up.Count("*.mod"); n != 0 {
		t.Errorf("lookups fetched %d files: %v", n, up.Requests())
	}
	up.Forget()
	b.reopen(t, state)
	b.must(t, b.own(t)+"/lookup/example.com/m@v1.0.0")
	if len(up.Requests()) != 0 {
		t.Errorf("N9: a warm lookup asked %v", up.Requests())
	}
}

func TestOwnDatabaseTellsAbsenceFromTrouble(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v1.2.0"))
	up.WrongSum("example.com/m", "v1.1.0", true)
	b := start(t, up, withState(t, func(c *mirror.Config) {
		c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example/team/*"}}}
	}))
	own := b.own(t)
	if _, _, err := b.get(t.Context(), own+"/lookup/example.com/m@v1.1.0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("C44 not listed publicly: %v, want fs.ErrNotExist", err)
	}
	up.Break("*/lookup/*", mirrortest.Fault{Status: 500})
	if _, _, err := b.get(t.Context(), own+"/lookup/example.com/m@v1.0.0"); errors.Is(err, fs.ErrNotExist) || !errors.Is(err, mirror.ErrUpstream) {
		t.Errorf("E14 public database in trouble: %v, want ErrUpstream", err)
	}
	up.Clear()
	up.Forget()
	if _, _, err := b.get(mirror.WithCachedOnly(t.Context()), own+"/lookup/example.com/m@v1.0.0"); !errors.Is(err, fs.ErrNotExist) || len(up.Requests()) > 0 {
		t.Errorf("C52 cached only, no record: %v after %v, want fs.ErrNotExist without a request", err, up.Requests())
	}
	b.must(t, own+"/lookup/example.com/m@v1.0.0")
	up.Forget()
	if _, _, err := b.get(mirror.WithCachedOnly(t.Context()), own+"/lookup/example.com/m@v1.0.0"); err != nil {
		t.Errorf("C52 cached only, with a record: %v", err)
	}
	for _, tt := range []struct {
		name, path string
		want       error
	}{
		{"C42 records in bulk", own + "/tile/8/data/000.p/1", mirror.ErrAuditors},
		{"prefix of a private pattern", own + "/lookup/corp.example/team@v1.0.0", fs.ErrNotExist},
		{"private without a source", own + "/lookup/corp.example/team/x@v1.0.0", mirror.ErrNoPrivateSource},
		{"C44 private at the public one", "/sumdb/sum.example.test/lookup/corp.example/team/x@v1.0.0", mirror.ErrPrivate},
		{"T35 name that begins like ours", own + "x/supported", mirror.ErrUnknownSumdb},
		{"T35 half of our name", "/sumdb/go.corp.example/supported", mirror.ErrUnknownSumdb},
		{"T35 unknown verb", own + "/search", mirror.ErrNoRoute},
		{"tile beyond the head", own + "/tile/8/0/000.p/77", fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := b.get(t.Context(), tt.path); !errors.Is(err, tt.want) {
				t.Errorf("Open(%s) = %v, want %v", tt.path, err, tt.want)
			}
		})
	}
	if n := up.Count("*corp.example*"); n != 0 {
		t.Errorf("N9 a private name left: %v", up.Requests())
	}
}

type memoryFile struct {
	name string
	data string
}

func (f memoryFile) Path() string                { return f.name }
func (f memoryFile) Lstat() (os.FileInfo, error) { return f, nil }
func (f memoryFile) Open() (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(f.data)), nil
}
func (f memoryFile) Name() string       { return f.name }
func (f memoryFile) Size() int64        { return int64(len(f.data)) }
func (f memoryFile) Mode() os.FileMode  { return 0o644 }
func (f memoryFile) ModTime() time.Time { return time.Time{} }
func (f memoryFile) IsDir() bool        { return false }
func (f memoryFile) Sys() any           { return nil }

func TestC46PrivateRecordsComeFromStoredBytes(t *testing.T) {
	up := mirrortest.Start(t)
	storeDir := t.TempDir()
	v := xmodule.Version{Path: "corp.example/kit", Version: "v1.0.0"}
	var zip bytes.Buffer
	mod := "module corp.example/kit\n"
	if err := modzip.Create(&zip, v, []modzip.File{memoryFile{"go.mod", mod}, memoryFile{"k.go", "package kit\n"}}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(storeDir, "private", "corp.example", "kit", "@v")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "v1.0.0.mod"), []byte(mod), 0o600),
		os.WriteFile(filepath.Join(dir, "v1.0.0.zip"), zip.Bytes(), 0o600),
		os.WriteFile(filepath.Join(dir, "v1.0.0.info"), []byte(`{"Version":"v1.0.0"}`), 0o600),
		os.WriteFile(filepath.Join(dir, "v1.0.0.ziphash"), []byte("h1:spoilt"), 0o600)); err != nil {
		t.Fatal(err)
	}
	want, err := dirhash.HashZip(filepath.Join(dir, "v1.0.0.zip"), dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	state := withState(t, func(c *mirror.Config) {
		c.Store, c.Private = storeDir, []mirror.PrivateRoute{{Patterns: []string{"corp.example/*"}}}
	})
	b := start(t, up, state)
	text, _ := b.must(t, b.own(t)+"/lookup/corp.example/kit@v1.0.0")
	if !strings.Contains(text, "corp.example/kit v1.0.0 "+want+"\n") || !strings.Contains(text, "corp.example/kit v1.0.0/go.mod h1:") {
		t.Errorf("record of a private module:\n%swant %s", text, want)
	}
	if _, _, err := b.get(t.Context(), "/corp.example/kit/@v/v1.0.0.info"); err != nil && !errors.Is(err, mirror.ErrNoPrivateSource) {
		t.Errorf("a private .info: %v", err)
	}
	if len(up.Requests()) != 0 {
		t.Errorf("N9 a private lookup asked upstream: %v", up.Requests())
	}
	if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	b.reopen(t, state)
	again, _ := b.must(t, b.own(t)+"/lookup/corp.example/kit@v1.0.0")
	if record(again) != record(text) {
		t.Errorf("after deletion the record is\n%s", again)
	}
}

func TestC51IndexIsInOrderAndComplete(t *testing.T) {
	const n = 40
	var archives []string
	for i := range n {
		archives = append(archives, module(fmt.Sprintf("example.com/m%02d", i), "v1.0.0"))
	}
	up := mirrortest.Start(t, archives...)
	b := start(t, up, withState(t))
	if list, err := b.Index(t.Context(), time.Time{}, 2000); err != nil || len(list) != 0 {
		t.Fatalf("Index of nothing = %v, %v", list, err)
	}
	// A follower reads on from the last entry while versions come in, and the clock is put back.
	var coming sync.WaitGroup
	for i := range n {
		coming.Go(func() {
			if i == n/2 {
				b.advance(-time.Hour)
			}
			if _, _, err := b.get(t.Context(), fmt.Sprintf("/example.com/m%02d/@v/v1.0.0.info", i)); err != nil {
				t.Error(err)
			}
			if _, _, err := b.get(t.Context(), fmt.Sprintf("/example.com/m%02d/@v/v1.0.0.zip", i)); err != nil {
				t.Error(err)
			}
		})
	}
	arrived := make(chan struct{})
	go func() { coming.Wait(); close(arrived) }()
	var followed []mirror.Entry
	for over := false; !over; {
		select {
		case <-arrived:
			over = true // one last look
		default:
		}
		since := time.Time{}
		if len(followed) > 0 {
			since = followed[len(followed)-1].Timestamp.Add(time.Nanosecond) // rounds up to the next place
		}
		list, err := b.Index(t.Context(), since, 2000)
		if err != nil {
			t.Fatal(err)
		}
		followed = append(followed, list...)
	}
	if len(followed) != n {
		t.Errorf("a follower saw %d entries, want %d", len(followed), n)
	}
	seen := map[string]bool{}
	for i, e := range followed {
		if seen[e.Path] || i > 0 && !e.Timestamp.After(followed[i-1].Timestamp) {
			t.Errorf("entry %d, %v, is a second one or not behind %v", i, e, followed[max(i-1, 0)])
		}
		seen[e.Path] = true
	}
	middle := followed[n/2]
	list, err := b.Index(t.Context(), middle.Timestamp, 3)
	if err != nil || len(list) != 3 || list[0] != middle {
		t.Errorf("Index since %v, at most 3 = %v, %v", middle.Timestamp, list, err)
	}
}

func TestIndexTakesInWhatWasStoredBefore(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, nil)
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if _, err := b.Index(t.Context(), time.Time{}, 1); !errors.Is(err, mirror.ErrNoRoute) {
		t.Errorf("Index without a state database: %v, want ErrNoRoute", err)
	}
	b.reopen(t, withState(t))
	_, f := b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if f.Facts.Age != "ok" || f.Facts.FirstSeen.IsZero() {
		t.Errorf("facts of a file stored earlier: %+v", f.Facts)
	}
	if list, err := b.Index(t.Context(), time.Time{}, 2000); err != nil || len(list) != 1 {
		t.Errorf("Index = %v, %v, want the stored version", list, err)
	}
}

func TestRetractionComesFromTheTrueNewestGoMod(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v1.2.0-rc.1"))
	b := start(t, up, withState(t))
	flags := func() map[string]mirror.Facts {
		t.Helper()
		v, err := b.Versions(t.Context(), "example.com/m")
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]mirror.Facts{}
		for _, r := range v.Releases {
			all[r.Version] = r.Facts
		}
		return all
	}
	if f := b.Facts(t.Context(), "example.com/m", "v1.0.0"); f.Retracted.State != "" {
		t.Errorf("before the list was asked for: %+v", f.Retracted)
	}
	if f := flags(); f["v1.0.0"].Retracted.State != "no" || f["v1.0.0"].Deprecated.State != "no" {
		t.Errorf("nothing retracted: %+v", f["v1.0.0"])
	}
	newer, err := mirrortest.ParseTxtar([]byte("module example.com/m@v1.3.0\n-- go.mod --\n// Deprecated: use \x1bother\nmodule example.com/m\n\n// leaks keys\nretract [v1.0.0, v1.1.0]\n"))
	if err == nil {
		err = up.Add(newer)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, warm := b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if warm.Facts.Retracted.State != "no" {
		t.Errorf("zip before: %+v", warm.Facts.Retracted)
	}
	b.advance(6 * time.Minute)
	for try := 0; flags()["v1.0.0"].Retracted.State != "yes"; try++ { // a known module does not wait for its newest go.mod
		if try > 100 {
			t.Fatalf("the newest go.mod is not heeded: %+v", flags()["v1.0.0"])
		}
		<-time.After(20 * time.Millisecond)
	}
	f := flags()
	if f["v1.0.0"].Retracted.Text != "leaks keys" || f["v1.1.0"].Retracted.State != "yes" || f["v1.3.0"].Retracted.State != "no" || f["v1.2.0-rc.1"].Retracted.State != "no" {
		t.Errorf("retracted: %+v", f)
	}
	if d := f["v1.3.0"].Deprecated; d.State != "yes" || strings.ContainsRune(d.Text, 0x1b) {
		t.Errorf("deprecated: %+v", d)
	}
	until(t, "a warm zip is retracted, too", func() bool { // the list may say so a moment before
		_, again := b.must(t, "/example.com/m/@v/v1.0.0.zip")
		return again.Facts.Retracted.State == "yes"
	})
}

func TestUnreadableNewestGoModIsMissingNotNo(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	up.Break("*.mod", mirrortest.Fault{Status: 403})
	b := start(t, up, withState(t))
	v, err := b.Versions(t.Context(), "example.com/m")
	if err != nil || v.Releases[0].Facts.Retracted.State != "unknown" {
		t.Fatalf("Versions = %+v, %v, want retraction unknown", v, err)
	}
}

func TestAgeBeginsWithAProvedRecord(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v1.2.0"))
	up.WrongSum("example.com/m", "v1.1.0", true) // listed by the upstream, vouched for by nobody
	b := start(t, up, withState(t))
	v, err := b.Versions(t.Context(), "example.com/m")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ok", "missing", "ok"} {
		if f := v.Releases[i].Facts; f.Age != want || f.FirstSeen.IsZero() != (want == "missing") {
			t.Errorf("%s: age %q, first seen %v, want %q", v.Releases[i].Version, f.Age, f.FirstSeen, want)
		}
	}
	if n := up.Count("*.zip") + up.Count("*v1.0.0.mod"); n != 0 {
		t.Errorf("dating fetched files: %v", up.Requests())
	}
	if _, f := b.must(t, "/example.com/m/@v/v1.1.0.info"); f.Facts.Age != "missing" {
		t.Errorf("an .info, which no checksum covers, made the age %q", f.Facts.Age)
	}
	first := v.Releases[0].Facts.FirstSeen
	b.advance(48 * time.Hour)
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	_, f := b.must(t, "/example.com/m/@v/v1.0.0.info")
	if !f.Facts.FirstSeen.Equal(first) {
		t.Errorf("first seen moved from %v to %v", first, f.Facts.FirstSeen)
	}
}

func TestAgeOfAnInfoIsLookedUp(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	up.SetQuery("example.com/m", "main", "v1.1.0")
	b := start(t, up, withState(t))
	for _, path := range []string{"/example.com/m/@v/v1.0.0.info", "/example.com/m/@v/main.info"} {
		if _, f := b.must(t, path); f.Facts.Age != "ok" {
			t.Errorf("%s: age %q, want ok", path, f.Facts.Age)
		}
	}
	off := start(t, up, withState(t, func(c *mirror.Config) { c.AgeSources = nil }))
	up.Forget()
	if _, f := off.must(t, "/example.com/m/@v/v1.0.0.info"); f.Facts.Age != "off" || up.Count("*lookup*") != 0 {
		t.Errorf("no age source: age %q after %v", f.Facts.Age, up.Requests())
	}
}

func TestAgeWaitsNoLongerThanItMay(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	up.Break("*lookup*", mirrortest.Fault{Hang: true})
	b := start(t, up, withState(t, func(c *mirror.Config) { c.FactsWait = 50 * time.Millisecond }))
	began := time.Now()
	v, err := b.Versions(t.Context(), "example.com/m")
	if err != nil || v.Releases[0].Facts.Age != "missing" || time.Since(began) > 3*time.Second {
		t.Errorf("Versions = %+v, %v after %v; want the age missing soon", v, err, time.Since(began))
	}
	up.Clear()
}

func TestMovedTagIsAnIncident(t *testing.T) {
	up := mirrortest.Start(t)
	offer := func(hash string) {
		t.Helper()
		m, err := mirrortest.ParseTxtar([]byte("module example.com/m@v1.0.0\n-- go.mod --\nmodule example.com/m\n-- .info --\n" +
			`{"Version":"v1.0.0","Time":"2024-05-01T12:00:00Z","Origin":{"VCS":"git","URL":"https://git.example/m","Hash":"` + hash + `","Ref":"refs/tags/v1.0.0"}}`))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	offer("aaaa")
	up.SetQuery("example.com/m", "main", "v1.0.0")
	b := start(t, up, withState(t))
	_, f := b.must(t, "/example.com/m/@v/v1.0.0.info")
	if f.Facts.OriginDrift != "same" || f.Facts.Origin != (mirror.Origin{VCS: "git", URL: "https://git.example/m", Commit: "aaaa"}) {
		t.Errorf("facts of a fresh version: %+v", f.Facts)
	}
	b.must(t, "/example.com/m/@v/main.info")
	if f := b.Facts(t.Context(), "example.com/m", "v1.0.0"); f.OriginDrift != "same" {
		t.Errorf("the same commit is %q", f.OriginDrift)
	}
	offer("bbbb")
	b.advance(2 * time.Minute)
	b.must(t, "/example.com/m/@v/main.info")
	if _, f := b.must(t, "/example.com/m/@v/v1.0.0.info"); f.Facts.OriginDrift != "moved" || f.Facts.Origin.Commit != "aaaa" {
		t.Errorf("facts after the tag moved: %+v", f.Facts)
	}
	if n := b.metric(t, "headgate_mirror_conflicts_total"); n != 1 {
		t.Errorf("%v incidents counted, want 1", n)
	}
}

func TestAnotherGatewayLearns(t *testing.T) {
	up := mirrortest.Start(t)
	offer := func(text string) {
		t.Helper()
		m, err := mirrortest.ParseTxtar([]byte(text))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	commit := func(hash string) string {
		return "module example.com/m@v1.0.0\n-- go.mod --\nmodule example.com/m\n-- .info --\n" +
			`{"Version":"v1.0.0","Time":"2024-05-01T12:00:00Z","Origin":{"VCS":"git","URL":"https://git.example/m","Hash":"` + hash + `","Ref":"refs/tags/v1.0.0"}}`
	}
	offer(commit("aaaa"))
	up.SetQuery("example.com/m", "main", "v1.0.0")
	state := withState(t)
	one, two := start(t, up, state), start(t, up, state)
	facts := func() mirror.Facts {
		_, f := two.must(t, "/example.com/m/@v/v1.0.0.zip")
		return f.Facts
	}
	two.fill(t, "/example.com/m/@v/v1.0.0")
	for _, b := range []*bench{one, two} {
		b.must(t, "/example.com/m/@v/list")
	}
	until(t, "the newest go.mod that the one read is known to both", func() bool {
		f := facts()
		return f.OriginDrift == "same" && f.Retracted.State == "no"
	})
	offer(commit("bbbb"))
	one.must(t, "/example.com/m/@v/main.info")
	until(t, "the other gateway's memory knows that the tag moved", func() bool { return facts().OriginDrift == "moved" })
	offer("module example.com/m@v1.1.0\n-- go.mod --\nmodule example.com/m\n\nretract v1.0.0\n")
	one.advance(6 * time.Minute)
	until(t, "the other gateway's memory knows the retraction", func() bool {
		one.must(t, "/example.com/m/@v/list")
		return facts().Retracted.State == "yes"
	})
}

// Two gateways over one database note the same versions at once, each in another order: none waits for the other for
// ever, each version has one place in the index, and both give the same one.
func TestTwoGatewaysNoteTheSameVersions(t *testing.T) {
	const n = 30
	var archives []string
	for i := range n {
		archives = append(archives, module(fmt.Sprintf("example.com/m%02d", i), "v1.0.0"))
	}
	up := mirrortest.Start(t, archives...)
	dir := t.TempDir()
	gateway := func(c *mirror.Config, o *mirror.Options) {
		c.AgeSources, c.FactsWait = []string{"index"}, 2*time.Second
		c.OwnSumdb.KeyFile = filepath.Join(dir, "sumdb.key")
		o.DB, o.State, o.Host = statetest.OpenAt(t, filepath.Join(dir, "state.db")), t.TempDir(), "go.corp.example"
	}
	both := []*bench{start(t, up, gateway), start(t, up, gateway)}
	var all sync.WaitGroup
	for g, b := range both {
		for i := range n {
			if g == 1 {
				i = n - 1 - i
			}
			path := fmt.Sprintf("example.com/m%02d", i)
			for _, ask := range []string{"/" + path + "/@v/v1.0.0.info", "/" + path + "/@v/v1.0.0.zip", b.own(t) + "/lookup/" + path + "@v1.0.0"} {
				all.Go(func() {
					if _, _, err := b.get(t.Context(), ask); err != nil {
						t.Errorf("gateway %d, %s: %v", g, ask, err)
					}
				})
			}
		}
	}
	all.Wait()
	one, err1 := both[0].Index(t.Context(), time.Time{}, 2000)
	two, err2 := both[1].Index(t.Context(), time.Time{}, 2000)
	if err := errors.Join(err1, err2); err != nil || len(one) != n || !slices.Equal(one, two) {
		t.Errorf("indexes of two gateways have %d and %d entries, want %d, the same: %v", len(one), len(two), n, err)
	}
	for i := range n {
		ask := fmt.Sprintf("%s/lookup/example.com/m%02d@v1.0.0", both[0].own(t), i)
		a, _ := both[0].must(t, ask)
		b, _ := both[1].must(t, ask)
		if record(a) != record(b) || strings.SplitN(a, "\n", 2)[0] != strings.SplitN(b, "\n", 2)[0] {
			t.Errorf("one version, two records:\n%s\n%s", a, b)
		}
	}
}

// A state database that is away costs facts, not files.
func TestStateDatabaseAway(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	var db *sql.DB
	state := withState(t)
	b := start(t, up, func(c *mirror.Config, o *mirror.Options) { state(c, o); db = o.DB })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, f := b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if f.Facts.Age != "missing" || f.Facts.Sumdb != "verified" {
		t.Errorf("facts without the database: %+v", f.Facts)
	}
	if _, _, err := b.get(context.Background(), b.own(t)+"/lookup/example.com/m@v1.0.0"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lookup without the database: %v, want trouble", err)
	}
}

func TestStateConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  mirror.Config
		want string
	}{
		{"age source", mirror.Config{AgeSources: []string{"guess"}}, `age_sources[0]: "guess"`},
		{"old key", mirror.Config{OwnSumdb: mirror.OwnSumdb{OldKeyFiles: []string{""}}}, "own_sumdb.old_key_files[0]: "},
		{"place", mirror.Config{Store: "s", OwnSumdb: mirror.OwnSumdb{HeadPlaces: []string{"s"}}}, "own_sumdb.head_places[0]: "},
		{"feed without URL", mirror.Config{AgeSources: []string{"feed"}}, "index_feed: is empty"},
		{"feed that nobody asks", mirror.Config{AgeSources: []string{"index"}, IndexFeed: "https://index.example/index"}, "index_feed: is of no use"},
		{"feed with a query", mirror.Config{AgeSources: []string{"feed"}, IndexFeed: "https://index.example/index?x=1"}, "index_feed: "},
		{"feed without a path", mirror.Config{AgeSources: []string{"feed"}, IndexFeed: "https://index.example"}, "index_feed: "},
		{"feed with a password", mirror.Config{AgeSources: []string{"feed"}, IndexFeed: "https://a:b@index.example/index"}, "index_feed: "},
		{"feed over http", mirror.Config{AgeSources: []string{"feed"}, IndexFeed: "http://index.example/index"}, "index_feed: "},
		{"facts wait", mirror.Config{FactsWait: -1}, "facts_wait: -1"},
		{"name", mirror.Config{OwnSumdb: mirror.OwnSumdb{Name: "Corp Sumdb"}}, "own_sumdb.name: "},
	} {
		errs := tt.cfg.Validate()
		if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want) {
			t.Errorf("%s: %v, want one error that begins with %s", tt.name, errs, tt.want)
		}
	}
}
