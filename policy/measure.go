package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Bench is how fast a bundle answers on this machine, now.
type Bench struct {
	Revision    string        `json:"revision"`
	Rules       int           `json:"rules"`         // of Rego
	ActivateNS  int64         `json:"activate_ns"`   // from its files to the first answer; the old one serves meanwhile
	HeapBytes   int64         `json:"heap_bytes"`    // that stay while it is active
	Rows        []Measurement `json:"rows"`          // of each entry point, cached and evaluated
	Slowest     []RuleCost    `json:"slowest_rules"` // at most ten
	List        int           `json:"list"`          // versions of a list
	ListColdNS  int64         `json:"list_cold_ns"`  // all of them, that nobody asked about
	ListWarmNS  int64         `json:"list_warm_ns"`  // the same again
	ListAnswers int           `json:"list_distinct"` // different answers among them
}

// Measurement is one entry point, asked many times.
type Measurement struct {
	Entry     string  `json:"entry"` // access, release
	Cached    bool    `json:"cached"`
	Questions int     `json:"questions"` // different ones: a plain one, and the golden decisions of the bundle
	P50NS     int64   `json:"p50_ns"`
	P99NS     int64   `json:"p99_ns"`
	Allocs    float64 `json:"allocs"` // of one answer
	// Targets, in nanoseconds; 0: none.
	P50TargetNS int64 `json:"p50_target_ns,omitempty"`
	P99TargetNS int64 `json:"p99_target_ns,omitempty"`
}

// Over says which target a measurement is over; "" is none.
func (m Measurement) Over() string {
	for _, p := range []struct {
		name         string
		took, target int64
	}{{"p50", m.P50NS, m.P50TargetNS}, {"p99", m.P99NS, m.P99TargetNS}} {
		if p.target > 0 && p.took > p.target {
			how := "evaluated"
			if m.Cached {
				how = "cached"
			}
			return fmt.Sprintf("%s %s: %s is %v, over the target of %v", m.Entry, how, p.name, time.Duration(p.took), time.Duration(p.target))
		}
	}
	return ""
}

const (
	hitsAtOnce  = 100 // a clock is slower than a hit, so the p99 of hits is that of hundreds
	measureTime = 10 * time.Minute
)

// BenchOptions are how much is measured, and against what.
type BenchOptions struct {
	Budget  time.Duration // what the p99 of an evaluated answer may be, in place of the targets; 0 keeps these
	Samples int           // answers of each entry point that are evaluated, and a hundredth of those that are cached; at least one
	List    int           // versions of the list
}

// BenchBundle builds and activates a bundle, without serving it, and measures its answers to a plain question, a person
// with a token who asks for the zip of a public release, and to those of its golden decisions. library is where
// `library: default` takes its Rego from.
func BenchBundle(ctx context.Context, fsys, library fs.FS, o BenchOptions) (*Bench, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, measureTime, fmt.Errorf("measuring took longer than %v", measureTime))
	defer cancel()
	before := heapBytes()
	start := time.Now()
	g, b, err := compiled(ctx, fsys, library)
	if err != nil {
		return nil, err
	}
	plain := plainInput("example.com/m", "public", "v1.0.0", "release")
	if _, err := g.access.decide(ctx, plain, oneTest); err != nil {
		return nil, fmt.Errorf("asking access: %w", err)
	}
	r := &Bench{Revision: g.Revision(), ActivateNS: time.Since(start).Nanoseconds(), List: o.List}
	r.HeapBytes = max(heapBytes()-before, 0)
	for _, m := range b.modules {
		r.Rules += len(m.Rules)
	}
	questions, err := b.questions(plain)
	if err != nil {
		return nil, err
	}
	for _, e := range []*entryPoint{g.access, g.release} {
		for _, cached := range []bool{true, false} {
			m := Measurement{Entry: e.name, Cached: cached, Questions: len(questions[e.name])}
			if err := e.measure(ctx, &m, questions[e.name], o.Samples); err != nil {
				return nil, fmt.Errorf("asking %s: %w", e.name, err)
			}
			m.hold(o.Budget)
			r.Rows = append(r.Rows, m)
		}
	}
	if r.Slowest, err = b.slowest(ctx, g, questions); err != nil {
		return nil, err
	}
	return r, r.list(ctx, g, plain)
}

