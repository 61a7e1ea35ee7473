package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// agentOver is an agent over a handler that stands for the gateway, and how often that was asked.
func agentOver(t *testing.T, gateway http.HandlerFunc) (*agent, *httptest.Server, *atomic.Int64) {
	t.Helper()
	var asked atomic.Int64
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		gateway(w, r)
	}))
	t.Cleanup(up.Close)
	srv := httptest.NewUnstartedServer(nil)
	a, err := newAgent(up.URL+"/base", srv.Listener.Addr().String(), http.DefaultTransport)
	if err != nil {
		t.Fatal(err)
	}
	srv.Config.Handler = a
	srv.Start()
	t.Cleanup(srv.Close)
	return a, srv, &asked
}

// raw sends a request as it is written and gives the answer.
func raw(t *testing.T, address, text string) (status int, header http.Header, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, strings.ReplaceAll(text, "\n", "\r\n")+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(all)
}

// Whoever is not this user's go command gets nothing from the agent, and the gateway hears nothing of it.
func TestAgentRefuses(t *testing.T) {
	a, srv, asked := agentOver(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "bytes") })
	path, host := "/"+a.prefix+"/example.com/m/@v/list", srv.Listener.Addr().String()
	_, port, _ := strings.Cut(host, ":")
	if len(a.prefix) < 26 {
		t.Errorf("the path has %d letters of base 32, want 26 for 130 bits", len(a.prefix))
	}
	for name, tt := range map[string]struct {
		request string
		status  int
	}{
		"T83 no path":                       {"GET / HTTP/1.1\nHost: " + host, 403},
		"T83 no prefix":                     {"GET /example.com/m/@v/list HTTP/1.1\nHost: " + host, 403},
		"T83 a guess":                       {"GET /" + strings.Repeat("A", 26) + "/m HTTP/1.1\nHost: " + host, 403},
		"T83 all but the last letter":       {"GET /" + a.prefix[:25] + "/m HTTP/1.1\nHost: " + host, 403},
		"T83 a letter more":                 {"GET /" + a.prefix + "A/m HTTP/1.1\nHost: " + host, 403},
		"T83 behind a slash":                {"GET //" + a.prefix + "/m HTTP/1.1\nHost: " + host, 403},
		"T83 behind dots":                   {"GET /x/../" + a.prefix + "/m HTTP/1.1\nHost: " + host, 403},
		"T83 in a query":                    {"GET /?" + a.prefix + " HTTP/1.1\nHost: " + host, 403},
		"T83 escaped":                       {fmt.Sprintf("GET /%%%02x%s/m HTTP/1.1\nHost: %s", a.prefix[0], a.prefix[1:], host), 403},
		"T83 lower case":                    {"GET /" + strings.ToLower(a.prefix) + "/m HTTP/1.1\nHost: " + host, 403},
		"T84 DNS rebinding":                 {"GET " + path + " HTTP/1.1\nHost: evil.example:" + port, 421},
		"T84 a name that leads to loopback": {"GET " + path + " HTTP/1.1\nHost: localhost:" + port, 421},
		"T84 without the port":              {"GET " + path + " HTTP/1.1\nHost: 127.0.0.1", 421},
		"T84 another port":                  {"GET " + path + " HTTP/1.1\nHost: 127.0.0.1:1", 421},
		"T84 no host":                       {"GET " + path + " HTTP/1.0", 421},
		"T84 as a proxy":                    {"GET http://evil.example" + path + " HTTP/1.1\nHost: " + host, 421},
		"T85 Origin":                        {"GET " + path + " HTTP/1.1\nHost: " + host + "\nOrigin: https://evil.example", 403},
		"T85 Origin null":                   {"GET " + path + " HTTP/1.1\nHost: " + host + "\nOrigin: null", 403},
		"T85 an empty Origin":               {"GET " + path + " HTTP/1.1\nHost: " + host + "\nOrigin:", 403},
		"T85 Sec-Fetch-Site":                {"GET " + path + " HTTP/1.1\nHost: " + host + "\nSec-Fetch-Site: same-origin", 403},
		"T85 sec-fetch-mode":                {"GET " + path + " HTTP/1.1\nHost: " + host + "\nsec-fetch-mode: no-cors", 403},
		"a page posts":                      {"POST " + path + " HTTP/1.1\nHost: " + host + "\nContent-Length: 0", 405},
		"a body":                            {"GET " + path + " HTTP/1.1\nHost: " + host + "\nContent-Length: 1\n\nx", 405},
		"a preflight":                       {"OPTIONS " + path + " HTTP/1.1\nHost: " + host, 405},
		"a tunnel":                          {"CONNECT evil.example:443 HTTP/1.1\nHost: evil.example:443", 421},
	} {
		t.Run(name, func(t *testing.T) {
			status, header, body := raw(t, host, tt.request)
			if status != tt.status || !strings.HasPrefix(body, "AGENT: ") || header.Get("Access-Control-Allow-Origin") != "" || strings.Contains(body, a.prefix) {
				t.Errorf("status %d, want %d: %v %s", status, tt.status, header, body)
			}
		})
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the gateway was asked %d times", n)
	}
	if status, _, body := raw(t, host, "GET "+path+" HTTP/1.1\nHost: "+host); status != 200 || body != "bytes" || asked.Load() != 1 {
		t.Errorf("the user's own request: %d %s", status, body)
	}
}

