package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// Most of an answer about the audit log that one call gives.
const (
	auditPage    = 100
	maxAuditPage = 1000
)

// AuditFetches is the answer of GET /-/api/v1/audit/who.
type AuditFetches struct {
	*audit.WhoAnswer
	// Damage is what was found instead of an answer.
	Damage *audit.DamageError `json:"damage,omitempty"`
}

// AuditRecords is the answer of GET /-/api/v1/audit/search, newest first.
type AuditRecords struct {
	Records []AuditRecord      `json:"records"`
	Next    string             `json:"next,omitempty"` // before= of the next page; "" at the end
	Covered audit.Coverage     `json:"covered"`
	Damage  *audit.DamageError `json:"damage,omitempty"`
}

// AuditRecord is one record and its place in the log.
type AuditRecord struct {
	At     string          `json:"at"`
	Record json.RawMessage `json:"record"`
}

// AuditProof is a proof as audit.CheckProof and audit.CheckConsistency take it.
type AuditProof struct {
	Proof  string             `json:"proof,omitempty"`
	Damage *audit.DamageError `json:"damage,omitempty"`
}

// AuditTree is the newest signed checkpoint, the log's own key list, and how the log last verified itself.
type AuditTree struct {
	Checkpoint string              `json:"checkpoint,omitempty"`
	Keys       string              `json:"keys,omitempty"`
	Verified   *audit.Verification `json:"verified,omitempty"`
	Damage     *audit.DamageError  `json:"damage,omitempty"`
}

// ConsistencyRequest is the body of POST /-/api/v1/audit/consistency.
type ConsistencyRequest struct {
	// Since is a signed checkpoint that was kept.
	Since string `json:"since"`
}

// auditRoutes are the questions about the log. Who may ask them changes nothing by it, and each is recorded before it
// is answered.
func (s *Server) auditRoutes(mux *http.ServeMux) {
	read := func(action string, do operation) http.Handler { return s.call(action, identity.ActionAudit, do) }
	mux.Handle("GET /-/api/v1/audit/who", read("audit.who", s.auditWho))
	mux.Handle("GET /-/api/v1/audit/search", read("audit.search", s.auditSearch))
	mux.Handle("GET /-/api/v1/audit/proof", read("audit.prove", s.auditProof))
	mux.Handle("GET /-/api/v1/audit/checkpoint", read("audit.checkpoint", s.auditCheckpoint))
	mux.Handle("POST /-/api/v1/audit/consistency", read("audit.consistency", s.auditConsistency))
}

// An auditQuery reads the parameters of a question. Each may stand once; one that is not known is a mistake, since an
// answer to another question than was meant may be believed.
type auditQuery struct {
	values url.Values // those that are known
	err    error
}

func newAuditQuery(r *http.Request, known ...string) *auditQuery {
	q := &auditQuery{values: url.Values{}}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		q.err = invalid("the query cannot be read")
	}
	for key, all := range values {
		if len(all) > 1 || !slices.Contains(known, key) {
			q.err = invalid("a parameter is unknown or stands twice; want at most once each of: %s", strings.Join(known, ", "))
			continue
		}
		q.values[key] = all
	}
	return q
}

func (q *auditQuery) text(key string) string { return q.values.Get(key) }

// flag is set by its name alone or by true.
func (q *auditQuery) flag(key string) bool {
	switch v := q.values.Get(key); v {
	case "", "true":
		return q.values.Has(key)
	case "false":
	default:
		q.err = invalid("%s is %q; want true or false", key, v)
	}
	return false
}

func (q *auditQuery) time(key string) time.Time {
	v := q.values.Get(key)
	if v == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		q.err = invalid("%s is %q; want a time as in 2026-11-23T09:00:00Z", key, v)
	}
	return t
}

