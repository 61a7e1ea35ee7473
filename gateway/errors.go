package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"syscall"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// A Problem is the answer to a request that gets no module: what the client is told, and what the log is told.
// Status codes are part of the security boundary: the go command takes 404 and 410 as "ask the next proxy",
// so a refusal is 401 or 403, trouble is 5xx, and 404 only says that what an allowed caller asked for is not there.
type Problem struct { //nolint:errname // the field's word: RFC 9457
	Status     int
	Code       string // stable, upper case, as in THREATS and policy
	Public     string // the sentence after the code; no request bytes
	Advice     []string
	Stage      string // where it was decided: protocol, identity, access, release, limit
	Remedy     string
	RetryAfter int    // seconds; 0 sends no Retry-After
	Challenge  string // the error= of WWW-Authenticate; empty sends none
	Text       string // the whole body where policy rendered it
	Err        error  // never shown to a client
}

func (p *Problem) Error() string {
	if p.Err != nil {
		return p.Code + ": " + p.Err.Error()
	}
	return p.Code + ": " + p.Public
}

func (p *Problem) Unwrap() error { return p.Err }

// effect is the audit record's word for the problem.
func (p *Problem) effect() string {
	if p.Status >= 500 || p.Status == http.StatusNotFound {
		return "error"
	}
	return "deny"
}

var (
	errRequest  = errors.New("request is not of a form that a module client sends")
	errHost     = errors.New("host is not one of ours")
	errMethod   = errors.New("method is not GET or HEAD")
	errAudit    = errors.New("audit log cannot be written")
	errStopping = errors.New("gateway is stopping")
	errNoAccess = errors.New("credential may not do this")

	errCrossOrigin = errors.New("another site made the browser ask")
	errNotYours    = errors.New("no such token of this person")
)

// storeDown is a disk of ours that takes nothing new in; what it has is still served.
var storeDown = Problem{Status: 503, Code: "STORE-DOWN", Public: "this gateway cannot store a new file now; ask again later", Stage: "release", RetryAfter: 30}

