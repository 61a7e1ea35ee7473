package mirror

import (
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// sizesCSV are tree sizes of public checksum databases that are known to have been reached by a day.
//
//go:embed sizes.csv
var sizesCSV string

// ages are the configured sources of how old a version is.
type ages struct {
	index, sumdb, feed bool
	heads              *heads // of the database that vouches
}

// openAges reads what is known of dated tree sizes: those of the binary, and those that were seen here.
func (m *Mirror) openAges(ctx context.Context) error {
	m.ages = ages{
		index: slices.Contains(m.cfg.AgeSources, "index"), sumdb: slices.Contains(m.cfg.AgeSources, "sumdb"),
		feed: slices.Contains(m.cfg.AgeSources, "feed"), heads: &heads{},
	}
	name := m.vouches.Name()
	known, err := shippedSizes(sizesCSV, name)
	if err != nil {
		return err
	}
	if m.state != nil {
		seen, err := m.state.heads(ctx, name)
		if err != nil {
			return err
		}
		known = append(known, seen...)
	}
	for _, d := range known {
		m.ages.heads.add(d)
	}
	return nil
}

// dated tells whether any source can say something of a path.
func (a ages) covers(v Visibility, exempt bool) bool {
	return a.index || v == Public && (a.feed || a.sumdb && !exempt)
}

// firstSeen is the earliest time at which a configured source shows a version; zero where none does.
func (a ages) firstSeen(k known) time.Time {
	var first time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if a.index {
		earlier(k.seen)
	}
	if a.sumdb && k.number > 0 {
		earlier(a.heads.reached(k.number))
	}
	if a.feed {
		earlier(k.fed)
	}
	return first
}

// A datedSize is how many records a checksum database had on a UTC day, at least.
type datedSize struct {
	day  int64 // since 1970
	size int64
}

// heads are dated tree sizes, for many callers.
type heads struct {
	mu   sync.RWMutex
	list []datedSize // guarded by mu; days and sizes rise
}

// reached is the first day on which the tree is known to have had n records; zero where it is not.
func (h *heads) reached(n int64) time.Time {
	h.mu.RLock()
	defer h.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(h.list, n, func(d datedSize, n int64) int { return int(min(max(d.size-n, -1), 1)) })
	if i == len(h.list) {
		return time.Time{}
	}
	return time.Unix(h.list[i].day*secondsADay, 0).UTC()
}

const secondsADay = 24 * 60 * 60

// add takes a size in, unless it tells nothing new: an earlier day had as many records.
func (h *heads) add(d datedSize) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, have := range h.list {
		if have.day <= d.day && have.size >= d.size {
			return false
		}
	}
	h.list = slices.DeleteFunc(h.list, func(have datedSize) bool { return have.day >= d.day && have.size <= d.size })
	h.list = append(h.list, d)
	slices.SortFunc(h.list, func(a, b datedSize) int { return int(min(max(a.day-b.day, -1), 1)) })
	return true
}

// shippedSizes reads the binary's table for one database.
func shippedSizes(text, name string) ([]datedSize, error) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment, r.FieldsPerRecord = '#', 3
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("reading the table of dated tree sizes: %w", err)
	}
	var list []datedSize
	for _, row := range rows {
		day, err1 := time.Parse(time.DateOnly, row[1])
		size, err2 := strconv.ParseInt(row[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("reading the table of dated tree sizes: %w", err)
		}
		if row[0] == name {
			list = append(list, datedSize{day.Unix() / secondsADay, size})
		}
	}
	return list, nil
}

// seenHead is told of each new head of a database; only those of the one that vouches date anything.
func (m *Mirror) seenHead(name string) func(context.Context, tlog.Tree, []byte) {
	return func(ctx context.Context, tree tlog.Tree, head []byte) {
		if name == m.vouches.Name() {
			m.sawHead(ctx, tree, head)
		}
	}
}

// sawHead dates the records of a signed head that the database showed just now.
func (m *Mirror) sawHead(ctx context.Context, tree tlog.Tree, head []byte) {
	d := datedSize{day: m.now().Unix() / secondsADay, size: tree.N}
	if m.state == nil || !m.ages.heads.add(d) {
		return
	}
	if err := m.state.sawHead(ctx, m.vouches.Name(), d, head); err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "day of a tree head not kept; after a restart its newest records count as younger",
			slog.String("sumdb", m.vouches.Name()), slog.Any("err", err))
	}
}

// heads reads the dated sizes of a database that were seen here.
func (s *state) heads(ctx context.Context, name string) ([]datedSize, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT day, size FROM mirror_heads WHERE sumdb = $1 ORDER BY day`, name)
	if err != nil {
		return nil, fmt.Errorf("reading dated tree heads: %w", err)
	}
	defer rows.Close()
	var list []datedSize
	for rows.Next() {
		var d datedSize
		if err := rows.Scan(&d.day, &d.size); err != nil {
			return nil, fmt.Errorf("reading dated tree heads: %w", err)
		}
		list = append(list, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading dated tree heads: %w", err)
	}
	return list, nil
}

// sawHead keeps the largest head of each day.
func (s *state) sawHead(ctx context.Context, name string, d datedSize, head []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stateTimeout)
	defer cancel()
	_, err := s.db.ExecContext(ctx, `INSERT INTO mirror_heads AS m (sumdb, day, size, note) VALUES ($1, $2, $3, $4)
		ON CONFLICT (sumdb, day) DO UPDATE SET size = excluded.size, note = excluded.note WHERE excluded.size > m.size`,
		name, d.day, d.size, string(head))
	if err != nil {
		return fmt.Errorf("keeping a dated tree head: %w", err)
	}
	return nil
}