func (q *auditQuery) limit() int {
	v := q.values.Get("limit")
	if v == "" {
		return auditPage
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxAuditPage {
		q.err = invalid("limit is %q; want 1 to %d", v, maxAuditPage)
	}
	return n
}

// asked is what the record says of a question: the parameters that are known, in one order. What else a client put into
// its query may be a secret.
func (q *auditQuery) asked(x *exchange) {
	x.rec.Change = audit.Change{Object: "audit log", Note: q.values.Encode()}
}

func (s *Server) auditWho(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	q := newAuditQuery(x.r, "module", "version", "delivered", "refused", "verify", "limit", "after")
	q.asked(x)
	who := audit.WhoQuery{
		Module: q.text("module"), Version: q.text("version"), Delivered: q.flag("delivered"), Refused: q.flag("refused"),
		Verify: q.flag("verify"), Limit: q.limit(), After: q.text("after"),
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := who.Validate(); err != nil {
		return nil, invalid("%v", err)
	}
	return func(ctx context.Context) (any, error) {
		answer, err := s.archive.Who(ctx, who)
		damage, err := damaged(err)
		return AuditFetches{WhoAnswer: answer, Damage: damage}, err
	}, nil
}

// damaged is the damage that a question met: an answer, and no failure of the gateway.
func damaged(err error) (*audit.DamageError, error) {
	if d, ok := errors.AsType[*audit.DamageError](err); ok {
		return d, nil
	}
	return nil, err
}

func (s *Server) auditSearch(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	q := newAuditQuery(x.r, "subject", "device", "module", "version", "code", "effect", "id", "since", "until", "limit", "before")
	q.asked(x)
	search := audit.SearchQuery{
		Subject: q.text("subject"), Device: q.text("device"), Module: q.text("module"), Version: q.text("version"),
		Code: q.text("code"), Effect: q.text("effect"), EventID: q.text("id"), Since: q.time("since"), Until: q.time("until"),
		Limit: q.limit(),
	}
	if before := q.text("before"); before != "" {
		at, err := audit.ParsePosition(before)
		if err != nil {
			return nil, invalid("before: %v", err)
		}
		search.Before = at
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := search.Validate(); err != nil {
		return nil, invalid("%v", err)
	}
	return func(ctx context.Context) (any, error) { return s.searchPage(ctx, search) }, nil
}

// searchPage is one page of a search. Its cursor is the place of the last record, so that what is recorded in the
// meantime, this question too, moves nothing.
func (s *Server) searchPage(ctx context.Context, q audit.SearchQuery) (AuditRecords, error) {
	page := AuditRecords{Records: []AuditRecord{}}
	end, err := s.archive.Search(ctx, q, func(at audit.Position, e audit.Entry) error {
		page.Records = append(page.Records, AuditRecord{At: at.String(), Record: append(json.RawMessage(nil), e.Raw...)})
		return nil
	})
	if page.Damage, err = damaged(err); err != nil || end == nil {
		return page, err
	}
	page.Covered = end.Covered
	if end.More {
		page.Next = end.Last.String()
	}
	return page, nil
}

func (s *Server) auditProof(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	q := newAuditQuery(x.r, "record")
	q.asked(x)
	word := q.text("record")
	if q.err != nil {
		return nil, q.err
	}
	if word == "" {
		return nil, invalid("record is missing; want its number, EPOCH-SEQ, or an event id")
	}
	return func(ctx context.Context) (any, error) {
		at, err := s.archive.Locate(ctx, word)
		if errors.Is(err, audit.ErrName) {
			return nil, invalid("record: %v", err)
		}
		var text []byte
		if err == nil {
			text, err = s.archive.Prove(ctx, at)
		}
		damage, err := damaged(err)
		return AuditProof{Proof: string(text), Damage: damage}, err
	}, nil
}

func (s *Server) auditCheckpoint(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	x.rec.Change = audit.Change{Object: "audit log"}
	return func(context.Context) (any, error) {
		signed, err := s.archive.Checkpoint()
		var keys string
		if err == nil {
			keys, err = s.archive.Keys()
		}
		damage, err := damaged(err)
		return AuditTree{Checkpoint: string(signed), Keys: keys, Verified: s.audit.Verified(), Damage: damage}, err
	}, nil
}

func (s *Server) auditConsistency(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	var q ConsistencyRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(q.Since, "\n")
	x.rec.Change = audit.Change{Object: "audit log", Note: "since a checkpoint of " + first}
	return func(context.Context) (any, error) {
		text, err := s.archive.ProveSince([]byte(q.Since))
		damage, err := damaged(err)
		return AuditProof{Proof: string(text), Damage: damage}, err
	}, nil
}
