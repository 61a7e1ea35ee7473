package audit

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a record, in bytes of what is written.
const (
	maxRecord  = 16 << 10 // the whole record
	maxInput   = 8 << 10  // the policy input
	maxField   = 1 << 10  // any string, unless said otherwise
	maxReason  = 512
	maxAgent   = 256
	maxItem    = 256 // one string of a list or map
	maxItems   = 32  // strings in a list or map
	tightItem  = 64  // any string, when the record would not fit otherwise
	tightItems = 8   // strings in a list or map then
)

// An encoder writes records as JSON in fixed field order. It is not safe for use by several goroutines.
type encoder struct {
	secrets   *secrets
	buf       []byte
	first     bool // no field written yet in the object under way
	limit     int  // bound on each string: maxField, or tightItem in a second try
	sanitised bool
	truncated []string
	redacted  int
}

// encode returns r as one line of JSON, sanitised, cut to its limits and free of known secrets.
// The result is valid until the next call.
func (e *encoder) encode(r *Record, node string) []byte {
	e.redacted = 0
	e.record(r, node, maxField)
	if len(e.buf) > maxRecord {
		e.record(r, node, tightItem)
	}
	return e.buf
}

// record writes r with each string bounded by limit, and redacts.
func (e *encoder) record(r *Record, node string, limit int) {
	e.buf, e.limit, e.sanitised, e.truncated = e.buf[:0], limit, false, e.truncated[:0]
	e.first = true
	e.buf = append(e.buf, '{')
	e.head(r, node)
	severity := e.target(r)
	e.principal(r)
	e.answer(r)
	e.control(&r.Control)
	e.str("trace_id", r.TraceID, 64)
	e.num("severity", int64(max(severity, r.Severity)))
	e.num("count", r.Count)
	e.flag("sanitised", e.sanitised || r.Sanitised)
	e.list("truncated", e.truncated)
	e.buf = append(e.buf, '}')
	e.redacted += e.redact()
}

func (e *encoder) head(r *Record, node string) {
	if r.Node != "" {
		node = r.Node
	}
	e.num("v", 1)
	e.key("kind")
	e.quote(string(r.Kind), tightItem)
	e.key("event_id")
	e.quote(r.EventID, tightItem)
	e.num("t", r.T)
	e.num("mono_ms", r.MonoMS)
	e.str("node", node, maxItem)
	e.str("policy_rev", r.PolicyRev, maxItem)
	e.str("bundle_sha256", r.BundleSHA256, maxItem)
	e.str("action", r.Action, tightItem)
}

// target writes what was asked for, and returns 4 if the path had to be sanitised: no honest client sends such a path.
func (e *encoder) target(r *Record) (severity int) {
	e.str("method", r.Method, tightItem)
	path, cut := e.cleanPath(r.Path)
	before := e.sanitised
	e.sanitised = false
	e.str("path", path, maxField)
	if cut {
		e.cutField("path")
	}
	if e.sanitised {
		severity = 4
		raw := path
		if most := min(e.limit, maxField) * 3 / 4; len(raw) > most {
			raw = raw[:most]
			e.cutField("path_b64")
		}
		e.key("path_b64")
		e.buf = append(e.buf, '"')
		e.buf = base64.StdEncoding.AppendEncode(e.buf, []byte(raw))
		e.buf = append(e.buf, '"')
	}
	e.sanitised = e.sanitised || before
	e.str("module", r.Module, maxField)
	e.str("version", r.Version, maxField)
	e.flag("private", r.Private)
	return severity
}

// cleanPath cuts the query and any user info, and takes out secrets that the escaping of upper-case letters
// ("!a" for "A") or base64 in path_b64 would hide from the last scan.
func (e *encoder) cleanPath(path string) (clean string, cut bool) {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path, cut = path[:i], true
	}
	if strings.Contains(path, "@") && strings.Contains(path, ":") {
		elems := strings.Split(path, "/")
		for i, elem := range elems {
			if at := strings.LastIndexByte(elem, '@'); at > 0 && strings.Contains(elem[:at], ":") {
				elems[i], cut = elem[at+1:], true
			}
		}
		path = strings.Join(elems, "/")
	}
	for i := range len(path) {
		if path[i] == '!' || !plain(path[i]) {
			redacted, n := e.secrets.redact(unescapePath(path))
			if n > 0 {
				e.redacted += n
				path = string(redacted)
			}
			break
		}
	}
	return path, cut
}

// unescapePath turns "!x" into "X", wherever it stands; the result is only searched for secrets.
func unescapePath(s string) []byte {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '!' && i+1 < len(s) && 'a' <= s[i+1] && s[i+1] <= 'z' {
			i++
			b = append(b, s[i]-'a'+'A')
			continue
		}
		b = append(b, s[i])
	}
	return b
}

