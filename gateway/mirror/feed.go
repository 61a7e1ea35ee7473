package mirror

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/upstream"
)

const (
	feedWindow   = 90 * 24 * time.Hour // what is kept: policy's ages saturate there
	feedStale    = 24 * time.Hour      // since it was last read to its end
	feedPause    = time.Minute         // between two looks at its end
	feedGap      = 200 * time.Millisecond
	feedLongest  = time.Hour       // between two tries in an outage
	feedSkew     = 5 * time.Minute // how far its clock may be ahead of ours
	feedPage     = 2000            // entries asked for at a time
	maxFeedPage  = 4 << 20         // bytes
	maxFeedLine  = 4 << 10         // bytes
	maxFeedKept  = 10_000_000      // entries; the public index has about a third in 90 days
	maxFeedLines = feedPage + 16
)

// errFeed means that what the feed sent is not to be believed.
var errFeed = errors.New("index feed is not one")

// A feed is the public index (https://index.golang.org), read in the background:
// when each public version was first seen by others. Nothing ever waits for it,
// and no name leaves with its requests. It is believed in one thing alone: a
// version is at least as old as the feed says. So that a version cannot be made
// older later, an entry that is older than what was read already is refused.
type feed struct {
	m      *Mirror
	client *upstream.Client
	url    string       // as configured: a cursor is of one feed
	name   string       // its last element
	ended  atomic.Int64 // when its end was last read, in microseconds
}

// openFeed makes the feed and begins to read it.
func (m *Mirror) openFeed(ctx context.Context, o Options) error {
	if m.cfg.IndexFeed == "" || m.state == nil {
		return nil
	}
	base, name := splitFeed(m.cfg.IndexFeed)
	list, err := upstream.Parse(base, upstream.ParseOptions{AllowHTTP: m.cfg.InsecureHTTP})
	if err != nil {
		return fmt.Errorf("index_feed: %w", err)
	}
	f := &feed{m: m, url: m.cfg.IndexFeed, name: name}
	f.client, err = upstream.New(upstream.Options{
		List: list, RedirectHosts: m.cfg.RedirectHosts, Transport: o.Transport, FirstByte: o.FirstByte, Logger: o.Logger,
	})
	if err != nil {
		return fmt.Errorf("opening the index feed: %w", err)
	}
	if err := m.state.beginFeed(ctx, f.url, micros(m.now().Add(-feedWindow))); err != nil {
		return err
	}
	_, asked, err := m.state.feedCursor(ctx)
	if err != nil {
		return err
	}
	f.ended.Store(asked)
	m.feed = f
	m.running.Go(func() { f.follow(m.ctx) })
	return nil
}

// splitFeed cuts a feed's URL before its last element.
func splitFeed(raw string) (base, name string) {
	return strings.TrimSuffix(raw, "/"+path.Base(raw)), path.Base(raw)
}

// checkFeed tells what is wrong with a feed's URL.
func checkFeed(raw string, allowHTTP bool) error {
	u, err := url.Parse(raw)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.Trim(u.Path, "/") == "" {
		return errors.New("is no URL of an index; want https://HOST/index")
	}
	base, _ := splitFeed(raw)
	_, err = upstream.Parse(base, upstream.ParseOptions{AllowHTTP: allowHTTP})
	return err
}

// stale tells that the feed was not read to its end for long; it is too where there is none.
func (f *feed) stale() bool {
	return f == nil || f.m.now().Sub(time.UnixMicro(f.ended.Load())) > feedStale
}

// follow reads the feed until the mirror is closed.
func (f *feed) follow(ctx context.Context) {
	defer f.client.Close()
	failures := 0
	for wait := time.Duration(0); ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		more, err := f.read(ctx)
		result := "ok"
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			result, wait = "error", min(feedPause<<min(failures, 10), feedLongest)
			failures++
			f.m.log.LogAttrs(ctx, slog.LevelWarn, "index feed not read", slog.Duration("next_try", wait), slog.Any("err", err))
		case more:
			failures, wait = 0, feedGap
		default:
			failures, wait = 0, feedPause
		}
		f.m.metrics.feed.WithLabelValues(result).Inc()
	}
}

