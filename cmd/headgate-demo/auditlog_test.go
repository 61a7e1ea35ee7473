package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFlipBit(t *testing.T) {
	dir := t.TempDir()
	segments := filepath.Join(dir, "epoch", "0", "segment")
	if err := os.MkdirAll(segments, 0o700); err != nil {
		t.Fatal(err)
	}
	before := []byte("head{\"a\":1}middle{\"b\":2}tail\x00\x00")
	name := filepath.Join(segments, "00000000000000000000.log")
	for file, text := range map[string][]byte{name: before, filepath.Join(dir, "note.txt"): before} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file, offset, err := flipBit(dir, []byte(`{"b":2}`), 5)
	if err != nil || file != name || offset != 22 {
		t.Fatalf("flipBit = %s, %d, %v, want %s, 22", file, offset, err, name)
	}
	after, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Replace(before, []byte(`{"b":2}`), []byte(`{"b":3}`), 1)
	if !bytes.Equal(after, want) {
		t.Errorf("the segment is %q, want %q", after, want)
	}
	if _, _, err := flipBit(dir, []byte(`{"b":2}`), 0); err == nil {
		t.Error("flipBit of a record that is not there gave no error")
	}
}

func TestParseLog(t *testing.T) {
	const text = "     7 2026-01-01T00:00:00.000Z abcdefgh decision zip example.com/m@v1.0.0 allow\n" +
		"     8 2026-01-01T00:00:01.000Z ijklmnop decision info example.com/m deny X\n"
	const raw = `{"kind":"decision","event_id":"ABCDEFGHIJ","action":"zip","module":"example.com/m","version":"v1.0.0","subject":{"id":"ann"},"decision":{"effect":"allow","status":200}}
{"kind":"decision","event_id":"IJKLMNOPQR","action":"info","module":"example.com/m","subject":{"id":"ben"},"decision":{"effect":"deny","codes":["X"],"status":403}}
{"kind":"control","event_id":"LATER"}
`
	l, err := parseLog(text, raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.decision("ijklmnop"); got == nil || got.seq != 8 || got.Subject.ID != "ben" || got.Decision.Codes[0] != "X" {
		t.Errorf("decision = %+v, want record 8 of ben", got)
	}
	if got := l.served("ann"); got["example.com/m@v1.0.0"] != 1 {
		t.Errorf("served = %v", got)
	}
	for name, bad := range map[string][2]string{
		"fewer records than lines": {text, strings.SplitAfter(raw, "\n")[0]},
		"no number":                {"x y\n", raw},
		"no JSON":                  {text, "{\n{\n{\n"},
	} {
		if _, err := parseLog(bad[0], bad[1]); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
