package sinks

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// pace is how fast a sink works.
type pace struct {
	records  int           // in a batch
	bytes    int           // of bodies in a batch
	linger   time.Duration // that a batch waits to be filled
	poll     time.Duration // between looks for new records
	complete time.Duration // between completeness events
	backoff  backoff
}

var usualPace = pace{
	records: 500, bytes: 1 << 20, linger: time.Second, poll: 100 * time.Millisecond, complete: time.Minute,
	backoff: backoff{from: 500 * time.Millisecond, to: time.Minute},
}

// bulkPace is for receivers that take long over each batch, and much at once.
var bulkPace = pace{
	records: 5000, bytes: 5 << 20, linger: usualPace.linger, poll: usualPace.poll, complete: usualPace.complete,
	backoff: usualPace.backoff,
}

// dropPace makes few objects where there is little to say.
var dropPace = pace{
	records: 20000, bytes: 16 << 20, linger: 30 * time.Second, poll: usualPace.poll, complete: usualPace.complete,
	backoff: usualPace.backoff,
}

func paceOf(kind string) pace {
	switch kind {
	case typeSplunk, typeElastic:
		return bulkPace
	case typeObjects:
		return dropPace
	}
	return usualPace
}

// A sink reads the log for one receiver.
type sink struct {
	config  Config
	log     Log
	to      destination
	logger  *slog.Logger
	metrics sinkMetrics
	drain   <-chan struct{}
	pace    pace
	cursor  string // file
	dead    string // folder
	gate    gate
	tries   int                  // failures in a row after which it gives up; 0: it never does
	refused func([]letter) error // takes what the receiver refuses; nil: it is buried

	leaps chan leap
	ended chan struct{} // closed when run has returned

	reader Reader
	since  completeness

	mu        sync.Mutex // guards all below
	committed Position
	flying    []*flight // read and not committed yet, in order
	denied    bool      // the receiver does not accept our credentials
}

// A flight is a batch on its way.
type flight struct {
	events []Event
	next   Position // the cursor once it has arrived
	done   chan struct{}
	err    error // it did not arrive: the sink stops
}

// A completeness is what was read since the last completeness event.
type completeness struct {
	at     time.Time
	from   int64
	epoch  int64
	joined int64
}

// A leap moves a cursor over records that will not be delivered.
type leap struct {
	to   func(from Position) (Position, error)
	done chan error
}

// leap makes a leap while nothing is on its way.
func (s *sink) leap(l leap) {
	s.mu.Lock()
	from := s.committed
	s.mu.Unlock()
	to, err := l.to(from)
	if err == nil && to != from {
		err = s.commit(to)
	}
	l.done <- err
}

// errLeap ends what is on its way.
var errLeap = errors.New("records are given up")

