// Package audit is the tamper-evident log of the gateway: an append-only sequence of records in segment files, with a
// hash chain, an RFC 6962 tree and signed checkpoints over it. It is no log of messages and exports nothing.
//
// Its invariant: when Append returns nil, the record is on disk and survives a crash and a power cut, and nobody can
// change, reorder or remove it without Verify showing it to whoever holds a later checkpoint.
package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// Config is the audit section of the configuration file.
type Config struct {
	// Dir is the log's folder, best on a volume of its own. Empty: audit below the state folder.
	Dir string `yaml:"dir"`
	// SegmentBytes is the size of one segment file. It is preallocated, and the log stops taking requests when less
	// than two and a half of them are free. 0: 128 MiB. At least 1 MiB, at most 1 GiB.
	SegmentBytes int64 `yaml:"segment_bytes"`
}

const (
	defaultSegment = 128 << 20
	minSegment     = 1 << 20
	maxSegment     = 1 << 30
)

// Validate reports every mistake in the section.
func (c Config) Validate() []error {
	if c.SegmentBytes != 0 && (c.SegmentBytes < minSegment || c.SegmentBytes > maxSegment) {
		return []error{fmt.Errorf("segment_bytes: %d is out of range; want %d to %d bytes, or 0 for the default of %d",
			c.SegmentBytes, minSegment, maxSegment, defaultSegment)}
	}
	return nil
}

// Options are what the log needs beside its configuration.
type Options struct {
	Cluster string // part of the log's origin; empty: "local"
	Node    string // part of the log's origin and of each record; empty: the host name
	Logger  *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// AcceptDamage opens a new epoch behind a damaged one instead of refusing. The damage stays for the investigators,
	// and the new epoch's first record names it.
	AcceptDamage bool
}

// A Log is an open audit log. Its methods may be called from many goroutines.
type Log struct {
	cfg        Config
	node       string
	logger     *slog.Logger
	registerer prometheus.Registerer
	metrics    *metrics
	disk       disk
	lock       *os.File
	secrets    *secrets
	encoders   sync.Pool // of *encoder
	timers     sync.Pool // of *time.Timer
	layout     layout    // of the present epoch
	origin     string
	key        *signingKey // upkeep goroutine only, once open

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
		cfg: cfg, node: o.Node, logger: o.Logger, registerer: o.Registerer, metrics: newMetrics(), disk: d,
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
	if err := l.recover(o); err != nil {
		return nil, err
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
}

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
	}
	l.metrics.unregister(l.registerer)
	return errors.Join(err, l.active.file.Close(), l.lock.Close())
}

// controlRecord makes a record in which the log speaks of itself.
func (l *Log) controlRecord(c Control) *Record {
	r := Begin("")
	r.Kind, r.Control = KindControl, c
	return r
}
