package main

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

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
	s := newSite(t, mirrortest.Start(t, helloModule), `identity:
  issuers:
    - {name: test, client_id: headgate, client_secret_file: "`+clientSecret+`", url: "`+provider.Issuer+`", audiences: [headgate], ca_file: "`+caFile+`"}
`+plantedSinks)
	secrets["token"] = s.token
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