// read takes one page in and tells whether another one is to be had at once.
func (f *feed) read(ctx context.Context) (more bool, err error) {
	next, _, err := f.m.state.feedCursor(ctx)
	if err != nil {
		return false, err
	}
	since := time.UnixMicro(next).UTC()
	var page []Entry
	_, err = f.client.Get(ctx, f.name+"?limit="+fmt.Sprint(feedPage)+"&since="+url.QueryEscape(since.Format(time.RFC3339Nano)), maxFeedPage,
		func(b []byte) (err error) {
			page, err = parseFeed(b, since, f.m.now().Add(feedSkew))
			return err
		})
	if err != nil {
		return false, fmt.Errorf("reading the index feed: %w", err)
	}
	more = len(page) >= feedPage
	if more && !page[len(page)-1].Timestamp.After(since) {
		page[len(page)-1].Timestamp = since.Add(time.Microsecond) // more entries of one instant than fit: the rest is passed over
	}
	if err := f.keep(ctx, page, since, more); err != nil {
		return false, err
	}
	return more, nil
}

// keep stores the page's public entries, and only then moves the cursor.
func (f *feed) keep(ctx context.Context, page []Entry, since time.Time, more bool) error {
	now, next := f.m.now(), since
	var public []Entry
	for _, e := range page {
		next = e.Timestamp
		// A private name in a public feed is somebody's guess, or a leak: it dates nothing here.
		if module.Check(e.Path, e.Version) == nil && f.m.Visibility(e.Path) == Public {
			public = append(public, e)
		}
	}
	if next.After(now) {
		next = now // a clock ahead must not make us miss entries
	}
	asked := f.ended.Load()
	if !more {
		asked = micros(now)
	}
	if err := f.m.state.keepFeed(ctx, public, feedMark{next: micros(next), asked: asked, forget: micros(now.Add(-feedWindow))}); err != nil {
		return err
	}
	f.ended.Store(asked)
	for _, e := range public {
		f.m.changed(module.Version{Path: e.Path, Version: e.Version})
	}
	return nil
}

// parseFeed reads a page: lines of JSON whose times rise from since to no later than until.
func parseFeed(b []byte, since, until time.Time) ([]Entry, error) {
	var page []Entry
	last := since
	for line := range bytes.Lines(b) {
		if len(line) > maxFeedLine || len(page) >= maxFeedLines {
			return nil, fmt.Errorf("%w: more than %d lines, or one of more than %d bytes", errFeed, maxFeedLines, maxFeedLine)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil || e.Path == "" || e.Version == "" {
			return nil, fmt.Errorf("%w: line %d is no entry", errFeed, len(page)+1)
		}
		if e.Timestamp.Before(last) || e.Timestamp.After(until) {
			return nil, fmt.Errorf("%w: entry %d has a time before the one ahead of it, or one to come", errFeed, len(page)+1)
		}
		last = e.Timestamp
		page = append(page, e)
	}
	return page, nil
}

// A feedMark is how far the feed was read.
type feedMark struct {
	next, asked int64 // microseconds
	forget      int64 // entries before it are not kept
}

// beginFeed sets the cursor of a feed that was never read; another URL is another feed.
func (s *state) beginFeed(ctx context.Context, url string, from int64) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("opening the index feed's cursor: %w", err)
	}
	var have string
	err = tx.QueryRowContext(ctx, `SELECT url FROM mirror_feed_cursor WHERE one = 1`).Scan(&have)
	if err == nil && have == url {
		return tx.Rollback()
	}
	for _, q := range []string{`DELETE FROM mirror_feed`, `DELETE FROM mirror_feed_cursor`} {
		if err == nil || errors.Is(err, sql.ErrNoRows) {
			_, err = tx.ExecContext(ctx, q)
		}
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, `INSERT INTO mirror_feed_cursor (one, url, next, asked, kept) VALUES (1, $1, $2, 0, 0)
			ON CONFLICT (one) DO UPDATE SET url = excluded.url, next = excluded.next, asked = 0, kept = 0`, url, from) // another gateway began at once
	}
	if err != nil {
		return fmt.Errorf("opening the index feed's cursor: %w", errors.Join(err, tx.Rollback()))
	}
	return tx.Commit()
}

