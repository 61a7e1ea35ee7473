package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func newEncoder() *encoder {
	return &encoder{secrets: newSecrets([]byte("0123456789abcdef0123456789abcdef"))}
}

func TestEncodeIsTheSameAsEncodingJSON(t *testing.T) {
	full := benchRecord()
	full.Private, full.TraceID, full.Severity, full.Count = true, "4bf92f3577b34da6a3ce929d0e0e4736", 3, 9
	full.Subject.Name = `Zoë "Z" O\Neill`
	full.Device.Serial, full.Device.SPKI, full.Device.PostureAgeS = "C02", "0011223344556677", 60
	full.Client.Forwarded, full.Client.Untrusted = "198.51.100.1", map[string]string{"X-B": "2", "X-A": "1"}
	full.Decision.Waived, full.Decision.Labels = []string{"W-1"}, map[string]string{"owner": "sec"}
	full.Decision.Remedy, full.Decision.Reason, full.Decision.Withheld = "wait", "young", 4
	full.Eval.Facts = []string{"f1"}
	full.Outcome = Outcome{Status: 200, Bytes: 5, MS: 3, Aborted: true}
	full.Change = Change{Object: "token/x", OldSHA256: "aa", NewSHA256: "bb", Note: "n"}
	full.Control = Control{What: "gap", SeqFrom: 1, SeqTo: 2, Count: 3, Bytes: 4, Sink: "s", Root: "r", ErrClass: "e"}
	for name, r := range map[string]*Record{"ordinary": benchRecord(), "every field": full, "empty": {V: 1, Kind: KindControl, EventID: "x"}} {
		t.Run(name, func(t *testing.T) {
			var want bytes.Buffer
			enc := json.NewEncoder(&want)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(r); err != nil {
				t.Fatal(err)
			}
			if got := string(newEncoder().encode(r, "")); got != strings.TrimSpace(want.String()) {
				t.Errorf("encode\n got %s\nwant %s", got, want.String())
			}
		})
	}
}

