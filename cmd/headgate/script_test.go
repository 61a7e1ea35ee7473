package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
)

func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){"headgate": mainLater})
}

// mainLater is main on a machine whose clock is $HEADGATE_TEST_DAYS ahead.
func mainLater() {
	ctx := context.Background()
	if text := os.Getenv("HEADGATE_TEST_DAYS"); text != "" {
		days, err := strconv.Atoi(text)
		if err != nil {
			panic(err)
		}
		ctx = context.WithValue(ctx, clockKey{}, func() time.Time { return time.Now().AddDate(0, 0, days) })
	}
	os.Exit(execute(ctx))
}

// cleaning removes what was built after the tests.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	dir, err := os.MkdirTemp("", "headgate-bin-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binaries = dir
	return c.M.Run()
}

// TestScripts runs testdata/script/*.txtar: our binary and the real go command, over TLS, against an upstream made of
// testdata/mod/*.txtar with a checksum database of its own. A child that dials beyond loopback ends in a trap.
func TestScripts(t *testing.T) {
	archives := readArchives(t)
	machine := machineGOPROXY(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			return newScript(env, archives, machine)
		},
		Cmds: scriptCommands(),
	})
}

// scriptCommands are what a script can say beside the commands of testscript.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"config": cmdConfig, "serve": cmdServe, "shutdown": cmdShutdown, "login": cmdLogin, "http": cmdHTTP,
		"upstream": cmdUpstream, "freshcache": cmdFreshCache, "flip": cmdFlip, "poll": cmdPoll, "waitlog": cmdWaitLog, "git": cmdGit, "revoke": cmdRevoke, "readme": cmdReadme, "stall": cmdStall,
		"gosumdb": cmdGosumdb, "flipzip": cmdFlipZip,
	}
}

func readArchives(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/mod/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("testdata/mod has no modules: %v", err)
	}
	var archives []string
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, string(text))
	}
	return archives
}

// machineGOPROXY is the upstream of this machine; one script asks it for real.
func machineGOPROXY(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOPROXY").Output()
	if err != nil {
		t.Fatalf("go env GOPROXY: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// A script is what one txtar file works with.
type script struct {
	upstream *mirrortest.Server
	listener *httptest.Server // of the upstream
	trap     *httptest.Server

	mu      sync.Mutex // guards trapped and credentials
	trapped []string
	// credentials are the paths that the upstream was asked for with a credential.
	credentials []string

	gateway *process
	git     *vcstest.Server // of scripts that say git start
}

type scriptKey struct{}

func of(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func newScript(env *testscript.Env, archives []string, machine string) error {
	if err := scripted(); err != nil {
		return err
	}
	s := &script{}
	up, err := mirrortest.New("", archives...)
	if err != nil {
		return err
	}
	s.upstream = up
	server := httptest.NewServer(up)
	s.listener = server
	s.trap = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.trapped = append(s.trapped, r.Method+" "+r.Host)
		http.Error(w, "trap", http.StatusForbidden)
	}))
	env.Values[scriptKey{}] = s
	env.Defer(func() {
		if s.gateway != nil {
			s.gateway.end(syscall.SIGKILL)
		}
		if s.git != nil {
			s.git.Close()
		}
		up.Clear()
		server.CloseClientConnections()
		server.Close()
		s.trap.Close()
		up.Close()
	})
	port, ops := freePort(), freePort()
	source, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	home := filepath.Join(env.WorkDir, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	for key, value := range map[string]string{
		"GORACE": "atexit_sleep_ms=0", // else each program that was built with the race detector ends a second late
		"HOME":   home, "UPSTREAM": server.URL, "SUMDB_KEY": up.Key(), "PORT": port, "OPS": ops,
		"GATEWAY": "https://localhost:" + port, "GOPROXY": "https://localhost:" + port, "REAL_GOPROXY": machine, "SOURCE": source, "REAL_HTTPS_PROXY": os.Getenv("HTTPS_PROXY"),
		"GOENV": "off", "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local", "GOSUMDB": up.Key(), "GOPRIVATE": "", "GONOSUMDB": "", "GONOPROXY": "",
		"GOPATH": filepath.Join(home, "go"), "GOMODCACHE": filepath.Join(home, "cache0"), "GOCACHE": filepath.Join(os.TempDir(), "headgate-test-gocache"),
		"SSL_CERT_FILE": filepath.Join(env.WorkDir, "state/ca/ca.pem"), "HEADGATE_CONFIG": filepath.Join(env.WorkDir, "headgate.yaml"),
		"HTTPS_PROXY": s.trap.URL, "HTTP_PROXY": s.trap.URL, "NO_PROXY": "", "GIT_TERMINAL_PROMPT": "0",
		"TODAY": time.Now().UTC().Format(time.DateOnly), "TOMORROW": time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly),
	} {
		env.Setenv(key, value)
	}
	return os.WriteFile(filepath.Join(env.WorkDir, "headgate.yaml"), []byte(os.Expand(baseConfig, env.Getenv)), 0o600)
}

const baseConfig = `state: $WORK/state
gateway: {listen: "127.0.0.1:$PORT", operations: "127.0.0.1:$OPS"}
mirror: {upstreams: [$UPSTREAM], sumdb: [$SUMDB_KEY]}
`

// freePort is a port that a gateway can have again after a restart: below those that the kernel gives to connections.
func freePort() string {
	for {
		port := strconv.Itoa(10000 + rand.N(22000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
}

// config [-bare] FILE... writes headgate.yaml: the base and the files, with $VARIABLES filled in.
func cmdConfig(ts *testscript.TestScript, neg bool, args []string) {
	text := baseConfig
	if len(args) > 0 && args[0] == "-bare" {
		text, args = "", args[1:]
	}
	for _, name := range args {
		text += ts.ReadFile(name) + "\n"
	}
	ts.Check(os.WriteFile(ts.Getenv("HEADGATE_CONFIG"), []byte(os.Expand(text, ts.Getenv)), 0o600))
}

// serve [FLAG...] starts the gateway and waits until it is ready; with ! it must end with an error, which stands in
// serve.log with the exit code.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	bin, err := exec.LookPath("headgate") // the test binary under another name, put there by testscript.Main
	ts.Check(err)
	p, err := launch(bin, scriptEnv(ts), ts.Getenv("WORK"), ts.Getenv("OPS"), args...)
	if !neg {
		ts.Check(err)
		s.gateway = p
		return
	}
	if err == nil {
		p.end(syscall.SIGKILL)
		ts.Fatalf("serve goes on, want an error:\n%s", p.output)
	}
	text := fmt.Sprintf("%s\nexit %d\n", p.output, p.cmd.ProcessState.ExitCode())
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), "serve.log"), []byte(text), 0o600))
}

