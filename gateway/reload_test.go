package gateway

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/headgate/headgate/policy/git/gittest"
)

// A52: policy and certificate are loaded again and again while requests go on: none is lost, the race detector has
// nothing to say, and no goroutine and no memory is left behind. SOAK=1 goes on for five minutes.
func TestA52ReloadInALoop(t *testing.T) {
	b := newBench(t, hello)
	b.cfg.Hooks.SecretFile = filepath.Join(b.dir, "hook")
	must(t, os.WriteFile(b.cfg.Hooks.SecretFile, []byte(hookSecret+"\n"), 0o600))
	repo, key := b.policyRepository(t)
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		must(t, ensureLocalCA(filepath.Join(dir, name), []string{"localhost"}))
	}
	live := filepath.Join(dir, "live")
	must(t, os.Symlink("a", live))
	c, err := loadCertificate(filepath.Join(live, "leaf.pem"), filepath.Join(live, "leaf-key.pem"))
	must(t, err)

	rounds := 0
	reload := func() {
		rounds++
		b.announce(t, repo.Commit(gittest.Commit{Files: policyFiles([]string{"standard", "none"}[rounds%2]), Key: key}))
		must(t, os.Symlink([]string{"a", "b"}[rounds%2], live+".new"))
		must(t, os.Rename(live+".new", live))
		if changed, err := c.reload(); !changed || err != nil {
			t.Fatalf("round %d: the certificate is loaded again: %v, %v", rounds, changed, err)
		}
	}
	l := newLoad(t, b, 100, 2)
	l.begin(t)
	warm, more, limit := 2, 2, time.Now()
	if os.Getenv("SOAK") != "" {
		warm, limit = 6, limit.Add(5*time.Minute) // more than are kept, so that what stays is there
	}
	for range warm {
		reload()
	}
	goroutines, heap := runtime.NumGoroutine(), heapInUse()
	for i := 0; i < more || time.Now().Before(limit); i++ {
		reload()
	}
	grown := heapInUse() - heap
	l.end()
	t.Logf("%d reloads, %d requests; heap %+d KiB", rounds, l.asked.Load(), grown>>10)
	if n := l.failed.Load(); n > 0 || l.asked.Load() == 0 {
		t.Errorf("%d of %d requests were lost, or had an answer that is not that of their revision; the last: %v", n, l.asked.Load(), l.last.Load())
	}
	if grown > 16<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > goroutines; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), goroutines, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// heapInUse is what is reachable, in bytes.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
