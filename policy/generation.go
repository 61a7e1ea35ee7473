package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"golang.org/x/sync/errgroup"
)

const (
	evalBudget = 250 * time.Millisecond // of processor time of one evaluation, from its start on a worker
	listBudget = 5 * time.Second        // of all versions of a list together, waiting for a worker included,
	oneBudget  = 10 * time.Millisecond  // and so much more for each of them
	slowEval   = 5 * time.Millisecond
	crossCheck = 4096 // one miss of so many is evaluated on the full input too
)

var (
	errUnfinished = errors.New("evaluation did not finish")
	errListBudget = fmt.Errorf("%w: list took longer than its budget", ErrPolicy)
	errGone       = errors.New("caller went away before its evaluation began")
)

// isCallerGone tells an error that is about the working caller alone, and no answer to others.
func isCallerGone(err error) bool { return errors.Is(err, errGone) || errors.Is(err, ErrQuota) }

// Generation is one compiled revision of policy with its queries, data and cache. It never changes: a request asks
// both questions of the one generation that it began with.
type Generation struct {
	revision string
	digest   string
	deny     denyList
	data     ast.Object // config, indexed
	refusals *int       // of recorded allows that are meant; nil: not said
	access   *entryPoint
	release  *entryPoint
	lists    *lists
}

// Revision is the name of the bundle for people.
func (g *Generation) Revision() string { return g.revision }

// Digest is the SHA-256 of the bundle's archive in hex.
func (g *Generation) Digest() string { return g.digest }

// entryPoint is one question, compiled.
type entryPoint struct {
	name      string
	query     rego.PreparedEvalQuery
	reads     *readSet
	cache     *cache
	workers   chan struct{} // shared by all generations: it bounds what evaluation may take of the machine
	metrics   *meters
	quota     *quota // of access alone, once it is active; nil: none
	misses    atomic.Uint64
	distrust  atomic.Bool // the read-set was caught out: full input, no cache
	mistrusts func(entry string)
}

// compile makes a generation of a bundle. It fails on anything that could fail at run time and be seen here.
func compile(ctx context.Context, b *bundle, workers chan struct{}, m *meters, mistrusts func(string)) (*Generation, error) {
	if err := b.affordable(); err != nil {
		return nil, fmt.Errorf("checking: %w", err)
	}
	compiler := ast.NewCompiler().
		WithCapabilities(capabilities()).
		WithStrict(true).
		WithEnablePrintStatements(true). // else print is dropped in silence, and with it what it was given
		WithSchemas(schemas()).
		WithUseTypeCheckAnnotations(true).
		WithPathConflictsCheck(b.hasData)
	compiler.Compile(b.modules)
	if compiler.Failed() {
		return nil, fmt.Errorf("compiling: %w", compiler.Errors)
	}
	store := inmem.NewFromASTObject(b.data)
	g := &Generation{revision: b.revision, digest: b.digest, deny: b.deny, data: b.data, refusals: b.manifest.ReplayRefusals, lists: newLists()}
	for _, e := range []struct {
		name    string
		release bool
		into    **entryPoint
	}{{"access", false, &g.access}, {"release", true, &g.release}} {
		ref := "data.headgate." + e.name + ".decision"
		body, err := ast.ParseBody(ref)
		if err != nil {
			return nil, fmt.Errorf("parsing %s: %w", ref, err)
		}
		if len(compiler.GetRulesExact(body[0].Terms.(*ast.Term).Value.(ast.Ref))) == 0 {
			return nil, fmt.Errorf("%w: bundle has no rule %s", ErrPolicy, ref)
		}
		reads, err := newReadSet(compiler, body, e.release)
		if err != nil {
			return nil, err
		}
		query, err := rego.New(
			rego.ParsedQuery(body), rego.Compiler(compiler), rego.Store(store), rego.StrictBuiltinErrors(true),
			rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil }),
		).PrepareForEval(ctx)
		if err != nil {
			return nil, fmt.Errorf("preparing %s: %w", ref, err)
		}
		*e.into = &entryPoint{name: e.name, query: query, reads: reads, cache: newCache(), workers: workers, metrics: m, mistrusts: mistrusts}
	}
	return g, nil
}

