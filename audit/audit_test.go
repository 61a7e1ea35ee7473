package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/headgate/headgate/audit"
)

// openLog opens a log with small segments.
func openLog(t testing.TB, dir string) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Config{Dir: dir, SegmentBytes: 1 << 20}, audit.Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatalf("Open(%s): %v", dir, err)
	}
	return l
}

func closeLog(t testing.TB, l *audit.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// decision is a record of ordinary size.
func decision(i int) *audit.Record {
	r := audit.Begin("")
	r.Kind = audit.KindDecision
	r.PolicyRev, r.Action, r.Method = "4f2c9d1", "zip", "GET"
	r.Module, r.Version = "example.com/mod"+fmt.Sprint(i), "v1.2.3"
	r.Path = "/example.com/mod" + fmt.Sprint(i) + "/@v/v1.2.3.zip"
	r.Subject = audit.Subject{ID: "user-17", Kind: "person", Issuer: "corp", Groups: []string{"eng", "payments"}}
	r.Credential = audit.Credential{Class: "user", ID: "a1b2c3d4", Via: "basic"}
	r.Device = audit.Device{ID: "laptop-9", State: "trusted", Tier: 2, Via: "token"}
	r.Client = audit.Client{IP: "192.0.2.7", Port: 51234, Agent: "Go-http-client/1.1"}
	r.Decision = audit.Decision{Effect: "allow", Stage: "release", Codes: []string{"OK"}, Status: 200}
	r.Eval = audit.Eval{Entry: []string{"access", "release"}, Cached: true, NS: 812}
	r.Input = json.RawMessage(`{"subject":{"team":"payments","type":"person"},"action":{"class":"zip"}}`)
	r.File = audit.File{H1: "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", Size: 12345, Cache: "memory"}
	return r
}

// readAll returns the log's entries.
func readAll(t testing.TB, dir string) (seqs []int64, raws []string) {
	t.Helper()
	err := audit.Tail(t.Context(), dir, audit.TailOptions{}, func(e audit.Entry) error {
		seqs, raws = append(seqs, e.Seq), append(raws, string(e.Raw))
		return nil
	})
	if err != nil {
		t.Fatalf("Tail(%s): %v", dir, err)
	}
	return seqs, raws
}

func TestAppendedRecordsAreReadAndVerified(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 200 {
				if err := l.Append(context.Background(), decision(w*1000+i)); err != nil {
					t.Errorf("Append: %v", err)
				}
				l.Note(decision(i))
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	seqs, raws := readAll(t, dir)
	if n := strings.Count(strings.Join(raws, "\n"), `"kind":"decision"`); n != 16*200*2 {
		t.Errorf("Tail gave %d decisions, want %d", n, 16*200*2)
	}
	report, err := audit.Verify(t.Context(), dir, audit.VerifyOptions{})
	if err != nil || report.Records != int64(len(seqs)) {
		t.Errorf("Verify = %+v, %v; want %d records", report, err, len(seqs))
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "epoch/0/segment/*.log*")) // .log.zst once packed
	if len(logs) < 3 {
		t.Errorf("%d segments; want several", len(logs))
	}
	l = openLog(t, dir)
	if err := l.Append(t.Context(), decision(1)); err != nil {
		t.Errorf("Append after reopening: %v", err)
	}
	closeLog(t, l)
	if _, err := os.Stat(filepath.Join(dir, "ballast")); err != nil {
		t.Errorf("ballast: %v", err)
	}
	if report, err = audit.Verify(t.Context(), dir, audit.VerifyOptions{}); err != nil || report.Records < int64(len(seqs))+3 {
		t.Errorf("Verify after reopening = %+v, %v", report, err)
	}
}

// Since and Segments begin with a segment, not before: the log of a year is not read for a day.
func TestTailSince(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	for i := range 6000 {
		l.Note(decision(i))
		if i%500 == 0 {
			if err := l.Append(t.Context(), decision(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeLog(t, l)
	read := func(o audit.TailOptions) (all []audit.Entry) {
		t.Helper()
		if err := audit.Tail(t.Context(), dir, o, func(e audit.Entry) error {
			e.Raw = nil
			all = append(all, e)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	all := read(audit.TailOptions{})
	if l.Rotations() < 3 || len(all) < 6000 {
		t.Fatalf("%d rotations, %d records; want several segments", l.Rotations(), len(all))
	}
	newest := read(audit.TailOptions{Segments: 1})
	if len(newest) == 0 || len(newest) >= len(all)/2 || newest[len(newest)-1].Seq != all[len(all)-1].Seq {
		t.Errorf("the newest segment has %d of %d records", len(newest), len(all))
	}
	for _, at := range []int{0, 1, len(all) / 2, len(all) - 1} {
		since := read(audit.TailOptions{Since: all[at].Time, NoLeaf: true})
		if len(since) == 0 || since[0].Seq > all[at].Seq || since[len(since)-1].Seq != all[len(all)-1].Seq || since[0].Leaf != (tlog.Hash{}) {
			t.Errorf("since record %d: %d records", at, len(since))
		}
	}
	if future := read(audit.TailOptions{Since: time.Now().Add(time.Hour)}); len(future) != len(newest) {
		t.Errorf("since a time to come: %d records, want those of the newest segment, %d", len(future), len(newest))
	}
}
