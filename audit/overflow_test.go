package audit

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/headgate/headgate/audit/sinks"
)

// A shrinking is a log whose volume has as much room as a test says, and a sink to a place that is away at first.
type shrinking struct {
	*aging
	room  atomic.Int64
	place *shelf
	sinks *sinks.Exporter // nil where it does not run
}

const plenty = 100 * minSegment

func newShrinking(t *testing.T, overflow string) *shrinking {
	t.Helper()
	return newShrinkingAfter(t, overflow, 0)
}

func newShrinkingAfter(t *testing.T, overflow string, retention time.Duration) *shrinking {
	t.Helper()
	s := &shrinking{place: &shelf{away: true}}
	s.room.Store(plenty)
	disk := faultDisk{before: func(string, string) error { return nil }, space: func() (int64, error) { return s.room.Load(), nil }}
	cfg := Config{Retention: retention, Sinks: []sinks.Config{{Name: "soc", Type: "objects", Location: "there", Schema: "native", OnOverflow: overflow}}}
	s.aging = newAgingOn(t, cfg, Options{}, disk)
	return s
}

// run starts the sink.
func (s *shrinking) run(t *testing.T) {
	t.Helper()
	var err error
	s.sinks, err = s.log.Export(sinks.Options{Objects: func(context.Context, string) (sinks.Objects, error) { return s.place, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
}

func (s *shrinking) stop() {
	if s.sinks != nil {
		_ = s.sinks.Close()
	}
	s.sinks = nil
}

// gaps are the log's records of what was given up.
func (s *shrinking) gaps(t *testing.T) (all []Control) {
	t.Helper()
	err := Tail(t.Context(), s.dir, TailOptions{}, func(e Entry) error {
		if r, err := parseRecord(e.Raw); err == nil && r.Control.What == "gap" {
			all = append(all, r.Control)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// arrived are the numbers of the records that the place has.
func (s *shrinking) arrived(t *testing.T) (seqs []int64) {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	for _, packed := range s.place.objects {
		b, err := z.DecodeAll(packed, nil)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, `"what":"completeness"`) {
				continue
			}
			_, rest, _ := strings.Cut(line, `"seq":`)
			digits, _, _ := strings.Cut(rest, ",")
			seq, err := strconv.ParseInt(digits, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	return slices.Compact(seqs)
}

func upTo(from, end int64) (all []int64) {
	for ; from < end; from++ {
		all = append(all, from)
	}
	return all
}

func TestOverflow(t *testing.T) {
	const pressed, full = pressedAt*minSegment - 1, 0
	for _, tt := range []struct {
		overflow string
		room     int64
		running  bool
	}{
		{sinks.OverflowGap, pressed, true}, {sinks.OverflowGap, pressed, false}, {sinks.OverflowGap, full, true}, {sinks.OverflowKeep, full, true}, {"", pressed, true},
	} {
		inBubble(t, fmt.Sprintf("A53 on_overflow is %q, %d bytes are free, the sink runs: %t", tt.overflow, tt.room, tt.running), func(t *testing.T) {
			s := newShrinking(t, tt.overflow)
			if tt.running {
				s.run(t)
			}
			time.Sleep(time.Minute)
			if first := s.expire(t); first != 0 || len(s.gaps(t)) > 0 {
				t.Fatalf("with room enough records are given up: first record left is %d, gaps %v", first, s.gaps(t))
			}
			s.room.Store(tt.room)
			if tt.overflow == sinks.OverflowGap {
				s.hasGap(t, tt.running)
			} else if first := s.expire(t); first != 0 || len(s.gaps(t)) > 0 {
				t.Fatalf("a sink that keeps loses records: first record left is %d, gaps %v", first, s.gaps(t))
			}
		})
	}
}

// hasGap checks what is given up, and that the sink goes on behind it.
func (s *shrinking) hasGap(t *testing.T, running bool) {
	t.Helper()
	newest := s.firsts[len(s.firsts)-1]
	for range 2 { // nothing is given up twice
		if first := s.expire(t); first != newest {
			t.Fatalf("first record left is %d, want %d", first, newest)
		}
	}
	want := Control{What: "gap", Sink: "soc", SeqTo: newest - 1, Count: newest, ErrClass: "overflow"}
	if got := s.gaps(t); len(got) != 1 || got[0] != want {
		t.Fatalf("gaps %+v, want %+v", got, want)
	}
	if at, err := sinks.Delivered(s.dir, "soc"); err != nil || at.Next != newest || at.Origin != s.log.origin {
		t.Fatalf("the cursor is at %+v, %v; want %d", at, err, newest)
	}
	s.room.Store(plenty)
	time.Sleep(time.Minute)
	if !running {
		s.run(t)
	}
	s.place.setAway(false)
	time.Sleep(5 * time.Minute)
	size := exported{s.log}.size()
	if got := s.arrived(t); !slices.Equal(got, upTo(newest, size)) {
		t.Errorf("records %v arrived, want those from %d to %d, the gap's own among them", got, newest, size-1)
	}
	s.stop()
	s.close(t)
	if err := s.verify(t); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

// A sink that has delivered some of what goes loses the rest alone, and each loss is recorded once.
func TestOverflowExact(t *testing.T) {
	inBubble(t, "A53 the gap begins where the sink stands", func(t *testing.T) {
		s := newShrinking(t, sinks.OverflowGap)
		s.delivered(t, 0, s.firsts[1]+1)
		if first := s.expire(t); first != s.firsts[1] || len(s.gaps(t)) > 0 {
			t.Fatalf("first record left is %d, gaps %v", first, s.gaps(t))
		}
		s.room.Store(pressedAt*minSegment - 1)
		newest := s.firsts[len(s.firsts)-1]
		s.expire(t)
		want := Control{What: "gap", Sink: "soc", SeqFrom: s.firsts[1] + 1, SeqTo: newest - 1, Count: newest - s.firsts[1] - 1, ErrClass: "overflow"}
		if got := s.gaps(t); len(got) != 1 || got[0] != want {
			t.Errorf("gaps %+v, want %+v", got, want)
		}
	})
	inBubble(t, "A53 records are given up at once when room gets scarce", func(t *testing.T) {
		s := newShrinkingAfter(t, sinks.OverflowGap, time.Hour)
		s.run(t)
		time.Sleep(time.Hour + time.Minute)
		if first := s.list1(t)[0]; first != 0 {
			t.Fatalf("with room enough the first record left is %d", first)
		}
		s.room.Store(pressedAt*minSegment - 1)
		time.Sleep(5 * time.Second) // the proof of the removal waits for a checkpoint
		if first := s.list1(t)[0]; first == 0 || len(s.gaps(t)) != 1 || s.log.Writable() != nil {
			t.Errorf("first record left is %d, gaps %v, writable: %v", first, s.gaps(t), s.log.Writable())
		}
	})
	inBubble(t, "A53 a gap that cannot be recorded takes nothing away", func(t *testing.T) {
		s := newShrinking(t, sinks.OverflowGap)
		s.room.Store(pressedAt*minSegment - 1)
		s.log.mu.Lock()
		s.log.state = errPoisoned
		s.log.mu.Unlock()
		if err := s.log.expire(year()); err == nil || s.list1(t)[0] != 0 {
			t.Errorf("expire: %v; first record left is %d", err, s.list1(t)[0])
		}
		if at, err := sinks.Delivered(s.dir, "soc"); err != nil || at != (sinks.Position{}) {
			t.Errorf("the cursor is at %+v, %v", at, err)
		}
		s.log.mu.Lock()
		s.log.state = nil
		s.log.mu.Unlock()
	})
	inBubble(t, "A53 a cursor put back behind the removal goes on with what is left", func(t *testing.T) {
		s := newShrinking(t, sinks.OverflowGap)
		r, err := exported{s.log}.Reader(sinks.Position{}, "native")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(3, 1<<20); err != nil {
			t.Fatal(err)
		}
		old := r.Position()
		r.Close()
		s.room.Store(pressedAt*minSegment - 1)
		left := s.expire(t)
		if r, err = (exported{s.log}).Reader(old, "native"); err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if events, err := r.Next(1, 1<<20); err != nil || len(events) != 1 || events[0].Seq != left {
			t.Errorf("events %+v, %v; want record %d", events, err, left)
		}
	})
}