// What the agent passes on is the path as it was written, and nothing that the caller has of his own.
func TestAgentPassesOn(t *testing.T) {
	var seen *http.Request
	a, srv, _ := agentOver(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("WWW-Authenticate", `Bearer error="token_expired"`)
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "PATH-NOT-ALLOWED: why\n")
	})
	host := srv.Listener.Addr().String()
	status, header, body := raw(t, host, "GET /"+a.prefix+"/example.com/%21big//x/../@v/list?a=b HTTP/1.1\nHost: "+host+
		"\nAuthorization: Basic c2VjcmV0\nCookie: c=d\nReferer: http://x\nX-Forwarded-For: 1.2.3.4\nAccept-Encoding: identity\nDisable-Module-Fetch: true")
	if status != 403 || body != "PATH-NOT-ALLOWED: why\n" || header.Get("Set-Cookie") != "" {
		t.Errorf("answer %d %v %s", status, header, body)
	}
	if seen.RequestURI != "/base/example.com/%21big//x/../@v/list?a=b" || seen.Header.Get("Disable-Module-Fetch") != "true" || seen.Host == host {
		t.Errorf("the gateway saw %s %s %v", seen.Host, seen.RequestURI, seen.Header)
	}
	for _, name := range []string{"Authorization", "Cookie", "Referer", "X-Forwarded-For"} {
		if value := seen.Header.Get(name); value != "" {
			t.Errorf("the gateway saw %s: %s", name, value)
		}
	}
}

// A redirect would take the go command past the gateway.
func TestAgentFollowsNoRedirect(t *testing.T) {
	a, srv, asked := agentOver(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://evil.example/m.zip", http.StatusFound)
	})
	host := srv.Listener.Addr().String()
	status, header, body := raw(t, host, "GET /"+a.prefix+"/m HTTP/1.1\nHost: "+host)
	if status != 502 || header.Get("Location") != "" || !strings.HasPrefix(body, "AGENT: ") || asked.Load() != 1 {
		t.Errorf("C9 answer %d %v %s", status, header, body)
	}
}

// Bytes go on as they come: the second part is written only once the first has arrived.
func TestAgentStreams(t *testing.T) {
	arrived := make(chan struct{})
	a, srv, _ := agentOver(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first")
		http.NewResponseController(w).Flush()
		select {
		case <-arrived:
			fmt.Fprint(w, "second")
		case <-r.Context().Done():
		}
	})
	resp, err := srv.Client().Get(a.url() + "/m.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	part := make([]byte, len("first"))
	if _, err := io.ReadFull(resp.Body, part); err != nil || string(part) != "first" {
		t.Fatalf("first part: %q %v", part, err)
	}
	close(arrived)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "second" {
		t.Errorf("second part: %q %v", rest, err)
	}
}

// startAgent runs the agent of a machine and gives its GOPROXY.
func (m *machine) startAgent(flags ...string) (string, *exec.Cmd) {
	m.t.Helper()
	cmd := m.command(m.t.Context(), m.c.bin, append([]string{"agent"}, flags...)...)
	out := &printed{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		if _, rest, ok := strings.Cut(out.String(), "export GOPROXY="); ok && strings.HasSuffix(rest, "\n") {
			return strings.TrimSpace(rest), cmd
		}
	}
	m.t.Fatalf("the agent does not start:\n%s", out)
	return "", nil
}

