package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// A bench is a gateway of real parts in this process, over an upstream of the test.
type bench struct {
	*Server
	upstream *mirrortest.Server
	dir      string
	log      *audit.Log
	db       *sql.DB
	token    string
}

func newBench(tb testing.TB, archives ...string) *bench {
	tb.Helper()
	return newBenchOf(tb, identity.Config{}, archives...)
}

// newBenchOf is a bench with a configuration of identity.
func newBenchOf(tb testing.TB, cfg identity.Config, archives ...string) *bench {
	tb.Helper()
	dir := tb.TempDir()
	up := mirrortest.Start(tb, archives...)
	logger := slog.New(slog.DiscardHandler)
	log, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit"), SegmentBytes: 8 << 20}, audit.Options{Node: "test", Logger: logger})
	must(tb, err)
	tb.Cleanup(func() { log.Close() })
	db := statetest.OpenDB(tb)
	id, err := identity.Open(tb.Context(), cfg, identity.Options{DB: db, Keys: dir, Fingerprint: log.Fingerprint})
	must(tb, err)
	tb.Cleanup(func() { id.Close() })
	engine, err := policy.Open(tb.Context(), policy.Config{}, policy.Options{Embedded: policies.FS, Logger: logger})
	must(tb, err)
	tb.Cleanup(func() { engine.Close() })
	m, err := mirror.New(tb.Context(), mirror.Config{Upstreams: []string{up.URL}, Sumdb: []string{up.Key()}, Store: filepath.Join(dir, "store")}, mirror.Options{Logger: logger, DB: db, State: dir, Host: "localhost"})
	must(tb, err)
	tb.Cleanup(func() { m.Close() })
	s := New(Config{State: dir, URL: "https://localhost:8443"}, Options{
		Identity: id, Policy: engine, Mirror: m, Audit: log, Logger: logger, Registry: prometheus.NewRegistry(), Version: "test",
	})
	b := &bench{Server: s, upstream: up, dir: dir, log: log, db: db}
	draft, err := id.Draft(tb.Context(), identity.TokenRequest{
		Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: "ann"},
		Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content"}},
	})
	must(tb, err)
	b.token, err = id.Issue(tb.Context(), draft)
	must(tb, err)
	return b
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// ask sends one request through the whole of the public handler.
func (b *bench) ask(method, target string, headers ...string) *httptest.ResponseRecorder {
	r := &http.Request{Method: method, Host: "localhost:8443", RequestURI: target, Header: http.Header{}, RemoteAddr: "127.0.0.1:1", TLS: &tls.ConnectionState{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		panic(err) // net/http would not have let it reach us
	}
	r.URL = u
	for _, h := range headers {
		key, value, _ := strings.Cut(h, ": ")
		r.Header.Add(key, value)
	}
	w := httptest.NewRecorder()
	b.public.ServeHTTP(w, r)
	return w
}

func (b *bench) bearer() string { return "Authorization: Bearer " + b.token }

// records reads the log back.
func (b *bench) records(tb testing.TB) []audit.Record {
	tb.Helper()
	var all []audit.Record
	err := audit.Tail(context.Background(), filepath.Join(b.dir, "audit"), audit.TailOptions{}, func(e audit.Entry) error {
		var r audit.Record
		all = append(all, r)
		return json.Unmarshal(e.Raw, &all[len(all)-1])
	})
	must(tb, err)
	return all
}

const hello = "module example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n-- h.go --\npackage hello\n"

// T77: whatever goes wrong, a refusal is no 404, 410 or redirect, and trouble is 5xx. The table below is the whole
// of what the parts can say.
func TestT77ProblemsAreNeverTakenForNotFound(t *testing.T) {
	refusals := []error{
		errRequest, mirror.ErrSpelling, errHost, errMethod, errAudit, errStopping, errNoAccess, policy.ErrNoPolicy, policy.ErrPolicy, policy.ErrQuota,
		mirror.ErrUnknownSumdb, mirror.ErrPrivate, mirror.ErrMismatch, mirror.ErrNotListed, mirror.ErrSumdb, mirror.ErrUpstream,
		mirror.ErrTimeout, mirror.ErrNoPrivateSource, context.DeadlineExceeded, context.Canceled, errors.New("something else"),
		fmt.Errorf("joined with a missing file: %w", errors.Join(mirror.ErrUpstream, fs.ErrNotExist)),
		fmt.Errorf("%w: %w", mirror.ErrMismatch, fs.ErrNotExist),
	}
	for _, code := range []identity.Code{
		identity.CredentialMissing, identity.CredentialInvalid, identity.TokenExpired, identity.TokenRevoked, identity.ScopeExceeded,
		identity.DeviceRequired, identity.RequestInvalid, identity.IssuerDown, identity.StateDown, "SOMETHING-NEW",
	} {
		refusals = append(refusals, &identity.Error{Code: code, Err: fs.ErrNotExist})
	}
	for _, err := range refusals {
		p := problemOf(fmt.Errorf("asking: %w", err))
		if p.Status == http.StatusNotFound || p.Status == http.StatusGone || p.Status < 400 || p.Status > 599 {
			t.Errorf("problemOf(%v) has status %d, which the go command takes for something else than a refusal", err, p.Status)
		}
	}
	if p := problemOf(fmt.Errorf("asking: %w", policy.ErrQuota)); p.Status != http.StatusTooManyRequests || p.RetryAfter != 60 {
		t.Errorf("P14: who asks about too many new paths gets %d, after %d s; want 429, 60", p.Status, p.RetryAfter)
	}
	for _, err := range []error{fs.ErrNotExist, mirror.ErrNoRoute} {
		if p := problemOf(err); p.Status != http.StatusNotFound {
			t.Errorf("problemOf(%v) has status %d, want 404", err, p.Status)
		}
	}
}

// C23, C24: every body that is not policy's own is plain text of at most 8 lines, 648 bytes and 80 columns, printable.
func TestC24BodiesOfProblems(t *testing.T) {
	problems := []*Problem{problemOf(errors.New("x"))}
	for _, row := range table {
		problems = append(problems, problemOf(row.match))
	}
	for code := range identityProblems {
		problems = append(problems, problemOf(&identity.Error{Code: identity.Code(code), Err: errors.New("inner")}))
	}
	for _, p := range problems {
		body := p.body("ABCDEFGHIJKLMNOPQRSTUVWXYZ", strings.Repeat("f", 64))
		lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
		if len(lines) > 8 || len(body) > 648 {
			t.Errorf("%s: body has %d lines and %d bytes", p.Code, len(lines), len(body))
		}
		for _, line := range lines {
			if line == "" || len(line) > 79 || strings.ContainsFunc(line, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }) {
				t.Errorf("%s: line %q would not be shown as it is", p.Code, line)
			}
		}
		if strings.Contains(body, "inner") {
			t.Errorf("%s: body shows the error that is for the log: %q", p.Code, body)
		}
	}
}

