package gateway

import (
	"context"
	"strings"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
)

// VersionRequest is the body of the operations on one version: quarantine, release and purge.
type VersionRequest struct {
	Module  string `json:"module"`
	Version string `json:"version"`
	Reason  string `json:"reason,omitempty"`
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
