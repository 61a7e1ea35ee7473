package mirror

import (
	"errors"
	"fmt"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/upstream"
)

var (
	// ErrSpelling means that a path is not the canonical spelling of anything.
	ErrSpelling = errors.New("path is not spelt canonically")
	// ErrNoRoute means that a path is well spelt but names nothing that a mirror has.
	ErrNoRoute = errors.New("path names no module file")
	// ErrUnknownSumdb means that the checksum database is not one that is configured.
	ErrUnknownSumdb = errors.New("checksum database is not configured")
	// ErrPrivate means that a private name was asked of a public checksum database.
	ErrPrivate = errors.New("private module at a public checksum database: set GOSUMDB to ours, or GONOSUMDB")
	// ErrAuditors means the records of our own checksum database in bulk, which name private modules.
	ErrAuditors = errors.New("records of our checksum database are for auditors")
	// ErrOwnSumdb means that our own checksum database may not go on, as after a restored backup.
	ErrOwnSumdb = errors.New("our checksum database does not answer")
	// ErrNoPrivateSource means that a module is private by pattern and that this version has no source for it.
	ErrNoPrivateSource = errors.New("module is private and no private source is configured")
	// ErrUpstream means that an upstream failed; ErrTimeout that it was too slow.
	ErrUpstream = upstream.ErrFailed
	ErrTimeout  = upstream.ErrTimeout
	// ErrMismatch means that bytes differ from what the checksum database or the
	// store has: an incident. errors.AsType[*IncidentError] tells which.
	ErrMismatch = errors.New("bytes do not match")
	// ErrNotListed means that the checksum database has no record of a version, so that it is not taken in.
	// It also matches ErrUpstream.
	ErrNotListed = fmt.Errorf("version is not in the checksum database: %w", ErrUpstream)
	// ErrSumdbForked means that the checksum database has contradicted itself, so
	// that nothing it covers is taken in until an operator acts. It comes with ErrSumdb.
	ErrSumdbForked = errors.New("checksum database has contradicted itself")
	// ErrSumdb means that the checksum database is out of reach or does not
	// hold, so that nothing new is taken in. It comes with ErrUpstream or ErrTimeout.
	ErrSumdb = errors.New("checksum database cannot vouch for new files")
)

// IncidentError is bytes that differ from what they must be. The file was
// neither stored nor served. It matches ErrMismatch.
type IncidentError struct {
	// Kind is "sumdb" (the checksum database vouches for other bytes) or
	// "conflict" (the store has other bytes under the name).
	Kind string
	// Module and File (info, mod, zip) name the file.
	Module module.Version
	File   string
	// Want and Got are the hashes, where known.
	Want, Got string
}

func (e *IncidentError) Error() string {
	return fmt.Sprintf("%s of %s: bytes do not match (%s): got %s, want %s", e.File, e.Module, e.Kind, e.Got, e.Want)
}

// Is makes an incident match ErrMismatch.
func (e *IncidentError) Is(target error) bool { return target == ErrMismatch }

// GoVersionError is a private module whose go.mod wants a newer Go than the
// one that fetches it. It matches ErrUpstream.
type GoVersionError struct {
	Module module.Version
	// Want is the go line, Have the version of the go command, both as in 1.26.1.
	Want, Have string
}

func (e *GoVersionError) Error() string {
	return fmt.Sprintf("%s needs go %s, and the go command that fetches it is %s", e.Module, e.Want, e.Have)
}

// Is makes it match ErrUpstream.
func (e *GoVersionError) Is(target error) bool { return target == ErrUpstream }
