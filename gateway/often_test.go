package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// A client that asks on and on for what it may not have is told to wait, and its refusals are recorded with counts. Others
// are served as before.
func TestRefusedTooOften(t *testing.T) {
	b := newBench(t, hello)
	narrow := b.tokenOf(t, identity.ClassPerson, "bob", identity.Scope{Modules: []string{"example.com/other"}, Actions: []string{"content"}})
	ask := func(token string) *http.Response {
		return b.ask(http.MethodGet, "/example.com/hello/@v/v1.0.0.zip", token).Result()
	}
	t.Run("A42 10,000 refusals of one subject", func(t *testing.T) {
		var refused, limited atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 10_000 / 16 {
					switch r := ask(narrow); {
					case r.StatusCode == http.StatusForbidden:
						refused.Add(1)
					case r.StatusCode == http.StatusTooManyRequests && r.Header.Get("Retry-After") == "60" && r.Header.Get("Headgate-Code") == "RATE":
						limited.Add(1)
					default:
						t.Errorf("status %d, %v", r.StatusCode, r.Header)
					}
				}
			})
		}
		wg.Wait()
		if r := ask(b.bearer()); r.StatusCode != http.StatusOK {
			t.Errorf("another subject: status %d", r.StatusCode)
		}
		b.often.flush(time.Now(), true)
		must(t, b.log.Close())
		var decisions, counted int64
		for _, rec := range b.records(t) {
			switch {
			case rec.Subject.ID != "bob":
			case rec.Kind == audit.KindDecision:
				decisions++
			case rec.Action == "refused.often":
				counted += rec.Count
				if rec.Severity != 4 || rec.Decision.Status != 429 || strings.Join(rec.Decision.Codes, "") != "RATE" {
					t.Errorf("record %+v", rec)
				}
			}
		}
		minutes := (decisions + refusalsPerMinute - 1) / refusalsPerMinute // on a slow machine it takes more than one
		if refused.Load() != decisions || limited.Load() != counted || limited.Load() == 0 || decisions > (minutes+1)*refusalsPerMinute {
			t.Errorf("%d refused, of which %d records; %d limited, of which records count %d", refused.Load(), decisions, limited.Load(), counted)
		}
	})
	t.Run("another minute", func(t *testing.T) {
		o, now := newOftenRefused(nil), time.Now()
		who := requester{id: "bob"}
		for range refusalsPerMinute {
			if o.over(who, now) {
				t.Fatal("over too early")
			}
			o.refused(who, now)
		}
		if !o.over(who, now.Add(59*time.Second)) || o.over(who, now.Add(time.Minute)) {
			t.Error("the limit does not hold for a minute")
		}
	})
	t.Run("many subjects take bounded memory, and no address pays for those who share it too early", func(t *testing.T) {
		o, now := newOftenRefused(nil), time.Now()
		for i := range refusedMost + 100 {
			o.refused(requester{id: strconv.Itoa(i)}, now)
		}
		if len(o.count) != refusedMost {
			t.Errorf("%d are counted, want %d", len(o.count), refusedMost)
		}
		o = newOftenRefused(nil)
		for range refusalsPerAddress - 1 {
			o.refused(requester{ip: "192.0.2.1"}, now)
		}
		if o.over(requester{ip: "192.0.2.1"}, now) {
			t.Error("over too early")
		}
		if o.refused(requester{ip: "192.0.2.1"}, now); !o.over(requester{ip: "192.0.2.1"}, now) {
			t.Error("not over")
		}
	})
}