// table turns errors of the parts into problems. The first row that matches counts; what no row names is 500. Not found
// stands last: whatever else went wrong on the way is trouble.
var table = []struct {
	match   error
	problem Problem
}{
	{errRequest, Problem{Status: 400, Code: "REQUEST-INVALID", Public: "not a request that a module client sends", Stage: "protocol"}},
	{mirror.ErrSpelling, Problem{Status: 400, Code: "PATH-INVALID", Public: "not a canonical module path, version or file name", Stage: "protocol"}},
	{errHost, Problem{Status: 421, Code: "WRONG-HOST", Public: "this gateway does not answer for that host name", Stage: "protocol"}},
	{errMethod, Problem{Status: 405, Code: "METHOD-NOT-ALLOWED", Public: "only GET and HEAD are served here", Stage: "protocol"}},
	{mirror.ErrNoRoute, Problem{Status: 404, Code: "NOT-FOUND", Public: "nothing is served under this path", Stage: "protocol"}},
	{errAudit, Problem{Status: 503, Code: "AUDIT-DOWN", Public: "the decision could not be recorded, so nothing is served", Stage: "limit", RetryAfter: 5}},
	{errStopping, Problem{Status: 503, Code: "STOPPING", Public: "this gateway is stopping; ask again", Stage: "limit", RetryAfter: 1}},
	{errNoAccess, Problem{Status: 403, Code: "SCOPE", Public: "this credential may not do this", Stage: "identity", Remedy: "none"}},
	{errCrossOrigin, Problem{Status: 403, Code: "CROSS-ORIGIN", Public: "another site made your browser ask for this; nothing was done", Stage: "protocol", Remedy: "none"}},
	{errNotYours, Problem{Status: 403, Code: "SCOPE", Public: "you have no such token", Stage: "identity", Remedy: "none"}},
	{policy.ErrNoPolicy, Problem{Status: 503, Code: "NO-POLICY", Public: "no policy is loaded, so nothing is allowed", Stage: "access", RetryAfter: 10}},
	{policy.ErrQuota, Problem{Status: 429, Code: "RATE", Public: "too many new module paths at once; wait a minute", Stage: "limit", RetryAfter: 60}},
	{errOften, Problem{Status: 429, Code: "RATE", Public: "too many refusals in a minute; wait another", Stage: "limit", RetryAfter: 60}},
	{policy.ErrPolicy, Problem{Status: 503, Code: "POLICY-ERROR", Public: "policy gave no decision, so nothing is allowed", Stage: "access", RetryAfter: 5}},
	{mirror.ErrUnknownSumdb, Problem{Status: 403, Code: "SUMDB-NOT-ALLOWED", Public: "this checksum database is not served here", Stage: "protocol", Remedy: "none"}},
	{mirror.ErrPrivate, Problem{Status: 403, Code: "PRIVATE-AT-PUBLIC-SUMDB", Public: "a private module, at a public database", Stage: "protocol", Remedy: "none", Advice: []string{"set GOSUMDB to ours, which this gateway prints at start", "or set GONOSUMDB for your private patterns"}}},
	{mirror.ErrAuditors, Problem{Status: 403, Code: "SUMDB-AUDITORS-ONLY", Public: "records in bulk are for auditors; ask for one by lookup", Stage: "protocol", Remedy: "none"}},
	{mirror.ErrOwnSumdb, Problem{Status: 503, Code: "SUMDB-STOPPED", Public: "our checksum database may not go on until an operator acts", Stage: "release", RetryAfter: 60}},
	{syscall.ENOSPC, storeDown},
	{syscall.EDQUOT, storeDown},
	{syscall.EROFS, storeDown},
	{syscall.EIO, storeDown},
	{syscall.EMFILE, storeDown},
	{mirror.ErrNothingStored, Problem{Status: 409, Code: "NOTHING-STORED", Public: "mirror.mode is proxy: modules are passed on, not stored", Stage: "protocol"}},
	{mirror.ErrBusy, Problem{Status: 503, Code: "QUEUE-FULL", Public: "queue full: too many cold files are being fetched; ask again", Stage: "limit", RetryAfter: 5}},
	{mirror.ErrNoPrivateSource, Problem{Status: 502, Code: "NO-PRIVATE-SOURCE", Public: "a private module, and this gateway has no source for it", Stage: "release"}},
	{mirror.ErrSumdbForked, Problem{Status: 502, Code: "SUMDB-FORKED", Public: "the checksum database contradicts itself; nothing new is stored", Stage: "release", Advice: []string{"tell the gateway's operators at once: its log holds both tree heads", "what is stored already is served as before"}}},
	{mirror.ErrNotListed, Problem{Status: 502, Code: "SUMDB-NOT-LISTED", Public: "not in the checksum database, so not taken in", Stage: "release"}},
	{mirror.ErrMismatch, Problem{Status: 502, Code: "CHECKSUM-MISMATCH", Public: "upstream sent bytes that do not verify; nothing was stored", Stage: "release"}},
	{mirror.ErrTimeout, Problem{Status: 504, Code: "UPSTREAM-SLOW", Public: "upstream did not answer in time; ask again", Stage: "release"}},
	{context.DeadlineExceeded, Problem{Status: 504, Code: "UPSTREAM-SLOW", Public: "upstream did not answer in time; ask again", Stage: "release"}},
	{mirror.ErrUpstream, Problem{Status: 502, Code: "UPSTREAM-FAILED", Public: "upstream cannot be reached or answered with an error", Stage: "release"}},
	{context.Canceled, Problem{Status: 499, Code: "CLIENT-GONE", Public: "the client went away", Stage: "limit"}},
	{fs.ErrNotExist, Problem{Status: 404, Code: "NOT-FOUND", Public: "no such module, version or file", Stage: "release"}},
}

