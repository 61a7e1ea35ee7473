package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"
)

// Answer gives what the protocol has under a path: "lookup/M@V", "latest" or
// "tile/…", escaped. A version without record gets one, unless recordedOnly. The
// errors are fs.ErrNotExist, ErrRolledBack and those of the source.
func (d *Own) Answer(ctx context.Context, path string, recordedOnly bool) ([]byte, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	unsigned := d.head == nil
	d.mu.Unlock()
	if unsigned { // no place could be compared at start
		if err := d.commit(ctx, nil); err != nil {
			return nil, err
		}
	}
	q := &question{d: d, recordedOnly: recordedOnly}
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/" + path}}
	p := &page{status: http.StatusOK}
	sumdb.NewServer(q).ServeHTTP(p, r.WithContext(ctx))
	switch {
	case q.err != nil:
		return nil, q.err
	case p.status == http.StatusNotFound, p.status == http.StatusBadRequest: // no path of the protocol
		return nil, fmt.Errorf("%s in %s: %w", path, d.Name(), fs.ErrNotExist)
	case p.status != http.StatusOK:
		return nil, fmt.Errorf("answering %s of %s: %s", path, d.Name(), bytes.TrimSpace(p.body.Bytes()))
	}
	return p.body.Bytes(), nil
}

// maxRecords bounds what is computed with: a tile's path may name numbers that overflow.
const maxRecords = 1 << 48

// page is the http.ResponseWriter of one answer.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header {
	if p.header == nil {
		p.header = http.Header{}
	}
	return p.header
}
func (p *page) WriteHeader(status int)      { p.status = status }
func (p *page) Write(b []byte) (int, error) { return p.body.Write(b) }

// question is the sumdb.ServerOps of one answer. It keeps the error, since
// sumdb.Server flattens errors to text.
type question struct {
	d            *Own
	recordedOnly bool
	err          error
}

// failed keeps the error; the server knows a missing thing by os.IsNotExist alone, which looks into no wrapped one.
func (q *question) failed(err error) error {
	q.err = err
	if errors.Is(err, fs.ErrNotExist) {
		return os.ErrNotExist
	}
	return err
}

func (q *question) Signed(context.Context) ([]byte, error) {
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	return q.d.head, nil
}

func (q *question) Lookup(ctx context.Context, m module.Version) (int64, error) {
	id, _, err := find(ctx, q.d.db, m)
	if errors.Is(err, fs.ErrNotExist) && !q.recordedOnly {
		id, err = q.d.record(ctx, m)
	}
	if err != nil {
		return 0, q.failed(err)
	}
	return id, nil // read next, by ReadRecords, which wants it covered
}

func (q *question) ReadRecords(ctx context.Context, id, n int64) ([][]byte, error) {
	if id < 0 || id > maxRecords {
		return nil, q.failed(fs.ErrNotExist)
	}
	if err := q.d.covering(ctx, id+n); err != nil {
		return nil, q.failed(err)
	}
	rows, err := q.d.db.QueryContext(ctx, `SELECT lines FROM mirror_sumdb_records WHERE id >= $1 AND id < $2 ORDER BY id`, id, id+n)
	if err != nil {
		return nil, q.failed(fmt.Errorf("reading records of our checksum log: %w", err))
	}
	defer rows.Close()
	var list [][]byte
	for rows.Next() {
		var lines string
		if err := rows.Scan(&lines); err != nil {
			return nil, q.failed(fmt.Errorf("reading records of our checksum log: %w", err))
		}
		list = append(list, []byte(lines))
	}
	if err := rows.Err(); err != nil {
		return nil, q.failed(fmt.Errorf("reading records of our checksum log: %w", err))
	}
	return list, nil
}

func (q *question) ReadTileData(ctx context.Context, t tlog.Tile) ([]byte, error) {
	if t.H != 8 || t.L > 4 || t.N < 0 || t.N > maxRecords>>(8*(t.L+1)) {
		return nil, q.failed(fs.ErrNotExist)
	}
	// The first record beyond those that the tile's hashes rest on.
	need := (t.N<<t.H + int64(t.W)) << (t.H * t.L)
	if err := q.d.covering(ctx, need); err != nil {
		return nil, q.failed(err)
	}
	b, err := tlog.ReadTileData(t, &hashes{ctx: ctx, q: q.d.db})
	if err != nil {
		return nil, q.failed(fmt.Errorf("reading tile %s of our checksum log: %w", t.Path(), err))
	}
	return b, nil
}
