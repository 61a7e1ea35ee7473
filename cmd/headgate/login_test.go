package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A person signs in at a terminal: a code, allowed in a browser after a sign-in at a real OpenID provider. From then on
// the go command works, with nothing else set, and logout takes back exactly what login did.
func TestLoginByDeviceCode(t *testing.T) {
	t.Parallel()
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	before := map[string]string{"GOPRIVATE": "corp.example/*", "GOSUMDB": "off", "GOBIN": "/opt/bin"}
	for name, value := range before {
		if out, errs, err := m.run("go", "env", "-w", name+"="+value); err != nil {
			t.Fatalf("go env -w: %v\n%s%s", err, out, errs)
		}
	}
	out := m.login("ben")
	after := m.goEnv()
	for _, want := range []string{
		"signed in at " + c.url + " as person-ben until ", "changed go env GOPROXY: " + c.url + ", was not set", "changed go env GOAUTH: " + c.bin + " goauth --url " + c.url + ";netrc, was not set",
		"changed go env GOPRIVATE: not set, was corp.example/*", "changed go env GOSUMDB: " + after["GOSUMDB"] + ", was off", "attention: the go command trusts the gateway's CA only after: export SSL_CERT_FILE=" + c.caFile(),
		"headgate logout " + c.url + " puts it back",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("login does not print %q:\n%s", want, out)
		}
	}
	if strings.Count(out, "changed ") != 4 || after["GOPRIVATE"] != "" || after["GOPROXY"] != c.url || after["GOBIN"] != "/opt/bin" {
		t.Errorf("login changed %v and printed\n%s", after, out)
	}
	if errs, err := m.build(); err != nil {
		t.Errorf("C37 go build of a private module, checksums on: %v\n%s", err, errs)
	}
	if out := m.must("whoami"); out != "person-ben\n" {
		t.Errorf("whoami: %q", out)
	}
	who := decoded[introspection](t, m.must("whoami", "--json"))
	if !who.Active || who.Subject != "person-ben" || who.Class != "hu" || who.Expires <= time.Now().Unix() {
		t.Errorf("whoami --json: %+v", who)
	}
	all := decoded[[]clientStatus](t, m.must("status", "--json"))
	if len(all) != 1 || !all[0].Reachable || all[0].Identity.ID != who.ID || all[0].Short == nil || len(all[0].Changes) != 4 || all[0].Problem != "" {
		t.Errorf("status --json: %+v", all)
	}
	m.noneReadable()
	short := decoded[shortToken](t, m.file("logins/*/token.json"))

	out = m.must("logout")
	if now := m.goEnv(); !maps.Equal(now, before) || !strings.Contains(out, "put back go env GOPRIVATE: corp.example/*") || !strings.Contains(out, "its token has ended") {
		t.Errorf("logout left %v, want %v, and printed\n%s", now, before, out)
	}
	if left, _ := filepath.Glob(filepath.Join(m.home, ".config/headgate/logins/*")); len(left) > 0 {
		t.Errorf("logout left %v", left)
	}
	c.token = short.Token
	if status, body := c.body("/example.com/hello/@v/v1.0.0.mod"); status != 401 || !strings.HasPrefix(body, "TOKEN-REVOKED: ") {
		t.Errorf("T66 after logout the helper's token gets %d %s", status, body)
	}
	if _, errs, err := m.run(c.bin, "whoami"); err == nil || !strings.Contains(errs, "not signed in; run: headgate login URL") {
		t.Errorf("whoami after logout: %v %s", err, errs)
	}
	c.holdsNone(t, short.Token)
}

