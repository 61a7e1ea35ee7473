package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// token answers POST /-/oauth/token: the exchange of an issuer's token, or of a Headgate token, for a Headgate token
// that reaches no further and lives no longer (RFC 8693). The record is durable before the token holds.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	x := s.begin(w, r)
	x.action, x.rec.Kind, x.rec.Action = "token", audit.KindAuth, "token.exchange"
	draft, err := s.draftExchange(r)
	x.drafted(draft.Token, err)
	err = oauthProblem(err)
	if err := s.record(r.Context(), x.decided(nil, err), err); err != nil {
		x.oauthError(err)
		return
	}
	secret, err := s.identity.Issue(r.Context(), draft)
	if err != nil {
		x.failed(err)
		x.oauthError(oauthProblem(err))
		return
	}
	x.json(http.StatusOK, map[string]any{
		"access_token": secret, "issued_token_type": identity.TypeAccessToken, "token_type": "Bearer",
		"expires_in": int64(time.Until(draft.Token.Expires).Seconds()), "scope": draft.Token.Scope.String(),
	})
}

func (s *Server) draftExchange(r *http.Request) (identity.Draft, error) {
	form, err := readForm(r)
	if err != nil {
		return identity.Draft{}, err
	}
	request, err := identity.ParseExchange(form)
	if err != nil {
		return identity.Draft{}, err
	}
	request.Request = r
	return s.identity.Exchange(r.Context(), request)
}

// readForm takes the parameters from the body alone: what stands in a URL ends up in logs (RFC 6749, section 3.2).
func readForm(r *http.Request) (url.Values, error) {
	if err := r.ParseForm(); err != nil {
		return nil, &identity.Error{Code: identity.RequestInvalid, Err: err}
	}
	return r.PostForm, nil
}

// drafted notes whose token it is, or who was refused one as far as that is known.
func (x *exchange) drafted(t identity.Token, err error) {
	p := identity.Principal{Subject: t.Subject, Credential: identity.Credential{Class: t.Class, ID: t.ID}}
	if e, ok := errors.AsType[*identity.Error](err); ok {
		p.Subject, p.Credential, p.Device = e.Subject, e.Credential, e.Device
	} else if t.Bound != nil {
		p.Device = identity.Device{ID: t.Bound.Device, SPKI: t.Bound.SPKI, Serial: t.Bound.Serial, Via: "mtls"}
	}
	noteSubject(x.rec, p)
	if t.ID != "" {
		x.rec.Change = audit.Change{Object: "token " + t.ID, Note: t.Scope.String()}
	}
}

// oauthProblem is a refusal as a token endpoint puts it: whatever is wrong with what was presented is 400, since the
// caller has no credential of its own here (RFC 6749, section 5.2).
func oauthProblem(err error) error {
	e, ok := errors.AsType[*identity.Error](err)
	if !ok {
		return err
	}
	p := refusedIdentity(e)
	if p.Status < http.StatusInternalServerError && !e.Code.OfDevice() {
		p.Status, p.Challenge = http.StatusBadRequest, ""
	}
	switch e.Code {
	case identity.RequestInvalid:
		p.Public = "the request is not a token exchange that is served here"
	case identity.ScopeExceeded:
		p.Public = "more was asked for than the subject token reaches"
	}
	return p
}

// oauthError answers in the form of RFC 6749, section 5.2.
func (x *exchange) oauthError(err error) {
	p, word := problemOf(err), "server_error"
	if e, ok := errors.AsType[*identity.Error](err); ok {
		word = e.OAuth()
	}
	if p.RetryAfter > 0 {
		x.w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	x.jsonError(p.Status, p, word)
}

// json sends an answer of the API. It is never cached.
func (x *exchange) json(status int, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		x.jsonError(http.StatusInternalServerError, problemOf(err), "server_error")
		return
	}
	x.writeJSON(status, body)
	x.done("allow")
}

func (x *exchange) jsonError(status int, p *Problem, word string) {
	body, _ := json.Marshal(map[string]string{ // of strings it cannot fail
		"error": word, "error_description": p.Code + ": " + p.Public, "decision": shortID(x.rec.EventID),
	})
	x.writeJSON(status, body)
	x.done(p.effect())
}

func (x *exchange) writeJSON(status int, body []byte) {
	h := x.w.Header()
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
	h["X-Content-Type-Options"] = nosniff
	h.Set("Headgate-Decision", shortID(x.rec.EventID))
	x.w.WriteHeader(status)
	_, _ = x.w.Write(append(body, '\n')) // a client that is gone gets no second answer
}
