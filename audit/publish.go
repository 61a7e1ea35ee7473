package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Whoever owns this machine can cut the log's tail, or put an older copy of it in place. Only checkpoints that have left
// the machine show that. They are published this often; a place that is silent for publishLost is spoken of in the log.
const (
	publishEvery    = 20 * time.Second
	publishLost     = time.Minute
	publishWait     = 30 * time.Second // for one round
	publishFileWait = 15 * time.Minute // for one file of a segment
	publishLast     = 10 * time.Second // for the checkpoint of a log that is closed
	maxCheckpoint   = 64 << 10         // bytes
	checkpointShard = 1_000_000        // records whose checkpoints lie in one folder
)

// Objects is a place off this machine that keeps what is put there: a folder or a bucket. Its methods may be called from
// many goroutines.
type Objects interface {
	// Publish makes an object, whole and durable. The same bytes under the same name again are fine, others are an error.
	Publish(ctx context.Context, name string, b []byte) error
	// PublishFile is Publish of a local file's bytes.
	PublishFile(ctx context.Context, name, file string) error
	// Names lists what lies right in a folder, in no order; of a missing one there is nothing.
	Names(ctx context.Context, dir string) ([]string, error)
	// Read returns a small object; a longer one is an error.
	Read(ctx context.Context, name string, maxBytes int64) ([]byte, error)
	Close() error
}

// A Publication is a place where checkpoints and sealed segments are published.
type Publication struct {
	// Name is the place's name, in metrics and control records. Lower-case letters, digits and dashes.
	Name string `yaml:"name"`
	// Location is a folder, best on another machine, or a bucket, best with object lock: s3://BUCKET?prefix=FOLDER&region=…,
	// gs:// or azblob://. Objects are created if absent and never changed or removed.
	Location string `yaml:"location"`
}

var goodPlace = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func validatePublish(all []Publication) []error {
	var errs []error
	seen := map[string]bool{}
	for i, p := range all {
		if !goodPlace.MatchString(p.Name) {
			errs = append(errs, fmt.Errorf("publish[%d].name: %q; want lower-case letters, digits and dashes", i, p.Name))
		}
		if seen[p.Name] {
			errs = append(errs, fmt.Errorf("publish[%d].name: %q is the name of another place, too", i, p.Name))
		}
		if p.Location == "" {
			errs = append(errs, fmt.Errorf("publish[%d].location: it is missing; want a folder or a bucket", i))
		}
		seen[p.Name] = true
	}
	return errs
}

// A publisher publishes to one place.
type publisher struct {
	*Log
	dest  Publication
	reach func(ctx context.Context, location string) (Objects, error)
	stamp prometheus.Gauge

	mu    sync.Mutex // guards place
	place Objects

	shipped atomic.Int64 // the first segment of the epoch that is not known to be published

	// Only the goroutine that publishes checkpoints touches these, and Open and Close before and after it.
	met    bool      // the log was held against what is published
	size   int64     // of the checkpoint published last
	signed []byte    // that checkpoint
	since  time.Time // of the last success
	lost   bool      // the log speaks of it
	failed string
}

func newPublishers(l *Log, reach func(context.Context, string) (Objects, error)) ([]*publisher, error) {
	var all []*publisher
	for _, dest := range l.cfg.Publish {
		if reach == nil {
			return nil, errors.New("opening the audit log: publish needs object storage, and this program has none")
		}
		all = append(all, &publisher{
			Log: l, dest: dest, reach: reach, stamp: l.metrics.published.WithLabelValues(dest.Name), size: -1, since: time.Now(),
		})
	}
	return all, nil
}

// opened opens the place when it is first needed, or again where that failed.
func (p *publisher) opened(ctx context.Context) (Objects, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.place != nil {
		return p.place, nil
	}
	place, err := p.reach(ctx, p.dest.Location)
	if err != nil {
		return nil, fmt.Errorf("opening it: %w", err)
	}
	p.place = place
	return place, nil
}

func (p *publisher) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.place == nil {
		return nil
	}
	return p.place.Close()
}

