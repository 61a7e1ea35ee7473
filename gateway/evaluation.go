package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

const (
	maxEvaluations = 256 // in one request
	evaluators     = 8   // of one request, at once: each may wait for an upstream
)

// EvaluationRequest is the body of POST /-/access/v1/evaluation and evaluations, in the shape of the OpenID Foundation's
// Authorization API 1.0. What a question leaves out is that of the request; a subject that both leave out is who asks.
type EvaluationRequest struct {
	Evaluation
	Evaluations []Evaluation      `json:"evaluations,omitempty"`
	Options     EvaluationOptions `json:"options,omitzero"`
}

// EvaluationOptions say how questions are asked.
type EvaluationOptions struct {
	Semantic string `json:"evaluations_semantic,omitempty"` // execute_all, which is what empty means
}

// Evaluation is one question: what would be answered if this were asked.
type Evaluation struct {
	Subject  *EvaluationEntity  `json:"subject,omitempty"`
	Action   *EvaluationAction  `json:"action,omitempty"`
	Resource *EvaluationEntity  `json:"resource,omitempty"`
	Context  *EvaluationContext `json:"context,omitempty"`
}

// EvaluationEntity is who asks (type person or workload), or what is asked for (type go-module or go-toolchain, id PATH or
// PATH@VERSION). Properties are the fields of policy's input beside these: of a resource, its facts.
type EvaluationEntity struct {
	Type       string          `json:"type"`
	ID         string          `json:"id"`
	Properties json.RawMessage `json:"properties,omitempty"`
}

// EvaluationAction is list, latest, query, info, mod, zip or sumdb.
type EvaluationAction struct {
	Name string `json:"name"`
}

// EvaluationContext is what surrounds the question.
type EvaluationContext struct {
	Device *policy.Device `json:"device,omitempty"`
	Zone   string         `json:"zone,omitempty"`
	Day    int            `json:"day,omitempty"` // UTC days since 1970-01-01; 0 is today
}

// EvaluationReply is the answer to several questions, in their order.
type EvaluationReply struct {
	Evaluations []EvaluationAnswer `json:"evaluations"`
}

// EvaluationAnswer is the answer to one. Decision is true only where policy allows.
type EvaluationAnswer struct {
	Decision bool             `json:"decision"`
	Context  EvaluationReason `json:"context"`
}

// EvaluationReason is the decision document with what a person is told.
type EvaluationReason struct {
	*policy.Decision
	Revision string `json:"revision,omitempty"`  // of the policy
	WorksNow string `json:"works_now,omitempty"` // nearest version that is fit
	Text     string `json:"text,omitempty"`      // the refusal as the go command would show it
	// Error says why there is no decision.
	Error *EvaluationError `json:"error,omitempty"`
}

// EvaluationError is why a question could not be answered.
type EvaluationError struct {
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// evaluationRoutes are what-if questions.
func (s *Server) evaluationRoutes(mux *http.ServeMux) {
	mux.Handle("POST /-/access/v1/evaluation", s.evaluate(false))
	mux.Handle("POST /-/access/v1/evaluations", s.evaluate(true))
	mux.Handle("/-/access/v1/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := s.begin(w, r)
		x.action, x.rec.Kind, x.rec.Action = "api", audit.KindAdmin, "none"
		x.apiError(s.record(r.Context(), x, &Problem{Status: http.StatusNotFound, Code: "NOT-FOUND", Public: "no such operation", Stage: "protocol"}))
	}))
}

// evaluate answers what-if questions. That they were asked, by whom and with what result is durable before the answer.
func (s *Server) evaluate(several bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := deadline(r.Context())
		defer cancel()
		limitBody(w, r)
		x := s.begin(w, r)
		x.action, x.rec.Kind, x.rec.Action = "api", audit.KindAdmin, "policy.whatif"
		answers, batch, err := s.evaluated(ctx, x, several)
		if err := s.record(ctx, x.decided(nil, err), err); err != nil {
			x.apiError(err)
			return
		}
		if id := r.Header.Get("X-Request-Id"); id != "" && len(id) <= 128 {
			w.Header().Set("X-Request-Id", id)
		}
		if batch {
			x.json(http.StatusOK, EvaluationReply{answers})
			return
		}
		x.json(http.StatusOK, answers[0])
	})
}

// evaluated walks a request from its body to its answers. batch tells the form in which they are given.
func (s *Server) evaluated(ctx context.Context, x *exchange, several bool) (answers []EvaluationAnswer, batch bool, err error) {
	if err := s.audit.Writable(); err != nil {
		return nil, false, unwritable("what was asked", err)
	}
	by, err := s.asker(x)
	if err != nil {
		return nil, false, err
	}
	if s.policy == nil || s.mirror == nil {
		return nil, false, errNoMirror
	}
	var q EvaluationRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, false, err
	}
	asked, batch, err := q.questions(several)
	if err != nil {
		return nil, false, err
	}
	generation, err := s.policy.Current()
	if err != nil {
		return nil, false, err
	}
	x.revision, x.rec.PolicyRev, x.rec.BundleSHA256 = generation.Revision(), generation.Revision(), generation.Digest()
	questions := make([]*question, len(asked))
	for i, e := range asked {
		if questions[i], err = s.question(e, by); err != nil {
			return nil, false, err
		}
	}
	clearReadDeadline(x) // that of the body would end the wait for an upstream
	answers = make([]EvaluationAnswer, len(asked))
	var group errgroup.Group
	group.SetLimit(evaluators)
	for i, q := range questions {
		group.Go(func() error {
			answers[i] = s.answered(ctx, x, generation, q)
			return nil
		})
	}
	_ = group.Wait() // what went wrong stands in each answer
	x.asked(questions, answers)
	return answers, batch, ctx.Err()
}

