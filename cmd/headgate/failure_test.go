package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

const bigModule = "/example.com/big/@v/v1.0.0.zip"

// 200 callers for one cold zip of 60 MB: one upstream request, flat memory, and the same bytes for everybody. One in
// ten reads to the end, the others leave after 2 MB; with SOAK set all read to the end.
func TestHerd(t *testing.T) {
	const callers, size, taste = 200, 60 << 20, 2 << 20
	up := mirrortest.Start(t)
	if err := up.AddBig("example.com/big", "v1.0.0", size); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, up, "")
	idle := s.gateway.rss(t) // most of it the program's own file, of which a kernel maps more or less
	var mu sync.Mutex
	sums := map[string]int{}
	var group sync.WaitGroup
	for i := range callers {
		want := int64(taste)
		if i%20 == 0 || os.Getenv("SOAK") != "" {
			want = 1 << 40
		}
		group.Go(func() {
			sum := s.sum(bigModule, want)
			mu.Lock()
			defer mu.Unlock()
			sums[sum]++
		})
	}
	group.Wait()
	if len(sums) > 2 {
		t.Errorf("%d callers got %d different bodies, want at most 2, whole and beginning: %v", callers, len(sums), sums)
	}
	for sum := range sums {
		if !strings.HasPrefix(sum, "200 <nil> ") {
			t.Errorf("a caller got %s", sum)
		}
	}
	if n := up.Count("*.zip"); n != 1 {
		t.Errorf("upstream saw %d requests for the zip, want 1", n)
	}
	peak := s.gateway.peakRSS(t)
	t.Logf("%d callers for one cold zip of %d MB: peak RSS %d MB, %d when idle", callers, size>>20, peak>>20, idle>>20)
	if peak-idle > 48<<20 {
		t.Errorf("memory grew by %d MB, want at most 48", (peak-idle)>>20)
	}
}

// sum reads at most n bytes of a path and says what they were.
func (s *site) sum(path string, n int64) string {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	resp, err := s.get(ctx, path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	hash := sha256.New()
	read, err := io.Copy(hash, io.LimitReader(resp.Body, n))
	return fmt.Sprintf("%d %v %d bytes %x", resp.StatusCode, err, read, hash.Sum(nil)[:4])
}

// E16: kill -9 in the middle of a large download: no partial file is visible or served afterwards, the log verifies,
// and every request that was answered has its record.
func TestKillDuringDownload(t *testing.T) {
	t.Parallel()
	up := mirrortest.Start(t)
	if err := up.AddBig("example.com/big", "v1.0.0", 24<<20); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, up, "")
	var answered []string
	for range 20 {
		resp, err := s.get(context.Background(), "/example.com/big/@v/v1.0.0.mod")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		answered = append(answered, resp.Header.Get("Headgate-Decision"))
	}
	up.Break("*.zip", mirrortest.Fault{Pause: 5 * time.Millisecond})
	failed := make(chan error, 1)
	go func() {
		resp, err := s.get(context.Background(), bigModule)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		failed <- err
	}()
	waitFor(t, "the upstream is asked for the zip", func() bool { return up.Count("*.zip") > 0 && partial(t, s.dir) > 0 })
	s.stop(syscall.SIGKILL)
	if err := <-failed; err == nil {
		t.Error("the download ended well though its gateway was killed")
	}
	visible(t, s.dir)

	up.Clear()
	s.start()
	if n := partial(t, s.dir); n != 0 {
		t.Errorf("%d unfinished files are left after the restart", n)
	}
	if status, body := s.body(bigModule); status != http.StatusOK || len(body) < 24<<20 {
		t.Errorf("after the restart: status %d, %d bytes", status, len(body))
	}
	if code := s.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code after SIGTERM is %d", code)
	}
	if out, err := s.headgate("audit", "verify"); err != nil {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
	recorded := decisions(t, s.dir)
	for _, id := range answered {
		if recorded[id] == 0 {
			t.Errorf("decision %s was answered and is not in the log", id)
		}
	}
}

// partial counts the drafts in the store.
func partial(t *testing.T, dir string) (n int) {
	t.Helper()
	walk(t, dir, func(path string) {
		if strings.Contains(path, "/public/.tmp/") {
			n++
		}
	})
	return n
}

// visible fails if a zip can be seen.
func visible(t *testing.T, dir string) {
	t.Helper()
	walk(t, dir, func(path string) {
		if strings.HasSuffix(path, ".zip") {
			t.Errorf("%s is visible though its download was cut", path)
		}
	})
}

