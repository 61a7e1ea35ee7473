package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/headgate/headgate/gateway/feeds"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// worksNowTimeout bounds the look for a version to propose in a refusal.
const worksNowTimeout = 2 * time.Second

// module answers one GOPROXY request. Nothing is sent before its decision is on disk.
func (s *Server) module(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := deadline(r.Context())
	defer cancel()
	x := s.begin(w, r)
	answer, err := s.answer(ctx, x)
	if answer != nil {
		defer answer.close()
	}
	if err := s.record(ctx, x.decided(answer, err), err); err != nil {
		x.problem(err)
		return
	}
	x.send(answer)
}

// answer walks a request from its path to verified bytes that policy lets pass, noting each step in x.
func (s *Server) answer(ctx context.Context, x *exchange) (*answer, error) {
	if err := s.audit.Writable(); err != nil {
		return nil, unwritable("what was asked", err) // nothing is fetched for an answer that cannot be given
	}
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return nil, fmt.Errorf("answering %s: %w", x.action, errMethod)
	}
	if x.r.ContentLength != 0 {
		_ = x.w.control.SetReadDeadline(time.Now()) // net/http would wait for the rest of the body before it answers
		x.w.Header().Set("Connection", "close")     // where it ends may be in doubt: RFC 9112, 6.3
		return nil, fmt.Errorf("answering %s with a body: %w", x.r.Method, errRequest)
	}
	target, ctx, err := s.target(ctx, x.r)
	if err != nil {
		return nil, err
	}
	x.asks(target, s.mirror.Visibility(target.Path))
	principal, err := s.authenticate(x)
	if x.from = requesterOf(x, err == nil); s.often.over(x.from, x.start) {
		return nil, errOften
	}
	if err != nil {
		return nil, err
	}
	if err := s.fresh(x, target.Path); err != nil {
		return nil, err
	}
	switch {
	case target == rootTarget:
		return bodyAnswer([]byte("Headgate "+s.version+"\n"), textPlain), nil
	case target.Kind == mirror.Sumdb && target.Path == "":
		if principal.Allows("", identity.ActionAdmin) { // who may see whose module is private
			ctx = mirror.WithAuditor(ctx)
		}
		return s.open(ctx, x, target) // tree heads and tiles name no module
	}
	if !principal.Allows(target.Path, classOf(target.Kind)) {
		return nil, &identity.Error{Code: "SCOPE", Err: fmt.Errorf("%s on %s", target.Kind, target.Path)}
	}
	judge, err := s.access(ctx, x, principal, target)
	if err != nil {
		return nil, err
	}
	switch target.Kind {
	case mirror.List:
		return s.list(ctx, x, judge)
	case mirror.Latest:
		return s.latest(ctx, x, judge)
	case mirror.Sumdb:
		return s.open(ctx, x, target)
	}
	return s.file(ctx, x, judge)
}

// rootTarget is the host's root, which clients ask to try a credential (cmd/go/internal/auth, git form).
var rootTarget = mirror.Target{}

// target is what the request asks for, and the context in which it is answered: /cached-only and
// Disable-Module-Fetch allow no upstream contact.
func (s *Server) target(ctx context.Context, r *http.Request) (mirror.Target, context.Context, error) {
	raw := r.URL.EscapedPath()
	if raw == "/" {
		return rootTarget, ctx, nil
	}
	rest, cachedOnly := strings.CutPrefix(raw, "/cached-only/")
	if cachedOnly {
		raw = "/" + rest
	}
	if cachedOnly || r.Header.Get("Disable-Module-Fetch") == "true" {
		ctx = mirror.WithCachedOnly(ctx)
	}
	target, err := s.mirror.ParseTarget(raw)
	return target, ctx, err
}

// authenticate finds out who asks and notes it in the record.
func (s *Server) authenticate(x *exchange) (identity.Principal, error) {
	principal, err := s.identity.Authenticate(x.r)
	x.authenticated(principal, err)
	return principal, err
}

// A judge is one request's policy: one generation, the input that access allowed, and its decision.
type judge struct {
	generation *policy.Generation
	input      *policy.Input
	access     policy.Decision
	feeds      feeds.Module
	identity   *identity.Service
	target     mirror.Target
	resources  []policy.Resource // what release judged last
}

