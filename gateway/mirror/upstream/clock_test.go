package upstream_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// server is an upstream without a network.
type server struct {
	asked  []time.Duration // when, since the test's start
	start  time.Time
	answer func(n int) (status int, header http.Header) // of the n-th request
}

func (s *server) RoundTrip(*http.Request) (*http.Response, error) {
	s.asked = append(s.asked, time.Since(s.start))
	status, header := s.answer(len(s.asked))
	if status == 0 {
		return nil, errors.New("connection reset")
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader("ok")), ContentLength: 2}, nil
}

// clocked makes a client of s with metrics in r.
func clocked(t *testing.T, s *server, r prometheus.Registerer) *upstream.Client {
	t.Helper()
	s.start = time.Now()
	c := client(t, "https://a.example", func(o *upstream.Options) {
		o.Metrics, o.FirstByte = upstream.NewMetrics(r), 30*time.Second
	})
	c.Use(s)
	return c
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// E10: an upstream's Retry-After is waited for up to 10 s; longer ends the tries. Without one the tries are 100 ms and
// 200 ms apart, a fifth more or less.
func TestWaitsBetweenTries(t *testing.T) {
	date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for _, tt := range []struct {
		name   string
		status int
		after  func() string
		asks   int
		least  time.Duration // from the first to the last
		most   time.Duration
	}{
		{"503 without", 503, func() string { return "" }, 3, 240 * time.Millisecond, 360 * time.Millisecond},
		{"reset", 0, func() string { return "" }, 3, 240 * time.Millisecond, 360 * time.Millisecond},
		{"E10 429 for 3 s", 429, func() string { return "3" }, 3, 4800 * time.Millisecond, 7200 * time.Millisecond},
		{"E10 503 for 10 s", 503, func() string { return "10" }, 3, 16 * time.Second, 24 * time.Second},
		{"E10 503 for 11 s", 503, func() string { return "11" }, 1, 0, 0},
		{"E10 429 until a date", 429, func() string { return date(5 * time.Second) }, 3, 3 * time.Second, 13 * time.Second},
		{"E10 429 until a date that is far", 429, func() string { return date(time.Hour) }, 1, 0, 0},
		{"E10 nonsense", 429, func() string { return "-1; drop" }, 3, 240 * time.Millisecond, 360 * time.Millisecond},
		{"403", 403, func() string { return "1" }, 1, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &server{answer: func(int) (int, http.Header) { return tt.status, http.Header{"Retry-After": {tt.after()}} }}
				c := clocked(t, s, prometheus.NewRegistry())
				if _, err := c.Get(t.Context(), modPath, 100, nil); !errors.Is(err, upstream.ErrFailed) {
					t.Errorf("Get = %v, want ErrFailed", err)
				}
				if took := s.asked[len(s.asked)-1]; len(s.asked) != tt.asks || took < tt.least || took > tt.most {
					t.Errorf("asked at %v, want %d times within %s to %s", s.asked, tt.asks, tt.least, tt.most)
				}
			})
		})
	}
}

// The breaker opens after five failures in a row, lets one probe through after 10 s, closes when it succeeds and opens
// again when it fails; its state is a metric.
func TestBreakerStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := 500
		s := &server{answer: func(int) (int, http.Header) { return status, nil }}
		r := prometheus.NewRegistry()
		c := clocked(t, s, r)
		get := func() error { _, err := c.Get(t.Context(), modPath, 100, nil); return err }
		want := func(when string, asks int, state float64) {
			t.Helper()
			if got := gauge(t, r, "headgate_upstream_breaker_state"); len(s.asked) != asks || got != state {
				t.Errorf("%s: asked %d times, state %v; want %d, %v", when, len(s.asked), got, asks, state)
			}
		}
		want("at first", 0, 0)
		_ = get()
		want("after three failures", 3, 0)
		_ = get()
		want("after five", 5, 2)
		_ = get()
		want("while it is left alone", 5, 2)
		time.Sleep(13 * time.Second)
		_ = get()
		want("after a probe that failed", 6, 2)
		time.Sleep(13 * time.Second)
		status = 200
		if err := get(); err != nil {
			t.Errorf("the probe of one that is well: %v", err)
		}
		want("after a probe that succeeded", 7, 0)
		status = 404
		for range 10 {
			_ = get()
		}
		want("after ten times 404", 17, 0)
	})
}
