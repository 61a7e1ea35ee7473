package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/store"
)

// Wanted is one version to bring in or give out.
type Wanted struct {
	Path    string `json:"module"`
	Version string `json:"version"`
	// ModOnly leaves the zip out: go.sum has many versions whose go.mod alone is read.
	ModOnly bool `json:"mod_only,omitempty"`
}

func (w Wanted) module() module.Version { return module.Version{Path: w.Path, Version: w.Version} }

func (w Wanted) kinds() []Kind {
	if w.ModOnly {
		return []Kind{Mod}
	}
	return []Kind{Info, Mod, Zip}
}

// ExportOptions say what goes into a bundle.
type ExportOptions struct {
	// Versions are those that must be in it, and nothing else is; nil means all that is stored.
	Versions []Wanted
	// Modules are patterns as in GOPRIVATE; none mean all.
	Modules []string
	// Private takes private modules as well.
	Private bool
	// Out is the file to write, which must not be there; .gz and .zst are compressed.
	Out string
	// Progress is told after each version; it may be nil.
	Progress func(Progress)
}

// Export writes a bundle: module files in the layout of a file:// GOPROXY, the
// records, tiles and signed head that prove them, of the public checksum
// database and of ours, and a manifest. What is wanted and not stored is in
// the report, and the bundle has the rest.
func (m *Mirror) Export(ctx context.Context, o ExportOptions) (CareReport, error) {
	if err := m.cfg.Stores(); err != nil {
		return CareReport{}, err
	}
	all, err := m.exportable(ctx, o)
	if err != nil {
		return CareReport{}, fmt.Errorf("exporting: %w", err)
	}
	p, err := newPacker(o.Out)
	if err != nil {
		return CareReport{}, fmt.Errorf("exporting: %w", err)
	}
	e := &export{m: m, p: p, counts: newKeeper(o.Progress, len(all))}
	size, err := e.run(ctx, all)
	if err != nil {
		return e.counts.report, errors.Join(fmt.Errorf("exporting: %w", err), p.discard())
	}
	e.counts.report.Stored = size
	return e.counts.report, nil
}

// exportable finds what is stored of what is wanted.
func (m *Mirror) exportable(ctx context.Context, o ExportOptions) ([]*candidate, error) {
	found := map[module.Version]*candidate{}
	for _, w := range o.Versions {
		c := &candidate{Version: w.module(), files: map[Kind]string{}}
		for _, k := range w.kinds() {
			c.files[k] = fileTarget(c.Version, k).upstreamPath()
		}
		if old := found[c.Version]; old == nil || len(old.files) < len(c.files) {
			found[c.Version] = c
		}
	}
	if o.Versions == nil {
		for _, s := range []*store.Store{m.public, m.private} {
			if err := s.Walk(ctx, ".", func(i store.Info) error {
				v, k, ok := moduleFile(i.Name)
				if !ok {
					return context.Cause(ctx)
				}
				if found[v] == nil {
					found[v] = &candidate{Version: v, files: map[Kind]string{}}
				}
				found[v].files[k] = i.Name
				return context.Cause(ctx)
			}); err != nil {
				return nil, err
			}
		}
	}
	var all []*candidate
	for v, c := range found {
		if matching(o.Modules, v.Path) && (o.Private || m.Visibility(v.Path) == Public) && m.held(v) == nil {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b *candidate) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

// export is one bundle under way.
type export struct {
	m      *Mirror
	p      *packer
	counts *keeper
}

func (e *export) run(ctx context.Context, all []*candidate) (size int64, err error) {
	var whole []module.Version
	for _, c := range all {
		if err := e.pack(ctx, c); err == nil {
			whole = append(whole, c.Version)
		} else if ctx.Err() != nil || !errors.Is(err, errLeftOut) {
			return 0, err
		}
	}
	if err := e.proofs(ctx, whole); err != nil {
		return 0, err
	}
	return e.p.finish()
}

// errLeftOut is a version that a bundle does without.
var errLeftOut = errors.New("version is left out of the bundle")

// pack adds the files of a version, once its record is at hand.
func (e *export) pack(ctx context.Context, c *candidate) error {
	defer e.m.used.hold(c.Version)()
	leaveOut := func(file string, err error) error {
		e.counts.fail(c.Version, file, err)
		e.counts.step(func(r *CareReport) { r.Done++ })
		return errLeftOut
	}
	s := e.m.storeOf(c.Path)
	for k, name := range c.files {
		if _, err := s.Stat(ctx, name); errors.Is(err, fs.ErrNotExist) {
			return leaveOut(k.String(), errors.New("it is not stored; `headgate mirror prefetch` fetches it"))
		} else if err != nil {
			return err
		}
	}
	if err := e.recorded(ctx, c.Version); err != nil {
		return leaveOut("record", err)
	}
	var bytes int64
	for _, k := range []Kind{Info, Mod, Zip} {
		name, ok := c.files[k]
		if !ok {
			continue
		}
		n, err := e.add(ctx, s, name)
		if err != nil {
			return err
		}
		bytes += n
	}
	e.counts.step(func(r *CareReport) {
		r.Done++
		r.Versions++
		r.Files += int64(len(c.files))
		r.Bytes += bytes
	})
	return nil
}

// recorded brings the records of a version in that a bundle needs.
func (e *export) recorded(ctx context.Context, v module.Version) error {
	if e.public(v) {
		if _, err := e.m.vouches.Lookup(ctx, v, e.m.up.Island()); err != nil {
			return fmt.Errorf("its checksum record: %w", err)
		}
	}
	if e.ours(v) {
		if _, err := e.m.own.Answer(ctx, "lookup/"+escape(v.Path)+"@"+escape(v.Version), false); err != nil {
			return fmt.Errorf("its record in our checksum database: %w", err)
		}
	}
	return nil
}

// public and ours tell which database proves a version.
func (e *export) public(v module.Version) bool {
	return e.m.Visibility(v.Path) == Public && !e.m.exempt(v.Path)
}

func (e *export) ours(v module.Version) bool {
	return e.m.own != nil && e.m.own.Err() == nil && (e.public(v) || e.m.Visibility(v.Path) == Private)
}

func (e *export) add(ctx context.Context, s *store.Store, name string) (int64, error) {
	info, err := s.Stat(ctx, name)
	if err != nil {
		return 0, err
	}
	f, err := s.Open(ctx, name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return info.Size, e.p.add(name, info.Size, &stoppable{ctx, io.Reader(f)})
}

// proofs adds what proves the versions, of each database under one head.
func (e *export) proofs(ctx context.Context, all []module.Version) error {
	var public, ours []module.Version
	for _, v := range all {
		if e.public(v) {
			public = append(public, v)
		}
		if e.ours(v) {
			ours = append(ours, v)
		}
	}
	put := func(name string) func(string, []byte) error {
		return func(file string, b []byte) error { return e.p.addBytes(path.Join("sumdb", name, file), b) }
	}
	if len(public) > 0 {
		if err := e.m.vouches.Export(ctx, public, e.m.up.Island(), put(e.m.vouches.Name())); err != nil {
			return err
		}
	}
	if len(ours) == 0 {
		return nil
	}
	return e.m.own.Export(ctx, ours, put(e.m.own.Name()))
}