// problemOf is the one place where an error becomes a status.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*identity.Error](err); ok {
		return refusedIdentity(e)
	}
	if e, ok := errors.AsType[*mirror.QuarantineError](err); ok {
		return &Problem{
			Status: 403, Code: "QUARANTINED", Stage: "release", Remedy: "none", Err: err,
			Public: "an operator has stopped this version", Advice: wrapped(e.Reason),
		}
	}
	if e, ok := errors.AsType[*mirror.GoVersionError](err); ok {
		return &Problem{
			Status: 502, Code: "GO-TOO-OLD", Stage: "release", Err: err,
			Public: fmt.Sprintf("the module needs go %s; this gateway fetches with go %s", e.Want, e.Have),
		}
	}
	for _, row := range table {
		if errors.Is(err, row.match) {
			p := row.problem
			p.Err = err
			return &p
		}
	}
	return &Problem{Status: 500, Code: "INTERNAL", Public: "internal error", Stage: "limit", Err: err}
}

// wrapped is a printable text in lines that a terminal shows whole, three at most.
func wrapped(text string) []string {
	var lines []string
	for word := range strings.FieldsSeq(text) {
		last := len(lines) - 1
		switch {
		case last >= 0 && len(lines[last])+1+len(word) <= 75:
			lines[last] += " " + word
		case last == 2:
			return lines
		default:
			lines = append(lines, word[:min(len(word), 75)])
		}
	}
	return lines
}

// identityProblems holds the codes of identity, a closed list. Codes that an attacker could learn from share one text.
var identityProblems = map[string]Problem{
	"CREDENTIAL-MISSING": {Status: 401, Public: "this gateway wants to know who asks", Challenge: "login_required", Advice: askSignIn},
	"CREDENTIAL-INVALID": {Status: 401, Public: "the credential does not hold", Challenge: "login_required", Advice: askSignIn},
	"TOKEN-EXPIRED":      {Status: 401, Public: "the token has expired", Challenge: "token_expired", Advice: askSignIn},
	"TOKEN-REVOKED":      {Status: 401, Public: "the token was revoked", Challenge: "login_required", Advice: askSignIn},
	"SESSION-OVER":       {Status: 401, Public: "the session is over", Challenge: "login_required"},
	"SCOPE":              {Status: 403, Public: "the token's scope does not reach this module", Remedy: "none"},
	"DEVICE-REQUIRED":    {Status: 403, Public: "this is done on a device that proves itself", Remedy: "none", Challenge: "device_required"},
	"DEVICE-UNKNOWN":     {Status: 403, Public: "this device is not enrolled", Remedy: "none", Challenge: "device_required", Advice: askDevices},
	"DEVICE-BLOCKED":     {Status: 403, Public: "this device was blocked", Remedy: "none", Advice: askDevices},
	"DEVICE-REVOKED":     {Status: 403, Public: "this device's certificate was revoked", Remedy: "none", Advice: askDevices},
	"DEVICE-MISMATCH":    {Status: 403, Public: "this device, key and token do not belong together", Remedy: "none", Challenge: "device_required"},
	"CERT-INVALID":       {Status: 403, Public: "this device's certificate does not hold here", Remedy: "none", Challenge: "device_required", Advice: askDevices},
	"CERT-EXPIRED":       {Status: 403, Public: "this device's certificate has expired", Remedy: "none", Challenge: "device_required", Advice: askDevices},
	"CRL-STALE":          {Status: 403, Public: "the revocation list of this device's authority is out of date", Remedy: "none", Advice: []string{"an operator of this gateway has to renew it; nothing on your machine is wrong"}},
	"LOCKED":             {Status: 403, Public: "an administrator stopped this user, device or token", Remedy: "none"},
	"REVOCATION-STALE":   {Status: 403, Public: "what was revoked is not known here just now", Remedy: "wait"},
	"RATE":               {Status: 429, Public: "too many at once; wait ten minutes", RetryAfter: 600},
	"GRANT-PENDING":      {Status: 400, Public: "nobody has answered yet; ask again"},
	"GRANT-DENIED":       {Status: 400, Public: "whoever was asked said no"},
	"REQUEST-INVALID":    {Status: 400, Public: "the credential is not of a form that a client sends"},
	"ISSUER-DOWN":        {Status: 503, Public: "the identity provider cannot be asked", RetryAfter: 10},
	"STATE-DOWN":         {Status: 503, Public: "the state database cannot be asked", RetryAfter: 10},
}

