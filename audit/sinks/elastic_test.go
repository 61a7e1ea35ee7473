package sinks

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

func elasticTo(t *testing.T, s *sinkstest.Elastic) *elastic {
	t.Helper()
	e := newElastic(Config{URL: "http://127.0.0.1:1", Index: "logs-headgate", TokenFile: tokenFile(t, "right")}.withDefaults())
	e.dial = serve(t, s).dial
	return e
}

func TestElastic(t *testing.T) {
	t.Run("events become documents once, however often they are sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, s := t.TempDir(), &testLog{}, &sinkstest.Elastic{}
			var lost atomic.Int32
			to := elasticTo(t, s)
			to.dial = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if lost.Add(1) > 3 {
					s.ServeHTTP(w, r)
					return
				}
				s.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler) // it has the events, and its answer is lost
			})).dial
			e, _ := start(t, dir, l, to)
			l.add(1200)
			after(2 * time.Minute)
			if twice := wantAll(t, s, 1200); twice != 0 || cursorOf(t, dir) != 1200 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, dir))
			}
			if n := testutil.ToFloat64(e.sinks[0].metrics.requests(resultRetry)); n < 3 {
				t.Errorf("%v requests failed, want 3 at least", n)
			}
		})
	})
	t.Run("200 with errors: 429 comes again, other refusals are dead letters, the rest is there", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, s := t.TempDir(), &testLog{}, &sinkstest.Elastic{}
			busy := map[string]int{"e-5": 3, "e-6": 1}
			s.SetRefuse(func(id string) int {
				if id == "e-3" || id == "e-4" {
					return http.StatusBadRequest
				}
				if busy[id] > 0 {
					busy[id]--
					return http.StatusTooManyRequests
				}
				return 0
			})
			start(t, dir, l, elasticTo(t, s))
			l.add(100)
			after(time.Minute)
			wantLetters(t, dir, l, "e-3", "e-4")
			if n := len(s.IDs()); n != 98 || cursorOf(t, dir) != 100 {
				t.Errorf("%d documents and the cursor is %d, want 98 and 100", n, cursorOf(t, dir))
			}
		})
	})
	t.Run("A31 a data stream that is closed to us, or not there, kills no letter", func(t *testing.T) {
		for _, code := range []int{http.StatusForbidden, http.StatusNotFound} {
			synctest.Test(t, func(t *testing.T) {
				dir, l, s := t.TempDir(), &testLog{}, &sinkstest.Elastic{}
				s.SetRefuse(func(string) int { return code })
				e, _ := start(t, dir, l, elasticTo(t, s))
				l.add(10)
				after(10 * time.Minute)
				if gauge(t, e, "headgate_audit_sink_paused") != 1 || gauge(t, e, "headgate_audit_dead_letters_total") != 0 {
					t.Errorf("after %d for each event: want a paused sink and no dead letters", code)
				}
				s.SetRefuse(nil)
				after(2 * time.Minute)
				wantAll(t, s, 10)
			})
		}
	})
	t.Run("A33 a receiver at 10 kB/s holds four batches, its backlog stays in the log, and another sink does not notice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, slow, quick := &testLog{}, &sinkstest.Elastic{}, &sinkstest.Elastic{}
			slow.Set(func(_ http.ResponseWriter, _ *http.Request, body []byte) bool {
				time.Sleep(time.Duration(len(body)) * time.Second / 10_000)
				return false
			})
			slowDir, quickDir := t.TempDir(), t.TempDir()
			e, _ := start(t, slowDir, l, elasticTo(t, slow))
			start(t, quickDir, l, elasticTo(t, quick))
			l.add(4000)
			after(5 * time.Second)
			if twice := wantAll(t, quick, 4000); twice != 0 || cursorOf(t, quickDir) != 4000 {
				t.Errorf("%d arrived twice at the other sink, whose cursor is %d", twice, cursorOf(t, quickDir))
			}
			s := e.sinks[0]
			s.mu.Lock()
			flying := len(s.flying)
			s.mu.Unlock()
			if flying > 5 || gauge(t, e, "headgate_audit_sink_lag_records") == 0 {
				t.Errorf("%d batches in memory, want at most 5, and a backlog in the log", flying)
			}
			after(3 * time.Minute)
			if twice := wantAll(t, slow, 4000); twice != 0 || cursorOf(t, slowDir) != 4000 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, slowDir))
			}
		})
	})
	t.Run("A30 413 halves, and one that is too large alone is a dead letter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, s := t.TempDir(), &testLog{}, &sinkstest.Elastic{Limit: 2000}
			l.add(3)
			l.events[1].Body = fmt.Appendf(nil, `{"big":%q}`, strings.Repeat("x", 3000))
			start(t, dir, l, elasticTo(t, s))
			l.add(500)
			after(5 * time.Minute)
			wantLetters(t, dir, l, "e-1")
			if n := len(s.IDs()); n != 502 {
				t.Errorf("%d documents, want 502", n)
			}
		})
	})
	for name, text := range map[string]string{
		"of another length":      `{"items":[]}`,
		"about another event":    `{"items":[{"create":{"_id":"x","status":201}}]}`,
		"about another action":   `{"items":[{"index":{"_id":"e-0","status":201}}]}`,
		"with a status of none":  `{"items":[{"create":{"_id":"e-0"}}]}`,
		"that is no JSON at all": `OK`,
	} {
		t.Run("an answer "+name+" delivers nothing", func(t *testing.T) {
			s := &sinkstest.Elastic{}
			s.Set(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
				fmt.Fprint(w, text)
				return true
			})
			e := elasticTo(t, s)
			defer e.close()
			if _, err := e.deliver(t.Context(), []Event{{ID: "e-0", Body: []byte(`{"a":1}`)}}); err == nil {
				t.Error("delivered")
			}
		})
	}
}

