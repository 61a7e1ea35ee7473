package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity/identitytest"
)

// The modules behind a company: hello is public, kit is private.
var companyModules = []string{
	helloModule,
	"module corp.example/kit@v1.0.0\n-- go.mod --\nmodule corp.example/kit\n-- kit.go --\npackage kit\n\nconst Name = \"kit\"\n",
}

// ann's team wants a device that is enrolled and encrypted; ben's and the job's do not.
const companyTeams = `teams:
  everyone: {profile: standard, public: true}
  payments: {profile: standard, groups: [eng-payments], allow: [corp.example/kit], device: {proof: [token, mtls], min_tier: 3}}
  build: {profile: standard, groups: [eng-build], jobs: ["github:482913"], allow: [corp.example/kit]}
  web: {profile: standard, groups: [eng-web], public: true}
`

var companyPeople = []identitytest.User{
	{Login: "ann", Password: "s3cret", ID: "person-ann", Groups: []string{"eng-payments"}},
	{Login: "ben", Password: "s3cret", ID: "person-ben", Groups: []string{"eng-build"}},
	{Login: "cat", Password: "s3cret", ID: "person-cat", Groups: []string{"eng-web"}},
}

// A company is a gateway with a real OpenID provider, an issuer of jobs, devices and their posture, and a private module.
type company struct {
	*site
	devicePort string
	trust      *x509.CertPool // gateway and provider
	jobs       *identitytest.Issuer
	jobsCA     string
	posture    string           // the file of the posture feed
	ca         *identitytest.CA // signs for devices
}

// newCompany starts one over an upstream that has companyModules; ceilings are the lives of its tokens, as in the section
// identity.ceilings.
func newCompany(t *testing.T, up *mirrortest.Server, ceilings string) *company {
	t.Helper()
	port, dir := freePort(), t.TempDir()
	c := &company{devicePort: freePort(), posture: filepath.Join(dir, "mdm.csv")}
	_, provider, _, providerCA := identitytest.Serve(t, identitytest.ProviderConfig{Users: companyPeople, RedirectURI: "https://localhost:" + port + "/-/login/callback"})
	jobs := httptest.NewUnstartedServer(nil)
	c.jobs = identitytest.NewIssuer("https://" + jobs.Listener.Addr().String())
	jobs.Config.Handler = c.jobs
	jobs.StartTLS()
	t.Cleanup(jobs.Close)
	write := func(name, text string) string {
		t.Helper()
		return identitytest.WriteFile(t, filepath.Join(dir, name), []byte(text))
	}
	ca := identitytest.NewCA(t, "devices")
	c.ca = ca
	c.jobsCA = write("jobs-ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: jobs.Certificate().Raw})))
	write("mdm.csv", "id,observed_at,disk_encrypted\nlaptop-9,2020-01-01T00:00:00Z,yes\n")
	write("policy/bundle.yaml", "name: test\nlibrary: default\n")
	write("policy/config/teams.yaml", companyTeams)
	write("policy/config/rules.yaml", "profiles: [open, standard, strict]\nrules: []\n")
	write("policy/config/waivers.yaml", "waivers: []\n")
	c.site = newSiteAt(t, up, port, `state: $WORK/state
gateway: {listen: "127.0.0.1:$PORT", operations: "127.0.0.1:$OPS"}
policy: {source: folder, path: `+filepath.Join(dir, "policy")+`}
mirror: {upstreams: [$UPSTREAM], sumdb: [$SUMDB_KEY], private: [{patterns: ["corp.example/*"], upstream: $UPSTREAM}]}
identity:
  ceilings: {`+ceilings+`}
  issuers:
    - {name: corp, client_id: headgate, url: "`+provider.Issuer+`", audiences: [headgate], algorithms: [ES256], groups_claim: groups, ca_file: "`+providerCA+`"}
    - {name: actions, url: "`+c.jobs.URL+`", type: workload, provider: github, audiences: [headgate], ca_file: "`+c.jobsCA+`"}
  devices:
    listen: 127.0.0.1:`+c.devicePort+`
    id: spiffe://corp.example/device/
    require: [disk_encrypted]
    posture: [{name: mdm, file: `+c.posture+`, interval: 1s}]
    enrolment:
      ca_cert: `+write("ca.pem", string(ca.PEM()))+`
      ca_key: `+write("ca-key.pem", string(ca.KeyPEM(t)))+`
`)
	c.trust = x509.NewCertPool()
	for _, name := range []string{providerCA, c.caFile()} {
		text, err := os.ReadFile(name)
		if err != nil || !c.trust.AppendCertsFromPEM(text) {
			t.Fatalf("reading %s: %v", name, err)
		}
	}
	return c
}

func (s *site) caFile() string { return filepath.Join(s.dir, "state/ca/ca.pem") }

// A machine is somebody's: a home of its own, in which our verbs and the real go command run.
type machine struct {
	t    *testing.T
	c    *company
	home string
	env  []string // beside the usual
}

func (c *company) machine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, c: c, home: mirrortest.Home(t)}
	for name, text := range map[string]string{
		"go.mod":  "module example.com/main\n\ngo 1.21\n\nrequire corp.example/kit v1.0.0\n",
		"main.go": "package main\n\nimport \"corp.example/kit\"\n\nfunc main() { println(kit.Name) }\n",
	} {
		identitytest.WriteFile(t, filepath.Join(m.home, "src", name), []byte(text))
	}
	return m
}