// The agent on a device, with the real go command: a token that ends in the middle of go mod download is renewed, what is
// under way when the agent is stopped is finished, and strangers leave no trace at the gateway.
func TestAgentEndToEnd(t *testing.T) {
	t.Parallel()
	up := mirrortest.Start(t, companyModules...)
	var m *machine
	var once sync.Once
	type hold struct{ reached, released chan struct{} }
	var held atomic.Pointer[hold]
	up.OnRequest = func(r *http.Request) {
		if h := held.Load(); h != nil && strings.HasSuffix(r.URL.Path, "hello/@v/v1.0.0.zip") {
			close(h.reached)
			<-h.released
		}
		if strings.HasPrefix(r.URL.Path, "/example.com/part0") && strings.HasSuffix(r.URL.Path, ".zip") {
			once.Do(func() { m.outlive() })
		}
	}
	c := newCompany(t, up, "agent: 3s")
	m = c.machine(t)
	m.downloads(up)
	m.enrol("laptop-17", "person-ann")
	m.login("ann")
	if _, errs, err := m.run(c.bin, "agent", "--listen", "0.0.0.0:0"); err == nil || !strings.Contains(errs, "of this machine alone") {
		t.Errorf("an agent for the whole network: %v %s", err, errs)
	}
	goproxy, agent := m.startAgent()
	m.env = []string{"GOMODCACHE=" + t.TempDir(), "GOPROXY=" + goproxy, "GOAUTH=off"}
	if out, errs, err := m.run("go", "mod", "download"); err != nil || out+errs != "" {
		t.Errorf("go mod download: %v\n%s%s", err, out, errs)
	}
	log, err := c.headgate("audit", "tail", "-n", "0")
	if err != nil || strings.Contains(log, "status=401 subject") || strings.Count(log, " token.exchange ") < 2 || strings.Count(log, "decision zip example.com/part") != 12 {
		t.Errorf("E17 the log does not show two tokens and 12 zips: %v\n%s", err, log)
	}
	current := decoded[shortToken](t, m.file("logins/*/token.json"))
	if out, err := c.headgate("token", "revoke", strings.Split(current.Token, "_")[2]); err != nil {
		t.Fatalf("token revoke: %v\n%s", err, out)
	}
	if resp, err := http.Get(goproxy + "/example.com/hello/@v/v1.0.0.mod"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("after its token was revoked the agent answers %v %v", resp, err)
	}

	host, _, _ := strings.Cut(strings.TrimPrefix(goproxy, "http://"), "/")
	for _, request := range []string{
		"GET /" + strings.Repeat("A", 26) + "/stranger.example/m/@v/list HTTP/1.1\nHost: " + host,
		"GET " + strings.TrimPrefix(goproxy, "http://"+host) + "/stranger.example/m/@v/list HTTP/1.1\nHost: evil.example",
		"GET " + strings.TrimPrefix(goproxy, "http://"+host) + "/stranger.example/m/@v/list HTTP/1.1\nHost: " + host + "\nOrigin: https://evil.example",
	} {
		if status, _, body := raw(t, host, request); status != 403 && status != 421 {
			t.Errorf("T83 T84 T85 a stranger gets %d %s", status, body)
		}
	}
	if log, err := c.headgate("audit", "tail", "-n", "0"); err != nil || strings.Contains(log, "stranger.example") {
		t.Errorf("T83 T84 T85 the gateway heard of strangers: %v\n%s", err, log)
	}

	under := &hold{make(chan struct{}), make(chan struct{})}
	held.Store(under)
	answer := make(chan error, 1)
	go func() {
		resp, err := http.Get(goproxy + "/example.com/hello/@v/v1.0.0.zip")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %s", resp.Status)
			}
		}
		answer <- err
	}()
	select {
	case <-under.reached:
	case <-time.After(patience):
		t.Fatal("the request does not reach the upstream")
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", host)
		if err != nil {
			break // it takes nobody new in
		}
		conn.Close()
	}
	close(under.released)
	if err := <-answer; err != nil {
		t.Errorf("what was under way when the agent was stopped: %v", err)
	}
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent ends with %v", err)
	}
	c.holdsNone(t, decoded[shortToken](t, m.file("logins/*/token.json")).Token)
}

// A device that is not one's own, or a key that is not the certificate's, opens nothing.
func TestAgentOfAnotherDevice(t *testing.T) {
	t.Parallel()
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	ann, ben := c.machine(t), c.machine(t)
	ann.enrol("laptop-17", "person-ann")
	ben.enrol("laptop-18", "person-ben")
	ann.login("ann")
	ann.must("goauth")
	login, token := ann.file("logins/*/login.json"), ann.file("logins/*/token.json")

	// T67: ben has stolen what ann's client keeps, but not her key.
	names, _ := filepath.Glob(filepath.Join(ann.home, ".config/headgate/logins/*"))
	stolen := filepath.Join(ben.home, ".config/headgate/logins", filepath.Base(names[0]))
	if err := os.MkdirAll(stolen, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"login.json": login, "token.json": token} {
		text = strings.ReplaceAll(text, ann.home, ben.home)
		if err := os.WriteFile(filepath.Join(stolen, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, errs, err := ben.run(c.bin, "whoami"); err == nil || !strings.Contains(errs, "DEVICE-MISMATCH") {
		t.Errorf("T67 whoami on another device: %v %s%s", err, out, errs)
	}
	goproxy, _ := ben.startAgent()
	resp, err := http.Get(goproxy + "/example.com/hello/@v/v1.0.0.mod")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusForbidden || !strings.HasPrefix(string(body), "DEVICE-MISMATCH: ") {
		t.Errorf("T67 through another's agent: %s %s %v", resp.Status, body, err)
	}
}
