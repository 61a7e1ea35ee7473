package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/valyala/fastjson"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/policy"
)

// maxRecordLine bounds a line of an export: a record and the policy input in it.
const maxRecordLine = 1 << 20

// ReadRecording reads the decisions of policy since a time, which another policy can be asked about, out of an audit log's
// folder or of a file of its records as JSON lines (schema native). What it meets beside them is passed over; a line that
// is no record is an error.
func ReadRecording(ctx context.Context, name string, since time.Time) (*policy.Recording, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("reading recorded decisions: %w", err)
	}
	r := &recorder{into: policy.NewRecording(), since: since}
	if err := eachRecord(ctx, name, info.IsDir(), since, r.record); err != nil {
		return nil, fmt.Errorf("reading recorded decisions of %s: %w", name, err)
	}
	return r.into, nil
}

// eachRecord gives each record of a log's folder since a time, or all of a file.
func eachRecord(ctx context.Context, name string, folder bool, since time.Time, do func(raw []byte) error) error {
	if folder {
		return audit.Tail(ctx, name, audit.TailOptions{Since: since, NoLeaf: true}, func(e audit.Entry) error { return do(e.Raw) })
	}
	return eachLine(ctx, name, do)
}

// A Found is a decision that was looked up in the log by its id.
type Found struct {
	policy.Recorded
	Subject  string   `json:"subject"`
	Status   int      `json:"status"`
	Codes    []string `json:"codes,omitempty"`  // of a refusal
	Reason   string   `json:"reason,omitempty"` // as recorded
	Revision string   `json:"revision"`         // of the policy that answered
	Judged   bool     `json:"judged"`           // policy was asked: else it was refused before
	Feeds    []string `json:"feeds,omitempty"`  // snapshots of feeds that facts came from: name, hash of the content, when it was found
}

// FindDecisions looks up the decisions whose event id begins with id, in any case, as a denial shows it; out of an audit
// log's folder or a file of its records. The recording has the snapshots of their questions.
func FindDecisions(ctx context.Context, name, id string) ([]Found, *policy.Recording, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil, fmt.Errorf("looking up decision %s: %w", id, err)
	}
	var all []Found
	var parser fastjson.Parser
	needed, begins := map[string]bool{}, []byte(`"event_id":"`+strings.ToUpper(id))
	err = eachRecord(ctx, name, info.IsDir(), time.Time{}, func(raw []byte) error {
		if !bytes.Contains(raw, begins) {
			return nil
		}
		v, err := parser.ParseBytes(raw)
		if err != nil || audit.Kind(text(v, "kind")) != audit.KindDecision {
			return err
		}
		f := Found{
			Subject: text(v, "subject", "id"), Status: v.GetInt("decision", "status"), Reason: text(v, "decision", "reason"),
			Revision: text(v, "policy_rev"), Judged: judged(v),
		}
		for _, code := range v.GetArray("decision", "codes") {
			f.Codes = append(f.Codes, text(code))
		}
		for _, feed := range v.GetArray("eval", "facts") {
			f.Feeds = append(f.Feeds, text(feed))
		}
		if f.Judged {
			f.Recorded = recordedOf(v)
			needed[f.Asker], needed[f.Resource] = true, true
		} else {
			f.Recorded = policy.Recorded{ID: text(v, "event_id"), Time: time.Unix(0, v.GetInt64("t")).UTC(), Action: text(v, "action"), Path: text(v, "module"), Version: text(v, "version")}
		}
		all = append(all, f)
		return nil
	})
	recording := policy.NewRecording()
	if err == nil && len(needed) > 0 {
		r := &recorder{into: recording, only: needed}
		err = eachRecord(ctx, name, info.IsDir(), time.Time{}, r.record)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("looking up decision %s in %s: %w", id, name, err)
	}
	return all, recording, nil
}

// judged tells whether a decision's record has answers of policy.
func judged(v *fastjson.Value) bool {
	return len(v.GetArray("eval", "effects")) > 0 && text(v, "decision", "effect") != "error" && policy.IsAction(text(v, "action"))
}

