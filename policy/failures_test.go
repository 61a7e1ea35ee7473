package policy_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headgate/headgate/policy"
)

// TestNoDecision asks bundles that give no usable answer. Each must end in ErrPolicy and a decision that allows nothing.
func TestNoDecision(t *testing.T) {
	with := func(patch string) string { return "decision := object.union(allowed, " + patch + ")" }
	for name, access := range map[string]string{
		"P1 entry point undefined for this input": `decision := allowed if input.subject.id == "nobody"`,
		"P2 two complete rules conflict":          "decision := allowed if input.schema == 1\n\ndecision := object.union(allowed, {\"profile\": \"open\"}) if input.context.day > 1",
		"P3 decision is a string":                 `decision := "allow"`,
		"P3 decision is true":                     `decision := true`,
		"P3 decision is a set":                    `decision := {"allow"}`,
		"P3 unknown effect":                       with(`{"effect": "permit"}`),
		"P3 empty effect":                         with(`{"effect": ""}`),
		"P3 effect of wrong type":                 with(`{"effect": true}`),
		"P3 unknown remedy":                       with(`{"effect": "deny", "visible": false, "remedy": "beg", "codes": ["X"], "reasons": [` + reason + `]}`),
		"P3 denial without remedy":                with(`{"effect": "deny", "visible": false, "codes": ["X"], "reasons": [` + reason + `]}`),
		"P3 denial without a code":                with(`{"effect": "deny", "visible": false, "remedy": "none", "reasons": [` + reason + `]}`),
		"P3 denial without a reason":              with(`{"effect": "deny", "visible": false, "remedy": "none", "codes": ["X"]}`),
		"P3 denial that is visible":               with(`{"effect": "deny", "remedy": "none", "codes": ["X"], "reasons": [` + reason + `]}`),
		"P3 allow with a reason against it":       with(`{"reasons": [` + reason + `]}`),
		"P3 allow with a remedy":                  with(`{"remedy": "wait"}`),
		"P3 unknown obligation":                   with(`{"obligations": [{"kind": "reboot", "params": {}}]}`),
		"P3 code in lower case":                   with(`{"codes": ["cooldown"]}`),
		"P3 codes not sorted":                     with(`{"codes": ["B", "A"]}`),
		"P3 codes is a set":                       with(`{"codes": {"A"}}`),
		"P3 unknown schema":                       with(`{"schema": 2}`),
		"P3 unknown field":                        with(`{"bypass": true}`),
		"P3 day is a fraction":                    with(`{"valid_until_day": 1.5}`),
		"P3 params of wrong type":                 with(`{"warnings": [object.union(` + reason + `, {"params": {"a": 1}})]}`),
		"P3 field missing":                        `decision := object.remove(allowed, ["waived"])`,
		"P3 allow without a profile":              with(`{"profile": ""}`),
		"P6 built-in error: bad semver":           with(`{"visible": semver.compare(input.resource.path, "v1.0.0") == 0}`),
		"P6 built-in error: bad regex of data":    `decision := allowed if regex.match(input.resource.host, concat("", ["[", input.subject.id]))`,
		"P6 built-in error: bad number":           `decision := allowed if to_number(input.subject.id) == 1`,
		"P6 built-in error under a not":           "decision := allowed if not bad\n\nbad if semver.compare(input.resource.path, \"v1.0.0\") == 0",
		"T74 division by zero":                    `decision := allowed if 1 / (input.context.day - input.context.day) == 1`,
		"T74 not a boolean":                       with(`{"visible": "yes"}`),
	} {
		t.Run(name, func(t *testing.T) {
			g := load(t, own(access))
			for range 2 { // the second time as the first: a failure is not kept as an answer
				d, err := g.Access(t.Context(), person("example.com/m", "public"))
				if !errors.Is(err, policy.ErrPolicy) || d.Effect != "" || d.Visible {
					t.Errorf("Access() = %+v, %v, want no decision and ErrPolicy", d, err)
				}
			}
		})
	}
	t.Run("P2 error names the rules", func(t *testing.T) {
		g := load(t, own("decision := allowed if input.schema == 1\n\ndecision := object.union(allowed, {\"profile\": \"open\"}) if input.context.day > 1"))
		_, err := g.Access(t.Context(), person("example.com/m", "public"))
		if err == nil || !strings.Contains(err.Error(), "access/access.rego:") {
			t.Errorf("Access() = %v, want the place of the rules", err)
		}
	})
}

