package mirror

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/module"
)

// stateTimeout bounds one write of the state database.
const stateTimeout = 30 * time.Second

// state is what the mirror keeps in the state database about versions: when
// each was first seen, where it came from, what its newest sibling says of it.
type state struct {
	db    *sql.DB
	now   func() time.Time
	sumdb string // the database that numbers are of

	writing chan struct{}            // of one: whoever put something in writes
	mu      sync.Mutex               // guards all below
	waiting []*sighting              // for the next transaction
	hints   map[module.Version]int64 // numbers of records that were proved for a file on its way in
}

// A sighting is what a file, or a proved checksum record, tells of a version.
// What is known already stays as it is.
type sighting struct {
	v                module.Version
	proved           bool // content under this name exists: its age begins
	stored           bool // a file of it is durable: it belongs into the index
	published        time.Time
	origin           Origin
	movedTo          string // another commit that the tag names now
	modHash, zipHash string
	number           int64 // of the record in the public checksum database, plus one; 0 is not known
	licences         string

	err  error
	done chan struct{} // closed once err is set
}

// A known is a version's row.
type known struct {
	version         string
	seen, published time.Time
	indexed         bool
	origin          Origin
	movedTo         string
	number          int64     // of the record in the public checksum database, plus one; 0 is not known
	fed             time.Time // when the feed saw it
	licences        string
}

// A teaching is what the go.mod of a module's newest version says of all; newest
// is empty where it is not known yet.
type teaching struct {
	newest     string
	retracted  []interval
	deprecated string
}

// An interval is one retraction.
type interval struct {
	Low, High string
	Rationale string `json:",omitempty"`
}

func openState(ctx context.Context, db *sql.DB, sumdb string, now func() time.Time) (*state, error) {
	if err := migrate(ctx, db); err != nil {
		return nil, err
	}
	return &state{db: db, now: now, sumdb: sumdb, writing: make(chan struct{}, 1), hints: map[module.Version]int64{}}, nil
}

// note writes a sighting and returns once it is durable. Callers that come
// together share one transaction: the first of them writes for all.
func (s *state) note(ctx context.Context, x *sighting) error {
	x.done = make(chan struct{})
	s.mu.Lock()
	if hint, ok := s.hints[x.v]; ok && x.number == 0 {
		x.number = hint
		delete(s.hints, x.v)
	}
	s.waiting = append(s.waiting, x)
	s.mu.Unlock()
	select {
	case s.writing <- struct{}{}:
		s.write(ctx)
		<-s.writing
	case <-x.done:
	case <-ctx.Done():
		return context.Cause(ctx) // another caller writes it, or the next one
	}
	<-x.done
	return x.err
}

// maxHints bounds the numbers that wait for their files.
const maxHints = 4096

// hint keeps the number of a record that was just proved, for the sighting of
// the file that it was asked for. One that is lost is proved again.
func (s *state) hint(v module.Version, number int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hints) >= maxHints {
		clear(s.hints)
	}
	s.hints[v] = number
}

// write stores all that waits, in one transaction. Only who holds writing calls it.
func (s *state) write(ctx context.Context) {
	s.mu.Lock()
	list := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stateTimeout)
	defer cancel()
	err := s.transact(ctx, list)
	for _, x := range list {
		x.err = err
		close(x.done)
	}
}

