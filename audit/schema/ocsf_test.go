package schema_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/headgate/headgate/audit/schema"
)

// ocsf holds events against the published definitions of OCSF 1.8.0.
type ocsf struct {
	schema *jsonschema.Schema
	defs   map[string]any
}

func loadOCSF(t testing.TB) *ocsf {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(definitions(t, "ocsf-1.8.0.schema.json.gz")))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("ocsf.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("ocsf.json")
	if err != nil {
		t.Fatal(err)
	}
	return &ocsf{s, doc.(map[string]any)["$defs"].(map[string]any)}
}

func (o *ocsf) valid(t testing.TB, v any) error {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return o.schema.Validate(doc)
}

// lifecycle checks the required attributes of Application Lifecycle, a class that the definitions at hand leave out
// (https://schema.ocsf.io/1.8.0/classes/application_lifecycle).
func lifecycle(v map[string]any) (missing string) {
	for _, path := range []string{"activity_id", "app.name", "category_uid", "class_uid", "metadata.version", "metadata.product.vendor_name", "severity_id", "time", "type_uid"} {
		if at(v, strings.Split(path, ".")...) == nil {
			return path
		}
	}
	return ""
}

func TestOCSF(t *testing.T) {
	o := loadOCSF(t)
	for name, record := range records {
		t.Run("A46 "+name, func(t *testing.T) {
			text := encode(t, schema.OCSF, record)
			event := decode(t, text)
			checkOCSF(t, o, text)
			if class := event["class_uid"].(json.Number); class != "6002" {
				o.lacking(t, event)
			}
		})
	}
}

// checkOCSF holds an event against the definitions.
func checkOCSF(t *testing.T, o *ocsf, text []byte) {
	t.Helper()
	event := decode(t, text)
	class, _ := event["class_uid"].(json.Number).Int64()
	activity, _ := event["activity_id"].(json.Number).Int64()
	if kind, _ := event["type_uid"].(json.Number).Int64(); kind != class*100+activity {
		t.Errorf("type_uid is %d, want %d × 100 + %d", kind, class, activity)
	}
	if class == 6002 {
		if missing := lifecycle(event); missing != "" {
			t.Errorf("%s lacks %s", text, missing)
		}
		return
	}
	if err := o.valid(t, event); err != nil {
		t.Fatalf("A46 %s\n%v", text, err)
	}
}

// lacking takes out each attribute that the definitions require, wherever it stands: the event is then refused.
func (o *ocsf) lacking(t *testing.T, event map[string]any) {
	t.Helper()
	class := map[string]string{"6003": "class_api_activity", "3002": "class_authentication"}[string(event["class_uid"].(json.Number))]
	tried := 0
	var walk func(v map[string]any, def string, path string)
	walk = func(v map[string]any, def, path string) {
		d, ok := o.defs[def].(map[string]any)
		if !ok {
			return
		}
		required, _ := d["required"].([]any)
		for _, r := range required {
			key := r.(string)
			kept := v[key]
			delete(v, key)
			if o.valid(t, event) == nil {
				t.Errorf("valid without %s%s", path, key)
			}
			v[key] = kept
			tried++
		}
		properties, _ := d["properties"].(map[string]any)
		for key, in := range v {
			p, _ := properties[key].(map[string]any)
			ref, _ := p["$ref"].(string)
			if items, ok := p["items"].(map[string]any); ok {
				ref, _ = items["$ref"].(string)
				if all, _ := in.([]any); len(all) > 0 {
					in = all[0]
				}
			}
			if child, ok := in.(map[string]any); ok {
				walk(child, ref[strings.LastIndexByte(ref, '/')+1:], path+key+".")
			}
		}
	}
	walk(event, class, "")
	if tried < 10 {
		t.Errorf("only %d required attributes were tried", tried)
	}
}

