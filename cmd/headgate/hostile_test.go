package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// maxGrowth is how much memory an attack may cost above what the gateway holds when idle, in bytes.
const maxGrowth = 64 << 20

// secret is the upstream's credential: it is to be seen nowhere else.
const secret = "canary-credential"

// An attack is one answer of a hostile upstream to one request for a module of its own.
type attack struct {
	name   string
	file   string                               // below /@v/
	zip    func(module.Version) ([]byte, error) // sent instead of the true one
	fault  mirrortest.Fault
	over   string // the site: "h1" (or empty), "h2", or "short", whose fetches have two seconds
	status int
	code   string // Headgate-Code
	body   string // of a 200
	// exempt leaves the checksum database out, so that other rules must hold.
	exempt bool
	// stays tells that the version is refused from then on: an incident.
	stays bool
}

func (a attack) module(i int) string {
	return fmt.Sprintf("%s/c%d", map[bool]string{true: "exempt.example", false: "example.com"}[a.exempt], i)
}

// A hostile upstream: each attack is refused with a clear text and the right status, nothing of it is stored, no
// temporary file stays, the next good answer works, and memory stays small.
func TestHostileUpstream(t *testing.T) {
	t.Parallel()
	up := mirrortest.StartTLS(t, helloModule)
	other := mirrortest.StartTLS(t)
	leaks := watch(other)
	attacks := slices.Concat(zipAttacks(), textAttacks(t), bodyAttacks(), statusAttacks(), redirectAttacks(other.URL))
	for i, a := range attacks {
		addTo(t, up, a.module(i))
		addTo(t, other, a.module(i))
	}
	sites := hostileSites(t, up, other)
	table := "peak memory above idle\n"
	for i, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			grown := sites[a.over].attacked(t, up, a, a.module(i))
			table += fmt.Sprintf("%8.1f MiB  %d %-18s %s\n", float64(grown)/(1<<20), a.status, a.code, a.name)
			if grown > maxGrowth {
				t.Errorf("peak memory grew by %d MiB above idle, want at most %d", grown>>20, maxGrowth>>20)
			}
		})
	}
	if l := leaks(); len(l) > 0 {
		t.Errorf("E9 the credential went to another host: %v", l)
	}
	for name, s := range sites {
		if strings.Contains(s.gateway.output.String(), secret) {
			t.Errorf("N16 the credential is in the log of %s", name)
		}
	}
	t.Log(table)
}

// attacked makes one attack and gives how far memory grew above idle.
func (s *hostileSite) attacked(t *testing.T, up *mirrortest.Server, a attack, name string) int64 {
	t.Helper()
	path := "/" + name + "/@v/" + a.file
	if a.zip != nil {
		body, err := a.zip(module.Version{Path: name, Version: "v1.0.0"})
		if err != nil {
			t.Fatal(err)
		}
		a.fault.Body = body
	}
	s.rest(t)
	up.Break(path, a.fault)
	s.gateway.forgetPeak(t)
	s.check(t, path, a)
	grown := s.gateway.peakRSS(t) - s.idle
	up.Clear()
	if s.leftAlone() {
		s.restart(t)
	}
	if a.status != http.StatusOK {
		s.nothingOf(t, name)
	}
	switch status, body := s.body(path); {
	case a.stays && status != http.StatusBadGateway:
		t.Errorf("C19 afterwards: status %d, want the version refused until its incident is closed", status)
	case !a.stays && status != http.StatusOK:
		t.Errorf("N15 afterwards, with a good upstream: status %d: %s", status, body)
	}
	if status, body := s.body("/example.com/hello/@v/v1.0.0.zip"); status != http.StatusOK {
		t.Errorf("another module afterwards: status %d: %s", status, body)
	}
	return grown
}