// access asks whether this principal may use this path at all, before any upstream is asked.
func (s *Server) access(ctx context.Context, x *exchange, p identity.Principal, target mirror.Target) (*judge, error) {
	generation, err := s.policy.Current()
	if err != nil {
		return nil, err
	}
	x.revision, x.rec.PolicyRev, x.rec.BundleSHA256 = generation.Revision(), generation.Revision(), generation.Digest()
	input := inputOf(p, target, s.mirror.Visibility(target.Path), s.now())
	decision, err := generation.Access(ctx, input)
	if err != nil {
		return nil, err
	}
	x.judged(decision, input)
	x.noteAsker(input)
	if decision.Effect != policy.Allow {
		return nil, refused(decision, "access", decision.Text(x.text(target, "")))
	}
	if input.Resource.Visibility == string(mirror.Unknown) {
		return nil, &Problem{Status: http.StatusNotFound, Code: "NOT-FOUND", Public: "no such module, version or file", Stage: "access"}
	}
	input.Context.Profile, input.Context.Waivers = decision.Profile, namesOf(decision.Waivers)
	j := &judge{generation: generation, input: input, access: decision, identity: s.identity, target: target}
	j.feeds = s.feeds.Module(target.Path, input.Resource.Visibility == string(mirror.Private))
	x.rec.Eval.Facts = j.feeds.Snapshots
	return j, s.unlocked(x, j)
}

// release asks policy about versions with their facts, in one call, and then for locks.
func (j *judge) release(ctx context.Context, releases ...mirror.Release) ([]policy.Decision, error) {
	resources := make([]policy.Resource, len(releases))
	for i, r := range releases {
		resources[i] = resourceOf(j.input.Resource.Name, r, j.feeds.Facts(r.Version), j.input.Context.Day)
	}
	j.resources = resources
	decisions, err := j.generation.Release(ctx, j.input, resources)
	if err != nil {
		return nil, err
	}
	return j.stop(releases, decisions), nil
}

// open answers a target that release policy does not judge.
func (s *Server) open(ctx context.Context, x *exchange, target mirror.Target) (*answer, error) {
	file, err := s.mirror.Open(ctx, target)
	if err != nil {
		return nil, err
	}
	return fileAnswer(file, target, x.rec.Private), nil
}

// file answers info, mod, zip and query: verified bytes, if this version is fit.
func (s *Server) file(ctx context.Context, x *exchange, j *judge) (_ *answer, err error) {
	file, err := s.mirror.Open(ctx, j.target)
	if err != nil {
		return nil, err
	}
	a := fileAnswer(file, j.target, x.rec.Private)
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	x.rec.Version = file.Version
	decisions, err := j.release(ctx, mirror.Release{Version: file.Version, Facts: file.Facts})
	if err != nil {
		return nil, err
	}
	x.released(j, decisions, 0)
	if decisions[0].Effect != policy.Allow {
		return nil, s.unfit(ctx, x, j, file.Version, decisions[0])
	}
	return a, nil
}

// unfit is the refusal of a version by release policy; it names the nearest version that works now, if that is known soon.
func (s *Server) unfit(ctx context.Context, x *exchange, j *judge, version string, d policy.Decision) error {
	shown := j.target
	shown.Version = version
	return refused(d, "release", d.Text(x.text(shown, s.worksNow(ctx, j, version))))
}

// list answers the versions that may be chosen. Filtering comes after the mirror's cache, never into it.
func (s *Server) list(ctx context.Context, x *exchange, j *judge) (*answer, error) {
	versions, decisions, err := s.versions(ctx, x, j)
	if err != nil {
		return nil, err
	}
	var body strings.Builder
	for i, release := range versions.Releases {
		if decisions[i].Visible {
			body.WriteString(release.Version)
			body.WriteByte('\n')
		}
	}
	a := bodyAnswer([]byte(body.String()), textPlain)
	a.cache, a.stale, a.age = versions.Cache, versions.Stale, versions.Age
	return a, nil
}

// versions are all versions of the target's module with what policy says of each.
func (s *Server) versions(ctx context.Context, x *exchange, j *judge) (*mirror.Versions, []policy.Decision, error) {
	versions, err := s.mirror.Versions(ctx, j.target.Path)
	if err != nil {
		return nil, nil, err
	}
	decisions, err := j.release(ctx, versions.Releases...)
	if err != nil {
		return nil, nil, err
	}
	hideRetracted(versions.Releases, decisions)
	noteWithheld(x.rec, decisions)
	return versions, decisions, nil
}

