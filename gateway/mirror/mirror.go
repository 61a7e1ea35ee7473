// Package mirror is the GOPROXY protocol over a verified cache: public modules
// come from upstream proxies, are checked against the public checksum database
// and are kept for ever. It is no HTTP server and asks nobody for permission:
// the gateway does both. Its one invariant: what Open returns is whole and
// verified, and a name that is not public never leaves in any request.
package mirror

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"
	"golang.org/x/sync/singleflight"

	"github.com/headgate/headgate/gateway/mirror/licence"
	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/sumdb"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// Options are what New takes beside configuration.
type Options struct {
	// Upstreams is a list in GOPROXY syntax, as `go env GOPROXY` prints it; it
	// is used where Config.Upstreams is empty, without "direct".
	Upstreams string
	// Logger and Registerer may be nil.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Transport is copied for requests to upstreams; nil is one with the usual limits.
	Transport *http.Transport
	// FirstByte bounds the wait for an upstream's answer and for each further
	// piece of it; 0 is 30 s.
	FirstByte time.Duration
	// Now is the clock of freshness; nil is time.Now.
	Now func() time.Time
	// DB is the state database, which the caller opens and closes. Nil: neither
	// index nor checksum database of our own, and facts that need them are off.
	DB *sql.DB
	// State is the folder of what is kept beside the database: the newest head
	// of our own checksum log, below "keys" its key unless configured, and below
	// "scratch" drafts and clones where the store is a bucket.
	State string
	// Host is what our own checksum database is named after at first start.
	Host string

	step func(string) // of store.Options, for tests
}

// Mirror is safe for many callers.
type Mirror struct {
	cfg        Config
	log        *slog.Logger
	now        func() time.Time
	list       upstream.List
	up         *upstream.Client
	nobody     *upstream.Client // asks no server
	local      string           // the folder of what cannot be in a bucket: drafts and clones
	step       func(string)     // of store.Options, for tests
	public     *store.Store
	private    *store.Store
	databases  map[string]*sumdb.Database
	vouches    *sumdb.Database // the database that public files are checked against
	origin     *sumdb.Database // that of another gateway, filled by bundles; nil without one
	own        *sumdb.Own      // nil without a state database
	places     []*store.Store  // that keep our own head
	state      *state          // nil without one
	ages       ages
	feed       *feed // nil where none is configured
	licences   licence.Finder
	sumdbNames []string
	routes     routes
	git        *gitSource // nil where no private route has hosts
	pushes     pushes
	codeHosts  map[string]int64
	metrics    *metrics

	hot       *hot     // verified files
	answers   *answers // what may change: lists, queries, what is not there
	incidents *incidents
	heeded    int64 // the place of the newest change that memory heeds; attend's

	quarantine quarantine
	used       *used
	passing    *passing // of mode proxy; nil where files are kept
	ahead      *ahead   // nil where nothing is fetched before it is asked for

	queue   queue // cold work takes turns
	flights singleflight.Group
	ctx     context.Context // ends with Close; flights outlive their callers
	stop    context.CancelCauseFunc
	mu      sync.Mutex // guards closed against running.Add
	closed  bool
	running sync.WaitGroup

	supported sync.Map // sumdb name → true once an upstream said so
}

// errClosed ends flights that run when the mirror is closed.
var errClosed = errors.New("mirror is closed")

