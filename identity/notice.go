package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	noticeEvery = time.Minute
	// noticeHold is how long a notice is one node's own while it sends.
	noticeHold = 2 * time.Minute
	// noticeTries is how often a notice is tried at most; the pause after the first is noticePause, and doubles: half a day.
	noticeTries = 8
	noticePause = 5 * time.Minute
	// noticeRound is how many notices one round sends at most, and noticeFaults how many failures end it: a receiver that
	// is down is not asked for each token.
	noticeRound  = 500
	noticeFaults = 3
)

// notices tell a receiver of tokens that end soon.
type notices struct {
	cfg     Notices
	client  *http.Client
	results map[string]prometheus.Counter
}

// The results of a notice. Failed will be tried again.
const (
	noticeSent      = "sent"
	noticeFailed    = "failed"
	noticeAbandoned = "abandoned"
)

// newNotices prepares notices, or nothing where none are configured.
func newNotices(cfg Notices, o Options) (*notices, error) {
	if cfg.URL == "" {
		return nil, nil //nolint:nilnil // nobody is told, and nothing wrong with that
	}
	if _, err := readNoticeKeys(cfg.SecretFile); err != nil {
		return nil, err
	}
	client, err := newNoticeClient(cfg, o.HTTPClient)
	if err != nil {
		return nil, err
	}
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_token_notices_total", Help: "Notices of tokens that end soon by result; failed ones are tried again.",
	}, []string{"result"})
	n := &notices{cfg: cfg, client: client, results: map[string]prometheus.Counter{}}
	for _, result := range []string{noticeSent, noticeFailed, noticeAbandoned} {
		n.results[result] = total.WithLabelValues(result)
	}
	if o.Registerer != nil {
		if err := o.Registerer.Register(total); err != nil {
			return nil, fmt.Errorf("registering metrics of notices: %w", err)
		}
	}
	return n, nil
}

// tell sends what is due, every minute until ctx ends.
func (s *Service) tell(ctx context.Context) {
	tick := time.NewTicker(noticeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.tellRound(ctx); err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "notices of tokens are late, they are tried again", slog.Any("err", err))
		}
	}
}

// tellRound sends the notices that are due, the soonest end first.
func (s *Service) tellRound(ctx context.Context) error {
	now := time.Now()
	held, err := s.store.notTold(ctx, now)
	if err != nil {
		return err
	}
	due := s.dueNotices(held, now)
	faults := 0
	for _, d := range due[:min(len(due), noticeRound)] {
		if err := ctx.Err(); err != nil || faults == noticeFaults {
			return err
		}
		err := s.tellOne(ctx, d.key, d.token)
		if errors.Is(err, errNotTold) {
			faults++
		} else if err != nil {
			return err
		}
	}
	return nil
}

type dueNotice struct {
	key   noticeKey
	token Token
}

// dueNotices lists what is to be told now. Of several thresholds that are behind, as after a long stop, the last one counts.
func (s *Service) dueNotices(held map[noticeKey]bool, now time.Time) []dueNotice {
	var due []dueNotice
	for _, e := range s.tokens.entries() {
		before := s.notices.cfg.threshold(e, now)
		key := noticeKey{e.row.ID, before}
		if before == 0 || held[key] || e.state(now.Unix()) != "" {
			continue
		}
		due = append(due, dueNotice{key, e.token(now.Unix())})
	}
	slices.SortFunc(due, func(a, b dueNotice) int {
		return cmp.Or(a.token.Expires.Compare(b.token.Expires), cmp.Compare(a.key.token, b.key.token))
	})
	return due
}

// threshold is the shortest one that a token has passed, 0 for none. Those that its whole life lies within say nothing: it
// was made so.
func (n Notices) threshold(e *entry, now time.Time) time.Duration {
	left, life := time.Duration(e.ends-now.Unix())*time.Second, time.Duration(e.ends-toUnix(e.row.Created))*time.Second
	for _, before := range n.Before {
		if left <= before {
			if life <= before {
				return 0
			}
			return before
		}
	}
	return 0
}

// errNotTold is a notice that the receiver did not take.
var errNotTold = errors.New("the receiver did not take it")

// tellOne sends one notice, if no other node does. What becomes of it is written even while the gateway stops, else it
// would be sent twice.
func (s *Service) tellOne(ctx context.Context, k noticeKey, t Token) error {
	now := time.Now()
	tries, err := s.store.claimNotice(ctx, k, now, now.Add(noticeHold))
	if err != nil || tries == 0 {
		return err
	}
	sent := s.notices.send(ctx, k, noticeOf(t, k.before))
	if sent != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	result, done, again := noticeSent, time.Now(), time.Time{}
	switch {
	case sent == nil:
	case tries >= noticeTries:
		result = noticeAbandoned
	default:
		result, done, again = noticeFailed, time.Time{}, time.Now().Add(noticePause<<(tries-1))
	}
	s.notices.results[result].Inc()
	s.logNotice(ctx, k, result, sent)
	writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), noticeTimeout)
	defer cancel()
	if err := s.store.closeNotice(writing, k, done, again); err != nil {
		return err
	}
	if sent != nil {
		return errNotTold
	}
	return nil
}

func (s *Service) logNotice(ctx context.Context, k noticeKey, result string, err error) {
	level := slog.LevelInfo
	switch result {
	case noticeFailed: // it is tried again
		level = slog.LevelWarn
	case noticeAbandoned:
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.String("token", k.token), slog.String("result", result), slog.Duration("before", k.before)}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	s.log.LogAttrs(ctx, level, "notice of a token's end", attrs...)
}
