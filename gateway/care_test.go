package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
)

// onSocket asks the administration interface as root of this machine does; afar, as the holder of an admin token.
func (b *bench) onSocket(method, path, body string) *httptest.ResponseRecorder {
	return b.administer("socket", method, path, body)
}

func (b *bench) administer(via, method, path, body string) *httptest.ResponseRecorder {
	admin := identity.Principal{
		Subject: identity.Subject{Type: identity.Person, ID: "root"}, Credential: identity.Credential{Via: via},
		Scope: identity.Scope{Actions: []string{identity.ActionAdmin}},
	}
	r := httptest.NewRequest(method, "/-/api/v1/mirror/"+path, strings.NewReader(body))
	w := httptest.NewRecorder()
	b.local.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, admin)))
	return w
}

// lastEvent is what the last line of a long operation's answer says.
func lastEvent(tb testing.TB, w *httptest.ResponseRecorder) CareEvent {
	tb.Helper()
	var last CareEvent
	lines := bufio.NewScanner(w.Body)
	for lines.Scan() {
		last = CareEvent{}
		must(tb, json.Unmarshal(lines.Bytes(), &last))
	}
	if last.Result == nil {
		tb.Fatalf("status %d: the answer ends without a result: %+v", w.Code, last)
	}
	return last
}

// What cannot be meant is refused before anything is done, and is in the log.
func TestCareRefuses(t *testing.T) {
	b := newBench(t, hello)
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		via, method, path, body string
		status                  int
		says                    string
	}{
		"a relative folder":              {"socket", "POST", "import", `{"source":"cache"}`, 400, "absolute"},
		"no folder":                      {"socket", "POST", "import", `{}`, 400, "absolute"},
		"import from afar":               {"token", "POST", "import", `{"source":"/etc"}`, 400, "on the gateway's machine"},
		"export from afar":               {"token", "POST", "export", `{"out":"/etc/cron.d/x"}`, 400, "on the gateway's machine"},
		"a relative bundle":              {"socket", "POST", "export", `{"out":"../b"}`, 400, "absolute"},
		"a pattern that is none":         {"socket", "POST", "import", `{"source":"` + dir + `","modules":["["]}`, 400, "modules"},
		"a version that is none":         {"socket", "POST", "prefetch", `{"versions":[{"module":"example.com/hello","version":"../../x"}]}`, 400, "no version"},
		"a key that is none":             {"socket", "POST", "gc", `{"max_byte":1}`, 400, "max_byte"},
		"no JSON":                        {"socket", "POST", "verify", `yes`, 400, ""},
		"a pace below zero":              {"socket", "POST", "verify", `{"bytes_per_second":-1}`, 400, "bytes_per_second"},
		"gc without a limit":             {"socket", "POST", "gc", `{}`, 400, "no limit"},
		"gc with a limit below zero":     {"socket", "POST", "gc", `{"max_bytes":-1}`, 400, "limit"},
		"quarantine without a reason":    {"socket", "POST", "quarantine", `{"module":"example.com/hello","version":"v1.0.0","reason":" "}`, 400, "reason"},
		"purge without a reason":         {"socket", "POST", "purge", `{"module":"example.com/hello","version":"v1.0.0"}`, 400, "reason"},
		"quarantine of what is no path":  {"socket", "POST", "quarantine", `{"module":"/etc/passwd","version":"v1.0.0","reason":"r"}`, 400, "no version"},
		"release of what is not kept so": {"socket", "POST", "release", `{"module":"example.com/hello","version":"v1.0.0"}`, 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(b.records(t))
			w := b.administer(tt.via, tt.method, tt.path, tt.body)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
				t.Errorf("status %d, want %d with %q: %s", w.Code, tt.status, tt.says, w.Body)
			}
			if len(b.records(t)) == before {
				t.Error("it left no record")
			}
		})
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files were written: %v, %v", left, err)
	}
}

// Who is no administrator changes nothing, and learns nothing.
func TestCareWantsAnAdministrator(t *testing.T) {
	b := newBench(t, hello)
	for _, path := range []string{"import", "export", "prefetch", "verify", "gc", "quarantine", "release", "purge"} {
		r := httptest.NewRequest(http.MethodPost, "https://localhost:8443/-/api/v1/mirror/"+path, strings.NewReader(`{}`))
		r.RequestURI, r.TLS = "/-/api/v1/mirror/"+path, &tls.ConnectionState{}
		r.Header.Set("Authorization", "Bearer "+b.token)
		w := httptest.NewRecorder()
		b.public.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s with a developer's token: status %d, want 403: %s", path, w.Code, w.Body)
		}
	}
}

// One long operation runs at a time; another one is told so at once, and may run when it is over.
func TestCareOneAtATime(t *testing.T) {
	b := newBench(t, hello)
	if w := b.ask("GET", "/example.com/hello/@v/v1.0.0.zip", b.bearer()); w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	b.care.slot <- struct{}{}
	if w := b.onSocket("POST", "verify", `{}`); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "BUSY") {
		t.Errorf("while another one runs: status %d: %s", w.Code, w.Body)
	}
	<-b.care.slot
	w := b.onSocket("POST", "verify", `{}`)
	if e := lastEvent(t, w); w.Code != http.StatusOK || e.Error != "" || e.Result.Files == 0 || e.Result.Failed > 0 {
		t.Errorf("status %d, %+v, error %q; want files read and none failed", w.Code, e.Result, e.Error)
	}
	if len(b.care.slot) > 0 {
		t.Error("the slot is still taken")
	}
}

