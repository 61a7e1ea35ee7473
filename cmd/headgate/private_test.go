package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
)

const hookSecret = "a-secret-of-the-hook"

// privateConfig is a gateway whose private modules come from a Git server of the test.
const privateConfig = `state: $WORK/state
gateway: {listen: "127.0.0.1:$PORT", operations: "127.0.0.1:$OPS", hooks: {secret_file: $WORK/hook}}
policy: {source: folder, path: $WORK/policy}
mirror:
  upstreams: [$UPSTREAM]
  sumdb: [$SUMDB_KEY]
  private: [{patterns: ["corp.example/*"], hosts: [corp.example], ca_file: $GIT_CA, proxy: $GIT_PROXY}]
`

// A privateSite is a site with a Git server behind it.
type privateSite struct {
	*site
	git *vcstest.Server
	up  *mirrortest.Server

	mu   sync.Mutex // guards left
	left []string   // requests that the gateway sent to anything but Git, whole
}

// sent records a request with its headers and body.
func (s *privateSite) sent(r *http.Request) {
	text, err := httputil.DumpRequest(r, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, r.Host+" "+string(text)+fmt.Sprint(err))
}

// trap is a proxy that leads nowhere, for whatever would leave the machine.
func (s *privateSite) trap() string {
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.sent(r)
		http.Error(w, "trap", http.StatusForbidden)
	}))
	s.t.Cleanup(trap.Close)
	return trap.URL
}

