package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// An exchange is one request on its way, with the audit record that grows beside it.
type exchange struct {
	s        *Server
	w        *meter
	r        *http.Request
	rec      *audit.Record
	start    time.Time
	action   string
	revision string
	cache    string
	memory   int64    // size of a body held whole in memory; -1 for others
	warned   []string // codes of policy's warnings, for a header

	from requester // of a module request, once that is known

	staleView bool // answered though what was revoked elsewhere is not known
}

// begin opens the record. A malformed request leaves one, too.
func (s *Server) begin(w http.ResponseWriter, r *http.Request) *exchange {
	s.metrics.inflight.Inc()
	x := &exchange{s: s, w: newMeter(w, s.stall), r: r, rec: audit.Begin(""), start: time.Now(), action: "none", cache: "none", memory: -1}
	x.rec.Kind = audit.KindDecision
	x.rec.Method = r.Method
	x.rec.Path, _, _ = strings.Cut(r.RequestURI, "?")
	x.rec.Client = clientOf(r)
	return x
}

func clientOf(r *http.Request) audit.Client {
	host, port, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	number, _ := strconv.Atoi(port) // a peer on the socket has none
	return audit.Client{IP: host, Port: number, Agent: r.UserAgent(), Untrusted: untrusted(r.Header)}
}

// untrusted are the headers by which a client says who is behind it, or which request this is. Nobody here believes them;
// the record keeps them.
func untrusted(h http.Header) map[string]string {
	var claims map[string]string
	for _, name := range [...]string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "X-Request-Id", "Traceparent"} {
		if values := h[name]; len(values) > 0 {
			if claims == nil {
				claims = map[string]string{}
			}
			claims[strings.ToLower(name)] = strings.Join(values, ", ")
		}
	}
	return claims
}

// asks notes what the request wants.
func (x *exchange) asks(t mirror.Target, v mirror.Visibility) {
	x.action = "root"
	if t != rootTarget {
		x.action = t.Kind.String()
	}
	x.rec.Action = x.action
	x.rec.Module, x.rec.Version = t.Path, t.Version
	x.rec.Private = v == mirror.Private
}

// authenticated notes who asks, or that nobody could be found out.
func (x *exchange) authenticated(p identity.Principal, err error) {
	if e, ok := errors.AsType[*identity.Error](err); ok { // whose secret did match
		p.Subject, p.Credential, p.Device = e.Subject, e.Credential, e.Device
	}
	noteSubject(x.rec, p)
}

// judged notes a decision of policy; a second one is joined to the first.
func (x *exchange) judged(d policy.Decision, in *policy.Input) {
	noteDecision(x.rec, d)
	for _, w := range d.Warnings {
		if !slices.Contains(x.warned, w.Code) {
			x.warned = append(x.warned, w.Code)
		}
	}
	for _, o := range d.Obligations {
		x.oblige(o, in)
	}
}

// released notes policy's decision on one of the versions that were judged.
func (x *exchange) released(j *judge, decisions []policy.Decision, i int) {
	x.judged(decisions[i], j.input)
	x.noteResource(&j.resources[i])
}

// oblige does what policy demands beside its answer; policy lets no kind pass that is not here.
func (x *exchange) oblige(o policy.Obligation, in *policy.Input) {
	switch o.Kind {
	case "log_full":
		if full, err := json.Marshal(in); err == nil { // of plain fields it cannot fail
			x.rec.Input = joinInput(x.rec.Input, "full", full)
		}
	case "notify_owner":
		x.s.log.LogAttrs(x.r.Context(), slog.LevelWarn, "policy asks to notify an owner", slog.String("owner", o.Params["owner"]),
			slog.String("module", x.rec.Module), slog.String("version", x.rec.Version), slog.String("id", x.rec.EventID))
	}
}

// text is what a refusal of this request says beside the decision itself.
func (x *exchange) text(t mirror.Target, worksNow string) policy.TextOptions {
	shown := t.Path
	if t.Version != "" {
		shown += "@" + t.Version
	}
	return policy.TextOptions{Target: shown, ID: shortID(x.rec.EventID), Revision: shortRevision(x.revision), WorksNow: worksNow}
}

// decided closes the record's decision with the status that the client will see.
func (x *exchange) decided(a *answer, err error) *exchange {
	d := &x.rec.Decision
	if x.staleView {
		if d.Labels == nil {
			d.Labels = map[string]string{}
		}
		d.Labels["revocation_view"] = "stale"
	}
	if err != nil {
		p := problemOf(err)
		d.Effect, d.Status, d.Stage, d.Reason = p.effect(), p.Status, p.Stage, p.Public
		if p.Remedy != "" {
			d.Remedy = p.Remedy
		}
		if len(d.Codes) == 0 || p.Text == "" {
			d.Codes = []string{p.Code}
		}
		x.rec.Severity = severityOf(p)
		return x
	}
	d.Effect, d.Status = "allow", http.StatusOK
	if d.Stage == "" {
		d.Stage = "identity"
	}
	x.rec.Severity = 1
	if a == nil {
		return x
	}
	a.encode(x.r)
	x.cache = a.cache
	if a.body != nil && x.r.Method == http.MethodGet {
		x.memory = a.size
	}
	x.rec.File = audit.File{Size: a.size, Cache: a.cache}
	if sum, ok := strings.CutPrefix(a.hash, "sha256:"); ok {
		x.rec.File.SHA256 = sum
	} else {
		x.rec.File.H1 = a.hash
	}
	return x
}

