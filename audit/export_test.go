package audit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/audit/sinks"
)

// exportConfig is a log that delivers to a file.
func exportConfig(dir, out string) audit.Config {
	return audit.Config{Dir: dir, SegmentBytes: 1 << 20, Sinks: []sinks.Config{
		{Name: "soc", Type: "file", Path: out, Schema: "native", RotateBytes: 1 << 40}, // in one file
	}}
}

// openExported opens a log whose records go to a file; the function closes both.
func openExported(t *testing.T, dir, out string) (*audit.Log, func()) {
	t.Helper()
	l, err := audit.Open(exportConfig(dir, out), audit.Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	e, err := l.Export(sinks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l, func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		closeLog(t, l)
	}
}

// A delivered record is a line of a native sink.
type delivered struct {
	ID      string `json:"id"`
	Origin  string `json:"origin"`
	Seq     int64  `json:"seq"`
	EventID string `json:"event_id"`
	Kind    string `json:"kind"`
}

func readDelivered(t *testing.T, out string) []delivered {
	t.Helper()
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []delivered
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var d delivered
		if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		all = append(all, d)
	}
	return all
}

// wantWhole checks that each epoch's records were delivered from the first on without a hole, and how many times more
// than once.
func wantWhole(t *testing.T, all []delivered) (twice int) {
	t.Helper()
	ids, most := map[string]int{}, map[string]int64{}
	for _, d := range all {
		ids[d.ID]++
		most[d.Origin] = max(most[d.Origin], d.Seq)
	}
	want := int64(0)
	for _, m := range most {
		want += m + 1
	}
	if int64(len(ids)) != want {
		t.Errorf("%d different records were delivered of %d", len(ids), want)
	}
	return len(all) - len(ids)
}