func TestOCSFValues(t *testing.T) {
	tests := []struct {
		record string
		want   map[string]any
	}{
		{"allowed zip", map[string]any{
			"class_uid": 6003, "activity_id": 2, "time": 1770000000123, "severity_id": 1, "action_id": 1, "disposition_id": 1, "status_id": 1,
			"metadata.uid": eventID, "metadata.sequence": 41, "metadata.log_name": place.Origin, "metadata.correlation_uid": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
			"metadata.product.vendor_name": "Headgate", "metadata.product.version": "1.2.3", "metadata.version": "1.8.0",
			"actor.user.uid": "u-17", "actor.user.name": "Ann", "actor.user.type_id": 1, "actor.user.groups.0.name": "eng", "actor.idp.name": "corp",
			"actor.session.issuer": "corp", "actor.user.programmatic_credentials.0.uid": "0011:aabb", "device.uid": "laptop-9",
			"device.is_trusted": true, "device.is_compliant": true, "device.is_managed": false, "src_endpoint.ip": "192.0.2.7",
			"src_endpoint.port": 51234, "src_endpoint.intermediate_ips.0": "192.0.2.9", "http_request.user_agent": "Go-http-client/1.1",
			"http_request.http_method": "GET", "http_request.url.path": "/example.com/!some/mod/@v/v1.2.3+incompatible.zip", "api.operation": "zip",
			"api.service.name": "headgate", "resources.0.name": "example.com/Some/mod", "resources.0.version": "v1.2.3+incompatible",
			"resources.0.uid": "pkg:golang/example.com/Some/mod@v1.2.3+incompatible", "policy.version": "4f2c9d1", "policy.uid": "e3b0",
			"http_response.code": 200, "http_response.body_length": 12345, "trace.uid": "4bf92f3577b34da6a3ce929d0e0e4736",
			"unmapped.cache": "disk", "unmapped.codes.0": "OK", "dst_endpoint.hostname": "gw-1",
		}},
		{"refused at access", map[string]any{"action_id": 2, "disposition_id": 26, "status_id": 2, "severity_id": 3, "actor.user.name": "anonymous", "src_endpoint.ip": "fe80::1", "status_detail": `NOT-ALLOWED, SCOPE: no team | may = that\ path`}},
		{"refused at release", map[string]any{"action_id": 2, "disposition_id": 2, "actor.user.type_id": 4, "http_response.code": 410}},
		{"hostile path", map[string]any{"disposition_id": 27, "severity_id": 4, "http_request.http_method": nil, "metadata.is_truncated": true, "unmapped.path_b64": "Gw=="}},
		{"outcome", map[string]any{"activity_id": 2, "status_id": 2, "http_response.latency": 876, "http_response.body_length": 1000, "src_endpoint.name": "unknown"}},
		{"zip and outcome", map[string]any{
			"action_id": 1, "disposition_id": 1, "status_id": 1, "http_response.code": 206, "http_response.body_length": 1000,
			"http_response.latency": 876, "metadata.sequence": 41, "unmapped.outcome_sequence": 44, "unmapped.aborted": nil,
			"unmapped.outcome_integrity": "BAUGAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "src_endpoint.ip": "192.0.2.7", "unmapped.kind": "decision",
		}},
		{"aborted zip", map[string]any{"action_id": 1, "disposition_id": 1, "status_id": 2, "http_response.body_length": 1000, "unmapped.aborted": true}},
		{"sign-in", map[string]any{"class_uid": 3002, "activity_id": 1, "auth_protocol_id": 4, "user.uid": "u-17", "service.name": "headgate"}},
		{"sign-out", map[string]any{"class_uid": 3002, "activity_id": 2}},
		{"exchange refused", map[string]any{"activity_id": 99, "activity_name": "token.exchange", "auth_protocol_id": 6, "status_id": 2}},
		{"TLS refusals", map[string]any{"activity_id": 99, "auth_protocol_id": 99, "auth_protocol": "mTLS", "count": 17}},
		{"token created", map[string]any{"class_uid": 6003, "activity_id": 1, "resources.0.name": "token a1b2 of ann", "status_id": 1}},
		{"device blocked", map[string]any{"activity_id": 3}},
		{"lock lifted", map[string]any{"activity_id": 4}},
		{"policy activated", map[string]any{"activity_id": 3, "actor.user.type": "system", "status_id": nil}},
		{"store incident", map[string]any{"severity_id": 5, "resources.0.version": "v1.0.0"}},
		{"start", map[string]any{"class_uid": 6002, "activity_id": 3, "app.name": "Headgate"}},
		{"stop", map[string]any{"activity_id": 4}},
		{"dead letter", map[string]any{"activity_id": 99, "activity_name": "dead_letter", "severity_id": 3, "unmapped.control.seq_to": 7}},
	}
	for _, tt := range tests {
		t.Run(tt.record, func(t *testing.T) {
			compare(t, decode(t, encode(t, schema.OCSF, records[tt.record])), tt.want)
		})
	}
}

// compare holds values, by paths with dots, against those of an event.
func compare(t *testing.T, event map[string]any, want map[string]any) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		got := at(event, strings.Split(path, ".")...)
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want[path])
		if !bytes.Equal(g, w) {
			t.Errorf("%s is %s, want %s", path, g, w)
		}
	}
}
