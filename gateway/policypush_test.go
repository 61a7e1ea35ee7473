package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
	"github.com/headgate/headgate/policy/git"
	"github.com/headgate/headgate/policy/git/gittest"
)

// policyRepository gives the bench a policy from a repository that looks only when it is told to.
func (b *bench) policyRepository(t *testing.T) (repo *gittest.Repo, key *gittest.Key) {
	t.Helper()
	server := vcstest.Start(t)
	key = gittest.SSH(t)
	repo = gittest.Create(t, filepath.Join(server.Dir, "repos", "team", "policy.git"))
	repo.Commit(gittest.Commit{Files: policyFiles("standard"), Key: key})
	signers := filepath.Join(t.TempDir(), "signers")
	must(t, os.WriteFile(signers, []byte(key.Allowed(t)), 0o600))
	engine, err := policy.Open(t.Context(), policy.Config{Source: "git", Git: git.Config{
		URL: "https://git.corp.example/team/policy.git", Branch: "main", AllowedSigners: signers,
		CAFile: server.CAFile, Proxy: server.Proxy, Poll: time.Hour,
	}}, policy.Options{Embedded: policies.FS, State: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { engine.Close() })
	b.policy = engine
	return repo, key
}

// policyFiles is a bundle that gives everybody public modules under one profile, or none.
func policyFiles(profile string) map[string]string {
	allow := fmt.Sprint(profile == "standard")
	want := map[string]string{"true": "{effect: allow}", "false": "{effect: deny, codes: [PATH-NOT-ALLOWED]}"}[allow]
	return map[string]string{
		"bundle.yaml":       "name: acme\nlibrary: default\n",
		"config/teams.yaml": "teams:\n  everyone: {profile: standard, public: " + allow + "}\n",
		"config/rules.yaml": "profiles: [open, standard, strict]\nrules: []\n",
		"tests/access.yaml": "cases:\n  - {name: public modules, ask: access, module: example.com/hello, want: " + want + "}\n",
	}
}

// P28: a push is active at most ten seconds after its webhook, and while requests go on, each of them is answered, by
// exactly one revision. SOAK=1 asks 5,000 times a second.
func TestP28PushUnderLoad(t *testing.T) {
	b := newBench(t, hello)
	b.cfg.Hooks.SecretFile = filepath.Join(b.dir, "hook")
	must(t, os.WriteFile(b.cfg.Hooks.SecretFile, []byte(hookSecret+"\n"), 0o600))
	repo, key := b.policyRepository(t)
	first := b.policy.Status().Commit
	if w := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", b.bearer()); w.Code != 200 || w.Header().Get("Headgate-Revision") != first {
		t.Fatalf("before the push: %d under %q, want 200 under %s: %s", w.Code, w.Header().Get("Headgate-Revision"), first, w.Body)
	}
	perSecond, pushes, clients := 200, 1, 4
	if os.Getenv("SOAK") != "" {
		perSecond, pushes, clients = 5000, 3, 256
	}
	var answers sync.Map // revision to the one status that it gives
	var asked, failed atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop) })
	defer wg.Wait()
	defer end()
	for range clients {
		wg.Go(func() {
			pace := time.NewTicker(time.Duration(clients) * time.Second / time.Duration(perSecond))
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				w := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", b.bearer())
				asked.Add(1)
				status, known := answers.LoadOrStore(w.Header().Get("Headgate-Revision"), w.Code)
				if w.Code != 200 && w.Code != 403 || known && status != w.Code {
					failed.Add(1)
				}
			}
		})
	}
	revisions := map[string]int{first: 200}
	for i := range pushes {
		profile, status := "none", 403
		if i%2 == 1 {
			profile, status = "standard", 200
		}
		id := repo.Commit(gittest.Commit{Files: policyFiles(profile), Key: key})
		revisions[id] = status
		took := b.announce(t, id)
		t.Logf("push %d was active %v after its webhook", i+1, took)
	}
	time.AfterFunc(100*time.Millisecond, end) // some answers under the last one
	wg.Wait()
	t.Logf("%d requests, %.0f a second", asked.Load(), float64(asked.Load())/time.Since(start).Seconds())
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests were lost, or had an answer that is not that of their revision", failed.Load(), asked.Load())
	}
	answers.Range(func(revision, status any) bool {
		if revisions[revision.(string)] != status {
			t.Errorf("revision %v answered %v, want %d", revision, status, revisions[revision.(string)])
		}
		delete(revisions, revision.(string))
		return true
	})
	if len(revisions) > 0 {
		t.Errorf("no answers came from %v", revisions)
	}
}

// announce sends the webhook of a push and waits until the commit is active.
func (b *bench) announce(t *testing.T, id string) time.Duration {
	t.Helper()
	body := `{"repository":{"clone_url":"https://git.corp.example/team/policy.git","ssh_url":"git@git.corp.example:team/policy.git"}}`
	start := time.Now()
	w := b.post(body, "X-Hub-Signature-256: sha256="+hexMAC(hookSecret, body))
	if w.Code != http.StatusAccepted || !strings.Contains(w.Body.String(), `"repositories": 1`) {
		t.Fatalf("the webhook: %d %s, want 202 for one repository", w.Code, w.Body)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for b.policy.Status().Commit != id {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("the push is not active: %+v", b.policy.Status())
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("the push is not active: %+v", b.policy.Status())
		}
	}
	return time.Since(start)
}

// The state of policy, and why a push was rejected, are for administrators.
func TestPolicyState(t *testing.T) {
	b := newBench(t, hello)
	if w := b.ask("GET", "/-/api/v1/policy", b.bearer()); w.Code != http.StatusForbidden {
		t.Errorf("GET /-/api/v1/policy as a person = %d, want 403", w.Code)
	}
	repo, _ := b.policyRepository(t)
	good := b.policy.Status().Commit
	repo.Commit(gittest.Commit{Files: policyFiles("none")})
	b.policy.Look()
	deadline := time.Now().Add(time.Minute)
	for b.policy.Status().Rejection == nil && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	r := httptest.NewRequest(http.MethodGet, "http://localhost/-/api/v1/policy", nil)
	admin := identity.Principal{Subject: identity.Subject{Type: identity.Person, ID: "user:root", Method: "socket"}, Scope: identity.Scope{Actions: []string{identity.ActionAdmin}}}
	w := httptest.NewRecorder()
	b.local.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, admin)))
	var s policy.Status
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Code != 200 {
		t.Fatalf("GET /-/api/v1/policy = %d, %v: %s", w.Code, err, w.Body)
	}
	if s.Commit != good || s.Rejection == nil || s.Rejection.State != "verified" || s.Rejection.Reason == "" || len(s.Kept) != 1 {
		t.Errorf("state = %+v, want the good commit and the reason", s)
	}
}

// Only the repository of policy itself makes it look, and none does where policy comes from elsewhere.
func TestHookOfAnotherRepository(t *testing.T) {
	b := newBench(t, hello)
	if b.isPolicy([]string{"", "https://git.corp.example/team/policy.git"}) {
		t.Error("a webhook is taken for policy, which is embedded")
	}
	b.policyRepository(t)
	for u, want := range map[string]bool{
		"https://git.corp.example/team/policy.git": true, "git@git.corp.example:team/policy.git": true, "https://git.corp.example/team/policy": true,
		"https://git.corp.example/team/policy2.git": false, "https://evil.example/team/policy.git": false, "": false,
	} {
		if got := b.isPolicy([]string{u}); got != want {
			t.Errorf("isPolicy(%q) = %v, want %v", u, got, want)
		}
	}
}
