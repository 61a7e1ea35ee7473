package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Stored is what became of a kept archive under this binary.
type Stored struct {
	Name     string   `json:"name"`
	Revision string   `json:"revision,omitempty"`
	State    string   `json:"state,omitempty"`    // step that failed: verified, built, checked, tested; "" is none
	Failures []string `json:"failures,omitempty"` // empty: a start with this binary can fall back on it
}

// TestStored tries each archive that a start of this binary could fall back on, newest first, and activates none: an upgrade
// may bring a compiler that refuses what an older one took. An error says that there is nothing to try.
func TestStored(ctx context.Context, cfg Config, o Options) ([]Stored, error) {
	e, err := openStored(cfg, o)
	if err != nil {
		return nil, fmt.Errorf("trying stored policy: %w", err)
	}
	names, err := e.archives()
	if err == nil && len(names) == 0 {
		err = errors.New("trying stored policy: no archive of the configured source is kept")
	}
	if err != nil {
		return nil, err
	}
	all := make([]Stored, len(names))
	for i, name := range names {
		all[i] = e.tryStored(ctx, name)
	}
	return all, ctx.Err()
}

// openStored is an engine that reads what is stored, and nothing else.
func openStored(cfg Config, o Options) (*Engine, error) {
	e := &Engine{cfg: cfg, opts: o}
	e.opts.Logger = slog.New(slog.DiscardHandler)
	if o.Key == "" {
		e.opts.Key = filepath.Join(o.State, "build.key")
	}
	if _, err := os.Stat(e.opts.Key); err != nil { // which openKey would make
		return nil, fmt.Errorf("%w; was a gateway started with this state folder?", err)
	}
	var err error
	e.key, err = openKey(e.opts.Key)
	return e, err
}

// StoredBundle compiles the bundle of a digest out of the archives that a gateway keeps, the newest one where digest is
// empty. The embedded one is in no archive: it is the one of Options.Embedded. A bundle that is not kept any more is
// fs.ErrNotExist.
func StoredBundle(ctx context.Context, cfg Config, o Options, digest string) (*Generation, error) {
	if cfg.Source == "" || cfg.Source == "embedded" {
		g, err := CompileBundle(ctx, o.Embedded, o.Embedded)
		if err == nil && digest != "" && g.Digest() != digest {
			err = fmt.Errorf("the policy of this release is another one: %w", fs.ErrNotExist)
		}
		return g, err
	}
	e, err := openStored(cfg, o)
	if err != nil {
		return nil, fmt.Errorf("reading stored policy: %w", err)
	}
	names, err := e.archives()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		r, err := e.readRecord(name)
		if err != nil || digest != "" && r.Digest != digest {
			continue // it is not the one, or not ours
		}
		archive, err := openArchive(filepath.Join(e.opts.State, name+".tar"))
		if err != nil {
			return nil, err
		}
		g, err := CompileBundle(ctx, archive, nil)
		if err == nil {
			g.revision = r.Revision
		}
		return g, err
	}
	return nil, fmt.Errorf("policy %.12s is not kept any more: %w", digest, fs.ErrNotExist)
}

func (e *Engine) tryStored(ctx context.Context, name string) Stored {
	s := Stored{Name: name, State: stateVerified}
	r, err := e.readRecord(name)
	s.Revision = r.Revision
	var fsys fs.FS
	if err == nil {
		fsys, err = openArchive(filepath.Join(e.opts.State, name+".tar"))
	}
	var b *bundle
	if err == nil {
		s.State = stateBuilt
		b, err = readBundle(fsys, nil)
	}
	if err == nil {
		err = b.build()
	}
	if err == nil {
		s.State, err = b.runs(ctx)
	}
	s.Failures = lines(err)
	return s
}

// runs compiles a built bundle and holds it to the guard tests. Its own tests are not kept with it.
func (b *bundle) runs(ctx context.Context) (state string, err error) {
	m, err := newMeters(nil)
	if err != nil {
		return stateChecked, err
	}
	g, err := compile(ctx, b, make(chan struct{}, 2), m, func(string) {})
	if err != nil {
		return stateChecked, err
	}
	if err := testGuards(ctx, g); err != nil {
		return stateTested, err
	}
	return "", nil
}