// asker is who asks: whoever the socket or a credential proves.
func (s *Server) asker(x *exchange) (identity.Principal, error) {
	if p, ok := x.r.Context().Value(peerKey{}).(identity.Principal); ok {
		noteSubject(x.rec, p)
		return p, nil
	}
	p, err := s.authenticate(x)
	if err == nil {
		err = s.fresh(x, "")
	}
	return p, err
}

// questions are those of a request, whole. A request for several that lists none is one question, by the API's rules.
func (q *EvaluationRequest) questions(several bool) (all []Evaluation, batch bool, err error) {
	if s := q.Options.Semantic; s != "" && s != "execute_all" {
		return nil, false, invalid("options.evaluations_semantic is %q; all are executed here: want execute_all", s)
	}
	if len(q.Evaluations) == 0 {
		return []Evaluation{q.Evaluation}, false, nil
	}
	if !several {
		return nil, false, invalid("evaluations are asked of /-/access/v1/evaluations")
	}
	if len(q.Evaluations) > maxEvaluations {
		return nil, false, invalid("evaluations are %d; at most %d are answered at once", len(q.Evaluations), maxEvaluations)
	}
	for _, e := range q.Evaluations {
		whole := q.Evaluation
		if e.Subject != nil {
			whole.Subject = e.Subject
		}
		if e.Action != nil {
			whole.Action = e.Action
		}
		if e.Resource != nil {
			whole.Resource = e.Resource
		}
		if e.Context != nil {
			whole.Context = e.Context
		}
		all = append(all, whole)
	}
	return all, true, nil
}

// askable are the actions that a question may name.
var askable = map[string]mirror.Kind{
	"list": mirror.List, "latest": mirror.Latest, "query": mirror.Query, "info": mirror.Info, "mod": mirror.Mod, "zip": mirror.Zip, "sumdb": mirror.Sumdb,
}

// target is what a question asks for.
func (e Evaluation) target() (mirror.Target, error) {
	if e.Resource == nil || e.Action == nil {
		return mirror.Target{}, invalid("a question has a resource and an action; want resource.id PATH[@VERSION] and action.name")
	}
	kind, known := askable[e.Action.Name]
	if !known {
		return mirror.Target{}, invalid("action.name is %q; want list, latest, query, info, mod, zip or sumdb", e.Action.Name)
	}
	path, version, _ := strings.Cut(e.Resource.ID, "@")
	err := module.CheckPath(path)
	if err == nil && version != "" {
		err = module.Check(path, version)
	}
	if err != nil || version != module.CanonicalVersion(version) {
		return mirror.Target{}, invalid("resource.id is %q; want PATH[@VERSION] with a canonical version", e.Resource.ID)
	}
	if want := policy.NewName(path, "").Type; e.Resource.Type != want {
		return mirror.Target{}, invalid("resource.type is %q; want %s", e.Resource.Type, want)
	}
	return mirror.Target{Path: path, Version: version, Kind: kind}, nil
}

// strictly decodes JSON over what v holds. Nothing is left as it is.
func strictly(where string, text json.RawMessage, v any) error {
	if len(text) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return invalid("%s: %v", where, err)
	}
	return nil
}

// asked notes in the record what was asked and answered. One question stands there whole, many in numbers.
func (x *exchange) asked(questions []*question, answers []EvaluationAnswer) {
	allowed, failed := 0, 0
	for _, a := range answers {
		switch {
		case a.Decision:
			allowed++
		case a.Context.Error != nil:
			failed++
		}
	}
	first := questions[0]
	who := first.input.Subject.Type + " " + first.input.Subject.ID
	for _, q := range questions {
		if q.input.Subject.ID != first.input.Subject.ID {
			who = "several"
		}
	}
	x.rec.Change.Object = "subject " + who
	x.rec.Change.Note = fmt.Sprintf("%d questions: %d allowed, %d denied, %d without an answer", len(answers), allowed, len(answers)-allowed-failed, failed)
	if len(questions) > 1 {
		return
	}
	x.rec.Module, x.rec.Version = first.target.Path, first.target.Version
	x.rec.Private = first.input.Resource.Visibility == string(mirror.Private)
	what := answers[0].Context
	if what.Error != nil {
		x.rec.Change.Note = fmt.Sprintf("%s: no answer, %s", first.target.Kind, what.Error.Code)
		return
	}
	x.rec.Change.Note = fmt.Sprintf("%s: %s", first.target.Kind, what.Effect)
	for _, r := range what.Reasons {
		x.rec.Change.Note += " " + r.Code
	}
}