// check wants the right answer, and nothing of the upstream's in it.
func (s *hostileSite) check(t *testing.T, path string, a attack) {
	t.Helper()
	resp, err := s.get(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != a.status || resp.Header.Get("Headgate-Code") != a.code {
		t.Errorf("status %d %s, want %d %s: %s", resp.StatusCode, resp.Header.Get("Headgate-Code"), a.status, a.code, body[:min(len(body), 300)])
	}
	if a.status == http.StatusOK && a.body != "" && string(body) != a.body {
		t.Errorf("body %q, want %q", body, a.body)
	}
	lines := strings.Count(string(body), "\n")
	if a.status != http.StatusOK && (lines > 8 || lines == 0 || len(body) > 648 || !strings.HasPrefix(string(body), a.code+": ")) {
		t.Errorf("C24 the text has %d lines, %d bytes: %s", lines, len(body), body[:min(len(body), 1000)])
	}
	for _, h := range []string{"Set-Cookie", "Www-Authenticate", "X-Internal-Host", "Server", "Location", "Retry-After", "Content-Encoding"} {
		if v := resp.Header.Get(h); v != "" {
			t.Errorf("T79 the answer has %s: %s", h, v)
		}
	}
	if strings.Contains(string(body), secret) || strings.Contains(string(body), "internal-") {
		t.Errorf("T79 the text repeats what is the upstream's: %s", body)
	}
}

// A hostileSite is a gateway whose memory is watched.
type hostileSite struct {
	*site
	idle int64
}

// hostileSites start a gateway for each way to reach the upstream.
func hostileSites(t *testing.T, up, other *mirrortest.Server) map[string]*hostileSite {
	t.Helper()
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: up.TLS.Certificate().Raw})
	for name, text := range map[string]string{"ca.pem": string(ca), "credential": secret + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h1 := up.Listen(t).URL
	sites := map[string]*hostileSite{}
	for name, base := range map[string]string{"h1": h1, "h2": up.URL, "short": h1} {
		keys := fmt.Sprintf(`mirror: {upstreams: [%q], upstream_hosts: [{host: %q, credential_file: %s/credential, ca_file: %s/ca.pem}], `+
			`redirect_hosts: [%q], sumdb_exempt: [exempt.example], fetch_timeout: %s, sumdb: [%q]}`,
			base, host(base), dir, dir, host(other.URL), map[bool]string{true: "2s", false: "60s"}[name == "short"], up.Key())
		s := &hostileSite{site: newSite(t, up, "")}
		s.reconfigure(func(text string) string {
			before, _, _ := strings.Cut(text, "mirror: {")
			return before + keys + "\n"
		}, "SSL_CERT_FILE="+dir+"/ca.pem")
		s.warm(t)
		sites[name] = s
	}
	sites[""] = sites["h1"]
	return sites
}

// warm makes the gateway answer a few requests, and measures it when idle.
func (s *hostileSite) warm(t *testing.T) {
	t.Helper()
	for range 20 {
		if status, body := s.body("/example.com/hello/@v/v1.0.0.zip"); status != http.StatusOK {
			t.Fatalf("status %d: %s", status, body)
		}
	}
	s.idle = s.gateway.rss(t)
}

// rest starts the gateway again where an earlier attack has left its heap large: each is measured from idle.
func (s *hostileSite) rest(t *testing.T) {
	t.Helper()
	if s.gateway.rss(t) > s.idle+8<<20 {
		s.restart(t)
	}
}

func (s *hostileSite) restart(t *testing.T) {
	t.Helper()
	s.stop(syscall.SIGTERM)
	s.start()
	s.warm(t)
}

// leftAlone tells whether the breaker opened: files that come over one HTTP/2 connection fail together, so that one
// attack may be five failures in a row.
func (s *hostileSite) leftAlone() bool {
	log := s.gateway.output.String()
	last := strings.LastIndex(log, "upstream breaker changed")
	line, _, _ := strings.Cut(log[max(last, 0):], "\n")
	return last >= 0 && strings.Contains(line, "open") && !strings.Contains(line, "half")
}