// askSignIn is what somebody does whose credential does not hold; whoever set the go command up by hand asks doctor why.
var askSignIn = []string{"to sign in: headgate login; to see what is wrong here: headgate doctor"}

// askDevices is what somebody does whose device is refused.
var askDevices = []string{"ask whoever looks after devices, and name the decision below"}

func refusedIdentity(e *identity.Error) *Problem {
	p, known := identityProblems[string(e.Code)]
	if !known {
		return &Problem{Status: 500, Code: "INTERNAL", Public: "internal error", Stage: "identity", Err: e}
	}
	p.Code, p.Stage, p.Err = string(e.Code), "identity", e
	return &p
}

// refused is the problem for a decision that denies.
func refused(d policy.Decision, stage, text string) *Problem {
	p := &Problem{Status: 403, Stage: stage, Remedy: string(d.Remedy), Text: text, Public: "policy does not allow this"}
	if len(d.Reasons) > 0 {
		p.Code = d.Reasons[0].Code // codes are those of warnings as well
	} else if len(d.Codes) > 0 {
		p.Code = d.Codes[0]
	}
	if p.Code == string(identity.DeviceRequired) {
		p.Challenge = "device_required"
	}
	return p
}

// body is the text of a refusal or error: at most 8 lines and 648 bytes of printable ASCII, which is what the go
// command shows of it (cmd/go/internal/web).
func (p *Problem) body(id, revision string) string {
	if p.Text != "" {
		return p.Text
	}
	lines := append([]string{p.Code + ": " + p.Public}, p.Advice...)
	last := "decision " + shortID(id)
	if revision != "" {
		last += ", policy " + shortRevision(revision)
	}
	return strings.Join(append(lines, last), "\n") + "\n"
}

// write sends the problem to the client.
func (p *Problem) write(w http.ResponseWriter, r *http.Request, id, revision string) int64 {
	h := w.Header()
	body := p.body(id, revision)
	h["Content-Type"] = textPlain
	h["Cache-Control"] = noStore
	h["X-Content-Type-Options"] = nosniff
	h.Set("Content-Length", fmt.Sprint(len(body)))
	h.Set("Headgate-Decision", shortID(id))
	h.Set("Headgate-Code", p.Code)
	if revision != "" {
		h.Set("Headgate-Revision", revision)
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", fmt.Sprint(p.RetryAfter))
	}
	if p.Status == http.StatusMethodNotAllowed && h.Get("Allow") == "" {
		h.Set("Allow", "GET, HEAD")
	}
	if p.Challenge != "" {
		h["Www-Authenticate"] = []string{`Basic realm="headgate"`, `Bearer realm="headgate", error="` + p.Challenge + `"`}
	}
	if connectionOver(p.Code) {
		h["Connection"] = closeConnection
	}
	w.WriteHeader(p.Status)
	if r.Method == http.MethodHead {
		return 0
	}
	n, _ := w.Write([]byte(body)) // a client that is gone gets no second answer
	return int64(n)
}

// shortID is the part of an event id that a person quotes.
func shortID(id string) string { return strings.ToLower(id[:min(8, len(id))]) }

func shortRevision(revision string) string { return revision[:min(12, len(revision))] }

// unwritable wraps a failed append: the decision on what was asked is therefore not carried out.
func unwritable(what string, err error) error {
	return fmt.Errorf("recording %s: %w: %w", what, errAudit, err)
}