// signIn signs ben in on m, as a script does it: with a token in a file.
func (c *company) signIn(t *testing.T, m *machine) {
	t.Helper()
	token := filepath.Join(m.home, "token")
	identitytest.WriteFile(t, token, []byte(c.person(t, "ben", "eng-build")))
	m.must("login", c.url, "--ca", c.caFile(), "--token-file", token)
}

func (m *machine) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = filepath.Join(m.home, "src")
	cmd.Env = append([]string{
		"HOME=" + m.home, "PATH=" + os.Getenv("PATH"), "GOFLAGS=-modcacherw -mod=mod", "GOTOOLCHAIN=local", "CGO_ENABLED=0",
		"GOCACHE=" + filepath.Join(os.TempDir(), "headgate-test-gocache"), "SSL_CERT_FILE=" + m.c.caFile(),
	}, m.env...)
	return cmd
}

// run runs a program and gives what it printed, on the one and the other.
func (m *machine) run(program string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := m.command(m.t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must runs one of our verbs, which has to succeed.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	stdout, stderr, err := m.run(m.c.bin, args...)
	if err != nil {
		m.t.Fatalf("headgate %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// build builds the program that imports the private module, with an empty module cache.
func (m *machine) build(env ...string) (stderr string, err error) {
	m.t.Helper()
	cache, err := os.MkdirTemp(m.home, "cache")
	if err != nil {
		m.t.Fatal(err)
	}
	before := m.env
	m.env = append(append(m.env[:len(m.env):len(m.env)], "GOMODCACHE="+cache), env...)
	defer func() { m.env = before }()
	_, stderr, err = m.run("go", "build", "-o", os.DevNull, ".")
	return stderr, err
}

// goEnv is what the go command has in its file.
func (m *machine) goEnv() map[string]string {
	m.t.Helper()
	values := map[string]string{}
	text, err := os.ReadFile(filepath.Join(m.home, ".config/go/env"))
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = value
		}
	}
	return values
}

// login signs a person in with a code that they allow in a browser, and gives what the verb printed.
func (m *machine) login(person string, flags ...string) string {
	m.t.Helper()
	cmd := m.command(m.t.Context(), m.c.bin, append([]string{"login", m.c.url, "--ca", m.c.caFile()}, flags...)...)
	stdout, stderr := &printed{}, &printed{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var code []string
	for deadline := time.Now().Add(patience); code == nil && time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		code = regexp.MustCompile(`enter (\w{4}-\w{4})\n`).FindStringSubmatch(stderr.String())
	}
	if code == nil {
		cmd.Process.Kill()
		m.t.Fatalf("login shows no code: %v\n%s%s", <-done, stdout, stderr)
	}
	m.c.allow(m.t, person, code[1])
	if err := <-done; err != nil {
		m.t.Fatalf("login: %v\n%s%s", err, stdout, stderr)
	}
	return stdout.String()
}

// enrol makes the machine a device of a person.
func (m *machine) enrol(id, owner string) {
	m.t.Helper()
	out, err := m.c.headgate("device", "code", "--owner", owner, "--id", id, "--json")
	code := regexp.MustCompile(`"code":"([A-Z2-7]+)"`).FindStringSubmatch(out)
	if err != nil || code == nil {
		m.t.Fatalf("device code: %v\n%s", err, out)
	}
	m.must("device", "enrol", "--url", m.c.url, "--ca", m.c.caFile(), "--code", code[1])
}

// report changes what the posture feed says of a device, and waits until the gateway has read it.
func (c *company) report(t *testing.T, id, encrypted string) {
	t.Helper()
	text := "id,observed_at,disk_encrypted\n" + id + "," + time.Now().UTC().Format(time.RFC3339) + "," + encrypted + "\n"
	identitytest.WriteFile(t, c.posture, []byte(text))
	want := "disk_encrypted=" + map[string]string{"yes": "ok", "no": "fail"}[encrypted]
	for deadline := time.Now().Add(patience); ; <-time.After(100 * time.Millisecond) {
		out, err := c.headgate("device", "list")
		if err == nil && strings.Contains(out, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the posture does not arrive: %v\n%s", err, out)
		}
	}
}

// allow plays somebody with a browser: sign-in at the provider, the code typed in, Allow.
func (c *company) allow(t *testing.T, person, code string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.trust}}, Timeout: 30 * time.Second}
	defer b.CloseIdleConnections()
	page := func(form url.Values, address string) (string, *url.URL) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if form != nil {
			r, err = http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(form.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Sec-Fetch-Site", "same-origin")
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, err := b.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			t.Fatalf("%s: %s %v\n%s", address, resp.Status, err, text)
		}
		return html.UnescapeString(string(text)), resp.Request.URL
	}
	text, _ := page(nil, c.url+"/-/device")
	link := regexp.MustCompile(`href="(/-/login/start[^"]*)"`).FindStringSubmatch(text)
	if link == nil {
		t.Fatalf("no link to sign in: %s", text)
	}
	text, at := page(nil, c.url+link[1])
	id := regexp.MustCompile(`name="id" value="([^"]+)"`).FindStringSubmatch(text)
	if id == nil {
		t.Fatalf("no login form: %s", text)
	}
	page(url.Values{"id": {id[1]}, "username": {person}, "password": {"s3cret"}}, at.ResolveReference(&url.URL{Path: "/login"}).String())
	page(url.Values{"user_code": {code}}, c.url+"/-/device")
	if text, _ = page(url.Values{"user_code": {code}, "answer": {"allow"}}, c.url+"/-/device/answer"); !strings.Contains(text, "Allowed") {
		t.Fatalf("the page says %s", text)
	}
}

// decoded reads what a verb printed with --json.
func decoded[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