func TestElasticResend(t *testing.T) {
	at, s := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), &sinkstest.Elastic{}
	s.SetRefuse(func(string) int { return http.StatusBadRequest })
	var docs []byte
	s.Set(func(_ http.ResponseWriter, _ *http.Request, body []byte) bool {
		docs = body
		return false
	})
	server := httptest.NewServer(s)
	defer server.Close()
	dir, l := t.TempDir(), &testLog{}
	k := &sink{config: Config{Name: "soc"}, log: l, dead: deadFolder(dir, "soc"), metrics: newMetrics().of("soc")}
	e := Event{ID: "e-1", Seq: 1, Kind: "decision", Time: at, Body: []byte(`{"a":1}`), Raw: []byte(`{}`)}
	if err := k.bury([]letter{{e, "mapping"}}); err != nil {
		t.Fatal(err)
	}
	c := Config{Name: "soc", Type: typeElastic, URL: server.URL, Index: "logs-headgate", TokenFile: tokenFile(t, "right")}
	if sent, left, err := Resend(t.Context(), c, Options{Dir: dir}, asBefore); sent != 0 || left != 1 || err != nil {
		t.Fatalf("Resend before the mapping is mended = %d, %d, %v, want one left", sent, left, err)
	}
	s.SetRefuse(nil)
	if sent, left, err := Resend(t.Context(), c, Options{Dir: dir}, asBefore); sent != 1 || left != 0 || err != nil {
		t.Fatalf("A35 Resend after the mapping is mended = %d, %d, %v, want one sent", sent, left, err)
	}
	if want := `{"create":{"_id":"e-1"}}` + "\n" + `{"@timestamp":"2026-05-04T03:02:01Z","a":1}` + "\n"; string(docs) != want || len(s.IDs()) != 1 {
		t.Errorf("the receiver got %q, want %q", docs, want)
	}
}

func TestElasticDocument(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 5e6, time.UTC)
	const stamp = `{"@timestamp":"2026-05-04T03:02:01.005Z"`
	for body, want := range map[string]string{
		`{"@timestamp":"x","a":1}`:      `{"@timestamp":"x","a":1}`,
		`{"a":{"@timestamp":"nested"}}`: stamp + `,"a":{"@timestamp":"nested"}}`,
		`{}`:                            stamp + `}`,
		"CEF:0|a\"b":                    stamp + `,"message":"CEF:0|a\"b"}`,
		`null`:                          stamp + `,"message":"null"}`,
	} {
		if got := string(timed(Event{Time: at, Body: []byte(body)})); got != want {
			t.Errorf("timed(%s) = %s, want %s", body, got, want)
		}
	}
	got := string(encodeBulk([]Event{{ID: "a\"\n", Body: []byte(`{"@timestamp":1}`)}}))
	if want := `{"create":{"_id":"a\"\n"}}` + "\n" + `{"@timestamp":1}` + "\n"; got != want {
		t.Errorf("encodeBulk = %q, want %q", got, want)
	}
}
