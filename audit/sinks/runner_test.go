package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
)

// testLog is a log in memory: records appear by add.
type testLog struct {
	mu      sync.Mutex
	events  []Event
	notices []Notice
}

func (l *testLog) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		i := len(l.events)
		body := fmt.Appendf(nil, `{"id":"e-%d","seq":%d}`, i, i)
		l.events = append(l.events, Event{ID: fmt.Sprintf("e-%d", i), Seq: int64(i), Kind: "decision", Severity: 1, Time: time.Now(), Body: body, Raw: body})
	}
}

func (l *testLog) Reader(at Position, _ string) (Reader, error) {
	if at.Origin != "" && at.Origin != "test" {
		return nil, ErrPosition
	}
	return &testReader{log: l, next: at.Next}, nil
}

func (l *testLog) Behind(at Position) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.events)) - at.Next
}

func (l *testLog) Control(n Notice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notices = append(l.notices, n)
}

func (l *testLog) Checkpoint() string { return "origin\n1\nroot\n" }

func (l *testLog) noticed() []Notice {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.notices)
}

type testReader struct {
	log  *testLog
	next int64
}

func (r *testReader) Next(records, bytes int) ([]Event, error) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	var out []Event
	for len(out) < records && r.next < int64(len(r.log.events)) {
		e := r.log.events[r.next]
		if bytes -= len(e.Body); bytes < 0 && len(out) > 0 {
			break
		}
		out = append(out, e)
		r.next++
	}
	return out, nil
}

func (r *testReader) Position() Position { return Position{Origin: "test", Next: r.next, Tree: "x"} }

func (r *testReader) Joined() int64 { return r.next / 3 }
func (r *testReader) Waiting() bool { return false }

func (r *testReader) Said(record []byte) Event {
	return Event{ID: "said", Seq: r.next - 1, Kind: "control", Severity: 1, Time: time.Now(), Body: record, Raw: record}
}
func (r *testReader) Close() {}

// receiver is a destination under the test's control.
type receiver struct {
	acknowledged
	mu     sync.Mutex
	answer func(events []Event) (answer, error) // nil: all is well
	got    []string                             // ids, as they were taken
	most   int                                  // calls at once
	now    int
	width  int
}

func (r *receiver) inFlight() int { return max(r.width, 1) }
func (r *receiver) close() error  { return nil }

