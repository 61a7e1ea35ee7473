package gateway

import (
	"context"
	"log/slog"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
)

// upkeepInterval is how often is looked whether the store is too full.
const upkeepInterval = time.Minute

// upkeep does what the configuration wants to be done by itself: it removes what is too old or too much once an hour,
// and at once when the store is too full, and reads the store again.
func (s *Server) upkeep(ctx context.Context) {
	if s.mirror == nil {
		return
	}
	wanted := s.mirror.Upkeep()
	collected, scrubbed := time.Now(), time.Now()
	ticker := time.NewTicker(upkeepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		limits := wanted.MaxBytes > 0 || wanted.MaxAge > 0
		if limits && time.Since(collected) > time.Hour || s.mirror.Over() && time.Since(collected) > 10*upkeepInterval {
			collected = time.Now()
			o := mirror.CollectOptions{MaxBytes: wanted.MaxBytes, MaxAge: wanted.MaxAge}
			s.byItself(ctx, "mirror.gc", audit.Change{Object: "gc", Note: collectNote(o)}, func(ctx context.Context) (mirror.CareReport, error) {
				return s.mirror.Collect(ctx, o)
			})
		}
		if wanted.ScrubInterval > 0 && time.Since(scrubbed) > wanted.ScrubInterval {
			scrubbed = time.Now()
			s.byItself(ctx, "mirror.verify", audit.Change{Object: "verify", Note: "nothing is changed"}, func(ctx context.Context) (mirror.CareReport, error) {
				return s.mirror.Scrub(ctx, mirror.ScrubOptions{BytesPerSecond: scrubPace})
			})
		}
	}
}

// scrubPace is how fast the store is read by itself, in bytes a second: clients come first.
const scrubPace = 16 << 20

// byItself runs an operation that nobody asked for, recorded like any other. One that runs for an administrator comes first.
func (s *Server) byItself(ctx context.Context, action string, change audit.Change, work func(context.Context) (mirror.CareReport, error)) {
	select {
	case s.care.slot <- struct{}{}:
		defer func() { <-s.care.slot }()
	default:
		return
	}
	rec := audit.Begin("")
	rec.Kind, rec.Action, rec.Severity = audit.KindAdmin, action, 1
	rec.Subject, rec.Change = audit.Subject{ID: "headgate", Kind: "workload"}, change
	if err := s.audit.Append(ctx, rec); err != nil {
		return // the log has said that it cannot be written, once
	}
	ctx, cancel := s.care.running(ctx)
	defer cancel()
	begun := time.Now()
	report, err := work(ctx)
	out := audit.Begin(rec.EventID)
	out.Kind, out.Action, out.Severity, out.Subject = audit.KindOutcome, action, 1, rec.Subject
	out.Change = audit.Change{Object: change.Object, Note: reportNote(report, err)}
	out.Outcome = audit.Outcome{Bytes: report.Bytes, MS: time.Since(begun).Milliseconds(), Aborted: err != nil}
	s.audit.Note(out)
	s.noteFailures(rec.EventID, action, report)
	if err != nil && ctx.Err() == nil {
		s.log.LogAttrs(ctx, slog.LevelError, "care of the mirror failed", slog.String("action", action), slog.Any("err", err))
	}
}
