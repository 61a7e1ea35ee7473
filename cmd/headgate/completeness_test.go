package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// crowdMemory is what the gateway may take for the short and for the long form, in bytes.
const (
	crowdMemory     = 150 << 20
	longCrowdMemory = 2 << 30
)

// A41: many clients at once, each on a connection of its own: as many answers with 2xx as the log has decisions that
// allow one, no 5xx, and bounded memory. The gateway is killed before they are counted: what counts is what is durable.
// SOAK=1 has 10,000 clients for a minute.
func TestA41EveryAnswerIsRecorded(t *testing.T) {
	clients, lasts, memory := 100, time.Second, int64(crowdMemory)
	if os.Getenv("SOAK") != "" {
		clients, lasts, memory = 10_000, time.Minute, longCrowdMemory
	}
	s := newSite(t, mirrortest.Start(t, helloModule), "")
	const path = "/example.com/hello/@v/v1.0.0.mod"
	if status, body := s.body(path); status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	c := s.crowd(path, clients, lasts)
	answered := c.good.Load() + 1 // and the first
	t.Logf("%d clients for %s: %d answers, %.0f a second; peak RSS %d MiB\n%s", clients, lasts, answered,
		float64(answered)/lasts.Seconds(), s.gateway.peakRSS(t)>>20, s.metric("headgate_audit_append_duration_seconds_"))
	if peak := s.gateway.peakRSS(t); peak > memory {
		t.Errorf("peak RSS is %d MiB, want at most %d", peak>>20, memory>>20)
	}
	if bad := c.bad.Load(); bad != nil {
		t.Errorf("a client got %s", *bad)
	}
	s.stop(syscall.SIGKILL)
	allowed, ids := s.allowed()
	if allowed != answered || int64(len(ids)) != answered {
		t.Errorf("%d answers of 2xx, and %d decisions that allow one, of %d ids", answered, allowed, len(ids))
	}
	if out, err := s.headgate("audit", "verify"); err != nil && !strings.Contains(out, "torn") {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
}

// A crowd is what many clients got.
type crowd struct {
	good atomic.Int64
	bad  atomic.Pointer[string]
}

// crowd has clients ask for one path again and again; each ends its last request.
func (s *site) crowd(path string, clients int, lasts time.Duration) *crowd {
	var c crowd
	var all, ready sync.WaitGroup
	shaking := make(chan struct{}, 64) // handshakes at once
	begin := make(chan struct{})
	var until time.Time
	config := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"http/1.1"}
	for range clients {
		ready.Add(1)
		all.Go(func() {
			shaking <- struct{}{}
			transport := &http.Transport{TLSClientConfig: config, MaxConnsPerHost: 1}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 2 * time.Minute}
			c.ask(client, s, path)
			<-shaking
			ready.Done()
			for <-begin; time.Now().Before(until); {
				c.ask(client, s, path)
			}
		})
	}
	ready.Wait()
	until = time.Now().Add(lasts)
	close(begin)
	all.Wait()
	return &c
}

func (c *crowd) ask(client *http.Client, s *site, path string) {
	r, err := http.NewRequest(http.MethodGet, s.url+path, nil)
	if err != nil {
		panic(err) // it is the same for all
	}
	r.SetBasicAuth("any", s.token)
	resp, err := client.Do(r)
	if err != nil {
		text := err.Error()
		c.bad.Store(&text)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		c.bad.Store(&resp.Status)
	}
	if resp.StatusCode/100 == 2 {
		c.good.Add(1)
	}
}

// allowed counts the decisions that allow a module's file in the log, and their ids.
func (s *site) allowed() (n int64, ids map[string]bool) {
	s.t.Helper()
	ids = map[string]bool{}
	err := audit.Tail(s.t.Context(), filepath.Join(s.dir, "state/audit"), audit.TailOptions{NoLeaf: true}, func(e audit.Entry) error {
		var r audit.Record
		if err := json.Unmarshal(e.Raw, &r); err != nil {
			return err
		}
		if r.Kind == audit.KindDecision && r.Decision.Effect == "allow" && r.Module != "" {
			n++
			ids[r.EventID] = true
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n, ids
}

// metric is what the gateway's metrics say under a name.
func (s *site) metric(name string) string {
	s.t.Helper()
	resp, err := http.Get("http://127.0.0.1:" + s.operations + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
