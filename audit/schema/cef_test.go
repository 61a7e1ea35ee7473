package schema_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/headgate/headgate/audit/schema"
)

// cefKey is where a pair of the extension begins: a space, a key, and a = that no \ escapes. Values may hold spaces.
var cefKey = regexp.MustCompile(`(?:^| )([A-Za-z0-9_]+)=`)

// readCEF reads a line as receivers do (ArcSight Common Event Format, implementation standard version 25).
func readCEF(line string) (header []string, extension map[string]string, err error) {
	rest, ok := strings.CutPrefix(line, "CEF:0|")
	if !ok {
		return nil, nil, fmt.Errorf("no CEF:0 at the beginning")
	}
	for len(header) < 6 {
		field, after, err := cefHeader(rest)
		if err != nil {
			return nil, nil, fmt.Errorf("header field %d: %w", len(header)+1, err)
		}
		header, rest = append(header, field), after
	}
	extension = map[string]string{}
	begins := cefKey.FindAllStringSubmatchIndex(rest, -1)
	if len(begins) == 0 || begins[0][0] != 0 {
		return nil, nil, fmt.Errorf("the extension begins with no key: %q", rest)
	}
	for i, b := range begins {
		end := len(rest)
		if i+1 < len(begins) {
			end = begins[i+1][0]
		}
		key := rest[b[2]:b[3]]
		value, err := cefValue(rest[b[1]:end])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", key, err)
		}
		if _, twice := extension[key]; twice {
			return nil, nil, fmt.Errorf("%s stands there twice", key)
		}
		extension[key] = value
	}
	return header, extension, nil
}

