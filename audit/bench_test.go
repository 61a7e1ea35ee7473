package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// benchRecord is a record of ordinary size.
func benchRecord() *Record {
	r := Begin("")
	r.Kind = KindDecision
	r.PolicyRev, r.BundleSHA256 = "4f2c9d1", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	r.Action, r.Method = "zip", "GET"
	r.Module, r.Version, r.Path = "example.com/some/module", "v1.2.3", "/example.com/some/module/@v/v1.2.3.zip"
	r.Subject = Subject{ID: "user-17", Kind: "person", Issuer: "corp", Groups: []string{"eng", "payments"}}
	r.Credential = Credential{Class: "user", ID: "a1b2c3d4", FP: "0011aabb:00112233445566778899aabbccddeeff", Via: "basic"}
	r.Device = Device{ID: "laptop-9", State: "trusted", Tier: 2, Via: "token"}
	r.Client = Client{IP: "192.0.2.7", Port: 51234, Agent: "Go-http-client/1.1"}
	r.Decision = Decision{Effect: "allow", Stage: "release", Codes: []string{"OK"}, Status: 200}
	r.Eval = Eval{Entry: []string{"access", "release"}, Cached: true, NS: 812, KeyHash: "9f86d081884c7d65"}
	r.Input = json.RawMessage(`{"subject":{"team":"payments","type":"person"},"action":{"class":"zip"}}`)
	r.File = File{H1: "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", Size: 12345, Cache: "memory"}
	return r
}

func BenchmarkEncode(b *testing.B) {
	e := &encoder{secrets: newSecrets(make([]byte, 32))}
	r := benchRecord()
	b.ReportAllocs()
	b.SetBytes(int64(len(e.encode(r, "n1"))))
	for b.Loop() {
		e.encode(r, "n1")
	}
}

// BenchmarkIndexed is what a record costs once more after its segment was sealed.
func BenchmarkIndexed(b *testing.B) {
	record := (&encoder{secrets: newSecrets(make([]byte, 32))}).encode(benchRecord(), "n1")
	var parser briefParser
	x := newIndexer(0)
	b.ReportAllocs()
	b.SetBytes(int64(len(record)))
	for b.Loop() {
		brief, err := parser.parse(record)
		if err != nil {
			b.Fatal(err)
		}
		if x.count == 1<<16 {
			x = newIndexer(0)
		}
		if err := x.add(brief, [32]byte{}, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStamp(b *testing.B) {
	e := &encoder{secrets: newSecrets(make([]byte, 32))}
	buf := appendFrame(nil, KindDecision, e.encode(benchRecord(), "n1"))
	var tree edge
	b.ReportAllocs()
	for b.Loop() {
		leaf, _ := stampFrame(buf, true, tree.size, 1, tree.roots[0])
		tree.push(leaf)
	}
}

// BenchmarkAppend compares Append with a bare group-commit loop on the same disk in the same run: the loop writes the
// same number of bytes for each caller, and does nothing else.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 16, 128, 1024} {
		b.Run(fmt.Sprintf("log/callers=%d", callers), func(b *testing.B) { benchmarkLog(b, callers) })
		b.Run(fmt.Sprintf("bare/callers=%d", callers), func(b *testing.B) { benchmarkBare(b, callers) })
	}
}

func benchmarkLog(b *testing.B, callers int) {
	l, err := Open(Config{Dir: b.TempDir(), SegmentBytes: 512 << 20}, Options{Node: "n1"})
	if err != nil {
		b.Fatal(err)
	}
	for { // measure the log, not the zeros of the next segment
		l.spareMu.Lock()
		ready := l.spare
		l.spareMu.Unlock()
		if ready {
			break
		}
		runtime.Gosched()
	}
	r := benchRecord()
	drive(b, callers, func() error { return l.Append(context.Background(), r) })
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}

// drive calls do b.N times from callers goroutines.
func drive(b *testing.B, callers int, do func() error) {
	b.ReportAllocs()
	var wg sync.WaitGroup
	work := make([]int, callers)
	for i := range b.N {
		work[i%callers]++
	}
	b.ResetTimer()
	for _, n := range work {
		wg.Go(func() {
			for range n {
				if err := do(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// bareLog is group commit and nothing else: a buffer, one writer, one write and fdatasync for whatever is there.
type bareLog struct {
	mu   sync.Mutex
	buf  []byte
	done chan struct{}
	wake chan struct{}
}

func benchmarkBare(b *testing.B, callers int) {
	f, err := osDisk{}.create(filepath.Join(b.TempDir(), "bare"))
	if err != nil {
		b.Fatal(err)
	}
	zero := make([]byte, 1<<20)
	for i := range int64(512) {
		if _, err := f.WriteAt(zero, i<<20); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.datasync(); err != nil {
		b.Fatal(err)
	}
	e := &encoder{secrets: newSecrets(make([]byte, 32))}
	record := appendFrame(nil, KindDecision, e.encode(benchRecord(), "n1"))
	log := &bareLog{done: make(chan struct{}), wake: make(chan struct{}, 1)}
	var writer sync.WaitGroup
	writer.Go(func() { log.write(b, f) })
	drive(b, callers, func() error {
		log.mu.Lock()
		log.buf = append(log.buf, record...)
		done := log.done
		log.mu.Unlock()
		select {
		case log.wake <- struct{}{}:
		default:
		}
		<-done
		return nil
	})
	close(log.wake)
	writer.Wait()
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

func (l *bareLog) write(b *testing.B, f file) {
	off, spare := int64(0), []byte(nil)
	for range l.wake {
		l.mu.Lock()
		buf, done := l.buf, l.done
		l.buf, l.done = spare[:0], make(chan struct{})
		l.mu.Unlock()
		if len(buf) > 0 {
			if _, err := f.WriteAt(buf, off); err != nil {
				b.Error(err)
			}
			if err := f.datasync(); err != nil {
				b.Error(err)
			}
			off = (off + int64(len(buf))) % (500 << 20)
		}
		close(done)
		spare = buf
	}
}

func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(Config{Dir: dir}, Options{Node: "n1"})
	if err != nil {
		b.Fatal(err)
	}
	const records = 100_000
	for range records {
		l.Note(benchRecord())
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		b.Fatal(err)
	}
	start, rounds := time.Now(), 0
	for b.Loop() {
		if _, err := Verify(context.Background(), dir, VerifyOptions{}); err != nil {
			b.Fatal(err)
		}
		rounds++
	}
	b.ReportMetric(float64(rounds*records)/time.Since(start).Seconds(), "records/s")
}