// reconfigure changes the configuration and the environment, and starts the gateway again.
func (s *site) reconfigure(change func(string) string, env ...string) {
	s.t.Helper()
	s.stop(syscall.SIGTERM)
	file := filepath.Join(s.dir, "headgate.yaml")
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(change(string(text))), 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.env = append(s.env, env...)
	s.start()
}

func host(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		panic(err) // of a server of this test
	}
	return u.Host
}

// nothingOf fails if the store has a file of the module, or an unfinished one of anything. What the checksum database
// proved of the version is no file of it.
func (s *site) nothingOf(t *testing.T, name string) {
	t.Helper()
	waitFor(t, "no unfinished file is left", func() bool { return partial(t, s.dir) == 0 })
	walk(t, s.dir, func(path string) {
		if strings.Contains(path, "/"+name+"/") && !strings.Contains(path, "/sumdb/") {
			t.Errorf("stored: %s", path)
		}
	})
}

// watch collects what a server is sent that only the upstream may see.
func watch(s *mirrortest.Server) func() []string {
	var mu sync.Mutex
	var seen []string
	s.OnRequest = func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		for key, values := range r.Header {
			if key == "Authorization" || key == "Cookie" || key == "Referer" || strings.Contains(strings.Join(values, " "), secret) {
				seen = append(seen, key+" with "+r.URL.Path)
			}
		}
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

// noise does not compress, so that a bit of it is a bit of the zip.
var noise = func() []byte {
	b := make([]byte, 8<<10)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // which never fails
	return b
}()

func addTo(t *testing.T, up *mirrortest.Server, name string) {
	t.Helper()
	err := up.Add(mirrortest.Module{
		Version: module.Version{Path: name, Version: "v1.0.0"},
		Files:   map[string][]byte{"go.mod": []byte("module " + name + "\n"), "data": noise},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forgetPeak makes the kernel count peak memory from now on.
func (p *process) forgetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// rss is the memory that the process has resident now, in bytes.
func (p *process) rss(t *testing.T) int64 {
	t.Helper()
	p.forgetPeak(t)
	return p.peakRSS(t)
}

const (
	failed   = "UPSTREAM-FAILED"
	mismatch = "CHECKSUM-MISMATCH"
	slow     = "UPSTREAM-SLOW"
)

// zipAttacks are zips that nobody should unpack. The checksum database is asked about some, and left out of the others.
func zipAttacks() []attack {
	list := []attack{
		{name: "C19 zip with a flipped bit", file: "v1.0.0.zip", fault: mirrortest.Fault{Flip: true}, status: 502, code: failed},
		{name: "E8 truncated zip, length as announced", file: "v1.0.0.zip", fault: mirrortest.Fault{Cut: 300}, status: 502, code: failed},
		{name: "E8 truncated zip, shorter length announced", file: "v1.0.0.zip", fault: mirrortest.Fault{Body: []byte("PK\x03\x04 and no more")}, status: 502, code: failed},
		{name: "zip of 10 GB, announced", file: "v1.0.0.zip", fault: mirrortest.Fault{Huge: 10 << 30, Header: http.Header{"Content-Length": {fmt.Sprint(10 << 30)}}}, status: 502, code: failed},
		{name: "zip of 10 GB, unannounced", file: "v1.0.0.zip", fault: mirrortest.Fault{Huge: 10 << 30}, status: 502, code: failed},
	}
	for i, z := range mirrortest.HostileZips(module.Version{}) {
		list = append(list, attack{
			name: "C47 " + z.Name, file: "v1.0.0.zip", status: 502, code: failed, exempt: true,
			zip: func(v module.Version) ([]byte, error) { return mirrortest.HostileZips(v)[i].Make() },
		})
	}
	return append(list,
		attack{name: "C19 whole zip with another hash", file: "v1.0.0.zip", zip: evilZip, status: 502, code: mismatch, stays: true},
		attack{name: "C19 whole zip with another go.mod", file: "v1.0.0.zip", zip: otherMod, status: 502, code: mismatch, stays: true},
		attack{name: "C47 zip of another module", file: "v1.0.0.zip", zip: otherZip, status: 502, code: failed},
	)
}

// evilZip is a legal zip of the version, with a file too many.
func evilZip(v module.Version) ([]byte, error) {
	return mirrortest.Module{Version: v, Files: map[string][]byte{"go.mod": []byte("module " + v.Path + "\n"), "evil.go": []byte("package evil\n")}}.Pack()
}

func otherMod(v module.Version) ([]byte, error) {
	return mirrortest.Module{Version: v, Files: map[string][]byte{"go.mod": []byte("module example.com/other\n")}}.Pack()
}

func otherZip(module.Version) ([]byte, error) {
	return evilZip(module.Version{Path: "example.com/hello", Version: "v1.0.0"})
}

// textAttacks are files that are read into memory.
func textAttacks(t *testing.T) []attack {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(make([]byte, 200<<20)); err != nil {
		t.Fatal(err)
	}
	z.Close()
	body := func(s string) mirrortest.Fault { return mirrortest.Fault{Body: []byte(s)} }
	lines := func(n int, line string) string { return strings.Repeat(line, n/len(line)) }
	return []attack{
		{name: "C19 .mod with another hash", file: "v1.0.0.mod", fault: body("module example.com/evil\n"), status: 502, code: mismatch, stays: true},
		{name: ".mod of 17 MiB, announced", file: "v1.0.0.mod", fault: body(lines(17<<20, "// x\n")), status: 502, code: failed},
		{name: ".mod of 17 MiB, unannounced", file: "v1.0.0.mod", fault: mirrortest.Fault{Huge: 17 << 20}, status: 502, code: failed},
		{name: ".mod of 15 MiB, unannounced, all requirements", file: "v1.0.0.mod", fault: body("module m\n" + lines(15<<20, "require a.b/c v1.0.0\n")), status: 502, code: mismatch, stays: true},
		{name: ".mod of 8 MiB, exempt", file: "v1.0.0.mod", fault: body("module m\n" + lines(8<<20, "require a.b/c v1.0.0\n")), status: 200, exempt: true},
		{name: ".mod of 1 MiB, exempt", file: "v1.0.0.mod", fault: body("module m\n" + lines(1<<20-64, "require a.b/c v1.0.0\n")), status: 200, exempt: true},
		{name: ".mod that does not parse", file: "v1.0.0.mod", fault: body("module \"\n(((("), status: 502, code: failed},
		{name: "E15 .info of another version", file: "v1.0.0.info", fault: body(`{"Version":"v1.0.1"}`), status: 502, code: failed},
		{name: ".info of 2 MiB", file: "v1.0.0.info", fault: body(`{"Version":"v1.0.0","X":"` + lines(2<<20, "x") + `"}`), status: 502, code: failed},
		{name: ".info nested without end", file: "v1.0.0.info", fault: body(`{"Version":"v1.0.0","X":` + lines(1<<20-64, "[")), status: 502, code: failed},
		{name: ".info with a version that is a path", file: "v1.0.0.info", fault: body(`{"Version":"../../v1.0.0"}`), status: 502, code: failed},
		{name: "list of 17 MiB", file: "list", fault: body(lines(17<<20, "v1.0.0\n")), status: 502, code: failed},
		{name: "list of 17 MiB, unannounced", file: "list", fault: mirrortest.Fault{Huge: 17 << 20}, status: 502, code: failed},
		{name: "list of 1,200,000 versions", file: "list", fault: body(manyVersions(1_200_000)), status: 502, code: failed},
		{name: "list of 15,001 versions", file: "list", fault: body(manyVersions(15_001)), status: 502, code: failed},
		{name: "list of one version two million times", file: "list", fault: body(lines(16<<20-64, "v1.0.0\n")), status: 502, code: failed},
		{name: "list of 200 versions", file: "list", fault: body(manyVersions(200)), status: 200},
		{
			name: "list with garbage, pseudo-versions, duplicates, CRLF", file: "list", status: 200, body: "v1.0.0\nv1.1.0\n",
			fault: body("v1.0.0\r\nv1.0.0\n\n  \nv0.0.0-20240501000000-abcdefabcdef\nv1.1.0 2024-05-01T00:00:00Z\nlatest\nv2.0.0\n../../x\nv1.2\n\x1b[31mv1.3.0\nv1.1.0\n"),
		},
		{name: "list that is HTML with 200", file: "list", fault: body("<!DOCTYPE html><html><body>Sign in</body></html>\n"), status: 502, code: failed},
		{name: ".info that is HTML with 200", file: "v1.0.0.info", fault: body("<html>sign in</html>"), status: 502, code: failed},
		{name: ".mod that is HTML with 200", file: "v1.0.0.mod", fault: body("<html>sign in</html>"), status: 502, code: failed},
		{name: "C17 .info that is empty", file: "v1.0.0.info", fault: body(""), status: 502, code: failed},
		{name: "C17 .mod that is empty", file: "v1.0.0.mod", fault: body(""), status: 502, code: failed},
		{name: "C17 zip that is empty", file: "v1.0.0.zip", fault: body(""), status: 502, code: failed},
		{name: "gzip bomb as Content-Encoding", file: "v1.0.0.mod", fault: mirrortest.Fault{Body: packed.Bytes(), Header: http.Header{"Content-Encoding": {"gzip"}}}, status: 502, code: failed},
		{name: "gzip garbage as Content-Encoding", file: "v1.0.0.info", fault: mirrortest.Fault{Body: []byte("\x1f\x8bgarbage"), Header: http.Header{"Content-Encoding": {"gzip"}}}, status: 502, code: failed},
		{name: "gzip without saying so", file: "v1.0.0.mod", fault: mirrortest.Fault{Body: packed.Bytes()}, status: 502, code: failed},
	}
}

func manyVersions(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "v1.%d.0\n", i)
	}
	return b.String()
}

// bodyAttacks break the transfer.
func bodyAttacks() []attack {
	raw := func(s string) mirrortest.Fault { return mirrortest.Fault{Raw: []byte(s)} }
	const ok = "HTTP/1.1 200 OK\r\n"
	return []attack{
		{name: "E8 body shorter than its Content-Length", file: "v1.0.0.mod", fault: raw(ok + "Content-Length: 1000\r\n\r\nmodule x\n"), status: 502, code: failed},
		{name: "body longer than its Content-Length", file: "v1.0.0.zip", fault: raw(ok + "Content-Length: 10\r\n\r\n" + strings.Repeat("x", 5000)), status: 502, code: failed},
		{name: "two Content-Lengths", file: "v1.0.0.mod", fault: raw(ok + "Content-Length: 10\r\nContent-Length: 11\r\n\r\nmodule x\n"), status: 502, code: failed},
		{name: "chunks that are none", file: "v1.0.0.mod", fault: raw(ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\nmodule x\n"), status: 502, code: failed},
		{name: "no HTTP", file: "v1.0.0.mod", fault: raw("SSH-2.0-OpenSSH_9.9\r\n" + strings.Repeat("x", 1<<20)), status: 502, code: failed},
		{name: "100 Continue without end", file: "v1.0.0.mod", fault: raw(strings.Repeat("HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", 100_000)), status: 502, code: failed},
		{name: "headers of 1 MiB", file: "v1.0.0.mod", fault: mirrortest.Fault{Header: http.Header{"X-Big": {strings.Repeat("x", 1<<20)}}}, status: 502, code: failed},
		{name: "headers of 1 MiB over HTTP/2", over: "h2", file: "v1.0.0.mod", fault: mirrortest.Fault{Header: http.Header{"X-Big": {strings.Repeat("x", 1<<20)}}}, status: 502, code: failed},
		{name: "connection closed before the headers", file: "v1.0.0.info", fault: raw(""), status: 502, code: failed},
		{name: "N15 connection reset in mid-body", file: "v1.0.0.zip", fault: mirrortest.Fault{Cut: 100, Reset: true}, status: 502, code: failed},
		{name: "N15 HTTP/2 stream reset in mid-body", over: "h2", file: "v1.0.0.zip", fault: mirrortest.Fault{Cut: 100}, status: 502, code: failed},
		{name: "C21 hang before the headers", over: "short", file: "v1.0.0.mod", fault: mirrortest.Fault{Hang: true}, status: 504, code: slow},
		{name: "C21 one byte a second", over: "short", file: "v1.0.0.zip", fault: mirrortest.Fault{Pause: time.Second, Step: 1}, status: 504, code: slow},
		{name: "N15 reset once, then well", file: "v1.0.0.zip", fault: mirrortest.Fault{Cut: 100, Reset: true, Times: 1}, status: 200},
	}
}

// statusAttacks are answers that must never look like a module that is not there.
func statusAttacks() []attack {
	var list []attack
	for _, status := range []int{204, 206, 304, 400, 401, 403, 407, 418, 421, 429, 451, 500, 501, 502, 503, 504} {
		a := attack{name: fmt.Sprintf("N13 C18 status %d", status), file: "v1.0.0.mod", status: 502, code: failed, fault: mirrortest.Fault{
			Status: status, Body: []byte("internal-host says no, " + secret), Header: http.Header{
				"Www-Authenticate": {`Basic realm="internal-realm"`}, "Set-Cookie": {"session=1"}, "X-Internal-Host": {"internal-7"},
				"Server": {"internal-server"}, "Retry-After": {"3600"}, "Location": {"https://internal-host/"},
			},
		}}
		if status == 204 || status == 304 {
			a.fault.Body = []byte{}
		}
		if status == 504 {
			a.status, a.code = 504, slow
		}
		list = append(list, a)
	}
	return append(list, attack{name: "T79 headers of a good answer", file: "v1.0.0.mod", status: 200, fault: mirrortest.Fault{Header: http.Header{
		"Www-Authenticate": {"Basic"}, "Set-Cookie": {"session=1"}, "X-Internal-Host": {"internal-7"}, "Server": {"internal-server"},
		"Retry-After": {"1"}, "Location": {"https://internal-host/"}, "Content-Type": {"text/html"}, "Etag": {`"theirs"`}, "Cache-Control": {"public"},
	}}})
}

// redirectAttacks lead elsewhere. The other host is one that redirects may lead to: it is asked, without the credential.
func redirectAttacks(other string) []attack {
	const file = "v1.0.0.mod"
	to := func(u string) mirrortest.Fault { return mirrortest.Fault{Redirect: u} }
	list := []attack{
		{name: "E9 redirect loop", file: file, fault: to("self"), status: 502, code: failed},
		{name: "E9 redirect to http", file: file, fault: to("http://example.org/x"), status: 502, code: failed},
		{name: "E9 redirect to a private address", file: file, fault: to("https://10.0.0.1/x"), status: 502, code: failed},
		{name: "E9 redirect to the cloud's metadata", file: file, fault: to("https://169.254.169.254/latest/meta-data"), status: 502, code: failed},
		{name: "E9 redirect to loopback by another spelling", file: file, fault: to("https://[::ffff:127.0.0.1]:1/x"), status: 502, code: failed},
		{name: "E9 redirect to a file", file: file, fault: to("file:///etc/passwd"), status: 502, code: failed},
	}
	return append(list, attack{name: "E9 N18 redirect to another host", file: file, status: 200, fault: to(other + "/")})
}
