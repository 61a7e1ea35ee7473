package identity

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// The kinds of objects that can be locked.
const (
	LockUser   = "user"   // Object is the subject's id, whatever issuer asserted it
	LockDevice = "device" // Object is the device's id
	LockToken  = "token"  // Object is the token's public id; its children are locked with it
	LockModule = "module" // Object is a pattern in the syntax of GOPRIVATE, or PATH@VERSION
)

// A Lock is an administrative stop. It is in force with the next request on the
// node that wrote it, and on the others once they learn of it.
type Lock struct {
	Kind    string    `json:"kind"`
	Object  string    `json:"object"`
	Reason  string    `json:"reason"`
	By      string    `json:"by,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: until it is lifted
}

// lockKey names a lock.
type lockKey struct{ kind, object string }

// locks are all that are in force, immutable.
type locks struct {
	all      map[lockKey]Lock
	patterns []Lock // of modules, without a version
}

// CheckLock tells whether a lock names something that can be locked. Errors are *Error RequestInvalid.
func CheckLock(l Lock) error {
	switch l.Kind {
	case LockUser, LockDevice, LockToken:
		if err := checkSubjectID(l.Object); err != nil {
			return refuse(RequestInvalid, "locking %s %q: %w", l.Kind, l.Object, err)
		}
	case LockModule:
		if err := checkLockModule(l.Object); err != nil {
			return refuse(RequestInvalid, "locking module %q: %w", l.Object, err)
		}
	default:
		return refuse(RequestInvalid, "locking: kind %q; want user, device, token or module", l.Kind)
	}
	if l.Reason == "" {
		return refuse(RequestInvalid, "locking %s %q: without a reason; whoever is stopped is told it", l.Kind, l.Object)
	}
	return nil
}

func checkLockModule(object string) error {
	p, version, exact := strings.Cut(object, "@")
	if exact {
		if !semver.IsValid(version) {
			return fmt.Errorf("%q is no version; want PATH@vX.Y.Z", version)
		}
		return module.Check(p, version)
	}
	if _, err := path.Match(p, ""); p == "" || err != nil || strings.ContainsAny(p, ", ") || strings.HasPrefix(p, "/") {
		return errors.New("is no pattern; want a module path, a glob such as example.com/team/*, or PATH@VERSION")
	}
	return nil
}

// Lock stores a lock, in place of one on the same object. Errors are *Error: RequestInvalid, StateDown.
func (s *Service) Lock(ctx context.Context, l Lock) error {
	if err := CheckLock(l); err != nil {
		return err
	}
	l.Created = time.Now().UTC().Truncate(time.Second)
	if !l.Expires.IsZero() && !l.Expires.After(l.Created) {
		return refuse(RequestInvalid, "locking %s %q: it would be over at once", l.Kind, l.Object)
	}
	err := s.store.change(ctx, func(tx *sql.Tx, at int64) error { return putLock(ctx, tx, l, at) })
	if err != nil {
		return &Error{Code: StateDown, Err: fmt.Errorf("locking %s %q: %w", l.Kind, l.Object, err)}
	}
	s.learn(ctx, l, true)
	return nil
}

// Unlock lifts a lock. One that is not there is fs.ErrNotExist; a database that cannot be written is *Error StateDown,
// and the lock holds on.
func (s *Service) Unlock(ctx context.Context, kind, object string) (Lock, error) {
	l, ok := s.held.Load().all[lockKey{kind, object}]
	if !ok {
		return Lock{}, fmt.Errorf("unlocking %s %q: %w", kind, object, fs.ErrNotExist)
	}
	now := toUnix(time.Now())
	err := s.store.change(ctx, func(tx *sql.Tx, at int64) error {
		_, err := tx.ExecContext(ctx, `UPDATE identity_locks SET lifted = $1, changed = $2 WHERE kind = $3 AND object = $4`, now, at, kind, object)
		return err
	})
	if err != nil {
		return Lock{}, &Error{Code: StateDown, Err: fmt.Errorf("unlocking %s %q: %w", kind, object, err)}
	}
	s.learn(ctx, l, false)
	return l, nil
}

// learn brings a change of a lock that is stored into force here, in the order in which all nodes' changes were stored.
// Where the database is gone just now, this one comes first; the next look sets it right.
func (s *Service) learn(ctx context.Context, l Lock, inForce bool) {
	if s.sync(ctx) == nil {
		return
	}
	s.view.Lock()
	defer s.view.Unlock()
	s.hold([]heldLock{{l, inForce}})
}

// Locks lists what is in force, oldest first.
func (s *Service) Locks() []Lock {
	now := time.Now()
	var list []Lock
	for _, l := range s.held.Load().all {
		if l.inForce(now) {
			list = append(list, l)
		}
	}
	slices.SortFunc(list, func(a, b Lock) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Object, b.Object))
	})
	return list
}

// LockedModule gives the lock on a module path, or on one version of it where version is not "".
func (s *Service) LockedModule(modulePath, version string) (Lock, bool) {
	held := s.held.Load()
	if len(held.all) == 0 {
		return Lock{}, false
	}
	now := time.Now()
	if version != "" {
		if l, ok := held.all[lockKey{LockModule, modulePath + "@" + version}]; ok && l.inForce(now) {
			return l, true
		}
	}
	for _, l := range held.patterns {
		if l.inForce(now) && module.MatchPrefixPatterns(l.Object, modulePath) {
			return l, true
		}
	}
	return Lock{}, false
}

// unlocked refuses a principal that is proved and yet stopped.
func (s *Service) unlocked(p Principal) *Error {
	held := s.held.Load()
	if len(held.all) == 0 {
		return nil
	}
	now := time.Now()
	keys := []lockKey{{LockUser, p.Subject.ID}, {LockDevice, p.Device.ID}}
	if p.Credential.ID != "" {
		for e := s.tokens.find(idOf(p.Credential.ID)); e != nil; e = e.parent {
			keys = append(keys, lockKey{LockToken, e.row.ID})
		}
	}
	for _, k := range keys {
		if l, ok := held.all[k]; ok && k.object != "" && l.inForce(now) {
			err := refuse(Locked, "%s %s is locked: %s", l.Kind, l.Object, l.Reason)
			err.Subject, err.Credential = p.Subject, p.Credential
			return err
		}
	}
	return nil
}

func (l Lock) inForce(now time.Time) bool { return l.Expires.IsZero() || now.Before(l.Expires) }

// A heldLock is a lock that is in force, or was lifted.
type heldLock struct {
	Lock
	inForce bool
}

// hold brings changes of locks into force. Who calls it holds view.
func (s *Service) hold(changes []heldLock) {
	next := &locks{all: map[lockKey]Lock{}}
	maps.Copy(next.all, s.held.Load().all)
	for _, c := range changes {
		if c.inForce {
			next.all[lockKey{c.Kind, c.Object}] = c.Lock
		} else {
			delete(next.all, lockKey{c.Kind, c.Object})
		}
	}
	for _, l := range next.all {
		if l.Kind == LockModule && !strings.Contains(l.Object, "@") {
			next.patterns = append(next.patterns, l)
		}
	}
	s.held.Store(next)
}

func putLock(ctx context.Context, tx *sql.Tx, l Lock, at int64) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO identity_locks (kind, object, reason, author, created, expires, lifted, changed)
		VALUES ($1, $2, $3, $4, $5, $6, 0, $7)
		ON CONFLICT (kind, object) DO UPDATE SET reason = excluded.reason, author = excluded.author, created = excluded.created,
			expires = excluded.expires, lifted = 0, changed = excluded.changed`,
		l.Kind, l.Object, l.Reason, l.By, toUnix(l.Created), toUnix(l.Expires), at)
	return err
}
