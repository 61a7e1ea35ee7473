package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Name  string            `yaml:"name"`
	Count int64             `yaml:"count"`
	On    bool              `yaml:"on"`
	Wait  time.Duration     `yaml:"wait"`
	List  []string          `yaml:"list"`
	Table map[string]string `yaml:"table"`
	Inner struct {
		Deep []struct {
			Key string `yaml:"key"`
		} `yaml:"deep"`
	} `yaml:"inner"`
}

func TestDecodeStrict(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty file", "", ""},
		{"only a comment", "# nothing\n", ""},
		{"everything right", "name: a\ncount: 0x10\non: true\nwait: 5m\nlist: [a, b]\ntable: {k: v}\ninner: {deep: [{key: x}]}\n", ""},
		{"null keeps the default", "name:\nwait: ~\n", ""},
		{"unknown key with a suggestion", "nmae: a\n", `f:1: nmae: unknown key; did you mean "name"?`},
		{"unknown key without one", "zzz: a\n", "f:1: zzz: unknown key; known here: name, count, on, wait, list, table, inner"},
		{"number where text is wanted", "name: 8443\n", "f:1: name: is the number 8443; want text: put it in quotes"},
		{"no is a switch in YAML 1.1 and text in 1.2", "on: no\n", `f:1: on: is "no"; want true or false`},
		{"text where a number is wanted", "count: many\n", `f:1: count: is "many"; want a whole number`},
		{"number too large", "count: 99999999999999999999\n", "want a whole number"},
		{"duration without unit", "wait: 5\n", "f:1: wait: is the number 5; want a length of time with its unit, as in 90s or 5m"},
		{"text where a list is wanted", "list: a\n", `f:1: list: is "a"; want a list, as in [a, b]`},
		{"list where a table is wanted", "inner: [a]\n", "f:1: inner: is a list; want the keys deep"},
		{"doubled key", "name: a\nname: b\n", "f:2: name: stands twice, first in line 1"},
		{"deep line", "inner:\n  deep:\n    - key: a\n    - kee: b\n", `f:4: inner.deep[1].kee: unknown key; did you mean "key"?`},
		{"True is a switch", "on: True\n", ""},
		{"two documents", "name: a\n---\nname: b\n", "f:2: a second document begins; want one"},
		{"broken second document", "name: a\n---\n[\n", "not YAML"},
		{"not text", "\xff\xfe", "f:1: not UTF-8 text"},
		{"doubled key in a table", "table: {k: a, k: b}\n", "f:1: table.k: stands twice"},
		{"alias", "name: &a x\nlist: [*a]\n", "f:2: list[0]: is an alias; write the value out"},
		{"syntax", "name: [a\n", "f:1: not YAML:"},
		{"all mistakes at once", "nmae: a\ncount: x\non: 3\n", "f:1: nmae"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s sample
			err := decodeStrict("f", []byte(tt.text), &s).err()
			if tt.want == "" {
				if err != nil {
					t.Fatalf("decodeStrict(%q) = %v, want no mistake", tt.text, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("decodeStrict(%q) = %v, want %q", tt.text, err, tt.want)
			}
		})
	}
	var s sample
	if err := decodeStrict("f", []byte(tests[len(tests)-1].text), &s).err(); strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three mistakes give %q, want three lines", err)
	}
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add("name: a\ncount: 1\n")
	f.Add("inner: {deep: [{key: x}, 3]}\nlist: [~, {a: b}]\n")
	f.Add("? [a]: b\n<<: *x\n")
	f.Fuzz(func(t *testing.T, text string) {
		var s sample
		_ = decodeStrict("f", []byte(text), &s).err() // it may refuse, never panic
	})
}

// Five mistakes of five kinds are all reported, each with its line and what would be right.
func TestConfigReportsAllMistakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "headgate.yaml")
	text := `gateway:
  url: http://go.corp.example
  listn: 127.0.0.1:8443
  drain_wait: 10
identity:
  issuers:
    - {name: corp, url: https://id.corp.example, client_id: headgate}
audit:
  segment_bytes: 12
  verify_every: 5s
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadConfig(file)
	if err == nil {
		t.Fatal("loadConfig accepted six mistakes")
	}
	for _, want := range []string{
		":2: gateway.url: ", ":3: gateway.listn: unknown key; did you mean \"listen\"?", ":4: gateway.drain_wait: ",
		":7: identity.issuers[0].audiences: ", ":9: audit.segment_bytes: ",
		":10: audit.verify_every: 5s is too short",
	} {
		if !strings.Contains(err.Error(), file+want) {
			t.Errorf("loadConfig does not report %q in:\n%v", want, err)
		}
	}
	if exitCode(err) != exitUse {
		t.Errorf("exitCode = %d, want %d", exitCode(err), exitUse)
	}
}