func (r *receiver) set(f func(events []Event) (answer, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = f
}

func (r *receiver) deliver(_ context.Context, events []Event) (a answer, err error) {
	r.mu.Lock()
	r.now++
	r.most = max(r.most, r.now)
	f := r.answer
	r.mu.Unlock()
	if f != nil {
		a, err = f(events)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now--
	if err != nil {
		return a, err
	}
	for _, e := range events {
		refused := slices.ContainsFunc(a.rejected, func(l letter) bool { return l.event.ID == e.ID })
		if !refused && !slices.ContainsFunc(a.again, func(o Event) bool { return o.ID == e.ID }) {
			r.got = append(r.got, e.ID)
		}
	}
	return a, nil
}

func (r *receiver) IDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// start runs one sink of the log to the receiver until the returned function, which may be called twice.
func start(t *testing.T, dir string, l *testLog, r destination) (*Exporter, func()) {
	t.Helper()
	m := newMetrics()
	e := &Exporter{metrics: m, drain: make(chan struct{})}
	s := &sink{
		config: Config{Name: "soc", Type: typeFile}.withDefaults(), log: l, logger: slog.New(slog.DiscardHandler), drain: e.drain,
		pace: usualPace, cursor: filepath.Join(dir, "cursors", "soc.json"), dead: deadFolder(dir, "soc"), metrics: m.of("soc"), to: r,
		leaps: make(chan leap), ended: make(chan struct{}),
	}
	var err error
	if s.committed, err = readCursor(s.cursor); err != nil {
		t.Fatal(err)
	}
	e.sinks, m.sinks = []*sink{s}, []*sink{s}
	ctx, cancel := context.WithCancel(t.Context())
	e.cancel = cancel
	e.workers.Go(func() { s.run(ctx) })
	var once sync.Once
	stop := func() { once.Do(func() { _ = e.Close() }) }
	t.Cleanup(stop)
	return e, stop
}

// wantAll checks that every record of the log arrived, and returns how many arrived twice.
func wantAll(t *testing.T, r interface{ IDs() []string }, n int) (twice int) {
	t.Helper()
	count := map[string]int{}
	for _, id := range r.IDs() {
		count[id]++
	}
	for i := range n {
		c := count[fmt.Sprintf("e-%d", i)]
		if c == 0 {
			t.Fatalf("record %d of %d did not arrive", i, n)
		}
		twice += c - 1
	}
	return twice
}

func cursorOf(t *testing.T, dir string) int64 {
	t.Helper()
	p, err := readCursor(filepath.Join(dir, "cursors", "soc.json"))
	if err != nil {
		t.Fatal(err)
	}
	return p.Next
}

func gauge(t *testing.T, e *Exporter, name string) float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(e.metrics)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// after lets time pass until nothing is left to do.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

var errAway = errors.New("connection refused")

func TestRunner(t *testing.T) {
	t.Run("records arrive in order and the cursor follows", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			_, stop := start(t, dir, l, r)
			l.add(1200)
			after(3 * time.Second)
			if got := r.IDs(); len(got) != 1200 || got[0] != "e-0" || got[1199] != "e-1199" {
				t.Fatalf("%d records arrived", len(got))
			}
			if got := cursorOf(t, dir); got != 1200 {
				t.Errorf("cursor is %d, want 1200", got)
			}
			stop()
			l.add(10)
			_, stop = start(t, dir, l, r)
			stop()
			if twice := wantAll(t, r, 1210); twice != 0 {
				t.Errorf("%d arrived twice", twice)
			}
		})
	})
	t.Run("A25 a receiver that is away for an hour loses nothing and is caught up with", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{width: 4}
			r.set(func([]Event) (answer, error) { return answer{}, errAway })
			e, _ := start(t, dir, l, r)
			for range 3600 {
				l.add(20) // 1,000 a second would make the test wait for memory, not for the sink
				after(time.Second)
			}
			if lag := gauge(t, e, "headgate_audit_sink_lag_records"); lag != 72000 {
				t.Errorf("lag is %v records, want 72000", lag)
			}
			if lag := gauge(t, e, "headgate_audit_sink_lag_seconds"); lag < 3500 || lag > 3600 {
				t.Errorf("lag is %v seconds, want about 3600", lag)
			}
			tries := testutil.ToFloat64(e.sinks[0].metrics.requests(resultRetry))
			if tries > 600 {
				t.Errorf("%v tries in an hour: the breaker lets too many through", tries)
			}
			r.set(nil)
			after(2 * time.Minute)
			if twice := wantAll(t, r, 72000); twice != 0 {
				t.Errorf("%d arrived twice", twice)
			}
			if lag := gauge(t, e, "headgate_audit_sink_lag_records"); lag != 0 {
				t.Errorf("lag is %v records after all arrived", lag)
			}
		})
	})
	t.Run("A26 A33 a receiver that never answers holds four batches and no more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{width: 4}
			hang := make(chan struct{})
			r.set(func([]Event) (answer, error) { <-hang; return answer{}, nil })
			e, _ := start(t, dir, l, r)
			l.add(20000)
			after(time.Minute)
			s := e.sinks[0]
			s.mu.Lock()
			flying := len(s.flying)
			s.mu.Unlock()
			if r.most != 4 || flying > 5 {
				t.Errorf("%d batches at the receiver, %d in memory; want 4 and at most 5", r.most, flying)
			}
			if got := cursorOf(t, dir); got != 0 {
				t.Errorf("cursor is %d before anything arrived", got)
			}
			r.set(nil)
			close(hang)
			after(time.Minute)
			wantAll(t, r, 20000)
		})
	})
	t.Run("a batch that arrives before the one ahead of it does not move the cursor", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{width: 4}
			hang := make(chan struct{})
			r.set(func(events []Event) (answer, error) {
				if events[0].Seq == 0 {
					<-hang
				}
				return answer{}, nil
			})
			_, stop := start(t, dir, l, r)
			l.add(1500)
			after(10 * time.Second)
			if got := cursorOf(t, dir); got != 0 || len(r.IDs()) != 1000 {
				t.Errorf("cursor is %d after %d records behind the first batch arrived", got, len(r.IDs()))
			}
			close(hang)
			stop()
			if got := cursorOf(t, dir); got != 1500 {
				t.Errorf("cursor is %d at the end", got)
			}
		})
	})
	t.Run("A36 twenty restarts in an outage: the cursor never goes back and nothing is missing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{width: 4}
			at := int64(0)
			for i := range 20 {
				if i%5 == 4 {
					r.set(nil)
				} else {
					r.set(func([]Event) (answer, error) { return answer{}, errAway })
				}
				l.add(300)
				_, stop := start(t, dir, l, r)
				after(15 * time.Second)
				stop()
				now := cursorOf(t, dir)
				if now < at {
					t.Fatalf("cursor went from %d to %d", at, now)
				}
				at = now
			}
			if twice := wantAll(t, r, 6000); twice != 0 {
				t.Errorf("%d arrived twice", twice)
			}
		})
	})
	t.Run("a log that is another stops the sink and says so", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			if err := writeCursor(filepath.Join(dir, "cursors", "soc.json"), Position{Origin: "other", Next: 7}); err != nil {
				t.Fatal(err)
			}
			e, _ := start(t, dir, l, r)
			l.add(10)
			after(5 * time.Minute)
			if got := gauge(t, e, "headgate_audit_sink_paused"); got != 1 || len(r.IDs()) != 0 {
				t.Errorf("paused = %v and %d records were sent", got, len(r.IDs()))
			}
		})
	})
	t.Run("every minute an event says what came", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			var said []string
			r.set(func(events []Event) (answer, error) {
				for _, e := range events {
					if e.Kind == "control" {
						said = append(said, string(e.Body))
					}
				}
				return answer{}, nil
			})
			start(t, dir, l, r)
			for range 150 {
				l.add(2)
				after(time.Second)
			}
			if len(said) != 2 {
				t.Fatalf("%d completeness events in 150 seconds, want 2", len(said))
			}
			next := int64(0)
			for _, text := range said {
				var e struct {
					Control struct {
						What  string `json:"what"`
						From  int64  `json:"seq_from"`
						To    int64  `json:"seq_to"`
						Count int64  `json:"count"`
						Both  int64  `json:"joined"`
						Note  string `json:"checkpoint"`
					} `json:"control"`
				}
				if err := json.Unmarshal([]byte(text), &e); err != nil {
					t.Fatal(err)
				}
				if c := e.Control; c.What != "completeness" || c.From != next || c.Count != c.To-c.From+1 || c.Note != l.Checkpoint() || c.Both != (c.To+1)/3-c.From/3 {
					t.Errorf("completeness event %s; want one from %d on, with the checkpoint", text, next)
				}
				next = e.Control.To + 1
			}
		})
	})
}