// Every request leaves exactly one decision, whose id stands in the answer, and refusals ask no upstream.
func TestEveryRequestLeavesOneDecision(t *testing.T) {
	b := newBench(t, hello)
	tests := []struct {
		name, method, target string
		headers              []string
		status               int
		code                 string
	}{
		{"allowed", "GET", "/example.com/hello/@v/v1.0.0.mod", []string{b.bearer()}, 200, ""},
		{"C8 HEAD", "HEAD", "/example.com/hello/@v/v1.0.0.mod", []string{b.bearer()}, 200, ""},
		{"C8 root", "GET", "/", []string{b.bearer()}, 200, ""},
		{"not there", "GET", "/example.com/none/@v/list", []string{b.bearer()}, 404, "NOT-FOUND"},
		{"C4 latest is no version", "GET", "/example.com/hello/@v/latest.info", []string{b.bearer()}, 404, "NOT-FOUND"},
		{"no credential", "GET", "/example.com/hello/@v/list", nil, 401, "CREDENTIAL-MISSING"},
		{"T61 unknown token", "GET", "/example.com/hello/@v/list", []string{"Authorization: Bearer hg_hu_x"}, 401, "CREDENTIAL-INVALID"},
		{"two credentials", "GET", "/example.com/hello/@v/list", []string{b.bearer(), b.bearer()}, 400, "REQUEST-INVALID"},
		{"T59 credential of 20 kB", "GET", "/example.com/hello/@v/list", []string{"Authorization: Bearer " + strings.Repeat(".", 20<<10)}, 400, "REQUEST-INVALID"},
		{"T29 dots", "GET", "/example.com/../x/@v/list", []string{b.bearer()}, 400, "PATH-INVALID"},
		{"T30 escaped slash", "GET", "/example.com%2fhello/@v/list", []string{b.bearer()}, 400, "PATH-INVALID"},
		{"T72 long path", "GET", "/" + strings.Repeat("a", 5000), []string{b.bearer()}, 400, "REQUEST-INVALID"},
		{"C8 other method", "PUT", "/example.com/hello/@v/list", []string{b.bearer()}, 405, "METHOD-NOT-ALLOWED"},
		{"C40 unknown checksum database", "GET", "/sumdb/sum.evil.example/supported", []string{b.bearer()}, 403, "SUMDB-NOT-ALLOWED"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := b.ask(tt.method, tt.target, tt.headers...)
			if w.Code != tt.status || w.Header().Get("Headgate-Code") != tt.code {
				t.Fatalf("%s %.80s: %d %q, want %d %q: %s", tt.method, tt.target, w.Code, w.Header().Get("Headgate-Code"), tt.status, tt.code, w.Body)
			}
			id, found := w.Header().Get("Headgate-Decision"), 0
			for _, r := range b.records(t) {
				if r.Kind == audit.KindDecision && shortID(r.EventID) == id {
					found++
					if r.Decision.Status != tt.status {
						t.Errorf("record says status %d, the answer %d", r.Decision.Status, tt.status)
					}
				}
			}
			if found != 1 {
				t.Errorf("%d decision records have id %q, want 1", found, id)
			}
			if tt.status >= 400 && tt.method != "HEAD" && !strings.Contains(w.Body.String(), id) {
				t.Errorf("body does not name its decision: %s", w.Body)
			}
		})
	}
	for _, pattern := range []string{"*evil*", "*x/@v*", "*/@v/latest*"} {
		if n := b.upstream.Count(pattern); n != 0 {
			t.Errorf("upstream was asked for %s, which was refused", pattern)
		}
	}
}

