// Package feeds is what others publish of modules: vulnerabilities, malware, popularity and scores. It reads feeds whole
// and in the background, keeps the last good one, and answers from memory. It is no policy: it says what is known, and
// how well. Its one invariant: nothing that it asks for depends on which modules this gateway serves.
package feeds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// States of a fact.
const (
	OK      = "ok"
	Missing = "missing" // a feed is configured, but was never read, or has nothing on the module
	Stale   = "stale"   // the feed was not read for longer than max_age
	Off     = "off"     // no feed is configured
)

// Options are what the feeds need from outside.
type Options struct {
	// State is the folder in which what came from the network is kept; it is made.
	State  string
	Logger *slog.Logger
	// Registerer takes the metrics; nil: nobody.
	Registerer prometheus.Registerer
	// Transport reaches feeds; nil: one that dials, by HTTPS_PROXY. For tests.
	Transport http.RoundTripper
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Feeds are all configured feeds. Its methods may be called by many at once; a nil *Feeds knows nothing, and all is off.
type Feeds struct {
	cfg    Config
	now    func() time.Time
	log    *slog.Logger
	client *http.Client
	reads  *prometheus.CounterVec

	vulns, malware        *feed[*records]
	popularity, scorecard *feed[*table]
	stop                  context.CancelFunc
	running               sync.WaitGroup
}

// Open reads what is local or was kept, and goes on to read the feeds until Close. A feed that cannot be read is
// logged, and its facts are missing or stale; the error is for what cannot become better: the state folder, the CAs.
func Open(ctx context.Context, cfg Config, o Options) (*Feeds, error) {
	f := &Feeds{cfg: cfg.withDefaults(), now: o.Now, log: o.Logger}
	if f.now == nil {
		f.now = time.Now
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.connect(o.Transport); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of feeds: %w", err)
	}
	f.reads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_feed_reads_total", Help: "Reads of feeds of facts, by what became of them.",
	}, []string{"feed", "result"})
	kept := func(name string) string { return filepath.Join(o.State, name) }
	f.vulns = newFeed(f, "vulns", f.cfg.Vulns, &collection{where: f.cfg.Vulns, kept: kept("vulns.zip"), database: true, unscored: severities[f.cfg.Unscored], client: f.client})
	f.malware = newFeed(f, "malware", f.cfg.Malware, &collection{where: f.cfg.Malware, kept: kept("malware.zip"), client: f.client})
	f.popularity = newFeed(f, "popularity", f.cfg.Popularity, &sheet{where: f.cfg.Popularity, kept: kept("popularity.csv"), column: "importers", client: f.client})
	f.scorecard = newFeed(f, "scorecard", f.cfg.Scorecard, &sheet{where: f.cfg.Scorecard, kept: kept("scorecard.csv"), column: "score", client: f.client})
	if o.Registerer != nil {
		o.Registerer.MustRegister(f.reads, &ages{f})
	}
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	begin(ctx, f, f.vulns)
	begin(ctx, f, f.malware)
	begin(ctx, f, f.popularity)
	begin(ctx, f, f.scorecard)
	return f, nil
}