const (
	recentTime     = 24 * time.Hour
	recentSegments = 2               // with the default of 128 MiB some 200,000 records
	recentLimit    = 3 * time.Second // for reading: a push of policy is to be active within ten seconds
)

// RecentDecisions reads the decisions of the last day, as far as they are in the newest segments and can be read in a few
// seconds. A log that is not there yet has none.
func RecentDecisions(ctx context.Context, dir string) (*policy.Recording, error) {
	since := time.Now().Add(-recentTime)
	r := &recorder{into: policy.NewRecording(), since: since}
	end := time.Now().Add(recentLimit)
	err := audit.Tail(ctx, dir, audit.TailOptions{Since: since, Segments: recentSegments, NoLeaf: true}, func(e audit.Entry) error {
		if time.Now().After(end) {
			return errEnough
		}
		return r.record(e.Raw)
	})
	if err != nil && !errors.Is(err, errEnough) && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading recorded decisions of %s: %w", dir, err)
	}
	return r.into, nil
}

var errEnough = errors.New("enough was read")

// A recorder sorts records into a recording.
type recorder struct {
	json  fastjson.Parser
	into  *policy.Recording
	since time.Time
	only  map[string]bool // snapshots that are wanted, and no decisions; nil: all of both
}

func eachLine(ctx context.Context, name string, do func(raw []byte) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxRecordLine)
	for n := 1; lines.Scan(); n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		if err := do(lines.Bytes()); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return errors.New("a line is longer than any record")
	}
	return lines.Err()
}

// record takes in one record. Most are outcomes and sign-ins, which need not be parsed.
func (r *recorder) record(raw []byte) error {
	if !bytes.HasPrefix(raw, []byte("{")) {
		return errors.New("it is no record")
	}
	if !bytes.Contains(raw, []byte(`"asker":"`)) && !bytes.Contains(raw, []byte(`"what":"`+audit.ControlSnapshot+`"`)) {
		return nil
	}
	v, err := r.json.ParseBytes(raw)
	if err != nil {
		return fmt.Errorf("it is no record: %w", err)
	}
	switch audit.Kind(text(v, "kind")) {
	case audit.KindControl:
		id := text(v, "control", "id")
		if input := v.Get("input"); input != nil && text(v, "control", "what") == audit.ControlSnapshot && (r.only == nil || r.only[id]) {
			r.into.Snapshot(id, input.MarshalTo(nil))
		}
	case audit.KindDecision:
		if late := !time.Unix(0, v.GetInt64("t")).Before(r.since); late && r.only == nil && judged(v) {
			r.into.Decision(recordedOf(v))
		}
	}
	return nil
}

// recordedOf is what a decision's record tells of the question that led to it.
func recordedOf(v *fastjson.Value) policy.Recorded {
	effects := v.GetArray("eval", "effects")
	d := policy.Recorded{
		ID: text(v, "event_id"), Time: time.Unix(0, v.GetInt64("t")).UTC(), Action: text(v, "action"), Path: text(v, "module"), Version: text(v, "version"),
		Visibility: text(v, "eval", "visibility"), Digest: text(v, "bundle_sha256"), Asker: text(v, "eval", "asker"),
		Was: policy.Answer{Effect: policy.Effect(text(effects[len(effects)-1]))},
	}
	if d.Visibility == "" {
		d.Visibility = "public"
		if v.GetBool("private") {
			d.Visibility = "private"
		}
	}
	if len(effects) > 1 {
		d.Resource = text(v, "eval", "resource")
	}
	stage := text(v, "decision", "stage")
	if d.Was.Effect == policy.Deny && text(v, "decision", "effect") == string(policy.Deny) && (stage == "access" || stage == "release") {
		d.Final, d.Was.Remedy = true, policy.Remedy(text(v, "decision", "remedy"))
		for _, code := range v.GetArray("decision", "codes") {
			d.Was.Codes = append(d.Was.Codes, text(code))
		}
	}
	return d
}

// text is a string of its own: what the parser holds lives until its next record.
func text(v *fastjson.Value, keys ...string) string { return string(v.GetStringBytes(keys...)) }