// Access answers whether the subject may use the module path for this class of action. Only the name of in.Resource
// is looked at. Every failure is an error that matches ErrPolicy or is ctx's; an error comes with a decision that
// allows nothing.
func (g *Generation) Access(ctx context.Context, in *Input) (Decision, error) {
	start := time.Now()
	err := firstError(in.check(), in.Resource.Name.check())
	if err != nil {
		return g.access.note(Decision{}, err, start)
	}
	if d, denied := guardAccess(in); denied {
		return g.access.note(d, nil, start)
	}
	d, err := g.access.decide(ctx, in, evalBudget)
	if err == nil && d.Effect == Allow && d.Profile == "" {
		d, err = Decision{}, fmt.Errorf("%w: access allows without a profile", ErrPolicy)
	}
	return g.access.note(d, err, start)
}

// Release answers for each version whether it is fit, in the order of resources. Context.Profile and Context.Waivers
// are those of the access decision. All versions together have 5 seconds and 10 ms for each; one failure fails all.
func (g *Generation) Release(ctx context.Context, in *Input, resources []Resource) ([]Decision, error) {
	err := in.check()
	if err == nil && in.Context.Profile == "" {
		err = fmt.Errorf("%w: input.context.profile is empty at release", ErrPolicy)
	}
	if err != nil {
		_, err = g.release.note(Decision{}, err, time.Now())
		return nil, err
	}
	switch {
	case len(resources) == 1:
		d, err := g.judge(ctx, in, &resources[0])
		if err != nil {
			return nil, err
		}
		return []Decision{d}, nil
	case len(resources) == 0 || g.release.distrust.Load():
		return g.judgeAll(ctx, in, resources)
	}
	start := time.Now()
	enc := encoders.Get().(*encoder)
	defer encoders.Put(enc)
	g.release.listKey(enc, in, resources[0].Path)
	if decisions := g.lists.get(enc.buf, resources); decisions != nil {
		g.release.metrics.decidedAll(g.release.name, decisions, time.Since(start))
		return decisions, nil
	}
	decisions, err := g.judgeAll(ctx, in, resources)
	if err == nil {
		g.lists.put(enc.buf, resources, decisions)
	}
	return decisions, err
}

