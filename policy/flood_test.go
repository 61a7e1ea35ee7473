package policy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// asks is one question of a cache, and whether it had to be worked out.
func asks(t *testing.T, c *cache, key string) (missed bool) {
	t.Helper()
	_, err := c.get(t.Context(), []byte(key), func() (Decision, error) {
		missed = true
		return Decision{Effect: Allow}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return missed
}

// TestFlood: a subject that makes paths up costs nobody else an answer, and not much of the machine.
func TestFlood(t *testing.T) {
	t.Run("P14 what comes once evicts nothing", func(t *testing.T) {
		c := newCache()
		c.most = 64
		for i := range 2048 { // half of what it holds: no shard is full yet
			asks(t, c, fmt.Sprint("others ", i))
		}
		for i := range 100_000 {
			asks(t, c, fmt.Sprint("flood ", i))
		}
		hits := 0
		for i := range 2048 {
			if !asks(t, c, fmt.Sprint("others ", i)) {
				hits++
			}
		}
		if hits != 2048 {
			t.Errorf("%d of 2048 answers are still there", hits)
		}
		held, seen := 0, 0
		for i := range c.shards {
			held, seen = held+len(c.shards[i].entries), seen+len(c.shards[i].seen)
		}
		if held > shards*c.most || seen > shards*c.most {
			t.Errorf("it holds %d answers and %d hashes, want at most %d of each", held, seen, shards*c.most)
		}
	})
	t.Run("P14 what comes twice is taken in", func(t *testing.T) {
		c := newCache()
		c.most = 1
		for i := range 10_000 {
			asks(t, c, fmt.Sprint("fill ", i))
		}
		for i, want := range []bool{true, true, false} {
			if asked := asks(t, c, "new"); asked != want {
				t.Errorf("question %d of a new key to a full cache is worked out: %v, want %v", i+1, asked, want)
			}
		}
	})
	t.Run("P14 quota of one subject, others unaffected", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := newQuota(3)
			mallory, ann := Subject{ID: "mallory", Issuer: "corp"}, Subject{ID: "ann", Issuer: "corp"}
			for i, want := range []error{nil, nil, nil, ErrQuota, ErrQuota} {
				if err := q.take(mallory, time.Now()); !errors.Is(err, want) {
					t.Errorf("question %d: %v, want %v", i, err, want)
				}
			}
			for _, s := range []Subject{ann, {ID: "mallory", Issuer: "other"}} {
				if err := q.take(s, time.Now()); err != nil {
					t.Errorf("%s of %s: %v", s.ID, s.Issuer, err)
				}
			}
			time.Sleep(time.Minute)
			if err := q.take(mallory, time.Now()); err != nil || len(q.spent) != 1 {
				t.Errorf("a minute later: %v, %d subjects remembered", err, len(q.spent))
			}
		})
	})
	t.Run("P14 a refusal is the flooder's own", func(t *testing.T) {
		c := newCache()
		working, waited := make(chan struct{}), make(chan error, 1)
		go func() {
			<-working
			_, err := c.get(context.Background(), []byte("path"), func() (Decision, error) { return Decision{Effect: Allow}, nil })
			waited <- err
		}()
		_, err := c.get(t.Context(), []byte("path"), func() (Decision, error) {
			close(working)
			return Decision{}, ErrQuota
		})
		if !errors.Is(err, ErrQuota) {
			t.Errorf("the flooder gets %v, want ErrQuota", err)
		}
		if err := <-waited; err != nil {
			t.Errorf("who waited for the same path gets %v", err)
		}
	})
}

// P15: at the change of day every timed key is another one. Each is worked out once however many ask, on no more workers
// than there are, and all get an answer.
func TestP15Midnight(t *testing.T) {
	t.Run("P15 no herd", func(t *testing.T) {
		const keys, callers = 100_000, 8
		c := newCache()
		workers := make(chan struct{}, 2)
		for i := range keys {
			asks(t, c, fmt.Sprint("day 20836 key ", i))
		}
		var evaluated [keys]atomic.Int32
		var busy, most atomic.Int32
		var group sync.WaitGroup
		for caller := range callers {
			group.Go(func() {
				for n := range keys {
					i := (n + caller*17) % keys
					_, err := c.get(t.Context(), fmt.Appendf(nil, "day 20837 key %d", i), func() (Decision, error) {
						workers <- struct{}{}
						defer func() { <-workers }()
						for now := busy.Add(1); now > most.Load(); {
							most.Store(now)
						}
						defer busy.Add(-1)
						evaluated[i].Add(1)
						runtime.Gosched()
						return Decision{Effect: Allow}, nil
					})
					if err != nil {
						t.Errorf("key %d: %v", i, err)
						return
					}
				}
			})
		}
		group.Wait()
		twice, never := 0, 0
		for i := range evaluated {
			switch n := evaluated[i].Load(); {
			case n == 0:
				never++
			case n > 1:
				twice++
			}
		}
		if twice > 0 || never > 0 || most.Load() > 2 {
			t.Errorf("%d keys were worked out more than once, %d never; %d at once, want 2 at most", twice, never, most.Load())
		}
	})
}

// P12: a check that finds no end is ended, with all that it started.
func TestP12Gate(t *testing.T) {
	t.Run("P12 check ends at its limit", func(t *testing.T) {
		mark := t.TempDir() + "/pid"
		e := &Engine{opts: Options{Trial: []string{"/bin/sh", "-c", "echo $$ > " + mark + "; while :; do :; done"}}}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errors.New("its time is over"))
		defer cancel()
		state, err := e.gate(ctx, &bundle{files: map[string][]byte{"bundle.yaml": []byte("name: x\n")}})
		if state != stateChecked || err == nil || !strings.Contains(err.Error(), "ended at its limits: its time is over") {
			t.Errorf("gate() = %s, %v", state, err)
		}
		text, err := os.ReadFile(mark)
		if err != nil {
			t.Fatal(err)
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			t.Errorf("process %s still runs (%v)", text, err)
		}
	})
}