func TestRefusals(t *testing.T) {
	t.Run("A30 a batch that is too large is halved, and one record that is too large is a dead letter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			r.set(func(events []Event) (answer, error) {
				if len(events) > 60 || slices.ContainsFunc(events, func(e Event) bool { return e.Seq == 77 }) {
					return answer{}, fmt.Errorf("413: %w", errTooLarge)
				}
				return answer{}, nil
			})
			e, stop := start(t, dir, l, r)
			l.add(500)
			after(time.Minute)
			stop()
			if len(r.IDs()) != 499 {
				t.Errorf("%d records arrived, want all but one", len(r.IDs()))
			}
			wantLetters(t, dir, l, "e-77")
			if got := testutil.ToFloat64(e.sinks[0].metrics.dead); got != 1 {
				t.Errorf("dead_letters_total = %v", got)
			}
			if got := cursorOf(t, dir); got != 500 {
				t.Errorf("cursor is %d: the poison record holds up the rest", got)
			}
		})
	})
	t.Run("records that are refused one by one are dead letters, those to be sent again are", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			busy := 3
			r.set(func(events []Event) (a answer, _ error) {
				for _, e := range events {
					switch {
					case e.Seq == 5 || e.Seq == 6:
						a.rejected = append(a.rejected, letter{e, "mapping"})
					case e.Seq > 90 && busy > 0:
						a.again = append(a.again, e)
					}
				}
				busy--
				return a, nil
			})
			_, stop := start(t, dir, l, r)
			l.add(100)
			after(5 * time.Minute)
			stop()
			if got := r.IDs(); len(got) != 98 {
				t.Errorf("%d records arrived, want 98", len(got))
			}
			wantLetters(t, dir, l, "e-5", "e-6")
		})
	})
	t.Run("A31 credentials that are refused for ten minutes pause the sink and kill no letter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			r.set(func([]Event) (answer, error) { return answer{}, fmt.Errorf("401: %w", errDenied) })
			e, _ := start(t, dir, l, r)
			l.add(100)
			after(10 * time.Minute)
			if got := gauge(t, e, "headgate_audit_sink_paused"); got != 1 {
				t.Errorf("sink_paused = %v", got)
			}
			r.set(nil)
			after(2 * time.Minute)
			wantAll(t, r, 100)
			if got := gauge(t, e, "headgate_audit_sink_paused"); got != 0 {
				t.Errorf("sink_paused = %v after the secret was renewed", got)
			}
			wantLetters(t, dir, &testLog{})
			var what []string
			for _, n := range l.noticed() {
				what = append(what, n.What)
			}
			if want := []string{"sink_paused", "sink_resumed"}; !slices.Equal(what, want) {
				t.Errorf("the log was told %v, want %v", what, want)
			}
		})
	})
	t.Run("A34 Retry-After is honoured up to the cap, and seen", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			var tries []time.Time
			r.set(func([]Event) (answer, error) {
				tries = append(tries, time.Now())
				return answer{}, &laterError{time.Hour, errAway}
			})
			e, _ := start(t, dir, l, r)
			l.add(1)
			after(5 * time.Minute)
			if got := gauge(t, e, "headgate_audit_sink_retry_after_seconds"); got != 600 {
				t.Errorf("sink_retry_after_seconds = %v, want the cap of 600", got)
			}
			after(10 * time.Minute)
			if len(tries) != 2 || tries[1].Sub(tries[0]) != 10*time.Minute {
				t.Errorf("tried at %v", tries)
			}
		})
	})
	t.Run("a receiver that refuses everything does not make the log speak for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &receiver{}
			r.set(func(events []Event) (a answer, _ error) {
				for _, e := range events {
					a.rejected = append(a.rejected, letter{e, "no"})
				}
				return a, nil
			})
			l.add(1)
			l.events[0].Kind = "control"
			start(t, dir, l, r)
			after(time.Minute)
			if got := l.noticed(); len(got) != 0 {
				t.Errorf("the log was told %v", got)
			}
		})
	})
}

