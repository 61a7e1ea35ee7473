// Package audit is the tamper-evident log of the gateway: an append-only sequence of records in segment files, with a
// hash chain, an RFC 6962 tree and signed checkpoints over it. It is no log of messages; package sinks delivers its records.
//
// Its invariant: when Append returns nil, the record is on disk and survives a crash and a power cut, and nobody can
// change, reorder or remove it without Verify showing it to whoever holds a later checkpoint.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/headgate/headgate/audit/schema"
	"github.com/headgate/headgate/audit/sinks"
)

// Config is the audit section of the configuration file.
type Config struct {
	// Dir is the log's folder, best on a volume of its own. Empty: audit below the state folder.
	Dir string `yaml:"dir"`
	// SegmentBytes is the size of one segment file. It is preallocated, and the log stops taking requests when less
	// than two and a half of them are free. 0: 128 MiB. At least 1 MiB, at most 1 GiB.
	SegmentBytes int64 `yaml:"segment_bytes"`
	// Sinks are where records are delivered to.
	Sinks []sinks.Config `yaml:"sinks"`
	// Publish are places off this machine that checkpoints and sealed segments go to. At start, a log that is shorter than
	// its published checkpoint is damaged: its tail was cut, or an older copy of it was put in place.
	Publish []Publication `yaml:"publish"`
	// PublishGrace is how long requests are served while no place takes a checkpoint; then they get 503. 0: 24h.
	PublishGrace time.Duration `yaml:"publish_grace"`
	// Retention is how long the records of a sealed segment are kept, from the newest of them on. Their hashes stay, so
	// that the rest of the log and every proof made before still verify. A sink that has not got a record, or a place
	// where its segment is not published yet, keeps it and all behind it. 0: 8760h, which is 365 days. At least 1h.
	Retention time.Duration `yaml:"retention"`
	// VerifyEvery is how often the running gateway verifies its whole log and what is published of it, first some minutes
	// after the start. Absent: 24h. 0: never. Else at least 1m.
	VerifyEvery *time.Duration `yaml:"verify_every"`
	// Hold is a day, as in 2026-11-23 (UTC): records from then on are kept, whatever their age. Empty: none are.
	Hold string `yaml:"hold"`
}

const (
	defaultSegment = 128 << 20
	minSegment     = 1 << 20
	maxSegment     = 1 << 30
	defaultGrace   = 24 * time.Hour
)

// Validate reports every mistake in the section.
func (c Config) Validate() []error {
	errs := append(sinks.Validate(c.Sinks), validatePublish(c.Publish)...)
	for i, s := range c.Sinks {
		if s.Schema != "" && !schema.Known(s.Schema) {
			errs = append(errs, fmt.Errorf("sinks[%d].schema: %q is not known; want one of %s", i, s.Schema, strings.Join(schema.Names(), ", ")))
		}
	}
	if c.SegmentBytes != 0 && (c.SegmentBytes < minSegment || c.SegmentBytes > maxSegment) {
		errs = append(errs, fmt.Errorf("segment_bytes: %d is out of range; want %d to %d bytes, or 0 for the default of %d",
			c.SegmentBytes, minSegment, maxSegment, defaultSegment))
	}
	if c.PublishGrace != 0 && (len(c.Publish) == 0 || c.PublishGrace < publishLost) {
		errs = append(errs, fmt.Errorf("publish_grace: %s; want %s at least, and a place to publish to", c.PublishGrace, publishLost))
	}
	if c.Retention != 0 && c.Retention < time.Hour {
		errs = append(errs, fmt.Errorf("retention: %s is too short; want at least 1h, or 0 for the default of %s", c.Retention, DefaultRetention))
	}
	if every := c.verifyEvery(); every != 0 && every < time.Minute {
		errs = append(errs, fmt.Errorf("verify_every: %s is too short; want at least 1m, 0 for never, or nothing for %s", every, defaultVerify))
	}
	if _, err := time.Parse(time.DateOnly, c.Hold); c.Hold != "" && err != nil {
		errs = append(errs, fmt.Errorf("hold: %q is no day; want one as in 2026-11-23, or nothing", c.Hold))
	}
	return errs
}

// verifyEvery returns the interval between verifications, 0 for none.
func (c Config) verifyEvery() time.Duration {
	if c.VerifyEvery == nil {
		return defaultVerify
	}
	return *c.VerifyEvery
}

// held returns the time from which on records are kept; ok is false if there is none.
func (c Config) held() (since time.Time, ok bool) {
	since, err := time.Parse(time.DateOnly, c.Hold)
	return since, err == nil
}

