package schema_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/headgate/headgate/audit/schema"
)

// hostile is a record with s wherever a client or a config has a say.
func hostile(t testing.TB, s string) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"v": 1, "kind": "decision", "event_id": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "t": 1770000000123456789, "node": s, "policy_rev": s, "bundle_sha256": s,
		"action": s, "method": s, "path": s, "path_b64": s, "module": s, "version": s, "trace_id": s,
		"subject":    map[string]any{"id": s, "kind": s, "issuer": s, "name": s, "groups": []string{s, s}},
		"credential": map[string]any{"class": s, "id": s, "fp": s, "via": s},
		"device":     map[string]any{"id": s, "state": s, "via": s},
		"client":     map[string]any{"ip": s, "port": len(s), "forwarded": s, "agent": s},
		"decision":   map[string]any{"effect": s, "stage": s, "codes": []string{s}, "reason": s, "remedy": s, "status": 200},
		"file":       map[string]any{"h1": s, "cache": s}, "change": map[string]any{"object": s, "note": s},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A46: whatever a record holds, its event is valid, or there is none.
func FuzzSchemas(f *testing.F) {
	for name, record := range records {
		f.Add(name, record)
	}
	for _, s := range []string{"", "192.0.2.1", "::1", "allow", "GET", "TRACE", "person", "a.b", "é", "null", "1.2.3.4, x"} {
		for _, kind := range []string{"decision", "outcome", "auth", "admin", "control", "of no kind"} {
			f.Add(s, strings.Replace(hostile(f, s), `"kind":"decision"`, `"kind":"`+kind+`"`, 1))
		}
	}
	o, fields := loadOCSF(f), loadECS(f)
	f.Fuzz(func(t *testing.T, s, record string) {
		if !json.Valid([]byte(record)) || len(record) > 1<<16 {
			return
		}
		for _, text := range []string{record, hostile(t, strings.ToValidUTF8(s, "?"))} {
			if event, ok := tryEncode(t, schema.OCSF, text); ok {
				checkOCSF(t, o, event)
			}
			if event, ok := tryEncode(t, schema.ECS, text); ok {
				if wrong := fields.valid(decode(t, event)); len(wrong) > 0 {
					t.Errorf("A46 %s\n%s", event, strings.Join(wrong, "\n"))
				}
			}
		}
	})
}

func tryEncode(t *testing.T, name, record string) ([]byte, bool) {
	t.Helper()
	e, err := schema.New(name, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	event, err := e.Encode(place, []byte(record))
	return event.Body, err == nil
}
