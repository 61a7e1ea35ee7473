package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// A destination takes events. Up to inFlight calls of deliver run at once.
type destination interface {
	// deliver returns when the receiver has the events for good, but for those that its answer names.
	// With an error nothing is known to have arrived.
	deliver(ctx context.Context, events []Event) (answer, error)
	inFlight() int
	// settle is how long a connection must outlive what was sent until it counts as delivered; 0 where receivers acknowledge.
	settle() time.Duration
	// living returns an error matching errLost if what was sent and has not settled may be lost.
	living() error
	// begin says that events come from the cursor on again.
	begin()
	close() error
}

// acknowledged is what destinations have in common whose receivers say what they have.
type acknowledged struct{}

func (acknowledged) settle() time.Duration { return 0 }
func (acknowledged) living() error         { return nil }
func (acknowledged) begin()                {}

// An answer names events that a receiver did not take.
type answer struct {
	again    []Event // not now
	rejected []letter
}

// A letter is an event that a receiver refused for good.
type letter struct {
	event  Event
	reason string
}

// What an error of deliver may match; any other means that trying again may help.
var (
	errDenied   = errors.New("a person must act: the receiver does not accept our credentials, or we do not believe its own")
	errTooLarge = errors.New("too large for the receiver")
	errRefused  = errors.New("the receiver does not accept what it was sent")
	errPatience = errors.New("the receiver asks for patience")
	errLost     = errors.New("what was sent last may be lost and is sent again")
)

// A laterError is an answer that asks to come back after a while.
type laterError struct {
	after time.Duration
	err   error
}

func (e *laterError) Error() string {
	return fmt.Sprintf("%v; it asks for %s of patience", e.err, e.after)
}
func (e *laterError) Unwrap() error { return e.err }

// backoff grows from one wait to the longest, with full jitter.
type backoff struct{ from, to time.Duration }

func (b backoff) wait(failures int) time.Duration {
	longest := b.from << min(failures, 20)
	return rand.N(min(longest, b.to)) + time.Millisecond
}

// A gate lets everybody through while the receiver answers, and one at a time, after a wait, while it does not.
type gate struct {
	probe    chan struct{} // holds the right to try while the gate is not open
	mu       sync.Mutex    // guards all below
	failures int
	until    time.Time
}

// pass waits until a try may be made, and returns what is to be called with its result.
func (g *gate) pass(ctx context.Context) (settle func(wait time.Duration, failed bool), err error) {
	probing := false
	for {
		g.mu.Lock()
		if g.probe == nil {
			g.probe = make(chan struct{}, 1)
		}
		closed, left := g.failures > 0, time.Until(g.until)
		g.mu.Unlock()
		if !closed || probing && left <= 0 {
			break
		}
		if !probing {
			select {
			case g.probe <- struct{}{}:
				probing = true
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			<-g.probe
			return nil, context.Cause(ctx)
		}
	}
	return func(wait time.Duration, failed bool) {
		g.mu.Lock()
		if failed {
			g.failures, g.until = g.failures+1, time.Now().Add(wait)
		} else {
			g.failures = 0
		}
		g.mu.Unlock()
		if probing {
			<-g.probe
		}
	}, nil
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failures
}

// deliver sends events until each is at the receiver or among the dead letters. Its only errors are ctx's, those of our own
// disk, and the last one where it gives up.
func (s *sink) deliver(ctx context.Context, events []Event) error {
	events, err := s.readable(events)
	if err != nil {
		return err
	}
	for len(events) > 0 {
		got, err := s.try(ctx, events)
		switch {
		case err == nil:
			if err := s.refuse(got.rejected); err != nil {
				return err
			}
			events = got.again
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errLost):
			return err
		case errors.Is(err, errTooLarge), errors.Is(err, errRefused):
			return s.halve(ctx, events, err)
		}
		if err == nil {
			err = errPatience
		}
		if s.tries > 0 && len(events) > 0 && (s.gate.count() >= s.tries || errors.Is(err, errDenied)) {
			return err
		}
	}
	return nil
}

// refuse keeps what the receiver refused for good.
func (s *sink) refuse(letters []letter) error {
	if len(letters) == 0 || s.refused == nil {
		return s.bury(letters)
	}
	return s.refused(letters)
}

// halve finds the events that the receiver refuses: what is left of them alone is a dead letter.
func (s *sink) halve(ctx context.Context, events []Event, cause error) error {
	if len(events) == 1 {
		return s.refuse([]letter{{events[0], cause.Error()}})
	}
	half := len(events) / 2
	if err := s.deliver(ctx, events[:half]); err != nil {
		return err
	}
	return s.deliver(ctx, events[half:])
}

// readable buries what the sink's schema could not show.
func (s *sink) readable(events []Event) ([]Event, error) {
	var good []Event
	var bad []letter
	for _, e := range events {
		if len(e.Body) == 0 {
			bad = append(bad, letter{e, "the record cannot be shown in the sink's schema"})
		} else {
			good = append(good, e)
		}
	}
	return good, s.refuse(bad)
}

// try makes one request, when the gate lets it, and judges what came of it.
func (s *sink) try(ctx context.Context, events []Event) (answer, error) {
	settle, err := s.gate.pass(ctx)
	if err != nil {
		return answer{}, err
	}
	s.metrics.waiting.Set(0)
	got, err := s.to.deliver(ctx, events)
	result, failed := resultOK, false
	switch {
	case err == nil && len(got.again) == len(events):
		result, failed = resultRetry, true
	case err == nil && len(got.again)+len(got.rejected) > 0:
		result = resultPartial
	case err == nil:
	case errors.Is(err, errDenied):
		result, failed = resultDenied, true
	case errors.Is(err, errTooLarge), errors.Is(err, errRefused):
		result = resultRefused
	default:
		result, failed = resultRetry, true
	}
	wait := s.patience(err)
	settle(wait, failed)
	s.metrics.requests(result).Inc()
	s.pause(ctx, result == resultDenied, err)
	if failed && ctx.Err() == nil {
		s.metrics.waiting.Set(wait.Seconds())
		s.logger.LogAttrs(ctx, slog.LevelWarn, "audit sink does not deliver; trying again",
			slog.Int("events", len(events)), slog.Duration("wait", wait), slog.Any("err", err))
	}
	return got, err
}

// patience is how long to wait after a try that failed: what the receiver asked for, up to a cap, but never less than
// the backoff.
func (s *sink) patience(err error) time.Duration {
	wait := s.pace.backoff.wait(s.gate.count())
	if later, ok := errors.AsType[*laterError](err); ok {
		wait = max(wait, min(later.after, s.config.RetryCap))
	}
	return wait
}

// pause tells people that the sink needs one of them, once, and when it no longer does.
func (s *sink) pause(ctx context.Context, denied bool, err error) {
	s.mu.Lock()
	was := s.denied
	s.denied = denied
	s.mu.Unlock()
	switch {
	case denied && !was:
		s.metrics.paused.Set(1)
		s.log.Control(Notice{What: "sink_paused", Sink: s.config.Name, Class: "denied"})
		s.logger.LogAttrs(ctx, slog.LevelError, "audit sink paused: a person must act", slog.Any("err", err))
	case was && !denied && err == nil:
		s.metrics.paused.Set(0)
		s.log.Control(Notice{What: "sink_resumed", Sink: s.config.Name})
	case was && !denied: // something else is wrong now; a person is still needed until it delivers
		s.mu.Lock()
		s.denied = true
		s.mu.Unlock()
	}
}
