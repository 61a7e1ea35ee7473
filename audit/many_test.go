package audit

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// A crowd makes records as a large company would: few modules are asked for by all, most by few.
type crowd struct {
	rng      *rand.Rand
	zipf     *rand.Zipf
	subjects []string
	devices  []string
	modules  []string
	versions []string
	t        int64
}

const popular = "example.com/team0/module0"

func newCrowd(start time.Time) *crowd {
	rng := rand.New(rand.NewPCG(50, 1_000_000))
	c := &crowd{rng: rng, zipf: rand.NewZipf(rng, 1.2, 8, 19_999), t: start.UnixNano()}
	for i := range 5000 {
		c.subjects = append(c.subjects, fmt.Sprintf("00u%08xf%04d", i*7919, i))
		c.devices = append(c.devices, fmt.Sprintf("dev-%06d", i*13))
	}
	for i := range 20_000 {
		c.modules = append(c.modules, fmt.Sprintf("example.com/team%d/module%d", i%40, i))
	}
	for i := range 30 {
		c.versions = append(c.versions, fmt.Sprintf("v1.%d.%d", i/4, i%4))
	}
	return c
}

// next is another decision, a millisecond later.
func (c *crowd) next(b *brief) {
	person := c.rng.IntN(len(c.subjects))
	*b = brief{
		Kind: KindDecision, EventID: strconv.FormatUint(c.rng.Uint64()|1<<63, 32), T: c.t, Method: "GET",
		Action: [...]string{"mod", "zip", "info"}[c.rng.IntN(3)],
		Module: c.modules[c.zipf.Uint64()], Version: c.versions[min(c.rng.IntN(60), 29)],
	}
	b.Subject, b.Issuer, b.Device = c.subjects[person], "corp", c.devices[person]
	b.Effect = "allow"
	if c.rng.IntN(50) == 0 {
		b.Effect, b.Codes = "deny", []string{"VERSION-TOO-NEW"}
	}
	c.t += int64(time.Millisecond)
}

// writeIndexes writes the indexes of sealed segments without their records, which who never reads, and an empty active
// segment. It returns how often the popular module was asked for, and the indexes' size.
func writeIndexes(t testing.TB, dir string, segments, each int) (asked, size int64) {
	t.Helper()
	l := layout{dir: dir}
	if err := os.MkdirAll(l.segments(), 0o700); err != nil {
		t.Fatal(err)
	}
	c := newCrowd(time.Unix(1_700_000_000, 0))
	var b brief
	for i := range segments {
		x := newIndexer(int64(i * each))
		for n := range each {
			c.next(&b)
			if b.Module == popular {
				asked++
			}
			var leaf tlog.Hash
			binary.LittleEndian.PutUint64(leaf[:], uint64(i*each+n))
			if err := x.add(&b, leaf, int64(n)*800); err != nil {
				t.Fatal(err)
			}
		}
		encoded := x.encode()
		size += int64(len(encoded))
		write(t, l.index(x.first), encoded)
		write(t, l.segment(x.first), nil)
		write(t, l.hashes(x.first), nil)
		if err := os.Truncate(l.hashes(x.first), int64(each)*tlog.HashSize); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(l.hashes(x.first), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(x.head[:], int64(each-1)*tlog.HashSize); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, l.segment(int64(segments*each)), nil)
	return asked, size
}

// TestWhoAmongMany asks who fetched the most popular module, one of its versions, and one that few know, among 50
// million records with SOAK=1, else among 400,000. It prints time and memory; what it judges are the counts.
func TestWhoAmongMany(t *testing.T) {
	segments, each := 4, 100_000
	if os.Getenv("SOAK") != "" {
		segments, each = 275, 182_000
	}
	dir := t.TempDir()
	begun := time.Now()
	asked, size := writeIndexes(t, dir, segments, each)
	records := int64(segments * each)
	t.Logf("%d records in %d segments: indexes of %d MB (%.1f B a record) made in %s, %.2f s a segment", records, segments, size>>20,
		float64(size)/float64(records), time.Since(begun).Round(time.Millisecond), time.Since(begun).Seconds()/float64(segments))
	for _, q := range []WhoQuery{
		{Module: popular},
		{Module: popular, Version: "v1.7.1"},
		{Module: popular, Version: "v1.7.1", Delivered: true},
		{Module: "example.com/team39/module19999"},
		{Module: "example.com/nobody"},
	} {
		dropCaches(t, dir)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		answer := who(t, dir, q)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		var count int64
		for _, f := range answer.Fetches {
			count += f.Count
		}
		t.Logf("who %s %s delivered=%v: %d rows of %d fetches in %s, files not in the page cache; %d MB allocated in all, peak resident %s",
			q.Module, q.Version, q.Delivered, len(answer.Fetches), count, took.Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>20, peak(t))
		if answer.Covered.Records != records || answer.Covered.Rebuilt != 0 || len(answer.Covered.Missing) > 0 {
			t.Errorf("covered %+v", answer.Covered)
		}
		if q.Version == "" && q.Module == popular && count != asked {
			t.Errorf("%d fetches of %s, want %d", count, popular, asked)
		}
	}
}

// dropCaches makes the next reads of the indexes come from the disk.
func dropCaches(t testing.TB, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(layout{dir: dir}.segments(), "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := dropCache(f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// peak is the most memory that this process had at once, as the kernel says.
func peak(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(string(read(t, "/proc/self/status"))) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatal("the kernel tells no peak")
	return ""
}

// dropCache writes a file out and asks the kernel to forget it: posix_fadvise(2), POSIX_FADV_DONTNEED.
func dropCache(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