// C50: a 304 and a range pass identity, policy and audit like a 200.
func TestC50ConditionalAndRange(t *testing.T) {
	b := newBench(t, hello)
	const zip = "/example.com/hello/@v/v1.0.0.zip"
	whole := b.ask("GET", zip, b.bearer())
	etag := whole.Header().Get("Etag")
	before := len(b.records(t))
	if w := b.ask("GET", zip, b.bearer(), "If-None-Match: "+etag); w.Code != http.StatusNotModified || w.Body.Len() != 0 {
		t.Errorf("If-None-Match: %d with %d bytes", w.Code, w.Body.Len())
	}
	if w := b.ask("GET", zip, b.bearer(), "Range: bytes=1-4"); w.Code != http.StatusPartialContent || !bytes.Equal(w.Body.Bytes(), whole.Body.Bytes()[1:5]) {
		t.Errorf("Range: %d with %q", w.Code, w.Body)
	}
	if w := b.ask("GET", zip, b.bearer(), "Range: bytes=1-4", `If-Range: "other"`); w.Code != http.StatusOK || w.Body.Len() != whole.Body.Len() {
		t.Errorf("If-Range of another file: %d with %d bytes", w.Code, w.Body.Len())
	}
	if w := b.ask("GET", zip, "If-None-Match: "+etag); w.Code != http.StatusUnauthorized {
		t.Errorf("If-None-Match without credential: %d", w.Code)
	}
	if after := len(b.records(t)); after < before+4 {
		t.Errorf("four requests left %d records", after-before)
	}
}

// A56, T71: with a log that cannot be written nothing is served and nothing fetched, and the status is 503.
func TestA56NothingIsServedUnrecorded(t *testing.T) {
	b := newBench(t, hello)
	must(t, b.log.Close())
	for _, target := range []string{"/example.com/hello/@v/v1.0.0.zip", "/example.com/hello/@v/list", "/", "/bad//path", "/sumdb/" + b.upstream.Sumdb() + "/latest"} {
		w := b.ask("GET", target, b.bearer())
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.HasPrefix(w.Body.String(), "AUDIT-DOWN") {
			t.Errorf("GET %s: %d %q, want 503 AUDIT-DOWN", target, w.Code, w.Body)
		}
	}
	if n := b.upstream.Count("*"); n != 0 {
		t.Errorf("upstream was asked %d times", n)
	}
}

// A45: a thousand different modules, people and paths make no new series.
func TestA45MetricSeriesStayClosed(t *testing.T) {
	b := newBench(t, hello)
	b.ask("GET", "/example.com/hello/@v/list", b.bearer())
	before, err := testutil.GatherAndCount(b.registry)
	must(t, err)
	for i := range 50 {
		b.ask("GET", fmt.Sprintf("/example.com/m%d/@v/list", i), b.bearer())
		b.ask("GET", fmt.Sprintf("/bad//%d", i))
	}
	after, err := testutil.GatherAndCount(b.registry)
	must(t, err)
	if before != after {
		t.Errorf("series grew from %d to %d", before, after)
	}
	problems, err := testutil.GatherAndLint(b.registry)
	must(t, err)
	for _, p := range problems {
		t.Errorf("metric %s: %s", p.Metric, p.Text)
	}
}

