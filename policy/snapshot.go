package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"reflect"
	"strings"
	"sync"
)

// A Snapshot is a part of an input in full. Decisions name it, so that a later policy can be asked the same question
// although it reads what this one did not.
type Snapshot struct {
	ID   string          // first 16 bytes of the SHA-256 of its JSON, in hex
	Body json.RawMessage // nil where it was given in this era
}

// asker is who asks, and when: the part of an input that is the same for all modules.
type asker struct {
	Schema  int     `json:"schema"` // InputSchema
	Subject Subject `json:"subject"`
	Device  Device  `json:"device"`
	Day     int     `json:"day"`
	Zone    string  `json:"zone"`
	Mode    string  `json:"mode"`
}

// maxSnapshots is how many snapshots are remembered; then all are given again.
const maxSnapshots = 1 << 16

// Snapshots gives each part of an input in full once in an era, such as a segment of the log. Its methods may be called
// from many goroutines.
type Snapshots struct {
	seeds [2]maphash.Seed

	mu   sync.Mutex // guards era and seen
	era  int64
	seen map[[2]uint64]string
}

// NewSnapshots returns Snapshots that gave nothing yet.
func NewSnapshots() *Snapshots {
	return &Snapshots{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, seen: map[[2]uint64]string{}}
}

// Asker is the snapshot of who asks, and when.
func (s *Snapshots) Asker(era int64, in *Input) Snapshot {
	enc := encoders.Get().(*encoder)
	defer encoders.Put(enc)
	enc.buf = append(enc.buf[:0], 'a')
	enc.asker(in)
	return s.of(era, enc, func() reflect.Value {
		return reflect.ValueOf(asker{in.Schema, in.Subject, in.Device, in.Context.Day, in.Context.Zone, in.Context.Mode})
	})
}

// Resource is the snapshot of a version with what is known of it.
func (s *Snapshots) Resource(era int64, r *Resource) Snapshot {
	enc := encoders.Get().(*encoder)
	defer encoders.Put(enc)
	enc.buf = append(enc.buf[:0], 'r')
	enc.resource(r)
	return s.of(era, enc, func() reflect.Value { return reflect.ValueOf(*r) })
}

// of finds the snapshot of what enc wrote, or makes it of the whole.
func (s *Snapshots) of(era int64, enc *encoder, whole func() reflect.Value) Snapshot {
	key := [2]uint64{maphash.Bytes(s.seeds[0], enc.buf), maphash.Bytes(s.seeds[1], enc.buf)}
	s.mu.Lock()
	if s.era != era || len(s.seen) >= maxSnapshots {
		clear(s.seen)
		s.era = era
	}
	id, known := s.seen[key]
	s.mu.Unlock()
	if known {
		return Snapshot{ID: id}
	}
	body := appendJSON(nil, toTerm(whole()).Value)
	sum := sha256.Sum256(body)
	snapshot := Snapshot{ID: hex.EncodeToString(sum[:16]), Body: body}
	s.mu.Lock()
	s.seen[key] = snapshot.ID
	s.mu.Unlock()
	return snapshot
}

// asker and resource write what the snapshots hold, field by field: every request comes this way, and reflection takes
// ten times as long.

func (e *encoder) asker(in *Input) {
	s, d, c := &in.Subject, &in.Device, &in.Context
	for _, text := range [...]string{s.Type, s.ID, s.Issuer, s.Team, s.Authn.Method, d.ID, d.Proof, d.Platform, c.Zone, c.Mode} {
		e.text(text)
	}
	e.numbers(in.Schema, s.Authn.Assurance, d.Tier, c.Day)
	e.flag(d.Trusted)
	e.flag(d.Managed)
	e.words(s.Groups)
	e.rare(reflect.ValueOf(s.Labels))
	e.rare(reflect.ValueOf(d.Posture))
	e.flag(s.CI != nil)
	if ci := s.CI; ci != nil {
		for _, text := range [...]string{ci.Provider, ci.RepoID, ci.Repo, ci.Ref} {
			e.text(text)
		}
		e.flag(ci.Protected)
		e.flag(ci.Fork)
	}
}

func (e *encoder) resource(r *Resource) {
	f, k := &r.Facts, &r.Known
	for _, text := range [...]string{ // Host, Org and Prefixes follow from Path
		r.Type, r.Path, r.Visibility, f.Version, f.Kind, f.Retracted.State, f.Retracted.Text, f.Deprecated.State, f.Deprecated.Text,
		f.Sumdb, f.OriginDrift, f.Malware, f.Licences.Status, f.Lookalike.Of, f.Lookalike.Kind, f.Quarantine.State,
		k.Age, k.Vulns, k.Malware, k.Licences, k.Popularity, k.Lookalike, k.Scorecard, k.Retracted, k.Deprecated, k.Sumdb, k.Origin,
	} {
		e.text(text)
	}
	e.numbers(f.Major, f.FirstSeenDay, f.PublishedDay, f.AgeDays, f.Vulns.MaxSeverity, f.Vulns.AsOfDay, f.Popularity, f.Scorecard, f.Quarantine.SinceDay)
	e.words(f.Licences.IDs)
	e.rare(reflect.ValueOf(f.Vulns.IDs))
	e.flag(f.Provenance != nil)
	if p := f.Provenance; p != nil {
		for _, text := range [...]string{p.VCS, p.Repo, p.Commit} {
			e.text(text)
		}
	}
}

func (e *encoder) numbers(all ...int) {
	for _, n := range all {
		e.buf = binary.AppendVarint(e.buf, int64(n))
	}
}

func (e *encoder) words(set map[string]bool) {
	if !e.set(set) {
		e.object(reflect.ValueOf(set))
	}
}

// rare writes a map that is most often empty.
func (e *encoder) rare(v reflect.Value) {
	if v.Len() == 0 {
		e.buf = append(e.buf, 0)
		return
	}
	e.object(v)
}

// Question is a recorded question, to be asked again.
type Question struct {
	Action     string
	Path       string          // of the module
	Visibility string          // public, private, unknown
	Asker      json.RawMessage // snapshot of who asked
	Resource   json.RawMessage // snapshot of the version that was judged; nil where release was not asked
}

// input rebuilds the input and, where release was asked, the version.
func (q *Question) input() (*Input, *Resource, error) {
	var a asker
	if err := strict(q.Asker, &a); err != nil {
		return nil, nil, fmt.Errorf("reading who asked: %w", err)
	}
	in := &Input{
		Schema: a.Schema, Subject: a.Subject, Device: a.Device, Action: NewAction(q.Action),
		Resource: Resource{Name: NewName(q.Path, q.Visibility)},
		Context:  Context{Day: a.Day, Zone: a.Zone, Mode: a.Mode},
	}
	if q.Resource == nil {
		return in, nil, nil
	}
	r := &Resource{}
	if err := strict(q.Resource, r); err != nil {
		return nil, nil, fmt.Errorf("reading what was asked for: %w", err)
	}
	return in, r, nil
}

// strict reads JSON into v. A field that this program does not know would be a question that it does not understand.
func strict(text json.RawMessage, v any) error {
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
