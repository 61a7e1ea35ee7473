package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

func TestKilledAtEveryWrite(t *testing.T) {
	t.Run("E16 N8 all files of a version", killedAtEveryWrite)
}

// killedAtEveryWrite lets a child take in one version and kills it at the
// first step of all its writes, at the second, and so on until it survives.
func killedAtEveryWrite(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	want := map[string]int{}
	steps := 0
	for killed := true; killed; steps++ {
		dir := t.TempDir()
		killed = takeInAndDie(t, up, dir, steps)
		for _, f := range visibleFiles(t, dir, "example.com/m") {
			want[f]++
		}
		opensWhole(t, up, dir, steps)
	}
	t.Logf("killed at each of %d steps of all writes", steps-1)
	for _, f := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip", "v1.0.0.zip.sha256", "v1.0.0.ziphash"} {
		if n := want[f]; n == 0 || n >= steps {
			t.Errorf("%s was there after %d of %d kills; some must come before it and some after", f, n, steps)
		}
	}
}

// takeInAndDie runs the child; killed tells whether it died of the signal.
func takeInAndDie(t *testing.T, up *mirrortest.Server, dir string, step int) (killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildTakesIn$")
	cmd.Env = append(os.Environ(), "MIRROR_DIR="+dir, "MIRROR_UP="+up.URL, "MIRROR_KEY="+up.Key(), "MIRROR_STEP="+strconv.Itoa(step))
	out, err := cmd.CombinedOutput()
	killed = strings.Contains(fmt.Sprint(err), "killed")
	if err != nil && !killed {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return killed
}

// visibleFiles are those of a module, as who reads the folder sees them: the
// real go command finds whole versions in it or none.
func visibleFiles(t *testing.T, dir, path string) (names []string) {
	t.Helper()
	public := filepath.Join(dir, "public")
	entries, err := os.ReadDir(filepath.Join(public, path, "@v"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Contains(names, "v1.0.0.zip") || !slices.Contains(names, "v1.0.0.info") {
		return names
	}
	cache := mirrortest.Home(t)
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", path+"@v1.0.0")
	cmd.Dir = cache
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + cache, "GOPROXY=file://" + public, "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local",
		"GOMODCACHE=" + filepath.Join(cache, "mod"), "GOCACHE=" + filepath.Join(cache, "build"), "GONOSUMDB=*", "GOVCS=*:off",
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("N8: the go command on file://: %v\n%s", err, out)
	}
	return names
}

// opensWhole opens the store again: no draft is left, no note stands beside a
// zip that is not there, and the version is served with its hashes.
func opensWhole(t *testing.T, up *mirrortest.Server, dir string, step int) {
	t.Helper()
	m, err := mirror.New(t.Context(), mirror.Config{Upstreams: []string{up.URL}, Sumdb: []string{up.Key()}, Store: dir}, mirror.Options{})
	if err != nil {
		t.Fatalf("step %d: %v", step, err)
	}
	defer m.Close()
	if left, err := filepath.Glob(filepath.Join(dir, "*", ".tmp", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("step %d: drafts left: %v, %v", step, left, err)
	}
	names := filepath.Join(dir, "public", "example.com", "m", "@v", "v1.0.0.zip")
	if _, err := os.Stat(names); errors.Is(err, fs.ErrNotExist) {
		for _, beside := range []string{names + ".sha256", strings.TrimSuffix(names, ".zip") + ".ziphash"} {
			if _, err := os.Stat(beside); err == nil {
				t.Errorf("step %d: orphan %s", step, filepath.Base(beside))
			}
		}
	}
	for kind, hash := range map[mirror.Kind]string{mirror.Info: "sha256:", mirror.Mod: "h1:", mirror.Zip: "h1:"} {
		f, err := m.Open(t.Context(), mirror.Target{Path: "example.com/m", Version: "v1.0.0", Kind: kind})
		if err != nil {
			t.Errorf("step %d: %v", step, err)
			continue
		}
		if !strings.HasPrefix(f.Hash, hash) || len(f.ETag) != 66 {
			t.Errorf("step %d: %s has hash %q and ETag %s", step, kind, f.Hash, f.ETag)
		}
		f.Close()
	}
}

func TestChildTakesIn(t *testing.T) {
	dir := os.Getenv("MIRROR_DIR")
	if dir == "" {
		return // only as a child of TestKilledAtEveryWrite
	}
	deadly, err := strconv.Atoi(os.Getenv("MIRROR_STEP"))
	if err != nil {
		t.Fatal(err)
	}
	var o mirror.Options
	var step atomic.Int64 // tiles are written beside files
	o.WithStep(func(string) {
		if step.Add(1) > int64(deadly) {
			// As the kernel's kill -9: nothing runs after it.
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			select {}
		}
	})
	m, err := mirror.New(t.Context(), mirror.Config{Upstreams: []string{os.Getenv("MIRROR_UP")}, Sumdb: []string{os.Getenv("MIRROR_KEY")}, Store: dir}, o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, k := range []mirror.Kind{mirror.Info, mirror.Mod, mirror.Zip} {
		f, err := m.Open(context.Background(), mirror.Target{Path: "example.com/m", Version: "v1.0.0", Kind: k})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