// T79, T28: nothing of an upstream's headers reaches a client.
func TestT79UpstreamHeadersStay(t *testing.T) {
	b := newBench(t, hello)
	b.upstream.Break("*", mirrortest.Fault{Header: http.Header{"Set-Cookie": {"a=b"}, "Www-Authenticate": {"Basic"}, "X-Internal": {"1"}, "Cache-Control": {"public"}}})
	w := b.ask("GET", "/example.com/hello/@v/v1.0.0.zip", b.bearer())
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	for _, name := range []string{"Set-Cookie", "Www-Authenticate", "X-Internal"} {
		if w.Header().Get(name) != "" {
			t.Errorf("the upstream's %s reached the client", name)
		}
	}
	if got := w.Header().Get("Cache-Control"); !strings.HasPrefix(got, "private") {
		t.Errorf("Cache-Control is %q, want private", got)
	}
}

func TestCertificateOfOurOwn(t *testing.T) {
	dir := t.TempDir()
	must(t, ensureLocalCA(dir, []string{"localhost", "127.0.0.1"}))
	first, err := loadCertificate(filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "leaf-key.pem"))
	must(t, err)
	must(t, ensureLocalCA(dir, []string{"localhost", "127.0.0.1"}))
	if changed, err := first.reload(); changed || err != nil {
		t.Errorf("a certificate that fits was made again: %v, %v", changed, err)
	}
	must(t, ensureLocalCA(dir, []string{"localhost", "go.corp.example"}))
	if changed, err := first.reload(); !changed || err != nil {
		t.Errorf("a new name did not make a new certificate: %v, %v", changed, err)
	}
	must(t, writeFile(filepath.Join(dir, "leaf.pem"), []byte("garbage"), 0o644))
	old := first.notAfter()
	if _, err := first.reload(); err == nil || first.notAfter() != old {
		t.Errorf("T7: garbage replaced the certificate in use: %v", err)
	}
	if _, err := loadCertificate(filepath.Join(dir, "none.pem"), filepath.Join(dir, "none-key.pem")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("T6: a missing certificate is no error at start: %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
		want string // beginning of the one error; "" for none
	}{
		{"defaults", Config{}, ""},
		{"whole", Config{URL: "https://go.corp.example/proxy", Hosts: []string{"go"}, Listen: ":443", Operations: "127.0.0.1:1", DrainWait: time.Second, TLS: TLS{"a", "b"}}, ""},
		{"http", Config{URL: "http://go.corp.example"}, "url: "},
		{"query in the URL", Config{URL: "https://go.corp.example/?x"}, "url: "},
		{"host with a port", Config{Hosts: []string{"https://x"}}, "hosts[0]: "},
		{"address without port", Config{Listen: "127.0.0.1"}, "listen: "},
		{"operations open to the network", Config{Operations: ":8081"}, "operations: "},
		{"one address twice", Config{Listen: "127.0.0.1:1", Operations: "127.0.0.1:1"}, "operations: "},
		{"negative wait", Config{DrainWait: -1}, "drain_wait: "},
		{"key without certificate", Config{TLS: TLS{Key: "k"}}, "tls: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			errs := tt.cfg.Validate()
			if tt.want == "" && len(errs) == 0 {
				return
			}
			if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want) {
				t.Errorf("Validate() = %v, want one error that begins with %q", errs, tt.want)
			}
		})
	}
}

// FuzzCanonical: what the front lets pass is one spelling, which no other reader takes for another path (T37).
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{"/", "/a/@v/list", "/%21a/@v/v1.0.0.zip", "//a", "/a/../b", "/%2e%2e", "/a\\b", "/a#b", "/a%", "a", "/é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if !canonical(raw) {
			return
		}
		r, err := http.NewRequest(http.MethodGet, "https://localhost"+raw, nil)
		if err != nil {
			return // net/http refuses it before us
		}
		if want := strings.ReplaceAll(raw, "%21", "!"); !strings.ContainsAny(raw, "?") && r.URL.Path != want {
			t.Errorf("canonical(%q), but net/url reads %q", raw, r.URL.Path)
		}
	})
}

