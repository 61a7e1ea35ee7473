package audit

import (
	"fmt"
	"net/http"

	"github.com/valyala/fastjson"
)

// A brief is what of a record can be asked for.
type brief struct {
	Kind            Kind
	EventID         string
	T               int64
	Action, Method  string
	Module, Version string
	Subject, Issuer string
	Device          string
	Effect          string
	Codes           []string
	Aborted         bool
	Count           int64
}

// A briefParser reads what can be asked for out of records. The log is indexed while it is written, so a record costs
// no more here than where it was made. It is not safe for use by several goroutines.
type briefParser struct{ json fastjson.Parser }

func (p *briefParser) parse(record []byte) (*brief, error) {
	v, err := p.json.ParseBytes(record)
	if err != nil {
		return nil, fmt.Errorf("parsing audit record: %w", err)
	}
	o, err := v.Object()
	if err != nil {
		return nil, fmt.Errorf("parsing audit record: %w", err)
	}
	b := &brief{}
	o.Visit(func(key []byte, v *fastjson.Value) {
		switch string(key) {
		case "kind":
			b.Kind = Kind(text(v))
		case "event_id":
			b.EventID = text(v)
		case "t":
			b.T = v.GetInt64()
		case "action":
			b.Action = text(v)
		case "method":
			b.Method = text(v)
		case "module":
			b.Module = text(v)
		case "version":
			b.Version = text(v)
		case "subject":
			b.Subject, b.Issuer = text(v.Get("id")), text(v.Get("issuer"))
		case "device":
			b.Device = text(v.Get("id"))
		case "decision":
			b.Effect = text(v.Get("effect"))
			for _, code := range v.GetArray("codes") {
				b.Codes = append(b.Codes, text(code))
			}
		case "outcome":
			b.Aborted = v.GetBool("aborted")
		case "count":
			b.Count = v.GetInt64()
		}
	})
	return b, nil
}

// text is a string of its own: what the parser holds lives until its next record.
func text(v *fastjson.Value) string { return string(v.GetStringBytes()) }

// fetch returns the record's flags as a fetch; ok is false if it is none.
func (b *brief) fetch() (flags byte, ok bool) {
	if b.Module == "" || b.Version == "" {
		return 0, false
	}
	if b.Action == "zip" && b.Method != http.MethodHead {
		flags = fetchZip
	}
	switch {
	case b.Kind == KindOutcome:
		return flags | fetchLate | fetchAborted, b.Aborted
	case b.Kind != KindDecision:
		return 0, false
	case b.Effect == "allow":
		return flags, true // fetchAllow: both bits are zero
	case b.Effect == "deny":
		return flags | fetchDeny, true
	}
	return flags | fetchError, true
}
