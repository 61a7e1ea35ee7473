package mirror_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// operations of care, each with how many write steps apart it is killed.
var operations = map[string]struct {
	stride int
	do     func(ctx context.Context, m *mirror.Mirror, source string) error
}{
	"import": {19, func(ctx context.Context, m *mirror.Mirror, source string) error {
		_, err := m.Import(ctx, mirror.ImportOptions{Source: source})
		return err
	}},
	"gc": {3, func(ctx context.Context, m *mirror.Mirror, source string) error {
		_, err := m.Collect(ctx, mirror.CollectOptions{MaxBytes: 1})
		return err
	}},
	"purge": {1, func(ctx context.Context, m *mirror.Mirror, source string) error {
		_, err := m.Purge(ctx, version("example.com/m0", "v1.0.0"))
		return err
	}},
}

// TestCareKilled runs an operation in a child that is killed between two write
// steps, then between two later ones, until it comes to its end. Whatever it
// leaves behind is whole, and the operation can be done again.
func TestCareKilled(t *testing.T) {
	src, up := filled(t, 3)
	source := t.TempDir()
	copyTree(t, source, filepath.Join(src.cfg.Store, "public"))
	for what, o := range operations {
		t.Run("E16 "+what, func(t *testing.T) {
			kills := 0
			for step := 0; ; step += o.stride {
				dir := t.TempDir()
				if what != "import" {
					b := careBench(t, dir, up)
					if _, err := b.Import(t.Context(), mirror.ImportOptions{Source: source}); err != nil {
						t.Fatal(err)
					}
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				}
				killed := careAndDie(t, dir, up.Key(), source, what, step)
				looksSound(t, careBench(t, dir, up), source, what, step)
				if !killed {
					break
				}
				kills++
			}
			if kills < 2 {
				t.Errorf("%s was killed %d times, want more: the child does not report its steps", what, kills)
			}
		})
	}
}

// careBench is an island over a folder, with its database in it.
func careBench(t *testing.T, dir string, up *mirrortest.Server) *bench {
	t.Helper()
	b := &bench{up: up, cfg: mirror.Config{Offline: true, Sumdb: []string{up.Key()}, Store: filepath.Join(dir, "store")}}
	b.open(t, func(_ *mirror.Config, o *mirror.Options) {
		o.DB, o.State, o.Host = statetest.OpenAt(t, filepath.Join(dir, "state.db")), dir, "localhost"
	})
	return b
}

func careAndDie(t *testing.T, dir, key, source, what string, step int) (killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildCares$")
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "CARE_DIR="+dir, "CARE_KEY="+key, "CARE_SOURCE="+source, "CARE_WHAT="+what, "CARE_STEP="+strconv.Itoa(step))
	out, err := cmd.CombinedOutput()
	killed = strings.Contains(fmt.Sprint(err), "killed")
	if err != nil && !killed {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return killed
}

func TestChildCares(t *testing.T) {
	dir := os.Getenv("CARE_DIR")
	if dir == "" {
		return // only as a child of TestCareKilled
	}
	deadly, err := strconv.Atoi(os.Getenv("CARE_STEP"))
	if err != nil {
		t.Fatal(err)
	}
	steps := make(chan int, 1) // of one: writers come from many goroutines
	steps <- -1 << 30          // not before the operation begins
	o := mirror.Options{DB: statetest.OpenAt(t, filepath.Join(dir, "state.db")), State: dir, Host: "localhost"}
	o.WithStep(func(string) {
		n := <-steps
		if n == deadly {
			// As the kernel's kill -9: nothing runs after it.
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			select {}
		}
		steps <- n + 1
	})
	m, err := mirror.New(t.Context(), mirror.Config{Offline: true, Sumdb: []string{os.Getenv("CARE_KEY")}, Store: filepath.Join(dir, "store")}, o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	<-steps
	steps <- 0
	if err := operations[os.Getenv("CARE_WHAT")].do(t.Context(), m, os.Getenv("CARE_SOURCE")); err != nil {
		t.Fatal(err)
	}
}

// looksSound reads every file again, does the operation again, and takes everything in once more.
func looksSound(t *testing.T, b *bench, source, what string, step int) {
	t.Helper()
	if r, err := b.Scrub(t.Context(), mirror.ScrubOptions{}); err != nil || r.Failed > 0 {
		t.Fatalf("%s killed at step %d: Scrub = %+v, %v", what, step, r, err)
	}
	if err := operations[what].do(t.Context(), b.Mirror, source); err != nil {
		t.Fatalf("%s again after step %d: %v", what, step, err)
	}
	if r, err := b.Import(t.Context(), mirror.ImportOptions{Source: source}); err != nil || r.Failed > 0 {
		t.Fatalf("import after %s killed at step %d: %+v, %v", what, step, r, err)
	}
	for i := range 3 {
		b.fill(t, fmt.Sprintf("/example.com/m%d/@v/v1.0.0", i))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSoakImport imports the module cache that HEADGATE_GOMODCACHE names, with
// records from the public database unless they are in it, prints the speed,
// and serves all of it without asking anybody. Without one it makes a small cache itself.
func TestSoakImport(t *testing.T) {
	cache, cfg := os.Getenv("HEADGATE_GOMODCACHE"), mirror.Config{Upstreams: strings.Split(os.Getenv("GOPROXY"), ",")}
	if os.Getenv("SOAK") == "" || cache == "" {
		src, up := filled(t, 50)
		cache = filepath.Join(src.cfg.Store, "public")
		cfg = mirror.Config{Upstreams: []string{up.URL}, Sumdb: []string{up.Key()}}
	}
	cfg.Store = t.TempDir()
	db, state := statetest.OpenAt(t, filepath.Join(cfg.Store, "state.db")), t.TempDir()
	m, err := mirror.New(t.Context(), cfg, mirror.Options{DB: db, State: state, Host: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	r, err := m.Import(t.Context(), mirror.ImportOptions{Source: cache})
	took := time.Since(begun)
	if err != nil || r.Versions == 0 {
		t.Fatalf("Import = %+v, %v", r, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	t.Logf("imported %d versions, %d files, %.1f MB in %s: %.1f MB/s; failed %d; heap from the system %.1f MB", r.Versions, r.Files,
		float64(r.Bytes)/1e6, took.Round(time.Millisecond), float64(r.Bytes)/1e6/took.Seconds(), r.Failed, float64(now.HeapSys)/1e6)
	for i, f := range r.Failures {
		if i < 5 {
			t.Logf("failed: %s@%s %s: %s", f.Module, f.Version, f.File, f.Reason)
		}
	}
	cfg.Upstreams, cfg.Offline = nil, true
	if m, err = mirror.New(t.Context(), cfg, mirror.Options{DB: db, State: state, Host: "localhost"}); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	served := 0
	root := os.DirFS(filepath.Join(cfg.Store, "public"))
	if err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(name, ".") || strings.Contains(name, "/latest") || strings.HasSuffix(name, "hash") || strings.HasSuffix(name, ".sha256") {
			return err
		}
		target, err := m.ParseTarget("/" + name)
		if err != nil {
			return nil //nolint:nilerr // no file of the protocol
		}
		f, err := m.Open(t.Context(), target)
		if err != nil {
			return fmt.Errorf("serving %s: %w", name, err)
		}
		served++
		return f.Close()
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("served %d files, lists, records and tiles without anybody to ask", served)
	if int64(served) < r.Files {
		t.Errorf("%d files were served, want at least the %d that came in", served, r.Files)
	}
}