// New opens the store and makes the mirror. It asks nobody.
func New(ctx context.Context, cfg Config, o Options) (*Mirror, error) {
	if err := errors.Join(cfg.Validate()...); err != nil {
		return nil, err
	}
	if cfg.Store == "" {
		return nil, errors.New("store: is empty; want a folder")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	list, err := Upstreams(cfg, o)
	if err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m := &Mirror{
		cfg: cfg, log: o.Logger, now: o.Now, step: o.step, list: list,
		routes: newRoutes(cfg), codeHosts: map[string]int64{}, databases: map[string]*sumdb.Database{},
		hot: newHot(cfg.MemoryBytes), answers: newAnswers(cfg.MemoryBytes / 4),
		used:  newUsed(o.Now()),
		queue: newQueue(cfg.MaxFetches, cfg.MaxWaiting, o.Registerer),
	}
	if cfg.Mode == modeProxy {
		m.passing = newPassing()
	}
	metrics := upstream.NewMetrics(o.Registerer)
	if err := m.openUpstreams(o, metrics); err != nil {
		return nil, err
	}
	for _, h := range cfg.CodeHosts {
		m.codeHosts[h.Host] = h.Elements
	}
	if m.local = cfg.Store; store.IsBucket(cfg.Store) {
		m.local = filepath.Join(o.State, "scratch")
	}
	m.ctx, m.stop = context.WithCancelCause(context.Background())
	if err := m.openStores(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.metrics = newMetrics(o.Registerer, m.public, m.private)
	if err := m.openState(ctx, o); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := m.openPrivate(ctx, o, metrics); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	for name, d := range m.databases {
		watchSumdb(o.Registerer, name, d.Err)
	}
	if m.own != nil {
		watchSumdb(o.Registerer, m.own.Name(), m.own.Err)
	}
	if err := m.openFeed(ctx, o); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := errors.Join(m.readQuarantine(ctx), m.startHeeding(ctx)); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.startAhead()
	m.running.Go(m.scan)
	m.running.Go(func() { m.adopt(m.ctx) })
	m.running.Go(m.attend)
	return m, nil
}

// openStores opens both roots and what is kept in the public one.
func (m *Mirror) openStores(ctx context.Context) error {
	var err error
	public, private := m.cfg.roots()
	if m.passing != nil {
		public, private = store.Join(public, "proxy"), store.Join(private, "proxy") // what an earlier mode stored is not seen
	}
	if m.public, err = store.Open(ctx, public, store.Options{Scratch: filepath.Join(m.local, "public"), Step: m.step}); err != nil {
		return err
	}
	if m.private, err = store.Open(ctx, private, store.Options{
		Scratch: filepath.Join(m.local, "private"), Tested: m.cfg.StorePrivate == "", Step: m.step,
	}); err != nil {
		return err
	}
	if m.incidents, err = openIncidents(ctx, m.public); err != nil {
		return err
	}
	for _, key := range m.cfg.Sumdb {
		name, err := sumdb.CheckKey(key)
		if err != nil {
			return err
		}
		d, err := sumdb.Open(ctx, sumdb.Options{
			Key: key, Fetch: m.fetchSumdb(name), Store: m.public, Logger: m.log, Seen: m.seenHead(name),
		})
		if err != nil {
			return err
		}
		m.databases[name] = d
		m.sumdbNames = append(m.sumdbNames, name)
		if m.vouches == nil {
			m.vouches = d
		}
	}
	return m.openOrigin(ctx)
}

// openOrigin opens the checksum database of another gateway. It names private
// modules, so it is kept beside them; nobody is ever asked for it.
func (m *Mirror) openOrigin(ctx context.Context) error {
	if m.cfg.OriginSumdb == "" {
		return nil
	}
	none := func(context.Context, string, int64) ([]byte, error) {
		return nil, fmt.Errorf("%w: it comes with bundles alone", ErrSumdb)
	}
	d, err := sumdb.Open(ctx, sumdb.Options{Key: m.cfg.OriginSumdb, Fetch: none, Store: m.private, Logger: m.log})
	if err != nil {
		return err
	}
	if m.databases[d.Name()] != nil {
		return fmt.Errorf("origin_sumdb: %s is the name of another checksum database", d.Name())
	}
	m.origin, m.databases[d.Name()] = d, d
	m.sumdbNames = append(m.sumdbNames, d.Name())
	return nil
}

// openState opens what is kept in the state database, where there is one.
func (m *Mirror) openState(ctx context.Context, o Options) (err error) {
	if o.DB == nil {
		return m.openAges(ctx)
	}
	if m.state, err = openState(ctx, o.DB, m.vouches.Name(), m.now); err != nil {
		return err
	}
	if err := m.openAges(ctx); err != nil {
		return err
	}
	if m.cfg.OwnSumdb.KeyFile == "" {
		m.cfg.OwnSumdb.KeyFile = filepath.Join(o.State, "keys", "sumdb.key")
	}
	return m.openOwn(ctx, o)
}

// Upstreams gives the list that New would use: Config.Upstreams, or else
// Options.Upstreams. Its hosts tell whether the mirror would ask itself.
func Upstreams(cfg Config, o Options) (upstream.List, error) {
	if cfg.Offline {
		return nil, nil
	}
	if len(cfg.Upstreams) == 0 {
		// The machine's own setting: its owner trusts it as the go command does.
		list, err := upstream.Parse(o.Upstreams, upstream.ParseOptions{DropDirect: true, AllowHTTP: true})
		if err != nil {
			return nil, fmt.Errorf("upstreams: is empty and GOPROXY gives none: %w; want GOPROXY servers", err)
		}
		return list, nil
	}
	var list upstream.List
	for i, u := range cfg.Upstreams {
		if u == "off" {
			return list, nil
		}
		part, err := upstream.Parse(u, upstream.ParseOptions{AllowHTTP: cfg.InsecureHTTP})
		if err != nil {
			return nil, fmt.Errorf("upstreams[%d]: %w", i, err)
		}
		list = append(list, part...)
	}
	return list, nil
}

// UpstreamHosts lists host[:port] of each upstream, in order.
func (m *Mirror) UpstreamHosts() []string {
	var hosts []string
	for _, e := range m.list {
		hosts = append(hosts, e.Host())
	}
	return hosts
}

// Sumdbs lists the names of the checksum databases that are served.
func (m *Mirror) Sumdbs() []string { return append([]string(nil), m.sumdbNames...) }

// Close ends flights that run, waits for them and lets the store go. Files
// that callers hold stay open.
func (m *Mirror) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop(errClosed)
	m.running.Wait()
	m.up.Close()
	errs := []error{m.git.close(), m.flushUsed(context.Background())}
	for _, s := range append(m.places, m.public, m.private) {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// scan adds up what the stores hold, for the metric.
func (m *Mirror) scan() {
	for _, s := range []*store.Store{m.public, m.private} {
		if err := s.Scan(m.ctx); err != nil && m.ctx.Err() == nil {
			m.log.LogAttrs(m.ctx, slog.LevelWarn, "store not measured", slog.Any("err", err))
		}
	}
}

type cachedOnly struct{}

// WithCachedOnly makes calls answer from the store alone, without any upstream
// contact: a miss is fs.ErrNotExist.
func WithCachedOnly(ctx context.Context) context.Context {
	return context.WithValue(ctx, cachedOnly{}, true)
}

func isCachedOnly(ctx context.Context) bool { return ctx.Value(cachedOnly{}) != nil }

// flight runs work once for all callers of a target. It outlives the caller
// that began it and has a deadline of its own; each caller waits only as long
// as its own context lasts.
func (m *Mirror) flight(ctx context.Context, t Target, work func(context.Context) (any, error)) (any, error) {
	return m.wait(ctx, flightKey(t), m.limit(t), work)
}

// wait starts or joins a flight, and waits for it as long as ctx lasts.
func (m *Mirror) wait(ctx context.Context, key string, limit time.Duration, work func(context.Context) (any, error)) (any, error) {
	ch, joined := m.launch(key, limit, work)
	select {
	case r := <-ch:
		if joined() {
			m.metrics.shared.Inc()
		}
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// limit is how long a fetch may take.
func (m *Mirror) limit(t Target) time.Duration {
	if t.Path == "golang.org/toolchain" {
		return m.cfg.ToolchainTimeout
	}
	return m.cfg.FetchTimeout
}

// flightKey prints the whole target: a .mod must not wait for a zip that nobody asked for.
func flightKey(t Target) string { return t.Kind.String() + " " + t.String() }

// launch starts the flight or joins one; joined tells which, once it is over.
func (m *Mirror) launch(key string, limit time.Duration, work func(context.Context) (any, error)) (result <-chan singleflight.Result, joined func() bool) {
	mine := false
	ch := m.flights.DoChan(key, func() (any, error) {
		mine = true
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, errClosed
		}
		m.running.Add(1)
		m.mu.Unlock()
		defer m.running.Done()
		ctx, cancel := context.WithTimeout(m.ctx, limit)
		defer cancel()
		v, err := work(ctx)
		if err != nil && errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrTimeout) {
			err = fmt.Errorf("%w: no answer within %s: %w", ErrTimeout, limit, err)
		}
		return v, err
	})
	return ch, func() bool { return !mine }
}

// route refuses what has no source, before anything is asked.
func (m *Mirror) route(path string) error {
	switch m.Visibility(path) {
	case Private:
		if _, ok := m.git.route(path); !ok && m.git.upstream(path) == nil && !m.cfg.Offline {
			return fmt.Errorf("%s: %w", path, ErrNoPrivateSource)
		}
	case Unknown:
		return notThere(Target{Path: path, Kind: List})
	}
	return nil
}

func (m *Mirror) exempt(path string) bool {
	for _, p := range m.cfg.SumdbExempt {
		if module.MatchPrefixPatterns(p, path) {
			return true
		}
	}
	return false
}
