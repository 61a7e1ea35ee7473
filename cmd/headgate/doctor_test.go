package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// examined runs doctor with further variables and gives what it found.
func (m *machine) examined(env []string, args ...string) (examination, error) {
	m.t.Helper()
	before := m.env
	m.env = append(append([]string{}, before...), env...)
	defer func() { m.env = before }()
	out, errs, err := m.run(m.c.bin, append([]string{"doctor", "--json"}, args...)...)
	if out == "" {
		m.t.Fatalf("doctor: %v\n%s", err, errs)
	}
	return decoded[examination](m.t, out), err
}

// of gives the findings of a check.
func (x examination) of(check string) []finding {
	var list []finding
	for _, f := range x.Findings {
		if f.Check == check {
			list = append(list, f)
		}
	}
	return list
}

// wants fails unless there is a finding of that kind with these texts.
func (x examination) wants(t *testing.T, check, state string, texts ...string) {
	t.Helper()
	for _, f := range x.of(check) {
		line := f.Detail + " fix: " + f.Fix
		missing := f.State != state
		for _, text := range texts {
			missing = missing || !strings.Contains(line, text)
		}
		if !missing {
			return
		}
	}
	t.Errorf("no finding %s %s %q in %+v", check, state, texts, x.Findings)
}

// Doctor on a machine where all is well, and then with one thing wrong at a time. Each finding names its fix.
func TestDoctor(t *testing.T) {
	t.Parallel()
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	c.signIn(t, m)
	if stderr, err := m.build(); err != nil {
		t.Fatalf("go build: %v\n%s", err, stderr)
	}
	x, err := m.examined(nil)
	if err != nil {
		t.Errorf("doctor where all is well: %v", err)
	}
	for _, check := range []string{"sign-in", "GOPROXY", "GONOPROXY", "GOAUTH", "GOSUMDB", "TCP", "TLS", "first byte", "clock", "token", "throughput"} {
		x.wants(t, check, "ok")
	}
	x.wants(t, "throughput", "ok", "corp.example/kit@v1.0.0", "MiB/s")
	if out := m.must("doctor"); strings.Contains(out, "FAIL") || !strings.Contains(out, "ok    GOPROXY      "+c.url+" alone\n") {
		t.Errorf("doctor prints\n%s", out)
	}
	goproxy, _ := m.startAgent()
	for name, tt := range map[string]struct {
		env   []string
		args  []string
		check string
		state string
		want  []string
	}{
		"C37 GOPRIVATE":             {[]string{"GOPRIVATE=corp.example/*"}, nil, "GOPRIVATE", "fail", []string{`"corp.example/*" goes past`, "fix: unset GOPRIVATE"}},
		"C37 GONOPROXY":             {[]string{"GONOPROXY=corp.example"}, nil, "GONOPROXY", "fail", []string{"fix: unset GONOPROXY"}},
		"GONOPROXY none":            {[]string{"GONOPROXY=none", "GOPRIVATE=corp.example"}, nil, "GONOPROXY", "ok", nil},
		"C37 GONOSUMDB":             {[]string{"GONOSUMDB=corp.example"}, nil, "GONOSUMDB", "fail", []string{"fix: unset GONOSUMDB"}},
		"GOSUMDB off":               {[]string{"GOSUMDB=off"}, nil, "GOSUMDB", "fail", []string{"fix: export GOSUMDB=localhost/"}},
		"GOSUMDB of the public":     {[]string{"GOSUMDB=sum.golang.org"}, nil, "GOSUMDB", "warn", []string{"fix: export GOSUMDB=localhost/"}},
		"GOINSECURE":                {[]string{"GOINSECURE=*"}, nil, "GOINSECURE", "fail", []string{"fix: unset GOINSECURE"}},
		"GOFLAGS insecure":          {[]string{"GOFLAGS=-insecure"}, nil, "GOFLAGS", "fail", []string{"fix: unset GOFLAGS"}},
		"GOFLAGS vendor":            {[]string{"GOFLAGS=-mod=vendor"}, nil, "GOFLAGS", "warn", []string{"vendor"}},
		"direct behind a comma":     {[]string{"GOPROXY=" + c.url + ",direct"}, nil, "GOPROXY", "fail", []string{"direct goes to the Git servers", "fix: export GOPROXY=" + c.url}},
		"direct alone":              {[]string{"GOPROXY=direct"}, nil, "GOPROXY", "fail", []string{"fix: export GOPROXY=" + c.url}},
		"N13 a pipe":                {[]string{"GOPROXY=" + c.url + "|off"}, nil, "GOPROXY", "fail", []string{"after | any error"}},
		"another proxy first":       {[]string{"GOPROXY=https://other.example," + c.url}, nil, "GOPROXY", "fail", []string{"another proxy"}},
		"off":                       {[]string{"GOPROXY=off"}, nil, "GOPROXY", "fail", []string{"is not in it"}},
		"off at the end":            {[]string{"GOPROXY=" + c.url + ",off"}, nil, "GOPROXY", "ok", nil},
		"the agent":                 {[]string{"GOPROXY=" + goproxy, "GOAUTH=off"}, nil, "GOAUTH", "ok", []string{"the agent adds"}},
		"the agent as GOPROXY":      {[]string{"GOPROXY=" + goproxy}, nil, "GOPROXY", "ok", nil},
		"http that is not loopback": {[]string{"GOPROXY=http://10.0.0.1:80"}, nil, "GOPROXY", "fail", []string{"another proxy"}},
		"GOAUTH off":                {[]string{"GOAUTH=off"}, nil, "GOAUTH", "fail", []string{"fix: unset GOAUTH"}},
		"GOAUTH without ours":       {[]string{"GOAUTH=netrc"}, nil, "GOAUTH", "fail", []string{"fix: headgate login " + c.url}},
		"GOAUTH that is not there":  {[]string{"GOAUTH=/nowhere/headgate goauth"}, nil, "GOAUTH", "fail", []string{"cannot be run"}},
		"CA not trusted by go":      {[]string{"SSL_CERT_FILE=/dev/null"}, nil, "CA", "fail", []string{"fix: export SSL_CERT_FILE=" + c.caFile()}},
		"CA of somebody else":       {[]string{"SSL_CERT_FILE=/dev/null"}, []string{"--ca", c.jobsCA}, "CA", "fail", []string{"is not the CA"}},
		"no gateway there":          {nil, []string{"--url", "https://localhost:1"}, "TCP", "fail", []string{"refused", "nc -vz localhost 1"}},
		"no sign-in there":          {nil, []string{"--url", "https://localhost:1"}, "sign-in", "warn", []string{"headgate login https://localhost:1"}},
		"another name of it":        {nil, []string{"--url", strings.Replace(c.url, "localhost", "127.0.0.1", 1), "--ca", c.caFile()}, "gateway", "fail", []string{"it names itself " + c.url}},
		"a module that is refused":  {nil, []string{"--module", "corp.example/other@v1.0.0"}, "throughput", "warn", []string{"403", "PATH-NOT-ALLOWED"}},
		"a module that is cold":     {nil, []string{"--module", "example.com/hello@v1.0.0"}, "throughput", "ok", []string{"example.com/hello@v1.0.0"}},
		"no module's name":          {nil, []string{"--module", "Nonsense"}, "throughput", "warn", []string{"PATH@VERSION"}},
	} {
		t.Run(name, func(t *testing.T) {
			x, err := m.examined(tt.env, tt.args...)
			x.wants(t, tt.check, tt.state, tt.want...)
			if tt.state == "fail" && err == nil {
				t.Error("the exit code is 0")
			}
		})
	}
	t.Run("set in the file and not in the shell", func(t *testing.T) {
		if _, errs, err := m.run("go", "env", "-w", "GOPRIVATE=corp.example/*"); err != nil {
			t.Fatal(err, errs)
		}
		x, _ := m.examined(nil)
		x.wants(t, "GOPRIVATE", "fail", "fix: go env -u GOPRIVATE")
		if _, errs, err := m.run("go", "env", "-u", "GOPRIVATE"); err != nil {
			t.Fatal(err, errs)
		}
	})
	t.Run("token revoked", func(t *testing.T) {
		if out, err := c.headgate("lock", "user", "ben", "--reason", "gone"); err != nil {
			t.Fatalf("lock: %v\n%s", err, out)
		}
		x, _ := m.examined(nil)
		x.wants(t, "token", "fail", "403 Forbidden LOCKED", "fix: headgate login "+c.url)
	})
	t.Run("secrets", func(t *testing.T) {
		out, errs, _ := m.run(c.bin, "doctor")
		if short := decoded[shortToken](t, m.file("logins/*/token.json")); strings.Contains(out+errs, short.Token) {
			t.Errorf("T73 doctor prints the token")
		}
	})
}

