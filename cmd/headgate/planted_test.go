package main

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/audit/sinks/sinkstest"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity/identitytest"
)

// plantedSinks are sinks of each schema, and a place where the log is published.
const plantedSinks = `audit:
  publish: [{name: worm, location: $WORK/published}]
  sinks:
    - {name: native, type: file, path: $WORK/out-native, schema: native}
    - {name: ocsf, type: file, path: $WORK/out-ocsf}
    - {name: ecs, type: file, path: $WORK/out-ecs, schema: ecs}
    - {name: cef, type: file, path: $WORK/out-cef, schema: cef}
`

// A wire keeps what receivers over the network were sent, by sink, without what stands before a request's body.
type wire struct {
	mu   sync.Mutex // guards sent
	sent map[string]*bytes.Buffer
}

func (w *wire) took(sink string, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent[sink] == nil {
		w.sent[sink] = new(bytes.Buffer)
	}
	w.sent[sink].Write(b)
}

func (w *wire) holds(sink, text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent[sink] != nil && strings.Contains(w.sent[sink].String(), text)
}

// receivers runs one receiver of each kind over the network, whose credentials are secrets, and gives the sinks' section.
func (w *wire) receivers(t *testing.T, secrets map[string]string) string {
	t.Helper()
	var section strings.Builder
	splunk, elastic, otlp := new(sinkstest.Splunk), new(sinkstest.Elastic), new(sinkstest.OTLP)
	for kind, r := range map[string]struct {
		handler  http.Handler
		receiver *sinkstest.Receiver
		scheme   string
	}{
		"splunk": {splunk, &splunk.Receiver, "Splunk"}, "elasticsearch": {elastic, &elastic.Receiver, "ApiKey"}, "otlp": {otlp, &otlp.Receiver, "Bearer"},
	} {
		secret := "planted0credential0of0" + kind
		secrets["credential of "+kind] = secret
		file := filepath.Join(t.TempDir(), "credential")
		if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.receiver.Set(func(_ http.ResponseWriter, _ *http.Request, body []byte) bool {
			w.took(kind, body)
			return false
		})
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
			if q.Header.Get("Authorization") == r.scheme+" "+secret {
				q.Header.Set("Authorization", r.scheme+" right") // the one that the receivers know
			}
			r.handler.ServeHTTP(rw, q)
		}))
		t.Cleanup(srv.Close)
		index := ""
		if kind == "elasticsearch" {
			index = ", index: logs-headgate"
		}
		fmt.Fprintf(&section, "    - {name: %[1]s, type: %[1]s, url: %[2]q, token_file: %[3]q%[4]s}\n", kind, srv.URL, file, index)
	}
	fmt.Fprintf(&section, "    - {name: syslog, type: syslog, %s}\n", w.syslog(t))
	return section.String()
}

// syslog takes syslog over TLS, and gives the keys of a sink that sends there.
func (w *wire) syslog(t *testing.T) string {
	t.Helper()
	srv := httptest.NewTLSServer(nil) // for its certificate
	defer srv.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: srv.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for b := make([]byte, 64<<10); ; {
					n, err := c.Read(b)
					w.took("syslog", b[:n])
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("address: %q, tls: {ca_file: %q}", l.Addr().String(), ca)
}

// signInWith signs a person in at the gateway's pages with a browser, and makes a token there.
func (s *site) signInWith(iss *identitytest.Issuer, provider, sub string, secrets map[string]string) {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	browser := &http.Client{
		Transport: s.client.Transport, Jar: jar,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	home, err := url.Parse(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	visit := func(method, path string, form url.Values, want int) *http.Response {
		r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(form.Encode()))
		if err != nil {
			s.t.Fatal(err)
		}
		if form != nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Sec-Fetch-Site", "same-origin")
		}
		resp, err := browser.Do(r)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { resp.Body.Close() })
		if resp.StatusCode != want {
			s.t.Fatalf("%s %s: %s, want %d", method, path, resp.Status, want)
		}
		for _, c := range jar.Cookies(home) {
			secrets["cookie "+c.Name+" after "+path[:min(len(path), 20)]] = c.Value
		}
		return resp
	}
	address := visit(http.MethodGet, "/-/login/start?back=%2F-%2Ftokens&provider="+provider, nil, http.StatusSeeOther).Header.Get("Location")
	q, err := iss.SignIn(address, sub)
	if err != nil {
		s.t.Fatal(err)
	}
	secrets["code"], secrets["state"] = q.Get("code"), q.Get("state")
	visit(http.MethodGet, "/-/login/callback?"+q.Encode(), nil, http.StatusSeeOther)
	page, err := io.ReadAll(visit(http.MethodPost, "/-/tokens", url.Values{"modules": {"*"}}, http.StatusOK).Body)
	if err != nil {
		s.t.Fatal(err)
	}
	m := regexp.MustCompile(`password (hg_hu_\w+)`).FindSubmatch(page)
	if m == nil {
		s.t.Fatalf("the page shows no token: %s", page)
	}
	secrets["token of the page"] = string(m[1])
}

