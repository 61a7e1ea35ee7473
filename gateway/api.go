package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// TokenRequest is the body of POST /-/api/v1/tokens.
type TokenRequest struct {
	Class   string   `json:"class"`             // person, ci, admin or auditor
	Subject string   `json:"subject"`           // who holds it
	Groups  []string `json:"groups,omitempty"`  // what policy knows the holder by
	Owner   string   `json:"owner,omitempty"`   // ci: who answers for it
	Repo    string   `json:"repo,omitempty"`    // ci: where it is used
	RepoID  string   `json:"repo_id,omitempty"` // ci: the repository's immutable id
	Modules []string `json:"modules,omitempty"` // patterns as in GOPRIVATE; none reaches nothing
	Actions []string `json:"actions,omitempty"` // discover, metadata, content, mint, admin, audit; none is all that the class has
	Seconds int64    `json:"seconds,omitempty"` // life; 0 is the class's default
	Note    string   `json:"note,omitempty"`
}

// IssuedToken is the answer to a TokenRequest. Secret is shown this once.
type IssuedToken struct {
	Secret string         `json:"token"`
	Token  identity.Token `json:"info"`
}

// Status is the answer of GET /-/api/v1/status.
type Status struct {
	Version  string    `json:"version"`
	URL      string    `json:"url"`
	Started  time.Time `json:"started"`
	Policy   any       `json:"policy,omitempty"`
	Writable bool      `json:"audit_writable"`
}

// tokenClasses are the API's words for token classes, with what a token can do when the request names no actions.
var tokenClasses = map[string]struct {
	class   identity.Class
	actions []string
}{
	"person": {identity.ClassPerson, []string{identity.ActionDiscover, identity.ActionMetadata, identity.ActionContent, identity.ActionMint}},
	"ci":     {identity.ClassCI, []string{identity.ActionDiscover, identity.ActionMetadata, identity.ActionContent}},
	"admin":  {identity.ClassAdmin, []string{identity.ActionAdmin}},
	// Reads the audit log, and changes nothing.
	"auditor": {identity.ClassAdmin, []string{identity.ActionAudit}},
}

// An operation is one call of the API: it reads the request and returns what to do once the record is durable.
type operation func(x *exchange, by identity.Principal) (effect func(context.Context) (any, error), err error)

// api is the administration interface, the same over the socket and over https.
func (s *Server) api() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /-/api/v1/status", s.admin("status.read", s.readStatus))
	mux.Handle("GET /-/api/v1/policy", s.admin("policy.read", s.readPolicy))
	mux.Handle("GET /-/api/v1/tokens", s.admin("token.list", s.listTokens))
	mux.Handle("POST /-/api/v1/tokens", s.admin("token.create", s.createToken))
	mux.Handle("DELETE /-/api/v1/tokens/{id}", s.admin("token.revoke", s.revokeToken))
	s.deviceRoutes(mux)
	mux.Handle("GET /-/api/v1/locks", s.admin("lock.list", s.listLocks))
	mux.Handle("POST /-/api/v1/locks", s.admin("lock.create", s.createLock))
	mux.Handle("DELETE /-/api/v1/locks", s.admin("lock.lift", s.liftLock))
	s.careRoutes(mux)
	s.auditRoutes(mux)
	s.evaluationRoutes(mux)
	mux.Handle("/-/api/v1/", s.admin("none", func(*exchange, identity.Principal) (func(context.Context) (any, error), error) {
		return nil, &Problem{Status: http.StatusNotFound, Code: "NOT-FOUND", Public: "no such operation", Stage: "protocol"}
	}))
	return mux
}

// admin runs an operation for an administrator. Its record is durable before it takes effect.
func (s *Server) admin(action string, do operation) http.Handler {
	return s.call(action, identity.ActionAdmin, do)
}

// call runs an operation for whoever may do what it needs.
func (s *Server) call(action, needs string, do operation) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := deadline(r.Context())
		defer cancel()
		limitBody(w, r)
		x := s.begin(w, r)
		x.action, x.rec.Kind, x.rec.Action = "api", audit.KindAdmin, action
		by, err := s.allowed(x, needs)
		var effect func(context.Context) (any, error)
		if err == nil {
			effect, err = do(x, by)
		}
		if err := s.record(ctx, x.decided(nil, err), err); err != nil {
			x.apiError(err)
			return
		}
		result, err := effect(ctx)
		if err != nil {
			x.failed(err)
			x.apiError(err)
			return
		}
		x.json(http.StatusOK, result)
	})
}

// allowed is who may do what needs this action: root or the gateway's own user on the socket, or a token that holds it.
func (s *Server) allowed(x *exchange, needs string) (identity.Principal, error) {
	p, ok := x.r.Context().Value(peerKey{}).(identity.Principal)
	if ok {
		noteSubject(x.rec, p)
	} else {
		var err error
		if p, err = s.authenticate(x); err != nil {
			return p, err
		}
	}
	if !p.Allows("", needs) {
		return p, errNoAccess
	}
	return p, nil
}

