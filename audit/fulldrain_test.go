package audit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/audit/sinks"
	"github.com/headgate/headgate/audit/sinks/sinkstest"
)

// A4: on a disk that is full, sinks still drain and their cursors move on; so segments past their retention can go, and
// the log takes records again by itself.
func TestA4FullDiskDrains(t *testing.T) {
	t.Parallel()
	volume := t.TempDir()
	if err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=16m,mode=700"); err != nil {
		t.Fatalf("mounting a tmpfs (this test has to run as root, with the right to mount): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(volume, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	cfg := withSinks(t)
	cfg.Dir, cfg.SegmentBytes = filepath.Join(volume, "audit"), minSegment
	l, err := Open(cfg, Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // where the test did not
	const records = 2500
	for range records {
		r := benchRecord()
		r.Module, r.Version, r.Client.Agent = noise(), noise(), noise()
		if err := l.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	sealNow(t, l)
	firsts := l.packedAll(t)
	filler := filepath.Join(volume, "filler")
	useUp(t, filler)
	eventually(t, "the log refuses", func() bool { return l.Writable() != nil })
	leave(t, filler, cfg.SegmentBytes/2) // the ballast's room, which the filler may have taken
	if err := l.Append(t.Context(), benchRecord()); !errors.Is(err, errFull) {
		t.Fatalf("Append on a full disk: %v", err)
	}
	if err := l.expire(year()); err != nil {
		t.Fatalf("expire before anything is delivered: %v", err)
	}
	if got := l.packedAll(t); got[0] != firsts[0] {
		t.Fatalf("records that no sink has delivered are removed, up to %d", got[0])
	}

	e, err := l.Export(sinks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sink drains", func() bool {
		at, err := sinks.Delivered(cfg.Dir, "soc")
		return err == nil && at.Next >= records
	})
	if err := l.Writable(); err == nil {
		t.Fatal("there was room all the time: nothing is shown")
	}
	if err := l.expire(year()); err != nil {
		t.Fatalf("expire on a full disk: %v", err)
	}
	if got := l.packedAll(t); got[0] != firsts[len(firsts)-1] {
		t.Errorf("first record left is %d, want %d", got[0], firsts[len(firsts)-1])
	}
	eventually(t, "the log takes records again", func() bool { return l.Writable() == nil })
	if err := l.Append(t.Context(), benchRecord()); err != nil {
		t.Errorf("Append: %v", err)
	}
	if err := errors.Join(e.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(context.Background(), cfg.Dir, VerifyOptions{}); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

// A4: the same where not one byte is free and the ballast is gone: the cursor has its room.
func TestA4FullDiskDrainsWithoutAFreeByte(t *testing.T) {
	t.Parallel()
	volume, mended := t.TempDir(), make(chan struct{})
	if err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=11m,mode=700"); err != nil {
		t.Fatalf("mounting a tmpfs (this test has to run as root, with the right to mount): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(volume, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	elastic := &sinkstest.Elastic{}
	elastic.Set(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		select {
		case <-mended:
			return false
		case <-r.Context().Done():
			return true
		}
	})
	server := httptest.NewServer(elastic)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, []byte("right"))
	cfg := Config{Dir: filepath.Join(volume, "audit"), SegmentBytes: minSegment, Sinks: []sinks.Config{
		{Name: "soc", Type: "elasticsearch", URL: server.URL, Index: "logs-headgate", TokenFile: token},
	}}
	l, err := Open(cfg, Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // where the test did not
	e, err := l.Export(sinks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const records = 1000
	for range records {
		r := benchRecord()
		r.Module, r.Version, r.Client.Agent = noise(), noise(), noise()
		if err := l.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	sealNow(t, l)
	l.packedAll(t)
	filler := filepath.Join(volume, "filler")
	useUp(t, filler)
	still := 0
	eventually(t, "not one byte is free, nor will be in the next round of upkeep", func() bool {
		if info, err := os.Stat(l.ballast()); err == nil && info.Size() == 0 && room(t, volume) == 0 {
			still++
			return still > 120
		}
		still = 0
		if err := l.dropBallast(); err != nil {
			t.Fatal(err)
		}
		useUp(t, filler)
		return false
	})
	if at, err := sinks.Delivered(cfg.Dir, "soc"); err != nil || at.Next != 0 {
		t.Fatalf("the sink has delivered up to %+v, %v: nothing is shown", at, err)
	}
	close(mended)
	eventually(t, "the sink drains", func() bool {
		at, err := sinks.Delivered(cfg.Dir, "soc")
		return err == nil && at.Next >= records
	})
	if free := room(t, volume); free > 0 {
		t.Fatalf("%d bytes are free: nothing is shown", free)
	}
	leave(t, filler, cfg.SegmentBytes/2) // for the last checkpoint
	if err := errors.Join(e.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
}

// room is how many bytes a volume has left.
func room(t *testing.T, volume string) int64 {
	t.Helper()
	var v syscall.Statfs_t
	if err := syscall.Statfs(volume, &v); err != nil {
		t.Fatal(err)
	}
	return int64(v.Bavail) * v.Bsize
}

// noise is a text of 1,000 bytes that does not compress well.
func noise() string {
	b := make([]byte, 750)
	_, _ = rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// packedAll waits until all segments but the active one are packed, and lists all.
func (l *Log) packedAll(t *testing.T) (firsts []int64) {
	t.Helper()
	eventually(t, "sealed segments are packed", func() bool {
		var err error
		if firsts, err = l.layout.list(); err != nil {
			t.Fatal(err)
		}
		for _, first := range firsts[:len(firsts)-1] {
			if exists(l.layout.segment(first)) {
				return false
			}
		}
		return true
	})
	return firsts
}

// useUp makes a file longer until its volume has no room.
func useUp(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
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

// leave shortens the filler until its volume has n bytes free.
func leave(t *testing.T, name string, n int64) {
	t.Helper()
	var v syscall.Statfs_t
	info, err := os.Stat(name)
	if err == nil {
		err = syscall.Statfs(name, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	if less := n - int64(v.Bavail)*v.Bsize; less > 0 {
		if err := os.Truncate(name, info.Size()-less); err != nil {
			t.Fatal(err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}