const reason = `{"code": "X", "rule": "x", "severity": 1, "template": "x", "doc": "", "params": {}}`

// TestHostileInput asks with documents that the contract does not know.
func TestHostileInput(t *testing.T) {
	g := openEmbedded(t)
	for name, spoil := range map[string]func(*policy.Input){
		"T74 empty input":            func(in *policy.Input) { *in = policy.Input{} },
		"T74 other schema":           func(in *policy.Input) { in.Schema = 2 },
		"T74 unknown subject type":   func(in *policy.Input) { in.Subject.Type = "admin" },
		"T74 unknown proof":          func(in *policy.Input) { in.Device.Proof = "tpm" },
		"T74 unknown action":         func(in *policy.Input) { in.Action.Name = "zap" },
		"T74 unknown class":          func(in *policy.Input) { in.Action.Class = "" },
		"T74 unknown zone":           func(in *policy.Input) { in.Context.Zone = "moon" },
		"T74 unknown visibility":     func(in *policy.Input) { in.Resource.Visibility = "Public" },
		"T74 path without prefixes":  func(in *policy.Input) { in.Resource.Prefixes = nil },
		"T33 prefixes of other path": func(in *policy.Input) { in.Resource.Prefixes = policy.NewName("corp/b", "public").Prefixes },
	} {
		t.Run(name, func(t *testing.T) {
			in := person("example.com/m", "public")
			spoil(in)
			if d, err := g.Access(t.Context(), in); !errors.Is(err, policy.ErrPolicy) || d.Effect == policy.Allow {
				t.Errorf("Access() = %+v, %v, want ErrPolicy", d, err)
			}
		})
	}
	for name, spoil := range map[string]func(*policy.Facts){
		"unknown malware state": func(f *policy.Facts) { f.Malware = "maybe" },
		"unknown sumdb state":   func(f *policy.Facts) { f.Sumdb = "" },
		"unknown fact state":    func(f *policy.Facts) { f.Known.Vulns = "" },
		"no version":            func(f *policy.Facts) { f.Version = "" },
		"unknown hold":          func(f *policy.Facts) { f.Quarantine.State = "jail" },
	} {
		t.Run("T74 "+name, func(t *testing.T) {
			in := person("example.com/m", "public")
			in.Context.Profile = "standard"
			r := version("example.com/m", "v1.0.0")
			spoil(&r.Facts)
			if ds, err := g.Release(t.Context(), in, []policy.Resource{version("example.com/m", "v1.1.0"), r}); !errors.Is(err, policy.ErrPolicy) || ds != nil {
				t.Errorf("Release() = %+v, %v, want ErrPolicy", ds, err)
			}
		})
	}
	for _, profile := range []string{"", "lax"} {
		t.Run("T74 release under profile "+profile, func(t *testing.T) {
			in := person("example.com/m", "public")
			in.Context.Profile = profile
			ds, err := g.Release(t.Context(), in, []policy.Resource{version("example.com/m", "v1.1.0")})
			if err == nil && ds[0].Effect == policy.Allow {
				t.Errorf("Release() = %+v, want a refusal", ds)
			}
		})
	}
}

// TestGuards holds what no bundle can loosen, against a bundle that allows everything.
func TestGuards(t *testing.T) {
	g := load(t, own("decision := allowed"))
	t.Run("anonymous", func(t *testing.T) {
		in := person("example.com/m", "public")
		in.Subject.Type = "anonymous"
		d, err := g.Access(t.Context(), in)
		if err != nil || d.Effect != policy.Deny || d.Remedy != policy.RemedyNone || d.Codes[0] != "ANONYMOUS" {
			t.Errorf("Access(anonymous) = %+v, %v, want a denial", d, err)
		}
	})
	release := func(name string, spoil func(*policy.Facts)) policy.Decision {
		in := person("example.com/m", "public")
		in.Context.Profile, in.Action = "standard", policy.NewAction(name)
		r := version("example.com/m", "v1.0.0")
		spoil(&r.Facts)
		ds, err := g.Release(t.Context(), in, []policy.Resource{r})
		if err != nil {
			t.Fatalf("Release() = %v", err)
		}
		return ds[0]
	}
	t.Run("checksum mismatch", func(t *testing.T) {
		for _, name := range []string{"list", "info", "mod", "zip"} {
			if d := release(name, func(f *policy.Facts) { f.Sumdb = "mismatch" }); d.Effect != policy.Deny || d.Codes[0] != "SUMDB-MISMATCH" || d.Remedy != policy.RemedyNone {
				t.Errorf("Release(%s) = %+v, want SUMDB-MISMATCH", name, d)
			}
		}
	})
	t.Run("malware, save its .mod", func(t *testing.T) {
		listed := func(f *policy.Facts) { f.Malware = "listed" }
		for _, name := range []string{"list", "latest", "query", "info", "zip"} {
			if d := release(name, listed); d.Effect != policy.Deny || d.Codes[0] != "MALWARE" || d.Remedy != policy.RemedyNone {
				t.Errorf("Release(%s) = %+v, want MALWARE", name, d)
			}
		}
		if d := release("mod", listed); d.Effect != policy.Allow {
			t.Errorf("Release(mod) = %+v, want allow", d)
		}
	})
}