func (s *Server) createToken(x *exchange, by identity.Principal) (func(context.Context) (any, error), error) {
	var q TokenRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	request, err := q.identity()
	if err != nil {
		return nil, err
	}
	if by.Credential.Via != "socket" {
		request.By = &by
	}
	draft, err := s.identity.Draft(x.r.Context(), request)
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{
		Object: "token " + draft.Token.ID,
		Note:   fmt.Sprintf("class %s for %s until %s: %s", q.Class, q.Subject, draft.Token.Expires.Format(time.RFC3339), draft.Token.Scope),
	}
	return func(ctx context.Context) (any, error) {
		secret, err := s.identity.Issue(ctx, draft)
		return IssuedToken{Secret: secret, Token: draft.Token}, err
	}, nil
}

// identity is the request in the words of package identity.
func (q TokenRequest) identity() (identity.TokenRequest, error) {
	known, ok := tokenClasses[q.Class]
	if !ok {
		return identity.TokenRequest{}, invalid("class is %q; want person, ci, admin or auditor", q.Class)
	}
	subject := identity.Subject{Type: identity.Person, ID: q.Subject, Groups: q.Groups}
	if known.class == identity.ClassCI {
		subject.Type = identity.Workload
		subject.CI = &identity.CI{Provider: "static", Repo: q.Repo, RepoID: q.RepoID}
	}
	actions := q.Actions
	if len(actions) == 0 {
		actions = known.actions
	}
	return identity.TokenRequest{
		Class: known.class, Subject: subject, Owner: q.Owner, Note: q.Note,
		Scope: identity.Scope{Modules: q.Modules, Actions: actions}, Life: time.Duration(q.Seconds) * time.Second,
	}, nil
}

func (s *Server) listTokens(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	query := x.r.URL.Query()
	filter := identity.Filter{Subject: query.Get("subject"), Issuer: query.Get("issuer"), Ended: query.Has("all")}
	return func(ctx context.Context) (any, error) {
		tokens, err := s.identity.Tokens(ctx, filter)
		if tokens == nil {
			tokens = []identity.Token{}
		}
		return map[string]any{"tokens": tokens}, err
	}, nil
}

func (s *Server) revokeToken(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	id := x.r.PathValue("id")
	if _, err := s.identity.Token(x.r.Context(), id); err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "token " + id}
	return func(ctx context.Context) (any, error) { return s.identity.Revoke(ctx, id) }, nil
}

func (s *Server) readStatus(*exchange, identity.Principal) (func(context.Context) (any, error), error) {
	return func(context.Context) (any, error) {
		status := Status{Version: s.version, URL: s.URL(), Started: s.started, Writable: s.audit.Writable() == nil}
		if s.policy != nil { // there is none in a gateway for the administrator alone
			status.Policy = s.policy.Status()
		}
		return status, nil
	}, nil
}

// readPolicy gives the state of policy: what is active and since when, what was rejected and why, what is kept.
func (s *Server) readPolicy(*exchange, identity.Principal) (func(context.Context) (any, error), error) {
	if s.policy == nil {
		return nil, &Problem{Status: http.StatusServiceUnavailable, Code: "NO-POLICY", Public: "no gateway runs here, and so no policy is active", Stage: "policy", RetryAfter: 30}
	}
	return func(context.Context) (any, error) { return s.policy.Status(), nil }, nil
}

func readJSON(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return invalid("body is not the JSON that is wanted: %v", err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &Problem{Status: http.StatusBadRequest, Code: "REQUEST-INVALID", Public: fmt.Sprintf(format, args...), Stage: "protocol"}
}

// apiError answers an administrator, who may know why.
func (x *exchange) apiError(err error) {
	p := problemOf(err)
	if errors.Is(err, fs.ErrNotExist) {
		p.Public = "no such object"
	}
	if e, ok := errors.AsType[*identity.Error](err); ok && e.Code != identity.CredentialInvalid {
		p.Public = e.Err.Error()
	}
	if p.Challenge != "" {
		x.w.Header()["Www-Authenticate"] = []string{`Bearer realm="headgate", error="` + p.Challenge + `"`}
	}
	x.jsonError(p.Status, p, p.Code)
}

// socket serves the API to whoever the kernel says is at the other end.
func (s *Server) socket(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !canonical(r.URL.EscapedPath()) {
			s.refuse(w, r, errRequest)
			return
		}
		api.ServeHTTP(w, r)
	})
}

type peerKey struct{}

// peer asks the kernel which user is at the other end of a Unix socket: unix(7), SO_PEERCRED.
func peer(ctx context.Context, c net.Conn) context.Context {
	p := identity.Principal{Subject: identity.Subject{Type: identity.Person, Method: "socket"}, Credential: identity.Credential{Via: "socket"}}
	if uid, err := peerUID(c); err == nil {
		p.Subject.ID = "uid:" + strconv.Itoa(uid)
		if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
			p.Subject.ID = "user:" + u.Username
		}
		if uid == 0 || uid == os.Getuid() {
			p.Scope = identity.Scope{Actions: []string{identity.ActionAdmin, identity.ActionAudit}}
		}
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerUID(c net.Conn) (int, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Uid), nil
}