// wantLetters checks the dead letters, and that the log speaks of each.
func wantLetters(t *testing.T, dir string, l *testLog, ids ...string) {
	t.Helper()
	letters, err := DeadLetters(dir, "soc")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range letters {
		got = append(got, d.ID)
		if d.Reason == "" || len(d.Record) == 0 {
			t.Errorf("dead letter %+v lacks its reason or its record", d)
		}
	}
	if !slices.Equal(got, ids) {
		t.Errorf("dead letters %v, want %v", got, ids)
	}
	count := int64(0)
	for _, n := range l.noticed() {
		if n.What == "dead_letter" {
			count += n.Count
		}
	}
	if count != int64(len(ids)) {
		t.Errorf("the log speaks of %d dead letters, want %d", count, len(ids))
	}
}

func TestCursor(t *testing.T) {
	t.Run("A17 a cut in the middle of a write leaves the old cursor, and the next one is whole", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "soc.json")
		old, next := Position{Origin: "o", Epoch: 1, Next: 5, Tree: "t"}, Position{Origin: "o", Epoch: 1, Next: 1 << 40, Tree: "u"}
		if err := writeCursor(name, old); err != nil {
			t.Fatal(err)
		}
		if err := prepareCursor(name, old); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(whole); n += 1 + n/80*100 { // the new one is written over the spare file, so a crash leaves any part of it there
			cut := append(bytes.Clone(whole[:n]), bytes.Repeat([]byte{0}, len(whole)-n)...)
			for _, torn := range [][]byte{cut, cut[:n]} {
				if err := os.WriteFile(spareCursor(name), torn, 0o600); err != nil {
					t.Fatal(err)
				}
				if got, err := readCursor(name); got != old || err != nil {
					t.Fatalf("readCursor = %v, %v after a cut at byte %d", got, err, n)
				}
			}
			for _, p := range []Position{next, old} {
				if err := writeCursor(name, p); err != nil {
					t.Fatal(err)
				}
				if got, err := readCursor(name); got != p || err != nil {
					t.Fatalf("readCursor = %v, %v, want %v after a cut at byte %d", got, err, p, n)
				}
			}
		}
	})
	t.Run("A17 whoever reads while cursors are written sees one of them", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "soc.json")
		if err := writeCursor(name, Position{Origin: "o", Tree: strings.Repeat("0", 1000)}); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 200 {
				if err := writeCursor(name, Position{Origin: "o", Next: int64(i), Tree: strings.Repeat(strconv.Itoa(i%10), 1000)}); err != nil {
					t.Error(err)
				}
			}
		}()
		defer func() { <-done }()
		for reads, last := 0, int64(0); ; reads++ {
			p, err := readCursor(name)
			if err != nil || p.Next < last || p.Tree != strings.Repeat(strconv.FormatInt(p.Next%10, 10), 1000) {
				t.Fatalf("readCursor = %v, %v; the one before was %d", p, err, last)
			}
			last = p.Next
			if stopped(done) {
				t.Logf("%d reads", reads)
				return
			}
		}
	})
	t.Run("A17 a file that is written over is not read until it is whole", func(t *testing.T) {
		name, want := filepath.Join(t.TempDir(), "soc.json"), Position{Origin: "o", Next: 7}
		if err := writeCursor(name, want); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := flock(f, unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 50), 0); err != nil {
			t.Fatal(err)
		}
		read := make(chan error)
		go func() {
			p, err := readCursor(name)
			if err == nil && p != want {
				err = fmt.Errorf("it is %v", p)
			}
			read <- err
		}()
		select {
		case err := <-read:
			t.Fatalf("it was read while it was written: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		if _, err := f.WriteAt(whole, 0); err != nil {
			t.Fatal(err)
		}
		if err := flock(f, unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Errorf("readCursor: %v", err)
		}
	})
	t.Run("a cursor from before there were two files is kept", func(t *testing.T) {
		name, old := filepath.Join(t.TempDir(), "soc.json"), Position{Origin: "o", Epoch: 1, Next: 5, Tree: "t"}
		if err := os.WriteFile(name, []byte(`{"origin":"o","epoch":1,"next":5,"tree":"t"}`+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := prepareCursor(name, old); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{name, spareCursor(name)} {
			if info, err := os.Stat(file); err != nil || info.Size() != cursorBytes {
				t.Errorf("%s: %v, %v; want %d bytes", file, info, err, cursorBytes)
			}
		}
		if got, err := readCursor(name); got != old || err != nil {
			t.Errorf("readCursor = %v, %v", got, err)
		}
	})
	t.Run("A4 a cursor moves on a disk without a free byte", func(t *testing.T) {
		volume := t.TempDir()
		if err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=128k,mode=700"); err != nil {
			t.Fatalf("mounting a tmpfs (this test has to run as root, with the right to mount): %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(volume, 0); err != nil {
				t.Errorf("unmounting: %v", err)
			}
		})
		begun, fresh := filepath.Join(volume, "cursors", "begun.json"), filepath.Join(volume, "cursors", "fresh.json")
		old := Position{Origin: "o", Next: 1}
		if err := errors.Join(writeCursor(begun, old), prepareCursor(begun, old), prepareCursor(fresh, Position{})); err != nil {
			t.Fatal(err)
		}
		fillUp(t, volume)
		if err := replaceFile(filepath.Join(volume, "other"), []byte("x")); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("there is room: %v; nothing is shown", err)
		}
		done := make(chan struct{})
		var greedy sync.WaitGroup
		greedy.Go(func() { // takes whatever gets free for a moment
			for !stopped(done) {
				fillUp(t, volume)
			}
		})
		defer greedy.Wait()
		defer close(done)
		for i := range int64(300) {
			for _, name := range []string{begun, fresh} {
				p := Position{Origin: "o", Epoch: 1, Next: i, Tree: "t"}
				if err := writeCursor(name, p); err != nil {
					t.Fatalf("writeCursor %d: %v", i, err)
				}
				if got, err := readCursor(name); got != p || err != nil {
					t.Fatalf("readCursor = %v, %v, want %v", got, err, p)
				}
			}
		}
	})
	t.Run("an empty or damaged cursor is an error, never the beginning", func(t *testing.T) {
		for _, text := range []string{"", "{", "{}", `{"origin":"o","next":-1}`, "null"} {
			name := filepath.Join(t.TempDir(), "soc.json")
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := readCursor(name); err == nil {
				t.Errorf("readCursor of %q = %v", text, got)
			}
		}
	})
}

