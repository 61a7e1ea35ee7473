package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A forgetfulDisk is the real disk with a memory of what would be there after a power cut: of files what was synced, of
// folders the names that stood there when they were synced.
type forgetfulDisk struct {
	osDisk
	mu      sync.Mutex        // guards all below
	live    map[string]*inode // by name
	durable map[string]*inode
}

// An inode is a file whatever its name is.
type inode struct {
	durable []byte
	pending []func(*inode) // what happened since it was synced
}

func newForgetfulDisk() *forgetfulDisk {
	return &forgetfulDisk{live: map[string]*inode{}, durable: map[string]*inode{}}
}

func (d *forgetfulDisk) create(name string) (file, error) {
	f, err := d.osDisk.create(name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live[name] == nil {
		d.live[name] = &inode{}
	}
	return &forgetfulFile{file: f, disk: d, inode: d.live[name]}, nil
}

func (d *forgetfulDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.osDisk.rename(from, to); err != nil {
		return err
	}
	d.live[to] = d.live[from]
	delete(d.live, from)
	return nil
}

func (d *forgetfulDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.osDisk.remove(name); err != nil {
		return err
	}
	delete(d.live, name)
	return nil
}

func (d *forgetfulDisk) syncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, names := range []map[string]*inode{d.durable, d.live} {
		for file := range names {
			if filepath.Dir(file) == name {
				if d.live[file] == nil {
					delete(d.durable, file)
				} else {
					d.durable[file] = d.live[file]
				}
			}
		}
	}
	return nil
}

// cut writes what is left after a power cut into another folder.
func (d *forgetfulDisk) cut(t *testing.T, dir, into string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, i := range d.durable {
		rel, err := filepath.Rel(dir, name)
		if err != nil || strings.HasPrefix(rel, "..") {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(into, rel)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(into, rel), i.durable, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

type forgetfulFile struct {
	file
	disk  *forgetfulDisk
	inode *inode
}

func (f *forgetfulFile) later(did func(*inode)) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.inode.pending = append(f.inode.pending, did)
}

func (i *inode) resize(size int64) {
	i.durable = append(i.durable[:min(size, int64(len(i.durable)))], make([]byte, max(size-int64(len(i.durable)), 0))...)
}

func (f *forgetfulFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.file.WriteAt(p, off)
	data := slices.Clone(p[:n])
	f.later(func(i *inode) {
		if end := off + int64(len(data)); end > int64(len(i.durable)) {
			i.resize(end)
		}
		copy(i.durable[off:], data)
	})
	return n, err
}

func (f *forgetfulFile) Truncate(size int64) error {
	f.later(func(i *inode) { i.resize(size) })
	return f.file.Truncate(size)
}

func (f *forgetfulFile) allocate(size int64) error {
	f.later(func(i *inode) { i.resize(max(size, int64(len(i.durable)))) })
	return f.file.allocate(size)
}

func (f *forgetfulFile) datasync() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	for _, did := range f.inode.pending {
		did(f.inode)
	}
	f.inode.pending = nil
	return nil
}

// A11: of a disk that drops whatever was not synced, each acknowledged record is there after a power cut at any moment.
func TestA11ForgetfulDisk(t *testing.T) {
	dir, d := t.TempDir(), newForgetfulDisk()
	l, err := open(smallConfig(dir), Options{Cluster: "test", Node: "n1"}, d)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	acknowledged := []string{}
	var writers sync.WaitGroup
	const each = 250
	for range 8 {
		writers.Go(func() {
			for range each {
				r := benchRecord()
				if err := l.Append(t.Context(), r); err != nil {
					t.Errorf("Append: %v", err)
					return
				}
				mu.Lock()
				acknowledged = append(acknowledged, r.EventID)
				mu.Unlock()
			}
		})
	}
	cuts := 0
	for at := 0; at < 8*each; {
		mu.Lock()
		n := len(acknowledged)
		want := slices.Clone(acknowledged)
		mu.Unlock()
		if n < at && !t.Failed() {
			runtime.Gosched()
			continue
		}
		at += 170
		left := filepath.Join(t.TempDir(), fmt.Sprint("after", n))
		d.cut(t, dir, left)
		wantAfterCut(t, left, want)
		cuts++
	}
	writers.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(t.TempDir(), "after")
	d.cut(t, dir, left)
	wantAfterCut(t, left, acknowledged)
	if cuts < 10 || l.Rotations() == 0 {
		t.Errorf("%d cuts, %d rotations; want several", cuts, l.Rotations())
	}
}

// wantAfterCut opens what is left and looks for all that was acknowledged before the cut.
func wantAfterCut(t *testing.T, dir string, acknowledged []string) {
	t.Helper()
	l, err := open(smallConfig(dir), Options{Cluster: "test", Node: "n1"}, osDisk{})
	if err != nil {
		t.Fatalf("Open after a cut behind %d records: %v", len(acknowledged), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	there := eventIDs(t, dir)
	for _, id := range acknowledged {
		if _, ok := there[id]; !ok {
			t.Fatalf("record %s was acknowledged and is gone", id)
		}
	}
	if _, err := Verify(t.Context(), dir, VerifyOptions{}); err != nil {
		t.Errorf("Verify after a cut: %v", err)
	}
}