// A38, A39: no secret that the gateway was given or made stands in a file of it but in the one that keeps it, in what
// sinks were given, in its metrics, or in what it and its verbs print.
func TestA38NoPlantedSecretIsFound(t *testing.T) {
	t.Parallel()
	ann := identitytest.User{Login: "ann", Password: "s3cret", ID: "person-1"}
	_, provider, browser, caFile := identitytest.Serve(t, identitytest.ProviderConfig{Users: []identitytest.User{ann}})
	clientSecret := filepath.Join(t.TempDir(), "client-secret")
	secrets := map[string]string{"client secret": "planted0client0secret0of0the0issuer"}
	if err := os.WriteFile(clientSecret, []byte(secrets["client secret"]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(nil)
	pages := identitytest.NewIssuer("https://" + srv.Listener.Addr().String())
	srv.Config.Handler = pages
	srv.StartTLS()
	t.Cleanup(srv.Close)
	pages.SetPerson("person-2", nil)
	pagesCA := filepath.Join(t.TempDir(), "pages.pem")
	if err := os.WriteFile(pagesCA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	network := &wire{sent: map[string]*bytes.Buffer{}}
	s := newSite(t, mirrortest.Start(t, helloModule), `identity:
  issuers:
    - {name: pages, client_id: headgate, url: "`+pages.URL+`", audiences: [headgate], ca_file: "`+pagesCA+`"}
    - {name: test, client_id: headgate, client_secret_file: "`+clientSecret+`", url: "`+provider.Issuer+`", audiences: [headgate], ca_file: "`+caFile+`"}
`+plantedSinks+network.receivers(t, secrets))
	secrets["token"] = s.token
	s.signInWith(pages, "pages", "person-2", secrets)
	idToken, err := identitytest.SignIn(t.Context(), browser, provider, ann.Login, ann.Password)
	if err != nil {
		t.Fatal(err)
	}
	secrets["ID token"], secrets["signature of the ID token"] = idToken, idToken[strings.LastIndex(idToken, ".")+1:]
	secrets["exchanged token"], _ = s.exchange(t, http.StatusOK, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {idToken},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
	})["access_token"].(string)
	if status, body := s.body("/example.com/hello/@v/v1.0.0.zip"); status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	s.plant(secrets)
	s.send("/example.com/the-last-one/@v/list", "Accept", "*/*")
	for _, sink := range []string{"splunk", "elasticsearch", "otlp", "syslog"} {
		for begun := time.Now(); !network.holds(sink, "the-last-one"); time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > patience {
				t.Fatalf("%s was not sent the last request's record", sink)
			}
		}
	}
	said := map[string]string{"metrics": s.metric("")}
	gateway := s.gateway
	if code := s.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code is %d", code)
	}
	said["what the gateway printed"] = gateway.output.String()
	for _, verb := range [][]string{{"audit", "tail", "-n", "0"}, {"audit", "tail", "-n", "0", "--json"}, {"audit", "search", "--limit", "0", "--json"}, {"config", "check"}} {
		if said[strings.Join(verb, " ")], err = s.headgate(verb...); err != nil {
			t.Errorf("%v: %v", verb, err)
		}
	}
	for name, secret := range s.keys() {
		secrets[name] = secret
	}
	network.mu.Lock()
	for sink, sent := range network.sent {
		said["what "+sink+" was sent"] = sent.String()
	}
	network.mu.Unlock()
	s.files(said)
	wantNoSecret(t, said, secrets)
}

