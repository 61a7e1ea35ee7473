package sinks

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

func splunkTo(t *testing.T, c *sinkstest.Splunk, config Config) *splunk {
	t.Helper()
	config.URL = "http://127.0.0.1:1"
	if config.TokenFile == "" {
		config.TokenFile = tokenFile(t, "right\n")
	}
	s := newSplunk(config.withDefaults(), "node-1")
	s.dial = serve(t, c).dial
	return s
}

func TestSplunk(t *testing.T) {
	t.Run("what is acknowledged moves the cursor", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{Late: 10 * time.Second}
			start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(1200)
			after(9 * time.Second)
			if got := cursorOf(t, dir); got != 0 || len(c.IDs()) != 1200 {
				t.Errorf("the cursor is %d and Splunk has %d before it has indexed any", got, len(c.IDs()))
			}
			after(10 * time.Second)
			if twice := wantAll(t, c, 1200); twice != 0 || cursorOf(t, dir) != 1200 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, dir))
			}
		})
	})
	t.Run("A27 acknowledgement stays false for five minutes: sent again under the same ids", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{Late: time.Hour}
			start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(100)
			after(4*time.Minute + 50*time.Second)
			if n := len(c.IDs()); n != 100 {
				t.Fatalf("%d events arrived before patience ended, want 100", n)
			}
			c.SetLate(0)
			after(80 * time.Second)
			if twice := wantAll(t, c, 100); twice != 100 || cursorOf(t, dir) != 100 {
				t.Errorf("%d arrived twice, the cursor is %d; want all 100 once more", twice, cursorOf(t, dir))
			}
		})
	})
	t.Run("A28 a number that comes again after Splunk started again acknowledges nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{Late: time.Hour}
			start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(10)
			after(10 * time.Second)
			c.Reset() // the first batch, number 0 of its channel, is lost
			c.Forget()
			c.SetLate(2 * time.Second) // so that who waits for the first batch asks next
			l.add(10)
			after(10 * time.Second) // the second batch is number 0 of its channel, and acknowledged
			if got := cursorOf(t, dir); got != 0 || len(c.IDs()) != 10 {
				t.Fatalf("the cursor is %d with %d of 20 events in Splunk", got, len(c.IDs()))
			}
			after(6 * time.Minute)
			if twice := wantAll(t, c, 20); twice != 0 || cursorOf(t, dir) != 20 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, dir))
			}
		})
	})
	t.Run("an acknowledgement whose answer is lost costs a second journey", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{Late: time.Hour}
			start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(10)
			after(2 * time.Second)
			c.Acknowledge()
			c.SetLate(0)
			after(6 * time.Minute)
			if twice := wantAll(t, c, 10); twice != 10 || cursorOf(t, dir) != 10 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, dir))
			}
		})
	})
	t.Run("a token that does not acknowledge pauses before anything is sent, and no_ack does without", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{Off: true}
			e, stop := start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(10)
			after(10 * time.Minute)
			if gauge(t, e, "headgate_audit_sink_paused") != 1 || len(c.IDs()) != 0 {
				t.Errorf("paused is %v and %d events were sent, want 1 and none", gauge(t, e, "headgate_audit_sink_paused"), len(c.IDs()))
			}
			stop()
			start(t, dir, l, splunkTo(t, c, Config{NoAck: true}))
			after(10 * time.Second)
			if twice := wantAll(t, c, 10); twice != 0 || cursorOf(t, dir) != 10 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, dir))
			}
		})
	})
	t.Run("an index that the token is not for kills no letter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{}
			c.Set(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if r.URL.Path != "/services/collector/event" {
					return false
				}
				sinkstest.Say(w, http.StatusBadRequest, `{"text":"Incorrect index","code":7,"invalid-event-number":1}`)
				return true
			})
			e, _ := start(t, dir, l, splunkTo(t, c, Config{Index: "main"}))
			l.add(10)
			after(time.Minute)
			if gauge(t, e, "headgate_audit_sink_paused") != 1 || gauge(t, e, "headgate_audit_dead_letters_total") != 0 {
				t.Error("want a paused sink and no dead letters")
			}
			c.Set(nil)
			after(2 * time.Minute)
			wantAll(t, c, 10)
		})
	})
}

