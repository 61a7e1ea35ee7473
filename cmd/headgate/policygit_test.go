package main

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
	"github.com/headgate/headgate/policy/git/gittest"
)

// policySite is a gateway whose policy comes from a repository that it looks at each second or two.
type policySite struct {
	*site
	server *vcstest.Server
	repo   *gittest.Repo
	key    *gittest.Key
}

func newPolicySite(t *testing.T) *policySite {
	t.Helper()
	s := &policySite{server: vcstest.Start(t), key: gittest.SSH(t)}
	s.repo = gittest.Create(t, filepath.Join(s.server.Dir, "repos", "policy.git"))
	s.push(nil)
	signers := filepath.Join(t.TempDir(), "signers")
	if err := os.WriteFile(signers, []byte(s.key.Allowed(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.site = newSite(t, mirrortest.Start(t, "module example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n-- h.go --\npackage hello\n"), fmt.Sprintf(`
policy:
  source: git
  git:
    url: https://git.corp.example/policy.git
    branch: main
    allowed_signers_file: %s
    ca_file: %s
    proxy: %s
    poll: 1s
`, signers, s.server.CAFile, s.server.Proxy))
	return s
}

func (s *policySite) push(files map[string]string) string {
	all := map[string]string{
		"bundle.yaml":       "name: acme\nlibrary: default\n",
		"config/teams.yaml": "teams:\n  everyone: {profile: standard, public: true}\n",
		"config/rules.yaml": "profiles: [open, standard, strict]\nrules: []\n",
		"tests/access.yaml": "cases:\n  - {name: public, ask: access, module: example.com/m, want: {effect: allow}}\n",
	}
	maps.Copy(all, files)
	return s.repo.Commit(gittest.Commit{Files: all, Key: s.key})
}

// status runs the verb until it says what is wanted.
func (s *policySite) status(want string) string {
	s.t.Helper()
	var out string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); <-time.After(500 * time.Millisecond) {
		if out, _ = s.headgate("policy", "status"); strings.Contains(out, want) {
			return out
		}
	}
	s.t.Fatalf("policy status does not say %q:\n%s\n%s", want, out, s.gateway.output)
	return ""
}

// A bundle that takes all the memory and time there is ends in its own process; the gateway serves on and says so.
func TestP12GiantBundle(t *testing.T) {
	t.Parallel()
	s := newPolicySite(t)
	good := s.repo.Git("", nil, "rev-parse", "main")
	if out, err := s.headgate("policy", "status"); err != nil || !strings.Contains(out, good) || !strings.Contains(out, s.key.Fingerprint) {
		t.Fatalf("policy status = %v:\n%s\nwant commit %s and its signer", err, out, good)
	}
	digits := `n := {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}`
	giant := "package site_test\n\n" + digits + "\n\n"
	for i := range 2 {
		giant += fmt.Sprintf("test_%d if count([x | some a in n; some b in n; some c in n; some d in n; some e in n; some f in n; some g in n; x := [a, b, c, d, e, f, g, \"%s\"]]) == 1\n", i, strings.Repeat("x", 1000))
	}
	bad := s.push(map[string]string{"site/site_test.rego": giant})
	out := s.status("rejected " + bad)
	if _, err := s.headgate("policy", "status"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("policy status ends with %v, want exit status 3", err)
	}
	if code, body := s.body("/example.com/hello/@v/v1.0.0.mod"); code != http.StatusOK {
		t.Errorf("a request = %d %s, want 200 under the old policy", code, body)
	}
	if rss := s.gateway.peakRSS(t); rss > 512<<20 {
		t.Errorf("the gateway had %d MiB resident", rss>>20)
	}
	t.Logf("the gateway had %d MiB resident at most; status:\n%s", s.gateway.peakRSS(t)>>20, out)
	s.wantMetric("headgate_policy_last_reload_success 0")
	records, err := s.headgate("audit", "tail")
	if err != nil || !strings.Contains(records, "policy.reject") || !strings.Contains(records, bad) {
		t.Errorf("audit tail = %v:\n%s\nwant the rejection of %s", err, records, bad)
	}
	next := s.push(nil)
	s.status("activated " + next)
}

func (s *policySite) wantMetric(line string) {
	s.t.Helper()
	resp, err := http.Get("http://127.0.0.1:" + s.operations + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), line+"\n") {
		s.t.Errorf("/metrics has no line %q (%v)", line, err)
	}
}

// P29: killed while a push is on its way, the gateway comes back with a verified revision, also with its repository away.
func TestP29KilledOnTheWay(t *testing.T) {
	t.Parallel()
	s := newPolicySite(t)
	known := map[string]bool{s.repo.Git("", nil, "rev-parse", "main"): true}
	for _, after := range []time.Duration{0, 300, 700, 1100, 1600, 2200} {
		known[s.push(map[string]string{"note.md": after.String()})] = true
		<-time.After(after * time.Millisecond) // whichever step it is in then
		s.stop(syscall.SIGKILL)
		s.start()
		if code, body := s.body("/example.com/hello/@v/v1.0.0.mod"); code != http.StatusOK {
			t.Errorf("killed after %d ms: a request = %d %s", after, code, body)
		}
	}
	s.server.Close()
	s.stop(syscall.SIGKILL)
	s.start()
	resp, err := s.get(t.Context(), "/example.com/hello/@v/v1.0.0.mod")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if revision := resp.Header.Get("Headgate-Revision"); resp.StatusCode != http.StatusOK || !known[revision] {
		t.Errorf("with the repository away: %d under %q", resp.StatusCode, revision)
	}
	s.status("trouble")
}
