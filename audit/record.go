package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Kind says what a record is about. It is a closed set.
type Kind string

// The kinds of records.
const (
	KindDecision Kind = "decision" // a request was allowed, refused or failed
	KindOutcome  Kind = "outcome"  // what became of an allowed request
	KindAuth     Kind = "auth"     // a credential was issued, presented or refused
	KindAdmin    Kind = "admin"    // somebody changed or read the gateway's state
	KindControl  Kind = "control"  // the log speaks of itself
)

// kinds gives each kind its number in a frame; the order never changes.
var kinds = [...]Kind{"", KindDecision, KindOutcome, KindAuth, KindAdmin, KindControl}

// number returns the kind's number in a frame, 0 for an unknown one.
func (k Kind) number() byte {
	for i, known := range kinds {
		if k == known {
			return byte(i)
		}
	}
	return 0
}

// A Record is one entry of the log. Its JSON has this field order; fields that are empty are left out.
// Any string may come from a client: Append and Note sanitise, cut and redact what they write, never the Record itself.
type Record struct {
	V            int             `json:"v"`                       // schema version, 1
	Kind         Kind            `json:"kind"`                    // what the record is about
	EventID      string          `json:"event_id"`                // one per request, shared by decision and outcome
	T            int64           `json:"t"`                       // wall time of the event, ns UTC
	MonoMS       int64           `json:"mono_ms,omitempty"`       // milliseconds since process start
	Node         string          `json:"node,omitempty"`          // filled by the log when empty
	PolicyRev    string          `json:"policy_rev,omitempty"`    // policy commit
	BundleSHA256 string          `json:"bundle_sha256,omitempty"` // digest of the bundle that answered, hex
	Action       string          `json:"action,omitempty"`        // list, zip, …; for admin and auth a verb such as token.create
	Method       string          `json:"method,omitempty"`        // HTTP method as sent
	Path         string          `json:"path,omitempty"`          // path as sent; query and user info are cut
	PathB64      string          `json:"path_b64,omitempty"`      // set by the log where sanitising changed the path
	Module       string          `json:"module,omitempty"`        // decoded module path
	Version      string          `json:"version,omitempty"`       // decoded module version
	Private      bool            `json:"private,omitempty"`       // the module path is private
	Subject      Subject         `json:"subject,omitzero"`        // who
	Credential   Credential      `json:"credential,omitzero"`     // by what proof
	Device       Device          `json:"device,omitzero"`         // on what machine
	Client       Client          `json:"client,omitzero"`         // from where
	Decision     Decision        `json:"decision,omitzero"`       // what policy answered
	Eval         Eval            `json:"eval,omitzero"`           // how policy came to it
	Input        json.RawMessage `json:"input,omitempty"`         // policy input as evaluated, ≤ 8 KiB; left out when longer or no JSON
	InputKnown   bool            `json:"-"`                       // an encoder of JSON wrote Input, so its grammar need not be checked
	File         File            `json:"file,omitzero"`           // what was served
	Outcome      Outcome         `json:"outcome,omitzero"`        // how serving it ended
	Change       Change          `json:"change,omitzero"`         // what an administrator changed
	Control      Control         `json:"control,omitzero"`        // what the log says of itself
	TraceID      string          `json:"trace_id,omitempty"`      // W3C trace id, hex
	Severity     int             `json:"severity,omitempty"`      // 1 to 5; raised to 4 when the path had to be sanitised
	Count        int64           `json:"count,omitempty"`         // how many events a folded record stands for
	Sanitised    bool            `json:"sanitised,omitempty"`     // set by the log: some string was rewritten
	Truncated    []string        `json:"truncated,omitempty"`     // set by the log: fields that were cut
}

// Subject is who asked.
type Subject struct {
	ID     string   `json:"id,omitempty"`     // the issuer's opaque subject
	Kind   string   `json:"kind,omitempty"`   // person, workload, anonymous
	Issuer string   `json:"issuer,omitempty"` // name or URL of the issuer
	Name   string   `json:"name,omitempty"`   // display name; off by default
	Groups []string `json:"groups,omitempty"` // groups that policy read; at most 32 are kept
}

// Credential is the proof that the subject showed; never the secret itself.
type Credential struct {
	Class string `json:"class,omitempty"` // class of token, or jwt
	ID    string `json:"id,omitempty"`    // public id
	FP    string `json:"fp,omitempty"`    // Log.Fingerprint of the secret
	Via   string `json:"via,omitempty"`   // basic, bearer, mtls, session
}

// Device is the machine that the subject asked from.
type Device struct {
	ID          string `json:"id,omitempty"`
	State       string `json:"state,omitempty"`
	Tier        int    `json:"tier,omitempty"`
	Serial      string `json:"serial,omitempty"`
	SPKI        string `json:"spki,omitempty"`          // 16 hex digits of the key's SHA-256
	PostureAgeS int64  `json:"posture_age_s,omitempty"` // seconds
	Via         string `json:"via,omitempty"`           // mtls, token, balancer
}

