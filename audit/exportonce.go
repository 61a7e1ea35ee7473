package audit

import (
	"context"
	"fmt"
	"io/fs"
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

// Export gives fn the log's records as events, in order, up to the last durable one. They are those that the sinks deliver,
// under the same ids, so that a receiver drops what it has. It takes no lock. A record that the schema cannot show is an
// error.
func Export(ctx context.Context, dir string, o ExportOptions, fn func(schema.Event) error) error {
	if o.Schema == "" {
		o.Schema = schema.Default
	}
	encoder, err := schema.New(o.Schema, o.Version)
	if err != nil {
		return err
	}
	all, err := epochs(dir)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("reading %s: there is no audit log: %w", dir, fs.ErrNotExist)
	}
	for _, epoch := range all {
		ring, err := readKeys(dir, epoch)
		if err != nil {
			return err
		}
		if len(ring) == 0 {
			return fmt.Errorf("reading epoch %d: it has no key", epoch)
		}
		origin := ring[0].verifier.Name()
		err = tailEpoch(ctx, layout{dir: dir, epoch: epoch}, TailOptions{Since: o.Since}, func(e Entry) error {
			event, err := encoder.Encode(schema.Place{Origin: origin, Epoch: epoch, Seq: e.Seq, Leaf: e.Leaf}, e.Raw)
			if err != nil {
				return err
			}
			if event.Time.Before(o.Since) || !o.Until.IsZero() && !event.Time.Before(o.Until) {
				return nil
			}
			return fn(event)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
