package gateway

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// noteSubject writes who asked into the record: the issuer's opaque subject, no display name.
func noteSubject(rec *audit.Record, p identity.Principal) {
	kind := p.Subject.Type
	if kind == "" {
		kind = "anonymous"
	}
	rec.Subject = audit.Subject{ID: p.Subject.ID, Kind: kind, Issuer: p.Subject.Issuer}
	noteCredential(rec, p.Credential)
	noteDevice(rec, p.Device)
}

// noteDevice writes what is known of the device, and what became of each step by which it was judged.
func noteDevice(rec *audit.Record, d identity.Device) {
	rec.Device = audit.Device{ID: d.ID, State: d.State, Tier: d.Tier, Serial: d.Serial, SPKI: shortKey(d.SPKI), Via: d.Via}
	if len(d.Facts) > 0 {
		rec.Device.PostureAgeS = int64(d.Oldest(time.Now()).Seconds())
	}
	if d.Checks != "" {
		if rec.Decision.Labels == nil {
			rec.Decision.Labels = map[string]string{}
		}
		rec.Decision.Labels["device_checks"] = d.Checks
	}
}

// shortKey is the part of a key's hash that records keep.
func shortKey(spki string) string { return spki[:min(16, len(spki))] }

func noteCredential(rec *audit.Record, c identity.Credential) {
	rec.Credential = audit.Credential{Class: string(c.Class), ID: c.ID, FP: c.Fingerprint, Via: c.Via}
}

// noteDecision writes an answer of policy into the record. Release comes after access and is joined to it.
func noteDecision(rec *audit.Record, d policy.Decision) {
	r := &rec.Decision
	r.Stage = d.Eval.Entry
	r.Codes = d.Codes
	r.Remedy = string(d.Remedy)
	for _, w := range d.Waived {
		r.Waived = append(r.Waived, w.Waiver)
	}
	for k, v := range d.Labels {
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[k] = v
	}
	if d.Eval.Entry == "" { // a lock, of which no policy knows
		return
	}
	rec.Eval.Effects = append(rec.Eval.Effects, string(d.Effect))
	rec.Eval.Cached = d.Eval.Cached && (rec.Eval.Cached || len(rec.Eval.Entry) == 0)
	rec.Eval.Entry = append(rec.Eval.Entry, d.Eval.Entry)
	rec.Eval.NS += d.Eval.NS
	rec.Eval.KeyHash = joinWords(rec.Eval.KeyHash, d.Eval.KeyHash)
	rec.Input, rec.InputKnown = joinInput(rec.Input, d.Eval.Entry, d.Projected), true
}

// joinInput adds what an entry point read: {"access":{…},"release":{…}}. The answer is a function of it, so the
// decision can be replayed from the record. It appends in place.
func joinInput(joined json.RawMessage, entry string, projected json.RawMessage) json.RawMessage {
	if len(projected) == 0 {
		return joined
	}
	if len(joined) == 0 {
		joined = append(make(json.RawMessage, 0, 2*len(projected)+512), '{')
	} else {
		joined[len(joined)-1] = ','
	}
	joined = append(append(append(joined, '"'), entry...), '"', ':')
	return append(append(joined, projected...), '}')
}

func joinWords(a, b string) string {
	if a == "" {
		return b
	}
	return a + " " + b
}

// noteWithheld counts the versions that a filtered answer leaves out, and names why.
func noteWithheld(rec *audit.Record, decisions []policy.Decision) {
	if len(decisions) == 0 {
		return
	}
	rec.Eval.Entry = append(rec.Eval.Entry, "release")
	for _, d := range decisions {
		rec.Eval.NS += d.Eval.NS
		rec.Eval.Cached = rec.Eval.Cached && d.Eval.Cached
		if d.Visible {
			continue
		}
		if rec.Decision.Withheld == 0 {
			rec.Input = joinInput(rec.Input, "release", d.Projected) // the first one stands for the others
		}
		rec.Decision.Withheld++
		for _, code := range d.Codes {
			if !slices.Contains(rec.Decision.Codes, code) {
				rec.Decision.Codes = append(slices.Clip(rec.Decision.Codes), code)
			}
		}
	}
}

// noteAsker names who asked, and when, in full.
func (x *exchange) noteAsker(in *policy.Input) {
	x.rec.Eval.Asker = x.s.snapshot(x.s.snapshots.Asker(x.s.audit.Rotations(), in))
	if in.Resource.Visibility == string(mirror.Unknown) {
		x.rec.Eval.Visibility = in.Resource.Visibility
	}
}

// noteResource names the version that was judged, with all that was known of it.
func (x *exchange) noteResource(r *policy.Resource) {
	x.rec.Eval.Resource = x.s.snapshot(x.s.snapshots.Resource(x.s.audit.Rotations(), r))
}

// snapshot writes a snapshot before the decision that names it, if this segment of the log has it not.
func (s *Server) snapshot(n policy.Snapshot) string {
	if n.Body != nil {
		rec := audit.Begin("")
		rec.Kind, rec.Control = audit.KindControl, audit.Control{What: audit.ControlSnapshot, ID: n.ID}
		rec.Input, rec.InputKnown = n.Body, true
		s.audit.Note(rec)
	}
	return n.ID
}