// judgeAll judges each version of a list, in parallel.
func (g *Generation) judgeAll(ctx context.Context, in *Input, resources []Resource) ([]Decision, error) {
	decisions := make([]Decision, len(resources))
	ctx, cancel := context.WithTimeoutCause(ctx, listBudget+time.Duration(len(resources))*oneBudget, errListBudget)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(resources)) {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(resources) {
					return nil
				}
				var err error
				if decisions[i], err = g.judge(ctx, in, &resources[i]); err != nil {
					return err
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return decisions, nil
}

// inputs lends out copies of the caller's input with another resource, so that judging a list does not allocate them.
var inputs = sync.Pool{New: func() any { return new(Input) }}

func (g *Generation) judge(ctx context.Context, in *Input, r *Resource) (Decision, error) {
	start := time.Now()
	if err := firstError(r.Name.check(), r.Facts.check()); err != nil {
		return g.release.note(Decision{}, err, start)
	}
	if d, denied := guardRelease(in, r); denied {
		return g.release.note(d, nil, start)
	}
	if in.Action.Name != "mod" && g.deny.holds(r) { // the module graph needs the .mod; nothing of it is built
		return g.release.note(refuse("release", "DENIED", "this version is on the policy's list of denied versions"), nil, start)
	}
	one := inputs.Get().(*Input)
	*one = *in
	one.Resource = *r
	d, err := g.release.decide(ctx, one, evalBudget)
	*one = Input{}
	inputs.Put(one)
	return g.release.note(d, err, start)
}

// note counts an answer. Whatever goes wrong, an error leaves with the zero decision, which allows nothing.
func (e *entryPoint) note(d Decision, err error, start time.Time) (Decision, error) {
	if err != nil {
		e.metrics.failed(e.name, time.Since(start))
		return Decision{}, err
	}
	e.metrics.decided(e.name, d, time.Since(start))
	return d, nil
}

var encoders = sync.Pool{New: func() any { return new(encoder) }}

// decide answers from the cache, else by evaluation.
func (e *entryPoint) decide(ctx context.Context, in *Input, budget time.Duration) (Decision, error) {
	v := reflect.ValueOf(in).Elem()
	if e.distrust.Load() {
		return e.evaluate(ctx, toTerm(v), nil, budget)
	}
	enc := encoders.Get().(*encoder)
	defer encoders.Put(enc)
	enc.buf = enc.buf[:0]
	enc.reads(e.reads.root, v)
	return e.cache.get(ctx, enc.buf, func() (Decision, error) {
		if err := e.quota.take(in.Subject, time.Now()); err != nil {
			return Decision{}, err
		}
		d, err := e.evaluate(ctx, e.reads.root.project(v), enc.buf, budget)
		if err == nil && e.misses.Add(1)%crossCheck == 1 {
			e.compare(ctx, d, toTerm(v), budget)
		}
		return d, err
	})
}

// compare evaluates on the full input what was answered on the projected one. A difference means that the read-set is
// wrong, so the entry point goes without it from now on.
func (e *entryPoint) compare(ctx context.Context, cut Decision, input *ast.Term, budget time.Duration) {
	full, err := e.evaluate(ctx, input, nil, budget)
	if err != nil && !errors.Is(err, ErrPolicy) {
		return
	}
	cut.Eval, full.Eval, cut.Projected, full.Projected = Eval{}, Eval{}, nil, nil
	if err != nil || !reflect.DeepEqual(cut, full) {
		e.distrust.Store(true)
		e.mistrusts(e.name)
	}
}

// evaluate asks OPA, on a worker, within the budget. ctx bounds the wait for the worker alone: an evaluation that has
// begun is finished for those who wait for it.
func (e *entryPoint) evaluate(ctx context.Context, input *ast.Term, key []byte, budget time.Duration) (Decision, error) {
	select {
	case e.workers <- struct{}{}:
		defer func() { <-e.workers }()
	case <-ctx.Done():
		return Decision{}, gone(ctx)
	}
	if ctx.Err() != nil {
		return Decision{}, gone(ctx)
	}
	if deadline, ok := ctx.Deadline(); ok {
		budget = min(budget, time.Until(deadline))
	}
	cancel := topdown.NewCancel()
	defer afterWork(budget, cancel.Cancel)()
	start := time.Now()
	results, err := e.query.Eval(context.WithoutCancel(ctx),
		rego.EvalParsedInput(input.Value), rego.EvalExternalCancel(cancel), rego.EvalMetrics(metrics.NoOp()))
	took := time.Since(start)
	if took > slowEval {
		e.metrics.slow.Inc()
	}
	if err != nil {
		return Decision{}, fmt.Errorf("%w: evaluating %s: %w", ErrPolicy, e.name, err)
	}
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return Decision{}, fmt.Errorf("%w: %s is undefined", ErrPolicy, e.name)
	}
	value, ok := results[0].Expressions[0].Value.(ast.Value)
	if !ok {
		return Decision{}, fmt.Errorf("%w: %s has no value", ErrPolicy, e.name)
	}
	return e.answer(value, input, key, took)
}

// answer makes the decision of what Rego returned, and refuses what is not one.
func (e *entryPoint) answer(value ast.Value, input *ast.Term, key []byte, took time.Duration) (Decision, error) {
	var d Decision
	if err := fromTerm("decision", value, reflect.ValueOf(&d).Elem()); err != nil {
		return Decision{}, err
	}
	d.Reasons, d.Warnings = order(d.Reasons), order(d.Warnings)
	if err := d.validate(); err != nil {
		return Decision{}, err
	}
	hash := sha256.Sum256(bytes.Join([][]byte{[]byte(e.name), key}, []byte{0}))
	d.Projected = appendJSON(nil, input.Value)
	d.Eval = Eval{Entry: e.name, NS: took.Nanoseconds(), KeyHash: hex.EncodeToString(hash[:8])}
	return d, nil
}

// gone is why a caller did not get a worker: its list ran out of time, or it went away. Others who wait for the same
// answer begin anew.
func gone(ctx context.Context) error {
	return fmt.Errorf("%w: %w", errGone, context.Cause(ctx))
}
