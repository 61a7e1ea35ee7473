package mirror

import (
	"context"

	"golang.org/x/mod/module"
)

// PrefetchOptions say what is brought in.
type PrefetchOptions struct {
	Versions []Wanted
	// Progress is told after each version; it may be nil.
	Progress func(Progress)
}

// Prefetch brings versions in that are not there yet, each verified as if a
// client had asked, and ends the freshness of their modules' lists.
func (m *Mirror) Prefetch(ctx context.Context, o PrefetchOptions) (CareReport, error) {
	if err := m.cfg.Stores(); err != nil {
		return CareReport{}, err
	}
	counts := newKeeper(o.Progress, len(o.Versions))
	for _, w := range o.Versions {
		m.expire(ctx, w.Path)
	}
	err := each(ctx, o.Versions, func(ctx context.Context, w Wanted) {
		v := w.module()
		fetched, bytes := int64(0), int64(0)
		failed := false
		for _, k := range w.kinds() {
			n, had, err := m.bring(ctx, fileTarget(v, k))
			if err != nil && ctx.Err() != nil {
				return // stopped, not failed
			}
			if err != nil {
				counts.fail(v, k.String(), err)
				failed = true
				break
			}
			if !had {
				fetched++
				bytes += n
			}
		}
		counts.step(func(r *CareReport) {
			r.Done++
			r.Files += fetched
			r.Bytes += bytes
			switch {
			case failed:
			case fetched > 0:
				r.Versions++
			default:
				r.Had++
			}
		})
	})
	return counts.report, err
}

// bring makes sure that a file is stored.
func (m *Mirror) bring(ctx context.Context, t Target) (size int64, had bool, err error) {
	if err := module.Check(t.Path, t.Version); err != nil {
		return 0, false, err
	}
	f, err := m.openFile(ctx, t)
	if err != nil {
		return 0, false, err
	}
	return f.Size, f.Cache != "upstream", f.Close()
}