// endless runs for minutes: it looks at every triple of a list.
const endless = `decision := allowed if {
	some a in data.config.profiles
	some b in numbers
	some c in numbers
	some d in numbers
	some e in numbers
	some f in numbers
	some g in numbers
	count({a, b, c, d, e, f, g, input.context.day}) == 99
}

numbers := [n | some a in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]; some b in [0, 10, 20, 30]; n := a + b]`

func TestEndless(t *testing.T) {
	g := load(t, own(endless))
	t.Run("P9 cancelled after its budget", func(t *testing.T) {
		start := time.Now()
		d, err := g.Access(t.Context(), person("example.com/m", "public"))
		if took := time.Since(start); !errors.Is(err, policy.ErrPolicy) || d.Effect != "" || took > 10*time.Second {
			t.Errorf("Access() = %+v, %v after %v, want ErrPolicy after 250 ms of work", d, err, took)
		}
	})
	t.Run("P9 behind a full queue, others unaffected", func(t *testing.T) {
		var failed atomic.Int32
		done := make(chan struct{})
		for i := range 6 {
			go func() {
				in := person("example.com/m", "public")
				in.Context.Day += i
				if _, err := g.Access(context.Background(), in); errors.Is(err, policy.ErrPolicy) {
					failed.Add(1)
				}
				done <- struct{}{}
			}()
		}
		for range 6 {
			<-done
		}
		if failed.Load() != 6 {
			t.Errorf("%d of 6 evaluations ended in ErrPolicy, want all", failed.Load())
		}
	})
	t.Run("P9 a caller that leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.Access(ctx, person("example.com/n", "public")); !errors.Is(err, context.Canceled) {
			t.Errorf("Access(cancelled) = %v, want context.Canceled", err)
		}
	})
}

func TestP9ListBudget(t *testing.T) {
	files := own("decision := allowed")
	files["release/release.rego"] = strings.Replace("package headgate.release\n\nallowed := "+allowAll+"\n\n"+endless, "input.context.day", "input.resource.version", 1)
	g := load(t, files)
	in := person("example.com/m", "public")
	in.Context.Profile = "standard"
	many := make([]policy.Resource, 100)
	for i := range many {
		many[i] = version("example.com/m", "v1.0."+string(rune('0'+i%10)))
	}
	start := time.Now()
	ds, err := g.Release(t.Context(), in, many)
	if took := time.Since(start); !errors.Is(err, policy.ErrPolicy) || ds != nil || took > time.Minute {
		t.Errorf("Release() = %v after %v, want ErrPolicy before all have run", err, took)
	}
}

