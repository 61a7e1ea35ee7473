package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// startWait is how long the gateway may take until it is ready.
const startWait = 60 * time.Second

// A gate is the real headgate, built from this clone and running as a child.
type gate struct {
	dir        string // of the story
	binary     string
	config     string
	machine    string // host:port, as .netrc names it
	operations string
	env        []string // of the process, beside PATH and HOME
	process    *child
	roots      *x509.CertPool // the gateway's CA; known once it is up
	http       *http.Client
}

// build compiles headgate from the module that the working folder belongs to.
func build(ctx context.Context, dir string) (*gate, error) {
	g := &gate{dir: dir, binary: filepath.Join(dir, "headgate"), config: filepath.Join(dir, "headgate.yaml")}
	out, err := command(ctx, "", nil, "go", "build", "-buildvcs=false", "-o", g.binary, "github.com/headgate/headgate/cmd/headgate")
	if err != nil {
		return nil, fmt.Errorf("building headgate; run this inside the clone: %w\n%s", err, out)
	}
	return g, nil
}

// configure writes headgate.yaml for free ports; sections holds what is different from case to case.
func (g *gate) configure(sections string) error {
	for _, address := range []*string{&g.machine, &g.operations} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("finding a free port: %w", err)
		}
		*address = l.Addr().String()
		l.Close()
	}
	_, port, err := net.SplitHostPort(g.machine)
	if err != nil {
		return fmt.Errorf("finding a free port: %w", err)
	}
	text := fmt.Sprintf("state: %s\ngateway: {url: \"https://localhost:%s\", listen: %q, operations: %q}\n%s",
		g.state(), port, g.machine, g.operations, sections)
	g.machine = "localhost:" + port
	if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

func (g *gate) state() string  { return filepath.Join(g.dir, "state") }
func (g *gate) audit() string  { return filepath.Join(g.state(), "audit") }
func (g *gate) caFile() string { return filepath.Join(g.state(), "ca", "ca.pem") }
func (g *gate) url() string    { return "https://" + g.machine }

// start runs headgate and waits until it says that it is ready.
func (g *gate) start(ctx context.Context, level string) (err error) {
	env := keepEnv("PATH", "TMPDIR")
	g.process, err = start(g.dir, "gateway", false, append(append(env, g.env...), "HOME="+g.dir), g.binary, "--config", g.config, "serve", "--log-level", level)
	if err != nil {
		return err
	}
	late := time.After(startWait)
	for !g.ready(ctx) {
		select {
		case <-late:
			text, _ := os.ReadFile(g.process.log(g.dir))
			return fmt.Errorf("starting the gateway: it is not ready after %s:\n%s", startWait, text)
		case <-g.process.done:
			text, _ := os.ReadFile(g.process.log(g.dir))
			return fmt.Errorf("starting the gateway: it ended (%w):\n%s", g.process.err, text)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
	pem, err := os.ReadFile(g.caFile())
	if err != nil {
		return fmt.Errorf("reading the gateway's CA: %w", err)
	}
	g.roots = x509.NewCertPool()
	g.roots.AppendCertsFromPEM(pem)
	g.http = &http.Client{Transport: trusting(g.roots), Timeout: time.Minute}
	return nil
}

func (g *gate) ready(ctx context.Context) bool {
	resp, err := get(ctx, http.DefaultClient, "http://"+g.operations+"/readyz", "")
	return err == nil && resp.status == http.StatusOK
}

// run runs a verb of headgate with the gateway's configuration.
func (g *gate) run(ctx context.Context, args ...string) (string, error) {
	return command(ctx, g.dir, append(keepEnv("PATH", "TMPDIR"), "HOME="+g.dir), g.binary, append([]string{"--config", g.config}, args...)...)
}

// An answer is a response with its body read.
type answer struct {
	status int
	header http.Header
	body   string
}

// get asks for an address, with a token where there is one.
func get(ctx context.Context, client *http.Client, address, token string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		r.SetBasicAuth("headgate", token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

func (g *gate) get(ctx context.Context, path, token string) (answer, error) {
	return get(ctx, g.http, g.url()+path, token)
}

// exchange turns an ID token into a Headgate token (RFC 8693).
func (g *gate) exchange(ctx context.Context, who *person, idToken string) error {
	form := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":      {idToken},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url()+"/-/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := g.http.Do(r)
	if err != nil {
		return fmt.Errorf("exchanging the ID token of %s: %w", who.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("exchanging the ID token of %s: %w", who.name, err)
	}
	var issued struct {
		Token   string `json:"access_token"`
		Seconds int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &issued); err != nil || resp.StatusCode != http.StatusOK || issued.Token == "" {
		return fmt.Errorf("exchanging the ID token of %s: %s: %s", who.name, resp.Status, body)
	}
	who.token, who.expires = issued.Token, time.Duration(issued.Seconds)*time.Second
	return who.writeNetrc(g.machine, who.token)
}

// upstreamRequests is the gateway's own count of the requests that it sent to upstreams.
func (g *gate) upstreamRequests(ctx context.Context) (int, error) {
	got, err := get(ctx, http.DefaultClient, "http://"+g.operations+"/metrics", "")
	if err != nil {
		return 0, fmt.Errorf("reading the gateway's metrics: %w", err)
	}
	return sumMetric(got.body, "headgate_upstream_requests_total", `result="breaker_open"`)
}

// decisions is the gateway's own count of the answers of policy, and of those that came out of the cache.
func (g *gate) decisions(ctx context.Context) (all, cached int, err error) {
	got, err := get(ctx, http.DefaultClient, "http://"+g.operations+"/metrics", "")
	if err != nil {
		return 0, 0, fmt.Errorf("reading the gateway's metrics: %w", err)
	}
	const name, evaluated = "headgate_policy_decisions_total", `cached="false"`
	if cached, err = sumMetric(got.body, name, evaluated); err != nil {
		return 0, 0, err
	}
	all, err = sumMetric(got.body, name, "\x00") // no label holds it
	return all, cached, err
}

// sumMetric adds up the series of a metric, without those whose labels hold the text except: an open breaker counts a
// request that was never sent.
func sumMetric(text, name, except string) (int, error) {
	sum, found := 0, false
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		labels, ok := strings.CutPrefix(lines.Text(), name+"{")
		if !ok || strings.Contains(labels, except) {
			continue
		}
		value, err := strconv.ParseFloat(labels[strings.LastIndexByte(labels, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("reading metric %s: %w", name, err)
		}
		sum, found = sum+int(value), true
	}
	if !found {
		return 0, errors.New("reading metrics: there is no " + name)
	}
	return sum, nil
}
