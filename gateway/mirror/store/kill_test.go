package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// What is under the name before, and what the killed process writes.
var (
	before = []byte("before")
	body   = bytes.Repeat([]byte("whole "), 50000)
)

// writes are the ways to write; fresh ones need a name that is free.
var writes = map[string]struct {
	fresh bool
	write func(context.Context, *store.Store) error
}{
	"Publish": {true, func(ctx context.Context, s *store.Store) error { return s.Publish(ctx, name, body) }},
	"Replace": {false, func(ctx context.Context, s *store.Store) error { return s.Replace(ctx, name, body) }},
	"Keep":    {false, func(ctx context.Context, s *store.Store) error { return s.Keep(ctx, name, body) }},
	"Swap":    {false, func(ctx context.Context, s *store.Store) error { return s.Swap(ctx, name, before, body) }},
	"Draft": {true, func(ctx context.Context, s *store.Store) error {
		d, err := s.Draft()
		if err != nil {
			return err
		}
		defer d.Discard()
		for piece := range bytes.SplitAfterSeq(body, body[:len(body)/4]) {
			if _, err := d.Write(piece); err != nil {
				return err
			}
		}
		return d.Publish(ctx, name)
	}},
	"Remove": {false, func(ctx context.Context, s *store.Store) error { return s.Remove(ctx, name) }},
}

// TestKilledAtEveryStep runs itself as a child that kills itself at the first
// step of a write, at the second, and so on until it survives, and looks at
// what each leaves behind.
func TestKilledAtEveryStep(t *testing.T) {
	for what, w := range writes {
		t.Run("E16 "+what, func(t *testing.T) {
			steps := 0
			for killed := true; killed; steps++ {
				dir := t.TempDir()
				if s := open(t, dir); !w.fresh {
					if err := s.Publish(t.Context(), name, before); err != nil {
						t.Fatal(err)
					}
				}
				killed = writeAndDie(t, dir, what, steps)
				looksWhole(t, dir, what, steps)
			}
			t.Logf("%s: killed at each of %d steps", what, steps-1)
			if steps < 3 {
				t.Errorf("%d steps are too few: the child does not report them", steps-1)
			}
		})
	}
}

// writeAndDie runs the child; killed tells whether it died of the signal.
func writeAndDie(t *testing.T, dir, what string, step int) (killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildWrites$")
	cmd.Env = append(os.Environ(), "STORE_DIR="+dir, "STORE_WRITE="+what, "STORE_STEP="+strconv.Itoa(step))
	out, err := cmd.CombinedOutput()
	killed = strings.Contains(fmt.Sprint(err), "killed")
	if err != nil && !killed {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return killed
}

// looksWhole opens the store again: the old bytes or the new, no draft left, and the write can be done again.
func looksWhole(t *testing.T, dir, what string, step int) {
	t.Helper()
	seen, err := os.ReadFile(filepath.Join(dir, name)) // as who reads the folder sees it
	s := open(t, dir)
	b, again := s.Read(t.Context(), name, 1<<20)
	if !bytes.Equal(b, seen) || errors.Is(err, fs.ErrNotExist) != errors.Is(again, fs.ErrNotExist) {
		t.Errorf("step %d: opening changed %d bytes (%v) to %d (%v)", step, len(seen), err, len(b), again)
	}
	missing := errors.Is(again, fs.ErrNotExist) && (writes[what].fresh || what == "Remove")
	old := bytes.Equal(b, before) && !writes[what].fresh
	if !missing && !old && !bytes.Equal(b, body) {
		t.Errorf("step %d: Read = %d bytes, %v; want the old or the new ones whole", step, len(b), again)
	}
	live, err := filepath.Glob(filepath.Join(dir, ".tmp", "*", "*"))
	if err != nil || len(live) > 0 {
		t.Errorf("step %d: drafts left: %v, %v", step, live, err)
	}
	folders, err := filepath.Glob(filepath.Join(dir, ".tmp", "*"))
	if err != nil || len(folders) > 2 { // of the two stores that this test has open
		t.Errorf("step %d: folders of drafts left: %v, %v", step, folders, err)
	}
	if err := s.Replace(t.Context(), name, body); err != nil {
		t.Errorf("step %d: writing afterwards: %v", step, err)
	}
}

func TestChildWrites(t *testing.T) {
	dir := os.Getenv("STORE_DIR")
	if dir == "" {
		return // only as a child of TestKilledAtEveryStep
	}
	deadly, err := strconv.Atoi(os.Getenv("STORE_STEP"))
	if err != nil {
		t.Fatal(err)
	}
	step := 0
	s := opened(t, dir, store.Options{Step: func(string) {
		if step == deadly {
			// As the kernel's kill -9: nothing runs after it.
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			select {}
		}
		step++
	}})
	if err := writes[os.Getenv("STORE_WRITE")].write(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}