// counted returns a counter's value.
func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// logged appends a record to a log in a new folder, searches the folder and metrics for what must not be there, and
// returns the record as it stands on disk.
func logged(t *testing.T, r *Record, forbidden ...string) (raw string, redacted, sanitised float64) {
	t.Helper()
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	l, err := Open(smallConfig(dir), Options{Cluster: "test", Node: "n1", Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	redacted, sanitised = counted(t, l.metrics.redacted), counted(t, l.metrics.sanitised)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	err = Tail(t.Context(), dir, TailOptions{}, func(e Entry) error {
		if e.Seq == 1 {
			raw = string(e.Raw)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		for _, f := range forbidden {
			if bytes.Contains(content, []byte(f)) || bytes.Contains(content, []byte(base64.StdEncoding.EncodeToString([]byte(f)))) {
				t.Errorf("%s holds %q", name, f)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw, redacted, sanitised
}

func TestHostileInput(t *testing.T) {
	t.Parallel()
	for name, hostile := range map[string]string{
		"CR and LF": "a\r\nb", "escape sequence": "a\x1b[2Jb", "U+009B": "a\u009b2Jb", "U+202E": "a\u202eb", "U+200B": "a\u200bb",
		"NUL": "a\x00b", "invalid UTF-8": "a\xff\xfeb", "DEL": "a\x7fb", "line separator": "a\u2028b", "private use": "a\ue000b",
	} {
		t.Run("A37 "+name, func(t *testing.T) {
			r := benchRecord()
			r.Path, r.Client.Agent = "/"+hostile, hostile
			r.Input = json.RawMessage(`{"path":` + string(mustJSON(t, hostile)) + `}`)
			raw, _, sanitised := logged(t, r)
			for _, c := range raw {
				if hostileRune(c) {
					t.Fatalf("%q holds %U", raw, c)
				}
			}
			got, err := parseRecord([]byte(raw))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := base64.StdEncoding.DecodeString(got.PathB64); err != nil || string(b) != r.Path {
				t.Errorf("path_b64 = %q, want %q", b, r.Path)
			}
			if got.Severity != 4 || !got.Sanitised || sanitised != 1 || !strings.Contains(got.Path, `\u{`) {
				t.Errorf("severity %d, sanitised %v, counted %v, path %q", got.Severity, got.Sanitised, sanitised, got.Path)
			}
			var before, after struct{ Path string }
			if json.Unmarshal(r.Input, &before) != nil || json.Unmarshal(got.Input, &after) != nil || before != after {
				t.Errorf("input = %s, want the value of %s", got.Input, r.Input)
			}
		})
	}
	t.Run("A37 64 KiB path", func(t *testing.T) {
		r := benchRecord()
		r.Path = "/" + strings.Repeat("\u202e", 32<<10)
		r.Client.Agent = strings.Repeat("x", 64<<10)
		raw, _, _ := logged(t, r)
		got, err := parseRecord([]byte(raw))
		if err != nil || len(raw) > maxRecord || strings.Join(got.Truncated, " ") != "path path_b64 agent" {
			t.Errorf("%d bytes, truncated %v, %v", len(raw), got.Truncated, err)
		}
	})
	t.Run("A38 user info and query", func(t *testing.T) {
		r := benchRecord()
		r.Path = "https://user:hunter2@go.example/mod/@v/list?token=sesame42"
		r.Decision.Reason = "fetching https://bob:swordfish@git.example/x: refused"
		raw, _, _ := logged(t, r, "hunter2", "sesame42", "swordfish")
		if got, _ := parseRecord([]byte(raw)); got.Path != "https://go.example/mod/@v/list" {
			t.Errorf("path = %q", got.Path)
		}
	})
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLXBhcnQ"
	for name, secret := range map[string]string{
		"JWT": jwt, "headgate token": "hg_user_a1b2c3_QWERTYUIOPASDFGHJKLZXCVBNM012345", "GitHub": "ghp_0123456789abcdefghijABCDEFGHIJ012345",
		"fine-grained": "github_pat_11AAAAAAA0abcdefghijkl_mnopqrstuvw", "GitLab": "glpat-ABCDEFGHIJKLMNOPQRST",
		"AWS": "AKIAIOSFODNN7EXAMPLE", "Vault": "hvs.CAESIJabcdefghijklmnopqrstu", "Slack": "xoxb-1234567890-abcdefghij",
	} {
		t.Run("A39 "+name+" as module path and elsewhere", func(t *testing.T) {
			r := benchRecord()
			escaped := escapeUpper(secret)
			r.Module, r.Path, r.Client.Agent = secret, "/"+escaped+"/@v/list", "curl "+secret
			r.Decision.Reason, r.Input = "no "+secret, json.RawMessage(`{"path":"`+secret+`"}`)
			raw, redacted, _ := logged(t, r, secret, escaped)
			if redacted != 5 {
				t.Errorf("redacted_total = %v, want 5: %s", redacted, raw)
			}
			got, err := parseRecord([]byte(raw))
			if err != nil || !strings.Contains(got.Module, "[redacted ") || !strings.Contains(got.Path, "[redacted ") {
				t.Errorf("module %q, path %q, %v", got.Module, got.Path, err)
			}
		})
	}
	t.Run("A39 a secret in a path that needs base64", func(t *testing.T) {
		r := benchRecord()
		r.Path = "/\x1b/" + jwt
		raw, _, _ := logged(t, r, jwt)
		got, _ := parseRecord([]byte(raw))
		if b, _ := base64.StdEncoding.DecodeString(got.PathB64); bytes.Contains(b, []byte("eyJhbGci")) || len(b) == 0 {
			t.Errorf("path_b64 holds %q", b)
		}
	})
	t.Run("ordinary text is left alone", func(t *testing.T) {
		r := benchRecord()
		r.EventID = "AKIAABCDEFGHIJKLMNOPQRSTUV"
		r.Module, r.Path = "github.com/hg_tools/ghp", "/github.com/hg_tools/ghp/@v/v1.0.0.zip"
		if raw, redacted, sanitised := logged(t, r); redacted != 0 || sanitised != 0 || !strings.Contains(raw, r.EventID) {
			t.Errorf("redacted %v, sanitised %v: %s", redacted, sanitised, raw)
		}
	})
}

// hostileRune is written apart from the code under test.
func hostileRune(c rune) bool {
	return c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0x202e || c == 0x200b || c == 0x2028 || c >= 0xe000 && c < 0xf900 || c == utf8.RuneError
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func escapeUpper(s string) string {
	var b strings.Builder
	for _, c := range s {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('!')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

func TestHugeRecordFits(t *testing.T) {
	long := strings.Repeat("long ", 400)
	many := make([]string, 100)
	for i := range many {
		many[i] = long
	}
	r := benchRecord()
	r.Subject.Groups, r.Decision.Codes, r.Decision.Waived, r.Eval.Facts = many, many, many, many
	r.Module, r.Version, r.Change.Note = long, long, long
	r.Input = json.RawMessage(`"` + strings.Repeat("i", 8000) + `"`)
	raw := newEncoder().encode(r, "n1")
	if len(raw) > maxRecord {
		t.Errorf("%d bytes", len(raw))
	}
	if got, err := parseRecord(raw); err != nil || len(got.Truncated) == 0 {
		t.Errorf("parseRecord = %v", err)
	}
}

func TestEscapeTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "Zoë": "Zoë", "a\x1b[2J": `a\u{1b}[2J`, "\u202e": `\u{202e}`, "\xff": `\u{ff}`, "a\nb": `a\u{a}b`,
	} {
		if got := EscapeTerminal(in); got != want {
			t.Errorf("EscapeTerminal(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestEncodeDoesNotAllocate(t *testing.T) {
	e, r := newEncoder(), benchRecord()
	e.encode(r, "n1")
	if n := testing.AllocsPerRun(100, func() { e.encode(r, "n1") }); n > 2 {
		t.Errorf("%v allocations a record, want at most 2", n)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("/example.com/@v/list", "curl", []byte(`{"a":"\u202e"}`), int64(5))
	f.Add("/\x1b[2J!a\xff?x#y", "u:p@h://a:b@c", []byte("{\"a\":\"\u202e\\\\\"}"), int64(-1))
	f.Add("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", "AKIAIOSFODNN7EXAMPLE", []byte(" [1, \"\\\"\"]\n"), int64(0))
	f.Fuzz(func(t *testing.T, path, agent string, input []byte, n int64) {
		r := &Record{V: 1, Kind: KindDecision, EventID: agent, T: n, Path: path, Module: path, Input: input}
		r.Client, r.Decision.Labels = Client{Agent: agent}, map[string]string{path: agent}
		raw := bytes.Clone(newEncoder().encode(r, path))
		for _, c := range string(raw) {
			if hostileRune(c) && !(c == utf8.RuneError && bytes.Contains(raw, []byte("\ufffd"))) {
				t.Fatalf("%q holds %U", raw, c)
			}
		}
		got, err := parseRecord(raw)
		if err != nil {
			t.Fatalf("parseRecord(%s): %v", raw, err)
		}
		if json.Valid(input) && len(got.Input) > 0 && !bytes.Contains(got.Input, []byte("[redacted ")) {
			var a, b any
			if json.Unmarshal(input, &a) == nil && (json.Unmarshal(got.Input, &b) != nil || !bytes.Equal(mustJSON(t, a), mustJSON(t, b))) {
				t.Errorf("input %q became %q", input, got.Input)
			}
		}
		path64, sanitised, cut := got.PathB64, got.Sanitised, got.Truncated
		got.PathB64, got.Sanitised, got.Truncated = "", false, nil
		if len(cut) > 0 || bytes.Contains(raw, []byte("[redacted ")) {
			return
		}
		if again := newEncoder().encode(got, ""); path64 == "" && !sanitised && !bytes.Equal(again, raw) {
			t.Errorf("round trip\n got %s\nwant %s", again, raw)
		}
	})
}

func FuzzFrame(f *testing.F) {
	good := appendFrame(nil, KindDecision, newEncoder().encode(benchRecord(), "n1"))
	stampFrame(good, true, 5, 6, [32]byte{1})
	f.Add(good)
	f.Add(good[:40])
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, n, err := parseFrame(b)
		if err != nil {
			return
		}
		again := appendFrame(nil, "", fr.record())
		again[8] = fr.mark &^ markBatch
		leaf, rest := stampFrame(again, fr.mark&markBatch != 0, fr.seq, fr.time, fr.prev())
		var scratch bytes.Buffer
		if !bytes.Equal(again, b[:n]) || len(rest) > 0 || leaf != fr.leaf(&scratch) {
			t.Errorf("round trip of %x gave %x", b[:n], again)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	f.Add(checkpoint{origin: "audit.a/b/0", size: 7}.String())
	f.Add("audit.a/b/0\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\ntime 5\nextension\n")
	f.Add("a\n-1\n\ntime 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCheckpoint(text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(text, c.String()) {
			t.Errorf("round trip of %q gave %q", text, c.String())
		}
	})
}