// hideRetracted hides what the newest version retracts where that version is hidden itself: the client reads retractions
// from the newest version that it sees, and would not learn of these.
func hideRetracted(releases []mirror.Release, decisions []policy.Decision) {
	top := -1
	for i, r := range releases {
		if top < 0 || newer(r.Version, releases[top].Version) {
			top = i
		}
	}
	if top < 0 || decisions[top].Visible {
		return
	}
	for i, r := range releases {
		if r.Facts.Retracted.State == "yes" {
			decisions[i].Visible = false
		}
	}
}

// latest answers the highest version that may be chosen. All hidden is a refusal: a 404 would send the client back to
// the list, which has nothing to offer either.
func (s *Server) latest(ctx context.Context, x *exchange, j *judge) (*answer, error) {
	versions, decisions, err := s.versions(ctx, x, j)
	if err != nil {
		return nil, err
	}
	if len(versions.Releases) == 0 {
		return s.untagged(ctx, x, j)
	}
	version := newest(versions.Releases, decisions)
	if version == "" {
		i := len(decisions) - 1
		x.released(j, decisions, i)
		return nil, refused(decisions[i], "release", decisions[i].Text(x.text(j.at(versions.Releases[i].Version), "")))
	}
	x.rec.Version = version
	a, err := s.open(ctx, x, j.info(version))
	if err != nil {
		return nil, err
	}
	return a.changing(versions.Stale, versions.Age), nil
}

// untagged answers @latest of a module without tags, whose newest commit the origin names.
func (s *Server) untagged(ctx context.Context, x *exchange, j *judge) (*answer, error) {
	release, err := s.mirror.Latest(ctx, j.target.Path)
	if err != nil {
		return nil, err
	}
	x.rec.Version = release.Version
	decisions, err := j.release(ctx, release)
	if err != nil {
		return nil, err
	}
	x.released(j, decisions, 0)
	if !decisions[0].Visible {
		return nil, refused(decisions[0], "release", decisions[0].Text(x.text(j.at(release.Version), "")))
	}
	a, err := s.open(ctx, x, j.info(release.Version))
	if err != nil {
		return nil, err
	}
	return a.changing(false, 0), nil
}

// listing is the judge of what may be proposed. A list is judged without what only a zip tells, which is not fetched for
// a proposal.
func (j *judge) listing() *judge {
	as, input := *j, *j.input
	input.Action = policy.NewAction(mirror.List.String())
	as.input = &input
	return &as
}

func (j *judge) at(version string) mirror.Target {
	t := j.target
	t.Version = version
	return t
}

func (j *judge) info(version string) mirror.Target {
	return mirror.Target{Path: j.target.Path, Version: version, Kind: mirror.Info}
}

// newest is the highest visible version as the go command orders them: releases, then prereleases, and +incompatible
// ones only where there is no other (https://go.dev/ref/mod#version-queries). It is "" where none is visible.
func newest(releases []mirror.Release, decisions []policy.Decision) string {
	best := ""
	for i, r := range releases {
		if decisions[i].Visible && (best == "" || newer(r.Version, best)) {
			best = r.Version
		}
	}
	return best
}

// nearest is the visible version to take in place of one that is not fit: the next one after it, so that a fix is no
// more of an upgrade than it must be; else the highest one before it. A prerelease is proposed for a prerelease alone.
func nearest(version string, releases []mirror.Release, decisions []policy.Decision) string {
	above, below := "", ""
	for i, r := range releases {
		switch c := semver.Compare(r.Version, version); {
		case !decisions[i].Visible || c == 0:
		case c > 0 && rank(r.Version) >= rank(version) && (above == "" || semver.Compare(r.Version, above) < 0):
			above = r.Version
		case c < 0 && (below == "" || newer(r.Version, below)):
			below = r.Version
		}
	}
	if above != "" {
		return above
	}
	return below
}

// rank orders kinds of versions as the go command prefers them.
func rank(version string) int {
	r := 3
	if strings.HasSuffix(version, "+incompatible") {
		r -= 2
	}
	if semver.Prerelease(version) != "" {
		r--
	}
	return r
}

func newer(a, b string) bool {
	if rank(a) != rank(b) {
		return rank(a) > rank(b)
	}
	return semver.Compare(a, b) > 0
}

// classOf groups the requests of a kind as policy does.
func classOf(k mirror.Kind) string {
	switch k {
	case mirror.Mod, mirror.Sumdb:
		return "metadata"
	case mirror.Zip:
		return "content"
	}
	return "discover"
}

func namesOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}
