package schema_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/headgate/headgate/audit/schema"
)

// records are one of each kind and of each way that it can end.
var records = map[string]string{
	"allowed zip":        `{"v":1,"kind":"decision","event_id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"mono_ms":5,"node":"gw-1","policy_rev":"4f2c9d1","bundle_sha256":"e3b0","action":"zip","method":"GET","path":"/example.com/!some/mod/@v/v1.2.3+incompatible.zip","module":"example.com/Some/mod","version":"v1.2.3+incompatible","private":true,"subject":{"id":"u-17","kind":"person","issuer":"corp","name":"Ann","groups":["eng","payments"]},"credential":{"class":"person","id":"a1b2","fp":"0011:aabb","via":"basic"},"device":{"id":"laptop-9","state":"enrolled","tier":3,"via":"mtls"},"client":{"ip":"192.0.2.7","port":51234,"forwarded":"192.0.2.9, 198.51.100.2","agent":"Go-http-client/1.1"},"decision":{"effect":"allow","stage":"release","codes":["OK"],"status":200},"input":{"kind":"x","t":1},"file":{"h1":"h1:47DE=","size":12345,"cache":"disk"},"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}`,
	"refused at access":  `{"v":1,"kind":"decision","event_id":"BBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","action":"list","method":"GET","path":"/example.com/secret/@v/list","module":"example.com/secret","subject":{"kind":"anonymous"},"client":{"ip":"fe80::1%eth0"},"decision":{"effect":"deny","stage":"access","codes":["NOT-ALLOWED","SCOPE"],"reason":"no team | may = that\\ path","withheld":3,"status":403},"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}`,
	"refused at release": `{"v":1,"kind":"decision","event_id":"CBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"mod","method":"GET","module":"example.com/m","version":"v1.0.0","subject":{"id":"ci-1","kind":"workload","issuer":"forge"},"client":{"ip":"192.0.2.7"},"decision":{"effect":"deny","stage":"release","codes":["VULNERABLE"],"status":410}}`,
	"hostile path":       `{"v":1,"kind":"decision","event_id":"DBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1,"method":"BREW","path":"\\u{1b}[2J=|\\","path_b64":"Gw==","client":{"ip":"no address","agent":"a=b|c\\d"},"decision":{"effect":"error","stage":"protocol","codes":["PATH"],"status":400},"severity":4,"sanitised":true,"truncated":["path"]}`,
	"outcome":            `{"v":1,"kind":"outcome","event_id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000999456789,"node":"gw-1","action":"zip","module":"example.com/m","version":"v1.0.0","subject":{"id":"u-17"},"outcome":{"status":200,"bytes":1000,"ms":876,"aborted":true}}`,
	"zip and outcome":    `{"v":1,"kind":"decision","event_id":"RBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","action":"zip","method":"GET","path":"/example.com/m/@v/v1.0.0.zip","module":"example.com/m","version":"v1.0.0","subject":{"id":"u-17","kind":"person"},"client":{"ip":"192.0.2.7"},"decision":{"effect":"allow","stage":"release","codes":["OK"],"status":200},"file":{"size":12345,"cache":"disk"},"outcome":{"status":206,"bytes":1000,"ms":876}}`,
	"aborted zip":        `{"v":1,"kind":"decision","event_id":"SBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","action":"zip","method":"GET","path":"/example.com/m/@v/v1.0.0.zip","module":"example.com/m","version":"v1.0.0","subject":{"id":"u-17","kind":"person"},"client":{"ip":"192.0.2.7"},"decision":{"effect":"allow","stage":"release","codes":["OK"],"status":200},"file":{"size":12345,"cache":"disk"},"outcome":{"status":200,"bytes":1000,"ms":876,"aborted":true}}`,
	"sign-in":            `{"v":1,"kind":"auth","event_id":"EBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","action":"signin.oidc","method":"GET","path":"/-/login","subject":{"id":"u-17","kind":"person","issuer":"corp"},"credential":{"via":"session"},"client":{"ip":"192.0.2.7","port":9},"decision":{"effect":"allow","status":303}}`,
	"sign-out":           `{"v":1,"kind":"auth","event_id":"FBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"signout","subject":{"id":"u-17","kind":"person"},"client":{"ip":"192.0.2.7"},"decision":{"effect":"allow","status":200},"change":{"note":"2 tokens ended"}}`,
	"exchange refused":   `{"v":1,"kind":"auth","event_id":"GBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"token.exchange","method":"POST","path":"/-/oauth/token","client":{"ip":"192.0.2.7"},"decision":{"effect":"deny","codes":["ISSUER-UNKNOWN"],"status":400}}`,
	"TLS refusals":       `{"v":1,"kind":"auth","event_id":"HBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"tls.device","client":{"ip":"192.0.2.7"},"decision":{"effect":"deny","reason":"unknown authority"},"severity":3,"count":17}`,
	"token created":      `{"v":1,"kind":"admin","event_id":"IBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","action":"token.create","method":"POST","path":"/-/api/v1/tokens","subject":{"id":"root","kind":"person"},"client":{"ip":"127.0.0.1"},"decision":{"effect":"allow","status":201},"change":{"object":"token a1b2 of ann","new_sha256":"00ff","note":"module:example.com/*\nread"}}`,
	"device blocked":     `{"v":1,"kind":"admin","event_id":"JBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"device.block","subject":{"id":"root","kind":"person"},"decision":{"effect":"allow","status":200},"change":{"object":"device laptop-9"}}`,
	"lock lifted":        `{"v":1,"kind":"admin","event_id":"KBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"lock.lift","subject":{"id":"root","kind":"person"},"decision":{"effect":"allow","status":200},"change":{"object":"lock 7"}}`,
	"policy activated":   `{"v":1,"kind":"admin","event_id":"LBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","action":"policy.activate","subject":{"id":"headgate","kind":"system"},"change":{"object":"policy","old_sha256":"00","new_sha256":"ff"},"severity":1}`,
	"store incident":     `{"v":1,"kind":"admin","event_id":"MBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"action":"mirror.quarantined","module":"example.com/m","version":"v1.0.0","subject":{"id":"headgate"},"change":{"note":"its hash is not the one that was stored"},"severity":5}`,
	"start":              `{"v":1,"kind":"control","event_id":"NBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","control":{"what":"start"}}`,
	"stop":               `{"v":1,"kind":"control","event_id":"OBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","control":{"what":"stop"}}`,
	"dead letter":        `{"v":1,"kind":"control","event_id":"PBCDEFGHIJKLMNOPQRSTUVWXYZ","t":1770000000123456789,"node":"gw-1","control":{"what":"dead_letter","seq_from":5,"seq_to":7,"count":3,"sink":"soc","err_class":"rejected"},"severity":3}`,
	"bare control":       `{"v":1,"kind":"control","event_id":"QBCDEFGHIJKLMNOPQRSTUVWXYZ","t":0}`,
}

