package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
)

// ImportRequest is the body of POST /-/api/v1/mirror/import.
type ImportRequest struct {
	// Source is a path on the gateway's machine.
	Source  string   `json:"source"`
	Modules []string `json:"modules,omitempty"` // patterns as in GOPRIVATE; none mean all
	Offline bool     `json:"offline,omitempty"` // ask no checksum database
}

// ExportRequest is the body of POST /-/api/v1/mirror/export.
type ExportRequest struct {
	// Out is a path on the gateway's machine.
	Out      string          `json:"out"`
	Versions []mirror.Wanted `json:"versions,omitempty"` // null: all that is stored
	Modules  []string        `json:"modules,omitempty"`
	Private  bool            `json:"private,omitempty"`
}

// PrefetchRequest is the body of POST /-/api/v1/mirror/prefetch.
type PrefetchRequest struct {
	Versions []mirror.Wanted `json:"versions"`
}

// ScrubRequest is the body of POST /-/api/v1/mirror/verify.
type ScrubRequest struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	Repair         bool  `json:"repair,omitempty"`
}

// CollectRequest is the body of POST /-/api/v1/mirror/gc. Limits that are 0 are the configuration's.
type CollectRequest struct {
	MaxBytes int64 `json:"max_bytes,omitempty"`
	Seconds  int64 `json:"max_age_seconds,omitempty"`
	Private  bool  `json:"private,omitempty"`
	DryRun   bool  `json:"dry_run,omitempty"`
}

// VersionRequest is the body of the operations on one version: quarantine, release and purge.
type VersionRequest struct {
	Module  string `json:"module"`
	Version string `json:"version"`
	Reason  string `json:"reason,omitempty"`
}

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
		by, err := s.administrator(x)
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

// here refuses a path from afar: the gateway reads and writes it as its own user.
func here(by identity.Principal, key, file string) error {
	if by.Credential.Via != "socket" {
		return invalid("%s is a path on the gateway's machine; run the command there", key)
	}
	if !filepath.IsAbs(file) {
		return invalid("%s is %q; want an absolute path", key, file)
	}
	return nil
}

func checkPatterns(patterns []string) error {
	if err := mirror.CheckPatterns(patterns); err != nil {
		return invalid("modules: %v", err)
	}
	return nil
}

func checkVersions(all []mirror.Wanted) error {
	for _, v := range all {
		if module.Check(v.Path, v.Version) != nil {
			return invalid("%q is no version of a module", v.Path+"@"+v.Version)
		}
	}
	return nil
}

func (s *Server) importMirror(x *exchange, by identity.Principal) (longWork, error) {
	var q ImportRequest
	err := readJSON(x.r, &q)
	if err == nil {
		err = here(by, "source", q.Source)
	}
	if err == nil {
		err = checkPatterns(q.Modules)
	}
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "import " + q.Source, Note: note("modules", q.Modules, q.Offline, "offline")}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Import(ctx, mirror.ImportOptions{
			Source: q.Source, Staging: s.cfg.State, Modules: q.Modules, Offline: q.Offline, Progress: tell,
		})
	}, nil
}

// note says what was asked for in one line.
func note(key string, list []string, set bool, word string) string {
	text := key + " all"
	if len(list) > 0 {
		text = key + " " + strings.Join(list, ",")
	}
	if set {
		text += ", " + word
	}
	return text
}

func (s *Server) exportMirror(x *exchange, by identity.Principal) (longWork, error) {
	var q ExportRequest
	err := readJSON(x.r, &q)
	if err == nil {
		err = here(by, "out", q.Out)
	}
	if err == nil {
		err = errors.Join(checkPatterns(q.Modules), checkVersions(q.Versions))
	}
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "export " + q.Out, Note: note("modules", q.Modules, q.Private, "private ones too")}
	if q.Versions != nil {
		x.rec.Change.Note += fmt.Sprintf(", %d versions named", len(q.Versions))
	}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Export(ctx, mirror.ExportOptions{
			Versions: q.Versions, Modules: q.Modules, Private: q.Private, Out: q.Out, Progress: tell,
		})
	}, nil
}

func (s *Server) prefetchMirror(x *exchange, _ identity.Principal) (longWork, error) {
	var q PrefetchRequest
	err := readJSON(x.r, &q)
	if err == nil {
		err = checkVersions(q.Versions)
	}
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "prefetch", Note: fmt.Sprintf("%d versions named", len(q.Versions))}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Prefetch(ctx, mirror.PrefetchOptions{Versions: q.Versions, Progress: tell})
	}, nil
}