// checkpoints publishes the newest checkpoint again and again, until ctx ends.
func (p *publisher) checkpoints(ctx context.Context) {
	every := time.NewTicker(publishEvery)
	defer every.Stop()
	for {
		p.settle(ctx, p.round(ctx, publishWait))
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// round publishes the newest checkpoint. What was published is offered again when there is no newer one: a place that
// still has it says so, and one that lost it has it again.
func (p *publisher) round(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	place, err := p.opened(ctx)
	if err != nil {
		return err
	}
	if !p.met {
		epoch, signed, err := newestPublished(ctx, place, path.Dir(p.origin))
		if err != nil {
			return err
		}
		if err := p.meets(epoch, signed); err != nil {
			return err
		}
		p.met = true
	}
	list, err := os.ReadFile(epochKeys(p.cfg.Dir, p.layout.epoch).list)
	if err != nil {
		return fmt.Errorf("reading key list: %w", err)
	}
	if err := place.Publish(ctx, fmt.Sprintf("%s/keys/%x.pub", p.origin, sha256.Sum256(list)), list); err != nil {
		return err
	}
	return p.checkpoint(ctx, place)
}

func (p *publisher) checkpoint(ctx context.Context, place Objects) error {
	signed, err := os.ReadFile(p.layout.checkpoint())
	if err != nil {
		return fmt.Errorf("reading checkpoint: %w", err)
	}
	c, err := p.opens(signed)
	if err != nil {
		return err
	}
	if c.size == p.size {
		signed = p.signed
	}
	name := checkpointName(c)
	if err := place.Publish(ctx, name, signed); err != nil {
		there, rerr := place.Read(ctx, name, maxCheckpoint)
		if rerr != nil {
			return err
		}
		// Published before a restart, with another time; or by somebody else.
		if err := p.meets(p.layout.epoch, there); err != nil {
			return err
		}
		signed = there
	}
	p.size, p.signed = c.size, signed
	return nil
}

// checkpointName names one checkpoint for each size. The greatest name is the newest, whatever clocks say.
func checkpointName(c checkpoint) string {
	return fmt.Sprintf("%s/checkpoint/%014d/%020d", c.origin, c.size/checkpointShard, c.size)
}

// opens verifies a checkpoint of the present epoch.
func (l *Log) opens(signed []byte) (checkpoint, error) {
	ring, err := readKeys(l.cfg.Dir, l.layout.epoch)
	if err != nil {
		return checkpoint{}, err
	}
	c, err := openCheckpoint(signed, l.origin, ring)
	if err != nil {
		return checkpoint{}, &DamageError{Code: ExitKey, Epoch: l.layout.epoch, Seq: -1, SeqTo: -1, Detail: "published: " + err.Error()}
	}
	return c, nil
}

// meets holds the running log against a published checkpoint.
func (l *Log) meets(epoch int64, signed []byte) error {
	switch {
	case epoch > l.layout.epoch:
		return missingEpoch(epoch)
	case epoch < l.layout.epoch || signed == nil:
		return nil
	}
	c, err := l.opens(signed)
	if err != nil {
		return err
	}
	size := exported{l}.size()
	d := &DamageError{Epoch: epoch, Seq: size, SeqTo: c.size - 1}
	if c.size > size {
		d.Code, d.Detail = ExitShort, fmt.Sprintf("they are missing: a published checkpoint counts %d records", c.size)
		return d
	}
	tree, err := edgeAt(l.layout, c.size)
	if err != nil {
		return err
	}
	if tree.root() != c.root {
		d.Code, d.Seq, d.Detail = ExitConflict, c.size-1, fmt.Sprintf("a published checkpoint of %d records has another root", c.size)
		return d
	}
	return nil
}

func missingEpoch(epoch int64) *DamageError {
	return &DamageError{Code: ExitMissing, Epoch: epoch, Seq: -1, SeqTo: -1, Detail: "checkpoints of the epoch are published, and it is not here"}
}

// settle takes note of how a round went.
func (p *publisher) settle(ctx context.Context, err error) {
	now := time.Now()
	if err == nil {
		p.since, p.failed = now, ""
		p.stamp.Set(float64(now.Unix()))
		p.unwatched(ctx, now, true)
		if p.lost {
			p.lost = false
			p.Note(p.controlRecord(Control{What: "publish_regained", Sink: p.dest.Name}))
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	if d, ok := errors.AsType[*DamageError](err); ok { // another copy of this log is about, or this is not the newest
		if d.Code == ExitConflict && err.Error() != p.failed {
			p.metrics.splits.WithLabelValues("publish").Inc()
		}
		_ = p.Log.failed(d) // its error is for callers of Append
	}
	if text := err.Error(); text != p.failed {
		p.failed = text
		p.logger.LogAttrs(ctx, slog.LevelError, "audit checkpoint not published; trying again", slog.String("dest", p.dest.Name), slog.Any("err", err))
	}
	p.unwatched(ctx, now, false)
	if !p.lost && now.Sub(p.since) > publishLost {
		p.lost = true
		p.Note(p.controlRecord(Control{What: "publish_lost", Sink: p.dest.Name}))
	}
}

// unwatched refuses requests when no place has taken a checkpoint for longer than the grace, and serves them again when
// one does: what is recorded meanwhile could be rewritten without a trace.
func (l *Log) unwatched(ctx context.Context, now time.Time, taken bool) {
	l.mu.Lock()
	was := l.unpublished
	if taken {
		l.publishedAt = now
	}
	l.unpublished = now.Sub(l.publishedAt) > l.cfg.PublishGrace
	is, state := l.unpublished, l.state
	l.mu.Unlock()
	switch {
	case is && !was:
		l.metrics.writable.Set(0)
		l.logger.LogAttrs(ctx, slog.LevelError, "no checkpoint could be published; requests are refused", slog.Duration("for", l.cfg.PublishGrace))
	case was && !is && state == nil:
		l.metrics.writable.Set(1)
		l.logger.LogAttrs(ctx, slog.LevelInfo, "checkpoints are published again; requests are served")
	}
}

// newestPublished returns the newest epoch of the logs below base that a place knows, -1 for none, and its newest
// checkpoint, nil for none.
func newestPublished(ctx context.Context, place Objects, base string) (epoch int64, signed []byte, err error) {
	epoch, err = greatest(ctx, place, base)
	if err != nil || epoch < 0 {
		return -1, nil, err
	}
	dir := base + "/" + strconv.FormatInt(epoch, 10) + "/checkpoint"
	shard, err := greatest(ctx, place, dir)
	if err != nil || shard < 0 {
		return epoch, nil, err
	}
	dir = fmt.Sprintf("%s/%014d", dir, shard)
	size, err := greatest(ctx, place, dir)
	if err != nil || size < 0 {
		return epoch, nil, err
	}
	signed, err = place.Read(ctx, fmt.Sprintf("%s/%020d", dir, size), maxCheckpoint)
	if err != nil {
		return epoch, nil, fmt.Errorf("reading published checkpoint: %w", err)
	}
	return epoch, signed, nil
}

// PublishedCheckpoint returns the newest signed checkpoint that a place has of the log in dir, for Verify; nil if it has
// none of the log's newest epoch. An epoch that the log does not have is a *DamageError.
func PublishedCheckpoint(ctx context.Context, dir string, place Objects) ([]byte, error) {
	all, err := epochs(dir)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("reading %s: there is no audit log: %w", dir, os.ErrNotExist)
	}
	newest := all[len(all)-1]
	ring, err := readKeys(dir, newest)
	if err != nil {
		return nil, err
	}
	if len(ring) == 0 {
		return nil, fmt.Errorf("reading epoch %d: it has no key", newest)
	}
	epoch, signed, err := newestPublished(ctx, place, path.Dir(ring[0].verifier.Name()))
	switch {
	case err != nil:
		return nil, err
	case epoch > newest:
		return nil, missingEpoch(epoch)
	case epoch < newest:
		return nil, nil
	}
	return signed, nil
}

// greatest is the greatest number among the names in a folder, -1 for none.
func greatest(ctx context.Context, place Objects, dir string) (int64, error) {
	names, err := place.Names(ctx, dir)
	if err != nil {
		return -1, fmt.Errorf("listing what is published: %w", err)
	}
	most := int64(-1)
	for _, name := range names {
		if n, err := strconv.ParseInt(name, 10, 64); err == nil {
			most = max(most, n)
		}
	}
	return most, nil
}

// A published is what a place knew of this log before it was opened.
type published struct {
	epoch  int64
	signed []byte
}

// publishedBefore asks each place. One that cannot be reached keeps no gateway from starting: the log is held against it
// with the first checkpoint that it takes.
func (l *Log) publishedBefore(o Options) []published {
	ctx, cancel := context.WithTimeout(context.Background(), publishWait)
	defer cancel()
	var all []published
	for _, p := range l.publishers {
		place, err := p.opened(ctx)
		var known published
		if err == nil {
			known.epoch, known.signed, err = newestPublished(ctx, place, path.Dir(origin(o, 0)))
		}
		if err != nil {
			l.logger.LogAttrs(ctx, slog.LevelError, "published checkpoints cannot be read; the log is held against them later",
				slog.String("dest", p.dest.Name), slog.Any("err", err))
			continue
		}
		all = append(all, known)
	}
	return all
}

// newestOf returns the newest epoch that was published, -1 for none.
func newestOf(known []published) int64 {
	newest := int64(-1)
	for _, k := range known {
		newest = max(newest, k.epoch)
	}
	return newest
}

// checkpointsOf returns the published checkpoints of an epoch.
func checkpointsOf(known []published, epoch int64) []string {
	var all []string
	for _, k := range known {
		if k.epoch == epoch && k.signed != nil && !slices.Contains(all, string(k.signed)) {
			all = append(all, string(k.signed))
		}
	}
	return all
}