// Options are what the log needs beside its configuration.
type Options struct {
	Cluster string // part of the log's origin; empty: "local"
	Node    string // part of the log's origin and of each record; empty: the host name
	Version string // the program's, which exported events name; empty: "devel"
	Logger  *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// Objects opens a folder or bucket that Config.Publish names.
	Objects func(ctx context.Context, location string) (Objects, error)
	// AcceptDamage opens a new epoch behind a damaged one instead of refusing. The damage stays for the investigators,
	// and the new epoch's first record names it.
	AcceptDamage bool
}

// A Log is an open audit log. Its methods may be called from many goroutines.
type Log struct {
	cfg        Config
	node       string
	version    string
	logger     *slog.Logger
	registerer prometheus.Registerer
	metrics    *metrics
	disk       disk
	lock       *os.File
	secrets    *secrets
	encoders   sync.Pool // of *encoder
	timers     sync.Pool // of *time.Timer
	layout     layout    // of the present epoch
	rotations  atomic.Int64
	origin     string
	key        *signingKey // upkeep goroutine only, once open
	publishers []*publisher
	exporter   atomic.Pointer[sinks.Exporter]
	verified   atomic.Pointer[Verification]

	wake     chan struct{} // hands the right to commit to the writer
	topack   chan struct{} // tells packing that a segment was sealed
	urgent   chan struct{} // tells upkeep that room or a sealing is needed
	stop     chan struct{}
	poisoned chan struct{}
	workers  sync.WaitGroup

	mu       sync.Mutex // guards all below
	idle     sync.Cond  // busy became false
	busy     bool       // somebody commits
	open     *batch     // takes records
	full     []*batch   // closed by their size, in order, before open
	buffers  [][]byte   // of committed batches, for the next ones
	tick     *time.Timer
	ticking  bool
	queued   int           // records in open and full
	lastSync time.Duration // of the last fdatasync
	state    error
	closing  bool
	durable  edge
	prev     tlog.Hash // leaf hash of the last durable record
	dropped  int64     // records without a waiter, lost to a full disk since it was full
	unseal   []int64   // first seq of segments that are full and not sealed yet
	unpacked []int64   // first seq of segments that are sealed and not packed yet
	sealed   int       // segments

	notBefore int64 // append time that the next frame has at least

	unpublished bool      // for longer than the grace
	publishedAt time.Time // when a place last took a checkpoint

	spareMu sync.Mutex // guards spare and the making of the file
	spare   bool       // the next segment stands ready

	// Only who holds busy touches these.
	active segment
	stamp  int64 // append time of the last frame
}

// Open opens the log in cfg.Dir, which it makes if needed, takes its lock and recovers what a crash left. Damage is a
// *DamageError and changes nothing; another process on the same folder is ErrLocked.
func Open(cfg Config, o Options) (*Log, error) {
	return open(cfg, o, osDisk{})
}

func open(cfg Config, o Options, d disk) (_ *Log, err error) {
	if errs := cfg.Validate(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = defaultSegment
	}
	if cfg.PublishGrace == 0 {
		cfg.PublishGrace = defaultGrace
	}
	if cfg.Retention == 0 {
		cfg.Retention = DefaultRetention
	}
	if o.Cluster == "" {
		o.Cluster = "local"
	}
	if o.Node == "" {
		if o.Node, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("finding the node's name: %w", err)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		cfg: cfg, node: o.Node, version: o.Version, logger: o.Logger, registerer: o.Registerer, metrics: newMetrics(), disk: d,
		wake: make(chan struct{}, 1), topack: make(chan struct{}, 1), urgent: make(chan struct{}, 1), stop: make(chan struct{}), poisoned: make(chan struct{}),
	}
	l.idle.L = &l.mu
	l.timers.New = func() any { return stoppedTimer() }
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making audit folder: %w", err)
	}
	if l.lock, err = takeLock(filepath.Join(cfg.Dir, "LOCK")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if l.active.file != nil {
				_ = l.active.file.Close() // the error that led here is the one to report
			}
			_ = l.lock.Close() // nothing was written through it
		}
	}()
	if err := l.prepare(); err != nil {
		return nil, err
	}
	if l.publishers, err = newPublishers(l, o.Objects); err != nil {
		return nil, err
	}
	if err := l.recover(o); err != nil {
		return nil, errors.Join(err, l.closePublishers())
	}
	// Room for control records and checkpoints is taken before the first request can meet a full disk.
	if err := l.fillBallast(); err != nil && !outOfSpace(err) {
		return nil, err
	}
	if err := l.metrics.register(o.Registerer); err != nil {
		l.metrics.unregister(o.Registerer)
		return nil, err
	}
	l.start()
	return l, nil
}

