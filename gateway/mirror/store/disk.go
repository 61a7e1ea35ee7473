package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
)

// temp holds drafts in a folder; a module path cannot begin with a dot.
const temp = ".tmp"

// disk is the backend of a folder. Drafts are on its file system, so that a
// link or rename makes them visible at once or not at all.
type disk struct {
	s        *Store
	root     *os.Root
	swapping sync.Mutex // one Swap looks and writes at a time
}

func (s *Store) openDisk(dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making store %s: %w", dir, err)
	}
	if s.scratch, err = openScratch(filepath.Join(dir, temp)); err != nil {
		return fmt.Errorf("opening store %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return errors.Join(fmt.Errorf("opening store %s: %w", dir, err), s.scratch.close())
	}
	s.backend = &disk{s: s, root: root}
	return nil
}

func (b *disk) close() error { return b.root.Close() }

func (b *disk) open(_ context.Context, name string) (File, error) {
	f, err := b.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("opening %s: is a folder: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (b *disk) stat(_ context.Context, name string) (Info, error) {
	info, err := b.root.Stat(filepath.FromSlash(name))
	if err == nil && info.IsDir() {
		err = fmt.Errorf("describing %s: is a folder: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return Info{}, err
	}
	return Info{Name: name, Size: info.Size(), ModTime: info.ModTime()}, nil
}

func (b *disk) list(ctx context.Context, dir string, shallow bool, f func(Info) error) error {
	err := fs.WalkDir(b.root.FS(), dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist): // it went away meanwhile
			return nil
		case err != nil:
			return err
		case name == dir && e.IsDir():
			return nil
		case name == temp:
			return fs.SkipDir
		case e.IsDir() && !shallow:
			return nil
		case e.IsDir():
			if err := f(Info{Name: name}); err != nil {
				return err
			}
			return fs.SkipDir
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		return f(Info{Name: name, Size: info.Size(), ModTime: info.ModTime()})
	})
	if err != nil {
		return fmt.Errorf("listing %s: %w", dir, err)
	}
	return nil
}

func (b *disk) put(_ context.Context, d *Draft, name string, how mode) error {
	if how != volatile {
		if err := d.f.Sync(); err != nil {
			return err
		}
		b.s.step("synced")
	}
	if err := b.makeDirs(path.Dir(name)); err != nil {
		return err
	}
	from, to := filepath.Join(temp, b.s.scratch.name, d.name), filepath.FromSlash(name)
	if how == absent {
		// A hard link is the one step that fails if the name is taken.
		if err := b.root.Link(from, to); err != nil {
			return err
		}
		b.s.step("linked")
	} else {
		if err := b.root.Rename(from, to); err != nil {
			return err
		}
		d.done = true
		b.s.step("renamed")
	}
	if how == volatile {
		return nil
	}
	err := b.syncDir(path.Dir(name))
	b.s.step("synced folder")
	return err
}

// makeDirs makes the folders above name and syncs each parent, so that a
// published file cannot lose its folder to a power cut.
func (b *disk) makeDirs(dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := b.root.Stat(filepath.FromSlash(dir)); err == nil {
		return nil
	}
	if err := b.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := b.root.Mkdir(filepath.FromSlash(dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	b.s.step("made folder")
	return b.syncDir(path.Dir(dir))
}

func (b *disk) syncDir(dir string) error {
	f, err := b.root.Open(filepath.FromSlash(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// swap looks and writes under a lock: one process has the folder for its own.
func (b *disk) swap(ctx context.Context, d *Draft, name string, old []byte) error {
	b.swapping.Lock()
	defer b.swapping.Unlock()
	same, err := b.s.holds(ctx, name, old)
	if err != nil {
		return fmt.Errorf("swapping %s: %w", name, err)
	}
	if !same {
		return fmt.Errorf("swapping %s: %w", name, ErrChanged)
	}
	return d.put(ctx, name, overwrite)
}

func (b *disk) remove(_ context.Context, name string) error {
	if err := b.root.Remove(filepath.FromSlash(name)); err != nil {
		return err
	}
	b.s.step("removed")
	err := b.syncDir(path.Dir(name))
	b.s.step("synced folder")
	return err
}