var place = schema.Place{Origin: "audit.local/gw-1/3", Epoch: 3, Seq: 41, Leaf: [32]byte{1, 2, 3}}

const eventID = "ABCDEFGHIJKLMNOPQRSTUVWXYZ-3-41" // there, of the first record

// encode is a record as an event in a schema.
func encode(t testing.TB, name, record string) []byte {
	t.Helper()
	e, err := schema.New(name, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	where := place
	if strings.Contains(record, `"decision":{`) && strings.Contains(record, `"outcome":{`) {
		where.Outcome, where.OutcomeLeaf = 44, [32]byte{4, 5, 6}
	}
	event, err := e.Encode(where, []byte(record))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(event.Body, "\r\n") {
		t.Errorf("%s: an event of several lines: %q", name, event.Body)
	}
	return event.Body
}

// definitions opens one of the published definitions in testdata.
func definitions(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func decode(t testing.TB, text []byte) map[string]any {
	t.Helper()
	var v map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// at is what stands under a path of keys; below a list, that of its first.
func at(v any, path ...string) any {
	for _, key := range path {
		switch in := v.(type) {
		case map[string]any:
			v = in[key]
		case []any:
			if len(in) == 0 {
				return nil
			}
			v = in[0]
		default:
			return nil
		}
	}
	return v
}

func TestNative(t *testing.T) {
	got := decode(t, encode(t, schema.Native, records["allowed zip"]))
	for key, want := range map[string]any{"id": eventID, "origin": place.Origin, "seq": json.Number("41"), "kind": "decision", "module": "example.com/Some/mod"} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	joined := decode(t, encode(t, schema.Native, records["aborted zip"]))
	if joined["kind"] != "decision" || joined["outcome_seq"] != json.Number("44") || joined["outcome_leaf"] != "BAUGAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" ||
		at(joined, "outcome", "aborted") != true || at(joined, "outcome", "bytes") != json.Number("1000") {
		t.Errorf("a decision with its outcome is %v", joined)
	}
}

// What a sink says of itself stands at no leaf.
func TestNoLeaf(t *testing.T) {
	for _, name := range schema.Names() {
		e, err := schema.New(name, "")
		if err != nil {
			t.Fatal(err)
		}
		event, err := e.Encode(schema.Place{Origin: "o", Seq: 7}, []byte(records["dead letter"]))
		if err != nil || bytes.Contains(event.Body, []byte("AAAAA")) {
			t.Errorf("%s: %s, %v; want no hash", name, event.Body, err)
		}
		if event.ID != "PBCDEFGHIJKLMNOPQRSTUVWXYZ-0-7" || event.Kind != "control" || event.Severity != 3 || event.Time.UnixNano() != 1770000000123456789 {
			t.Errorf("%s: %+v", name, event)
		}
	}
}

func TestNotARecord(t *testing.T) {
	for _, name := range schema.Names() {
		for _, text := range []string{"", "{", "[]", "{}", `"kind"`, `{"kind":7}`, `{"kind":"decision"}`} {
			e, err := schema.New(name, "")
			if err != nil {
				t.Fatal(err)
			}
			if event, err := e.Encode(place, []byte(text)); err == nil {
				t.Errorf("%s of %q is %s, no error", name, text, event.Body)
			}
		}
	}
}

func TestUnknownSchema(t *testing.T) {
	if _, err := schema.New("leef", ""); err == nil || !strings.Contains(err.Error(), "ocsf, ecs, cef, native") {
		t.Errorf("New(leef): %v, want an error that lists the known ones", err)
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, name := range schema.Names() {
		b.Run(name, func(b *testing.B) {
			e, err := schema.New(name, "1.2.3")
			if err != nil {
				b.Fatal(err)
			}
			record := []byte(records["allowed zip"])
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Encode(place, record); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
