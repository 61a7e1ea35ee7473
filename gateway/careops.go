package gateway

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
)

// ImportRequest is the body of POST /-/api/v1/mirror/import.
type ImportRequest struct {
	// Source is a path on the gateway's machine.
	Source  string   `json:"source"`
	Modules []string `json:"modules,omitempty"` // patterns as in GOPRIVATE; none mean all
	Offline bool     `json:"offline,omitempty"` // ask no checksum database
}

// ExportRequest is the body of POST /-/api/v1/mirror/export.
type ExportRequest struct {
	// Out is a path on the gateway's machine.
	Out      string          `json:"out"`
	Versions []mirror.Wanted `json:"versions,omitempty"` // null: all that is stored
	Modules  []string        `json:"modules,omitempty"`
	Private  bool            `json:"private,omitempty"`
}

// PrefetchRequest is the body of POST /-/api/v1/mirror/prefetch.
type PrefetchRequest struct {
	Versions []mirror.Wanted `json:"versions"`
}

// ScrubRequest is the body of POST /-/api/v1/mirror/verify.
type ScrubRequest struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	Repair         bool  `json:"repair,omitempty"`
}

// CollectRequest is the body of POST /-/api/v1/mirror/gc. Limits that are 0 are the configuration's.
type CollectRequest struct {
	MaxBytes int64 `json:"max_bytes,omitempty"`
	Seconds  int64 `json:"max_age_seconds,omitempty"`
	Private  bool  `json:"private,omitempty"`
	DryRun   bool  `json:"dry_run,omitempty"`
}

// here refuses a path from afar: the gateway reads and writes it as its own user.
func here(by identity.Principal, key, file string) error {
	if by.Credential.Via != "socket" {
		return invalid("%s is a path on the gateway's machine; run the command there", key)
	}
	if !filepath.IsAbs(file) {
		return invalid("%s is %q; want an absolute path", key, file)
	}
	return nil
}

func checkPatterns(patterns []string) error {
	if err := mirror.CheckPatterns(patterns); err != nil {
		return invalid("modules: %v", err)
	}
	return nil
}

func checkVersions(all []mirror.Wanted) error {
	for _, v := range all {
		if module.Check(v.Path, v.Version) != nil {
			return invalid("%q is no version of a module", v.Path+"@"+v.Version)
		}
	}
	return nil
}

func (s *Server) importMirror(x *exchange, by identity.Principal) (longWork, error) {
	var q ImportRequest
	err := readJSON(x.r, &q)
	if err == nil {
		err = here(by, "source", q.Source)
	}
	if err == nil {
		err = checkPatterns(q.Modules)
	}
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "import " + q.Source, Note: note("modules", q.Modules, q.Offline, "offline")}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Import(ctx, mirror.ImportOptions{
			Source: q.Source, Staging: s.cfg.State, Modules: q.Modules, Offline: q.Offline, Progress: tell,
		})
	}, nil
}

// note says what was asked for in one line.
func note(key string, list []string, set bool, word string) string {
	text := key + " all"
	if len(list) > 0 {
		text = key + " " + strings.Join(list, ",")
	}
	if set {
		text += ", " + word
	}
	return text
}

func (s *Server) exportMirror(x *exchange, by identity.Principal) (longWork, error) {
	var q ExportRequest
	err := readJSON(x.r, &q)
	if err == nil {
		err = here(by, "out", q.Out)
	}
	if err == nil {
		err = errors.Join(checkPatterns(q.Modules), checkVersions(q.Versions))
	}
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "export " + q.Out, Note: note("modules", q.Modules, q.Private, "private ones too")}
	if q.Versions != nil {
		x.rec.Change.Note += fmt.Sprintf(", %d versions named", len(q.Versions))
	}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Export(ctx, mirror.ExportOptions{
			Versions: q.Versions, Modules: q.Modules, Private: q.Private, Out: q.Out, Progress: tell,
		})
	}, nil
}

func (s *Server) prefetchMirror(x *exchange, _ identity.Principal) (longWork, error) {
	var q PrefetchRequest
	err := readJSON(x.r, &q)
	if err == nil {
		err = checkVersions(q.Versions)
	}
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "prefetch", Note: fmt.Sprintf("%d versions named", len(q.Versions))}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Prefetch(ctx, mirror.PrefetchOptions{Versions: q.Versions, Progress: tell})
	}, nil
}

func (s *Server) scrubMirror(x *exchange, _ identity.Principal) (longWork, error) {
	var q ScrubRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	if q.BytesPerSecond < 0 {
		return nil, invalid("bytes_per_second is %d; want 0 for no limit, or more", q.BytesPerSecond)
	}
	x.rec.Change = audit.Change{Object: "verify", Note: map[bool]string{true: "bad files are moved aside", false: "nothing is changed"}[q.Repair]}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		return s.mirror.Scrub(ctx, mirror.ScrubOptions{BytesPerSecond: q.BytesPerSecond, Repair: q.Repair, Progress: tell})
	}, nil
}

func (s *Server) collectMirror(x *exchange, _ identity.Principal) (longWork, error) {
	var q CollectRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	configured := s.mirror.Upkeep()
	o := mirror.CollectOptions{MaxBytes: q.MaxBytes, MaxAge: time.Duration(q.Seconds) * time.Second, Private: q.Private, DryRun: q.DryRun}
	if o.MaxBytes == 0 && o.MaxAge == 0 {
		o.MaxBytes, o.MaxAge = configured.MaxBytes, configured.MaxAge
	}
	if o.MaxBytes <= 0 && o.MaxAge <= 0 || o.MaxBytes < 0 || o.MaxAge < 0 {
		return nil, invalid("no limit is given, and the configuration has none; want max_bytes or max_age_seconds above 0")
	}
	x.rec.Change = audit.Change{Object: "gc", Note: collectNote(o)}
	return func(ctx context.Context, tell func(mirror.Progress)) (mirror.CareReport, error) {
		o.Progress = tell
		return s.mirror.Collect(ctx, o)
	}, nil
}

func collectNote(o mirror.CollectOptions) string {
	text := fmt.Sprintf("max bytes %d, max age %s", o.MaxBytes, o.MaxAge)
	if o.Private {
		text += ", private ones too"
	}
	if o.DryRun {
		text += ", dry run"
	}
	return text
}
