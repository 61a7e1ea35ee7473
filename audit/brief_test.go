package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzBrief holds what the index reads of a record against encoding/json's reading of all of it.
func FuzzBrief(f *testing.F) {
	f.Add("example.com/m", "v1.0.0", "ann", "laptop\u0000\"", "OK", int64(5))
	f.Add("\xff\u202e", "\\", "\n", "{}", "\u2028", int64(-1))
	var parser briefParser // one for all: nothing of a record may be left in the next
	f.Fuzz(func(t *testing.T, module, version, subject, device, code string, count int64) {
		r := &Record{
			Kind: KindDecision, EventID: "0123456789abcdef", T: 1, Action: version, Method: "GET", Module: module, Version: version,
			Subject: Subject{ID: subject, Issuer: device}, Device: Device{ID: device}, Outcome: Outcome{Aborted: count%2 == 0},
			Decision: Decision{Effect: "deny", Codes: []string{code, "OK"}}, Count: count, Input: json.RawMessage(`{"module":"x","t":9}`),
		}
		line := bytes.Clone((&encoder{secrets: newSecrets(make([]byte, 32))}).encode(r, "n1"))
		var whole Record
		if err := json.Unmarshal(line, &whole); err != nil {
			t.Fatal(err)
		}
		want := &brief{
			Kind: whole.Kind, EventID: whole.EventID, T: whole.T, Action: whole.Action, Method: whole.Method, Module: whole.Module,
			Version: whole.Version, Subject: whole.Subject.ID, Issuer: whole.Subject.Issuer, Device: whole.Device.ID,
			Effect: whole.Decision.Effect, Codes: whole.Decision.Codes, Aborted: whole.Outcome.Aborted, Count: whole.Count,
		}
		got, err := parser.parse(line)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("parse(%s) = %+v, %v, want %+v", line, got, err, want)
		}
	})
}

func TestBriefOfNoRecord(t *testing.T) {
	for _, text := range []string{"", "[]", "{", `{"t":}`, "null"} {
		if b, err := new(briefParser).parse([]byte(text)); err == nil {
			t.Errorf("parse(%q) = %+v, no error", text, b)
		}
	}
}