func severityOf(p *Problem) int {
	switch {
	case p.Code == "PATH-INVALID", p.Code == "TOKEN-REVOKED", p.Code == "TOKEN-EXPIRED", p.Code == "DEVICE-MISMATCH":
		return 4
	case p.Code == "CHECKSUM-MISMATCH":
		return 5
	case p.Status == http.StatusNotFound, p.Code == string(identity.GrantPending):
		return 1
	}
	return 3
}

// record makes the decision durable; only then may it be carried out. The error is the one to answer with.
func (s *Server) record(ctx context.Context, x *exchange, err error) error {
	if x.rec.Decision.Status == 0 {
		x.decided(nil, err)
	}
	if errors.Is(err, errOften) {
		s.often.note(x.from, x.start)
		return err
	}
	if terr := s.turns.enter(); terr != nil {
		return unwritable(x.action, terr)
	}
	aerr := s.audit.Append(context.WithoutCancel(ctx), x.rec)
	s.turns.leave()
	if aerr != nil {
		return unwritable(x.action, aerr)
	}
	if x.rec.Decision.Effect == "deny" && x.from != (requester{}) {
		s.often.refused(x.from, x.start)
	}
	return err
}

// failed records that what was decided and recorded did not take effect.
func (x *exchange) failed(err error) {
	out := audit.Begin(x.rec.EventID)
	out.Kind, out.Action, out.Severity = audit.KindOutcome, x.rec.Action, 3
	out.Subject, out.Device, out.Change = x.rec.Subject, x.rec.Device, x.rec.Change
	out.Outcome = audit.Outcome{Status: problemOf(err).Status, MS: time.Since(x.start).Milliseconds(), Aborted: true}
	x.s.audit.Note(out)
}

// finish answers a request that got no further than a problem.
func (x *exchange) finish(err error) { x.problem(err) }

// problem sends what went wrong. Refusals and errors leave no outcome record: their decision says it all.
func (x *exchange) problem(err error) {
	p := problemOf(err)
	if errors.Is(err, errAudit) {
		p = problemOf(errAudit) // whatever the decision was, it is not on disk
		p.Err = err
	}
	p.write(x.w, x.r, x.rec.EventID, x.revision)
	x.done(p.effect())
	if p.Status >= 500 {
		level := slog.LevelError
		if errors.Is(err, errAudit) {
			level = slog.LevelDebug // the log has said that it cannot be written, once
		}
		x.s.log.LogAttrs(x.r.Context(), level, "request failed", slog.String("id", x.rec.EventID),
			slog.String("code", p.Code), slog.Int("status", p.Status), slog.Any("err", p.Err))
	}
}

// send streams the answer and records what became of it.
func (x *exchange) send(a *answer) {
	a.headers(x.w.Header(), x.rec.EventID, x.revision)
	if len(x.warned) > 0 {
		x.w.Header()["Headgate-Warning"] = []string{strings.Join(x.warned, ", ")}
	}
	a.serve(x.w, x.r)
	x.done("allow")
	if x.w.err == nil && x.w.status == http.StatusOK && x.memory >= 0 && x.w.sent == x.memory {
		return // the decision already carries status and size, and both came true
	}
	out := audit.Begin(x.rec.EventID)
	out.Kind = audit.KindOutcome
	out.Action, out.Module, out.Version = x.rec.Action, x.rec.Module, x.rec.Version
	out.Subject, out.Device = x.rec.Subject, x.rec.Device
	whole := x.r.Method == http.MethodHead || x.w.status != http.StatusOK || x.w.sent == a.size
	out.Outcome = audit.Outcome{
		Status: x.w.status, Bytes: x.w.sent, MS: time.Since(x.start).Milliseconds(), Aborted: x.w.err != nil || !whole,
	}
	x.s.audit.Note(out)
}

// done counts the exchange. Its line of log is for debugging: the audit log says the same, and is believed.
func (x *exchange) done(effect string) {
	took := time.Since(x.start)
	x.s.metrics.inflight.Dec()
	x.s.metrics.observe(x.action, effect, x.cache, x.w.status, x.w.sent, took)
	if !x.s.log.Enabled(x.r.Context(), slog.LevelDebug) {
		return
	}
	x.s.log.LogAttrs(x.r.Context(), slog.LevelDebug, "request", slog.String("id", x.rec.EventID), slog.String("action", x.action),
		slog.String("module", x.rec.Module), slog.String("version", x.rec.Version), slog.String("subject", x.rec.Subject.ID),
		slog.String("effect", effect), slog.Int("status", x.w.status), slog.Int64("bytes", x.w.sent),
		slog.String("cache", x.cache), slog.Duration("took", took))
}
