package policy_test

import (
	"strings"
	"testing"
	"unicode"

	"github.com/headgate/headgate/policy"
)

// FuzzText holds the limits of the go command for whatever a bundle or a caller puts into a refusal.
func FuzzText(f *testing.F) {
	f.Add("COOLDOWN", "first seen {age} days ago", "age", "2", "example.com/m@v1.0.0", "7kq2m4xw", "4f1c2ab", "https://go.corp.example/ask", "v1.0.0", 20838, uint8(1))
	f.Add("X", "a\n\nb\u202ec\x00\x1b[2J\u200b", "", "{}", "\n", "\r\n", "\u2028", "\t", "", -1, uint8(0))
	f.Add("X", strings.Repeat("{a}", 90), "a", strings.Repeat("x", 500), strings.Repeat("p/", 500), strings.Repeat("i", 900), "r", "u", "w", 1<<40, uint8(2))
	f.Fuzz(func(t *testing.T, code, template, key, value, target, id, revision, ask, works string, day int, remedy uint8) {
		r := policy.Reason{Code: code, Template: template, Params: map[string]string{key: value}}
		d := policy.Decision{
			Effect: policy.Deny, Remedy: []policy.Remedy{"none", "wait", "waiver"}[remedy%3], Codes: []string{code},
			Reasons: []policy.Reason{r, r, r, r}, Advice: policy.Advice{AvailableFromDay: day, MissingFacts: []string{key}},
		}
		text := d.Text(policy.TextOptions{Target: target, ID: id, Revision: revision, AskURL: ask, WorksNow: works})
		if len(text) == 0 || len(text) > 648 || !strings.HasSuffix(text, "\n") {
			t.Fatalf("Text() has %d bytes: %q", len(text), text)
		}
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(lines) > 8 {
			t.Fatalf("Text() has %d lines: %q", len(lines), text)
		}
		for _, line := range lines {
			if line == "" || len(line) > 75 {
				t.Fatalf("Text() has the line %q", line)
			}
			for _, r := range line {
				if r > unicode.MaxASCII || !unicode.IsPrint(r) {
					t.Fatalf("Text() has the rune %U in %q", r, line)
				}
			}
		}
		if !strings.HasPrefix(lines[len(lines)-1], "decision") {
			t.Fatalf("Text() ends in %q, want the decision", lines[len(lines)-1])
		}
	})
}

func TestText(t *testing.T) {
	reasons := []policy.Reason{{Code: "A", Template: "one"}, {Code: "B", Template: "two {x}", Params: map[string]string{"x": "y"}}}
	o := policy.TextOptions{Target: "example.com/m@v1.0.0", ID: "abcd1234", Revision: "4f1c2ab", AskURL: "https://x/ask/"}
	for name, tt := range map[string]struct {
		d    policy.Decision
		want string
	}{
		"allow has none":         {policy.Decision{Effect: policy.Allow}, ""},
		"none has no way out":    {policy.Decision{Effect: policy.Deny, Remedy: "none", Reasons: reasons, Advice: policy.Advice{AvailableFromDay: 9}}, "A: one\nB: two y\nexample.com/m@v1.0.0\ndecision abcd1234, policy 4f1c2ab\n"},
		"waiver says how to ask": {policy.Decision{Effect: policy.Deny, Remedy: "waiver", Reasons: reasons[:1]}, "A: one\nexample.com/m@v1.0.0\nask: https://x/ask/abcd1234\ndecision abcd1234, policy 4f1c2ab\n"},
		"waiver says what it has to be": {policy.Decision{
			Effect: policy.Deny, Remedy: "waiver", Reasons: append(reasons, reasons[0]),
			Advice: policy.Advice{Contact: "appsec", Waiver: policy.Need{Code: "A", Path: "example.com/m"}},
		}, "A: one\nB: two y\nA: one\nexample.com/m@v1.0.0\nask appsec: waiver of A, B, path example.com/m\ndecision abcd1234, policy 4f1c2ab\n"},
		"wait names the missing fact": {policy.Decision{Effect: policy.Deny, Remedy: "wait", Reasons: reasons[:1], Advice: policy.Advice{MissingFacts: []string{"age"}}}, "A: one\nexample.com/m@v1.0.0\nwaits for: age\nask: https://x/ask/abcd1234\ndecision abcd1234, policy 4f1c2ab\n"},
		"no decision is no allow":     {policy.Decision{}, "DENIED: not allowed\nexample.com/m@v1.0.0\nask: https://x/ask/abcd1234\ndecision abcd1234, policy 4f1c2ab\n"},
	} {
		t.Run(name, func(t *testing.T) {
			o := o
			if tt.d.Advice.Waiver.Code != "" {
				o.AskURL = ""
			}
			if got := tt.d.Text(o); got != tt.want {
				t.Errorf("Text() =\n%swant\n%s", got, tt.want)
			}
		})
	}
}