// plant makes requests that carry secrets wherever a client can put them.
func (s *site) plant(secrets map[string]string) {
	s.t.Helper()
	jwt := "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.cGxhbnRlZHNpZ25hdHVyZXBsYW50ZWQ"
	github := "ghp_" + strings.Repeat("p1an7ed9", 5)[:36]
	for where, secret := range map[string]string{
		"Authorization": "Bearer hg_hu_planted0bearer0planted0bearer", "Cookie": "session=planted0cookie0planted",
		"Proxy-Authorization": "Basic cGxhbnRlZDpwcm94eXBhc3N3b3Jk", "X-Api-Token": "planted0header0token", "User-Agent": "curl " + github, "X-Jwt": jwt,
	} {
		s.send("/example.com/hello/@v/list", where, secret)
		_, value, found := strings.Cut(secret, " ")
		if !found {
			value = secret
		}
		secrets["header "+where] = strings.TrimPrefix(value, "session=")
	}
	secrets["JWT in a path"] = "cGxhbnRlZHNpZ25hdHVyZXBsYW50ZWQ"
	secrets["query"] = "planted0query0token"
	for _, path := range []string{"/example.com/hello/@v/list?token=planted0query0token", "/example.com/" + jwt + "/@v/list", "/example.com/" + github + "/@v/list"} {
		s.send(path, "Accept", "*/*")
	}
}

// send makes a request as the person, with one more header.
func (s *site) send(path, header, value string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.SetBasicAuth("any", s.token)
	r.Header.Set(header, value)
	resp, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
}

// keys are the ends of what the gateway keeps secret in files of its own, by file.
func (s *site) keys() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	eachFile(s.t, filepath.Join(s.dir, "state"), func(path string, b []byte) {
		if !strings.HasSuffix(path, ".key") && !strings.HasSuffix(path, "-key.pem") && filepath.Base(path) != "pepper.txt" {
			return
		}
		fields := bytes.Fields(b)
		longest := slices.MaxFunc(fields, func(a, b []byte) int { return len(a) - len(b) })
		if len(longest) < 30 {
			longest = b
		}
		all[path] = string(longest[max(0, len(longest)-30):])
	})
	for _, kind := range []string{"pepper.txt", "0.key", "fingerprint.key", "leaf-key.pem"} {
		found := false
		for name := range all {
			found = found || filepath.Base(name) == kind
		}
		if !found {
			s.t.Errorf("no %s among the keys, so it is not looked for", kind)
		}
	}
	return all
}

// files adds every file below the gateway's folder.
func (s *site) files(said map[string]string) {
	eachFile(s.t, s.dir, func(path string, b []byte) {
		if strings.HasSuffix(path, ".zst") {
			s.t.Errorf("%s is packed: what it holds is not seen", path)
		}
		said[path] = string(b)
	})
	for _, name := range []string{"out-native", "out-ocsf", "out-ecs", "out-cef"} {
		if text := said[filepath.Join(s.dir, name)]; !strings.Contains(text, "example.com/hello") {
			s.t.Errorf("%s holds no record of the download: %d bytes", name, len(text))
		}
	}
}

func eachFile(t *testing.T, dir string, fn func(path string, b []byte)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			fn(path, b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func wantNoSecret(t *testing.T, said, secrets map[string]string) {
	t.Helper()
	for name, secret := range secrets {
		if len(secret) < 16 {
			t.Fatalf("%s: %q is too short to be looked for", name, secret)
		}
		for where, text := range said {
			if where != name && strings.Contains(text, secret) {
				t.Errorf("%s: %s stands there", where, name)
			}
		}
	}
	t.Logf("%d secrets are looked for in %d files and outputs", len(secrets), len(said))
}
