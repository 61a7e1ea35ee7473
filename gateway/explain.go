package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/policy"
)

// Explanation is the answer of GET /-/api/v1/explain?module=PATH: why a list is shorter than the module's own.
type Explanation struct {
	Module   string     `json:"module"`
	Revision string     `json:"revision"` // of the policy
	Profile  string     `json:"profile"`
	Chosen   string     `json:"chosen"`   // what @latest answers; empty: nothing may be chosen
	Withheld []Withheld `json:"withheld"` // newest first
}

// Withheld is a version that the caller's lists leave out.
type Withheld struct {
	Version       string       `json:"version"`
	Effect        string       `json:"effect"` // deny, or allow: usable when pinned
	Remedy        string       `json:"remedy,omitempty"`
	Reasons       []string     `json:"reasons"` // code and sentence
	UpgradeTo     string       `json:"upgrade_to,omitempty"`
	AvailableFrom string       `json:"available_from,omitempty"` // UTC day
	MissingFacts  []string     `json:"missing_facts,omitempty"`
	Waiver        *policy.Need `json:"waiver,omitempty"` // what would allow it
}

// explain answers "why not newer?" for whoever asks, from the very walk that a list takes.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := deadline(r.Context())
	defer cancel()
	x := s.begin(w, r)
	answer, err := s.explained(ctx, x)
	if err := s.record(ctx, x.decided(answer, err), err); err != nil {
		x.problem(err)
		return
	}
	x.send(answer)
}

func (s *Server) explained(ctx context.Context, x *exchange) (*answer, error) {
	x.action, x.rec.Action = "explain", "explain"
	if err := s.audit.Writable(); err != nil {
		return nil, unwritable("what was asked", err)
	}
	if x.r.Method != http.MethodGet {
		return nil, fmt.Errorf("explaining: %w", errMethod)
	}
	path := x.r.URL.Query().Get("module")
	if err := module.CheckPath(path); err != nil {
		return nil, &Problem{
			Status: http.StatusBadRequest, Code: "REQUEST-INVALID", Stage: "protocol", Err: err,
			Public: "the query names no module", Advice: []string{"want ?module=PATH, as in ?module=golang.org/x/text"},
		}
	}
	target := mirror.Target{Path: path, Kind: mirror.List}
	x.rec.Module, x.rec.Private = path, s.mirror.Visibility(path) == mirror.Private
	principal, err := s.authenticate(x)
	if err != nil {
		return nil, err
	}
	if err := s.fresh(x, path); err != nil {
		return nil, err
	}
	if !principal.Allows(path, classOf(mirror.List)) {
		return nil, errNoAccess
	}
	judge, err := s.access(ctx, x, principal, target)
	if err != nil {
		return nil, err
	}
	versions, decisions, err := s.versions(ctx, x, judge)
	if err != nil {
		return nil, err
	}
	e := Explanation{
		Module: path, Revision: judge.generation.Revision(), Profile: judge.access.Profile,
		Chosen: newest(versions.Releases, decisions), Withheld: []Withheld{},
	}
	for i := len(decisions) - 1; i >= 0; i-- {
		if !decisions[i].Visible {
			e.Withheld = append(e.Withheld, withheldOf(versions.Releases[i].Version, decisions[i]))
		}
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding the explanation of %s: %w", path, err)
	}
	return bodyAnswer(append(body, '\n'), jsonType), nil
}

func withheldOf(version string, d policy.Decision) Withheld {
	w := Withheld{
		Version: version, Effect: string(d.Effect), Remedy: string(d.Remedy), Reasons: []string{},
		UpgradeTo: d.Advice.UpgradeTo, MissingFacts: d.Advice.MissingFacts,
	}
	reasons := d.Reasons
	if d.Effect == policy.Allow {
		reasons = d.Warnings
	}
	for _, r := range reasons {
		w.Reasons = append(w.Reasons, r.Code+": "+r.Sentence())
	}
	if d.Advice.AvailableFromDay > 0 {
		w.AvailableFrom = time.Unix(int64(d.Advice.AvailableFromDay)*day, 0).UTC().Format(time.DateOnly)
	}
	if d.Advice.Waiver.Code != "" {
		w.Waiver = &d.Advice.Waiver
	}
	return w
}
