package sinks

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

func otlpTo(t *testing.T, g *sinkstest.OTLP) *otlp {
	t.Helper()
	o := newOTLP(Config{URL: "http://127.0.0.1:1"}.withDefaults(), Options{Node: "node-1", Version: "v1"})
	o.dial = serve(t, g).dial
	return o
}

func TestOTLP(t *testing.T) {
	for name, mixed := range map[string]bool{"as a string": false, "as a number": true} {
		t.Run("A29 partial success rejects 3 of 500, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, l, g := t.TempDir(), &testLog{}, &sinkstest.OTLP{Mixed: mixed}
				g.Refuse = func(uid string) bool { return uid == "e-7" || uid == "e-8" || uid == "e-499" }
				l.add(500)
				e, _ := start(t, dir, l, otlpTo(t, g))
				after(time.Minute)
				wantLetters(t, dir, l, "e-7", "e-8", "e-499")
				if n := gauge(t, e, "headgate_audit_dead_letters_total"); n != 3 || cursorOf(t, dir) != 500 {
					t.Errorf("%v dead letters are counted and the cursor is %d, want 3 and 500", n, cursorOf(t, dir))
				}
				most, count := 0, map[string]int{}
				for _, uid := range g.IDs() {
					count[uid]++
					most = max(most, count[uid])
				}
				if len(count) != 497 || most > 10 {
					t.Errorf("%d records arrived, one of them %d times; want 497, at most once for each of 9 halvings and the first time", len(count), most)
				}
			})
		})
	}
	t.Run("429 and 503 are waited out, Retry-After too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, g := t.TempDir(), &testLog{}, &sinkstest.OTLP{}
			begun, tries := time.Now(), []time.Duration{}
			g.Set(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
				switch tries = append(tries, time.Since(begun)); len(tries) {
				case 1:
					w.Header().Set("Retry-After", "120")
					w.WriteHeader(http.StatusServiceUnavailable)
				case 2:
					w.WriteHeader(http.StatusTooManyRequests)
				default:
					return false
				}
				return true
			})
			l.add(10)
			start(t, dir, l, otlpTo(t, g))
			after(5 * time.Minute)
			if twice := wantAll(t, g, 10); twice != 0 || len(tries) < 2 || tries[1]-tries[0] < 2*time.Minute {
				t.Errorf("%d arrived twice; tries after %v, want the second 120 s behind the first", twice, tries)
			}
		})
	})
	for name, text := range map[string]string{
		"that is no JSON":             `OK`,
		"with less than no rejection": `{"partialSuccess":{"rejectedLogRecords":"-1"}}`,
		"with a part of a rejection":  `{"partialSuccess":{"rejectedLogRecords":1.5}}`,
	} {
		t.Run("an answer "+name+" delivers nothing", func(t *testing.T) {
			a, err := newOTLP(Config{}, Options{}).partial([]byte(text), []Event{{ID: "a"}, {ID: "b"}})
			if err == nil || len(a.rejected) != 0 {
				t.Errorf("partial(%s) = %v, %v", text, a, err)
			}
		})
	}
	t.Run("a warning, an empty answer and no answer deliver", func(t *testing.T) {
		for _, text := range []string{``, `{}`, `{"partialSuccess":{"errorMessage":"slow down"}}`, `{"partialSuccess":{"rejectedLogRecords":"0"}}`} {
			if a, err := newOTLP(Config{}, Options{}).partial([]byte(text), []Event{{ID: "a"}}); err != nil || len(a.rejected) != 0 {
				t.Errorf("partial(%s) = %v, %v", text, a, err)
			}
		}
	})
}

func TestOTLPRecord(t *testing.T) {
	const raw = `{"v":1,"kind":"decision","event_id":"E","t":5,"action":"zip","method":"GET","path":"/m/@v/v1.zip","module":"m","version":"v1",` +
		`"subject":{"id":"ann","issuer":"corp"},"credential":{"fp":"k:1"},"device":{"id":"d1"},"client":{"ip":"10.0.0.1","agent":"Go"},` +
		`"decision":{"effect":"deny","codes":["too_new","no_owner"],"status":403},"file":{"cache":"disk"},` +
		`"policy_rev":"r1","trace_id":"0123456789abcdef0123456789abcdef"}`
	g := &sinkstest.OTLP{}
	o := otlpTo(t, g)
	defer o.close()
	e := Event{ID: "E-0-7", Seq: 7, Severity: 3, Time: time.Unix(0, 5), Body: []byte(`{"x":1}`), Raw: []byte(raw), Leaf: "bGVhZg=="}
	if a, err := o.deliver(t.Context(), []Event{e}); err != nil || len(a.rejected) > 0 {
		t.Fatal(a, err)
	}
	got := string(g.Last())
	for _, want := range []string{
		`"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"headgate"}},{"key":"service.version","value":{"stringValue":"v1"}},` +
			`{"key":"service.instance.id","value":{"stringValue":"node-1"}},{"key":"host.name","value":{"stringValue":"node-1"}}]}`,
		`"timeUnixNano":"5"`, `"severityNumber":13,"severityText":"WARN"`, `"body":{"stringValue":"{\"x\":1}"}`,
		`"traceId":"0123456789abcdef0123456789abcdef"`,
		`{"key":"decision.codes","value":{"arrayValue":{"values":[{"stringValue":"too_new"},{"stringValue":"no_owner"}]}}}`,
		`{"key":"http.response.status_code","value":{"intValue":"403"}}`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	for key, want := range map[string]string{
		"log.record.uid": "E-0-7", "event.id": "E", "event.name": "zip", "log.integrity.leaf": "bGVhZg==", "enduser.id": "ann",
		"auth.issuer": "corp", "auth.token_fp": "k:1", "device.id": "d1", "client.address": "10.0.0.1", "user_agent.original": "Go",
		"http.request.method": "GET", "url.path": "/m/@v/v1.zip", "package.name": "m", "package.version": "v1", "decision": "deny",
		"policy.revision": "r1", "cache": "disk",
	} {
		if attribute := fmt.Sprintf(`{"key":%q,"value":{"stringValue":%q}}`, key, want); !strings.Contains(got, attribute) {
			t.Errorf("%s is not in %s", attribute, got)
		}
	}
	for severity, want := range map[int]int{0: 9, 1: 9, 2: 9, 3: 13, 4: 17, 5: 21} {
		if n, _ := otlpSeverity(severity); n != want {
			t.Errorf("otlpSeverity(%d) = %d, want %d", severity, n, want)
		}
	}
}

func FuzzOTLP(f *testing.F) {
	f.Add([]byte(`{"trace_id":"x","decision":{"codes":["a"]}}`), "id", []byte("body"))
	f.Add([]byte(`{`), "\xff", []byte("\x00\n"))
	f.Fuzz(func(t *testing.T, raw []byte, id string, body []byte) {
		o := newOTLP(Config{}, Options{})
		b, err := o.encode([]Event{{ID: id, Raw: raw, Body: body, Time: time.Unix(1, 0)}}, time.Unix(2, 0))
		if err != nil {
			t.Fatal(err)
		}
		uids, err := sinkstest.ReadLogs(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if utf8.ValidString(id) && id != "" && !slices.Equal(uids, []string{id}) {
			t.Fatalf("uids read back as %q, want %q", uids, id)
		}
	})
}
