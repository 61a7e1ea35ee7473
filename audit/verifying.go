package audit

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path"
	"time"
)

// A running log reads itself whole again and again: what is altered on the disk is found by somebody who looks, not by
// the court that asks for it a year later. It reads slowly, so that requests do not feel it.
const (
	defaultVerify = 24 * time.Hour
	verifyFirst   = 5 * time.Minute // after the start, and up to twice that
	verifyRate    = 64 << 20        // bytes of frames a second, more only where a pass would take half the interval
)

// Results of a verification, a closed set: the exit codes of damage, and what is none.
const (
	verifiedOK      = "ok"
	verifiedAltered = "altered"
	verifiedMissing = "missing"
	verifiedShort   = "short"
	verifiedTorn    = "torn"
	verifiedKey     = "key"
	verifiedSplit   = "split"
	verifiedFailed  = "failed" // it could not be done
)

var verifyResults = []string{
	verifiedOK, verifiedAltered, verifiedMissing, verifiedShort, verifiedTorn, verifiedKey, verifiedSplit, verifiedFailed,
}

// verifyResult names how a verification ended.
func verifyResult(err error) string {
	d, ok := errors.AsType[*DamageError](err)
	switch {
	case err == nil:
		return verifiedOK
	case !ok:
		return verifiedFailed
	}
	switch d.Code {
	case ExitMissing:
		return verifiedMissing
	case ExitShort:
		return verifiedShort
	case ExitTorn:
		return verifiedTorn
	case ExitKey:
		return verifiedKey
	case ExitConflict:
		return verifiedSplit
	}
	return verifiedAltered
}

// verifyAdvice is what a person does about a result.
func verifyAdvice(result string) string {
	switch result {
	case verifiedFailed:
		return "mend what the error names; headgate audit verify tries it at once"
	case verifiedTorn:
		return "bytes that no writer of this log left stand behind its end: see who else writes into its folder; the next start moves them to quarantine"
	case verifiedKey:
		return "a checkpoint or key list is not of this log: compare audit/keys with what is published, see who changed it"
	case verifiedSplit:
		return "two histories of this log are signed: take this node out of service, keep its disk, find who else holds its key"
	}
	return "keep a copy of the audit folder and change nothing in it; headgate audit verify --published says what was there before; " +
		"after the investigation a restart with serve --accept-damage begins a new epoch"
}

// A Verification is how the running log was last verified by itself.
type Verification struct {
	Began   time.Time     `json:"began"`
	Ended   time.Time     `json:"ended"`
	Result  string        `json:"result"` // ok, altered, missing, short, torn, key, split, failed
	Records int64         `json:"records"`
	Size    int64         `json:"size"` // records of the newest epoch that were in good order
	Error   string        `json:"error,omitempty"`
	Damage  *DamageError  `json:"damage,omitempty"`
	Advice  string        `json:"advice,omitempty"` // what to do about it
	took    time.Duration // of the pass that was believed
	bytes   int64
}

// Verified returns how the log was last verified by itself, nil if it was not yet since the start.
func (l *Log) Verified() *Verification { return l.verified.Load() }

// verifying verifies the log at its interval, until ctx ends.
func (l *Log) verifying(ctx context.Context) {
	every := l.cfg.verifyEvery()
	wait := min(verifyFirst, every)
	for wait += rand.N(wait); ; wait = every - every/20 + rand.N(every/10) { // a fleet does not read all at once
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		l.verify(ctx)
	}
}

// verify verifies the log once and says what it found. A finding is believed when it is found a second time: retention, a
// new key or a write under way may have moved something under the first look.
func (l *Log) verify(ctx context.Context) {
	v := l.look(ctx)
	if v.Result != verifiedOK && ctx.Err() == nil {
		v = l.look(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	l.verified.Store(v)
	for _, result := range verifyResults {
		l.metrics.verified.WithLabelValues(result).Set(0)
	}
	l.metrics.verified.WithLabelValues(v.Result).Set(1)
	note := Control{What: "verify", SeqTo: v.Size - 1, Count: v.Records, Bytes: v.bytes}
	if v.Result == verifiedOK {
		l.metrics.verifiedAt.Set(float64(v.Ended.Unix()))
		l.logger.LogAttrs(ctx, slog.LevelInfo, "audit log verified", slog.Int64("records", v.Records), slog.Duration("took", v.took))
		l.Note(l.controlRecord(note))
		return
	}
	note.ErrClass = v.Result
	if v.Damage != nil {
		note.SeqFrom, note.SeqTo = v.Damage.Seq, v.Damage.SeqTo
	}
	if v.Result == verifiedSplit {
		l.metrics.splits.WithLabelValues("verify").Inc()
	}
	l.logger.LogAttrs(ctx, slog.LevelError, "audit log does not verify", slog.String("result", v.Result), slog.String("err", v.Error), slog.String("do", v.Advice))
	l.Note(l.controlRecord(note))
}

// look is one pass over the whole log and what is published of it.
func (l *Log) look(ctx context.Context) *Verification {
	v := &Verification{Began: time.Now()}
	report := &Report{}
	published, err := l.publishedNow(ctx)
	if err == nil {
		report, err = Verify(ctx, l.cfg.Dir, VerifyOptions{Checkpoints: published, BytesPerSecond: l.verifyPace()})
	}
	v.Ended = time.Now()
	v.took, v.Result, v.Records, v.Size, v.bytes = v.Ended.Sub(v.Began), verifyResult(err), report.Records, report.Size, report.Bytes
	if err != nil {
		v.Error, v.Advice = err.Error(), verifyAdvice(v.Result)
		v.Damage, _ = errors.AsType[*DamageError](err)
	}
	return v
}

// verifyPace is how many bytes a pass reads in a second: so many that what the last one read takes half the interval.
func (l *Log) verifyPace() int64 {
	last := l.verified.Load()
	if last == nil {
		return verifyRate
	}
	return max(verifyRate, int64(2*float64(last.bytes)/l.cfg.verifyEvery().Seconds()))
}

// publishedNow returns what each place has of this log. One that cannot be reached has an alarm of its own.
func (l *Log) publishedNow(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	var all []published
	for _, p := range l.publishers {
		place, err := p.opened(ctx)
		var known published
		if err == nil {
			known.epoch, known.signed, err = newestPublished(ctx, place, path.Dir(l.origin))
		}
		if err != nil {
			l.logger.LogAttrs(ctx, slog.LevelWarn, "the audit log is verified without what is published here", slog.String("dest", p.dest.Name), slog.Any("err", err))
			continue
		}
		all = append(all, known)
	}
	if epoch := newestOf(all); epoch > l.layout.epoch {
		return nil, missingEpoch(epoch)
	}
	return checkpointsOf(all, l.layout.epoch), nil
}
