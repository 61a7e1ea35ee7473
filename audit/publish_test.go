package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

var errPlace = errors.New("the place is away")

// shelf is a place in memory.
type shelf struct {
	mu      sync.Mutex
	objects map[string][]byte
	away    bool
	lies    int // how often Read gives other bytes
}

func (s *shelf) Publish(_ context.Context, name string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return errPlace
	}
	if old, ok := s.objects[name]; ok && !bytes.Equal(old, b) {
		return fmt.Errorf("%s has other bytes", name)
	}
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[name] = bytes.Clone(b)
	return nil
}

func (s *shelf) PublishFile(ctx context.Context, name, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return s.Publish(ctx, name, b)
}

func (s *shelf) Names(_ context.Context, dir string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, errPlace
	}
	names := map[string]bool{}
	for name := range s.objects {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			names[first] = true
		}
	}
	return slices.Collect(maps.Keys(names)), nil
}

func (s *shelf) Read(_ context.Context, name string, _ int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objects[name]
	switch {
	case s.away:
		return nil, errPlace
	case !ok:
		return nil, fs.ErrNotExist
	case s.lies > 0:
		s.lies--
		return []byte("x"), nil
	}
	return bytes.Clone(b), nil
}

func (s *shelf) Close() error { return nil }

func (s *shelf) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func (s *shelf) names(part string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for name := range s.objects {
		if strings.Contains(name, part) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// publishing opens a log that publishes to s.
func publishing(dir string, s *shelf, accept bool) (*Log, error) {
	return Open(Config{Dir: dir, SegmentBytes: 1 << 20, PublishGrace: 10 * time.Minute, Publish: []Publication{{Name: "worm", Location: "there"}}}, Options{
		Cluster: "test", Node: "n1", AcceptDamage: accept,
		Objects: func(_ context.Context, location string) (Objects, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.away || location != "there" {
				return nil, errPlace
			}
			return s, nil
		},
	})
}

// grow opens a log, appends records and closes it.
func grow(t *testing.T, dir string, s *shelf, records int) {
	t.Helper()
	l, err := publishing(dir, s, false)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, l, records)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func appendTo(t *testing.T, l *Log, records int) {
	t.Helper()
	for i := range records {
		r := Begin("")
		r.Kind, r.Action, r.Module = KindDecision, "zip", fmt.Sprintf("example.com/m%d", i)
		if err := l.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// wantRefused opens a log and wants damage with a code, and nothing changed.
func wantRefused(t *testing.T, dir string, s *shelf, code int) {
	t.Helper()
	before := files(t, dir)
	l, err := publishing(dir, s, false)
	if err == nil {
		_ = l.Close()
	}
	d, ok := errors.AsType[*DamageError](err)
	if !ok || d.Code != code {
		t.Fatalf("Open = %v, want damage with code %d", err, code)
	}
	if after := files(t, dir); !maps.Equal(before, after) {
		t.Errorf("a log that was refused changed: %v, was %v", after, before)
	}
}

// files maps the names of a folder's files to what is in them; of the lock only that it is there.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		all[strings.TrimPrefix(name, dir)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPublishedCheckpointIsMetAtStart(t *testing.T) {
	t.Run("A15 an older copy of the disk does not start", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		grow(t, dir, s, 20)
		older := copyTree(t, dir)
		grow(t, dir, s, 20)
		wantRefused(t, older, s, ExitShort)
		l, err := publishing(older, s, true)
		if err != nil {
			t.Fatal(err)
		}
		appendTo(t, l, 3)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if n := len(s.names("test/n1/1/checkpoint/")); n == 0 {
			t.Error("the new epoch published nothing")
		}
		if _, err := Verify(t.Context(), older, VerifyOptions{}); err != nil {
			t.Errorf("Verify after the gap was accepted: %v", err)
		}
		grow(t, older, s, 3)
		wantRefused(t, dir, s, ExitMissing) // the newer epoch is published, and is not in this copy
		if l, err = publishing(dir, s, true); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		report, err := Verify(t.Context(), dir, VerifyOptions{})
		if err != nil || len(report.Accepted) != 1 || report.Accepted[0].Epoch != 1 {
			t.Errorf("Verify = %+v, %v; want the missing epoch 1 accepted", report, err)
		}
	})
	t.Run("A15 an older copy from before a key change does not start", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		grow(t, dir, s, 5)
		older := copyTree(t, dir)
		key, err := loadKey(dir, 0)
		if err == nil {
			_, err = newKey(osDisk{}, dir, 0, key.signer.Name(), key, time.Now())
		}
		if err != nil {
			t.Fatal(err)
		}
		grow(t, dir, s, 5)
		wantRefused(t, older, s, ExitKey)
		if n := len(s.names("/keys/")); n != 2 {
			t.Errorf("%d key lists are published, want both", n)
		}
	})
	t.Run("a log that was deleted does not begin again", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		grow(t, dir, s, 5)
		empty := t.TempDir()
		if _, err := publishing(empty, s, false); err == nil {
			t.Fatal("a log began anew under the name of one that is published")
		}
		l, err := publishing(empty, s, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil || l.layout.epoch != 1 {
			t.Errorf("epoch %d, %v, want 1", l.layout.epoch, err)
		}
	})
	t.Run("A20 a log that grew another way does not start", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		grow(t, dir, s, 5)
		other := copyTree(t, dir)
		grow(t, dir, s, 5)
		grow(t, other, &shelf{}, 30)
		wantRefused(t, other, s, ExitConflict)
	})
	t.Run("what is no checkpoint of ours does not pass for one", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		grow(t, dir, s, 5)
		if err := s.Publish(t.Context(), "audit.test/n1/0/checkpoint/00000000000000/00000000000000009999", []byte("x")); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, dir, s, ExitKey)
	})
	t.Run("the same log starts again, many times at one size", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		for range 3 {
			grow(t, dir, s, 0)
		}
	})
}

