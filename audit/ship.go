package audit

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"time"
)

// segments publishes sealed and packed segments, each with its leaf hashes and index, until ctx ends.
func (p *publisher) segments(ctx context.Context) {
	every := time.NewTicker(publishEvery)
	defer every.Stop()
	shipped, failed := map[int64]bool{}, ""
	for {
		err := p.ship(ctx, shipped)
		if err != nil && ctx.Err() == nil && err.Error() != failed {
			failed = err.Error()
			p.logger.LogAttrs(ctx, slog.LevelError, "audit segments not published; trying again", slog.String("dest", p.dest.Name), slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// ship publishes what is not there yet. The packed segment goes last: where it is, the others are.
func (p *publisher) ship(ctx context.Context, shipped map[int64]bool) error {
	firsts, err := p.layout.list()
	if err != nil {
		return err
	}
	place, err := p.opened(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	if len(shipped) == 0 {
		names, err := place.Names(ctx, p.origin+"/segment")
		if err != nil {
			return fmt.Errorf("listing published segments: %w", err)
		}
		for _, name := range names {
			there[name] = true
		}
	}
	defer func() {
		if i := slices.IndexFunc(firsts, func(first int64) bool { return !shipped[first] }); i >= 0 { // the active one is not
			p.shipped.Store(firsts[i])
		}
	}()
	for _, first := range firsts {
		if shipped[first] || !p.isPacked(first) || !exists(p.layout.index(first)) {
			continue
		}
		for _, file := range []string{p.layout.hashes(first), p.layout.index(first), p.layout.packed(first)} {
			if there[path.Base(file)] { // packed again after a crash, it may have other bytes of the same records
				continue
			}
			if err := p.shipFile(ctx, place, file); err != nil {
				return err
			}
		}
		shipped[first] = true
	}
	return nil
}

func (p *publisher) shipFile(ctx context.Context, place Objects, file string) error {
	ctx, cancel := context.WithTimeout(ctx, publishFileWait)
	defer cancel()
	return place.PublishFile(ctx, p.origin+"/segment/"+path.Base(file), file)
}
