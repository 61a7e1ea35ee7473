package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"

	"github.com/headgate/headgate/policy/git"
)

// staleAfter is how long the repository may be out of reach before a person should know.
const staleAfter = 15 * time.Minute

// gitState is what the engine remembers between two looks at its repository.
type gitState struct {
	anchor Record    // of the newest revision that was active: what comes next must follow it
	judged string    // what was judged last; it is not judged again
	seen   time.Time // when the repository was last read
}

// openGit restores the newest archive that can still be trusted, looks at the repository, at once where there was none,
// and follows it from then on.
func (e *Engine) openGit(ctx context.Context) error {
	if e.opts.State == "" {
		return errors.New("opening policy: source git needs a state folder")
	}
	if err := e.openState(); err != nil {
		return err
	}
	var err error
	if e.git, err = git.Open(ctx, e.cfg.Git, git.Options{Dir: filepath.Join(e.opts.State, "git")}); err != nil {
		return fmt.Errorf("opening policy: %w", err)
	}
	e.status.Repository, e.source.seen, e.hint = e.git.URL(), time.Now(), make(chan struct{}, 1)
	e.restore(ctx, func(r Record) error { return e.trusts(ctx, r) })
	if records := e.records(); len(records) > 0 {
		e.source.anchor = records[0] // also where its archive could not be restored: an older one is no way back
	}
	if e.current.Load() == nil {
		e.look(ctx)
	} else {
		e.Look()
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.watch.Go(func() { e.follow(ctx) })
	return nil
}

// trusts tells whether a kept revision would still pass: its signer may have left the list since.
func (e *Engine) trusts(ctx context.Context, r Record) error {
	known, err := e.git.Reverify(ctx, git.Commit{Tip: git.Tip{Ref: r.Ref, Object: r.Object}, ID: r.Commit, Tree: r.Tree})
	if err == nil && !known && !e.git.Knows(r.Signer) {
		err = fmt.Errorf("its signer %s is no signer any more", r.Signer)
	}
	return err
}

// Repository is the address of the repository that policy comes from; "" where it comes from none.
func (e *Engine) Repository() string { return e.cfg.Git.URL }

// Look asks for a look at the repository now, and does not wait for it. It is for webhooks: a hint and nothing more.
func (e *Engine) Look() {
	select {
	case e.hint <- struct{}{}:
	default: // one is due already, or there is no repository
	}
}

// follow looks at the repository at random intervals, so that the nodes of a fleet do not come together, and on hints.
func (e *Engine) follow(ctx context.Context) {
	for {
		poll := e.git.Poll()
		timer := time.NewTimer(poll + rand.N(poll))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-e.hint:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		e.look(ctx)
	}
}

// look finds out what the repository holds now, and judges it unless it was judged before.
func (e *Engine) look(ctx context.Context) {
	tip, err := e.git.Look(ctx)
	if err != nil && !errors.Is(err, git.ErrRefused) {
		e.away(ctx, err)
		return
	}
	signers, serr := e.git.Signers()
	if serr != nil {
		e.away(ctx, serr)
		return
	}
	e.reached()
	back := e.rollback()
	judged := fmt.Sprint(tip, signers, back)
	if judged == e.source.judged {
		return
	}
	c := candidate{from: Record{Ref: tip.Ref, Commit: tip.Object}}
	if err != nil {
		e.refuse(e.event(c, stateDiscovered), err)
	} else if err := e.consider(ctx, tip, back); err != nil {
		e.away(ctx, err)
		return // it is judged when it can be
	}
	if ctx.Err() == nil {
		e.source.judged = judged
	}
}

// rollback is what policy.rollback_to names, while it holds.
func (e *Engine) rollback() Rollback {
	last, err := time.Parse(time.DateOnly, e.cfg.RollbackTo.Until)
	if err != nil || today() > int(last.Unix()/86400) {
		return Rollback{}
	}
	return e.cfg.RollbackTo
}

// consider takes what the tip names through all steps. The error is that the repository went away.
func (e *Engine) consider(ctx context.Context, tip git.Tip, back Rollback) error {
	c := candidate{from: Record{Ref: tip.Ref, Object: tip.Object, Commit: tip.Object}, rollback: back.Until}
	commit, err := e.fetch(ctx, tip, back)
	if errors.Is(err, git.ErrAway) {
		return err
	}
	if err != nil {
		e.refuse(e.event(c, stateFetched), err)
		return nil
	}
	c.from = Record{Ref: commit.Ref, Object: commit.Object, Commit: commit.ID, Tree: commit.Tree}
	if c.from.Signer, err = e.git.Verify(ctx, commit); err == nil && back == (Rollback{}) {
		err = e.follows(ctx, commit)
	}
	if err != nil {
		e.refuse(e.event(c, stateVerified), err)
		return nil
	}
	if c.fsys, err = e.git.Files(ctx, commit); err != nil {
		e.refuse(e.event(c, stateBuilt), err)
		return nil
	}
	if rejected := e.load(ctx, c); rejected != nil && ctx.Err() == nil {
		e.reject(rejected)
	}
	return nil
}

func (e *Engine) refuse(ev Event, err error) {
	ev.Reason = err.Error()
	e.reject(&ev)
}

// fetch brings the tip, or the revision to go back to.
func (e *Engine) fetch(ctx context.Context, tip git.Tip, back Rollback) (git.Commit, error) {
	if back != (Rollback{}) && strings.HasPrefix(tip.Ref, "refs/tags/") {
		return e.git.Fetch(ctx, git.Tip{Ref: "refs/tags/" + back.Revision})
	}
	commit, err := e.git.Fetch(ctx, tip)
	if err != nil || back == (Rollback{}) {
		return commit, err
	}
	return e.git.Find(ctx, commit, back.Revision)
}

// follows refuses a way back: a branch must go forward from what was active, and a tag that is known never moves.
func (e *Engine) follows(ctx context.Context, c git.Commit) error {
	old := e.source.anchor
	if old.Commit == "" {
		return nil
	}
	if strings.HasPrefix(c.Ref, "refs/tags/") {
		for _, r := range append(e.records(), old) {
			if r.Ref == c.Ref && r.Object != c.Object {
				return fmt.Errorf("%s was moved: it was %s and is %s", c.Ref, r.Object, c.Object)
			}
		}
		return nil // its sequence is compared once its manifest is read
	}
	forward, err := e.git.Descends(ctx, old.Commit, c.ID)
	if err != nil || forward {
		return err
	}
	if back, err := e.git.Descends(ctx, c.ID, old.Commit); err == nil && back {
		return fmt.Errorf("%s goes back to %s, which is older than the active %s; policy.rollback_to goes back on purpose", c.Ref, c.ID, old.Commit)
	}
	return fmt.Errorf("%s does not descend from the active %s: its history was rewritten", c.ID, old.Commit)
}

// rises holds a new tag to a higher sequence than that which was active.
func (e *Engine) rises(c candidate, sequence int) error {
	if !strings.HasPrefix(c.from.Ref, "refs/tags/") || c.restored || c.rollback != "" || c.from.Object == e.source.anchor.Object {
		return nil
	}
	if sequence <= e.source.anchor.Sequence {
		return fmt.Errorf("bundle.yaml: sequence is %d; want more than %d, that of the active %s", sequence, e.source.anchor.Sequence, e.source.anchor.Ref)
	}
	return nil
}

// reached notes that the repository was read.
func (e *Engine) reached() {
	e.source.seen = time.Now()
	e.metrics.contact.Set(float64(e.source.seen.Unix()))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status.LastSeen, e.status.Trouble, e.status.Stale = e.source.seen, "", false
}

// away notes that the repository cannot be read. The active policy stays, and that it may be stale is said once.
func (e *Engine) away(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	stale := time.Since(e.source.seen) > staleAfter
	e.mu.Lock()
	news, alarm := e.status.Trouble == "", stale && !e.status.Stale
	e.status.Trouble, e.status.Stale = err.Error(), stale
	e.mu.Unlock()
	if news {
		e.opts.Logger.Warn("policy repository cannot be read", slog.Any("err", err))
	}
	if alarm {
		e.opts.Logger.Error("policy may be stale", slog.Time("last_seen", e.source.seen), slog.Any("err", err))
	}
}
