package schema

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of the extension's values, in bytes (ArcSight Common Event Format, version 25).
const (
	cefMost       = 1023
	cefAction     = 63 // act, outcome
	cefApp        = 31
	cefExternalID = 40
)

// cefSeverity is 0 to 10, of 1 to 5.
var cefSeverity = [...]string{"1", "1", "3", "5", "8", "10"}

// cef writes a record as one line of the Common Event Format:
// CEF:0|vendor|product|version|signature id|name|severity|extension.
func (e *Encoder) cef(p place, r record) ([]byte, error) {
	c := cefLine{b: make([]byte, 0, 1<<10)}
	c.b = append(c.b, "CEF:0"...)
	code := r.name()
	if codes := r.list("decision", "codes"); len(codes) > 0 {
		code = codes[0]
	}
	for _, s := range []string{product, product, e.version, code, cefName(r), cefSeverity[r.severity()]} {
		c.header(s)
	}
	c.b = append(c.b, '|')
	c.time("rt", r.num("t"))
	c.text("externalId", p.id[max(len(p.id)-cefExternalID, 0):], cefExternalID) // its end is what tells events apart
	c.text("cat", r.kind(), cefMost)
	c.text("act", r.name(), cefAction)
	c.text("outcome", r.effect(), cefAction)
	c.text("dvchost", r.str("node"), cefMost)
	c.parties(r)
	c.target(p, r)
	c.answer(p, r)
	return c.b, nil
}

// cefName is what happened, for people; events with one signature id have one name.
func cefName(r record) string {
	if codes := r.list("decision", "codes"); len(codes) > 0 {
		return r.kind() + " " + r.effect()
	}
	return r.kind() + " " + r.name()
}

// A cefLine is a line under way.
type cefLine struct {
	b    []byte
	some bool // of the extension
}

// header appends a field of the header, in which \ and | are escaped.
func (c *cefLine) header(s string) {
	c.b = append(c.b, '|')
	for i := range len(s) {
		switch s[i] {
		case '\\', '|':
			c.b = append(c.b, '\\', s[i])
		case '\n', '\r':
			c.b = append(c.b, ' ')
		default:
			c.b = append(c.b, s[i])
		}
	}
}

// text appends a pair of the extension, in whose value \, =, CR and LF are escaped. most bounds the value before that.
func (c *cefLine) text(key, value string, most int) {
	if value == "" {
		return
	}
	if len(value) > most {
		for most > 0 && !utf8.RuneStart(value[most]) {
			most--
		}
		value = value[:most]
	}
	if c.some {
		c.b = append(c.b, ' ')
	}
	c.some = true
	c.b = append(append(c.b, key...), '=')
	for i := range len(value) {
		switch value[i] {
		case '\\', '=':
			c.b = append(c.b, '\\', value[i])
		case '\n':
			c.b = append(c.b, '\\', 'n')
		case '\r':
			c.b = append(c.b, '\\', 'r')
		default:
			c.b = append(c.b, value[i])
		}
	}
}

func (c *cefLine) number(key string, n int64) {
	if n != 0 {
		c.text(key, strconv.FormatInt(n, 10), cefMost)
	}
}

func (c *cefLine) time(key string, ns int64) {
	c.text(key, strconv.FormatInt(ns/int64(time.Millisecond), 10), cefMost)
}

// custom appends a pair whose key says nothing, with its label.
func (c *cefLine) custom(key, label, value string) {
	if value != "" {
		c.text(key, value, cefMost)
		c.text(key+"Label", label, cefMost)
	}
}

// parties are who asked, and from where.
func (c *cefLine) parties(r record) {
	c.text("src", r.ip(), cefMost)
	c.number("spt", r.num("client", "port"))
	c.text("suid", r.str("subject", "id"), cefMost)
	c.text("suser", r.str("subject", "name"), cefMost)
	c.text("requestClientApplication", r.str("client", "agent"), cefMost)
	c.custom("cs4", "clientDevice", r.str("device", "id"))
	c.custom("cs5", "tokenFp", r.str("credential", "fp"))
}

// target is what was asked for.
func (c *cefLine) target(p place, r record) {
	if m := r.str("method"); m != "" {
		c.text("app", "https", cefApp)
		c.text("requestMethod", m, cefMost)
	}
	c.text("request", r.str("path"), cefMost)
	c.custom("cs1", "module", r.str("module"))
	c.custom("cs2", "version", r.str("version"))
	c.custom("cs3", "policyRevision", r.str("policy_rev"))
	c.custom("cn2", "sequence", strconv.FormatInt(p.Seq, 10))
	c.custom("flexString2", "origin", p.Origin)
}

// answer is what was answered, and why.
func (c *cefLine) answer(p place, r record) {
	reason := r.str("decision", "reason")
	if reason == "" && r.aborted() {
		reason = "aborted"
	}
	c.text("reason", reason, cefMost)
	c.custom("cs6", "codes", strings.Join(r.list("decision", "codes"), ","))
	if status := r.status(); status != 0 {
		c.custom("cn3", "httpStatus", strconv.FormatInt(status, 10))
	}
	if r.has("outcome") {
		c.custom("cn1", "durationMs", strconv.FormatInt(r.num("outcome", "ms"), 10))
	}
	c.number("out", r.bytes())
	c.number("cnt", r.num("count"))
	if p.Outcome > 0 {
		c.custom("flexNumber1", "outcomeSequence", strconv.FormatInt(p.Outcome, 10))
	}
	c.custom("flexString1", "cache", r.str("file", "cache"))
	switch r.kind() {
	case kindAdmin, kindAuth:
		c.text("msg", strings.TrimSpace(r.str("change", "object")+" "+r.str("change", "note")), cefMost)
	case kindControl:
		c.text("msg", string(r.object("control")), cefMost)
	}
}
