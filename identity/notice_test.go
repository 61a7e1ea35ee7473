package identity_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
)

// noticeKey signs the notices of tests.
var noticeKey = []byte("0123456789abcdef0123456789abcdef")

// A told is one notice as a receiver got it.
type told struct {
	at     time.Time
	header http.Header
	body   []byte
}

// A receiver stands for the program that is told. It answers 204, or what answer does.
type receiver struct {
	answer func(w http.ResponseWriter, r *http.Request)

	mu  sync.Mutex // guards got
	got []told
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	r.got = append(r.got, told{time.Now(), req.Header, body})
	r.mu.Unlock()
	if r.answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	r.answer(w, req)
}

// RoundTrip implements http.RoundTripper without a network, for a false clock.
func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	w := &httptest.ResponseRecorder{Body: &bytes.Buffer{}}
	r.ServeHTTP(w, req)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func (r *receiver) all() []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// wantTold fails unless the receiver got so many notices up to now.
func (r *receiver) wantTold(t *testing.T, when string, want int) {
	t.Helper()
	synctest.Wait()
	if got := len(r.all()); got != want {
		t.Errorf("%s: %d notices, want %d", when, got, want)
	}
}

// noticeConfig tells of tokens before they end.
func noticeConfig(t *testing.T, before ...time.Duration) identity.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "notice-key")
	if err := os.WriteFile(file, []byte("whsec_"+base64.StdEncoding.EncodeToString(noticeKey)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return identity.Config{Notices: identity.Notices{URL: "https://tickets.corp.example/hook", SecretFile: file, Before: before}}
}

// A teller is a service that tells a receiver.
type teller struct {
	*identity.Service

	reg *prometheus.Registry
	log *bytes.Buffer // read it once the service stands still
}

// telling opens a service; no transport: over the network.
func telling(t *testing.T, cfg identity.Config, db *sql.DB, transport http.RoundTripper) teller {
	t.Helper()
	n := teller{reg: prometheus.NewRegistry(), log: &bytes.Buffer{}}
	o := identity.Options{DB: db, Keys: t.TempDir(), Poll: never, Registerer: n.reg, Logger: slog.New(slog.NewTextHandler(n.log, nil))}
	if transport != nil {
		o.HTTPClient = &http.Client{Transport: transport}
	}
	s, err := identity.Open(t.Context(), cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	n.Service = s
	return n
}

// wantResults compares headgate_token_notices_total: sent, failed, abandoned.
func (n teller) wantResults(t *testing.T, want ...float64) {
	t.Helper()
	families, err := n.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "headgate_token_notices_total" {
				got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if diff := cmp.Diff(map[string]float64{"sent": want[0], "failed": want[1], "abandoned": want[2]}, got); diff != "" {
		t.Errorf("headgate_token_notices_total (-want +got):\n%s", diff)
	}
}

// nightly mints a static token of a job.
func nightly(t *testing.T, s *identity.Service, life time.Duration) (identity.Token, string) {
	t.Helper()
	return mint(t, s, identity.TokenRequest{
		Class: identity.ClassCI, Owner: "ann", Note: "nightly", Life: life, Scope: modules("example.com/*"),
		Subject: identity.Subject{Type: identity.Workload, ID: "corp/app", Team: "web", CI: &identity.CI{Repo: "corp/app"}},
	})
}

// signedBy tells whether a key signed a notice, by the Standard Webhooks specification.
func (n told) signedBy(key []byte) bool {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(n.header.Get("Webhook-Id") + "." + n.header.Get("Webhook-Timestamp") + "." + string(n.body)))
	return slices.Contains(strings.Fields(n.header.Get("Webhook-Signature")), "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
}

func TestNotices(t *testing.T) { synctest.Test(t, notices) }

func notices(t *testing.T) {
	r := &receiver{}
	s := telling(t, noticeConfig(t, 2*time.Hour, time.Hour), statetest.OpenDB(t), r)
	s.wantResults(t, 0, 0, 0)
	token, secret := nightly(t, s.Service, 3*time.Hour)
	r.wantTold(t, "new", 0)
	time.Sleep(59 * time.Minute)
	r.wantTold(t, "before the first threshold", 0)
	time.Sleep(2 * time.Minute)
	r.wantTold(t, "at the first threshold", 1)
	if _, err := bearer(s.Service, secret); err != nil {
		t.Fatal(err)
	}
	used := time.Now().UTC().Truncate(time.Second)
	time.Sleep(time.Hour)
	r.wantTold(t, "at the second threshold", 2)
	time.Sleep(24 * time.Hour)
	r.wantTold(t, "a day later", 2)
	s.wantResults(t, 2, 0, 0)
	text := func(at time.Time) string { return at.UTC().Format(time.RFC3339) }
	for i, want := range []struct {
		before, id string
		used       time.Time
	}{{"2h0m0s", "7200", time.Time{}}, {"1h0m0s", "3600", used}} {
		n := r.all()[i]
		var got map[string]any
		if err := json.Unmarshal(n.body, &got); err != nil {
			t.Fatal(err)
		}
		shown := map[string]any{
			"id": token.ID, "class": "ci", "subject": map[string]any{"type": "workload", "id": "corp/app"}, "owner": "ann", "team": "web", "note": "nightly",
			"created": text(token.Created), "expires": text(token.Expires),
		}
		if !want.used.IsZero() {
			shown["last_used"] = text(want.used)
		}
		if diff := cmp.Diff(map[string]any{"type": "token.expiring", "before": want.before, "token": shown}, got); diff != "" {
			t.Errorf("notice %d (-want +got):\n%s", i, diff)
		}
		if !n.signedBy(noticeKey) || n.signedBy([]byte("another")) || n.header.Get("Webhook-Id") != "token-"+token.ID+"-"+want.id || n.header.Get("Content-Type") != "application/json" {
			t.Errorf("notice %d: header %v does not sign it", i, n.header)
		}
		if stamp := n.header.Get("Webhook-Timestamp"); stamp != unix(n.at) {
			t.Errorf("notice %d: timestamp %s, sent at %s", i, stamp, unix(n.at))
		}
	}
}

func TestNoticesLeaveOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		s := telling(t, noticeConfig(t, 2*time.Hour, time.Hour), statetest.OpenDB(t), r)
		nightly(t, s.Service, time.Hour)                  // it never lived longer than that
		short, _ := nightly(t, s.Service, 90*time.Minute) // told of once
		revoked, _ := nightly(t, s.Service, 3*time.Hour)
		if _, err := s.Revoke(t.Context(), revoked.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Hour)
		r.wantTold(t, "all are over", 1)
		if got := string(r.all()[0].body); !strings.Contains(got, short.ID) {
			t.Errorf("notice %s, want one of %s", got, short.ID)
		}
	})
}