// newPrivateSite starts a gateway where everybody may use everything; extra are further lines of the section mirror.
func newPrivateSite(t *testing.T, extra string, archives ...string) *privateSite {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	port := freePort()
	up := mirrortest.Start(t, archives...)
	s := &privateSite{git: vcstest.Start(t), up: up, site: &site{t: t, bin: bin, dir: mirrortest.Home(t), operations: freePort(), url: "https://localhost:" + port, upstream: up}}
	up.OnRequest = s.sent
	values := map[string]string{
		"WORK": s.dir, "PORT": port, "OPS": s.operations, "UPSTREAM": up.URL, "SUMDB_KEY": up.Key(), "GIT_CA": s.git.CAFile, "GIT_PROXY": s.git.Proxy,
	}
	for name, text := range map[string]string{
		"headgate.yaml":            os.Expand(privateConfig, func(key string) string { return values[key] }) + extra,
		"hook":                     hookSecret + "\n",
		"policy/bundle.yaml":       "name: test\nlibrary: default\n",
		"policy/config/teams.yaml": "teams:\n  everyone: {profile: standard, public: true, allow: [corp.example]}\n",
		"policy/config/rules.yaml": "profiles: [open, standard, strict]\nrules: []\n", "policy/config/waivers.yaml": "waivers: []\n",
	} {
		file := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{"HEADGATE_CONFIG=" + filepath.Join(s.dir, "headgate.yaml"), "HOME=" + s.dir, "PATH=" + os.Getenv("PATH"), "HTTPS_PROXY=" + s.trap(), "HTTP_PROXY=" + s.trap()}
	s.start()
	t.Cleanup(func() {
		if s.gateway != nil {
			s.gateway.end(os.Kill)
		}
	})
	out, err := s.headgate("token", "create", "--for", "ann", "--modules", "*", "--quiet")
	if err != nil {
		t.Fatalf("token create: %v\n%s", err, out)
	}
	s.token = strings.TrimSpace(out)
	netrc := fmt.Sprintf("machine localhost:%s login headgate password %s\n", port, s.token)
	if err := os.WriteFile(filepath.Join(s.dir, ".netrc"), []byte(netrc), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// repo makes a repository with one tagged commit.
func (s *privateSite) repo(name string, files map[string]string, tags ...string) *vcstest.Repo {
	s.t.Helper()
	r, err := s.git.Create(name)
	if err == nil && files != nil {
		_, err = r.Commit("main", files, tags...)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// goCommand runs the real go command with an empty module cache, through the gateway or straight from Git.
func (s *privateSite) goCommand(direct bool, args ...string) (string, time.Duration) {
	s.t.Helper()
	dir := s.t.TempDir()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"), "GOENV=off", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GOSUMDB=off",
		"GOPATH=" + filepath.Join(dir, "go"), "GOMODCACHE=" + filepath.Join(dir, "mod"), "GOCACHE=" + filepath.Join(dir, "cache"),
	}
	if direct {
		cmd.Env = append(cmd.Env, "GOPROXY=direct", "HTTPS_PROXY="+s.git.Proxy, "SSL_CERT_FILE="+s.git.CAFile, "GIT_SSL_CAINFO="+s.git.CAFile, "GIT_CONFIG_NOSYSTEM=1")
	} else {
		cmd.Env = append(cmd.Env, "GOPROXY="+s.url, "SSL_CERT_FILE="+filepath.Join(s.dir, "state/ca/ca.pem"))
	}
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("go %q: %v\n%s", args, err, out)
	}
	return string(out), time.Since(begin)
}

// push announces a push as GitHub and Forgejo do.
func (s *privateSite) push(repository string) {
	s.t.Helper()
	body := fmt.Sprintf(`{"ref":"refs/tags/x","repository":{"clone_url":"https://corp.example/%s.git","ssh_url":"git@corp.example:%s.git"}}`, repository, repository)
	m := hmac.New(sha256.New, []byte(hookSecret))
	m.Write([]byte(body))
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.url+"/-/hooks/git", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(m.Sum(nil)))
	resp, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusAccepted || !strings.Contains(answer.String(), `"repositories": 1`) {
		s.t.Fatalf("webhook: status %d, %v: %s", resp.StatusCode, err, &answer)
	}
}

// timed asks for a list and wants so many versions.
func (s *privateSite) timed(path string, versions int) time.Duration {
	s.t.Helper()
	begin := time.Now()
	status, body := s.body(path)
	took := time.Since(begin)
	if got := strings.Count(body, "\n"); status != http.StatusOK || got != versions {
		s.t.Fatalf("%s: status %d with %d lines, want %d\n%.300s", path, status, got, versions, body)
	}
	return took
}

// B17, N1, N3, N14: a private repository with 500 tags costs one clone; then a list costs nothing, and one look at it
// after a push. Times are printed, counts are judged.
func TestPrivateRepositoryOf500Tags(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t, "")
	const tags = 500
	r := s.repo("team/many", nil)
	fill := func(n, from int) {
		t.Helper()
		if err := r.Fill(n, func(i int) (map[string]string, []string) {
			files := map[string]string{"go.mod": "module corp.example/team/many\n\ngo 1.21\n", "n.go": fmt.Sprintf("package many\n\nconst N = %d\n", from+i)}
			for j := range 20 { // each commit brings something of its own
				files[fmt.Sprintf("d%d/f%d.go", j, (from+i)%10)] = fmt.Sprintf("package d%d // %x\n", j, sha256.Sum256(fmt.Append(nil, i, j)))
			}
			return files, []string{fmt.Sprintf("v1.%d.0", from+i)}
		}); err != nil {
			t.Fatal(err)
		}
	}
	fill(tags, 0)
	clone := exec.Command("git", "clone", "--quiet", "--bare", "https://corp.example/team/many.git", filepath.Join(t.TempDir(), "clone"))
	clone.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "HTTPS_PROXY=" + s.git.Proxy, "GIT_SSL_CAINFO=" + s.git.CAFile, "GIT_CONFIG_NOSYSTEM=1"}
	begin := time.Now()
	if out, err := clone.CombinedOutput(); err != nil {
		t.Fatalf("git clone: %v\n%s", err, out)
	}
	cloned, cloneBytes := time.Since(begin), s.git.Bytes()
	const list = "/corp.example/team/many/@v/list"
	s.git.Forget()
	first := s.timed(list, tags)
	t.Logf("%d tags: git clone %v with %d bytes; first list %v with %d bytes in %d git sessions: %.2f × clone",
		tags, cloned, cloneBytes, first, s.git.Bytes(), s.git.Count("info/refs"), first.Seconds()/cloned.Seconds())
	if got := s.git.Bytes(); got > cloneBytes+cloneBytes/4 {
		t.Errorf("the first list took %d bytes from Git, a clone takes %d", got, cloneBytes)
	}
	s.git.Forget()
	var warm []time.Duration
	for range 20 {
		warm = append(warm, s.timed(list, tags))
	}
	slices.Sort(warm)
	t.Logf("warm list: median %v", warm[len(warm)/2])
	if n := len(s.git.Requests()); n != 0 || s.git.Bytes() != 0 {
		t.Errorf("N1 20 fresh lists made %d requests to Git", n)
	}
	for i := range 3 {
		s.git.Forget()
		fill(1, tags+i)
		begin := time.Now()
		s.push("team/many")
		seen := s.timed(list, tags+i+1)
		t.Logf("a push is in the list %v after its webhook was sent (the list itself took %v), with %d bytes in %d git sessions",
			time.Since(begin), seen, s.git.Bytes(), s.git.Count("info/refs"))
		if n := s.git.Count("go-get=1"); n > 1 {
			t.Errorf("the list after a push made %d discoveries: %q", n, s.git.Requests())
		}
		if s.git.Bytes() > cloneBytes/2 {
			t.Errorf("the list after a push took %d bytes, a clone takes %d", s.git.Bytes(), cloneBytes)
		}
	}
	fill(1, tags+3)
	begin = time.Now()
	s.push("team/many")
	out, took := s.goCommand(false, "list", "-m", "-versions", "corp.example/team/many")
	t.Logf("go list -m -versions shows a push %v after its webhook was sent (the go command alone: %v)", time.Since(begin), took)
	if !strings.Contains(out, fmt.Sprintf("v1.%d.0", tags+3)) {
		t.Errorf("go list -m -versions after a push ends in %q", out[max(0, len(out)-40):])
	}
	if n := s.up.Count("*corp.example*"); n != 0 {
		t.Errorf("P44 a private name went to the upstream: %q", s.up.Requests())
	}
}

// B17, N3: a small private repository, cold, through the gateway against straight from Git. The ratio is printed.
func TestColdPrivateFetch(t *testing.T) {
	s := newPrivateSite(t, "")
	var through, direct []float64
	for i := range 3 {
		for _, straight := range []bool{true, false} {
			name := fmt.Sprintf("team/small%d%v", i, straight)
			s.repo(name, map[string]string{"go.mod": "module corp.example/" + name + "\n\ngo 1.21\n", "s.go": "package small\n"}, "v1.0.0")
			s.git.Forget()
			_, took := s.goCommand(straight, "mod", "download", "corp.example/"+name+"@v1.0.0")
			if straight {
				direct = append(direct, took.Seconds())
			} else {
				through = append(through, took.Seconds())
			}
			t.Logf("straight from Git %v: %v, %d git sessions, %d discoveries", straight, took, s.git.Count("info/refs"), s.git.Count("go-get=1"))
			if n := s.git.Count("info/refs"); n > 4 {
				t.Errorf("a cold fetch made %d git sessions: %q", n, s.git.Requests())
			}
		}
	}
	slices.Sort(through)
	slices.Sort(direct)
	t.Logf("cold fetch of a small repository: gateway %.3f s, straight from Git %.3f s: %.2f ×", through[1], direct[1], through[1]/direct[1])
}
