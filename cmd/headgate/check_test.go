package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policy"
)

// someReport holds one version of each kind, with texts that would break a form that does not escape them.
func someReport() *checkReport {
	at := func(path, file string, line int) need {
		return need{Version: module.Version{Path: path, Version: "v1.0.0"}, file: file, line: line}
	}
	reason := policy.Reason{Code: "COOLDOWN", Rule: "young", Severity: 3, Template: "first <seen> {age} days ago & \"waits\"\x1b[2J", Params: map[string]string{"age": "2"}}
	warning := policy.Reason{Code: "DEPRECATED", Rule: "deprecated", Severity: 1, Template: "use another", Doc: "https://policy.corp.example/deprecated"}
	denied := policy.Decision{Effect: policy.Deny, Remedy: policy.RemedyWait, Reasons: []policy.Reason{reason}, Warnings: []policy.Reason{warning}}
	denied.Advice.AvailableFromDay, denied.Advice.Waiver = 20836, policy.Need{Code: "COOLDOWN", Path: "example.com/a"}
	again := policy.Decision{Effect: policy.Deny, Remedy: policy.RemedyNone, Reasons: []policy.Reason{reason}}
	warned := policy.Decision{Effect: policy.Allow, Warnings: []policy.Reason{warning}}
	needs := []need{
		at("example.com/a", "go.mod", 3), at("example.com/b", "dir with space/go.mod", 4), at("example.com/c", "/abs/go.sum", 0),
		at("example.com/d", "go.mod", 6),
		{file: "go.mod", line: 1, problem: "package x: no"},
	}
	return newCheckReport("https://go.corp.example", needs, []gateway.EvaluationAnswer{
		{Context: gateway.EvaluationReason{Decision: &denied, Revision: "4f1c2ab", WorksNow: "v0.9.0", Text: "COOLDOWN: first\nexample.com/a@v1.0.0\nworks now: v0.9.0\ndecision 7kq2m4xw\n"}},
		{Decision: true, Context: gateway.EvaluationReason{Decision: &warned, Revision: "4f1c2ab"}},
		{Decision: true, Context: gateway.EvaluationReason{Decision: &policy.Decision{Effect: policy.Allow}}},
		{Context: gateway.EvaluationReason{Decision: &again, Text: "COOLDOWN: first\n"}},
		unanswered(needs[4]),
	})
}

// A sarifShape is what the schema of SARIF 2.1.0 says of one kind of object, as far as we write it: the members that it
// must have, and all that we may write, since each definition forbids others (additionalProperties: false).
type sarifShape struct {
	required []string
	members  map[string]string // name to kind: a shape, []shape, string, uri, line, bool, index, level, version, strings
}

var sarifShapes = map[string]sarifShape{
	"log":      {[]string{"version", "runs"}, map[string]string{"$schema": "uri", "version": "version", "runs": "[]run"}},
	"run":      {[]string{"tool"}, map[string]string{"tool": "tool", "invocations": "[]invocation", "results": "[]result"}},
	"tool":     {[]string{"driver"}, map[string]string{"driver": "driver"}},
	"driver":   {[]string{"name"}, map[string]string{"name": "string", "semanticVersion": "string", "rules": "[]rule"}},
	"rule":     {[]string{"id"}, map[string]string{"id": "string", "shortDescription": "text", "helpUri": "uri"}},
	"text":     {[]string{"text"}, map[string]string{"text": "string"}},
	"result":   {[]string{"message"}, map[string]string{"ruleId": "string", "ruleIndex": "index", "level": "level", "message": "text", "locations": "[]location", "partialFingerprints": "strings"}},
	"location": {nil, map[string]string{"physicalLocation": "physical"}},
	"physical": {[]string{"artifactLocation"}, map[string]string{"artifactLocation": "artifact", "region": "region"}},
	"artifact": {[]string{"uri"}, map[string]string{"uri": "uri"}},
	"region":   {[]string{"startLine"}, map[string]string{"startLine": "line"}},
	"invocation": {
		[]string{"executionSuccessful"},
		map[string]string{"executionSuccessful": "bool", "toolExecutionNotifications": "[]notification"},
	},
	"notification": {[]string{"message"}, map[string]string{"level": "level", "message": "text", "locations": "[]location"}},
}

