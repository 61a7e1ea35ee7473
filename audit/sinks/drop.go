package sinks

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Objects is a folder or a bucket that keeps what is put there.
type Objects interface {
	// Publish makes an object, whole and durable. The same bytes under the same name again are fine, others are an error.
	Publish(ctx context.Context, name string, b []byte) error
	Close() error
}

// drop writes each batch as an object of its own, which is never changed: JSON lines, or lines in whatever the schema
// writes, packed with zstd.
type drop struct {
	acknowledged
	config Config
	reach  func(ctx context.Context, location string) (Objects, error)

	mu    sync.Mutex // guards place
	place Objects
}

func newDrop(c Config, o Options) (*drop, error) {
	if o.Objects == nil {
		return nil, errors.New("opening object storage: this program has none")
	}
	return &drop{config: c, reach: o.Objects}, nil
}

func (d *drop) inFlight() int { return 2 }

func (d *drop) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.place == nil {
		return nil
	}
	place := d.place
	d.place = nil
	return place.Close()
}

// opened opens the place with the first batch: one that cannot be reached keeps no gateway from starting.
func (d *drop) opened(ctx context.Context) (Objects, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.place != nil {
		return d.place, nil
	}
	place, err := d.reach(ctx, d.config.Location)
	if err != nil {
		return nil, fmt.Errorf("opening object storage: %w", err)
	}
	d.place = place
	return place, nil
}

func (d *drop) deliver(ctx context.Context, events []Event) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	place, err := d.opened(ctx)
	for len(events) > 0 && err == nil {
		n := 1
		for n < len(events) && events[n].Origin == events[0].Origin { // numbers begin again with each origin
			n++
		}
		b := packedLines(events[:n])
		err = place.Publish(ctx, objectName(events[:n], b), b)
		events = events[n:]
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %w", errDenied, err)
	}
	return answer{}, err
}

// objectName is dt=DATE/hour=HOUR/ORIGIN-FROM-TO-HASH.jsonl.zst, in UTC, of the first event's time. It follows from the
// content: a batch that is written again is the same object.
func objectName(events []Event, b []byte) string {
	from, to := events[0].Seq, events[0].Seq
	for _, e := range events {
		from, to = min(from, e.Seq), max(to, e.Seq)
	}
	sum := sha256.Sum256(b)
	origin := strings.ReplaceAll(events[0].Origin, "/", "_")
	return fmt.Sprintf("%s/%s-%020d-%020d-%x.jsonl.zst", events[0].Time.UTC().Format("dt=2006-01-02/hour=15"), origin, from, to, sum[:6])
}

func packedLines(events []Event) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // options that are right
	}
	return z.EncodeAll(lines(events), nil)
}
