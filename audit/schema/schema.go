// Package schema writes the log's records in the schemas that security tools read: OCSF, ECS, CEF, or native, the record
// as it stands in the log.
//
// Its invariant: an event is a function of its record and the record's place alone, so an export repeated later gives the
// same bytes under the same id.
package schema

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fastjson"
)

// The schemas.
const (
	OCSF   = "ocsf"   // Open Cybersecurity Schema Framework 1.8.0
	ECS    = "ecs"    // Elastic Common Schema 9.4
	CEF    = "cef"    // ArcSight Common Event Format, version 0
	Native = "native" // as in the log
)

// Default is the schema of who asks for none.
const Default = OCSF

// Names are all schemas, the default first.
func Names() []string { return []string{OCSF, ECS, CEF, Native} }

const (
	product = "Headgate" // and its vendor
	service = "headgate"
)

// A Place is where a record stands.
type Place struct {
	Origin string // of the log's epoch
	Epoch  int64
	Seq    int64    // number in the epoch
	Leaf   [32]byte // the record's hash in the tree; zero for what does not stand in it

	// Outcome is the number of the outcome that the record, a decision, was joined with, and OutcomeLeaf its hash; 0 for none.
	Outcome     int64
	OutcomeLeaf [32]byte
}

// An Event is a record as a schema has it.
type Event struct {
	// ID is stable: the record's event id, epoch and number. Receivers drop repeats by it; the event id alone is shared by a
	// decision and an outcome that came too late to be joined, so that who dropped repeats by that would drop the outcome.
	ID       string
	Kind     string    // of the record
	Severity int       // 1 to 5
	Time     time.Time // of the event
	Body     []byte    // one line without its end
}

// An Encoder writes events in one schema. It is not safe for use by several goroutines.
type Encoder struct {
	version string
	write   func(*Encoder, place, record) ([]byte, error)
	json    fastjson.Parser
}

// New returns an encoder. version is the program's own, which events name as their product's. An unknown schema is an
// error that lists the known ones.
func New(name, version string) (*Encoder, error) {
	writers := map[string]func(*Encoder, place, record) ([]byte, error){
		OCSF: (*Encoder).ocsf, ECS: (*Encoder).ecs, CEF: (*Encoder).cef, Native: (*Encoder).native,
	}
	write := writers[name]
	if write == nil {
		return nil, fmt.Errorf("schema %q is not known; want one of %s", name, strings.Join(Names(), ", "))
	}
	if version == "" {
		version = "devel"
	}
	return &Encoder{version: version, write: write}, nil
}

// Known tells whether there is such a schema.
func Known(name string) bool { return slices.Contains(Names(), name) }

// Encode returns the event of a record, given as the JSON that the log holds, a decision perhaps with the outcome's object
// in it. What is no such record is an error.
func (e *Encoder) Encode(at Place, raw []byte) (Event, error) {
	v, err := e.json.ParseBytes(raw)
	if err != nil {
		return Event{}, fmt.Errorf("reading record %d of %s: %w", at.Seq, at.Origin, err)
	}
	r := record{v, raw}
	if v.Type() != fastjson.TypeObject || r.kind() == "" || r.str("event_id") == "" {
		return Event{}, fmt.Errorf("reading record %d of %s: it is no record", at.Seq, at.Origin)
	}
	id := r.str("event_id") + "-" + strconv.FormatInt(at.Epoch, 10) + "-" + strconv.FormatInt(at.Seq, 10)
	body, err := e.write(e, place{at, id}, r)
	return Event{ID: id, Kind: r.kind(), Severity: int(r.severity()), Time: time.Unix(0, r.num("t")), Body: body}, err
}

// A place is a Place with the event's id.
type place struct {
	Place
	id string
}

// leaf is the record's hash, base64, as proofs have it; empty for what does not stand in the tree.
func (p place) leaf() string { return base64Of(p.Leaf) }

// outcomeLeaf is that of the outcome.
func (p place) outcomeLeaf() string { return base64Of(p.OutcomeLeaf) }

func base64Of(leaf [32]byte) string {
	if leaf == [32]byte{} {
		return ""
	}
	return base64.StdEncoding.EncodeToString(leaf[:])
}

// native is the record as it stands in the log, behind its place there.
func (e *Encoder) native(p place, r record) ([]byte, error) {
	id, err := json.Marshal(p.id)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(r.raw)+200)
	b = append(append(b, `{"id":`...), id...)
	b = append(append(b, `,"origin":"`...), p.Origin...)
	b = strconv.AppendInt(append(b, `","seq":`...), p.Seq, 10)
	if leaf := p.leaf(); leaf != "" {
		b = append(append(append(b, `,"leaf":"`...), leaf...), '"')
	}
	if p.Outcome > 0 {
		b = strconv.AppendInt(append(b, `,"outcome_seq":`...), p.Outcome, 10)
		b = append(append(append(b, `,"outcome_leaf":"`...), p.outcomeLeaf()...), '"')
	}
	return append(append(b, ','), r.raw[1:]...), nil
}
