package audit

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/headgate/headgate/audit/schema"
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
