package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
)

// CareEvent is one line of the answer of a long operation: how far it has come, or at last what it did.
type CareEvent struct {
	Progress *mirror.Progress   `json:"progress,omitempty"`
	Result   *mirror.CareReport `json:"result,omitempty"`
	// Error is set beside Result where the operation did not come to its end.
	Error string `json:"error,omitempty"`
}

var (
	errNoMirror = &Problem{Status: http.StatusServiceUnavailable, Code: "NO-MIRROR", Public: "this gateway has no mirror", Stage: "limit"}
	errCareBusy = &Problem{Status: http.StatusConflict, Code: "BUSY", Public: "another operation of care is running; ask again when it is over", Stage: "limit"}
)

// care is what runs for an administrator or by itself beside requests: one long operation at a time.
type care struct {
	slot chan struct{} // of one
	done chan struct{} // closed when the gateway drains
	end  func()
}

func newCare() care {
	done := make(chan struct{})
	return care{slot: make(chan struct{}, 1), done: done, end: sync.OnceFunc(func() { close(done) })}
}

// errCareStopped ends a long operation when the gateway does.
var errCareStopped = errors.New("the gateway is stopping; begin the operation again to go on")

// running is ctx until the gateway drains.
func (c care) running(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-c.done:
			cancel(errCareStopped)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// careRoutes are the operations on the mirror.
func (s *Server) careRoutes(mux *http.ServeMux) {
	mux.Handle("POST /-/api/v1/mirror/import", s.long("mirror.import", s.importMirror))
	mux.Handle("POST /-/api/v1/mirror/export", s.long("mirror.export", s.exportMirror))
	mux.Handle("POST /-/api/v1/mirror/prefetch", s.long("mirror.prefetch", s.prefetchMirror))
	mux.Handle("POST /-/api/v1/mirror/verify", s.long("mirror.verify", s.scrubMirror))
	mux.Handle("POST /-/api/v1/mirror/gc", s.long("mirror.gc", s.collectMirror))
	mux.Handle("GET /-/api/v1/mirror/quarantine", s.admin("mirror.quarantined", s.listQuarantine))
	mux.Handle("POST /-/api/v1/mirror/quarantine", s.admin("mirror.quarantine", s.quarantineVersion))
	mux.Handle("POST /-/api/v1/mirror/release", s.admin("mirror.release", s.releaseVersion))
	mux.Handle("POST /-/api/v1/mirror/purge", s.admin("mirror.purge", s.purgeVersion))
}

// A longWork is a long operation once its record is durable.
type longWork func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error)

// long runs an operation whose answer is a stream of CareEvents. Its record is durable before it begins, and what it
// did is recorded when it is over.
func (s *Server) long(action string, do func(x *exchange, by identity.Principal) (longWork, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limitBody(w, r)
		x := s.begin(w, r)
		x.action, x.rec.Kind, x.rec.Action = "api", audit.KindAdmin, action
		by, err := s.allowed(x, identity.ActionAdmin)
		var work longWork
		if err == nil && s.mirror == nil {
			err = errNoMirror
		}
		if err == nil {
			work, err = do(x, by)
		}
		if err == nil {
			select {
			case s.care.slot <- struct{}{}:
				defer func() { <-s.care.slot }()
			default:
				err = errCareBusy
			}
		}
		if err := s.record(r.Context(), x.decided(nil, err), err); err != nil {
			x.apiError(err)
			return
		}
		_ = x.w.control.SetReadDeadline(time.Time{}) // that of the body would end the operation
		x.stream(work)
	})
}

// stream carries a long operation out and tells how far it has come. It ends with the client, or with the gateway.
func (x *exchange) stream(work longWork) {
	ctx, cancel := x.s.care.running(x.r.Context())
	defer cancel()
	h := x.w.Header()
	h["Content-Type"], h["Cache-Control"], h["X-Content-Type-Options"] = ndjson, noStore, nosniff
	h.Set("Headgate-Decision", shortID(x.rec.EventID))
	events := json.NewEncoder(x.w)
	send := func(e CareEvent) {
		_ = events.Encode(e) // a client that is gone ends ctx
		_ = x.w.control.Flush()
	}
	var last time.Time // under the keeper's lock, which tell is called with
	report, err := work(ctx, func(p mirror.Progress) {
		if now := time.Now(); now.Sub(last) >= progressInterval {
			last = now
			send(CareEvent{Progress: &p})
		}
	})
	x.cared(report, err)
	final := CareEvent{Result: &report}
	if err != nil {
		final.Error = err.Error()
	}
	send(final)
	x.done("allow")
}

// progressInterval is how often a client hears how far an operation has come.
const progressInterval = 250 * time.Millisecond

// cared records what became of an operation.
func (x *exchange) cared(report mirror.CareReport, err error) {
	out := audit.Begin(x.rec.EventID)
	out.Kind, out.Action, out.Severity = audit.KindOutcome, x.rec.Action, 1
	out.Subject, out.Device = x.rec.Subject, x.rec.Device
	out.Module, out.Version = x.rec.Module, x.rec.Version
	out.Change = audit.Change{Object: x.rec.Change.Object, Note: reportNote(report, err)}
	out.Outcome = audit.Outcome{Status: http.StatusOK, Bytes: report.Bytes, MS: time.Since(x.start).Milliseconds(), Aborted: err != nil}
	if err != nil || report.Failed > 0 {
		out.Severity = 3
	}
	x.s.audit.Note(out)
	x.s.noteFailures(x.rec.EventID, x.rec.Action, report)
}

func reportNote(r mirror.CareReport, err error) string {
	note := fmt.Sprintf("versions %d, had %d, files %d, failed %d", r.Versions, r.Had, r.Files, r.Failed)
	if err != nil {
		note += ": " + err.Error()
	}
	return note
}

// noteFailures records each file whose bytes are not what they must be.
func (s *Server) noteFailures(id, action string, report mirror.CareReport) {
	for _, f := range report.Failures {
		if !f.Incident {
			continue
		}
		out := audit.Begin(id)
		out.Kind, out.Action, out.Severity = audit.KindOutcome, action, 5
		out.Subject = audit.Subject{ID: "headgate", Kind: "workload"}
		out.Module, out.Version = f.Module, f.Version
		out.Change = audit.Change{Object: "file " + f.File, Note: f.Reason}
		out.Outcome = audit.Outcome{Aborted: true}
		s.audit.Note(out)
	}
}