// cefHeader reads up to the next | that no \ escapes.
func cefHeader(s string) (field, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '|':
			return b.String(), s[i+1:], nil
		case s[i] == '\\':
			if i++; i == len(s) || s[i] != '|' && s[i] != '\\' {
				return "", "", fmt.Errorf("a \\ before neither | nor \\ in %q", s)
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", fmt.Errorf("it has no end: %q", s)
}

func cefValue(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '=', '\n', '\r':
			return "", fmt.Errorf("a bare %q in %q", c, s)
		case '\\':
			if i++; i == len(s) {
				return "", fmt.Errorf("a \\ at the end of %q", s)
			}
			plain, ok := map[byte]byte{'\\': '\\', '=': '=', 'n': '\n', 'r': '\r'}[s[i]]
			if !ok {
				return "", fmt.Errorf("\\%c in %q", s[i], s)
			}
			b.WriteByte(plain)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

func TestCEF(t *testing.T) {
	for name, record := range records {
		t.Run(name, func(t *testing.T) { checkCEF(t, encode(t, schema.CEF, record)) })
	}
}

// checkCEF holds a line against the limits of the format and returns what it says.
func checkCEF(t *testing.T, line []byte) (header []string, extension map[string]string) {
	t.Helper()
	header, extension, err := readCEF(string(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if !slices.Equal(header[:3], []string{"Headgate", "Headgate", "1.2.3"}) || header[3] == "" || header[4] == "" {
		t.Errorf("header %q", header)
	}
	if !slices.Contains([]string{"1", "3", "5", "8", "10"}, header[5]) {
		t.Errorf("severity %q", header[5])
	}
	for key, value := range extension {
		most := map[string]int{"act": 63, "outcome": 63, "app": 31, "externalId": 40}[key]
		if most == 0 {
			most = 1023
		}
		if value == "" || len(value) > most {
			t.Errorf("%s has %d bytes; want 1 to %d", key, len(value), most)
		}
		if regexp.MustCompile(`^(cs|cn|flexString|flexNumber)\d$`).MatchString(key) && extension[key+"Label"] == "" {
			t.Errorf("%s has no label", key)
		}
	}
	return header, extension
}

func TestCEFValues(t *testing.T) {
	for _, tt := range []struct {
		record, header string // of which signature id, name and severity
		want           map[string]string
		lacks          string
	}{
		{"allowed zip", "OK|decision allow|1", map[string]string{
			"rt": "1770000000123", "externalId": eventID, "cat": "decision", "act": "zip", "outcome": "allow", "dvchost": "gw-1",
			"src": "192.0.2.7", "spt": "51234", "suid": "u-17", "suser": "Ann", "requestClientApplication": "Go-http-client/1.1",
			"cs4": "laptop-9", "cs4Label": "clientDevice", "cs5": "0011:aabb", "cs5Label": "tokenFp", "app": "https", "requestMethod": "GET",
			"request": "/example.com/!some/mod/@v/v1.2.3+incompatible.zip", "cs1": "example.com/Some/mod", "cs2": "v1.2.3+incompatible",
			"cs3": "4f2c9d1", "cn2": "41", "flexString2": place.Origin, "cs6": "OK", "cn3": "200", "out": "12345", "flexString1": "disk",
		}, "deviceExternalId"},
		{"refused at access", "NOT-ALLOWED|decision deny|5", map[string]string{"reason": `no team | may = that\ path`, "cs6": "NOT-ALLOWED,SCOPE", "src": "fe80::1", "outcome": "deny"}, "suser"},
		{"hostile path", "PATH|decision error|8", map[string]string{"request": `\u{1b}[2J=|\`, "requestClientApplication": `a=b|c\d`}, "src"},
		{"outcome", "zip|outcome zip|1", map[string]string{"cn1": "876", "cn1Label": "durationMs", "out": "1000", "cn3": "200", "reason": "aborted"}, "outcome"},
		{"zip and outcome", "OK|decision allow|1", map[string]string{
			"outcome": "allow", "cn1": "876", "out": "1000", "cn3": "206", "cn2": "41", "flexNumber1": "44", "flexNumber1Label": "outcomeSequence",
		}, "reason"},
		{"aborted zip", "OK|decision allow|1", map[string]string{"outcome": "allow", "cn1": "876", "out": "1000", "cn3": "200", "reason": "aborted"}, "msg"},
		{"token created", "token.create|admin token.create|1", map[string]string{"msg": "token a1b2 of ann module:example.com/*\nread"}, "cs1"},
		{"TLS refusals", "tls.device|auth tls.device|5", map[string]string{"cnt": "17"}, "suid"},
		{"dead letter", "dead_letter|control dead_letter|5", map[string]string{"msg": `{"what":"dead_letter","seq_from":5,"seq_to":7,"count":3,"sink":"soc","err_class":"rejected"}`}, "app"},
	} {
		t.Run(tt.record, func(t *testing.T) {
			header, extension := checkCEF(t, encode(t, schema.CEF, records[tt.record]))
			if got := strings.Join(header[3:], "|"); got != tt.header {
				t.Errorf("header %q, want %q", got, tt.header)
			}
			for _, key := range slices.Sorted(maps.Keys(tt.want)) {
				if extension[key] != tt.want[key] {
					t.Errorf("%s is %q, want %q", key, extension[key], tt.want[key])
				}
			}
			if v, has := extension[tt.lacks]; has {
				t.Errorf("%s is %q, want none", tt.lacks, v)
			}
		})
	}
}

// Whatever texts a record holds, the line is one line, and each value is read back as it was, or as its beginning.
func FuzzCEF(f *testing.F) {
	for _, s := range []string{"", "a=b", `\`, `\\=`, "|", "x cs1=y", "line\nline\r", "é" + strings.Repeat("ü", 600), strings.Repeat("\\", 1023), "a cs1Label=module suid=root"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || len(s) > 4096 {
			return
		}
		header, extension := checkCEF(t, encode(t, schema.CEF, hostile(t, s)))
		for key, whole := range map[string]string{"cs1": s, "cs3": s, "suid": s, "request": s, "reason": s, "requestClientApplication": s, "msg": ""} {
			if got := extension[key]; got != whole && (len(got) < 1020 || !strings.HasPrefix(whole, got) || !utf8.ValidString(got)) {
				t.Errorf("%s is %q, want %q", key, got, whole)
			}
		}
		if want := strings.NewReplacer("\n", " ", "\r", " ").Replace(s); s != "" && header[3] != want {
			t.Errorf("signature id %q, want %q", header[3], want)
		}
		if extension["cs1Label"] != "module" && s != "" {
			t.Errorf("the label of cs1 is %q", extension["cs1Label"])
		}
	})
}