// scriptEnv are the script's variables for a child that the harness starts.
func scriptEnv(ts *testscript.TestScript) []string {
	var env []string
	for _, key := range []string{
		"HOME", "PATH", "TMPDIR", "GOENV", "GOPROXY", "GOFLAGS", "GOTOOLCHAIN", "GOSUMDB", "GOPATH", "GOMODCACHE", "GOCACHE",
		"HEADGATE_CONFIG", "HEADGATE_TEST_DAYS", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
	} {
		env = append(env, key+"="+ts.Getenv(key))
	}
	return env
}

// shutdown [-kill] [FILE] ends the gateway, in order unless -kill, and writes what it printed to FILE.
func cmdShutdown(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if s.gateway == nil {
		ts.Fatalf("no gateway runs")
	}
	signal := syscall.SIGTERM
	if len(args) > 0 && args[0] == "-kill" {
		signal, args = syscall.SIGKILL, args[1:]
	}
	code := s.gateway.end(signal)
	if signal == syscall.SIGTERM && code != 0 && !neg {
		ts.Fatalf("the gateway ended with %d after SIGTERM:\n%s", code, s.gateway.output)
	}
	if len(args) > 0 {
		ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(s.gateway.output.String()), 0o600))
	}
	s.gateway = nil
}

// login NAME [FLAG...] makes a token for NAME, writes it to NAME.token, and makes NAME the one in .netrc.
func cmdLogin(ts *testscript.TestScript, neg bool, args []string) {
	flags := append([]string{"token", "create", "--quiet", "--for", args[0], "--modules", "*"}, args[1:]...)
	ts.Check(ts.Exec("headgate", flags...))
	token := strings.TrimSpace(ts.ReadFile("stdout"))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".token"), []byte(token), 0o600))
	line := fmt.Sprintf("machine localhost:%s login headgate password %s\n", ts.Getenv("PORT"), token)
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("HOME"), ".netrc"), []byte(line), 0o600))
}

// http STATUS [METHOD ]PATH [TOKENFILE] [Header: value] asks the gateway as raw as it is written, and leaves the answer
// in the files headers and body.
func cmdHTTP(ts *testscript.TestScript, neg bool, args []string) {
	status, body := ask(ts, args[1:])
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("%s: status %d, want %s\n%s", args[1], status, args[0], body)
	}
}

