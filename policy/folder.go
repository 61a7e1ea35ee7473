package policy

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

const pollEvery = time.Second

// openFolder loads the folder, else the newest archive of it that is good, and watches the folder from then on.
func (e *Engine) openFolder(ctx context.Context) error {
	if err := e.openState(); err != nil {
		return err
	}
	seen := e.signature()
	if rejected := e.load(ctx, candidate{fsys: os.DirFS(e.cfg.Path)}); rejected != nil {
		e.restore(ctx, nil)
		e.reject(rejected)
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.watch.Go(func() { e.poll(ctx, seen) })
	return nil
}

// poll looks for changes each second. One change is loaded once, so a bad bundle is reported once.
func (e *Engine) poll(ctx context.Context, seen string) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := e.signature()
		if now == seen {
			continue
		}
		if rejected := e.load(ctx, candidate{fsys: os.DirFS(e.cfg.Path)}); rejected != nil {
			if ctx.Err() != nil {
				return
			}
			e.reject(rejected)
		}
		seen = now
	}
}

// signature changes when a file of the folder does. It is taken before the folder is read, so that a write in between
// is seen by the next poll.
func (e *Engine) signature() string {
	hash := sha256.New()
	files := 0
	err := fs.WalkDir(os.DirFS(e.cfg.Path), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if files++; files > maxFiles {
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(hash, name, info.Size(), info.Mode(), info.ModTime().UnixNano())
		return nil
	})
	return fmt.Sprintf("%x %v", hash.Sum(nil), err)
}

// restore activates the newest archive of this source that is whole, signed by this gateway, and still compiles. trust
// is asked about the record of each; nil trusts all.
func (e *Engine) restore(ctx context.Context, trust func(Record) error) {
	if e.key == nil {
		return
	}
	names, err := e.archives()
	if err != nil {
		e.opts.Logger.Error("policy not restored", slog.Any("err", err))
	}
	for _, name := range names {
		r, err := e.readRecord(name)
		if err == nil && trust != nil {
			err = trust(r)
		}
		var fsys fs.FS
		if err == nil {
			fsys, err = openArchive(filepath.Join(e.opts.State, name+".tar"))
		}
		if err == nil {
			rejected := e.load(ctx, candidate{fsys: fsys, from: r, restored: true})
			if rejected == nil {
				return
			}
			err = fmt.Errorf("%s: %s", rejected.State, rejected.Reason)
		}
		e.opts.Logger.Error("policy archive not restored", slog.String("archive", name), slog.Any("err", err))
	}
}
