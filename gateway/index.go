package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

var ndjson = []string{"application/x-ndjson"}

// index answers which versions came in since a time, those that the caller may list, in the form of the public index
// (https://index.golang.org).
func (s *Server) index(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := deadline(r.Context())
	defer cancel()
	x := s.begin(w, r)
	x.action, x.rec.Action = "index", "index"
	answer, err := s.indexed(ctx, x)
	if err := s.record(ctx, x.decided(answer, err), err); err != nil {
		x.problem(err)
		return
	}
	x.send(answer)
}

// indexed walks an index request from its query to the entries that access lets pass.
func (s *Server) indexed(ctx context.Context, x *exchange) (*answer, error) {
	if err := s.audit.Writable(); err != nil {
		return nil, unwritable("what was asked", err)
	}
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return nil, fmt.Errorf("answering index: %w", errMethod)
	}
	since, limit, err := indexQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	principal, err := s.authenticate(x)
	if err != nil {
		return nil, err
	}
	generation, err := s.policy.Current()
	if err != nil {
		return nil, err
	}
	x.revision, x.rec.PolicyRev, x.rec.BundleSHA256 = generation.Revision(), generation.Revision(), generation.Digest()
	v := &viewer{s: s, generation: generation, principal: principal, seen: map[string]bool{}}
	var body strings.Builder
	for limit > 0 {
		// What is hidden counts for no limit: a follower that gets fewer entries than it asked for is at the end.
		entries, err := s.mirror.Index(ctx, since, mirror.MaxIndex)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			since = e.Timestamp.Add(time.Microsecond)
			show, err := v.mayList(ctx, e.Path)
			if err != nil {
				return nil, err
			}
			if !show {
				x.rec.Decision.Withheld++
				continue
			}
			if err := writeEntry(&body, e); err != nil {
				return nil, err
			}
			if limit--; limit == 0 {
				break
			}
		}
		if len(entries) < mirror.MaxIndex {
			break
		}
	}
	x.rec.Eval.Entry, x.rec.Eval.NS, x.rec.Decision.Stage = []string{"access"}, v.ns, "access"
	return bodyAnswer([]byte(body.String()), ndjson), nil
}

// indexQuery reads since (RFC 3339, inclusive; none is the beginning) and limit (at most, and by default, 2000).
func indexQuery(raw string) (since time.Time, limit int, err error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return time.Time{}, 0, badIndexQuery("reading the query of index: %w", err)
	}
	if text := q.Get("since"); text != "" {
		if since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return time.Time{}, 0, badIndexQuery("reading since of index: %w", err)
		}
	}
	limit = mirror.MaxIndex
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err == nil && limit < 1 {
			err = strconv.ErrRange
		}
		if err != nil {
			return time.Time{}, 0, badIndexQuery("reading limit of index: %w", err)
		}
	}
	return since, min(limit, mirror.MaxIndex), nil
}

// badIndexQuery says what a query may hold.
func badIndexQuery(format string, err error) error {
	return &Problem{
		Status: http.StatusBadRequest, Code: "REQUEST-INVALID", Stage: "protocol", Public: "the query of /index does not hold",
		Advice: []string{"since is a time as RFC 3339 has it: 2026-11-20T10:00:00Z", "limit is 1 to 2000"}, Err: fmt.Errorf(format, err),
	}
}

// writeEntry writes one line as the public index has it.
func writeEntry(b *strings.Builder, e mirror.Entry) error {
	line, err := json.Marshal(struct {
		Path, Version string
		Timestamp     time.Time
	}{e.Path, e.Version, e.Timestamp})
	if err != nil {
		return fmt.Errorf("encoding the index entry of %s@%s: %w", e.Path, e.Version, err)
	}
	b.Write(line)
	b.WriteByte('\n')
	return nil
}

// A viewer is who asks for an index: an entry is shown to who might list its module, by scope and by access policy.
type viewer struct {
	s          *Server
	generation *policy.Generation
	principal  identity.Principal
	seen       map[string]bool // answers by path
	ns         int64
}

func (v *viewer) mayList(ctx context.Context, path string) (bool, error) {
	if show, known := v.seen[path]; known {
		return show, nil
	}
	target := mirror.Target{Path: path, Kind: mirror.List}
	show := v.principal.Allows(path, classOf(target.Kind))
	if show {
		decision, err := v.generation.Access(ctx, inputOf(v.principal, target, v.s.mirror.Visibility(path), v.s.now()))
		if err != nil {
			return false, err
		}
		v.ns += decision.Eval.NS
		show = decision.Effect == policy.Allow
	}
	v.seen[path] = show
	return show, nil
}