// poll is http that asks again, for at most 15 s, until the status is the wanted one.
func cmdPoll(ts *testscript.TestScript, neg bool, args []string) {
	until(ts, func() error {
		if status, body := ask(ts, args[1:]); strconv.Itoa(status) != args[0] {
			return fmt.Errorf("%s: status %d, want %s\n%s", args[1], status, args[0], body)
		}
		return nil
	})
}

// waitlog TEXT waits until the audit log has a record whose line holds TEXT.
func cmdWaitLog(ts *testscript.TestScript, neg bool, args []string) {
	until(ts, func() error {
		ts.Check(ts.Exec("headgate", "audit", "tail", "-n", "0"))
		if !strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return fmt.Errorf("the audit log has no %q:\n%s", args[0], ts.ReadFile("stdout"))
		}
		return nil
	})
}

func until(ts *testscript.TestScript, try func() error) {
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); <-time.After(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	ts.Fatalf("after 15 s: %v", err)
}

// readme writes each YAML block of README.md whose first line is a comment with a file name to that file below readme/.
func cmdReadme(ts *testscript.TestScript, neg bool, args []string) {
	text, err := os.ReadFile(filepath.Join(ts.Getenv("SOURCE"), "README.md"))
	ts.Check(err)
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		body, _, _ := strings.Cut(block, "```")
		first, _, _ := strings.Cut(body, "\n")
		if name, ok := strings.CutPrefix(first, "# "); ok && strings.HasSuffix(name, ".yaml") {
			file := ts.MkAbs(filepath.Join("readme", name))
			ts.Check(os.MkdirAll(filepath.Dir(file), 0o700))
			ts.Check(os.WriteFile(file, []byte(body), 0o600))
		}
	}
}

// stall STATUS 'METHOD PATH' announces a body that never comes, and wants an answer all the same.
func cmdStall(ts *testscript.TestScript, neg bool, args []string) {
	conn := dial(ts)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(40 * time.Second))
	fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: localhost:%s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100000\r\n\r\nx", args[1], ts.Getenv("PORT"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	ts.Check(err)
	resp.Body.Close()
	if strconv.Itoa(resp.StatusCode) != args[0] {
		ts.Fatalf("%s with a body that stalls: status %d, want %s", args[1], resp.StatusCode, args[0])
	}
}

// dial opens a TLS connection to the gateway.
func dial(ts *testscript.TestScript) *tls.Conn {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ts.ReadFile(ts.Getenv("SSL_CERT_FILE"))))
	conn, err := tls.Dial("tcp", "127.0.0.1:"+ts.Getenv("PORT"), &tls.Config{RootCAs: pool, ServerName: "localhost"})
	ts.Check(err)
	return conn
}

// revoke TOKENFILE ends a token by the id that stands in it.
func cmdRevoke(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("headgate", "token", "revoke", strings.Split(ts.ReadFile(args[0]), "_")[2]))
}

// gosumdb sets GOSUMDB as the gateway prints it, and OWN to the path of that database.
func cmdGosumdb(ts *testscript.TestScript, neg bool, args []string) {
	_, rest, ok := strings.Cut(of(ts).gateway.output.String(), "export GOSUMDB=")
	if !ok {
		ts.Fatalf("the gateway printed no GOSUMDB:\n%s", of(ts).gateway.output)
	}
	key, _, _ := strings.Cut(rest, "\n")
	name, _, _ := strings.Cut(key, "+")
	ts.Setenv("GOSUMDB", key)
	ts.Setenv("OWN", "/sumdb/"+name)
}

// flipzip FILE changes a stored zip into another whole one: a byte of the first file's content and its checksum.
func cmdFlipZip(ts *testscript.TestScript, neg bool, args []string) {
	file := ts.MkAbs(args[0])
	r, err := zip.OpenReader(file)
	ts.Check(err)
	defer r.Close()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for i, f := range r.File {
		content, err := fs.ReadFile(r, f.Name)
		ts.Check(err)
		if i == 0 {
			content = append(content, '\n')
		}
		dst, err := w.Create(f.Name)
		ts.Check(err)
		_, err = dst.Write(content)
		ts.Check(err)
	}
	ts.Check(w.Close())
	ts.Check(os.WriteFile(file, out.Bytes(), 0o600))
}

func ask(ts *testscript.TestScript, args []string) (status int, text string) {
	conn := dial(ts)
	defer conn.Close()
	method, path := "GET", args[0]
	if m, rest, ok := strings.Cut(path, " "); ok {
		method, path = m, rest
	}
	host, headers := "localhost:"+ts.Getenv("PORT"), ""
	for _, arg := range args[1:] {
		switch key, value, isHeader := strings.Cut(arg, ": "); {
		case isHeader && key == "Host":
			host = value
		case isHeader:
			headers += arg + "\r\n"
		default:
			headers += "Authorization: Bearer " + strings.TrimSpace(ts.ReadFile(arg)) + "\r\n"
		}
	}
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n", method, path, host, headers)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	var lines bytes.Buffer
	ts.Check(resp.Header.Write(&lines))
	ts.Check(os.WriteFile(ts.MkAbs("headers"), bytes.ReplaceAll(lines.Bytes(), []byte("\r"), nil), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("body"), body, 0o600))
	return resp.StatusCode, string(body)
}