func TestPublishing(t *testing.T) {
	t.Run("a place that is away at start is met later, and an older copy stops then", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, s := t.TempDir(), &shelf{}
			grow(t, dir, s, 5)
			older := copyTree(t, dir)
			grow(t, dir, s, 5)
			s.setAway(true)
			l, err := publishing(older, s, false)
			if err != nil {
				t.Fatal(err)
			}
			appendTo(t, l, 1)
			s.setAway(false)
			select {
			case <-l.Poisoned():
			case <-time.After(2 * publishEvery):
				t.Error("the log still works, and is shorter than what is published")
			}
			d, ok := errors.AsType[*DamageError](l.Close())
			if !ok || d.Code != ExitShort {
				t.Errorf("Close = %v, want code %d", d, ExitShort)
			}
		})
	})
	t.Run("silence is seen, spoken of, and refuses requests after the grace", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, s := t.TempDir(), &shelf{}
			l, err := publishing(dir, s, false)
			if err != nil {
				t.Fatal(err)
			}
			stamp := func() time.Duration {
				return time.Since(time.Unix(int64(testutil.ToFloat64(l.metrics.published.WithLabelValues("worm"))), 0))
			}
			time.Sleep(5 * time.Minute) // an idle log publishes, too
			if age := stamp(); age > 2*publishEvery {
				t.Errorf("published %s ago", age)
			}
			s.setAway(true)
			time.Sleep(9 * time.Minute)
			if age := stamp(); age < 8*time.Minute || l.Writable() != nil {
				t.Errorf("published %s ago, Writable = %v; want requests served within the grace", age, l.Writable())
			}
			time.Sleep(2 * time.Minute)
			if err := l.Writable(); !errors.Is(err, ErrUnwritable) || !errors.Is(err, errUnpublished) {
				t.Errorf("Writable after the grace = %v", err)
			}
			if err := l.Append(t.Context(), Begin("")); !errors.Is(err, ErrUnwritable) {
				t.Errorf("Append after the grace = %v", err)
			}
			s.setAway(false)
			time.Sleep(2 * publishEvery)
			if err := l.Writable(); err != nil {
				t.Errorf("Writable after the place came back = %v", err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			whole := strings.Join(slices.Collect(maps.Values(files(t, filepath.Join(dir, "epoch")))), "")
			for _, what := range []string{"publish_lost", "publish_regained"} {
				if !strings.Contains(whole, what) {
					t.Errorf("the log does not speak of %s", what)
				}
			}
		})
	})
	t.Run("the last checkpoint of a closed log is published", func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		grow(t, dir, s, 7)
		local, err := os.ReadFile(filepath.Join(dir, "epoch/0/checkpoint"))
		names := s.names("/checkpoint/")
		if err != nil || len(names) == 0 || string(s.objects[names[len(names)-1]]) != string(local) {
			t.Errorf("%q does not end in the local checkpoint, %v", names, err)
		}
	})
	t.Run("A22 a second log of the same name and another root stops", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, s := t.TempDir(), &shelf{}
			grow(t, dir, s, 5)
			other := copyTree(t, dir)
			grow(t, dir, s, 3)
			apart := &shelf{away: true}
			second, err := publishing(other, apart, false)
			if err != nil {
				t.Fatal(err)
			}
			appendTo(t, second, 20)
			apart.mu.Lock()
			apart.objects, apart.away = s.objects, false
			apart.mu.Unlock()
			select {
			case <-second.Poisoned():
			case <-time.After(2 * publishEvery):
				t.Error("a split view was not seen")
			}
			time.Sleep(3 * publishEvery) // it is met again, and is one
			d, _ := errors.AsType[*DamageError](second.Close())
			if d == nil || d.Code != ExitConflict {
				t.Errorf("the second log ends with %v, want code %d", d, ExitConflict)
			}
			if n := testutil.ToFloat64(second.metrics.splits.WithLabelValues("publish")); n != 1 {
				t.Errorf("%v split views are counted, want 1", n)
			}
		})
	})
	t.Run("A22 another checkpoint of one size stops the log while it runs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir, s := t.TempDir(), &shelf{}
			l, err := publishing(dir, s, false)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(publishEvery)
			c := checkpoint{origin: l.origin, size: exported{l}.size() + 2, time: time.Now()} // of no tree of ours
			signed, err := c.sign(l.key.signer)
			if err == nil {
				err = s.Publish(t.Context(), checkpointName(c), signed)
			}
			if err != nil {
				t.Fatal(err)
			}
			appendTo(t, l, 2)
			select {
			case <-l.Poisoned():
			case <-time.After(2 * publishEvery):
				t.Error("a split view was not seen")
			}
			if d, _ := errors.AsType[*DamageError](l.Close()); d == nil || d.Code != ExitConflict {
				t.Errorf("the log ends with %v, want code %d", d, ExitConflict)
			}
		})
	})
}

func TestSealedSegmentsArePublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, s := t.TempDir(), &shelf{}
		l, err := publishing(dir, s, false)
		if err != nil {
			t.Fatal(err)
		}
		r := Begin("")
		r.Kind, r.Input = KindDecision, []byte(`{"x":"`+strings.Repeat("y", 8000)+`"}`)
		for range 300 {
			if err := l.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * publishEvery)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		local, err := filepath.Glob(filepath.Join(dir, "epoch/0/segment/*.zst"))
		if err != nil || len(local) < 2 {
			t.Fatalf("%d packed segments, %v", len(local), err)
		}
		for _, name := range local {
			base := strings.TrimSuffix(name, ".log.zst")
			for _, file := range []string{name, base + ".hashes", base + ".idx"} {
				want, err := os.ReadFile(file)
				if got := s.objects["audit.test/n1/0/segment/"+filepath.Base(file)]; err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s is published with %d bytes of %d, %v", filepath.Base(file), len(got), len(want), err)
				}
			}
		}
	})
}

func TestPublishConfig(t *testing.T) {
	for want, c := range map[string]Config{
		`publish[0].name: ""`:                       {Publish: []Publication{{Location: "x"}}},
		`publish[0].location: it is missing`:        {Publish: []Publication{{Name: "a"}}},
		`publish[1].name: "a" is the name of`:       {Publish: []Publication{{Name: "a", Location: "x"}, {Name: "a", Location: "y"}}},
		`publish_grace: 1s; want 1m0s at least`:     {PublishGrace: time.Second, Publish: []Publication{{Name: "a", Location: "x"}}},
		`publish_grace: 1h0m0s; want 1m0s at least`: {PublishGrace: time.Hour},
	} {
		if errs := c.Validate(); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), want) {
			t.Errorf("Validate = %v, want %q", errs, want)
		}
	}
	if _, err := Open(Config{Dir: t.TempDir(), Publish: []Publication{{Name: "a", Location: "x"}}}, Options{}); err == nil {
		t.Error("Open without object storage publishes nowhere in silence")
	}
}
