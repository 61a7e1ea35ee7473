package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	pollEvery    = time.Second
	keepArchives = 5
)

// openFolder loads the folder, else the newest archive of it that is good, and watches the folder from then on.
func (e *Engine) openFolder(ctx context.Context) error {
	if e.opts.State != "" {
		if err := os.MkdirAll(e.opts.State, 0o700); err != nil {
			return fmt.Errorf("opening policy: %w", err)
		}
	}
	seen := e.signature()
	if rejected := e.load(ctx, os.DirFS(e.cfg.Path), false); rejected != nil {
		e.restore(ctx)
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
		if rejected := e.load(ctx, os.DirFS(e.cfg.Path), false); rejected != nil {
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

// archivePrefix names the archives of this source: those of another folder are not for it.
func (e *Engine) archivePrefix() string {
	path, err := filepath.Abs(e.cfg.Path)
	if err != nil {
		path = e.cfg.Path
	}
	sum := sha256.Sum256([]byte(path))
	return "folder-" + hex.EncodeToString(sum[:4]) + "-"
}

// archives are the names of this source's archives, newest first.
func (e *Engine) archives() ([]string, error) {
	entries, err := os.ReadDir(e.opts.State)
	if err != nil {
		return nil, fmt.Errorf("listing policy archives: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), e.archivePrefix()) && strings.HasSuffix(entry.Name(), ".tar") {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

// keep stores the archive of a good bundle. That it cannot is logged: the bundle is active all the same.
func (e *Engine) keep(b *bundle) {
	if e.opts.State == "" || e.cfg.Source == "embedded" {
		return
	}
	name := fmt.Sprintf("%s%020d-%s.tar", e.archivePrefix(), time.Now().UnixNano(), b.digest)
	if err := e.writeArchive(name, b.archive); err != nil {
		e.opts.Logger.Error("policy archive not kept", slog.Any("err", err))
	}
}

func (e *Engine) writeArchive(name string, archive []byte) error {
	root, err := os.OpenRoot(e.opts.State)
	if err != nil {
		return fmt.Errorf("opening %s: %w", e.opts.State, err)
	}
	defer root.Close()
	f, err := root.OpenFile(name+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("creating policy archive: %w", err)
	}
	_, err = f.Write(archive)
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(name+".tmp", name)
	}
	if err != nil {
		return fmt.Errorf("writing policy archive %s: %w", name, err)
	}
	if err := syncDir(root); err != nil {
		return err
	}
	names, err := e.archives()
	if err != nil {
		return err
	}
	for _, old := range names[min(keepArchives, len(names)):] {
		if err := root.Remove(old); err != nil {
			return fmt.Errorf("removing old policy archive: %w", err)
		}
	}
	return nil
}

func syncDir(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("syncing policy archives: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("syncing policy archives: %w", err)
	}
	return nil
}

// restore activates the newest archive of this source that is whole and still compiles.
func (e *Engine) restore(ctx context.Context) {
	if e.opts.State == "" {
		return
	}
	names, err := e.archives()
	if err != nil {
		e.opts.Logger.Error("policy not restored", slog.Any("err", err))
	}
	for _, name := range names {
		fsys, err := openArchive(filepath.Join(e.opts.State, name))
		if err == nil {
			rejected := e.load(ctx, fsys, true)
			if rejected == nil {
				return
			}
			err = fmt.Errorf("%s: %s", rejected.State, rejected.Reason)
		}
		e.opts.Logger.Error("policy archive not restored", slog.String("archive", name), slog.Any("err", err))
	}
}
