package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
)

// shelf keeps objects in memory.
type shelf struct {
	mu      sync.Mutex
	objects map[string][]byte
	away    error // that publishing meets
	lost    bool  // objects arrive, and the answer does not
	opened  int
}

func (s *shelf) Publish(_ context.Context, name string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return s.away
	}
	if old, ok := s.objects[name]; ok && !bytes.Equal(old, b) {
		return errors.New("there are other bytes")
	}
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[name] = bytes.Clone(b)
	if s.lost {
		return errAway
	}
	return nil
}

func (s *shelf) Close() error { return nil }

func (s *shelf) set(away error, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away, s.lost = away, lost
}

// IDs are those of the lines of all objects.
func (s *shelf) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := zstd.NewReader(nil)
	if err != nil {
		panic(err)
	}
	defer r.Close()
	var ids []string
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		text, err := r.DecodeAll(s.objects[name], nil)
		if err != nil {
			panic(err)
		}
		for line := range bytes.Lines(text) {
			var n int
			if _, err := fmt.Sscanf(string(line), `{"id":"e-%d"`, &n); err == nil {
				ids = append(ids, fmt.Sprintf("e-%d", n))
			}
		}
	}
	return ids
}

func dropTo(t *testing.T, s *shelf) *drop {
	t.Helper()
	d, err := newDrop(Config{Location: "there"}.withDefaults(), Options{Objects: func(_ context.Context, location string) (Objects, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if location != "there" {
			return nil, fmt.Errorf("opened %q", location)
		}
		if s.opened++; s.opened < 3 {
			return nil, errAway
		}
		return s, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDrop(t *testing.T) {
	t.Run("each batch is an object, however long the place is away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, s := t.TempDir(), &testLog{}, &shelf{away: errAway}
			start(t, dir, l, dropTo(t, s))
			l.add(1200)
			after(time.Hour)
			if got := cursorOf(t, dir); got != 0 {
				t.Fatalf("the cursor is %d before anything was taken", got)
			}
			s.set(nil, false)
			after(5 * time.Minute)
			if twice := wantAll(t, s, 1200); twice != 0 || cursorOf(t, dir) != 1200 {
				t.Errorf("%d arrived twice, the cursor is %d", twice, cursorOf(t, dir))
			}
		})
	})
	t.Run("an object whose answer was lost is the same object", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, s := t.TempDir(), &testLog{}, &shelf{lost: true}
			start(t, dir, l, dropTo(t, s))
			l.add(400)
			after(10 * time.Minute)
			s.set(nil, false)
			after(5 * time.Minute)
			if twice := wantAll(t, s, 400); twice != 0 {
				t.Errorf("%d are there twice", twice)
			}
		})
	})
	t.Run("a place that does not let us in pauses the sink", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, l, s := t.TempDir(), &testLog{}, &shelf{away: fs.ErrPermission}
			e, _ := start(t, dir, l, dropTo(t, s))
			l.add(4)
			after(10 * time.Minute)
			if gauge(t, e, "headgate_audit_sink_paused") != 1 || gauge(t, e, "headgate_audit_dead_letters_total") != 0 {
				t.Error("want a paused sink and no dead letters")
			}
		})
	})
	t.Run("names", func(t *testing.T) {
		at := time.Date(2026, 5, 4, 3, 59, 59, 0, time.FixedZone("", -3600))
		events := []Event{
			{Origin: "audit.headgate/n1/0", Seq: 8, Time: at, Body: []byte(`{"id":"e-8"}`)},
			{Origin: "audit.headgate/n1/0", Seq: 9, Time: at.Add(time.Hour), Body: []byte(`{"id":"e-9"}`)},
			{Origin: "audit.headgate/n1/1", Seq: 0, Time: at, Body: []byte(`{"id":"e-0"}`)},
		}
		s := &shelf{opened: 3}
		if _, err := dropTo(t, s).deliver(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		names := slices.Sorted(maps.Keys(s.objects))
		for i, want := range []string{
			"dt=2026-05-04/hour=04/audit.headgate_n1_0-00000000000000000008-00000000000000000009-",
			"dt=2026-05-04/hour=04/audit.headgate_n1_1-00000000000000000000-00000000000000000000-",
		} {
			if len(names) != 2 || !strings.HasPrefix(names[i], want) || !strings.HasSuffix(names[i], ".jsonl.zst") || !fs.ValidPath(names[i]) {
				t.Errorf("objects are %q, want one that begins with %s", names, want)
			}
		}
		if got := s.IDs(); !slices.Equal(got, []string{"e-8", "e-9", "e-0"}) {
			t.Errorf("objects hold %q", got)
		}
	})
}