func (e *encoder) principal(r *Record) {
	if e.open("subject") {
		s := &r.Subject
		e.str("id", s.ID, maxField)
		e.str("kind", s.Kind, tightItem)
		e.str("issuer", s.Issuer, maxField)
		e.str("name", s.Name, maxItem)
		e.list("groups", s.Groups)
		e.close("subject")
	}
	if e.open("credential") {
		c := &r.Credential
		e.str("class", c.Class, tightItem)
		e.str("id", c.ID, maxItem)
		e.str("fp", c.FP, maxItem)
		e.str("via", c.Via, tightItem)
		e.close("credential")
	}
	if e.open("device") {
		d := &r.Device
		e.str("id", d.ID, maxItem)
		e.str("state", d.State, tightItem)
		e.num("tier", int64(d.Tier))
		e.str("serial", d.Serial, maxItem)
		e.str("spki", d.SPKI, tightItem)
		e.num("posture_age_s", d.PostureAgeS)
		e.str("via", d.Via, tightItem)
		e.close("device")
	}
	if e.open("client") {
		c := &r.Client
		e.str("ip", c.IP, tightItem)
		e.num("port", int64(c.Port))
		e.str("forwarded", c.Forwarded, maxItem)
		e.dict("untrusted", c.Untrusted)
		e.str("agent", c.Agent, maxAgent)
		e.close("client")
	}
}

func (e *encoder) answer(r *Record) {
	if e.open("decision") {
		d := &r.Decision
		e.str("effect", d.Effect, tightItem)
		e.str("remedy", d.Remedy, tightItem)
		e.str("stage", d.Stage, tightItem)
		e.list("codes", d.Codes)
		e.str("reason", d.Reason, maxReason)
		e.list("waived", d.Waived)
		e.dict("labels", d.Labels)
		e.num("withheld", int64(d.Withheld))
		e.num("status", int64(d.Status))
		e.close("decision")
	}
	if e.open("eval") {
		v := &r.Eval
		e.list("entry", v.Entry)
		e.list("effects", v.Effects)
		e.flag("cached", v.Cached)
		e.num("ns", v.NS)
		e.str("key_hash", v.KeyHash, maxItem)
		e.list("facts", v.Facts)
		e.str("asker", v.Asker, maxItem)
		e.str("resource", v.Resource, maxItem)
		e.str("visibility", v.Visibility, tightItem)
		e.close("eval")
	}
	e.input(r.Input, r.InputKnown)
	if e.open("file") {
		f := &r.File
		e.str("h1", f.H1, maxItem)
		e.str("sha256", f.SHA256, maxItem)
		e.num("size", f.Size)
		e.str("cache", f.Cache, tightItem)
		e.close("file")
	}
	if e.open("outcome") {
		o := &r.Outcome
		e.num("status", int64(o.Status))
		e.num("bytes", o.Bytes)
		e.num("ms", o.MS)
		e.flag("aborted", o.Aborted)
		e.close("outcome")
	}
	if e.open("change") {
		c := &r.Change
		e.str("object", c.Object, maxField)
		e.str("old_sha256", c.OldSHA256, maxItem)
		e.str("new_sha256", c.NewSHA256, maxItem)
		e.str("note", c.Note, maxField)
		e.close("change")
	}
}

func (e *encoder) control(c *Control) {
	if e.open("control") {
		e.str("what", c.What, tightItem)
		e.str("id", c.ID, maxItem)
		e.num("seq_from", c.SeqFrom)
		e.num("seq_to", c.SeqTo)
		e.num("count", c.Count)
		e.num("bytes", c.Bytes)
		e.str("sink", c.Sink, maxItem)
		e.str("root", c.Root, maxItem)
		e.str("err_class", c.ErrClass, maxItem)
		e.close("control")
	}
}

// open begins an object; close takes it back if nothing was written into it. It always returns true: the callers'
// if blocks show the nesting.
func (e *encoder) open(name string) bool {
	e.key(name)
	e.buf = append(e.buf, '{')
	e.first = true
	return true
}

func (e *encoder) close(name string) {
	if !e.first {
		e.buf = append(e.buf, '}')
		return
	}
	e.buf = e.buf[:len(e.buf)-len(name)-len(`,"":{`)]
	e.first = false // kind and event_id always stand before the first object
}

func (e *encoder) key(name string) {
	if !e.first {
		e.buf = append(e.buf, ',')
	}
	e.first = false
	e.buf = append(e.buf, '"')
	e.buf = append(e.buf, name...)
	e.buf = append(e.buf, '"', ':')
}

func (e *encoder) num(name string, n int64) {
	if n == 0 && name != "t" {
		return
	}
	e.key(name)
	e.buf = strconv.AppendInt(e.buf, n, 10)
}

func (e *encoder) flag(name string, set bool) {
	if !set {
		return
	}
	e.key(name)
	e.buf = append(e.buf, "true"...)
}

func (e *encoder) str(name, s string, most int) {
	if s == "" {
		return
	}
	e.key(name)
	if !e.quote(s, min(most, e.limit)) {
		e.cutField(name)
	}
}

func (e *encoder) list(name string, items []string) {
	if len(items) == 0 {
		return
	}
	whole := len(items) <= e.items()
	e.key(name)
	e.buf = append(e.buf, '[')
	for i, item := range items[:min(len(items), e.items())] {
		if i > 0 {
			e.buf = append(e.buf, ',')
		}
		whole = e.quote(item, min(maxItem, e.limit)) && whole
	}
	e.buf = append(e.buf, ']')
	if !whole {
		e.cutField(name)
	}
}

