package mirror

import (
	"context"
	"fmt"
	"time"
)

// MaxIndex is how many entries Index gives at most.
const MaxIndex = 2000

// Entry is one line of the index: a version of which a file is stored.
type Entry struct {
	Path, Version string
	// Timestamp is unique and rises from entry to entry, in microseconds. It is
	// when the version came in, or a little later.
	Timestamp time.Time
}

// Index gives the versions that came in at since or later, oldest first, at
// most limit (1 to MaxIndex) of them, private ones included: who may see an
// entry is the caller's to decide. What comes in later stands behind all
// entries ever given. ErrNoRoute means that no index is kept.
func (m *Mirror) Index(ctx context.Context, since time.Time, limit int) ([]Entry, error) {
	if m.state == nil {
		return nil, fmt.Errorf("reading the index: %w", ErrNoRoute)
	}
	from := int64(1)
	if since.After(time.Unix(0, 0)) {
		from = since.Add(time.Microsecond - 1).UnixMicro() // rounded up: since is inclusive, what is before it is not
	}
	rows, err := m.state.db.QueryContext(ctx, `SELECT path, version, indexed FROM mirror_versions
		WHERE indexed >= $1 ORDER BY indexed LIMIT $2`, from, min(max(limit, 1), MaxIndex))
	if err != nil {
		return nil, fmt.Errorf("reading the index: %w", err)
	}
	defer rows.Close()
	var list []Entry
	for rows.Next() {
		var e Entry
		var at int64
		if err := rows.Scan(&e.Path, &e.Version, &at); err != nil {
			return nil, fmt.Errorf("reading the index: %w", err)
		}
		e.Timestamp = fromMicros(at)
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the index: %w", err)
	}
	return list, nil
}
