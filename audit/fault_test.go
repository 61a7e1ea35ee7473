package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// faultDisk is the real disk with faults: before is asked before each operation and fails it with its error.
type faultDisk struct {
	osDisk
	before func(op, name string) error
	space  func() (int64, error) // nil: the volume's own
}

type faultFile struct {
	file
	name   string
	before func(op, name string) error
}

func (d faultDisk) create(name string) (file, error) {
	if err := d.before("create", name); err != nil {
		return nil, err
	}
	f, err := d.osDisk.create(name)
	return faultFile{file: f, name: name, before: d.before}, err
}

func (d faultDisk) rename(from, to string) error {
	if err := d.before("rename", from); err != nil {
		return err
	}
	return d.osDisk.rename(from, to)
}

func (d faultDisk) remove(name string) error {
	if err := d.before("remove", name); err != nil {
		return err
	}
	return d.osDisk.remove(name)
}

func (d faultDisk) syncDir(name string) error {
	if err := d.before("syncdir", name); err != nil {
		return err
	}
	return d.osDisk.syncDir(name)
}

func (d faultDisk) free(dir string) (int64, error) {
	if d.space != nil {
		return d.space()
	}
	return d.osDisk.free(dir)
}

// WriteAt writes half of what it should before it fails, as a disk would.
func (f faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.before("write", f.name); err != nil {
		n, _ := f.file.WriteAt(p[:len(p)/2], off)
		return n, err
	}
	return f.file.WriteAt(p, off)
}