// takeLock locks the folder for this process: the lock goes with the process, however it ends.
func takeLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock: %w", err)
	}
	if err := retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		_ = f.Close() // only read, if at all
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", name, ErrLocked)
		}
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return f, nil
}

// prepare makes the folders and keys that do not belong to an epoch.
func (l *Log) prepare() error {
	for _, name := range []string{"keys", "epoch", "quarantine"} {
		if err := makeDir(l.disk, filepath.Join(l.cfg.Dir, name)); err != nil {
			return err
		}
	}
	key, err := fingerprintKey(l.disk, l.cfg.Dir)
	if err != nil {
		return err
	}
	l.secrets = newSecrets(key)
	l.encoders.New = func() any { return &encoder{secrets: l.secrets} }
	return nil
}

// origin returns the log's name in its checkpoints.
func origin(o Options, epoch int64) string {
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r < 0x80 && (alphanumeric(byte(r)) || r == '.' || r == '-' || r == '_') {
				return r
			}
			return '-'
		}, s)
	}
	return fmt.Sprintf("audit.%s/%s/%d", clean(o.Cluster), clean(o.Node), epoch)
}

// start begins the log's work: the writer and upkeep.
func (l *Log) start() {
	l.open = &batch{done: make(chan struct{})}
	l.tick = time.AfterFunc(time.Hour, l.onTick)
	l.tick.Stop()
	if l.state == nil {
		l.metrics.writable.Set(1)
	}
	l.metrics.size.Set(float64(l.durable.size))
	l.workers.Go(l.writer)
	l.workers.Go(l.upkeep)
	l.workers.Go(l.packing)
	l.publishedAt = time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	l.workers.Go(func() {
		<-l.stop
		cancel()
	})
	l.metrics.verifyEvery.Set(l.cfg.verifyEvery().Seconds())
	if l.cfg.verifyEvery() > 0 {
		l.workers.Go(func() { l.verifying(ctx) })
	}
	for _, p := range l.publishers {
		l.workers.Go(func() { p.checkpoints(ctx) })
		l.workers.Go(func() { p.segments(ctx) })
	}
}

func (l *Log) closePublishers() error {
	var errs []error
	for _, p := range l.publishers {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// Archive returns an archive of this log, to ask it while it runs.
func (l *Log) Archive() *Archive { return NewArchive(l.cfg.Dir) }

// Fingerprint returns the name under which a secret may stand in a record: key id and keyed hash.
func (l *Log) Fingerprint(secret []byte) string { return l.secrets.fingerprint(secret) }

// Writable returns nil, or why records cannot be written now; the error matches ErrUnwritable. Requests are then
// refused on arrival.
func (l *Log) Writable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refusal()
}

// refusal returns why records are not taken. It needs mu.
func (l *Log) refusal() error {
	switch {
	case l.closing:
		return unwritable(errClosed)
	case l.state != nil:
		return unwritable(l.state)
	case l.unpublished:
		return unwritable(errUnpublished)
	}
	return nil
}

func unwritable(cause error) error {
	return fmt.Errorf("%w: %w", ErrUnwritable, cause)
}

// Poisoned returns a channel that is closed when the log can never write again: a write or fsync failed, and the page
// cache cannot be believed afterwards. The process then drains and exits; recovery decides at the next start.
func (l *Log) Poisoned() <-chan struct{} { return l.poisoned }

// Close writes what is queued, a last control record and a last checkpoint, and releases the lock.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return unwritable(errClosed)
	}
	l.mu.Unlock()
	l.Note(l.controlRecord(Control{What: "stop"}))
	l.mu.Lock()
	l.closing = true
	l.tick.Stop()
	for l.busy {
		l.idle.Wait()
	}
	l.busy = true
	for b := l.take(); b != nil; b = l.take() {
		l.mu.Unlock()
		l.commit(b)
		l.mu.Lock()
	}
	err := l.state
	l.mu.Unlock()
	close(l.stop)
	close(l.wake)
	l.workers.Wait()
	if errors.Is(err, errPoisoned) {
		err = unwritable(err)
	} else { // also on a full disk, which is why there is ballast
		err = l.writeCheckpoint(time.Now())
		for _, p := range l.publishers {
			p.settle(context.Background(), p.round(context.Background(), publishLast))
		}
	}
	l.metrics.unregister(l.registerer)
	return errors.Join(err, l.closePublishers(), l.active.file.Close(), l.lock.Close())
}

// controlRecord makes a record in which the log speaks of itself.
func (l *Log) controlRecord(c Control) *Record {
	r := Begin("")
	r.Kind, r.Control = KindControl, c
	return r
}
