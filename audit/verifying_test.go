package audit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// result is what the metric says of the newest verification, "" before the first.
func result(t *testing.T, l *Log) string {
	t.Helper()
	var all []string
	for _, r := range verifyResults {
		if testutil.ToFloat64(l.metrics.verified.WithLabelValues(r)) == 1 {
			all = append(all, r)
		}
	}
	if len(all) > 1 {
		t.Errorf("the newest verification ended in %v", all)
	}
	return strings.Join(all, "")
}

// sealed opens a log with two sealed segments and a third.
func sealedLog(t *testing.T, s *shelf) *Log {
	t.Helper()
	l, err := publishing(t.TempDir(), s, false)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		appendTo(t, l, 20)
		l.mu.Lock()
		l.active.begun = time.Now().Add(-2 * segmentLife)
		l.mu.Unlock()
	}
	appendTo(t, l, 20)
	waitSealed(l)
	time.Sleep(2 * checkpointEvery)
	return l
}

// flip changes one byte in the middle of a file.
func flip(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	write(t, name, b)
}

func TestTheRunningLogVerifiesItself(t *testing.T) {
	tests := []struct {
		name   string
		harm   func(t *testing.T, l *Log)
		result string
	}{
		{"a good log", func(*testing.T, *Log) {}, "ok"},
		{"A18 a bit flipped in a packed segment", func(t *testing.T, l *Log) { flip(t, l.layout.packed(0)) }, "altered"},
		{"A10 a segment removed", func(t *testing.T, l *Log) {
			firsts, err := l.layout.list()
			if err == nil {
				err = os.Remove(l.layout.packed(firsts[1]))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "missing"},
		{"A22 another history under the same signature", func(t *testing.T, l *Log) {
			c := checkpoint{origin: l.origin, size: 10, time: time.Now()}
			signed, err := c.sign(l.key.signer)
			if err != nil {
				t.Fatal(err)
			}
			l.publishers[0].place.(*shelf).replace(signed)
		}, "split"},
		{"A21 a published checkpoint that is not ours", func(_ *testing.T, l *Log) {
			l.publishers[0].place.(*shelf).replace([]byte("x"))
		}, "key"},
		{"a folder that cannot be read", func(t *testing.T, l *Log) {
			err := os.Rename(l.layout.checkpoint(), l.layout.checkpoint()+".away")
			if err == nil {
				err = os.Mkdir(l.layout.checkpoint(), 0o700)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "failed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := sealedLog(t, &shelf{})
				defer func() { _ = l.Close() }() // of a damaged log, an error
				if got := result(t, l); got != "" || l.Verified() != nil {
					t.Fatalf("%q before the first verification, %+v", got, l.Verified())
				}
				tt.harm(t, l)
				l.verify(t.Context())
				v := l.Verified()
				if got := result(t, l); got != tt.result || v == nil || v.Result != tt.result {
					t.Fatalf("verified: %q, %+v, want %s", got, v, tt.result)
				}
				good := tt.result == "ok"
				if stamp := testutil.ToFloat64(l.metrics.verifiedAt); (stamp > 0) != good {
					t.Errorf("last success at %v", stamp)
				}
				if (v.Error == "") != good || (v.Advice == "") != good || (v.Damage == nil) != (good || tt.result == "failed") {
					t.Errorf("it says %+v", v)
				}
				if n := testutil.ToFloat64(l.metrics.splits.WithLabelValues("verify")); (n == 1) != (tt.result == "split") {
					t.Errorf("%v split views", n)
				}
				time.Sleep(2 * noteTick)
				want := `"what":"verify"`
				if c := newestControl(t, l, "verify"); c.What == "" || good && c.Count != v.Records || !good && c.ErrClass != tt.result {
					t.Errorf("the newest control record with %s is %+v", want, c)
				}
			})
		})
	}
}

// replace leaves one checkpoint as the newest of everything, whatever is published.
func (s *shelf) replace(signed []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.objects {
		if strings.Contains(name, "/checkpoint/") {
			s.objects[name] = signed
		}
	}
}

// newestControl returns the newest control record that says what.
func newestControl(t *testing.T, l *Log, what string) Control {
	t.Helper()
	var c Control
	firsts, err := l.layout.list()
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.layout.openSegment(firsts[len(firsts)-1])
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	for s := newScanner(f, 0); ; {
		fr, err := s.next()
		if err != nil {
			return c
		}
		r, err := parseRecord(fr.record())
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind == KindControl && r.Control.What == what {
			c = r.Control
		}
	}
}

func TestVerifySchedule(t *testing.T) {
	t.Run("the first some minutes after the start, then at the interval", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := smallConfig(t.TempDir())
			every := 20 * time.Minute // of a day a fake clock, too, has 86,400 seconds
			c.VerifyEvery = &every
			l, err := Open(c, Options{Cluster: "test", Node: "n1"})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(verifyFirst - time.Minute)
			if v := l.Verified(); v != nil {
				t.Errorf("verified %s after the start", v.Began)
			}
			time.Sleep(verifyFirst + 2*time.Minute)
			first := l.Verified()
			if first == nil {
				t.Fatal("not verified some minutes after the start")
			}
			time.Sleep(time.Until(first.Began) + every*9/10)
			if v := l.Verified(); v != first {
				t.Errorf("verified again after %s", v.Began.Sub(first.Began))
			}
			time.Sleep(every / 5)
			if v := l.Verified(); v == first || v.Result != "ok" {
				t.Errorf("after the interval %+v", v)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("never with 0", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := smallConfig(t.TempDir())
			c.VerifyEvery = new(time.Duration)
			l, err := Open(c, Options{Cluster: "test", Node: "n1"})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * verifyFirst)
			if v, n := l.Verified(), testutil.ToFloat64(l.metrics.verifyEvery); v != nil || n != 0 {
				t.Errorf("verified %+v, every %v s", v, n)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("a pass keeps its pace", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := saveLog(t, 1500, 1500)
			start := time.Now()
			report, err := Verify(t.Context(), s.dir, VerifyOptions{BytesPerSecond: 100_000})
			took := time.Since(start).Seconds()
			if want := float64(report.Bytes) / 100_000; err != nil || took < 0.6*want || took > want {
				t.Errorf("%d bytes at 100,000 a second took %v s, %v", report.Bytes, took, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := Verify(ctx, s.dir, VerifyOptions{BytesPerSecond: 1000}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Verify past its deadline = %v", err)
			}
		})
	})
	t.Run("a larger log is read faster", func(t *testing.T) {
		l := &Log{}
		if got := l.verifyPace(); got != verifyRate {
			t.Errorf("first pass: %d bytes a second", got)
		}
		l.verified.Store(&Verification{bytes: 100 << 40})
		if got, want := l.verifyPace(), int64(100<<40)/43200; got != want {
			t.Errorf("after 100 TiB: %d bytes a second, want %d", got, want)
		}
	})
	t.Run("what is gone at the second look is no finding", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &shelf{}
			l := sealedLog(t, s)
			s.mu.Lock()
			s.lies = 1
			s.mu.Unlock()
			l.verify(t.Context())
			if v := l.Verified(); v.Result != "ok" || s.lies != 0 {
				t.Errorf("verified %+v with %d lies left", v, s.lies)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("daily, if nothing is said", func(t *testing.T) {
		if every := (Config{}).verifyEvery(); every != 24*time.Hour {
			t.Errorf("every %s", every)
		}
	})
	t.Run("config", func(t *testing.T) {
		for _, tt := range []struct {
			every time.Duration
			bad   bool
		}{{0, false}, {time.Minute, false}, {time.Second, true}, {-time.Hour, true}} {
			if errs := (Config{VerifyEvery: &tt.every}).Validate(); (len(errs) > 0) != tt.bad {
				t.Errorf("Validate with verify_every %s = %v", tt.every, errs)
			}
		}
	})
}

func TestA7TornTailIsCounted(t *testing.T) {
	s := saveLog(t, 5)
	f, err := os.OpenFile(s.segment(0), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.segment(0))
	if err != nil {
		t.Fatal(err)
	}
	end := int64(len(b))
	for end > 0 && b[end-1] == 0 {
		end--
	}
	if _, err := f.WriteAt([]byte("half of a write"), end+frameHead); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []float64{1, 0} { // it is cut once
		l, err := Open(smallConfig(s.dir), Options{Cluster: "test", Node: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		if got := testutil.ToFloat64(l.metrics.torn); got != want {
			t.Errorf("%v torn tails, want %v", got, want)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMetricNames holds names, labels and label values that are there from the start.
func TestMetricNames(t *testing.T) {
	registry := prometheus.NewRegistry()
	l, err := Open(Config{Dir: t.TempDir(), SegmentBytes: minSegment, Publish: []Publication{{Name: "worm", Location: "there"}}}, Options{
		Cluster: "test", Node: "n1", Registerer: registry, Objects: func(context.Context, string) (Objects, error) { return nil, errPlace },
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range all {
		for _, m := range f.GetMetric() {
			line := f.GetName()
			for _, label := range m.GetLabel() {
				line += fmt.Sprintf(" %s=%s", label.GetName(), label.GetValue())
			}
			lines = append(lines, line+"\n")
		}
	}
	slices.Sort(lines)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	name, got := filepath.Join("testdata", "metrics.txt"), strings.Join(lines, "")
	if *update {
		write(t, name, []byte(got))
	}
	want, err := os.ReadFile(name)
	if err != nil || got != string(want) {
		t.Errorf("metrics differ from %s, %v; -update renews it:\n%s", name, err, got)
	}
}