// TestNoticeDefaults asks for no thresholds: the first notice comes a week before the end.
func TestNoticeDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		s := telling(t, noticeConfig(t), statetest.OpenDB(t), r)
		nightly(t, s.Service, 7*day+30*time.Minute)
		time.Sleep(29 * time.Minute)
		r.wantTold(t, "more than a week before", 0)
		time.Sleep(2 * time.Minute)
		r.wantTold(t, "a week before", 1)
	})
}

// TestNoticeOnceInAFleet lets three nodes share a database, one of which starts later.
func TestNoticeOnceInAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, db, cfg := &receiver{}, statetest.OpenDB(t), noticeConfig(t, 2*time.Hour, time.Hour)
		cfg.PepperFile = filepath.Join(t.TempDir(), "pepper")
		if err := os.WriteFile(cfg.PepperFile, []byte("1 "+base64.StdEncoding.EncodeToString(noticeKey)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		a := telling(t, cfg, db, r)
		for range 20 {
			nightly(t, a.Service, 3*time.Hour)
		}
		telling(t, cfg, db, r)
		time.Sleep(90 * time.Minute)
		r.wantTold(t, "two nodes, past one threshold", 20)
		telling(t, cfg, db, r)
		time.Sleep(2 * time.Minute)
		r.wantTold(t, "a third node", 20)
		time.Sleep(time.Hour)
		r.wantTold(t, "three nodes, past both", 40)
		ids := map[string]bool{}
		for _, n := range r.all() {
			ids[n.header.Get("Webhook-Id")] = true
		}
		if len(ids) != 40 {
			t.Errorf("%d different notices, want 40", len(ids))
		}
	})
}

// TestNoticeAfterAStop stops the gateway past both thresholds: one notice tells it all.
func TestNoticeAfterAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, db, cfg := &receiver{}, statetest.OpenDB(t), noticeConfig(t, 2*time.Hour, time.Hour)
		s := telling(t, cfg, db, r)
		nightly(t, s.Service, 3*time.Hour)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Minute)
		telling(t, cfg, db, r)
		time.Sleep(5 * time.Minute)
		r.wantTold(t, "after the stop", 1)
		if got := string(r.all()[0].body); !strings.Contains(got, `"before":"1h0m0s"`) {
			t.Errorf("notice %s, want the last threshold", got)
		}
	})
}

// TestNoticeWhileStopping stops the gateway while a notice is on its way: the next one waits until it cannot be under
// way any more, and sends it.
func TestNoticeWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, cfg := statetest.OpenDB(t), noticeConfig(t, time.Hour)
		slow := &receiver{answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}
		s := telling(t, cfg, db, slow)
		nightly(t, s.Service, 61*time.Minute)
		time.Sleep(time.Minute + time.Second)
		slow.wantTold(t, "under way", 1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s.wantResults(t, 0, 0, 0)
		r := &receiver{}
		telling(t, cfg, db, r)
		time.Sleep(time.Minute + time.Second)
		r.wantTold(t, "while it may be under way", 0)
		time.Sleep(2 * time.Minute)
		r.wantTold(t, "later", 1)
	})
}

func TestNoticeIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		r.answer = func(w http.ResponseWriter, _ *http.Request) {
			if len(r.all()) < 4 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
		s := telling(t, noticeConfig(t, 24*time.Hour), statetest.OpenDB(t), r)
		nightly(t, s.Service, 24*time.Hour+time.Minute)
		time.Sleep(23 * time.Hour)
		r.wantTold(t, "three failed", 4)
		s.wantResults(t, 1, 3, 0)
		first := r.all()[0]
		for i, want := range []time.Duration{0, 5 * time.Minute, 15 * time.Minute, 35 * time.Minute} {
			n := r.all()[i]
			if late := n.at.Sub(first.at) - want; late < 0 || late > time.Minute || n.header.Get("Webhook-Id") != first.header.Get("Webhook-Id") {
				t.Errorf("try %d, %s: %s after the first, want %s", i, n.header.Get("Webhook-Id"), n.at.Sub(first.at), want)
			}
		}
	})
}

func TestNoticeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }}
		s := telling(t, noticeConfig(t, 24*time.Hour), statetest.OpenDB(t), r)
		nightly(t, s.Service, 24*time.Hour+time.Minute)
		time.Sleep(23 * time.Hour)
		r.wantTold(t, "all failed", 8)
		s.wantResults(t, 0, 7, 1)
		if got := s.log.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, "answered 403") {
			t.Errorf("log:\n%s\nwant one error that says why", got)
		}
	})
}

// TestNoticeReceiverDown has many tokens and a receiver that is down: it is asked for three of them each minute.
func TestNoticeReceiverDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}
		s := telling(t, noticeConfig(t, time.Hour), statetest.OpenDB(t), r)
		for range 10 {
			nightly(t, s.Service, 61*time.Minute)
		}
		time.Sleep(61*time.Second + 30*time.Second)
		r.wantTold(t, "in the first round, 10 s each", 3)
		s.wantResults(t, 0, 3, 0)
		time.Sleep(time.Minute)
		r.wantTold(t, "in two rounds", 6)
	})
}

func TestNoticeKeys(t *testing.T) {
	second := bytes.Repeat([]byte("k"), 24)
	synctest.Test(t, func(t *testing.T) {
		r, cfg := &receiver{}, noticeConfig(t, 2*time.Hour, time.Hour)
		s := telling(t, cfg, statetest.OpenDB(t), r)
		nightly(t, s.Service, 121*time.Minute)
		text, err := os.ReadFile(cfg.Notices.SecretFile)
		if err != nil {
			t.Fatal(err)
		}
		both := string(text) + "whsec_" + base64.StdEncoding.EncodeToString(second) + "\n"
		if err := os.WriteFile(cfg.Notices.SecretFile, []byte(both), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		r.wantTold(t, "with two keys", 1)
		if n := r.all()[0]; !n.signedBy(noticeKey) || !n.signedBy(second) {
			t.Errorf("signatures %s, want one of each key", n.header.Get("Webhook-Signature"))
		}
		if err := os.Remove(cfg.Notices.SecretFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		r.wantTold(t, "without a key", 1) // nothing leaves unsigned
	})
	for name, text := range map[string]string{
		"empty": "", "no mark": base64.StdEncoding.EncodeToString(noticeKey), "short": "whsec_" + base64.StdEncoding.EncodeToString(noticeKey[:23]),
		"not base64": "whsec_%%%", "too many": strings.Repeat("whsec_"+base64.StdEncoding.EncodeToString(noticeKey)+"\n", 9),
	} {
		t.Run(name, func(t *testing.T) {
			cfg := noticeConfig(t)
			if err := os.WriteFile(cfg.Notices.SecretFile, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := identity.Open(context.WithoutCancel(t.Context()), cfg, identity.Options{DB: statetest.OpenDB(t), Keys: t.TempDir()})
			if err == nil {
				_ = s.Close()
				t.Fatal("Open starts with it")
			}
			if strings.Contains(err.Error(), "MDEyMzQ") {
				t.Errorf("Open: %v repeats the key", err)
			}
		})
	}
}

// TestNoticesAreForgotten waits until a token is swept away: what was told of it goes, too.
func TestNoticesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, db := &receiver{}, statetest.OpenDB(t)
		s := telling(t, noticeConfig(t, time.Hour), db, r)
		nightly(t, s.Service, 61*time.Minute)
		count := func() (n int) {
			t.Helper()
			if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM identity_notices`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		time.Sleep(3 * time.Hour)
		if n := count(); n != 1 {
			t.Errorf("%d notices are kept beside their token, want 1", n)
		}
		time.Sleep(7*day + time.Hour)
		if n := count(); n != 0 {
			t.Errorf("%d notices are kept without their token, want none", n)
		}
	})
}