func walk(t *testing.T, dir string, visit func(string)) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "state", "store"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			visit(path)
		}
		return nil // files come and go while the gateway runs
	})
	if err != nil {
		t.Fatal(err)
	}
}

// decisions counts the decision records of the log by what a client is shown of their id.
func decisions(t *testing.T, dir string) map[string]int {
	t.Helper()
	ids := map[string]int{}
	err := audit.Tail(context.Background(), filepath.Join(dir, "state", "audit"), audit.TailOptions{}, func(e audit.Entry) error {
		var r audit.Record
		if err := json.Unmarshal(e.Raw, &r); err != nil {
			return err
		}
		if r.Kind == audit.KindDecision {
			ids[strings.ToLower(r.EventID[:8])]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %s it is still not so: %s", patience, what)
		}
	}
}

// A3, A56, T71: the audit disk is full. Requests are 503 with a reason, never 404, nothing is fetched; the log says why;
// service returns by itself when space does.
func TestT71AuditDiskFull(t *testing.T) {
	volume := tmpfs(t, "12m")
	up := mirrortest.Start(t, "module example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n")
	s := newSite(t, up, "audit: {dir: "+volume+"/audit, segment_bytes: 1048576}\n")
	const path = "/example.com/hello/@v/v1.0.0.mod"
	if status, body := s.body(path); status != http.StatusOK {
		t.Fatalf("before: status %d: %s", status, body)
	}
	filler := filepath.Join(volume, "filler")
	fill(t, filler)
	waitFor(t, "requests are refused", func() bool { status, _ := s.body(path); return status == http.StatusServiceUnavailable })
	up.Forget()
	status, body := s.body("/example.com/hello/@v/v1.0.0.zip")
	if status != http.StatusServiceUnavailable || !strings.HasPrefix(body, "AUDIT-DOWN: ") {
		t.Errorf("full: status %d, body %q; want 503 AUDIT-DOWN", status, body)
	}
	if n := up.Count("*"); n != 0 {
		t.Errorf("full: upstream was asked %d times for answers that cannot be given", n)
	}
	resp, err := http.Get("http://127.0.0.1:" + s.operations + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("full: readyz is %d, want 503", resp.StatusCode)
	}
	if !strings.Contains(s.gateway.output.String(), "audit") {
		t.Errorf("the log does not say why:\n%s", s.gateway.output)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "service returns", func() bool { status, _ := s.body(path); return status == http.StatusOK })
	if code := s.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code is %d", code)
	}
	if out, err := s.headgate("audit", "verify"); err != nil {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
	if out, err := s.headgate("audit", "tail", "-n", "0"); err != nil || !strings.Contains(out, "disk_full") {
		t.Errorf("the log has no control record disk_full: %v\n%s", err, out)
	}
}

// A full store: what is there is served, a cold file is 503 with a reason, never 404 or the upstream's fault, and the
// gateway goes on by itself when space returns.
func TestStoreDiskFull(t *testing.T) {
	t.Parallel()
	volume := tmpfs(t, "6m")
	up := mirrortest.Start(t, helloModule, "module example.com/cold@v1.0.0\n-- go.mod --\nmodule example.com/cold\n")
	s := newSite(t, up, "")
	s.stop(syscall.SIGTERM)
	file := filepath.Join(s.dir, "headgate.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "mirror: {", "mirror: {store: "+volume+", ", 1))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	if status, body := s.body("/example.com/hello/@v/v1.0.0.zip"); status != http.StatusOK {
		t.Fatalf("before: status %d: %s", status, body)
	}
	fill(t, filepath.Join(volume, "filler"))
	for _, path := range []string{"/example.com/cold/@v/v1.0.0.zip", "/example.com/cold/@v/v1.0.0.info", "/example.com/cold/@v/v1.0.0.mod"} {
		if status, body := s.body(path); status != http.StatusServiceUnavailable || !strings.HasPrefix(body, "STORE-DOWN: ") {
			t.Errorf("full: %s: status %d, body %q; want 503 STORE-DOWN", path, status, body)
		}
	}
	if status, _ := s.body("/example.com/hello/@v/v1.0.0.zip"); status != http.StatusOK {
		t.Errorf("full: what is in the store is answered %d", status)
	}
	if err := os.Remove(filepath.Join(volume, "filler")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a cold file is taken in", func() bool { status, _ := s.body("/example.com/cold/@v/v1.0.0.zip"); return status == http.StatusOK })
}

// tmpfs is a small file system of the test's own, which needs root.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mounting a small tmpfs: %v; this test needs root, or: unshare -rm make test", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill writes to a file until the file system is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
}