func TestSplunkRefusals(t *testing.T) {
	t.Run("single records that are refused are dead letters, the others arrive once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{}
			c.Refuse = func(event string) bool { return strings.Contains(event, `"e-3"`) || strings.Contains(event, `"e-400"`) }
			start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(1000)
			after(time.Minute)
			wantLetters(t, dir, l, "e-3", "e-400")
			if n := len(c.IDs()); n != 998 || cursorOf(t, dir) != 1000 {
				t.Errorf("%d events arrived and the cursor is %d, want 998 and 1000", n, cursorOf(t, dir))
			}
		})
	})
	t.Run("A30 413 halves the batch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{Limit: 10000}
			e, _ := start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(1000)
			after(5 * time.Minute)
			if twice := wantAll(t, c, 1000); twice != 0 || gauge(t, e, "headgate_audit_dead_letters_total") != 0 {
				t.Errorf("%d arrived twice, %v are dead letters", twice, gauge(t, e, "headgate_audit_dead_letters_total"))
			}
		})
	})
	t.Run("A26 a collector that never answers is given up after the timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{}
			c.Set(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool { <-r.Context().Done(); return true })
			e, _ := start(t, dir, l, splunkTo(t, c, Config{}))
			l.add(10)
			after(40 * time.Second)
			if n := testutil.ToFloat64(e.sinks[0].metrics.requests(resultRetry)); n < 1 {
				t.Error("the sink still hopes after 40 s without an answer")
			}
			after(time.Hour)
			if n := c.Requests(); n > 250 {
				t.Errorf("%d requests within an hour", n)
			}
			c.Set(nil)
			after(3 * time.Minute)
			if twice := wantAll(t, c, 10); twice != 0 {
				t.Errorf("%d arrived twice", twice)
			}
		})
	})
	t.Run("A31 a wrong token pauses and kills no letter, until the right one lies there", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, c := t.TempDir(), &testLog{}, &sinkstest.Splunk{}
			token := tokenFile(t, "wrong")
			e, _ := start(t, dir, l, splunkTo(t, c, Config{TokenFile: token}))
			l.add(10)
			after(10 * time.Minute)
			if gauge(t, e, "headgate_audit_sink_paused") != 1 || gauge(t, e, "headgate_audit_dead_letters_total") != 0 {
				t.Error("want a paused sink and no dead letters")
			}
			if err := os.WriteFile(token, []byte("right"), 0o600); err != nil {
				t.Fatal(err)
			}
			after(2 * time.Minute)
			if wantAll(t, c, 10); gauge(t, e, "headgate_audit_sink_paused") != 0 {
				t.Error("still paused with the right token")
			}
		})
	})
}

func TestSplunkEvent(t *testing.T) {
	s := newSplunk(Config{Schema: "native", Index: "audit"}, "node-1")
	at := time.Unix(1788888888, 7e6)
	got := string(s.encode([]Event{
		{ID: "a", Seq: 7, Time: at, Body: []byte(`{"x":"<&>"}`)}, {ID: "b", Seq: 8, Time: at, Body: []byte("CEF:0|\xff\"")},
	}))
	head := `{"time":1788888888.007,"host":"node-1","source":"headgate","sourcetype":"headgate:native","index":"audit","event":`
	want := head + `{"x":"<&>"},"fields":{"event_id":"a","seq":"7"}}` + "\n" +
		head + `"CEF:0|\ufffd\"","fields":{"event_id":"b","seq":"8"}}` + "\n"
	if got != want {
		t.Errorf("encode = %s, want %s", got, want)
	}
}
