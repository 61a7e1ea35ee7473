package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A process is a gateway that a test started: the real binary, as a child.
type process struct {
	cmd    *exec.Cmd
	output *printed
	done   chan error
}

// printed is what a child printed so far.
type printed struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// built is the program as it is shipped: the race detector would multiply its memory.
var built = sync.OnceValues(func() (string, error) {
	file := filepath.Join(binaries, "headgate")
	return file, compile("build", "-o", file)
})

// binaries is a folder for what the tests build, removed at their end.
var binaries string

// scripted puts the headgate that scripts run in the PATH: this test binary, for its clock, and without the race
// detector, which would make the processes of the scripts four times as slow; with HEADGATE_TEST_RACE=1 it stays.
var scripted = sync.OnceValue(func() error {
	if os.Getenv("HEADGATE_TEST_RACE") != "" {
		return nil
	}
	file, err := exec.LookPath("headgate") // put there by testscript.Main
	if err != nil {
		return err
	}
	return compile("test", "-c", "-o", file)
})

// compile builds this package as make build does, so that both find the other's work in the cache.
func compile(args ...string) error {
	cmd := exec.Command("go", append(args, "-trimpath", "-tags=disable_grpc_modules", ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building headgate: %w\n%s", err, out)
	}
	return nil
}

// patience is how long a test waits for what must come: long, for a machine that is busy with other things.
const patience = 2 * time.Minute

// launch starts `headgate serve` and waits until its operations port says that it is ready. The process comes back
// with an error, too.
func launch(bin string, env []string, dir, operations string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(bin, append([]string{"serve"}, args...)...), output: &printed{}, done: make(chan error, 1)}
	p.cmd.Dir, p.cmd.Env = dir, env
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.done <- p.cmd.Wait() }()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		resp, err := http.Get("http://127.0.0.1:" + operations + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p, nil
			}
		}
		select {
		case err := <-p.done:
			p.done <- err
			return p, fmt.Errorf("serve ended: %w\n%s", err, p.output)
		case <-time.After(25 * time.Millisecond):
		}
	}
	p.end(syscall.SIGKILL)
	return p, fmt.Errorf("the gateway is not ready after %s:\n%s", patience, p.output)
}

// end sends a signal, waits and gives the exit code.
func (p *process) end(signal os.Signal) int {
	p.cmd.Process.Signal(signal)
	err := <-p.done
	p.done <- err
	return p.cmd.ProcessState.ExitCode()
}

// peakRSS is the most memory that the process had resident so far, in bytes.
func (p *process) peakRSS(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("reading peak memory: %v", err)
	}
	return kib << 10
}

// A site is a gateway over an upstream of the test, with one person who has a token.
type site struct {
	t          *testing.T
	bin        string
	dir        string
	env        []string
	operations string
	url        string
	upstream   *mirrortest.Server
	gateway    *process
	token      string
	client     *http.Client
}

// newSite writes a configuration with extra sections and starts the gateway.
func newSite(t *testing.T, upstream *mirrortest.Server, extra string) *site {
	t.Helper()
	return newSiteOf(t, upstream, baseConfig+extra)
}

// newSiteOf starts a gateway with a whole configuration.
func newSiteOf(t *testing.T, upstream *mirrortest.Server, config string) *site {
	t.Helper()
	return newSiteAt(t, upstream, freePort(), config)
}

// newSiteAt starts it on a port that somebody else was told of.
func newSiteAt(t *testing.T, upstream *mirrortest.Server, port, config string) *site {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, bin: bin, dir: t.TempDir(), operations: freePort(), url: "https://localhost:" + port, upstream: upstream}
	values := map[string]string{"WORK": s.dir, "PORT": port, "OPS": s.operations, "UPSTREAM": upstream.URL, "SUMDB_KEY": upstream.Key()}
	text := os.Expand(config, func(key string) string { return values[key] })
	file := filepath.Join(s.dir, "headgate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.env = []string{"HEADGATE_CONFIG=" + file, "HOME=" + s.dir, "PATH=" + os.Getenv("PATH")}
	s.start()
	out, err := s.headgate("token", "create", "--for", "ann", "--modules", "*", "--quiet")
	if err != nil {
		t.Fatalf("token create: %v\n%s", err, out)
	}
	s.token = strings.TrimSpace(out)
	t.Cleanup(func() {
		if s.gateway != nil {
			s.gateway.end(syscall.SIGKILL)
		}
	})
	return s
}

func (s *site) start() {
	s.t.Helper()
	var err error
	if s.gateway, err = launch(s.bin, s.env, s.dir, s.operations); err != nil {
		s.t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(s.dir, "state/ca/ca.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	s.t.Cleanup(s.client.CloseIdleConnections)
}

// stop ends the gateway with a signal and gives its exit code.
func (s *site) stop(signal os.Signal) int {
	code := s.gateway.end(signal)
	s.client.CloseIdleConnections()
	s.gateway = nil
	return code
}

// headgate runs one of our verbs.
func (s *site) headgate(args ...string) (string, error) {
	cmd := exec.Command(s.bin, args...)
	cmd.Env, cmd.Dir = s.env, s.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// get asks the gateway as the person.
func (s *site) get(ctx context.Context, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	r.SetBasicAuth("any", s.token)
	return s.client.Do(r)
}

// body is the status and body of a path.
func (s *site) body(path string) (int, string) {
	s.t.Helper()
	resp, err := s.get(context.Background(), path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
