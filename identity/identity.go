// Package identity answers one question: who is asking. It turns the credential
// of a request (a Headgate token, or a JSON Web Token of a configured OpenID
// provider) into a Principal, and it mints, lists and revokes Headgate tokens.
//
// It decides nothing about modules: a Principal's scope is a ceiling under which
// policy decides. Its one invariant: every credential ends in the same Principal
// type, checked by the same scope, and what cannot be verified now is refused.
package identity

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are the things that a Service is given by whoever starts it.
type Options struct {
	// DB holds the tables of this package; the caller opens and closes it.
	DB *sql.DB
	// Wake, if not nil, yields a value when another node may have changed something in
	// DB, so that it is learnt at once and not with the next look.
	Wake <-chan struct{}
	// Poll is how often DB is asked for other nodes' changes, where no value in Wake
	// came first; 0 is 30 s. Uses of tokens on other nodes are learnt each minute at most.
	Poll time.Duration
	// Keys is the folder in which pepper.txt is made, mode 0600, when
	// Config.PepperFile is empty.
	Keys string
	// Logger receives what an operator should know; nil discards it.
	Logger *slog.Logger
	// Registerer receives the metrics; nil registers none.
	Registerer prometheus.Registerer
	// HTTPClient speaks to issuers that have no ca_file, and to the receiver of notices;
	// nil is a client with the system's roots. Its Transport is taken, for issuers its
	// Timeout too, its redirect rule is not.
	HTTPClient *http.Client
	// Fingerprint, if not nil, makes Credential.Fingerprint out of the text of a
	// credential. It must be keyed, since it is handed on to records.
	Fingerprint func(secret []byte) string
}

// Service authenticates requests and keeps tokens. It is safe for concurrent use.
type Service struct {
	cfg         Config
	log         *slog.Logger
	peppers     *peppers
	issuers     map[string]*issuer // by URL, exactly as in the iss claim
	store       *store
	tokens      *registry
	devices     *devices // nil: none are configured
	notices     *notices // nil: nobody is told of tokens that end
	metrics     *metrics
	fingerprint func([]byte) string

	refused  atomic.Pointer[refusedPeople]
	outcasts sync.Mutex // guards changes of refused

	held   atomic.Pointer[locks]
	viewed atomic.Int64 // when the view was whole, in nanoseconds
	view   sync.Mutex   // guards seen and changes of held
	seen   int64        // the place of the newest change that is known here

	stop context.CancelFunc
	done sync.WaitGroup
}

// Open runs the migrations, reads all tokens into memory and begins to fetch the
// keys of the issuers. An issuer that cannot be reached is not an error. The
// Service lives until Close, not until ctx ends.
func Open(ctx context.Context, cfg Config, o Options) (*Service, error) {
	if err := errors.Join(cfg.Validate()...); err != nil {
		return nil, fmt.Errorf("checking identity configuration: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.setDefaults()
	s := &Service{cfg: cfg, log: o.Logger, fingerprint: o.Fingerprint, issuers: map[string]*issuer{}}
	s.refused.Store(&refusedPeople{})
	var err error
	if s.metrics, err = newMetrics(o.Registerer, cfg.Issuers); err != nil {
		return nil, err
	}
	if s.peppers, err = loadPeppers(cfg.PepperFile, o.Keys); err != nil {
		return nil, err
	}
	for _, c := range cfg.Issuers {
		if s.issuers[c.URL], err = newIssuer(c, o.HTTPClient, s.metrics); err != nil {
			return nil, fmt.Errorf("preparing issuer %s: %w", c.Name, err)
		}
	}
	if s.store, err = openStore(ctx, o.DB); err != nil {
		return nil, err
	}
	if cfg.Devices.on() || cfg.Devices.Enrolment.CACert != "" {
		if s.devices, err = openDevices(ctx, cfg.Devices, o); err != nil {
			return nil, err
		}
	}
	if s.notices, err = newNotices(cfg.Notices, o); err != nil {
		return nil, err
	}
	s.tokens = newRegistry(cfg.Ceilings)
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	poll := cmp.Or(o.Poll, pollEvery)
	s.done.Go(func() { s.upkeep(running, poll) })
	if len(s.issuers) > 0 {
		s.done.Go(func() { s.recheck(running) })
	}
	s.done.Go(func() { s.follow(running, poll, o.Wake) })
	for _, i := range s.issuers {
		s.done.Go(func() { i.keys.run(running, s.log) })
	}
	if s.devices != nil {
		s.done.Go(func() { s.devices.run(running) })
	}
	if s.notices != nil {
		s.done.Go(func() { s.tell(running) })
	}
	return s, nil
}

// load fills the registry from the database.
func (s *Service) load(ctx context.Context) error {
	// The place is read first: what changes meanwhile is read twice, and never missed.
	place, err := s.store.clock(ctx)
	if err != nil {
		return err
	}
	rows, err := s.store.all(ctx)
	if err != nil {
		return err
	}
	held, err := s.store.locksSince(ctx, 0)
	if err != nil {
		return err
	}
	if err := s.learnDevices(ctx, 0); err != nil {
		return err
	}
	orphans := 0
	for _, row := range rows {
		if _, ok := s.peppers.byVersion[row.pepper]; !ok {
			orphans++
		}
		s.tokens.add(row)
	}
	s.tokens.link()
	s.metrics.countPeppers(s.tokens.entries(), s.peppers)
	if err := s.learnPeople(ctx, 0); err != nil {
		return err
	}
	s.held.Store(&locks{})
	s.hold(held)
	s.seen = place
	s.viewed.Store(time.Now().UnixNano())
	if orphans > 0 {
		s.log.LogAttrs(ctx, slog.LevelWarn, "tokens without their pepper are refused", slog.Int("tokens", orphans))
	}
	return nil
}

// Close stops the background work and writes down what was last used. It does
// not close the database.
func (s *Service) Close() error {
	s.stop()
	s.done.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return s.flush(ctx)
}