// fillUp writes a file until its volume has no room.
func fillUp(t *testing.T, volume string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(volume, "filler"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	for b := make([]byte, 1024); err == nil; {
		_, err = f.Write(b)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("filling the volume: %v", err)
	}
}

func FuzzCursor(f *testing.F) {
	f.Add([]byte(`{"origin":"audit.a/b/0","epoch":0,"next":7,"tree":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseCursor(b)
		if err != nil {
			return
		}
		name := filepath.Join(t.TempDir(), "c.json")
		if err := writeCursor(name, p); err != nil {
			t.Fatal(err)
		}
		if again, err := readCursor(name); err != nil || again != p {
			t.Errorf("read back as %v, %v, want %v", again, err, p)
		}
	})
}

func TestFile(t *testing.T) {
	batch := func(n int) []Event {
		return []Event{{Body: fmt.Appendf(nil, `{"n":%d}`, n)}, {Body: fmt.Appendf(nil, `{"m":%d}`, n)}}
	}
	t.Run("is renamed when full, and the oldest goes", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "out.jsonl")
		f, err := openFile(Config{Path: path, RotateBytes: 30, Keep: 2})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 9 {
			if _, err := f.deliver(t.Context(), batch(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
		names, err := filepath.Glob(path + "*")
		if err != nil || len(names) != 3 {
			t.Fatalf("files %v, %v; want the file and two old ones", names, err)
		}
		b, err := os.ReadFile(path + ".1")
		if err != nil || !strings.HasPrefix(string(b), `{"n":6}`) || strings.Count(string(b), "\n") != 4 {
			t.Errorf("%s.1 holds %q, %v", path, b, err)
		}
	})
	t.Run("a line that a crash cut is cut off", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "out.jsonl")
		if err := os.WriteFile(path, []byte("{\"n\":0}\n{\"n\":"+strings.Repeat("9", 200_000)), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := openFile(Config{Path: path, RotateBytes: 1 << 20, Keep: 2})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.deliver(t.Context(), batch(1)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if want := "{\"n\":0}\n{\"n\":1}\n{\"m\":1}\n"; string(b) != want || err != nil {
			t.Errorf("the file holds %q, %v, want %q", b, err, want)
		}
	})
}

func TestValidate(t *testing.T) {
	good := []Config{
		{Name: "a", Type: "file", Path: "/var/log/x"},
		{Name: "b", Type: "stdout"},
		{Name: "c", Type: "splunk", URL: "https://splunk.example:8088", TokenFile: "/t", Index: "Audit_1", NoAck: true},
		{Name: "d", Type: "elasticsearch", URL: "http://127.0.0.1:9200", Index: "logs-headgate-default"},
		{Name: "e", Type: "otlp", URL: "http://[::1]:4318", TLS: TLS{CAFile: "ca"}, RetryCap: time.Minute},
		{Name: "f", Type: "objects", Location: "s3://audit?region=eu-west-1"},
	}
	if errs := Validate(good); len(errs) != 0 {
		t.Errorf("Validate of good sinks = %v", errs)
	}
	for name, tt := range map[string]struct {
		c    Config
		want string
	}{
		"no name":            {Config{Type: "stdout"}, `sinks[0].name: ""`},
		"a name with a path": {Config{Name: "../x", Type: "stdout"}, `sinks[0].name: "../x"`},
		"unknown type":       {Config{Name: "a", Type: "kafka"}, `sinks[0].type: "kafka"`},
		"no path":            {Config{Name: "a", Type: "file"}, `sinks[0].path: it is missing`},
		"path where none is": {Config{Name: "a", Type: "stdout", Path: "/x"}, `sinks[0].path: a sink of type stdout has none`},
		"no address":         {Config{Name: "a", Type: "syslog"}, `sinks[0].address: it is missing`},
		"address of no port": {Config{Name: "a", Type: "syslog", Address: "siem"}, `sinks[0].address: "siem"`},
		"half a certificate": {Config{Name: "a", Type: "syslog", Address: "siem:6514", TLS: TLS{CertFile: "c"}}, `sinks[0].tls: cert_file and key_file`},
		"no token":           {Config{Name: "a", Type: "splunk", URL: "https://s:8088"}, `sinks[0].token_file: it is missing`},
		"no location":        {Config{Name: "a", Type: "objects"}, `sinks[0].location: it is missing`},
		"no data stream":     {Config{Name: "a", Type: "elasticsearch", URL: "https://e"}, `sinks[0].index: it is missing`},
		"an index elsewhere": {Config{Name: "a", Type: "elasticsearch", URL: "https://e", Index: "../_all"}, `sinks[0].index: "../_all"`},
		"plaintext":          {Config{Name: "a", Type: "splunk", URL: "http://s:8088", TokenFile: "t"}, `sinks[0].url: want https://`},
		"a user in the URL":  {Config{Name: "a", Type: "splunk", URL: "https://u:p@s:8088", TokenFile: "t"}, `sinks[0].url: want https://`},
		"ack of a file":      {Config{Name: "a", Type: "file", Path: "/x", NoAck: true}, `sinks[0].no_ack: a sink of type file has none`},
		"another overflow":   {Config{Name: "a", Type: "file", Path: "/x", OnOverflow: "drop"}, `sinks[0].on_overflow: "drop" is not known; want keep or gap`},
		"negative size":      {Config{Name: "a", Type: "file", Path: "/x", RotateBytes: -1}, `sinks[0].rotate_bytes: -1`},
	} {
		t.Run(name, func(t *testing.T) {
			errs := Validate([]Config{tt.c})
			if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want) {
				t.Errorf("Validate = %v, want %q", errs, tt.want)
			}
		})
	}
	t.Run("two of one name", func(t *testing.T) {
		if errs := Validate([]Config{good[1], good[1]}); len(errs) != 1 {
			t.Errorf("Validate = %v", errs)
		}
	})
}

// settler is a receiver that says nothing: what it got counts after 30 s on a living connection.
type settler struct {
	receiver
	lost   error
	begins int
}

func (s *settler) settle() time.Duration { return settleTime }

func (s *settler) living() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *settler) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = nil
	s.begins++
}

