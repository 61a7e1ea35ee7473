package audit_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
)

// TestMain is also the process that crash tests kill: with this variable set it writes records until it dies.
func TestMain(m *testing.M) {
	if dir := os.Getenv("AUDIT_TEST_WRITER"); dir != "" {
		os.Exit(writeUntilKilled(dir))
	}
	if dir := os.Getenv("AUDIT_TEST_EXPORTER"); dir != "" {
		os.Exit(exportUntilKilled(dir))
	}
	os.Exit(m.Run())
}

// writeUntilKilled appends from 64 goroutines and prints the id of each record after it was acknowledged.
func writeUntilKilled(dir string) int {
	l, err := audit.Open(audit.Config{Dir: dir, SegmentBytes: 1 << 20}, audit.Options{Cluster: "test", Node: "n1"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("open")
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := 0; ; i++ {
				r := decision(w*1_000_000 + i)
				if err := l.Append(context.Background(), r); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				if _, err := os.Stdout.WriteString(r.EventID + "\n"); err != nil {
					return
				}
				l.Note(decision(i))
			}
		})
	}
	wg.Wait()
	return 1
}

// startWriter starts the writing process; lines gives what it acknowledges.
func startWriter(t *testing.T, dir string) (cmd *exec.Cmd, lines *bufio.Scanner, stderr *strings.Builder) {
	t.Helper()
	return startProcess(t, "AUDIT_TEST_WRITER="+dir)
}

// startProcess starts this program with a variable that tells it what to do until it is killed.
func startProcess(t *testing.T, variable string) (cmd *exec.Cmd, lines *bufio.Scanner, stderr *strings.Builder) {
	t.Helper()
	cmd = exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), variable)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr = &strings.Builder{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out), stderr
}