// connect makes the client. It follows no redirect: the operator named the servers.
func (f *Feeds) connect(transport http.RoundTripper) error {
	if transport == nil {
		t := &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: time.Minute,
			MaxIdleConnsPerHost: fetches, ForceAttemptHTTP2: true,
		}
		if f.cfg.CAFile != "" {
			pem, err := os.ReadFile(f.cfg.CAFile)
			if err != nil {
				return fmt.Errorf("reading the CAs of feeds: %w", err)
			}
			t.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("reading the CAs of feeds: no certificate in %s", f.cfg.CAFile)
			}
		}
		transport = t
	}
	f.client = &http.Client{
		Transport: transport, Timeout: fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// Close ends the reading and waits for it.
func (f *Feeds) Close() error {
	f.stop()
	f.running.Wait()
	return nil
}

// A loader reads one kind of feed.
type loader[T content] interface {
	// restore reads what was kept of a feed in the network; at is when it was last found to be so.
	restore() (value T, at time.Time, err error)
	// load reads the feed, given what it said before.
	load(ctx context.Context, before T) (T, error)
}

// A feed is read again and again; the last good value stays.
type feed[T content] struct {
	name   string
	where  string // empty: off
	loader loader[T]

	mu    sync.RWMutex // guards what follows
	value T
	at    time.Time // when value was last found to be what the feed says; zero: never
	label string    // its name, the hash of its content and when that was found
}

// content is what a feed holds, with the hash of it.
type content interface{ digest() string }

func newFeed[T content](f *Feeds, name, where string, l loader[T]) *feed[T] {
	for _, result := range []string{"ok", "error"} {
		f.reads.WithLabelValues(name, result)
	}
	return &feed[T]{name: name, where: where, loader: l}
}

// get gives the last good value, its label and its state.
func (x *feed[T]) get(now time.Time, maxAge time.Duration) (value T, label, state string) {
	if x.where == "" {
		return value, "", Off
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch {
	case x.at.IsZero():
		return value, "", Missing
	case now.Sub(x.at) > maxAge:
		return x.value, x.label, Stale
	}
	return x.value, x.label, OK
}

// put takes a value in that was found at a time.
func (x *feed[T]) put(value T, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.value, x.at, x.label = value, at, x.name+" "+value.digest()+" "+at.UTC().Format(time.RFC3339)
}

// begin takes what is at hand in at once, and goes on in the background. Local feeds are read before it returns.
func begin[T content](ctx context.Context, f *Feeds, x *feed[T]) {
	if x.where == "" {
		return
	}
	wait := f.cfg.Refresh
	if remote(x.where) {
		wait = 0
		value, at, err := x.loader.restore()
		if err == nil {
			x.put(value, at)
		} else if !errors.Is(err, os.ErrNotExist) {
			f.log.LogAttrs(ctx, slog.LevelWarn, "kept feed not read; it is fetched", slog.String("feed", x.name), slog.Any("err", err))
		}
	} else {
		read(ctx, f, x)
	}
	f.running.Go(func() {
		for {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			wait = f.cfg.Refresh
			if !read(ctx, f, x) {
				wait = min(wait, retry)
			}
		}
	})
}

// retry is how soon a feed that could not be read is asked again.
const retry = 5 * time.Minute

func read[T content](ctx context.Context, f *Feeds, x *feed[T]) bool {
	x.mu.RLock()
	before := x.value
	x.mu.RUnlock()
	value, err := x.loader.load(ctx, before)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		f.reads.WithLabelValues(x.name, "error").Inc()
		f.log.LogAttrs(ctx, slog.LevelWarn, "feed not read; the last good one stays, and grows stale", slog.String("feed", x.name), slog.Any("err", err))
		return false
	}
	f.reads.WithLabelValues(x.name, "ok").Inc()
	x.put(value, f.now())
	return true
}

// ages shows how old each configured feed is.
type ages struct{ f *Feeds }

var ageDesc = prometheus.NewDesc("headgate_feed_age_seconds", "Since a feed of facts was last read whole; -1 where it never was.", []string{"feed"}, nil)

// Describe implements prometheus.Collector.
func (a *ages) Describe(ch chan<- *prometheus.Desc) { ch <- ageDesc }

// Collect implements prometheus.Collector.
func (a *ages) Collect(ch chan<- prometheus.Metric) {
	now := a.f.now()
	for name, at := range map[string]time.Time{
		"vulns": a.f.vulns.last(), "malware": a.f.malware.last(), "popularity": a.f.popularity.last(), "scorecard": a.f.scorecard.last(),
	} {
		age := -1.0
		if !at.IsZero() {
			age = max(now.Sub(at).Seconds(), 0)
		}
		ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, age, name)
	}
}

// last tells when the feed was last read whole.
func (x *feed[T]) last() time.Time {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.at
}