// A gateway that stops ends what runs: the client is told, and the log says that it did not come to its end.
func TestCareEndsWithTheGateway(t *testing.T) {
	b := newBench(t, hello)
	b.care.end()
	w := b.onSocket("POST", "prefetch", `{"versions":[{"module":"example.com/hello","version":"v1.0.0"}]}`)
	if e := lastEvent(t, w); !strings.Contains(e.Error, "stopping") {
		t.Errorf("error %q, want that the gateway is stopping", e.Error)
	}
	must(t, b.log.Close())
	for _, r := range b.records(t) {
		if r.Kind == audit.KindOutcome && r.Action == "mirror.prefetch" && r.Outcome.Aborted {
			return
		}
	}
	t.Error("no record says that it was ended")
}

// Quarantine hides a version until it is released; purge removes it. Each is recorded with its reason before it is done.
func TestCareOfOneVersion(t *testing.T) {
	b := newBench(t, hello)
	const file, version = "/example.com/hello/@v/v1.0.0.zip", `{"module":"example.com/hello","version":"v1.0.0","reason":"incident 42"}`
	get := func() int { return b.ask("GET", file, b.bearer()).Code }
	if got := get(); got != http.StatusOK {
		t.Fatalf("status %d", got)
	}
	for _, step := range []struct {
		path string
		then int
	}{{"quarantine", http.StatusForbidden}, {"release", http.StatusOK}, {"purge", http.StatusOK}} {
		if w := b.onSocket("POST", step.path, version); w.Code != http.StatusOK {
			t.Fatalf("%s: status %d: %s", step.path, w.Code, w.Body)
		}
		if left := b.stored(t); step.path == "purge" && left != 0 {
			t.Errorf("after purge %d zips are left", left)
		}
		if got := get(); got != step.then { // what was purged is fetched again
			t.Errorf("after %s: status %d, want %d", step.path, got, step.then)
		}
		recorded := false
		for _, r := range b.records(t) {
			recorded = recorded || r.Kind == audit.KindAdmin && r.Action == "mirror."+step.path && r.Module == "example.com/hello" && r.Subject.ID == "root"
		}
		if !recorded {
			t.Errorf("%s left no record of who did it", step.path)
		}
	}
}

// A file whose bytes are not what they were is named by verify, and is an incident in the log.
func TestCareFindsDamage(t *testing.T) {
	b := newBench(t, hello)
	if w := b.ask("GET", "/example.com/hello/@v/v1.0.0.zip", b.bearer()); w.Code != http.StatusOK {
		t.Fatalf("status %d", w.Code)
	}
	var zips []string
	must(t, filepath.WalkDir(filepath.Join(b.dir, "store"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".zip") {
			zips = append(zips, path)
		}
		return err
	}))
	if len(zips) != 1 {
		t.Fatalf("stored zips: %v", zips)
	}
	data, err := os.ReadFile(zips[0])
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.Chmod(zips[0], 0o600))
	must(t, os.WriteFile(zips[0], data, 0o600))
	e := lastEvent(t, b.onSocket("POST", "verify", `{}`))
	if e.Result.Failed != 1 || len(e.Result.Failures) != 1 || e.Result.Failures[0].Module != "example.com/hello" {
		t.Fatalf("verify says %+v", e.Result)
	}
	must(t, b.log.Close())
	for _, r := range b.records(t) {
		if r.Kind == audit.KindOutcome && r.Severity == 5 && r.Module == "example.com/hello" && strings.HasPrefix(r.Change.Object, "file ") {
			return
		}
	}
	t.Error("no record names the file")
}

// A private version stays when gc is not told to take private ones.
func TestCareCollectsBySize(t *testing.T) {
	b := newBench(t, hello)
	if w := b.ask("GET", "/example.com/hello/@v/v1.0.0.zip", b.bearer()); w.Code != http.StatusOK {
		t.Fatalf("status %d", w.Code)
	}
	dry := lastEvent(t, b.onSocket("POST", "gc", `{"max_bytes":1,"dry_run":true}`))
	if dry.Error != "" || b.stored(t) == 0 {
		t.Errorf("a dry run says %+v, error %q, and %d zips are left", dry.Result, dry.Error, b.stored(t))
	}
	young := lastEvent(t, b.onSocket("POST", "gc", `{"max_age_seconds":3600}`))
	if young.Result.Versions != 0 || b.stored(t) != 1 {
		t.Errorf("gc of what is an hour old removed %+v", young.Result)
	}
}

// stored is how many zips the store holds.
func (b *bench) stored(tb testing.TB) (n int) {
	tb.Helper()
	must(tb, filepath.WalkDir(filepath.Join(b.dir, "store"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".zip") {
			n++
		}
		return err
	}))
	return n
}

// What the configuration wants done by itself gives way to an administrator, and is recorded like any other.
func TestCareByItself(t *testing.T) {
	b := newBench(t, hello)
	ran := 0
	work := func(context.Context) (mirror.CareReport, error) { ran++; return mirror.CareReport{Versions: 3}, nil }
	b.care.slot <- struct{}{}
	b.byItself(t.Context(), "mirror.gc", audit.Change{Object: "gc"}, work)
	<-b.care.slot
	if ran != 0 {
		t.Error("it ran beside an administrator's operation")
	}
	b.byItself(t.Context(), "mirror.gc", audit.Change{Object: "gc"}, work)
	must(t, b.log.Close())
	decided, done := -1, -1
	for i, r := range b.records(t) {
		switch {
		case r.Kind == audit.KindAdmin && r.Action == "mirror.gc" && r.Subject.ID == "headgate":
			decided = i
		case r.Kind == audit.KindOutcome && r.Action == "mirror.gc" && strings.Contains(r.Change.Note, "versions 3"):
			done = i
		}
	}
	if ran != 1 || decided < 0 || done < decided {
		t.Errorf("ran %d times; record of the decision %d, of the outcome %d", ran, decided, done)
	}
}