// sarifFaults are the places at which a value is not of its kind.
func sarifFaults(at, kind string, v any) []string {
	if item, many := strings.CutPrefix(kind, "[]"); many {
		list, ok := v.([]any)
		if !ok {
			return []string{at + " is no array"}
		}
		var faults []string
		for i, e := range list {
			faults = append(faults, sarifFaults(fmt.Sprintf("%s[%d]", at, i), item, e)...)
		}
		return faults
	}
	if shape, ok := sarifShapes[kind]; ok {
		object, ok := v.(map[string]any)
		if !ok {
			return []string{at + " is no object"}
		}
		var faults []string
		for _, name := range shape.required {
			if object[name] == nil {
				faults = append(faults, at+" has no "+name)
			}
		}
		for name, member := range object {
			if shape.members[name] == "" {
				faults = append(faults, at+" has "+name+", which the schema does not")
				continue
			}
			faults = append(faults, sarifFaults(at+"."+name, shape.members[name], member)...)
		}
		return faults
	}
	if !sarifScalar(kind, v) {
		return []string{fmt.Sprintf("%s is %v, which is no %s", at, v, kind)}
	}
	return nil
}

func sarifScalar(kind string, v any) bool {
	s, isString := v.(string)
	n, isNumber := v.(float64)
	switch kind {
	case "string":
		return isString
	case "version":
		return s == "2.1.0"
	case "level":
		return slices.Contains([]string{"none", "note", "warning", "error"}, s)
	case "uri":
		_, err := url.Parse(s)
		return isString && s != "" && err == nil && !strings.ContainsAny(s, " <>\"\\")
	case "line":
		return isNumber && n >= 1 && n == float64(int(n))
	case "index":
		return isNumber && n >= -1 && n == float64(int(n))
	case "bool":
		_, ok := v.(bool)
		return ok
	case "strings":
		object, ok := v.(map[string]any)
		for _, e := range object {
			_, text := e.(string)
			ok = ok && text
		}
		return ok
	}
	return false
}

// The report as SARIF 2.1.0: every member that its schema requires, and none that it does not have; rules stand once, and
// results point at theirs.
func TestCheckSARIF(t *testing.T) {
	var out bytes.Buffer
	if err := someReport().writeSARIF(&out); err != nil {
		t.Fatal(err)
	}
	var raw any
	if err := json.Unmarshal(out.Bytes(), &raw); err != nil {
		t.Fatal(err)
	}
	for _, fault := range sarifFaults("log", "log", raw) {
		t.Error(fault)
	}
	log := decoded[sarifLog](t, out.String())
	run := log.Runs[0]
	ids := map[string]bool{}
	for _, rule := range run.Tool.Driver.Rules {
		if ids[rule.ID] {
			t.Errorf("rule %s stands twice", rule.ID)
		}
		ids[rule.ID] = true
	}
	var got []string
	for _, r := range run.Results {
		if run.Tool.Driver.Rules[r.RuleIndex].ID != r.RuleID {
			t.Errorf("result of %s points at rule %d, %s", r.RuleID, r.RuleIndex, run.Tool.Driver.Rules[r.RuleIndex].ID)
		}
		l := r.Locations[0].Physical
		got = append(got, fmt.Sprintf("%s %s %s:%d %s", r.Level, r.RuleID, l.Artifact.URI, l.Region.Line, r.Fingerprints["headgate/v1"]))
	}
	want := []string{
		"error COOLDOWN go.mod:3 COOLDOWN example.com/a@v1.0.0", "warning DEPRECATED go.mod:3 DEPRECATED example.com/a@v1.0.0",
		"warning DEPRECATED dir%20with%20space/go.mod:4 DEPRECATED example.com/b@v1.0.0", "error COOLDOWN go.mod:6 COOLDOWN example.com/d@v1.0.0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if text := run.Results[0].Message.Text; !strings.HasSuffix(text, "; works now: v0.9.0; available from: 2027-01-18") {
		t.Errorf("the message is %q", text)
	}
	if i := run.Invocations[0]; i.Successful || len(i.Notifications) != 1 || i.Notifications[0].Message.Text != "packages: NOT-LOADED: package x: no" {
		t.Errorf("what had no answer: %+v", i)
	}
	t.Run("the checks find what is missing", func(t *testing.T) {
		for _, broken := range []string{`{"version":"2.1.0"}`, `{"version":"2.0.0","runs":[]}`, `{"version":"2.1.0","runs":[{}]}`, `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"x"}},"results":[{"level":"fatal","message":{}}]}]}`, `{"version":"2.1.0","runs":[],"extra":1}`} {
			var v any
			if err := json.Unmarshal([]byte(broken), &v); err != nil || len(sarifFaults("log", "log", v)) == 0 {
				t.Errorf("%s passes (%v)", broken, err)
			}
		}
	})
	t.Run("nothing found", func(t *testing.T) {
		out.Reset()
		if err := newCheckReport("p", nil, nil).writeSARIF(&out); err != nil || !strings.Contains(out.String(), `"results": []`) {
			t.Errorf("%v %s; an empty list says that nothing was found, none that nothing was looked for", err, &out)
		}
	})
}