func (s *state) transact(ctx context.Context, list []*sighting) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("noting versions: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("noting versions: %w", err), tx.Rollback())
		}
	}()
	// The clock's row is locked first, whatever is noted: gateways that lock rows of versions in different orders would
	// wait for each other.
	if _, err := tx.ExecContext(ctx, `UPDATE mirror_index_clock SET last = last WHERE one = 1`); err != nil {
		return err
	}
	now := micros(s.now())
	for _, x := range list {
		if err := s.upsert(ctx, tx, x, now); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// upsert fills what is not known yet of a version.
func (s *state) upsert(ctx context.Context, tx *sql.Tx, x *sighting, now int64) error {
	var at int64 // its place in the index
	if x.stored {
		err := tx.QueryRowContext(ctx, `SELECT indexed FROM mirror_versions WHERE path = $1 AND version = $2`, x.v.Path, x.v.Version).Scan(&at)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if at == 0 {
			if at, err = place(ctx, tx, now); err != nil {
				return err
			}
		}
	}
	if x.movedTo != "" {
		if err := announce(ctx, tx, x.v, now); err != nil {
			return err
		}
	}
	seen := int64(0)
	if x.proved {
		seen = now
	}
	o := x.origin
	_, err := tx.ExecContext(ctx, `INSERT INTO mirror_versions AS m
			(path, version, seen, indexed, published, origin_vcs, origin_url, origin, moved_to, mod_hash, zip_hash, sumdb, number, licences)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		ON CONFLICT (path, version) DO UPDATE SET
			seen       = CASE WHEN m.seen = 0 THEN excluded.seen ELSE m.seen END,
			indexed    = CASE WHEN m.indexed = 0 THEN excluded.indexed ELSE m.indexed END,
			published  = CASE WHEN m.published = 0 THEN excluded.published ELSE m.published END,
			origin_vcs = CASE WHEN m.origin = '' THEN excluded.origin_vcs ELSE m.origin_vcs END,
			origin_url = CASE WHEN m.origin = '' THEN excluded.origin_url ELSE m.origin_url END,
			origin     = CASE WHEN m.origin = '' THEN excluded.origin ELSE m.origin END,
			moved_to   = CASE WHEN m.moved_to = '' THEN excluded.moved_to ELSE m.moved_to END,
			mod_hash   = CASE WHEN m.mod_hash = '' THEN excluded.mod_hash ELSE m.mod_hash END,
			zip_hash   = CASE WHEN m.zip_hash = '' THEN excluded.zip_hash ELSE m.zip_hash END,
			sumdb      = CASE WHEN excluded.number = 0 THEN m.sumdb ELSE excluded.sumdb END,
			number     = CASE WHEN excluded.number = 0 THEN m.number ELSE excluded.number END,
			licences   = CASE WHEN m.licences = '' THEN excluded.licences ELSE m.licences END`,
		x.v.Path, x.v.Version, seen, at, micros(x.published), o.VCS, o.URL, o.Commit, x.movedTo, x.modHash, x.zipHash,
		s.sumdb, x.number, x.licences)
	return err
}

// versions gives the rows of a module, or of one version where it is not "".
func (s *state) versions(ctx context.Context, path, version string) (map[string]known, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT version, seen, indexed, published, origin_vcs, origin_url, origin, moved_to,
			CASE WHEN sumdb = $3 THEN number ELSE 0 END, fed, licences
		FROM mirror_versions WHERE path = $1 AND ($2 = '' OR version = $2)`, path, version, s.sumdb)
	if err != nil {
		return nil, fmt.Errorf("reading versions of %s: %w", path, err)
	}
	defer rows.Close()
	all := map[string]known{}
	for rows.Next() {
		var k known
		var seen, indexed, published, fed int64
		if err := rows.Scan(&k.version, &seen, &indexed, &published, &k.origin.VCS, &k.origin.URL, &k.origin.Commit, &k.movedTo,
			&k.number, &fed, &k.licences); err != nil {
			return nil, fmt.Errorf("reading versions of %s: %w", path, err)
		}
		k.seen, k.published, k.fed, k.indexed = fromMicros(seen), fromMicros(published), fromMicros(fed), indexed != 0
		all[k.version] = k
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading versions of %s: %w", path, err)
	}
	return all, nil
}

// hashes gives what was noted of a version's bytes when they first came in.
func (s *state) hashes(ctx context.Context, v module.Version) (zip, mod string, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT zip_hash, mod_hash FROM mirror_versions WHERE path = $1 AND version = $2`, v.Path, v.Version).Scan(&zip, &mod)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	if err != nil {
		return "", "", fmt.Errorf("reading hashes of %s: %w", v, err)
	}
	return zip, mod, nil
}

// teaching gives what is known of a module's newest go.mod: nil if the module
// was never listed, without newest if it was, but the go.mod could not be read.
func (s *state) teaching(ctx context.Context, path string) (*teaching, error) {
	var t teaching
	var retracted string
	err := s.db.QueryRowContext(ctx, `SELECT newest, retracted, deprecated FROM mirror_modules WHERE path = $1`, path).
		Scan(&t.newest, &retracted, &t.deprecated)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // nothing known is no error, and nothing else to return
	}
	if err == nil {
		err = json.Unmarshal([]byte(retracted), &t.retracted)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is known of %s: %w", path, err)
	}
	return &t, nil
}

// listed notes that a module's versions were listed: its newest go.mod is to be read.
func (s *state) listed(ctx context.Context, path string) error {
	if _, err := s.db.ExecContext(ctx, `INSERT INTO mirror_modules (path, newest, retracted, deprecated) VALUES ($1, '', 'null', '')
		ON CONFLICT (path) DO NOTHING`, path); err != nil {
		return fmt.Errorf("storing that %s was listed: %w", path, err)
	}
	return nil
}

// teach stores what a module's newest go.mod says.
func (s *state) teach(ctx context.Context, path string, t *teaching) error {
	retracted, err := json.Marshal(t.retracted)
	if err != nil {
		return fmt.Errorf("encoding retractions of %s: %w", path, err)
	}
	if err := s.inTransaction(ctx, module.Version{Path: path}, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO mirror_modules (path, newest, retracted, deprecated) VALUES ($1, $2, $3, $4)
			ON CONFLICT (path) DO UPDATE SET newest = excluded.newest, retracted = excluded.retracted, deprecated = excluded.deprecated`,
			path, t.newest, string(retracted), t.deprecated)
		return err
	}); err != nil {
		return fmt.Errorf("storing what is known of %s: %w", path, err)
	}
	return nil
}

// micros is a time as the tables have it; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