// Client is where the request came from.
type Client struct {
	IP        string            `json:"ip,omitempty"`
	Port      int               `json:"port,omitempty"`
	Forwarded string            `json:"forwarded,omitempty"` // from trusted balancers only
	Untrusted map[string]string `json:"untrusted,omitempty"` // claimed by the client, by header name
	Agent     string            `json:"agent,omitempty"`     // User-Agent, ≤ 256 bytes
}

// Decision is what was answered, and why.
type Decision struct {
	Effect   string            `json:"effect,omitempty"`   // allow, deny, error
	Remedy   string            `json:"remedy,omitempty"`   // none, wait, waiver
	Stage    string            `json:"stage,omitempty"`    // protocol, identity, access, release, limit
	Codes    []string          `json:"codes,omitempty"`    // stable reason codes
	Reason   string            `json:"reason,omitempty"`   // ≤ 512 bytes
	Waived   []string          `json:"waived,omitempty"`   // waivers that were used
	Labels   map[string]string `json:"labels,omitempty"`   // owner, control id
	Withheld int               `json:"withheld,omitempty"` // versions hidden from a list
	Status   int               `json:"status,omitempty"`   // HTTP status
}

// Eval is how policy came to its decision.
type Eval struct {
	Entry   []string `json:"entry,omitempty"`    // entry points asked
	Effects []string `json:"effects,omitempty"`  // what access, and release of one version, answered: allow, deny
	Cached  bool     `json:"cached,omitempty"`   // all of them answered from the cache
	NS      int64    `json:"ns,omitempty"`       // evaluation time, ns
	KeyHash string   `json:"key_hash,omitempty"` // hash of the cache key
	Facts   []string `json:"facts,omitempty"`    // fact snapshot ids
	// Asker and Resource are snapshot records: who asked and when, and the version that release judged, with all that was
	// known of them.
	Asker    string `json:"asker,omitempty"`
	Resource string `json:"resource,omitempty"`
	// Visibility is that of the module path where it is neither public nor private: unknown.
	Visibility string `json:"visibility,omitempty"`
}

// File is what was served.
type File struct {
	H1     string `json:"h1,omitempty"`     // h1: hash of a zip or go.mod
	SHA256 string `json:"sha256,omitempty"` // of any other file, hex
	Size   int64  `json:"size,omitempty"`   // bytes
	Cache  string `json:"cache,omitempty"`  // memory, redis, disk, bucket, upstream, vcs, none
}

// Outcome is how serving ended.
type Outcome struct {
	Status  int   `json:"status,omitempty"`  // HTTP status sent
	Bytes   int64 `json:"bytes,omitempty"`   // body bytes sent
	MS      int64 `json:"ms,omitempty"`      // duration, ms
	Aborted bool  `json:"aborted,omitempty"` // the client did not get all of it
}

// Change is what an administrator changed.
type Change struct {
	Object    string `json:"object,omitempty"`
	OldSHA256 string `json:"old_sha256,omitempty"`
	NewSHA256 string `json:"new_sha256,omitempty"`
	Note      string `json:"note,omitempty"`
}

// ControlSnapshot is what a control record is about whose Input is a part of policy's input in full, under the id by
// which decisions name it.
const ControlSnapshot = "snapshot"

// Control is what the log says of itself: what happened, and its numbers.
type Control struct {
	What     string `json:"what,omitempty"` // start, stop, recover, rotate, gap, disk_full, disk_ok, clock_step, key_change, snapshot, …
	ID       string `json:"id,omitempty"`   // of a snapshot
	SeqFrom  int64  `json:"seq_from,omitempty"`
	SeqTo    int64  `json:"seq_to,omitempty"`
	Count    int64  `json:"count,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"`
	Sink     string `json:"sink,omitempty"`
	Root     string `json:"root,omitempty"`
	ErrClass string `json:"err_class,omitempty"`
}

// processStart is what mono_ms counts from: one instant per process by its nature.
var processStart = time.Now()

// Begin starts a record of the event with this id, which is the request's id and stands in its refusal;
// "" makes a fresh one of 26 characters. V, T and MonoMS are set.
func Begin(id string) *Record {
	if id == "" {
		id = rand.Text()
	}
	now := time.Now()
	return &Record{V: 1, EventID: id, T: now.UnixNano(), MonoMS: now.Sub(processStart).Milliseconds()}
}

// parseRecord reads a record as it stands on disk. Unknown fields are an error: this program wrote them all.
func parseRecord(b []byte) (*Record, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var r Record
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("parsing audit record: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("parsing audit record: more follows it")
	}
	return &r, nil
}