func TestSettling(t *testing.T) {
	run := func(t *testing.T, dir string, l *testLog, to destination) (stop func()) {
		e, stop := start(t, dir, l, &receiver{})
		stop()
		e.drain = make(chan struct{})
		s := e.sinks[0]
		s.drain, s.to, s.ended = e.drain, to, make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		e.cancel = cancel
		e.workers.Go(func() { s.run(ctx) })
		return func() { _ = e.Close() }
	}
	t.Run("the cursor follows 30 s later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &settler{}
			defer run(t, dir, l, r)()
			l.add(1200)
			after(29 * time.Second)
			if got := cursorOf(t, dir); got != 0 || len(r.IDs()) != 1200 {
				t.Errorf("cursor is %d after 29 s, and %d records were sent", got, len(r.IDs()))
			}
			after(5 * time.Second)
			if got := cursorOf(t, dir); got != 1200 {
				t.Errorf("cursor is %d after 34 s", got)
			}
		})
	})
	t.Run("a connection that ends takes what it may have held back to the cursor", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, r := t.TempDir(), &testLog{}, &settler{}
			defer run(t, dir, l, r)()
			l.add(700)
			after(20 * time.Second)
			r.mu.Lock()
			r.lost = errLost
			r.mu.Unlock()
			after(20 * time.Second)
			if twice := wantAll(t, &r.receiver, 700); twice != 700 || cursorOf(t, dir) != 0 {
				t.Errorf("%d records were sent again, and the cursor is %d; want all 700, and 0", twice, cursorOf(t, dir))
			}
			after(30 * time.Second)
			if got := cursorOf(t, dir); got != 700 {
				t.Errorf("cursor is %d once all has settled", got)
			}
		})
	})
}

