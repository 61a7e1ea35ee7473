package audit_test

import (
	"context"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/audit/sinks"
	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

// A tally counts how often each record of an epoch arrived.
type tally struct {
	mu    sync.Mutex
	count []uint8
}

func (c *tally) note(id string) {
	_, digits, _ := strings.Cut(id, "-0-")
	seq, err := strconv.Atoi(digits)
	if err != nil {
		panic(id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.count) <= seq {
		c.count = append(c.count, make([]uint8, 1+len(c.count))...)
	}
	c.count[seq]++
}

// of returns how many of the first n records are missing, and how many arrived more than once.
func (c *tally) of(n int) (missing []int, twice int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for seq := range n {
		switch {
		case seq >= len(c.count) || c.count[seq] == 0:
			missing = append(missing, seq)
		default:
			twice += int(c.count[seq]) - 1
		}
	}
	return missing, twice
}

// load appends records from 16 callers, each so long after its last one, and returns what the slowest of a hundred appends
// took at least. An append that the disk was too slow for is made again.
func load(t *testing.T, l *audit.Log, records int, pause time.Duration) (p99 time.Duration) {
	t.Helper()
	const callers = 16
	took := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	for w := range callers {
		wg.Go(func() {
			due := time.NewTicker(max(pause, 1))
			defer due.Stop()
			for i := range records / callers {
				if pause > 0 {
					<-due.C
				}
				begun := time.Now()
				for l.Append(context.Background(), decision(i)) != nil {
					if time.Since(begun) > time.Minute {
						t.Error("no append succeeds within a minute")
						return
					}
				}
				took[w] = append(took[w], time.Since(begun))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	return all[len(all)*99/100]
}

// gauge gathers the greatest value of a gauge.
func gauge(t *testing.T, r *prometheus.Registry, name string) (most float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				most = math.Max(most, m.GetGauge().GetValue())
			}
		}
	}
	return most
}

// faulty are four receivers, each with a fault of its own until it is mended.
type faulty struct {
	mended  chan struct{}
	down    atomic.Bool
	counts  map[string]*tally
	configs []sinks.Config
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	f := &faulty{mended: make(chan struct{}), counts: map[string]*tally{}}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("right"), 0o600); err != nil {
		t.Fatal(err)
	}
	count := func(name string) func(string) {
		f.counts[name] = &tally{}
		return f.counts[name].note
	}
	serve := func(h http.Handler) string {
		s := httptest.NewUnstartedServer(h)
		s.Listener = downable{s.Listener, &f.down}
		s.Start()
		t.Cleanup(s.Close)
		return s.URL
	}
	hangs, slow, refuses, down := &sinkstest.Splunk{}, &sinkstest.OTLP{}, &sinkstest.Elastic{}, &sinkstest.Elastic{}
	hangs.Each(count("hangs"))
	slow.Each(count("slow"))
	refuses.Each(count("refuses"))
	down.Each(count("down"))
	hangs.Set(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		select {
		case <-f.mended:
			return false
		case <-r.Context().Done():
			return true
		}
	})
	slow.Set(func(http.ResponseWriter, *http.Request, []byte) bool {
		select {
		case <-f.mended:
		case <-time.After(100 * time.Millisecond):
		}
		return false
	})
	refuses.SetRefuse(func(id string) int {
		if strings.HasSuffix(id, "99") {
			return http.StatusBadRequest
		}
		return 0
	})
	plain := httptest.NewServer
	hung, slowly, refusing := plain(hangs), plain(slow), plain(refuses)
	for _, s := range []*httptest.Server{hung, slowly, refusing} {
		t.Cleanup(s.Close)
	}
	f.configs = []sinks.Config{
		{Name: "hangs", Type: "splunk", URL: hung.URL, TokenFile: token},
		{Name: "slow", Type: "otlp", URL: slowly.URL},
		{Name: "refuses", Type: "elasticsearch", URL: refusing.URL, Index: "logs-headgate", TokenFile: token, Schema: "ecs"},
		{Name: "down", Type: "elasticsearch", URL: serve(down), Index: "logs-headgate", TokenFile: token, Schema: "native"},
	}
	f.down.Store(true)
	return f
}

func (f *faulty) mend() {
	f.down.Store(false)
	close(f.mended)
}

// downable ends what connects while its server is down.
type downable struct {
	net.Listener
	down *atomic.Bool
}

func (d downable) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || !d.down.Load() {
			return c, err
		}
		c.Close()
	}
}

// TestReceivers appends while one receiver hangs, one is slow, one refuses single records and one is down: appends go on,
// and once they are mended each has every record, or its dead letters have. It prints what appends took at 1,000 a
// second, with and without the sinks. SOAK=1 has as many records wait as come in an hour at that rate, and prints how fast
// they went.
func TestReceivers(t *testing.T) {
	const lag, rate = "headgate_audit_sink_lag_records", 16 * time.Millisecond
	paced, backlog, limit := 480, 0, 2*time.Minute
	if os.Getenv("SOAK") != "" {
		paced, backlog, limit = 60_000, 3_600_000, time.Hour
	}
	alone, err := audit.Open(audit.Config{Dir: t.TempDir()}, audit.Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	without := load(t, alone, paced, rate)
	closeLog(t, alone)

	f, dir, registry := newFaulty(t), t.TempDir(), prometheus.NewRegistry()
	l, err := audit.Open(audit.Config{Dir: dir, Sinks: f.configs}, audit.Options{Cluster: "test", Node: "n1", Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	e, err := l.Export(sinks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	with := load(t, l, paced, rate)
	if backlog > 0 {
		load(t, l, backlog, 0)
	}
	size := gauge(t, registry, "headgate_audit_tree_size")
	if worst := gauge(t, registry, lag); worst < float64(paced+backlog) {
		t.Errorf("A25 A26 the worst sink is %v records behind of %v: its receiver takes nothing", worst, size)
	}
	f.mend()
	begun := time.Now()
	for worst := size; worst > 0; worst = gauge(t, registry, lag) {
		if time.Since(begun) > limit {
			t.Fatalf("the worst sink is still %v records behind after %s", worst, limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("p99 of an append: %s without sinks, %s with four faulty ones; %v records caught up with in %s", without, with, size, time.Since(begun))
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	closeLog(t, l)
	f.check(t, dir, int(size))
}

// check holds what arrived against what was appended.
func (f *faulty) check(t *testing.T, dir string, records int) {
	t.Helper()
	for name, c := range f.counts {
		missing, twice := c.of(records)
		if name == "refuses" {
			letters, err := sinks.DeadLetters(dir, name)
			if err != nil {
				t.Fatal(err)
			}
			dead := map[int]bool{}
			for _, d := range letters {
				dead[int(d.Seq)] = true
			}
			missing = slices.DeleteFunc(missing, func(seq int) bool { return dead[seq] })
			if want := records / 100; len(letters) < want-1 {
				t.Errorf("%s: %d dead letters, want about %d", name, len(letters), want)
			}
		}
		if len(missing) > 0 {
			t.Errorf("%s: %d of %d records are nowhere, the first is %d", name, len(missing), records, missing[0])
		}
		if most := 4 * 5000; twice > most { // batches in flight, and a completeness event a minute
			t.Errorf("%s: %d arrived more than once, want at most %d", name, twice, most)
		}
		t.Logf("%s: %d missing, %d more than once", name, len(missing), twice)
	}
}
