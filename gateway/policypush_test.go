package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// P28: a push is active at most ten seconds after its webhook, and while requests go on over TLS, each of them is
// answered, by exactly one revision. SOAK=1 asks more than 5,000 times a second.
func TestP28PushUnderLoad(t *testing.T) {
	b := newBench(t, hello)
	b.cfg.Hooks.SecretFile = filepath.Join(b.dir, "hook")
	must(t, os.WriteFile(b.cfg.Hooks.SecretFile, []byte(hookSecret+"\n"), 0o600))
	repo, key := b.policyRepository(t)
	revisions := map[string]int{b.policy.Status().Commit: 200}
	if w := b.ask("GET", "/example.com/hello/@v/v1.0.0.mod", b.bearer()); w.Code != 200 || revisions[w.Header().Get("Headgate-Revision")] != 200 {
		t.Fatalf("before the push: %d under %q, want 200 under the first commit: %s", w.Code, w.Header().Get("Headgate-Revision"), w.Body)
	}
	pushes, apart, l := 1, time.Duration(0), newLoad(t, b, 200, 4)
	if os.Getenv("SOAK") != "" {
		pushes, apart, l = 10, time.Second, newLoad(t, b, 5500, 64)
	}
	l.one()
	l.begin(t)
	for i := range pushes {
		profile, status := "none", 403
		if i%2 == 1 {
			profile, status = "standard", 200
		}
		<-time.After(apart)
		id := repo.Commit(gittest.Commit{Files: policyFiles(profile), Key: key})
		revisions[id] = status
		t.Logf("push %d was active %v after its webhook", i+1, b.announce(t, id))
		l.one() // so that each revision answers, however slow the others are
	}
	l.end()
	t.Logf("%d requests, %.0f a second", l.asked.Load(), float64(l.asked.Load())/l.took.Seconds())
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests were lost, or had an answer that is not that of their revision; the last: %v", n, l.asked.Load(), l.last.Load())
	}
	l.answers.Range(func(revision, status any) bool {
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

// A load asks for one file again and again over TLS: each request is due at a time of its own, whatever became of those
// before it.
type load struct {
	ask                func() (status int, revision string, err error)
	perSecond, clients int
	answers            sync.Map // revision to the one status that it gives
	asked, failed, due atomic.Int64
	last               atomic.Value
	wg                 sync.WaitGroup
	stop               chan struct{}
	start              time.Time
	took               time.Duration
	end                func() // waits for the clients
}

func newLoad(t *testing.T, b *bench, perSecond, clients int) *load {
	t.Helper()
	server := httptest.NewTLSServer(b.public)
	t.Cleanup(server.Close)
	transport := server.Client().Transport.(*http.Transport)
	transport.MaxIdleConnsPerHost = clients
	return &load{perSecond: perSecond, clients: clients, stop: make(chan struct{}), ask: func() (int, string, error) {
		r, err := http.NewRequest(http.MethodGet, server.URL+"/example.com/hello/@v/v1.0.0.mod", nil)
		if err != nil {
			return 0, "", err
		}
		r.Host = "localhost:8443"
		r.Header.Set("Authorization", "Bearer "+b.token)
		resp, err := server.Client().Do(r)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, resp.Header.Get("Headgate-Revision"), err
	}}
}

// begin starts the clients; they end with the test, if not before.
func (l *load) begin(t *testing.T) {
	t.Helper()
	l.start = time.Now()
	l.end = sync.OnceFunc(func() {
		l.took = time.Since(l.start)
		close(l.stop)
		l.wg.Wait()
	})
	t.Cleanup(l.end)
	for range l.clients {
		l.wg.Go(func() {
			for {
				due := l.start.Add(time.Duration(l.due.Add(1)) * time.Second / time.Duration(l.perSecond))
				select {
				case <-l.stop:
					return
				case <-time.After(time.Until(due)):
				}
				l.one()
			}
		})
	}
}

// one asks once and holds the answer to those before it.
func (l *load) one() {
	status, revision, err := l.ask()
	l.asked.Add(1)
	before, known := l.answers.LoadOrStore(revision, status)
	if err != nil || status != 200 && status != 403 || known && before != status {
		l.failed.Add(1)
		l.last.Store(fmt.Sprint(status, " ", revision, " ", err))
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
