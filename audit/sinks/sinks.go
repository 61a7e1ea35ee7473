// Package sinks delivers the records of the audit log to the places that a security team watches. It is no queue: it
// reads the log itself, so its memory is bounded however long a receiver is away, and nothing that it does can slow a
// request.
//
// Its invariant: a sink's cursor passes a record only after the receiver has it for good, or after it lies among the dead
// letters with the reason. So each record arrives at least once; one that arrives twice carries the same id.
package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An Event is one record on its way out; a decision may have its outcome in it.
type Event struct {
	ID       string    // stable: the record's event id, epoch and number; receivers drop repeats by it
	Origin   string    // of the record's epoch
	Seq      int64     // number in its epoch
	Kind     string    // of the record
	Severity int       // 1 to 5
	Time     time.Time // of the event
	Body     []byte    // the record in the sink's schema
	Raw      []byte    // the record as it stands in the log, with the outcome that belongs to it
	Leaf     string    // its hash in the log's tree, base64; empty for what does not stand there

	Outcome     int64  // number of the outcome in it, 0 for none
	OutcomeLeaf string // that one's hash
}

// A Position is a place in the log: the record that comes next, and the tree before it. The zero Position is the oldest
// record there is.
type Position struct {
	Origin string `json:"origin"` // of the epoch
	Epoch  int64  `json:"epoch"`
	Next   int64  `json:"next"` // number of the next record
	Tree   string `json:"tree"` // root of the tree of the records before it, base64
}

// ErrPosition says that the log does not hold what a cursor has seen: it is another log, or was rewritten.
var ErrPosition = errors.New("the log is not the one that the cursor was made for")

// A Log is what sinks read. Its methods may be called from many goroutines.
type Log interface {
	// Reader begins to read at a position, in a schema; empty is the default. An error matches ErrPosition where the log's tree does not fit.
	Reader(at Position, schema string) (Reader, error)
	// Behind returns how many durable records follow a position.
	Behind(at Position) int64
	// Control writes a control record about a sink.
	Control(Notice)
	// Checkpoint is the newest signed checkpoint, empty if it cannot be read.
	Checkpoint() string
}

// A Reader reads the log in order. One goroutine uses it.
type Reader interface {
	// Next returns durable records, at most as many and as many bytes of Body as given, yet one at least if there is any.
	// A record that its schema cannot show comes with an empty Body. Decisions whose outcome has to come are given later than
	// what stands behind them.
	Next(records, bytes int) ([]Event, error)
	// Said returns an event that a sink has to say itself: a record that stands nowhere in the log, behind the last one read.
	Said(record []byte) Event
	// Position is the place before the oldest record that Next has not returned.
	Position() Position
	// Joined returns how many of the outcomes before Position, since the reader was made or its epoch began, came with
	// their decision and have no event of their own.
	Joined() int64
	// Waiting tells whether something was read that Next has not returned.
	Waiting() bool
	Close()
}

// A Notice is what a sink has to say in the log itself.
type Notice struct {
	What    string // dead_letter, sink_paused, sink_resumed
	Sink    string
	SeqFrom int64
	SeqTo   int64
	Count   int64
	Class   string // class of error
	Root    string // of dead letters: hash of the last one, which all before it hang on
}

// Options are what sinks need beside their configuration.
type Options struct {
	Dir        string // of the log: cursors and dead letters lie in it
	Log        Log
	Node       string // name of this gateway
	Version    string // of the program
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil for none
	Stdout     io.Writer             // for sinks of type stdout
	// Objects opens a folder or bucket, for sinks of type objects.
	Objects func(ctx context.Context, location string) (Objects, error)
}

// drainTime is how long Close lets sinks catch up.
const drainTime = 10 * time.Second

// An Exporter runs the sinks of a configuration.
type Exporter struct {
	metrics  *metrics
	register prometheus.Registerer
	sinks    []*sink
	drain    chan struct{}
	cancel   context.CancelFunc
	workers  sync.WaitGroup
}

// Open starts a runner for each sink. A receiver that cannot be reached is no error.
func Open(configs []Config, o Options) (*Exporter, error) {
	if errs := Validate(configs); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Exporter{metrics: newMetrics(), register: o.Registerer, drain: make(chan struct{})}
	for _, c := range configs {
		s, err := e.newSink(c, o)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening sink %s: %w", c.Name, err), e.closeDestinations())
		}
		e.sinks = append(e.sinks, s)
	}
	if err := e.metrics.register(o.Registerer, e.sinks); err != nil {
		return nil, errors.Join(err, e.closeDestinations())
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	for _, s := range e.sinks {
		e.workers.Go(func() { s.run(ctx) })
	}
	return e, nil
}

func (e *Exporter) newSink(c Config, o Options) (*sink, error) {
	c = c.withDefaults()
	s := &sink{
		config: c, log: o.Log, logger: o.Logger.With(slog.String("sink", c.Name)), drain: e.drain, pace: paceOf(c.Type),
		cursor: cursorFile(o.Dir, c.Name), dead: deadFolder(o.Dir, c.Name),
		metrics: e.metrics.of(c.Name), leaps: make(chan leap), ended: make(chan struct{}),
	}
	var err error
	if s.committed, err = readCursor(s.cursor); err != nil {
		return nil, err
	}
	if err := prepareCursor(s.cursor, s.committed); err != nil { // a disk that is full by now may have room later
		s.logger.LogAttrs(context.Background(), slog.LevelWarn, "audit sink has no room reserved for its cursor", slog.Any("err", err))
	}
	s.to, err = newDestination(c, o)
	return s, err
}

// Close stops reading, gives what is under way ten seconds, and lets go of the receivers. What did not arrive is sent
// after the next start.
func (e *Exporter) Close() error {
	close(e.drain)
	late := time.AfterFunc(drainTime, e.cancel)
	e.workers.Wait()
	late.Stop()
	e.cancel()
	e.metrics.unregister(e.register)
	return e.closeDestinations()
}

// ErrClosed says that a sink does not run.
var ErrClosed = errors.New("the sink does not run")

// Leap ends what a sink has on its way and moves its cursor to where to says, which is called with where it stands now. What
// lies between is not delivered. An error matches ErrClosed where no such sink runs.
func (e *Exporter) Leap(name string, to func(from Position) (Position, error)) error {
	for _, s := range e.sinks {
		if s.config.Name != name {
			continue
		}
		l := leap{to, make(chan error, 1)}
		select {
		case s.leaps <- l:
			return <-l.done
		case <-s.ended:
		}
	}
	return fmt.Errorf("moving the cursor of sink %s: %w", name, ErrClosed)
}

// Leap moves the cursor of a sink that does not run; dir is the log's folder.
func Leap(dir, name string, to func(from Position) (Position, error)) error {
	file := cursorFile(dir, name)
	from, err := readCursor(file)
	if err != nil {
		return err
	}
	behind, err := to(from)
	if err != nil || behind == from {
		return err
	}
	return writeCursor(file, behind)
}

func (e *Exporter) closeDestinations() error {
	var errs []error
	for _, s := range e.sinks {
		errs = append(errs, s.to.close())
	}
	return errors.Join(errs...)
}