func BenchmarkWarmMod(b *testing.B)  { benchmarkAsk(b, "/example.com/hello/@v/v1.0.0.mod") }
func BenchmarkWarmList(b *testing.B) { benchmarkAsk(b, "/example.com/hello/@v/list") }
func BenchmarkWarmZip(b *testing.B)  { benchmarkAsk(b, "/example.com/hello/@v/v1.0.0.zip") }

// benchmarkAsk measures the whole way of a warm request with 64 callers, without network.
func benchmarkAsk(b *testing.B, target string) {
	s := newBench(b, hello)
	if w := s.ask("GET", target, s.bearer()); w.Code != http.StatusOK {
		b.Fatalf("status %d: %s", w.Code, w.Body)
	}
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w := s.ask("GET", target, s.bearer())
			if w.Code != http.StatusOK {
				b.Errorf("status %d", w.Code)
			}
			_, _ = io.Copy(io.Discard, w.Body)
		}
	})
}

// What was decided and recorded, and then did not take effect, is recorded as such.
func TestFailedEffectLeavesAnOutcome(t *testing.T) {
	b := newBench(t, hello)
	admin := identity.Principal{
		Subject: identity.Subject{Type: identity.Person, ID: "user:root"}, Credential: identity.Credential{Via: "socket"},
		Scope: identity.Scope{Actions: []string{identity.ActionAdmin}},
	}
	must(t, b.db.Close())
	r := httptest.NewRequest(http.MethodPost, "/-/api/v1/tokens", strings.NewReader(`{"class":"person","subject":"eve","modules":["*"]}`))
	w := httptest.NewRecorder()
	b.local.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, admin)))
	if w.Code != http.StatusServiceUnavailable {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	must(t, b.log.Close()) // the note is on disk then
	var decided, failed bool
	for _, r := range b.records(t) {
		decided = decided || r.Kind == audit.KindAdmin && r.Action == "token.create"
		failed = failed || r.Kind == audit.KindOutcome && r.Action == "token.create" && r.Outcome.Aborted && r.Outcome.Status == http.StatusServiceUnavailable
	}
	if !decided || !failed {
		t.Errorf("records: decided %v, failed %v; want both", decided, failed)
	}
}

// What policy demands beside its answer is done: the full input in the record, a line for the owner, a header of warnings.
func TestObligationsAndWarnings(t *testing.T) {
	b := newBench(t, hello)
	var lines bytes.Buffer
	b.Server.log = slog.New(slog.NewTextHandler(&lines, nil))
	w := httptest.NewRecorder()
	x := b.begin(w, httptest.NewRequest(http.MethodGet, "/", nil))
	x.judged(policy.Decision{
		Effect: policy.Allow, Warnings: []policy.Reason{{Code: "RETRACTED"}, {Code: "RETRACTED"}, {Code: "DEPRECATED"}},
		Obligations: []policy.Obligation{{Kind: "log_full"}, {Kind: "notify_owner", Params: map[string]string{"owner": "appsec"}}},
		Eval:        policy.Eval{Entry: "release"}, Projected: []byte(`{"a":1}`),
	}, &policy.Input{Subject: policy.Subject{ID: "ann"}})
	x.send(bodyAnswer([]byte("ok"), textPlain))
	if got := w.Header().Get("Headgate-Warning"); got != "RETRACTED, DEPRECATED" {
		t.Errorf("Headgate-Warning is %q", got)
	}
	if !strings.Contains(lines.String(), "owner=appsec") {
		t.Errorf("nobody was told: %q", &lines)
	}
	var input struct {
		Full policy.Input `json:"full"`
	}
	if err := json.Unmarshal(x.rec.Input, &input); err != nil || input.Full.Subject.ID != "ann" {
		t.Errorf("the record's input is %s: %v", x.rec.Input, err)
	}
}

func TestTakesGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "br, gzip": true, "GZIP": true, "gzip;q=0": false, "gzip; q=0.0": false, "gzip;q=0.5": true, "xgzip": false,
	} {
		if got := takesGzip(header); got != want {
			t.Errorf("takesGzip(%q) = %v, want %v", header, got, want)
		}
	}
}

func TestJoinInput(t *testing.T) {
	joined := joinInput(nil, "access", nil)
	joined = joinInput(joined, "access", []byte(`{"a":1}`))
	joined = joinInput(joined, "release", []byte(strings.Repeat(" ", 4000)+`{"b":2}`))
	var got map[string]map[string]int
	if err := json.Unmarshal(joined, &got); err != nil || got["access"]["a"] != 1 || got["release"]["b"] != 2 {
		t.Errorf("joinInput gave %s: %v", joined, err)
	}
}