// The report as JUnit, parsed back: counts agree with cases, and what is not text in XML is none.
func TestCheckJUnit(t *testing.T) {
	var out bytes.Buffer
	if err := someReport().junit().write(&out); err != nil {
		t.Fatal(err)
	}
	var got junitSuites
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if got.Tests != 5 || got.Failures != 2 || got.Errors != 1 || len(got.Suites) != 1 || len(got.Suites[0].Cases) != 5 {
		t.Fatalf("%d tests, %d failures, %d errors\n%s", got.Tests, got.Failures, got.Errors, &out)
	}
	first, second, last := got.Suites[0].Cases[0], got.Suites[0].Cases[1], got.Suites[0].Cases[4]
	if first.Failure == nil || first.Failure.Type != "COOLDOWN" || first.Failure.Message != "first <seen> 2 days ago & \"waits\"\uFFFD[2J" ||
		!strings.Contains(first.Failure.Text, "works now: v0.9.0") || first.Class != "go.mod" || first.Name != "example.com/a@v1.0.0" {
		t.Errorf("the refused one: %+v %+v", first, first.Failure)
	}
	if second.Failure != nil || second.Out != "DEPRECATED: use another\n" {
		t.Errorf("the one with a warning: %+v", second)
	}
	if last.Error == nil || last.Error.Message != "NOT-LOADED: package x: no" {
		t.Errorf("the one without an answer: %+v", last)
	}
}

// The text names a place in each line that begins something, and no escape sequence of a module reaches the terminal.
func TestCheckText(t *testing.T) {
	r := someReport()
	r.Versions[1].Warnings[0].Text = "\x1b[2Jgone"
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"go.mod:3: example.com/a@v1.0.0 is refused\n    COOLDOWN: first\n    works now: v0.9.0\n", "go.mod:1: packages: no answer: NOT-LOADED: package x: no\n",
		"5 versions: 2 refused, 1 with warnings, 1 without an answer (policy 4f1c2ab of https://go.corp.example)\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("an escape sequence is printed: %q", out.String())
	}
	if code := exitCode(r.verdict()); code != exitNo {
		t.Errorf("exit code %d, want %d: that something is refused is certain", code, exitNo)
	}
	r.Refused = 0
	if code := exitCode(r.verdict()); code != exitFailed {
		t.Errorf("exit code %d without an answer, want %d", code, exitFailed)
	}
}

// What stands twice is asked about once, at its first place, and whole if anything needs the zip.
func TestReadNeeds(t *testing.T) {
	dir := t.TempDir()
	sum := "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	for name, text := range map[string]string{
		"go.mod":   "module m\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.0.0 // indirect\n)\n\nreplace example.com/b v1.0.0 => example.com/fork v1.0.1\n",
		"go.sum":   "example.com/a v1.0.0 " + sum + "\nexample.com/a v1.0.0/go.mod " + sum + "\nexample.com/c v1.0.0/go.mod " + sum + "\n",
		"bad.sum":  "example.com/a v1.0.0\n",
		"list.txt": "example.com/c@v1.0.0\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	got, err := readNeeds(t.Context(), []string{in("go.mod"), in("go.sum"), in("list.txt")})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, n := range got {
		lines = append(lines, fmt.Sprintf("%s:%d %s %s", filepath.Base(n.file), n.line, n, n.action()))
	}
	want := []string{"go.mod:4 example.com/a@v1.0.0 zip", "go.mod:5 example.com/fork@v1.0.1 zip", "go.sum:3 example.com/c@v1.0.0 zip"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("needs (-want +got):\n%s", diff)
	}
	if _, err := readNeeds(t.Context(), []string{in("bad.sum")}); err == nil || !strings.Contains(err.Error(), "line 1: ") {
		t.Errorf("a broken go.sum: %v, want the line", err)
	}
}

// A gateway whose answer does not fit the questions is no answer: neither fewer of them, nor one without a decision.
func TestCheckAgainstAStrangeGateway(t *testing.T) {
	for name, tt := range map[string]struct{ body, says string }{
		"fewer answers":    {`{"evaluations":[]}`, "another number"},
		"no decision":      {`{"evaluations":[{"decision":true,"context":{}}]}`, "holds no decision"},
		"another document": {`<html>`, "reading the gateway's answer"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tt.body) }))
			defer server.Close()
			g := &gatewayChecker{server.URL, server.Client(), "Bearer x"}
			_, err := g.check(context.Background(), []need{{Version: module.Version{Path: "example.com/a", Version: "v1.0.0"}}}, func(int) {})
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}
