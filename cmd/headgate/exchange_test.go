package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity/identitytest"
)

const helloModule = "module example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n-- h.go --\npackage hello\n"

// A person signs in at a real OpenID provider, exchanges the ID token for a Headgate token (RFC 8693), and downloads
// with it; the ID token itself opens the same doors.
func TestSignInAndExchange(t *testing.T) {
	ann := identitytest.User{Login: "ann", Password: "s3cret", ID: "person-1", Groups: []string{"eng-payments"}}
	_, provider, browser, caFile := identitytest.Serve(t, identitytest.ProviderConfig{Users: []identitytest.User{ann}})
	up := mirrortest.Start(t, helloModule)
	s := newSite(t, up, `identity:
  issuers:
    - {name: test, client_id: headgate, url: "`+provider.Issuer+`", audiences: [headgate], groups_claim: groups, ca_file: "`+caFile+`"}
`)
	idToken, err := identitytest.SignIn(t.Context(), browser, provider, ann.Login, ann.Password)
	if err != nil {
		t.Fatal(err)
	}
	issued := s.exchange(t, http.StatusOK, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {idToken},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
	})
	token, _ := issued["access_token"].(string)
	if !strings.HasPrefix(token, "hg_hu_") || issued["token_type"] != "Bearer" || issued["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" {
		t.Fatalf("exchange gave %v", issued)
	}
	for name, credential := range map[string]string{"Headgate token": token, "ID token": idToken} {
		s.token = credential
		if status, body := s.body("/example.com/hello/@v/v1.0.0.mod"); status != http.StatusOK {
			t.Errorf("%s: status %d: %s", name, status, body)
		}
	}
	s.goDownload(t, token, "example.com/hello@v1.0.0")

	for name, form := range map[string]url.Values{
		"T57 expired or foreign token":  {"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {idToken + "x"}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}},
		"T57 wider scope":               {"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {idToken}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "scope": {"admin"}},
		"another grant":                 {"grant_type": {"password"}, "username": {"ann"}},
		"nothing":                       {},
		"T42 audience of somebody else": {"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {idToken}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "audience": {"other"}},
	} {
		t.Run(name, func(t *testing.T) {
			if answer := s.exchange(t, http.StatusBadRequest, form); answer["error"] == nil {
				t.Errorf("answer has no error: %v", answer)
			}
		})
	}
	if code := s.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code is %d", code)
	}
	out, err := s.headgate("audit", "tail", "-n", "0")
	if err != nil || !strings.Contains(out, "auth token.exchange /-/oauth/token allow status=200 subject=person-1") {
		t.Errorf("the log does not say who got a token: %v\n%s", err, out)
	}
	s.holdsNone(t, token, idToken)
}

// exchange posts a form to the token endpoint.
func (s *site) exchange(t *testing.T, want int, form url.Values) map[string]any {
	t.Helper()
	resp, err := s.client.PostForm(s.url+"/-/oauth/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatalf("reading the token endpoint's answer: %v", err)
	}
	if resp.StatusCode != want || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("token endpoint: status %d, Cache-Control %q, want %d, no-store: %v", resp.StatusCode, resp.Header.Get("Cache-Control"), want, answer)
	}
	return answer
}

// goDownload runs the real go command with a token in .netrc.
func (s *site) goDownload(t *testing.T, token, module string) {
	t.Helper()
	home := mirrortest.Home(t)
	_, port, _ := strings.Cut(strings.TrimPrefix(s.url, "https://"), ":")
	netrc := "machine localhost:" + port + " login any password " + token + "\n"
	if err := os.WriteFile(filepath.Join(home, ".netrc"), []byte(netrc), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "mod", "download", module)
	cmd.Dir = home
	cmd.Env = []string{
		"HOME=" + home, "PATH=" + os.Getenv("PATH"), "GOPROXY=" + s.url, "GOSUMDB=" + s.upstream.Key(), "GOFLAGS=-modcacherw", "GOENV=off",
		"GOTOOLCHAIN=local", "SSL_CERT_FILE=" + filepath.Join(s.dir, "state/ca/ca.pem"),
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go mod download %s: %v\n%s", module, err, out)
	}
}

// holdsNone fails if a secret stands in any file below the state folder, or in what the gateway printed (T73, A39).
func (s *site) holdsNone(t *testing.T, secrets ...string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(s.dir, "state"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, secret := range secrets {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
