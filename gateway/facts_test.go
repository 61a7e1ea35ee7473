package gateway

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
)

// remirror puts another mirror over the bench's store and database, whose clock is behind by as much.
func (b *bench) remirror(tb testing.TB, behind time.Duration, sources ...string) {
	tb.Helper()
	must(tb, b.mirror.Close())
	m, err := mirror.New(tb.Context(), mirror.Config{
		Upstreams: []string{b.upstream.URL}, Sumdb: []string{b.upstream.Key()}, Store: filepath.Join(b.dir, "store"), AgeSources: sources,
	}, mirror.Options{DB: b.db, State: b.dir, Host: "localhost", Now: func() time.Time { return time.Now().Add(-behind) }})
	must(tb, err)
	tb.Cleanup(func() { m.Close() })
	b.mirror = m
}

// A cooldown lets a version through that is new here, but that the checksum database had ten days ago.
func TestCooldownByRecordNumber(t *testing.T) {
	b := newBench(t, library(0), library(1), library(2))
	b.remirror(t, 10*24*time.Hour, "index", "sumdb")
	must(t, b.upstream.Record("example.com/lib0", "v1.0.0"))                             // somebody else's lookup
	if w := b.ask("GET", "/example.com/lib1/@v/v1.0.0.mod", b.bearer()); w.Code != 200 { // shows a head of two records
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	b.remirror(t, 0, "index", "sumdb")
	for _, path := range []string{"/example.com/lib0/@v/v1.0.0.zip", "/example.com/lib0/@v/v1.0.0.info"} {
		if w := b.ask("GET", path, b.bearer()); w.Code != 200 {
			t.Errorf("%s, new here, ten days old: %d\n%s", path, w.Code, w.Body)
		}
	}
	if w := b.ask("GET", "/example.com/lib0/@v/list", b.bearer()); w.Body.String() != "v1.0.0\n" {
		t.Errorf("its list: %d %q", w.Code, w.Body)
	}
	w := b.ask("GET", "/example.com/lib2/@v/v1.0.0.zip", b.bearer())
	if w.Code != 403 || w.Header().Get("Headgate-Code") != "COOLDOWN" {
		t.Errorf("a version that is new everywhere: %d %s\n%s", w.Code, w.Header().Get("Headgate-Code"), w.Body)
	}
	if want := time.Now().UTC().AddDate(0, 0, 7).Format(time.DateOnly); !strings.Contains(w.Body.String(), want) {
		t.Errorf("the refusal does not name the day %s:\n%s", want, w.Body)
	}
	if w := b.ask("GET", "/example.com/lib2/@v/list", b.bearer()); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("list of a young module: %d %q", w.Code, w.Body)
	}
}

// The default bundle forbids some licences. They are in the zip, and judged there alone.
func TestForbiddenLicenceIsRefusedAtTheZip(t *testing.T) {
	agpl, err := os.ReadFile(filepath.Join("testdata", "agpl.txt"))
	must(t, err)
	licensed := func(name, licence string) string {
		return fmt.Sprintf("module example.com/%s@v1.0.0\n-- go.mod --\nmodule example.com/%[1]s\n-- LICENSE --\n%s\n-- m.go --\npackage m\n", name, licence)
	}
	b := newBench(t, licensed("copyleft", string(agpl)), licensed("odd", "Ask first."), licensed("named", "SPDX-License-Identifier: AGPL-3.0-or-later"), hello)
	for _, tt := range []struct {
		path, code string
		status     int
		warning    string
	}{
		{"/example.com/copyleft/@v/list", "", 200, ""},
		{"/example.com/copyleft/@v/v1.0.0.info", "", 200, ""},
		{"/example.com/copyleft/@v/v1.0.0.mod", "", 200, ""},
		{"/example.com/copyleft/@v/v1.0.0.zip", "LICENCE", 403, ""},
		{"/example.com/copyleft/@v/v1.0.0.info", "", 200, ""},
		{"/example.com/named/@v/v1.0.0.zip", "LICENCE", 403, ""},
		{"/example.com/odd/@v/v1.0.0.zip", "", 200, "LICENCE-UNKNOWN"},
		{"/example.com/hello/@v/v1.0.0.zip", "", 200, "LICENCE-UNKNOWN"},
	} {
		w := b.ask("GET", tt.path, b.bearer())
		if w.Code != tt.status || w.Header().Get("Headgate-Code") != tt.code || !strings.Contains(w.Header().Get("Headgate-Warning"), tt.warning) {
			t.Errorf("%s: %d %q, warning %q; want %d %q, %q\n%s", tt.path, w.Code, w.Header().Get("Headgate-Code"), w.Header().Get("Headgate-Warning"), tt.status, tt.code, tt.warning, w.Body)
		}
		if tt.status == 403 && (!strings.Contains(w.Body.String(), "its licence is AGPL-3.0-or-later") || !strings.Contains(w.Body.String(), "decision ")) {
			t.Errorf("the refusal of %s does not name the licence:\n%s", tt.path, w.Body)
		}
	}
}