func (f faultFile) Truncate(size int64) error {
	if err := f.before("truncate", f.name); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

func (f faultFile) allocate(size int64) error {
	if err := f.before("allocate", f.name); err != nil {
		return err
	}
	return f.file.allocate(size)
}

func (f faultFile) datasync() error {
	if err := f.before("fdatasync", f.name); err != nil {
		return err
	}
	return f.file.datasync()
}

func smallConfig(dir string) Config { return Config{Dir: dir, SegmentBytes: minSegment} }

// eventIDs returns the event ids in the log.
func eventIDs(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	ids := map[string]int64{}
	err := Tail(t.Context(), dir, TailOptions{}, func(e Entry) error {
		id := eventID(e.Raw)
		if _, twice := ids[id]; twice {
			t.Errorf("event %s stands there twice", id)
		}
		ids[id] = e.Seq
		return nil
	})
	if err != nil {
		t.Fatalf("Tail: %v", err)
	}
	return ids
}

// scripted opens a log, appends, rotates, appends and closes; it returns the ids that were acknowledged.
func scripted(dir string, d disk) (acked []string, poisoned bool) {
	l, err := open(smallConfig(dir), Options{Node: "n1"}, d)
	if err != nil {
		return nil, true
	}
	for i := range 6 {
		if i == 3 {
			l.mu.Lock()
			for l.busy {
				l.idle.Wait()
			}
			l.active.begun = time.Now().Add(-2 * segmentLife)
			l.mu.Unlock()
		}
		r := benchRecord()
		if err := l.Append(context.Background(), r); err == nil {
			acked = append(acked, r.EventID)
		}
	}
	_ = l.Close() // the fault may be in here, too
	select {
	case <-l.Poisoned():
		poisoned = true
	default:
	}
	return acked, poisoned
}

func TestFaultyDisk(t *testing.T) {
	t.Parallel()
	t.Run("A2 EIO into each operation in turn", func(t *testing.T) {
		for n := int64(1); ; n++ {
			dir, count := t.TempDir(), atomic.Int64{}
			what, onLog := "", false
			d := faultDisk{before: func(op, name string) error {
				if count.Add(1) != n {
					return nil
				}
				what = op + " " + filepath.Base(name)
				onLog = strings.HasSuffix(name, ".log") && (op == "write" || op == "fdatasync")
				return syscall.EIO
			}}
			acked, poisoned := scripted(dir, d)
			if what == "" {
				t.Logf("%d operations", n-1)
				break
			}
			if onLog && !poisoned {
				t.Errorf("%s failed and the log is not poisoned", what)
			}
			l, err := Open(smallConfig(dir), Options{Node: "n1"})
			if err != nil {
				t.Fatalf("Open after %s failed: %v", what, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			ids := eventIDs(t, dir)
			for _, id := range acked {
				if _, ok := ids[id]; !ok {
					t.Errorf("%s failed: acknowledged event %s is lost", what, id)
				}
			}
			if _, err := Verify(t.Context(), dir, VerifyOptions{}); err != nil {
				t.Errorf("Verify after %s failed: %v", what, err)
			}
		}
	})
	t.Run("A2 an fsync error is never retried", func(t *testing.T) {
		dir := t.TempDir()
		var broken atomic.Bool
		var once sync.Once
		l, err := open(smallConfig(dir), Options{}, faultDisk{before: func(op, name string) (err error) {
			if broken.Load() && op == "fdatasync" && strings.HasSuffix(name, ".log") {
				once.Do(func() { err = syscall.EIO })
			}
			return err
		}})
		if err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		for i := range 3 {
			if err := l.Append(t.Context(), benchRecord()); !errors.Is(err, ErrUnwritable) || !errors.Is(err, errPoisoned) {
				t.Errorf("Append %d = %v, want poisoned", i, err)
			}
		}
		<-l.Poisoned()
		if err := l.Writable(); !errors.Is(err, ErrUnwritable) {
			t.Errorf("Writable = %v", err)
		}
		if err := l.Close(); !errors.Is(err, ErrUnwritable) {
			t.Errorf("Close = %v", err)
		}
	})
	t.Run("A5 volume turns read-only", func(t *testing.T) {
		var readOnly atomic.Bool
		l, err := open(smallConfig(t.TempDir()), Options{}, faultDisk{before: func(string, string) error {
			if readOnly.Load() {
				return syscall.EROFS
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		readOnly.Store(true)
		if err := l.Append(t.Context(), benchRecord()); !errors.Is(err, ErrUnwritable) {
			t.Errorf("Append = %v", err)
		}
		if err := l.Close(); !errors.Is(err, ErrUnwritable) { // and every goroutine ends, or Close would not return
			t.Errorf("Close = %v", err)
		}
	})
}

func TestSlowDisk(t *testing.T) {
	run := func(t *testing.T, delay time.Duration, check func(t *testing.T, l *Log, dir string)) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			var slow atomic.Bool
			l, err := open(smallConfig(dir), Options{}, faultDisk{before: func(op, name string) error {
				if slow.Load() && op == "fdatasync" && strings.HasSuffix(name, ".log") {
					time.Sleep(delay)
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			slow.Store(true)
			check(t, l, dir)
			slow.Store(false)
			if err := l.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if _, err := Verify(t.Context(), dir, VerifyOptions{}); err != nil {
				t.Errorf("Verify: %v", err)
			}
		})
	}
	t.Run("A6 fdatasync 5 ms slower gives no timeouts", func(t *testing.T) {
		run(t, 5*time.Millisecond, func(t *testing.T, l *Log, _ string) {
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for range 20 {
						if err := l.Append(t.Context(), benchRecord()); err != nil {
							t.Errorf("Append: %v", err)
						}
					}
				})
			}
			wg.Wait()
		})
	})
	t.Run("A6 fdatasync 3 s slower is refused at 2 s", func(t *testing.T) {
		run(t, 3*time.Second, func(t *testing.T, l *Log, dir string) {
			var wg sync.WaitGroup
			var inTime atomic.Int32
			for range 16 {
				wg.Go(func() {
					start := time.Now()
					if err := l.Append(t.Context(), benchRecord()); !errors.Is(err, errTimeout) {
						t.Errorf("Append = %v, want a timeout", err)
					}
					if time.Since(start) == maxWait {
						inTime.Add(1)
					}
				})
			}
			wg.Wait()
			if n := inTime.Load(); n < 15 { // the caller that commits by itself is bound to the disk
				t.Errorf("%d of 16 callers were refused at 2 s, want 15", n)
			}
			l.mu.Lock()
			for l.busy { // the log has to be idle: only then might the caller commit by itself
				l.idle.Wait()
			}
			l.mu.Unlock()
			start := time.Now()
			if err := l.Append(t.Context(), benchRecord()); !errors.Is(err, errTimeout) || time.Since(start) != maxWait {
				t.Errorf("Append on a disk known to be slow = %v after %v", err, time.Since(start))
			}
			eventIDs(t, dir) // nothing twice
		})
	})
}

func TestFullDiskWithoutPreallocation(t *testing.T) {
	dir := t.TempDir()
	var full atomic.Bool
	l, err := open(smallConfig(dir), Options{}, faultDisk{
		before: func(op, name string) error {
			if full.Load() && (op == "write" || op == "allocate") && !strings.HasSuffix(name, "ballast") {
				return fmt.Errorf("%s: %w", op, syscall.ENOSPC)
			}
			return nil
		},
		space: func() (int64, error) {
			if full.Load() {
				return 0, nil
			}
			return 1 << 40, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), benchRecord()); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	lost := benchRecord()
	if err := l.Append(t.Context(), lost); !errors.Is(err, errFull) {
		t.Errorf("Append on a full disk = %v", err)
	}
	full.Store(false)
	for l.Writable() != nil {
		if _, err := os.Stat(dir); err != nil {
			t.Fatal(err)
		}
		l.prod()
	}
	if err := l.Append(t.Context(), benchRecord()); err != nil {
		t.Errorf("Append after room came back: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, there := eventIDs(t, dir)[lost.EventID]; there {
		t.Error("a record that was refused stands in the log")
	}
	if _, err := Verify(t.Context(), dir, VerifyOptions{}); err != nil {
		t.Error(err)
	}
}

// A41: on a machine with more to do than processors, a caller learns late of what was durable in time.
func TestA41DurableInTimeIsAcknowledged(t *testing.T) {
	start := time.Now()
	for name, tt := range map[string]struct {
		after time.Duration // start
		err   error
		want  error
	}{
		"durable in time":      {after: maxWait},
		"durable too late":     {after: maxWait + 1, want: errTimeout},
		"failed in time":       {after: time.Second, err: unwritable(errPoisoned), want: errPoisoned},
		"failed, and too late": {after: maxWait + 1, err: unwritable(errPoisoned), want: errTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			b := &batch{err: tt.err, at: start.Add(tt.after)}
			if took, err := b.result(start); !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) || took != tt.after {
				t.Errorf("result = %v, %v; want %v, %v", took, err, tt.after, tt.want)
			}
		})
	}
}