// A leap ends what is on its way, however the receiver behaves, and the cursor never goes back.
func TestLeap(t *testing.T) {
	to := func(next int64) func(Position) (Position, error) {
		return func(from Position) (Position, error) { return Position{Origin: "test", Next: next, Tree: "x"}, nil }
	}
	synctest.Test(t, func(t *testing.T) {
		dir, l, r := t.TempDir(), &testLog{}, &receiver{width: 4}
		r.set(func([]Event) (answer, error) { return answer{}, errAway })
		e, stop := start(t, dir, l, r)
		l.add(5000)
		after(time.Minute)
		if err := e.Leap("soc", to(3000)); err != nil || cursorOf(t, dir) != 3000 {
			t.Fatalf("Leap: %v; the cursor is at %d", err, cursorOf(t, dir))
		}
		r.set(nil)
		after(3 * time.Minute)
		if got := slices.Sorted(slices.Values(r.IDs())); len(got) != 2000 || got[0] != "e-3000" || cursorOf(t, dir) != 5000 {
			t.Errorf("%d records arrived, the first %v, and the cursor is at %d; want 2,000 from e-3000 on", len(got), got[:1], cursorOf(t, dir))
		}
		if err := e.Leap("soc", func(from Position) (Position, error) { return Position{Origin: "test", Next: 9000}, errAway }); !errors.Is(err, errAway) || cursorOf(t, dir) != 5000 {
			t.Errorf("Leap that is called off: %v; the cursor is at %d", err, cursorOf(t, dir))
		}
		if err := e.Leap("none", to(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("Leap of no sink: %v", err)
		}
		stop()
		if err := e.Leap("soc", to(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("Leap of a sink that has ended: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		dir, l := t.TempDir(), &testLog{}
		if err := writeCursor(filepath.Join(dir, "cursors", "soc.json"), Position{Origin: "other", Next: 7}); err != nil {
			t.Fatal(err)
		}
		e, _ := start(t, dir, l, &receiver{})
		after(time.Second) // it stands still: the log is another
		if err := e.Leap("soc", to(8)); err != nil || cursorOf(t, dir) != 8 {
			t.Errorf("Leap of a sink that stands still: %v; the cursor is at %d", err, cursorOf(t, dir))
		}
	})
}
