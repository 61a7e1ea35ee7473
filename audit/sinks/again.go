package sinks

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// sendTries is how often in a row a receiver may fail before a person is told, who stands waiting.
const sendTries = 6

// newSender makes a sink without a cursor, that speaks to its receiver for a person: it gives up where the gateway's own
// would wait. What the gateway's one delivers meanwhile is none of its business.
func newSender(c Config, o Options) (*sink, error) {
	c = c.withDefaults()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &sink{
		config: c, log: mute{}, logger: o.Logger.With(slog.String("sink", c.Name)), pace: paceOf(c.Type), tries: sendTries,
		dead: deadFolder(o.Dir, c.Name), metrics: newMetrics().of(c.Name),
	}
	var err error
	s.to, err = newDestination(c, o)
	return s, err
}

// mute is the log of who has no right to write to it.
type mute struct{}

func (mute) Reader(Position, string) (Reader, error) { return nil, ErrPosition }
func (mute) Behind(Position) int64                   { return 0 }
func (mute) Control(Notice)                          {}
func (mute) Checkpoint() string                      { return "" }

// settled waits until what was sent counts as delivered.
func (s *sink) settled(ctx context.Context) error {
	for due := time.Now().Add(s.to.settle()); ; {
		if err := s.to.living(); err != nil {
			return err
		}
		left := time.Until(due)
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(min(left, time.Second)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Sent is what became of events that were sent again.
type Sent struct {
	Events  int64     `json:"events"`         // that arrived
	Refused int64     `json:"refused"`        // that are dead letters now, if they were none before
	First   time.Time `json:"first,omitzero"` // time of the first event
	Last    time.Time `json:"last,omitzero"`  // time of the last
}

// Again sends events to the receiver of a sink once more, in the batches of that sink, and does not move its cursor.
// each calls its argument for every event; tell is called after each batch. An error says how far it came.
func Again(ctx context.Context, c Config, o Options, each func(func(Event) error) error, tell func(Sent)) (sent Sent, err error) {
	s, err := newSender(c, o)
	if err != nil {
		return Sent{}, err
	}
	defer func() { err = errors.Join(err, s.to.close()) }()
	known, err := DeadLetters(o.Dir, c.Name)
	if err != nil {
		return Sent{}, err
	}
	dead := map[string]bool{}
	for _, d := range known {
		dead[d.ID] = true
	}
	s.refused = func(letters []letter) error {
		var fresh []letter
		for _, l := range letters {
			if sent.Refused++; !dead[l.event.ID] {
				fresh = append(fresh, l)
				dead[l.event.ID] = true
			}
		}
		return s.bury(fresh)
	}
	var batch []Event
	bytes := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		before := sent.Refused
		if err := s.deliver(ctx, batch); err != nil {
			return err
		}
		sent.Events += int64(len(batch)) - (sent.Refused - before)
		if sent.First.IsZero() {
			sent.First = batch[0].Time
		}
		sent.Last = batch[len(batch)-1].Time
		batch, bytes = nil, 0
		tell(sent)
		return nil
	}
	err = each(func(e Event) error {
		batch, bytes = append(batch, e), bytes+len(e.Body)
		if len(batch) < s.pace.records && bytes < s.pace.bytes {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = s.settled(ctx)
	}
	return sent, err
}