func (s *Server) scrubMirror(x *exchange, _ identity.Principal) (longWork, error) {
	var q ScrubRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	if q.BytesPerSecond < 0 {
		return nil, invalid("bytes_per_second is %d; want 0 for no limit, or more", q.BytesPerSecond)
	}
	x.rec.Change = audit.Change{Object: "verify", Note: map[bool]string{true: "bad files are moved aside", false: "nothing is changed"}[q.Repair]}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Scrub(ctx, mirror.ScrubOptions{BytesPerSecond: q.BytesPerSecond, Repair: q.Repair, Progress: tell})
	}, nil
}

func (s *Server) collectMirror(x *exchange, _ identity.Principal) (longWork, error) {
	var q CollectRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	configured := s.mirror.Upkeep()
	o := mirror.CollectOptions{MaxBytes: q.MaxBytes, MaxAge: time.Duration(q.Seconds) * time.Second, Private: q.Private, DryRun: q.DryRun}
	if o.MaxBytes == 0 && o.MaxAge == 0 {
		o.MaxBytes, o.MaxAge = configured.MaxBytes, configured.MaxAge
	}
	if o.MaxBytes <= 0 && o.MaxAge <= 0 || o.MaxBytes < 0 || o.MaxAge < 0 {
		return nil, invalid("no limit is given, and the configuration has none; want max_bytes or max_age_seconds above 0")
	}
	x.rec.Change = audit.Change{Object: "gc", Note: collectNote(o)}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		o.Progress = tell
		return s.mirror.Collect(ctx, o)
	}, nil
}

func collectNote(o mirror.CollectOptions) string {
	text := fmt.Sprintf("max bytes %d, max age %s", o.MaxBytes, o.MaxAge)
	if o.Private {
		text += ", private ones too"
	}
	if o.DryRun {
		text += ", dry run"
	}
	return text
}

func (s *Server) listQuarantine(*exchange, identity.Principal) (func(context.Context) (any, error), error) {
	if s.mirror == nil {
		return nil, errNoMirror
	}
	return func(ctx context.Context) (any, error) {
		list, err := s.mirror.QuarantineList(ctx)
		if list == nil {
			list = []mirror.Quarantined{}
		}
		return map[string]any{"quarantined": list}, err
	}, nil
}

// oneVersion reads which version an operation is about, and notes it.
func (s *Server) oneVersion(x *exchange, reason bool) (v module.Version, why string, err error) {
	var q VersionRequest
	if err := readJSON(x.r, &q); err != nil {
		return v, "", err
	}
	if s.mirror == nil {
		return v, "", errNoMirror
	}
	if err := checkVersions([]mirror.Wanted{{Path: q.Module, Version: q.Version}}); err != nil {
		return v, "", err
	}
	if reason && strings.TrimSpace(q.Reason) == "" {
		return v, "", invalid("reason is empty; want one for the record")
	}
	x.rec.Module, x.rec.Version, x.rec.Private = q.Module, q.Version, s.mirror.Visibility(q.Module) == mirror.Private
	x.rec.Change = audit.Change{Object: "version " + q.Module + "@" + q.Version, Note: q.Reason}
	return module.Version{Path: q.Module, Version: q.Version}, q.Reason, nil
}

func (s *Server) quarantineVersion(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	v, why, err := s.oneVersion(x, true)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (any, error) {
		return VersionRequest{v.Path, v.Version, why}, x.outcome(mirror.CareReport{Versions: 1}, s.mirror.Quarantine(ctx, v, why))
	}, nil
}

func (s *Server) releaseVersion(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	v, why, err := s.oneVersion(x, false)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (any, error) {
		return VersionRequest{v.Path, v.Version, why}, x.outcome(mirror.CareReport{Versions: 1}, s.mirror.Release(ctx, v))
	}, nil
}

func (s *Server) purgeVersion(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	v, _, err := s.oneVersion(x, true)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (any, error) {
		report, err := s.mirror.Purge(ctx, v)
		return report, x.outcome(report, err)
	}, nil
}

// outcome records that a change took effect; of one that did not, the caller does.
func (x *exchange) outcome(report mirror.CareReport, err error) error {
	if err == nil {
		x.cared(report, nil)
	}
	return err
}

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