// hold sets the targets: 100 ns and 1 µs for what is cached, 50 and 500 µs for what is evaluated.
func (m *Measurement) hold(budget time.Duration) {
	switch {
	case budget > 0 && !m.Cached:
		m.P99TargetNS = budget.Nanoseconds()
	case budget > 0:
	case m.Cached:
		m.P50TargetNS, m.P99TargetNS = 100, 1000
	default:
		m.P50TargetNS, m.P99TargetNS = 50_000, 500_000
	}
}

func compiled(ctx context.Context, fsys, library fs.FS) (*Generation, *bundle, error) {
	b, err := readBundle(fsys, library)
	if err == nil {
		err = b.build()
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := newMeters(nil)
	if err != nil {
		return nil, nil, err
	}
	g, err := compile(ctx, b, make(chan struct{}, runtime.GOMAXPROCS(0)), m, func(string) {})
	if err != nil {
		return nil, nil, err
	}
	return g, b, nil
}

// questions are what is asked of each entry point: the plain one, and what the bundle's golden decisions ask.
func (b *bundle) questions(plain *Input) (map[string][]*Input, error) {
	all := map[string][]*Input{"access": {plain}, "release": {plain}}
	var wrong error
	err := b.eachGolden(func(c *goldenCase, doc *document, at string) {
		in, err := c.input(doc, at)
		if err != nil {
			wrong = fmt.Errorf("%s:%d: %s: %w", doc.name, doc.lines[at], c.Name, err)
			return
		}
		all[c.Ask] = append(all[c.Ask], in)
	})
	return all, errors.Join(err, wrong)
}

// measure asks questions in turn, again and again: out of the cache, or evaluated each time.
func (e *entryPoint) measure(ctx context.Context, m *Measurement, questions []*Input, samples int) error {
	ask, times := func(in *Input) error {
		_, err := e.evaluate(ctx, e.reads.root.project(reflect.ValueOf(in).Elem()), nil, oneTest)
		return err
	}, 1
	if m.Cached {
		ask, times = func(in *Input) error {
			_, err := e.decide(ctx, in, oneTest)
			return err
		}, hitsAtOnce
	}
	for _, in := range questions {
		if err := ask(in); err != nil {
			return err
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	took := make([]int64, max(samples, len(questions)))
	for i := range took {
		in := questions[i%len(questions)]
		start := time.Now()
		for range times {
			if err := ask(in); err != nil {
				return err
			}
		}
		took[i] = time.Since(start).Nanoseconds() / int64(times)
	}
	runtime.ReadMemStats(&after)
	slices.Sort(took)
	m.P50NS, m.P99NS = took[len(took)/2], took[len(took)*99/100]
	m.Allocs = float64(after.Mallocs-before.Mallocs) / float64(len(took)*times)
	return nil
}

// list judges the versions of a long list, twice, as the gateway does but for the budgets, which a busy machine exceeds.
func (r *Bench) list(ctx context.Context, g *Generation, plain *Input) error {
	in := *plain
	in.Action = NewAction("list")
	resources := make([]Resource, r.List)
	for i := range resources {
		resources[i] = plain.Resource
		f := &resources[i].Facts
		f.Version = fmt.Sprintf("v1.%d.%d", i/100, i%100)
		f.AgeDays, f.FirstSeenDay, f.Known.Age = i%90, in.Context.Day-i%90, "ok"
	}
	decisions := make([]Decision, r.List)
	var enc encoder
	for _, into := range []*int64{&r.ListColdNS, &r.ListWarmNS} {
		start := time.Now()
		g.release.listKey(&enc, &in, in.Resource.Path)
		if g.lists.get(enc.buf, resources) == nil { // as when the list is longer than what is kept
			if err := g.release.decideEach(ctx, in, resources, decisions); err != nil {
				return fmt.Errorf("asking about a list: %w", err)
			}
			g.lists.put(enc.buf, resources, decisions)
		}
		*into = time.Since(start).Nanoseconds()
	}
	keys := make([]string, len(decisions))
	for i := range decisions {
		keys[i] = decisions[i].Eval.KeyHash
	}
	slices.Sort(keys)
	r.ListAnswers = len(slices.Compact(keys))
	return nil
}

// decideEach fills in the decisions on versions, as many at once as the machine has processors.
func (e *entryPoint) decideEach(ctx context.Context, in Input, resources []Resource, decisions []Decision) error {
	group, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	for first := range workers {
		group.Go(func() (err error) {
			one := in
			for i := first; i < len(resources) && err == nil; i += workers {
				one.Resource = resources[i]
				decisions[i], err = e.decide(ctx, &one, oneTest)
			}
			return err
		})
	}
	return group.Wait()
}

// heapBytes is what is reachable now. What pools hold goes with the second collection.
func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
