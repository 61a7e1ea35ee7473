package schema_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/audit/schema"
)

// An ecsField is the definition of a field of ECS 9.4.0.
type ecsField struct {
	Type      string
	Required  bool
	Allowed   []string
	Normalize []string
	Expected  map[string][]string `json:"expected_event_types"`
}

type ecsFields map[string]ecsField

func loadECS(t testing.TB) ecsFields {
	t.Helper()
	var fields ecsFields
	if err := json.Unmarshal(definitions(t, "ecs-9.4.0.fields.json.gz"), &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}

// valid returns all that is wrong with an event.
func (f ecsFields) valid(event map[string]any) []string {
	var wrong []string
	leaves := map[string]any{}
	f.flatten("", event, leaves)
	for name, v := range leaves {
		if mistake := f.leaf(name, v); mistake != "" {
			wrong = append(wrong, name+": "+mistake)
		}
	}
	for name, d := range f {
		if _, ok := leaves[name]; d.Required && !ok {
			wrong = append(wrong, name+": is missing")
		}
	}
	types, _ := leaves["event.type"].([]any)
	categories, _ := leaves["event.category"].([]any)
	for _, typ := range types {
		if !slices.ContainsFunc(categories, func(c any) bool { return slices.Contains(f["event.category"].Expected[c.(string)], typ.(string)) }) {
			wrong = append(wrong, fmt.Sprintf("event.type: %v is not expected with %v", typ, categories))
		}
	}
	return wrong
}

// flatten brings the leaves of an object under their names with dots. labels is one field, however much it holds.
func (f ecsFields) flatten(prefix string, in map[string]any, leaves map[string]any) {
	for key, v := range in {
		name := prefix + key
		child, ok := v.(map[string]any)
		if d, field := f[name]; !ok || field && d.Type == "object" {
			leaves[name] = v
			continue
		}
		f.flatten(name+".", child, leaves)
	}
}

// leaf says what is wrong with a field's value.
func (f ecsFields) leaf(name string, v any) string {
	d, ok := f[name]
	if !ok {
		return "is no field of ECS"
	}
	values, many := v.([]any)
	if array := slices.Contains(d.Normalize, "array"); array != many {
		return fmt.Sprintf("an array: %t, want %t", many, array)
	}
	if !many {
		values = []any{v}
	}
	for _, v := range values {
		text, isText := v.(string)
		good := false
		switch d.Type {
		case "keyword", "wildcard", "match_only_text", "constant_keyword":
			good = isText && text != ""
		case "long", "integer":
			n, ok := v.(json.Number)
			_, err := n.Int64()
			good = ok && err == nil
		case "ip":
			_, err := netip.ParseAddr(text)
			good = err == nil
		case "date":
			_, err := time.Parse(time.RFC3339Nano, text)
			good = err == nil
		case "object":
			good = isFlat(v)
		}
		if !good {
			return fmt.Sprintf("%v is no %s", v, d.Type)
		}
		if len(d.Allowed) > 0 && !slices.Contains(d.Allowed, text) {
			return fmt.Sprintf("%q is not allowed", text)
		}
	}
	return ""
}

// isFlat tells whether v is an object of texts with keys without dots, as labels must be.
func isFlat(v any) bool {
	object, ok := v.(map[string]any)
	for key, in := range object {
		if _, text := in.(string); !text || strings.Contains(key, ".") {
			return false
		}
	}
	return ok
}

func TestECS(t *testing.T) {
	fields := loadECS(t)
	for name, record := range records {
		t.Run("A46 "+name, func(t *testing.T) {
			text := encode(t, schema.ECS, record)
			event := decode(t, text)
			if wrong := fields.valid(event); len(wrong) > 0 {
				t.Fatalf("%s\n%s", text, strings.Join(wrong, "\n"))
			}
			for _, required := range []string{"@timestamp", "ecs"} {
				lacking := maps.Clone(event)
				delete(lacking, required)
				if len(fields.valid(lacking)) == 0 {
					t.Errorf("valid without %s", required)
				}
			}
			for _, ours := range []string{"event.kind", "event.category", "event.type", "event.outcome", "event.id", "event.sequence", "event.hash", "observer.product", "service.name"} {
				if at(event, strings.Split(ours, ".")...) == nil {
					t.Errorf("%s lacks %s", text, ours)
				}
			}
		})
	}
}

// The checks of this test see what is wrong.
func TestECSDefinitions(t *testing.T) {
	fields := loadECS(t)
	for path, v := range map[string]any{
		"event.colour": "blue", "event.outcome": "perhaps", "event.severity": "high", "source.ip": "here", "@timestamp": "today",
		"event.category": "api", "event.type": []any{"indicator"}, "labels": map[string]any{"a": map[string]any{}}, "message": "",
	} {
		event := decode(t, encode(t, schema.ECS, records["allowed zip"]))
		in, key := event, path
		if object, rest, ok := strings.Cut(path, "."); ok {
			in, key = event[object].(map[string]any), rest
		}
		in[key] = v
		if wrong := fields.valid(event); !slices.ContainsFunc(wrong, func(s string) bool { return strings.HasPrefix(s, path+":") }) {
			t.Errorf("with %s = %v: %q", path, v, wrong)
		}
	}
}

func TestECSValues(t *testing.T) {
	for _, tt := range []struct {
		record string
		want   map[string]any
	}{
		{"allowed zip", map[string]any{
			"@timestamp": "2026-02-02T02:40:00.123456789Z", "ecs.version": "9.4.0", "event.id": eventID, "event.sequence": 41, "labels.origin": place.Origin,
			"observer.vendor": "Headgate", "observer.version": "1.2.3", "service.node.name": "gw-1", "user.id": "u-17", "user.name": "Ann",
			"user.roles": []string{"eng", "payments"}, "labels.idp": "corp", "labels.token_fp": "0011:aabb", "device.id": "laptop-9",
			"source.ip": "192.0.2.7", "source.port": 51234, "client.ip": "192.0.2.7", "user_agent.original": "Go-http-client/1.1",
			"event.action": "zip", "http.request.method": "GET", "url.path": "/example.com/!some/mod/@v/v1.2.3+incompatible.zip",
			"package.name": "example.com/Some/mod", "package.version": "v1.2.3+incompatible", "package.type": "go_module", "package.checksum": "h1:47DE=",
			"event.kind": "event", "event.category": []string{"api", "web"}, "event.type": []string{"access", "allowed"}, "event.outcome": "success",
			"event.code": "OK", "event.severity": 1, "rule.version": "4f2c9d1", "http.response.status_code": 200, "labels.cache": "disk",
			"trace.id": "4bf92f3577b34da6a3ce929d0e0e4736", "event.hash": "AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		}},
		{"refused at access", map[string]any{"event.type": []string{"access", "denied"}, "event.outcome": "failure", "event.reason": "no team | may = that\\ path", "event.severity": 3}},
		{"outcome", map[string]any{"event.duration": 876000000, "http.response.body.bytes": 1000, "event.outcome": "failure"}},
		{"zip and outcome", map[string]any{
			"event.type": []string{"access", "allowed", "end"}, "event.outcome": "success", "event.duration": 876000000, "http.response.status_code": 206,
			"http.response.body.bytes": 1000, "event.sequence": 41, "labels.outcome_sequence": "44", "labels.decision": "allow", "labels.aborted": nil,
			"labels.outcome_hash": "BAUGAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		}},
		{"aborted zip", map[string]any{"event.type": []string{"access", "allowed", "end"}, "event.outcome": "failure", "http.response.status_code": 200, "labels.aborted": "true"}},
		{"hostile path", map[string]any{"source": nil, "event.severity": 4}},
		{"sign-in", map[string]any{"event.category": []string{"authentication"}, "event.type": []string{"start"}}},
		{"device blocked", map[string]any{"event.category": []string{"api", "configuration"}, "event.type": []string{"admin", "change", "allowed"}}},
		{"dead letter", map[string]any{"event.category": []string{"configuration"}, "labels.seq_to": "7", "labels.sink": "soc", "event.outcome": "unknown"}},
	} {
		t.Run(tt.record, func(t *testing.T) {
			compare(t, decode(t, encode(t, schema.ECS, records[tt.record])), tt.want)
		})
	}
}
