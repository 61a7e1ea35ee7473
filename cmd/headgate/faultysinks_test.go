package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// faultySinks are sinks whose receivers take nothing: one never answers, one is slow and refuses, one is not there, and
// to one nobody speaks. It gives their section.
func faultySinks(t *testing.T) string {
	t.Helper()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() }) // it accepts, since the kernel does, and never reads
	ended := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-ended:
		case <-time.After(500 * time.Millisecond):
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(ended) })
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(refusing.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("any\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`audit:
  sinks:
    - {name: silent, type: otlp, url: "http://%s"}
    - {name: slow, type: splunk, url: %q, token_file: %q, no_ack: true}
    - {name: refusing, type: elasticsearch, url: %q, index: logs-headgate}
    - {name: down, type: otlp, url: "http://127.0.0.1:%s"}
`, silent.Addr(), slow.URL, token, refusing.URL, freePort())
}

// A25, A26: sinks whose receivers hang, are slow, refuse or are away do not touch a request. One gateway has such sinks,
// another none, and they are asked by turns, so that what else the machine does falls on both; their times are printed.
// SOAK=1 asks for a minute.
func TestA26RequestsDoNotWaitForSinks(t *testing.T) {
	const clients, path = 8, "/example.com/hello/@v/v1.0.0.mod"
	lasts := time.Second
	if os.Getenv("SOAK") != "" {
		lasts = time.Minute
	}
	upstream := mirrortest.Start(t, helloModule)
	names := []string{"without sinks", "with four faulty ones"}
	sites := []*site{newSite(t, upstream, ""), newSite(t, upstream, faultySinks(t))}
	took := make([][]time.Duration, len(sites))
	var mu sync.Mutex // guards took
	ask := func(i int) {
		begun := time.Now()
		status, body := sites[i].body(path)
		d := time.Since(begun)
		if status != http.StatusOK {
			t.Errorf("%s: status %d: %s", names[i], status, body)
		}
		mu.Lock()
		defer mu.Unlock()
		took[i] = append(took[i], d)
	}
	ask(0)
	ask(1)
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for i, end := client, time.Now().Add(lasts); time.Now().Before(end) && !t.Failed(); i++ {
				ask(i % len(sites))
			}
		})
	}
	all.Wait()
	for i, name := range names {
		slices.Sort(took[i])
		at := func(q float64) time.Duration { return took[i][int(q*float64(len(took[i])-1))].Round(time.Microsecond) }
		t.Logf("%s: %d requests, p50 %s, p99 %s, worst %s", name, len(took[i]), at(0.5), at(0.99), at(1))
	}
	// Each receiver was asked and took nothing, or this would show nothing.
	for _, sink := range []string{"silent", "slow", "refusing", "down"} {
		series := `headgate_audit_sink_lag_records{sink="` + sink + `"} `
		line := sites[1].metric(series)
		lag := 0.0
		if _, err := fmt.Sscan(strings.TrimPrefix(strings.TrimSpace(line), strings.TrimSpace(series)), &lag); err != nil || lag < float64(len(took[1])) {
			t.Errorf("sink %s is %v records behind of more than %d: %q (%v)", sink, lag, len(took[1]), line, err)
		}
	}
}