// file is the content of a file of the client's folder.
func (m *machine) file(pattern string) string {
	m.t.Helper()
	names, err := filepath.Glob(filepath.Join(m.home, ".config/headgate", pattern))
	if err != nil || len(names) != 1 {
		m.t.Fatalf("%s: %v %v", pattern, names, err)
	}
	text, err := os.ReadFile(names[0])
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

// noneReadable fails if anybody but the user can read what the client keeps.
func (m *machine) noneReadable() {
	m.t.Helper()
	err := filepath.WalkDir(filepath.Join(m.home, ".config/headgate"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 && filepath.Base(path) != "lock" && filepath.Base(path) != "headgate" {
			m.t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// With --netrc the token goes to .netrc, and not one byte of it changes besides; a second login replaces the first.
func TestLoginWritesNetrc(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	_, port, _ := strings.Cut(strings.TrimPrefix(c.url, "https://"), ":")
	for name, before := range map[string]string{
		"no file":         "",
		"others":          "# mine\nmachine a.example login x password y # z\n\nmacdef init\nmachine localhost:" + port + "\n\ndefault login anonymous password me@home\n",
		"an entry of old": "machine a.example\n  login x\n  password y\nmachine localhost:" + port + " login old password older\n# after\nmachine b.example login p password q",
	} {
		t.Run(name, func(t *testing.T) {
			m := c.machine(t)
			file := filepath.Join(m.home, ".netrc")
			if before != "" {
				if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			token := filepath.Join(m.home, "token")
			if err := os.WriteFile(token, []byte(c.person(t, "ben", "eng-build")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			report := decoded[loginReport](t, m.must("login", c.url, "--ca", c.caFile(), "--netrc", "--token-file", token, "--json"))
			if report.Netrc != file || report.Subject != "ben" {
				t.Errorf("login reports %+v", report)
			}
			if errs, err := m.build(); err != nil {
				t.Errorf("C29 go build: %v\n%s", err, errs)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode of .netrc: %v %v", info, err)
			}
			if err := os.WriteFile(token, []byte(c.person(t, "cat", "eng-web")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			m.must("login", c.url, "--ca", c.caFile(), "--netrc", "--token-file", token)
			if out := m.must("whoami"); out != "cat\n" {
				t.Errorf("whoami after a second login: %s", out)
			}
			m.must("logout", "--json")
			after, err := os.ReadFile(file)
			if diff := cmp.Diff(before, string(after)); diff != "" || (before == "") != os.IsNotExist(err) {
				t.Errorf("after logout .netrc differs (-before +after), %v:\n%s", err, diff)
			}
		})
	}
}

// person makes a token for somebody as an administrator does.
func (c *company) person(t *testing.T, name, group string) string {
	t.Helper()
	out, err := c.headgate("token", "create", "--for", name, "--group", group, "--modules", "*", "--quiet")
	if err != nil {
		t.Fatalf("token create: %v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

// What somebody changed after login stays as they want it, and a gateway that is away keeps nobody signed in here.
func TestLogoutLeavesWhatOthersChanged(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	token := filepath.Join(m.home, "token")
	if err := os.WriteFile(token, []byte(c.person(t, "ben", "eng-build")), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must("login", c.url, "--ca", c.caFile(), "--netrc", "--token-file", token)
	if _, errs, err := m.run("go", "env", "-w", "GOPROXY=https://other.example"); err != nil {
		t.Fatal(err, errs)
	}
	netrc := filepath.Join(m.home, ".netrc")
	if err := os.WriteFile(netrc, []byte("machine x login y password z\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.gateway.end(os.Kill)
	out, errs, err := m.run(c.bin, "logout")
	if err == nil || !strings.Contains(errs, "ending the token, which holds until ") {
		t.Errorf("logout with the gateway away: %v\n%s", err, errs)
	}
	if now := m.goEnv(); now["GOPROXY"] != "https://other.example" || len(now) != 1 || !strings.Contains(out, "left GOPROXY as it is") || !strings.Contains(out, "left "+netrc+" as it is") {
		t.Errorf("logout left %v and printed\n%s", now, out)
	}
}

// login changes nothing where it cannot finish.
func TestLoginRefused(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	bad := filepath.Join(m.home, "bad")
	if err := os.WriteFile(bad, []byte("hg_hu_000000000000_0000000000000000000000000000000000000000000000000"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		want string
		env  string
	}{
		"http":                {[]string{"http://localhost"}, "want https://HOST", ""},
		"userinfo":            {[]string{"https://a:b@localhost"}, "want https://HOST", ""},
		"CA unknown":          {[]string{c.url}, "name its file with --ca", "SSL_CERT_FILE=/dev/null"},
		"token does not hold": {[]string{c.url, "--token-file", bad}, "the token does not hold", ""},
		"another name":        {[]string{strings.Replace(c.url, "localhost", "127.0.0.1", 1)}, `it names itself "` + c.url, ""},
		"netrc with a device": {[]string{c.url, "--netrc", "--device", "x"}, "bound to no device", ""},
		"device without key":  {[]string{c.url, "--device", m.home}, "device enrol", ""},
		"GOENV off":           {[]string{c.url}, "GOENV is off", "GOENV=off"},
		"no gateway there":    {[]string{"https://localhost:1"}, "refused", ""},
		"not a gateway":       {[]string{c.jobs.URL}, "404", "SSL_CERT_FILE=" + c.jobsCA},
	} {
		t.Run(name, func(t *testing.T) {
			m.env = nil
			if tt.env != "" {
				m.env = []string{tt.env}
			}
			out, errs, err := m.run(c.bin, append([]string{"login"}, tt.args...)...)
			if err == nil || !strings.Contains(errs, tt.want) {
				t.Errorf("login: %v, want %q\n%s%s", err, tt.want, out, errs)
			}
			if env := m.goEnv(); len(env) > 0 {
				t.Errorf("the go command's settings changed: %v", env)
			}
		})
	}
}
