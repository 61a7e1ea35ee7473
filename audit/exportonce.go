package audit

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/headgate/headgate/audit/schema"
	"github.com/headgate/headgate/audit/sinks"
)

// ExportOptions choose what Export gives, and how.
type ExportOptions struct {
	Schema  string    // ocsf, ecs, cef, native; empty: ocsf
	Version string    // the program's, which events name
	Since   time.Time // not before; zero: from the oldest record on
	Until   time.Time // before; zero: to the newest
}

// Export gives fn the log's records as events, up to the last durable one. They are those that the sinks deliver, under the
// same ids, so that a receiver drops what it has; a decision comes with its outcome, behind what stands between them. It
// takes no lock; where the outcome of a decision at the end may still come, it waits some seconds for it. A record that the
// schema cannot show is an error.
func Export(ctx context.Context, dir string, o ExportOptions, fn func(schema.Event) error) error {
	encoder, err := schema.New(cmp.Or(o.Schema, schema.Default), o.Version)
	if err != nil {
		return err
	}
	return exportUnits(ctx, dir, o, func(origin string, epoch int64, u *unit) error {
		event, err := encoder.Encode(placed(origin, epoch, u), u.Raw)
		if err != nil || event.Time.Before(o.Since) || !o.Until.IsZero() && !event.Time.Before(o.Until) {
			return err
		}
		return fn(event)
	})
}

// SendAgain sends the records of o's time to the receiver of a sink once more, as that sink delivers them and under the
// same ids, and does not move its cursor. The sink's schema counts, not o's. so.Dir is the log's folder. tell is called after
// each batch.
func SendAgain(ctx context.Context, c sinks.Config, so sinks.Options, o ExportOptions, tell func(sinks.Sent)) (sinks.Sent, error) {
	encoder, err := schema.New(cmp.Or(c.Schema, schema.Default), o.Version)
	if err != nil {
		return sinks.Sent{}, err
	}
	return sinks.Again(ctx, c, so, func(send func(sinks.Event) error) error {
		return exportUnits(ctx, so.Dir, o, func(origin string, epoch int64, u *unit) error {
			e := sinkEvent(encoder, origin, epoch, u)
			if e.Time.Before(o.Since) || !o.Until.IsZero() && !e.Time.Before(o.Until) {
				return nil
			}
			return send(e)
		})
	}, tell)
}

// Replay sends the dead letters of a sink once more, in the sink's schema as it is now, and forgets those that arrive. It
// returns how many did, and how many stay.
func Replay(ctx context.Context, c sinks.Config, so sinks.Options) (sent, left int, err error) {
	encoder, err := schema.New(cmp.Or(c.Schema, schema.Default), so.Version)
	if err != nil {
		return 0, 0, err
	}
	return sinks.Resend(ctx, c, so, func(d sinks.DeadLetter) ([]byte, error) {
		at := schema.Place{Origin: d.Origin, Epoch: epochOf(d.Origin), Seq: d.Seq, Outcome: d.Outcome}
		for to, text := range map[*[32]byte]string{&at.Leaf: d.Leaf, &at.OutcomeLeaf: d.OutcomeLeaf} {
			leaf, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return nil, fmt.Errorf("reading dead letter %s: %w", d.ID, err)
			}
			copy(to[:], leaf)
		}
		e, err := encoder.Encode(at, d.Record)
		return e.Body, err
	})
}

// exportUnits gives what becomes events, from some time before o.Since on.
func exportUnits(ctx context.Context, dir string, o ExportOptions, fn func(origin string, epoch int64, u *unit) error) error {
	all, err := epochs(dir)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("reading %s: there is no audit log: %w", dir, fs.ErrNotExist)
	}
	for i, epoch := range all {
		ring, err := readKeys(dir, epoch)
		if err != nil {
			return err
		}
		if len(ring) == 0 {
			return fmt.Errorf("reading epoch %d: it has no key", epoch)
		}
		origin := ring[0].verifier.Name()
		x := &onceReader{join: newJoiner(0), end: math.MaxInt64, fn: func(u *unit) error { return fn(origin, epoch, u) }}
		if err := x.read(ctx, layout{dir: dir, epoch: epoch}, o.Since, i+1 == len(all)); err != nil {
			return err
		}
	}
	return nil
}

// A onceReader reads an epoch to where it ends now.
type onceReader struct {
	join *joiner
	end  int64 // what stands from here on came later
	fn   func(*unit) error
}

func (x *onceReader) read(ctx context.Context, l layout, since time.Time, newest bool) error {
	t := &tailer{layout: l, fn: func(e Entry) error {
		e.Raw = slices.Clone(e.Raw)
		x.join.take(e)
		return x.give()
	}}
	defer t.close()
	if !since.IsZero() {
		since = since.Add(-2 * joinSpan) // where the decision of the first outcome may stand
	}
	if err := t.seek(TailOptions{Since: since}); err != nil {
		return err
	}
	if err := t.drain(ctx); err != nil {
		return err
	}
	if !newest {
		x.join.flush()
		return x.give()
	}
	look := time.NewTicker(pollEvery)
	defer look.Stop()
	for x.end = t.next; x.join.first(x.end) < x.end; {
		now := time.Now().UnixNano()
		if err := t.drain(ctx); err != nil {
			return err
		}
		x.join.expire(func(p *pending) bool { return p.until < now })
		if err := x.give(); err != nil {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// give gives what is ready.
func (x *onceReader) give() error {
	for u := x.join.next(); u != nil; u = x.join.next() {
		if u.Seq >= x.end {
			continue
		}
		if err := x.fn(u); err != nil {
			return err
		}
	}
	return nil
}
