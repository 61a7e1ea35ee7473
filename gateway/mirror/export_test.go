package mirror

import (
	"context"
	"time"
)

// ErrFeed is what a feed's page is refused with.
var ErrFeed = errFeed

// ReadFeed reads one page of the index feed now.
func (m *Mirror) ReadFeed(ctx context.Context) (more bool, err error) { return m.feed.read(ctx) }

// ParseFeed reads a page of the index feed.
func ParseFeed(b []byte, since, until time.Time) ([]Entry, error) { return parseFeed(b, since, until) }

// Reached tells the first day on which a tree had n records, by sizes of days; -1 where that is not known.
func Reached(sizes [][2]int64) func(n int64) int64 {
	h := &heads{}
	for _, s := range sizes {
		h.add(datedSize{day: s[0], size: s[1]})
	}
	return func(n int64) int64 {
		if t := h.reached(n); !t.IsZero() {
			return t.Unix() / secondsADay
		}
		return -1
	}
}

// ShippedSizes gives days and sizes of the binary's table.
func ShippedSizes(name string) (list [][2]int64, err error) {
	all, err := shippedSizes(sizesCSV, name)
	for _, d := range all {
		list = append(list, [2]int64{d.day, d.size})
	}
	return list, err
}

// WithStep makes both stores call f after each step of a write.
func (o *Options) WithStep(f func(string)) { o.step = f }