// feedCursor gives the time of the next entry, and when the end was last read.
func (s *state) feedCursor(ctx context.Context) (next, asked int64, err error) {
	if err := s.db.QueryRowContext(ctx, `SELECT next, asked FROM mirror_feed_cursor WHERE one = 1`).Scan(&next, &asked); err != nil {
		return 0, 0, fmt.Errorf("reading the index feed's cursor: %w", err)
	}
	return next, asked, nil
}

// keepFeed stores entries and the cursor behind them, and forgets what is old.
func (s *state) keepFeed(ctx context.Context, page []Entry, mark feedMark) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("keeping entries of the index feed: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("keeping entries of the index feed: %w", errors.Join(err, tx.Rollback()))
		}
	}()
	var kept int64
	if err := tx.QueryRowContext(ctx, `UPDATE mirror_feed_cursor SET next = $1, asked = $2 WHERE one = 1 RETURNING kept`,
		mark.next, mark.asked).Scan(&kept); err != nil {
		return err
	}
	for _, e := range page {
		n, err := affected(tx.ExecContext(ctx, `INSERT INTO mirror_feed (path, version, at) VALUES ($1, $2, $3)
			ON CONFLICT (path, version) DO NOTHING`, e.Path, e.Version, micros(e.Timestamp)))
		if err != nil {
			return err
		}
		kept += n
	}
	gone, err := forgetFeed(ctx, tx, mark.forget)
	if err != nil {
		return err
	}
	if kept -= gone; kept > maxFeedKept {
		return fmt.Errorf("%w: more than %d entries in %s", errFeed, maxFeedKept, feedWindow)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE mirror_feed_cursor SET kept = $1 WHERE one = 1`, kept); err != nil {
		return err
	}
	return tx.Commit()
}

// forgetFeed removes entries from before a time. Of versions that have a row, it stays there.
func forgetFeed(ctx context.Context, tx *sql.Tx, before int64) (int64, error) {
	if _, err := tx.ExecContext(ctx, `UPDATE mirror_versions SET fed = (
			SELECT f.at FROM mirror_feed f WHERE f.path = mirror_versions.path AND f.version = mirror_versions.version)
		WHERE fed = 0 AND (path, version) IN (SELECT f.path, f.version FROM mirror_feed f WHERE f.at < $1)`, before); err != nil {
		return 0, err
	}
	return affected(tx.ExecContext(ctx, `DELETE FROM mirror_feed WHERE at < $1`, before))
}

func affected(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// fed adds when the feed saw versions of a module to what is known of them.
func (s *state) fed(ctx context.Context, path, version string, all map[string]known) error {
	rows, err := s.db.QueryContext(ctx, `SELECT version, at FROM mirror_feed WHERE path = $1 AND ($2 = '' OR version = $2)`, path, version)
	if err != nil {
		return fmt.Errorf("reading what the index feed said of %s: %w", path, err)
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		var at int64
		if err := rows.Scan(&v, &at); err != nil {
			return fmt.Errorf("reading what the index feed said of %s: %w", path, err)
		}
		if k := all[v]; k.fed.IsZero() {
			k.version, k.fed = v, fromMicros(at)
			all[v] = k
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading what the index feed said of %s: %w", path, err)
	}
	return nil
}