// upstream add PATH@VERSION GO.MOD | count PATTERN N | forget | fault PATTERN KIND | clear | trapped N
func cmdUpstream(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	switch args[0] {
	case "count":
		want, err := strconv.Atoi(args[2])
		ts.Check(err)
		if got := s.upstream.Count(args[1]); got != want {
			ts.Fatalf("upstream saw %d requests for %s, want %d:\n%s", got, args[1], want, strings.Join(s.upstream.Requests(), "\n"))
		}
	case "forget":
		s.upstream.Forget()
	case "clear":
		s.upstream.Clear()
	case "fault":
		fault, ok := map[string]mirrortest.Fault{
			"500": {Status: 500}, "cut": {Cut: 10}, "hang": {Hang: true}, "flip": {Flip: true}, "403": {Status: 403},
			"slow": {Delay: 2 * time.Second}, // long enough for what the go command does on the side
		}[args[2]]
		if !ok {
			ts.Fatalf("unknown fault %s", args[2])
		}
		s.upstream.Break(args[1], fault)
	case "add":
		m, err := mirrortest.ParseTxtar([]byte(fmt.Sprintf("module %s\n-- go.mod --\n%s-- m.go --\npackage m // %[1]s\n", args[1], ts.ReadFile(args[2]))))
		ts.Check(err)
		ts.Check(s.upstream.Add(m))
	case "wrongsum":
		s.upstream.WrongSum(args[1], args[2], false)
	case "trapped":
		s.mu.Lock()
		defer s.mu.Unlock()
		if got := strconv.Itoa(len(s.trapped)); got != args[1] {
			ts.Fatalf("%s requests tried to leave the machine, want %s: %s", got, args[1], s.trapped)
		}
	default:
		ts.Fatalf("unknown: upstream %s", args[0])
	}
}

// git start | commit REPO BRANCH DIR [TAG...] | demand USER PASSWORD | break | mend | forget | count TEXT N
//
// start serves repositories under every host name, through the proxy $GIT_PROXY and with certificates of $GIT_CA.
func cmdGit(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if args[0] == "start" {
		var err error
		s.git, err = vcstest.New(filepath.Join(ts.Getenv("WORK"), "gitserver"))
		ts.Check(err)
		ts.Setenv("GIT_PROXY", s.git.Proxy)
		ts.Setenv("GIT_CA", s.git.CAFile)
		return
	}
	switch args[0] {
	case "commit":
		repo, err := s.git.Create(args[1])
		ts.Check(err)
		files := map[string]string{}
		root := os.DirFS(ts.MkAbs(args[3]))
		ts.Check(fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := fs.ReadFile(root, name)
			files[name] = string(data)
			return err
		}))
		_, err = repo.Commit(args[2], files, args[4:]...)
		ts.Check(err)
	case "demand":
		s.git.Demand(args[1], args[2])
	case "break":
		s.git.Before(func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "maintenance", http.StatusServiceUnavailable)
			return true
		})
	case "mend":
		s.git.Before(nil)
	case "forget":
		s.git.Forget()
	case "count":
		want, err := strconv.Atoi(args[2])
		ts.Check(err)
		if got := s.git.Count(args[1]); got != want {
			ts.Fatalf("git saw %d requests with %s, want %d:\n%s", got, args[1], want, strings.Join(s.git.Requests(), "\n"))
		}
	default:
		ts.Fatalf("unknown: git %s", args[0])
	}
}

// freshcache gives the go command an empty module cache.
func cmdFreshCache(ts *testscript.TestScript, neg bool, args []string) {
	dir, err := os.MkdirTemp(ts.Getenv("HOME"), "cache")
	ts.Check(err)
	ts.Setenv("GOMODCACHE", dir)
}

// flip FILE TEXT changes one bit of the last byte of the last occurrence of TEXT in the file.
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, name := range names {
		data, err := os.ReadFile(name)
		ts.Check(err)
		if i := bytes.LastIndex(data, []byte(args[1])); i >= 0 {
			data[i+len(args[1])-1] ^= 1
			ts.Check(os.WriteFile(name, data, 0o600))
			return
		}
	}
	ts.Check(errors.New("no file " + args[0] + " holds " + args[1]))
}
