package gateway

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// How old this node's view of what was revoked and locked elsewhere may be.
const (
	viewDegraded = time.Minute
	viewStale    = 5 * time.Minute
)

// LockRequest is the body of POST /-/api/v1/locks.
type LockRequest struct {
	Kind    string `json:"kind"`              // user, device, token or module
	Object  string `json:"object"`            // the subject's, device's or token's id; a module pattern, or PATH@VERSION
	Reason  string `json:"reason"`            // whoever is stopped may be told it
	Seconds int64  `json:"seconds,omitempty"` // how long it holds; 0 is until it is lifted
}

// fresh refuses what may have been revoked or locked elsewhere without this node having learnt of it. Routes whose
// operator prefers service are answered, and their record says so.
func (s *Server) fresh(x *exchange, path string) error {
	age := s.viewAge()
	if age < viewDegraded {
		return nil
	}
	x.w.Header().Set("Headgate-Degraded", "revocations")
	if age < viewStale {
		return nil
	}
	for _, p := range s.cfg.BestEffort {
		if path != "" && module.MatchPrefixPatterns(p, path) {
			x.staleView = true
			return nil
		}
	}
	return &identity.Error{Code: identity.RevocationStale, Err: fmt.Errorf("revocations and locks are %s old", age.Round(time.Second))}
}

// unlocked refuses a path that an administrator stopped. A go.mod is still served: builds that only pass by need it.
func (s *Server) unlocked(x *exchange, j *judge) error {
	if j.target.Kind == mirror.Mod {
		return nil
	}
	l, locked := s.identity.LockedModule(j.target.Path, "")
	if !locked {
		return nil
	}
	d := stopped(l)
	x.judged(d, j.input)
	return refused(d, "access", d.Text(x.text(j.target, "")))
}

// stop denies those of the releases that an administrator stopped. It comes after policy and its caches, so that a lock
// is in force with the next request.
func (j *judge) stop(releases []mirror.Release, decisions []policy.Decision) []policy.Decision {
	if j.target.Kind == mirror.Mod {
		return decisions
	}
	owned := false
	for i, r := range releases {
		l, locked := j.identity.LockedModule(j.target.Path, r.Version)
		if !locked {
			continue
		}
		if !owned { // decisions are shared with others
			decisions, owned = slices.Clone(decisions), true
		}
		decisions[i] = stopped(l)
	}
	return decisions
}

// stopped is the decision that a lock on a module is.
func stopped(l identity.Lock) policy.Decision {
	return policy.Decision{
		Schema: policy.DecisionSchema, Effect: policy.Deny, Remedy: policy.RemedyNone, Codes: []string{string(identity.Locked)},
		Reasons: []policy.Reason{{
			Code: string(identity.Locked), Rule: "lock", Severity: 4, Template: "an administrator stopped it: {reason}",
			Params: map[string]string{"reason": l.Reason},
		}},
	}
}

func (s *Server) listLocks(*exchange, identity.Principal) (func(context.Context) (any, error), error) {
	return func(context.Context) (any, error) {
		list := s.identity.Locks()
		if list == nil {
			list = []identity.Lock{}
		}
		return map[string]any{"locks": list}, nil
	}, nil
}

func (s *Server) createLock(x *exchange, by identity.Principal) (func(context.Context) (any, error), error) {
	var q LockRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	l := identity.Lock{Kind: q.Kind, Object: q.Object, Reason: q.Reason, By: by.Subject.ID, Created: time.Now().UTC().Truncate(time.Second)}
	if q.Seconds < 0 {
		return nil, invalid("seconds is %d; want how long the lock holds, or 0 for until it is lifted", q.Seconds)
	}
	if q.Seconds > 0 {
		l.Expires = l.Created.Add(time.Duration(q.Seconds) * time.Second)
	}
	if err := identity.CheckLock(l); err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: l.Kind + " " + l.Object, Note: l.Reason}
	return func(ctx context.Context) (any, error) { return l, s.identity.Lock(ctx, l) }, nil
}

func (s *Server) liftLock(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	q := x.r.URL.Query()
	kind, object := q.Get("kind"), q.Get("object")
	x.rec.Change = audit.Change{Object: kind + " " + object}
	return func(ctx context.Context) (any, error) { return s.identity.Unlock(ctx, kind, object) }, nil
}
