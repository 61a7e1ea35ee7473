package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// An oauthCall reads the form of a request and returns what to do once the record is durable.
type oauthCall func(x *exchange, form url.Values) (effect func(context.Context) (any, error), err error)

// oauthRoutes are the endpoints of programs: RFC 8693, 8628, 7009, 7662 and 8414.
func (s *Server) oauthRoutes(mux *http.ServeMux) {
	for path, call := range map[string]struct {
		action string
		do     oauthCall
	}{
		"/-/oauth/token":                {"token.exchange", s.token},
		"/-/oauth/device_authorization": {"grant.begin", s.authorizeDevice},
		"/-/oauth/revoke":               {"token.revoke", s.revokeByText},
		"/-/oauth/introspect":           {"token.introspect", s.introspect},
	} {
		mux.Handle("POST "+path, s.oauth(call.action, call.do))
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", "POST")
			s.refuse(w, r, errMethod)
		})
	}
	mux.Handle("GET /-/.well-known/oauth-authorization-server", s.oauth("oauth.metadata", s.oauthMetadata))
}

// oauth runs one call. Its record is durable before it takes effect.
func (s *Server) oauth(action string, do oauthCall) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := deadline(r.Context())
		defer cancel()
		x := s.begin(w, r)
		x.action, x.rec.Kind, x.rec.Action = "token", audit.KindAuth, action
		effect, err := s.oauthEffect(x, do)
		err = oauthProblem(err)
		if err := s.record(ctx, x.decided(nil, err), err); err != nil {
			x.oauthError(err)
			return
		}
		result, err := effect(ctx)
		if err != nil {
			x.failed(err)
			x.oauthError(oauthProblem(err))
			return
		}
		x.json(http.StatusOK, result)
	})
}

func (s *Server) oauthEffect(x *exchange, do oauthCall) (func(context.Context) (any, error), error) {
	if err := s.audit.Writable(); err != nil {
		return nil, unwritable("what was asked", err)
	}
	form, err := readForm(x.r)
	if err != nil {
		return nil, err
	}
	return do(x, form)
}

// token answers POST /-/oauth/token: a device code that somebody allowed (RFC 8628), or the exchange of an issuer's or
// Headgate token for one that reaches no further and lives no longer (RFC 8693).
func (s *Server) token(x *exchange, form url.Values) (func(context.Context) (any, error), error) {
	draft, err := s.draftToken(x, form)
	x.drafted(draft.Token, err)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (any, error) {
		secret, err := s.identity.IssueInSession(ctx, draft)
		return map[string]any{
			"access_token": secret, "issued_token_type": identity.TypeAccessToken, "token_type": "Bearer",
			"expires_in": int64(time.Until(draft.Token.Expires).Seconds()), "scope": draft.Token.Scope.String(),
		}, err
	}, nil
}

func (s *Server) draftToken(x *exchange, form url.Values) (identity.Draft, error) {
	request, err := identity.ParseExchange(form)
	if err != nil {
		return identity.Draft{}, err
	}
	if request.GrantType == identity.GrantDeviceCode {
		x.rec.Action = "signin.device_code"
		return s.identity.DraftGranted(x.r.Context(), form.Get("client_id"), form.Get("device_code"), x.r)
	}
	request.Request = x.r
	return s.identity.Exchange(x.r.Context(), request)
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
	if p.Status < http.StatusInternalServerError && p.Status != http.StatusTooManyRequests && !e.Code.OfDevice() {
		p.Status, p.Challenge = http.StatusBadRequest, ""
	}
	switch e.Code {
	case identity.RequestInvalid:
		p.Public = "the request is none that is served here"
	case identity.ScopeExceeded:
		p.Public = "more was asked for than can be had"
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