// Without a sign-in doctor goes by GOPROXY and .netrc.
func TestDoctorNetrc(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	m.env = []string{"GOPROXY=" + c.url + ",direct", "GOENV=off"}
	x, err := m.examined(nil)
	if x.Gateway != c.url || err == nil {
		t.Errorf("doctor found gateway %q, %v", x.Gateway, err)
	}
	x.wants(t, "token", "fail", "has a credential for localhost:", "headgate login")
	netrc := filepath.Join(m.home, ".netrc")
	write := func(machine string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(netrc, []byte("machine "+machine+" login a password "+c.token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(netrc, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("localhost", 0o600)
	x, _ = m.examined(nil)
	x.wants(t, "netrc", "fail", "is not looked at", "machine "+netrcMachine(c.url))
	write(netrcMachine(c.url), 0o644)
	x, _ = m.examined(nil)
	x.wants(t, "netrc", "fail", "mode 0644", "fix: chmod 600 "+netrc)
	x.wants(t, "token", "ok")
	write(netrcMachine(c.url), 0o600)
	m.env = []string{"GOPROXY=" + c.url, "GOENV=off"}
	if x, err = m.examined(nil); err != nil {
		t.Errorf("doctor with all in order: %v %+v", err, x.Findings)
	}
	x.wants(t, "netrc", "ok")
	x.wants(t, "throughput", "ok", "not measured")
	m.env = []string{"GOPROXY=direct", "GOENV=off"}
	if _, errs, err := m.run(c.bin, "doctor"); err == nil || !strings.Contains(errs, "which gateway?") {
		t.Errorf("doctor without a gateway: %v %s", err, errs)
	}
}

// What stands between here and the gateway, or in its place.
func TestDoctorNetwork(t *testing.T) {
	start := func(h http.HandlerFunc) (*httptest.Server, string) {
		srv := httptest.NewTLSServer(h)
		t.Cleanup(srv.Close)
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		return srv, ca
	}
	page, pageCA := start(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>Sign in to the guest network")) })
	portal, portalCA := start(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://portal.example/", http.StatusFound)
	})
	late, lateCA := start(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(150*time.Second).UTC().Format(http.TimeFormat))
		http.NotFound(w, nil)
	})
	garbage, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { garbage.Close() })
	go func() {
		for {
			conn, err := garbage.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			conn.Close()
		}
	}()
	for name, tt := range map[string]struct {
		address, ca, check, state string
		want                      []string
	}{
		"a page in its place":      {page.URL, pageCA, "gateway", "fail", []string{"as no gateway does"}},
		"a portal in its place":    {portal.URL, portalCA, "gateway", "fail", []string{"302"}},
		"clock two minutes behind": {late.URL, lateCA, "clock", "fail", []string{"is 2m", "set-ntp"}},
		"a certificate for others": {strings.Replace(page.URL, "127.0.0.1", "localhost", 1), pageCA, "TLS", "fail", []string{"localhost", "GOPROXY"}},
		"no TLS at all":            {"https://" + garbage.Addr().String(), "", "TLS", "fail", []string{"openssl s_client"}},
		"CA unknown":               {page.URL, "", "CA", "fail", []string{"get the CA file"}},
		"CA file is none":          {page.URL, "/dev/null", "CA", "fail", nil},
	} {
		t.Run(name, func(t *testing.T) {
			x := examination{Gateway: tt.address, caFile: tt.ca}
			x.network(t.Context())
			x.wants(t, tt.check, tt.state, tt.want...)
			x.credential(t.Context()) // a stranger is not given one
			if len(x.of("token")) > 0 {
				t.Errorf("something that is no gateway was asked with a credential: %+v", x.Findings)
			}
		})
	}
	t.Run("DNS", func(t *testing.T) {
		x := examination{Gateway: "https://go.corp.example"}
		x.steps(&trip{}, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "go.corp.example"}})
		x.wants(t, "DNS", "fail", "no such host", "knows go.corp.example")
	})
	t.Run("expired certificate", func(t *testing.T) {
		x := examination{Gateway: "https://go.corp.example"}
		x.brokenTLS(x509.CertificateInvalidError{Cert: page.Certificate(), Reason: x509.Expired})
		x.wants(t, "TLS", "fail", "and the clock here says", "set the clock")
	})
	t.Run("slow steps", func(t *testing.T) {
		x := examination{}
		x.timed("TCP", 3*time.Second, "127.0.0.1")
		x.clock(-20 * time.Second)
		x.wants(t, "TCP", "warn", "3s")
		x.wants(t, "clock", "warn", "-20s")
	})
	t.Run("as text", func(t *testing.T) {
		x := examination{}
		x.fail("GOPRIVATE", "goes past", "go env -u GOPRIVATE")
		x.ok("GOPROXY", "alone")
		var out bytes.Buffer
		err := x.report(&out, false)
		if want := "FAIL  GOPRIVATE    goes past\n                   fix: go env -u GOPRIVATE\nok    GOPROXY      alone\n"; err == nil || err.Error() != "1 of 2 checks failed" || out.String() != want {
			t.Errorf("report: %v\n%s", err, &out)
		}
	})
}

func TestGoMinor(t *testing.T) {
	for version, want := range map[string]int{"go1.26.8": 26, "go1.24rc1": 24, "go1.23": 23, "devel go1.27-a1b2c3 Mon": 27, "": 0, "gccgo": 0} {
		if got := goMinor(version); got != want {
			t.Errorf("goMinor(%q) = %d, want %d", version, got, want)
		}
	}
}