// killWriter runs a writer for a random while, kills it with SIGKILL, and returns what it acknowledged.
func killWriter(t *testing.T, dir string) []string {
	t.Helper()
	cmd, lines, stderr := startWriter(t, dir)
	if !lines.Scan() || lines.Text() != "open" {
		t.Fatalf("writer did not open the log: %s", stderr)
	}
	kill := time.AfterFunc(rand.N(150*time.Millisecond), func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	var acked []string
	for lines.Scan() {
		if len(lines.Text()) == 26 { // the last line may be cut
			acked = append(acked, lines.Text())
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("writer ended by itself")
	}
	return acked
}

// ids returns the event ids in the log, with how often each stands there.
func ids(t *testing.T, dir string) map[string]int {
	t.Helper()
	all := map[string]int{}
	_, raws := readAll(t, dir)
	for _, raw := range raws {
		_, rest, _ := strings.Cut(raw, `"event_id":"`)
		all[rest[:26]]++
	}
	return all
}

// killRepeatedly kills the writer of one log again and again, verifies it after each, and returns how many records were
// acknowledged: each stands in the log once.
func killRepeatedly(t *testing.T, kills int) int {
	t.Helper()
	dir, acked := t.TempDir(), []string(nil)
	for range kills {
		acked = append(acked, killWriter(t, dir)...)
		_, err := audit.Verify(t.Context(), dir, audit.VerifyOptions{})
		if d, ok := errors.AsType[*audit.DamageError](err); err != nil && (!ok || d.Code != audit.ExitTorn) {
			t.Fatalf("Verify after kill: %v", err)
		}
	}
	closeLog(t, openLog(t, dir))
	if _, err := audit.Verify(t.Context(), dir, audit.VerifyOptions{}); err != nil {
		t.Errorf("Verify after recovery: %v", err)
	}
	there := ids(t, dir)
	for _, id := range acked {
		if there[id] != 1 {
			t.Errorf("acknowledged event %s stands in the log %d times", id, there[id])
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
	return len(acked)
}

func TestKill(t *testing.T) {
	t.Parallel()
	t.Run("A1 kill -9 at a random instant", func(t *testing.T) {
		const life = 12 // kills of one log
		lives, acked := 1, 0
		if os.Getenv("SOAK") != "" {
			lives = 84 // 1,008 kills
		}
		for range lives {
			acked += killRepeatedly(t, life)
		}
		t.Logf("%d records acknowledged over %d kills, all there", acked, lives*life)
	})
	t.Run("A16 two processes on one folder", func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		cmd, _, stderr := startWriter(t, dir)
		if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), audit.ErrLocked.Error()) {
			t.Errorf("second process: %v, %q; want it to end because of the lock", err, stderr)
		}
		if _, err := audit.Open(audit.Config{Dir: dir}, audit.Options{}); !errors.Is(err, audit.ErrLocked) {
			t.Errorf("second Open in this process = %v", err)
		}
		if err := l.Append(t.Context(), decision(1)); err != nil {
			t.Errorf("Append of the first: %v", err)
		}
		closeLog(t, l)
	})
}

func TestVerifyWhileWriting(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := l.Append(context.Background(), decision(w*1000+i)); err != nil {
					t.Errorf("Append: %v", err)
					return
				}
			}
		})
	}
	for range 10 {
		if _, err := audit.Verify(t.Context(), dir, audit.VerifyOptions{}); err != nil {
			t.Errorf("Verify of a running log: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	closeLog(t, l)
}

func TestTailFollows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLog(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan int64)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := audit.Tail(ctx, dir, audit.TailOptions{Last: 1, Follow: true}, func(e audit.Entry) error {
			select {
			case got <- e.Seq:
			case <-ctx.Done():
			}
			return nil
		})
		if err != nil {
			t.Errorf("Tail = %v", err)
		}
	})
	if seq := <-got; seq != 0 {
		t.Errorf("first entry is %d, want 0", seq)
	}
	const records = 1500 // over two segments
	wg.Go(func() {
		for i := range records {
			if err := l.Append(context.Background(), decision(i)); err != nil {
				t.Errorf("Append: %v", err)
			}
		}
	})
	for want := int64(1); want <= records; want++ {
		if seq := <-got; seq != want {
			t.Fatalf("Tail gave %d, want %d", seq, want)
		}
	}
	cancel()
	wg.Wait()
	closeLog(t, l)
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	t.Run("A3 small tmpfs fills up and has room again", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=10m,mode=700"); err != nil {
			t.Fatalf("mounting a tmpfs (this test has to run as root, with the right to mount): %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Errorf("unmounting: %v", err)
			}
		})
		logDir, filler := filepath.Join(dir, "audit"), filepath.Join(dir, "filler")
		l := openLog(t, logDir)
		if err := l.Append(t.Context(), decision(0)); err != nil {
			t.Fatalf("Append: %v", err)
		}
		fill(t, filler)
		refused := refusedAt(t, l)
		for l.Writable() == nil {
			t.Fatal("Writable after a refused Append")
		}
		fill(t, filler) // also what the log itself gave back
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, func() bool { return l.Writable() == nil })
		if err := l.Append(t.Context(), decision(2)); err != nil {
			t.Errorf("Append after room came back: %v", err)
		}
		closeLog(t, l)
		if _, err := audit.Verify(t.Context(), logDir, audit.VerifyOptions{}); err != nil {
			t.Errorf("Verify: %v", err)
		}
		_, raws := readAll(t, logDir)
		all := strings.Join(raws, "\n")
		for _, what := range []string{"disk_full", "disk_ok"} {
			if strings.Count(all, `"what":"`+what+`"`) != 1 {
				t.Errorf("control record %s does not stand in the log once", what)
			}
		}
		if strings.Contains(all, refused) {
			t.Error("a refused record stands in the log")
		}
	})
	t.Run("A3 a log on a full disk opens and closes", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=10m,mode=700"); err != nil {
			t.Fatalf("mounting a tmpfs (this test has to run as root, with the right to mount): %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Errorf("unmounting: %v", err)
			}
		})
		logDir := filepath.Join(dir, "audit")
		l := openLog(t, logDir)
		fill(t, filepath.Join(dir, "filler"))
		refusedAt(t, l)
		closeLog(t, l)
		l = openLog(t, logDir)
		within(t, 5*time.Second, func() bool { return l.Writable() != nil })
		closeLog(t, l)
		if _, err := audit.Verify(t.Context(), logDir, audit.VerifyOptions{}); err != nil {
			t.Errorf("Verify: %v", err)
		}
	})
}

// fill writes a file until the volume has no room.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 4096); err == nil; {
		_, err = f.Write(b)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the volume: %v", err)
	}
}

// refusedAt appends until the log refuses, and returns that record's id.
func refusedAt(t *testing.T, l *audit.Log) (id string) {
	t.Helper()
	within(t, 5*time.Second, func() bool {
		r := decision(1)
		err := l.Append(t.Context(), r)
		if err != nil && !errors.Is(err, audit.ErrUnwritable) {
			t.Fatalf("Append on a full disk = %v", err)
		}
		id = r.EventID
		return err != nil
	})
	return id
}

// within waits until ok holds.
func within(t *testing.T, limit time.Duration, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not so within %v", limit)
		}
	}
}
