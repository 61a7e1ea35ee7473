package gateway

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/identity"
)

// TestStaleView asks a node that has not learnt for a while what was revoked elsewhere.
func TestStaleView(t *testing.T) {
	b := newBench(t, hello)
	b.cfg.BestEffort = []string{"example.com/hello"}
	for name, tt := range map[string]struct {
		age      time.Duration
		path     string
		status   int
		degraded string
	}{
		"fresh":                  {30 * time.Second, "/example.com/hello/@v/list", 200, ""},
		"degraded at 60 s":       {time.Minute, "/example.com/hello/@v/list", 200, "revocations"},
		"T70 strict after 5 min": {5 * time.Minute, "/example.com/other/@v/list", 403, "revocations"},
		"T70 the root is strict": {5 * time.Minute, "/", 403, "revocations"},
		"F3 best effort goes on": {6 * time.Minute, "/example.com/hello/@v/list", 200, "revocations"},
	} {
		t.Run(name, func(t *testing.T) {
			before := b.upstream.Count("*")
			b.viewAge = func() time.Duration { return tt.age }
			w := b.ask(http.MethodGet, tt.path, b.bearer())
			if w.Code != tt.status || w.Header().Get("Headgate-Degraded") != tt.degraded {
				t.Fatalf("status %d, degraded %q; want %d, %q\n%s", w.Code, w.Header().Get("Headgate-Degraded"), tt.status, tt.degraded, w.Body)
			}
			records := b.records(t)
			last := records[len(records)-1]
			if tt.status == 403 {
				if !strings.HasPrefix(w.Body.String(), "REVOCATION-STALE: ") || last.Decision.Codes[0] != "REVOCATION-STALE" {
					t.Errorf("body %q, record %+v; want REVOCATION-STALE", w.Body, last.Decision)
				}
				if after := b.upstream.Count("*"); after != before {
					t.Errorf("a refused request asked the upstream %d times", after-before)
				}
			}
			if flagged := last.Decision.Labels["revocation_view"] == "stale"; flagged != (tt.status == 200 && tt.age >= viewStale) {
				t.Errorf("labels %v", last.Decision.Labels)
			}
		})
	}
}

// TestLockIsOutsideTheCache locks between two equal requests of one connection.
func TestLockIsOutsideTheCache(t *testing.T) {
	b := newBench(t, hello)
	ask := func() int {
		return b.ask(http.MethodGet, "/example.com/hello/@v/v1.0.0.zip", b.bearer()).Code
	}
	if got := ask(); got != 200 {
		t.Fatalf("before: %d", got)
	}
	for _, l := range []identity.Lock{
		{Kind: identity.LockModule, Object: "example.com/hello@v1.0.0", Reason: "r"},
		{Kind: identity.LockModule, Object: "example.com/*", Reason: "r"},
		{Kind: identity.LockUser, Object: "ann", Reason: "r"},
	} {
		t.Run("T62 cached allow after a lock of "+l.Kind+" "+strings.ReplaceAll(l.Object, "/", " "), func(t *testing.T) {
			must(t, b.identity.Lock(t.Context(), l))
			if got := ask(); got != 403 {
				t.Errorf("locked: %d, want 403", got)
			}
			_, err := b.identity.Unlock(t.Context(), l.Kind, l.Object)
			must(t, err)
			if got := ask(); got != 200 {
				t.Errorf("unlocked: %d, want 200", got)
			}
		})
	}
}
