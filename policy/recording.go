package policy

import (
	"encoding/json"
	"errors"
	"time"
)

// An Answer is what policy said to one question, in short.
type Answer struct {
	Effect Effect   `json:"effect"`
	Remedy Remedy   `json:"remedy,omitempty"`
	Codes  []string `json:"codes,omitempty"` // sorted, of a denial; of an allow they are warnings and count for nothing
}

// Recorded is a decision as it was recorded. Asker and Resource name snapshots.
type Recorded struct {
	ID         string // of the event
	Time       time.Time
	Action     string
	Path       string // of the module
	Version    string
	Visibility string // public, private, unknown
	Digest     string // of the bundle that answered
	Asker      string
	Resource   string // "" where release was not asked
	Was        Answer // of release, if that was asked, else of access
	Final      bool   // Was refused the request by itself, so that its remedy and codes are known, too
}

// A Recording collects recorded decisions, each different question once.
type Recording struct {
	Decisions int // that were recorded
	snapshots map[string]json.RawMessage
	questions map[asked]*recurring
}

// asked is what tells questions apart.
type asked struct {
	action, path, visibility, asker, resource, digest string
	was                                               Effect
	remedy                                            Remedy
	codes                                             string
}

// recurring is a question with all decisions that answered it.
type recurring struct {
	first Recorded
	last  time.Time
	ids   []string
}

// NewRecording returns a Recording of nothing.
func NewRecording() *Recording {
	return &Recording{snapshots: map[string]json.RawMessage{}, questions: map[asked]*recurring{}}
}

// Snapshot adds a part of an input in full. It may come after the decisions that name it. body is kept.
func (r *Recording) Snapshot(id string, body json.RawMessage) { r.snapshots[id] = body }

// Decision adds a decision.
func (r *Recording) Decision(d Recorded) {
	r.Decisions++
	key := asked{action: d.Action, path: d.Path, visibility: d.Visibility, asker: d.Asker, resource: d.Resource, digest: d.Digest, was: d.Was.Effect}
	if d.Final {
		key.remedy, key.codes = d.Was.Remedy, joined(d.Was.Codes)
	}
	q := r.questions[key]
	if q == nil {
		q = &recurring{first: d}
		r.questions[key] = q
	}
	q.ids, q.last = append(q.ids, d.ID), d.Time
}

func joined(codes []string) string {
	text, _ := json.Marshal(codes) // of strings it cannot fail
	return string(text)
}

// errUnbuilt means that a question cannot be asked again.
var errUnbuilt = errors.New("its question is not in the log in full")

// question rebuilds what was asked.
func (r *Recording) question(d *Recorded) (*Input, *Resource, error) {
	q := Question{Action: d.Action, Path: d.Path, Visibility: d.Visibility, Asker: r.snapshots[d.Asker]}
	if q.Asker == nil {
		return nil, nil, errUnbuilt
	}
	if d.Resource != "" {
		if q.Resource = r.snapshots[d.Resource]; q.Resource == nil {
			return nil, nil, errUnbuilt
		}
	}
	in, resource, err := q.input()
	if err != nil { // written by a program that knows more than this one, or less
		return nil, nil, errors.Join(errUnbuilt, err)
	}
	return in, resource, nil
}
