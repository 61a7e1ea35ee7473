package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// answered runs the helper as the go command does after an answer.
func (m *machine) answered(address, answer string) (stdout, stderr string, err error) {
	m.t.Helper()
	out, errs := &printed{}, &printed{}
	cmd := m.command(m.t.Context(), m.c.bin, "goauth", "--url", m.c.url, address)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(answer), out, errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// The GOAUTH protocol, call by call: what is printed, and whether the gateway was asked at all.
func TestGoauthProtocol(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	c.signIn(t, m)
	first := m.must("goauth")
	kept := decoded[shortToken](t, m.file("logins/*/token.json"))
	if want := c.url + "\n\nAuthorization: Bearer " + kept.Token + "\n\n"; first != want {
		t.Fatalf("C31 goauth prints %q, want %q", first, want)
	}
	life := time.Until(kept.Expires)
	if share := float64(time.Until(kept.Renew)) / float64(life); share < 0.60 || share > 0.73 {
		t.Errorf("a token of %s is renewed at %.2f of its life, want 2/3 ± 1/20", life, share)
	}
	asked, looked := c.recorded(t, " token.exchange "), c.recorded(t, " token.introspect ")
	mod := c.url + "/example.com/hello/@v/v1.0.0.mod"
	const challenge = "Www-Authenticate: Basic realm=\"headgate\", Bearer realm=\"headgate\", error=\"%s\"\n\n"
	for name, tt := range map[string]struct{ address, answer, want string }{
		"C33 an ordinary 404":                 {mod, "HTTP/2.0 404 Not Found\nContent-Type: text/plain\n\n", first},
		"C33 a refusal of policy":             {mod, "HTTP/2.0 403 Forbidden\n\n", first},
		"C33 a 404 with a challenge":          {mod, "HTTP/2.0 404 Not Found\n" + fmt.Sprintf(challenge, "token_expired"), first},
		"an error that is not ours":           {mod, "HTTP/2.0 401 Unauthorized\n" + fmt.Sprintf(challenge, "invalid_token"), first},
		"another host":                        {"https://other.example/m/@v/list", "HTTP/2.0 401 Unauthorized\n" + fmt.Sprintf(challenge, "login_required"), ""},
		"a host that begins like ours":        {c.url + "1/m/@v/list", "HTTP/2.0 401 Unauthorized\n" + fmt.Sprintf(challenge, "login_required"), ""},
		"nothing on the standard input":       {mod, "", first},
		"garbage on the standard input":       {mod, "\x00\xff\n\n", first},
		"a token that another renewed before": {mod, "HTTP/2.0 401 Unauthorized\n" + fmt.Sprintf(challenge, "token_expired"), first},
	} {
		t.Run(name, func(t *testing.T) {
			if out, errs, err := m.answered(tt.address, tt.answer); err != nil || out != tt.want || errs != "" {
				t.Errorf("goauth: %v, %q %s, want %q", err, out, errs, tt.want)
			}
		})
	}
	asked, looked = c.recorded(t, " token.exchange ")-asked, c.recorded(t, " token.introspect ")-looked
	if asked != 0 || looked != 1 { // to see that the token of the last case holds
		t.Errorf("C33 the gateway was asked for %d tokens and about %d, want 0 and 1", asked, looked)
	}
	for challenged, want := range map[string]string{"device_required": "headgate device enrol", "stepup_required": "headgate login"} {
		if out, errs, err := m.answered(mod, "HTTP/2.0 403 Forbidden\n"+fmt.Sprintf(challenge, challenged)); err == nil || out != "" || !strings.Contains(errs, want) {
			t.Errorf("C34 %s: %v, %q %s", challenged, err, out, errs)
		}
	}
	if out, err := c.headgate("token", "revoke", strings.Split(kept.Token, "_")[2]); err != nil {
		t.Fatalf("token revoke: %v\n%s", err, out)
	}
	out, errs, err := m.answered(mod, "HTTP/2.0 401 Unauthorized\n"+fmt.Sprintf(challenge, "login_required"))
	if renewed := decoded[shortToken](t, m.file("logins/*/token.json")); err != nil || renewed.Token == kept.Token || !strings.Contains(out, renewed.Token) {
		t.Errorf("C32 after a revocation: %v, %q %s", err, out, errs)
	}
	m.noneReadable()
	if out, err := c.headgate("lock", "user", "ben", "--reason", "gone"); err != nil {
		t.Fatalf("lock: %v\n%s", err, out)
	}
	if out, errs, err := m.answered(mod, "HTTP/2.0 401 Unauthorized\n"+fmt.Sprintf(challenge, "login_required")); err == nil || out != "" || !strings.Contains(errs, "run: headgate login "+c.url) {
		t.Errorf("of a locked person: %v, %q %s", err, out, errs)
	}
}

// recorded counts a text in the log.
func (c *company) recorded(t *testing.T, text string) int {
	t.Helper()
	out, err := c.headgate("audit", "tail", "-n", "0")
	if err != nil {
		t.Fatalf("audit tail: %v\n%s", err, out)
	}
	return strings.Count(out, text)
}

// While the gateway is away the token that holds is given out, without an error.
func TestGoauthInAnOutage(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	c.signIn(t, m)
	first := m.must("goauth")
	names, _ := filepath.Glob(filepath.Join(m.home, ".config/headgate/logins/*/token.json"))
	old := decoded[shortToken](t, m.file("logins/*/token.json"))
	due := strings.Replace(m.file("logins/*/token.json"), old.Renew.Format(time.RFC3339Nano), time.Now().Add(-time.Minute).Format(time.RFC3339Nano), 1)
	if err := os.WriteFile(names[0], []byte(due), 0o600); err != nil {
		t.Fatal(err)
	}
	c.gateway.end(os.Kill)
	if again := m.must("goauth"); again != first {
		t.Errorf("goauth with the gateway away prints %q, want %q", again, first)
	}
}

// Many go commands whose token is due at once make one request for another, not one each.
func TestGoauthHerd(t *testing.T) {
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	c.signIn(t, m)
	var wg sync.WaitGroup
	answers := make([]string, 8)
	for i := range answers {
		wg.Go(func() {
			out, errs, err := m.run(c.bin, "goauth")
			if err != nil {
				t.Errorf("goauth: %v\n%s", err, errs)
			}
			answers[i] = out
		})
	}
	wg.Wait()
	for _, answer := range answers {
		if answer == "" || answer != answers[0] {
			t.Errorf("helpers at once print %q and %q", answers[0], answer)
		}
	}
	if n := c.recorded(t, " token.exchange "); n != 1 {
		t.Errorf("%d helpers asked for %d tokens, want 1", len(answers), n)
	}
}

// downloads makes a go.mod with twelve more modules in the machine's folder.
func (m *machine) downloads(up *mirrortest.Server) {
	m.t.Helper()
	mod := "module example.com/main\n\ngo 1.21\n\n"
	for i := range 12 {
		v := module.Version{Path: fmt.Sprintf("example.com/part%02d", i), Version: "v1.0.0"}
		if err := up.Add(mirrortest.Module{Version: v, Files: map[string][]byte{"go.mod": []byte("module " + v.Path + "\n"), "p.go": []byte("package p\n")}}); err != nil {
			m.t.Fatal(err)
		}
		mod += "require " + v.Path + " " + v.Version + "\n"
	}
	for name, text := range map[string]string{"go.mod": mod, "main.go": "package main\n"} {
		if err := os.WriteFile(filepath.Join(m.home, "src", name), []byte(text), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
}

// E17, C32, with the real helper: a token bound to the device, got over mTLS, ends by its clock in the middle of go mod
// download. The download goes on, and the developer sees nothing of it.
func TestGoauthTokenExpiresInMidDownload(t *testing.T) {
	t.Parallel()
	up := mirrortest.Start(t, companyModules...)
	var m *machine
	var once sync.Once
	up.OnRequest = func(r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/example.com/part0") && strings.HasSuffix(r.URL.Path, ".zip") {
			once.Do(func() { m.outlive() })
		}
	}
	c := newCompany(t, up, "agent: 3s")
	m = c.machine(t)
	m.downloads(up)
	m.enrol("laptop-17", "person-ann")
	if out := m.login("ann"); !strings.Contains(out, "tokens are bound to the device in "+filepath.Join(m.home, ".config/headgate/device")) {
		t.Errorf("login says nothing of the device:\n%s", out)
	}
	m.env = []string{"GOMODCACHE=" + t.TempDir()}
	if out, errs, err := m.run("go", "mod", "download"); err != nil || out+errs != "" {
		t.Errorf("go mod download: %v\n%s%s", err, out, errs)
	}
	out, err := c.headgate("audit", "tail", "-n", "0")
	if err != nil || !strings.Contains(out, "TOKEN-EXPIRED status=401") || strings.Count(out, "decision zip example.com/part") < 12 {
		t.Errorf("the log does not show a token's end and 12 zips: %v\n%s", err, out)
	}
}

// outlive waits until the short token of the moment is over, by its own clock.
func (m *machine) outlive() {
	t := decoded[shortToken](m.t, m.file("logins/*/token.json"))
	<-time.After(time.Until(t.Expires) + time.Second)
}
