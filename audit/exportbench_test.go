package audit

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/headgate/headgate/audit/schema"
	"github.com/headgate/headgate/audit/sinks"
)

// BenchmarkExport is how fast one sink can read the log: half of its records are zips, each with its outcome behind it.
func BenchmarkExport(b *testing.B) {
	cfg := Config{Dir: filepath.Join(b.TempDir(), "audit")}
	l, err := Open(cfg, Options{Node: "n1"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	const records = 120_000
	for i := range records / 3 {
		mod, zip := benchRecord(), benchRecord()
		mod.Action = "mod"
		zip.File.Cache = "disk"
		outcome := Begin(zip.EventID)
		outcome.Kind, outcome.Action, outcome.Module, outcome.Version, outcome.Subject = KindOutcome, "zip", zip.Module, zip.Version, zip.Subject
		outcome.Outcome = Outcome{Status: 200, Bytes: 12345, MS: 17}
		l.Note(mod)
		l.Note(zip)
		l.Note(outcome)
		if i%4000 == 0 {
			if err := l.Append(b.Context(), mod); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := l.Append(b.Context(), benchRecord()); err != nil {
		b.Fatal(err)
	}
	for _, name := range schema.Names() {
		b.Run(name, func(b *testing.B) {
			start, total := time.Now(), 0
			for b.Loop() {
				r, err := exported{l}.Reader(sinks.Position{}, name)
				if err != nil {
					b.Fatal(err)
				}
				for r.Position().Next < records {
					events, err := r.Next(5000, 5<<20)
					if err != nil || len(events) == 0 {
						b.Fatal(len(events), r.Position(), err)
					}
				}
				total += int(r.Position().Next)
				r.Close()
			}
			b.ReportMetric(float64(total)/time.Since(start).Seconds(), "records/s")
		})
	}
}