// TestForbidden holds bundles that do not compile, and watches that none of them dials.
func TestForbidden(t *testing.T) {
	trap, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	go func() {
		for {
			c, err := trap.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() { trap.Close() })
	url := "http://" + trap.Addr().String() + "/"
	for builtin, call := range map[string]string{
		"http.send":                 `http.send({"method": "get", "url": "` + url + `"}).status_code == 200`,
		"net.lookup_ip_addr":        `count(net.lookup_ip_addr("localhost")) > 0`,
		"opa.runtime":               `opa.runtime().env.HOME != ""`,
		"rand.intn":                 `rand.intn("x", 2) == 1`,
		"uuid.rfc4122":              `uuid.rfc4122("x") != ""`,
		"time.now_ns":               `time.now_ns() > 0`,
		"io.jwt.decode":             `count(io.jwt.decode(input.subject.id)) > 0`,
		"io.jwt.decode_verify":      `count(io.jwt.decode_verify(input.subject.id, {})) > 0`,
		"io.jwt.encode_sign":        `io.jwt.encode_sign({}, {}, {}) != ""`,
		"json.match_schema":         `count(json.match_schema({}, {"$ref": "` + url + `"})) > 0`,
		"json.verify_schema":        `count(json.verify_schema({"$ref": "` + url + `"})) > 0`,
		"crypto.sha256":             `crypto.sha256("x") != ""`,
		"crypto.parse_private_keys": `count(crypto.parse_private_keys("x")) > 0`,
		"providers.aws.sign_req":    `count(providers.aws.sign_req({}, {}, 1)) > 0`,
		"rego.parse_module":         `count(rego.parse_module("x", "y")) > 0`,
		"graphql.parse":             `count(graphql.parse("x", "y")) > 0`,
		"strings.render_template":   `strings.render_template("x", {}) != ""`,
		"numbers.range":             `count(numbers.range(1, 1000000000)) > 0`,
		"numbers.range_step":        `count(numbers.range_step(1, 1000000000, 1)) > 0`,
		"net.cidr_expand":           `count(net.cidr_expand("0.0.0.0/0")) > 0`,
		"bits.lsh":                  `bits.lsh(1, 1000000000) > 0`,
		"sprintf":                   `sprintf("%1000000000d", [1]) != ""`,
		"replace":                   `replace("a", "", "b") != ""`,
		"walk":                      `walk(input, [_, 1])`,
		"json.filter":               `count(json.filter(input, ["a"])) > 0`,
		"trace":                     `trace("x")`,
		"print":                     `print("x")`,
		"yaml.unmarshal":            `count(yaml.unmarshal(input.subject.id)) > 0`,
		"units.parse_bytes":         `units.parse_bytes("1GB") > 0`,
		"regex.template_match":      `regex.template_match("x", "y", "{", "}")`,
		"regex.globs_match":         `regex.globs_match("x", "y")`,
		"graph.reachable":           `count(graph.reachable({}, [])) > 0`,
		"json.patch":                `count(json.patch({}, [])) > 0`,
	} {
		t.Run("P16 "+builtin, func(t *testing.T) {
			why := rejected(t, own("decision := allowed if {\n\t"+call+"\n}"))
			name := builtin[strings.LastIndexByte(builtin, ' ')+1:]
			if !strings.Contains(why, name) || !strings.Contains(why, "access/access.rego:") {
				t.Errorf("rejected with %q, want %s and its line", why, name)
			}
		})
	}
	t.Run("P10 a huge call does not compile", func(t *testing.T) {
		if why := rejected(t, own(`decision := allowed if count(numbers.range(1, 1000000000)) > 0`)); !strings.Contains(why, "numbers.range") {
			t.Errorf("rejected with %q, want numbers.range", why)
		}
	})
	t.Run("P16 remote schema reference", func(t *testing.T) {
		remote := "# METADATA\n# schemas:\n#   - input: {\"$ref\": \"" + url + "\"}\ndecision := allowed if input.schema == 1"
		if why := rejected(t, own(remote)); !strings.Contains(why, "access/access.rego") {
			t.Errorf("rejected with %q, want the file", why)
		}
	})
	if dials.Load() != 0 {
		t.Errorf("the network trap saw %d connections, want none", dials.Load())
	}
}

// TestSchemas holds that a question cannot read what it does not have.
func TestSchemas(t *testing.T) {
	for name, access := range map[string]string{
		"fact in access":               `decision := allowed if input.resource.malware == "none"`,
		"profile in access":            `decision := allowed if input.context.profile == "strict"`,
		"field that does not exist":    `decision := allowed if input.subject.clearance == "high"`,
		"misspelt field":               `decision := allowed if input.device.trused`,
		"field of a part":              `decision := allowed if input.subject.authn.level == 1`,
		"comparison with another type": "# METADATA\n# schemas:\n#   - input: schema.access\ndecision := allowed if input.device.trusted == \"yes\"",
	} {
		t.Run(name, func(t *testing.T) {
			if why := rejected(t, own(access)); !strings.Contains(why, "input.") && !strings.Contains(why, "match error") {
				t.Errorf("rejected with %q, want the reference", why)
			}
		})
	}
}