func TestExport(t *testing.T) {
	t.Run("records of several segments arrive once each, across restarts", func(t *testing.T) {
		dir, out := t.TempDir(), filepath.Join(t.TempDir(), "soc.jsonl")
		for range 3 {
			l, stop := openExported(t, dir, out)
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := range 200 {
						if err := l.Append(context.Background(), decision(w*1000+i)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			stop()
		}
		all := readDelivered(t, out)
		decisions := 0
		for _, d := range all {
			if d.Kind == "decision" {
				decisions++
			}
		}
		if twice := wantWhole(t, all); twice != 0 || decisions != 3*8*200 {
			t.Errorf("%d decisions and %d repeats were delivered", decisions, twice)
		}
	})
	t.Run("decision and outcome of one request have different ids", func(t *testing.T) {
		dir, out := t.TempDir(), filepath.Join(t.TempDir(), "soc.jsonl")
		l, stop := openExported(t, dir, out)
		for _, kind := range []audit.Kind{audit.KindDecision, audit.KindOutcome} {
			r := audit.Begin("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
			r.Kind = kind
			if err := l.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		if twice := wantWhole(t, readDelivered(t, out)); twice != 0 {
			t.Errorf("%d ids stand for two records", twice)
		}
	})
	t.Run("an outcome that comes while the sinks are closed is delivered with its decision", func(t *testing.T) {
		dir, out := t.TempDir(), filepath.Join(t.TempDir(), "soc.jsonl")
		l, stop := openExported(t, dir, out)
		zip := decision(1)
		zip.File.Cache = "disk"
		if err := l.Append(t.Context(), zip); err != nil {
			t.Fatal(err)
		}
		ended := audit.Begin(zip.EventID)
		ended.Kind, ended.Outcome = audit.KindOutcome, audit.Outcome{Status: 200, Bytes: 12345}
		l.Note(ended)
		stop()
		if all := readDelivered(t, out); !slices.ContainsFunc(all, func(d delivered) bool { return d.EventID == zip.EventID }) {
			t.Error("the decision was not waited for")
		}
		_, stop = openExported(t, dir, out)
		stop()
		kinds := map[string]int{}
		for _, d := range readDelivered(t, out) {
			kinds[d.Kind]++
		}
		if kinds["decision"] != 1 || kinds["outcome"] != 0 {
			t.Errorf("delivered were %v; want the decision once, and its outcome in it", kinds)
		}
	})
	t.Run("a cursor of another log is not followed", func(t *testing.T) {
		dir, out := t.TempDir(), filepath.Join(t.TempDir(), "soc.jsonl")
		l, stop := openExported(t, dir, out)
		if err := l.Append(t.Context(), decision(1)); err != nil {
			t.Fatal(err)
		}
		stop()
		name := filepath.Join(dir, "cursors", "soc.json")
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var p sinks.Position
		if err := json.Unmarshal(b, &p); err != nil {
			t.Fatal(err)
		}
		p.Tree = "AAAA" + p.Tree[4:]
		b, _ = json.Marshal(p)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := len(readDelivered(t, out))
		l, stop = openExported(t, dir, out)
		if err := l.Append(t.Context(), decision(2)); err != nil {
			t.Fatal(err)
		}
		stop()
		if after := len(readDelivered(t, out)); after != before {
			t.Errorf("%d records were delivered behind a cursor whose tree is another", after-before)
		}
	})
	t.Run("a new epoch behind damage is delivered, too", func(t *testing.T) {
		dir, out := t.TempDir(), filepath.Join(t.TempDir(), "soc.jsonl")
		l, stop := openExported(t, dir, out)
		if err := l.Append(t.Context(), decision(1)); err != nil {
			t.Fatal(err)
		}
		stop()
		segments, err := filepath.Glob(filepath.Join(dir, "epoch/0/segment/*.log"))
		if err != nil || len(segments) != 1 {
			t.Fatal(segments, err)
		}
		if err := os.Remove(segments[0]); err != nil {
			t.Fatal(err)
		}
		l, err = audit.Open(exportConfig(dir, out), audit.Options{Cluster: "test", Node: "n1", AcceptDamage: true})
		if err != nil {
			t.Fatal(err)
		}
		closeLog(t, l)
		if err := os.Remove(filepath.Join(dir, "cursors", "soc.json")); err != nil { // from the oldest record that is left
			t.Fatal(err)
		}
		_, stop = openExported(t, dir, out)
		stop()
		all := readDelivered(t, out)
		if last := all[len(all)-1]; !strings.HasSuffix(last.Origin, "/1") {
			t.Errorf("the last record delivered is %+v; want one of epoch 1", last)
		}
	})
}

// exportUntilKilled is the process that TestExportKill kills: it appends, prints what was acknowledged, and delivers.
func exportUntilKilled(dir string) int {
	l, err := audit.Open(exportConfig(dir, filepath.Join(dir, "soc.jsonl")), audit.Options{Cluster: "test", Node: "n1"})
	if err == nil {
		_, err = l.Export(sinks.Options{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("open")
	for i := 0; ; i++ {
		r := decision(i)
		if err := l.Append(context.Background(), r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if _, err := io.WriteString(os.Stdout, r.EventID+"\n"); err != nil {
			return 1
		}
	}
}

func TestExportKill(t *testing.T) {
	t.Run("A17 killed between delivery and cursor: nothing is missing", func(t *testing.T) {
		kills := 5
		if os.Getenv("SOAK") != "" {
			kills = 500
		}
		dir := t.TempDir()
		acked := map[string]bool{}
		for range kills {
			cmd, lines, stderr := startProcess(t, "AUDIT_TEST_EXPORTER="+dir)
			if !lines.Scan() || lines.Text() != "open" {
				t.Fatalf("exporter did not open the log: %s", stderr)
			}
			kill := time.AfterFunc(rand.N(1500*time.Millisecond), func() { _ = cmd.Process.Kill() })
			for lines.Scan() {
				if len(lines.Text()) == 26 {
					acked[lines.Text()] = true
				}
			}
			kill.Stop()
			if err := cmd.Wait(); err == nil {
				t.Fatal("exporter ended by itself")
			}
		}
		out := filepath.Join(dir, "soc.jsonl")
		var all []delivered
		for range 1 + kills/20 { // the end of an exporter waits only so long for its sinks
			_, stop := openExported(t, dir, out)
			stop()
			all = readDelivered(t, out)
			for _, d := range all {
				delete(acked, d.EventID)
			}
			if len(acked) == 0 {
				break
			}
		}
		twice := wantWhole(t, all)
		if len(acked) > 0 {
			t.Errorf("%d acknowledged records were never delivered", len(acked))
		}
		if twice > kills*4*501 {
			t.Errorf("%d repeats after %d kills; want at most the batches in flight", twice, kills)
		}
		t.Logf("%d records delivered, %d of them twice, after %d kills", len(all), twice, kills)
	})
}

func TestUnknownSchema(t *testing.T) {
	c := exportConfig(t.TempDir(), "out")
	if c.Sinks[0].Schema = "leef"; len(c.Validate()) != 1 || !strings.Contains(c.Validate()[0].Error(), `sinks[0].schema: "leef" is not known; want one of ocsf, ecs, cef, native`) {
		t.Errorf("Validate: %v", c.Validate())
	}
	if c.Sinks[0].Schema = "cef"; len(c.Validate()) != 0 {
		t.Errorf("Validate: %v", c.Validate())
	}
}