// run delivers until the sink is drained or ctx ends.
func (s *sink) run(ctx context.Context) {
	defer close(s.ended)
	for {
		err := s.open()
		if err == nil {
			err = s.follow(ctx)
		}
		if ctx.Err() != nil || err == nil {
			return
		}
		if errors.Is(err, errLeap) {
			continue
		}
		if errors.Is(err, ErrPosition) {
			s.metrics.paused.Set(1)
		}
		if errors.Is(err, errLost) { // the gate has the patience
			continue
		}
		s.logger.LogAttrs(ctx, slog.LevelError, "audit sink stopped; trying again", slog.Any("err", err))
		select {
		case <-time.After(s.pace.backoff.to):
		case l := <-s.leaps:
			s.leap(l)
		case <-s.drain:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *sink) open() error {
	s.mu.Lock()
	at := s.committed
	s.flying = nil
	s.mu.Unlock()
	reader, err := s.log.Reader(at, s.config.Schema)
	if err != nil {
		return err
	}
	s.to.begin()
	s.reader, s.since = reader, completeness{at: time.Now(), from: at.Next, epoch: at.Epoch}
	s.metrics.paused.Set(0)
	return nil
}

// follow reads batches and lets at most as many fly as the destination takes. The cursor follows in order.
func (s *sink) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer s.reader.Close()
	var due *leap
	var leaper sync.WaitGroup
	leaper.Go(func() {
		select {
		case l := <-s.leaps:
			due = &l
			cancel(errLeap)
		case <-ctx.Done():
		}
	})
	defer func() {
		cancel(nil)
		if leaper.Wait(); due != nil {
			s.leap(*due)
		}
	}()
	flights := make(chan *flight, s.to.inFlight()-1)
	var workers sync.WaitGroup
	workers.Go(func() {
		if err := s.landing(flights); err != nil {
			cancel(err)
			for f := range flights { // behind a batch that did not arrive no other moves the cursor
				<-f.done
			}
		}
	})
	err := s.launch(ctx, flights, &workers)
	close(flights)
	workers.Wait()
	return errors.Join(err, context.Cause(ctx))
}

// launch sends batches on their way until there is nothing left to drain.
func (s *sink) launch(ctx context.Context, flights chan<- *flight, workers *sync.WaitGroup) error {
	for {
		f, err := s.collect(ctx)
		if err != nil || f == nil {
			return err
		}
		s.mu.Lock()
		s.flying = append(s.flying, f)
		s.mu.Unlock()
		select {
		case flights <- f: // first, so that no more than inFlight are on their way
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		workers.Go(func() {
			f.err = s.deliver(ctx, f.events)
			close(f.done)
		})
	}
}

// landing moves the cursor behind flights that have arrived, in order, once they have settled.
func (s *sink) landing(flights <-chan *flight) error {
	var settling []landed
	for {
		var due <-chan time.Time
		if len(settling) > 0 {
			due = time.After(min(time.Until(settling[0].due), time.Second)) // to see soon that a connection ended
		}
		select {
		case f, ok := <-flights:
			if !ok {
				return nil
			}
			<-f.done
			if f.err != nil {
				return f.err
			}
			s.mu.Lock()
			s.flying = s.flying[1:]
			s.mu.Unlock()
			settling = append(settling, landed{f.next, time.Now().Add(s.to.settle())})
			if s.to.settle() > 0 {
				continue
			}
		case <-due:
		}
		if err := s.to.living(); err != nil {
			return err
		}
		if time.Until(settling[0].due) > 0 {
			continue
		}
		if err := s.commit(settling[0].next); err != nil {
			return err
		}
		settling = settling[1:]
	}
}

// A landed is the place behind a flight that has arrived, and when it will have settled.
type landed struct {
	next Position
	due  time.Time
}

// commit moves the cursor.
func (s *sink) commit(p Position) error {
	if err := writeCursor(s.cursor, p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = p
	return nil
}

// collect waits for records and makes a batch of them; nil when the sink is drained.
func (s *sink) collect(ctx context.Context) (*flight, error) {
	f := &flight{done: make(chan struct{})}
	var begun time.Time
	bytes := 0
	for {
		events, err := s.reader.Next(s.pace.records-len(f.events), s.pace.bytes-bytes)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			bytes += len(e.Body)
		}
		if f.events = append(f.events, events...); begun.IsZero() && len(f.events) > 0 {
			begun = time.Now()
		}
		draining := stopped(s.drain)
		full := len(f.events) >= s.pace.records || bytes >= s.pace.bytes
		switch {
		case len(events) > 0 && !full:
			continue
		case len(f.events) > 0 && (full || draining || time.Since(begun) >= s.pace.linger):
			return s.completed(f), nil
		case draining && !s.reader.Waiting():
			return nil, nil
		}
		drain := s.drain
		if draining { // a decision's outcome comes soon
			drain = nil
		}
		select {
		case <-time.After(s.pace.poll):
		case <-drain:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// completed finishes a batch. Every so often it ends with an event that says which records came since the last such
// event, and how many of them within their decision's event, so that the receiver's people find holes themselves; it
// holds the newest signed checkpoint, which they can hold against the log.
func (s *sink) completed(f *flight) *flight {
	f.next = s.reader.Position()
	if f.next.Epoch != s.since.epoch {
		s.since.from, s.since.epoch, s.since.joined = 0, f.next.Epoch, 0
	}
	now := time.Now()
	if now.Sub(s.since.at) < s.pace.complete || f.next.Next <= s.since.from {
		return f
	}
	f.events = append(f.events, s.completenessEvent(f.next, now))
	s.since = completeness{at: now, from: f.next.Next, epoch: f.next.Epoch, joined: s.reader.Joined()}
	return f
}

func (s *sink) completenessEvent(p Position, now time.Time) Event {
	from, count := s.since.from, p.Next-s.since.from
	text := p.Origin + "\n" + s.config.Name + "\n" + strconv.FormatInt(from, 10) + "\n" + strconv.FormatInt(p.Next, 10)
	sum := sha256.Sum256([]byte(text))
	id := base32.StdEncoding.EncodeToString(sum[:])[:26]
	body, err := json.Marshal(map[string]any{
		"v": 1, "kind": "control", "event_id": id, "t": now.UnixNano(),
		"control": map[string]any{
			"what": "completeness", "sink": s.config.Name, "seq_from": from, "seq_to": p.Next - 1, "count": count,
			"joined": s.reader.Joined() - s.since.joined, "root": p.Tree, "checkpoint": s.log.Checkpoint(),
		},
	})
	if err != nil {
		panic(err) // strings and numbers
	}
	return s.reader.Said(body)
}

// lag returns how many records the receiver does not have, and the age of the oldest of those that were read.
func (s *sink) lag() (records int64, age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flying) > 0 && len(s.flying[0].events) > 0 {
		age = max(time.Since(s.flying[0].events[0].Time), 0)
	}
	return s.log.Behind(s.committed), age
}

func stopped(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