func (e *encoder) dict(name string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	keys := slices.Sorted(maps.Keys(m))
	whole := len(keys) <= e.items()
	e.key(name)
	e.buf = append(e.buf, '{')
	for i, k := range keys[:min(len(keys), e.items())] {
		if i > 0 {
			e.buf = append(e.buf, ',')
		}
		whole = e.quote(k, tightItem) && whole
		e.buf = append(e.buf, ':')
		whole = e.quote(m[k], min(maxItem, e.limit)) && whole
	}
	e.buf = append(e.buf, '}')
	if !whole {
		e.cutField(name)
	}
}

// items returns how many strings of a list are kept.
func (e *encoder) items() int {
	if e.limit < maxField {
		return tightItems
	}
	return maxItems
}

func (e *encoder) cutField(name string) {
	if !slices.Contains(e.truncated, name) {
		e.truncated = append(e.truncated, name)
	}
}

// plain reports whether a byte stands for itself in a JSON string and on a terminal.
func plain(c byte) bool { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\' }

// quote appends s as a JSON string of at most most bytes and reports whether all of it fitted.
func (e *encoder) quote(s string, most int) bool {
	e.buf = append(e.buf, '"')
	n := 0
	for n < len(s) && n < most && plain(s[n]) {
		n++
	}
	e.buf = append(e.buf, s[:n]...)
	whole := n == len(s)
	if !whole && n < most {
		whole = e.quoteSlow(s[n:], len(e.buf)+most-n)
	}
	e.buf = append(e.buf, '"')
	return whole
}

// quoteSlow appends s rune by rune until the buffer would be longer than end.
func (e *encoder) quoteSlow(s string, end int) bool {
	for i := 0; i < len(s); {
		mark := len(e.buf)
		r, n := utf8.DecodeRuneInString(s[i:])
		invalid := r == utf8.RuneError && n == 1
		switch {
		case r == '"' || r == '\\':
			e.buf = append(e.buf, '\\', byte(r))
		case invalid || hostile(r):
			if invalid {
				r = rune(s[i])
			}
			e.buf = append(e.buf, `\\u{`...)
			e.buf = strconv.AppendInt(e.buf, int64(r), 16)
			e.buf = append(e.buf, '}')
			e.sanitised = true
		default:
			e.buf = append(e.buf, s[i:i+n]...)
		}
		if len(e.buf) > end {
			e.buf = e.buf[:mark]
			return false
		}
		i += n
	}
	return true
}

// input appends the policy input. Hostile runes become JSON escapes, so that the value, and with it the replay of
// the decision, stays exact.
func (e *encoder) input(raw json.RawMessage, known bool) {
	if len(raw) == 0 {
		return
	}
	plain := known && plainObject(raw)
	if len(raw) > maxInput || e.limit < maxField || !plain && !json.Valid(raw) {
		e.cutField("input")
		return
	}
	mark, first := len(e.buf), e.first
	e.key("input")
	if plain {
		e.buf = append(e.buf, raw...)
		return
	}
	inString, escaped := false, false
	for i := 0; i < len(raw); {
		c := raw[i]
		switch {
		case c > 0x20 && c < 0x7f || c == ' ' && inString:
			if inString && c == '"' && !escaped || !inString && c == '"' {
				inString = !inString
			}
			escaped = inString && c == '\\' && !escaped
			e.buf = append(e.buf, c)
			i++
		case c <= 0x20: // white space between values
			i++
		default:
			r, n := utf8.DecodeRune(raw[i:])
			escaped = false
			if hostile(r) || r == utf8.RuneError {
				e.buf = appendEscape(e.buf, r)
			} else {
				e.buf = append(e.buf, raw[i:i+n]...)
			}
			i += n
		}
	}
	if len(e.buf)-mark > maxInput+len(`,"input":`) {
		e.buf, e.first = e.buf[:mark], first
		e.cutField("input")
	}
}

// plainObject reports whether b can stand in a record as it is: printable ASCII, one object, with every string and
// bracket closed. It is no check of JSON's whole grammar, which costs ten times as much; it holds for input that an encoder
// of JSON wrote.
func plainObject(b []byte) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return false
	}
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c < 0x20 || c >= 0x7f:
			return false
		case inString:
			if c == '\\' {
				i++
			} else if c == '"' {
				inString = false
			}
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 && i < len(b)-1 {
				return false
			}
		}
	}
	return depth == 0 && !inString
}

// appendEscape appends r as JSON \u escapes, a surrogate pair above U+FFFF.
func appendEscape(dst []byte, r rune) []byte {
	if r > 0xffff {
		r -= 0x10000
		dst = appendEscape(dst, 0xd800+r>>10)
		return appendEscape(dst, 0xdc00+r&0x3ff)
	}
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

// redact takes known secrets out of the encoded record and returns how many there were.
func (e *encoder) redact() int {
	out, n := e.secrets.redact(e.buf)
	e.buf = out
	return n
}
