package schema

import (
	"net/netip"
	"net/url"
	"strings"

	"github.com/valyala/fastjson"
)

// A record is one of the log's, as its JSON. What it lacks is empty.
type record struct {
	v   *fastjson.Value
	raw []byte
}

func (r record) str(keys ...string) string { return string(r.v.GetStringBytes(keys...)) }
func (r record) num(keys ...string) int64  { return r.v.GetInt64(keys...) }
func (r record) flag(keys ...string) bool  { return r.v.GetBool(keys...) }
func (r record) has(keys ...string) bool   { return r.v.Exists(keys...) }
func (r record) kind() string              { return r.str("kind") }
func (r record) effect() string            { return r.str("decision", "effect") }

// list are the texts of a list that say something.
func (r record) list(keys ...string) []string {
	var all []string
	for _, v := range r.v.GetArray(keys...) {
		if s := v.GetStringBytes(); len(s) > 0 {
			all = append(all, string(s))
		}
	}
	return all
}

// object is what stands under key, as JSON; nil where nothing does.
func (r record) object(key string) []byte {
	if v := r.v.Get(key); v != nil {
		return v.MarshalTo(nil)
	}
	return nil
}

// Kinds of records, as the log names them.
const (
	kindOutcome = "outcome"
	kindAuth    = "auth"
	kindAdmin   = "admin"
	kindControl = "control"
)

// name is what happened: the action, or what the log says of itself.
func (r record) name() string {
	for _, s := range []string{r.str("action"), r.str("control", "what")} {
		if s != "" {
			return s
		}
	}
	return r.kind()
}

// severity is 1 to 5: what the record says, else 1 for what was allowed and 3 for what was not.
func (r record) severity() int64 {
	if s := r.num("severity"); s > 0 {
		return min(s, 5)
	}
	if e := r.effect(); e != "" && e != "allow" {
		return 3
	}
	return 1
}

// failed tells how it went: known is false where a record says nothing of it.
func (r record) failed() (failed, known bool) {
	if r.kind() == kindOutcome || r.aborted() {
		return r.aborted(), true
	}
	e := r.effect()
	return e != "allow", e != ""
}

// aborted tells that the client did not get all of what it was allowed.
func (r record) aborted() bool { return r.flag("outcome", "aborted") }

// status, bytes and ms are of the answer: of the outcome where there is one.
func (r record) status() int64 {
	if s := r.num("outcome", "status"); s != 0 {
		return s
	}
	return r.num("decision", "status")
}

func (r record) bytes() int64 {
	if r.has("outcome") {
		return r.num("outcome", "bytes")
	}
	return r.num("file", "size")
}

// message is one line for people.
func (r record) message() string {
	words := []string{r.kind()}
	for _, w := range []string{r.effect(), r.name(), r.module()} {
		if w != "" && w != words[len(words)-1] {
			words = append(words, w)
		}
	}
	text := strings.Join(words, " ")
	if codes := r.list("decision", "codes"); len(codes) > 0 {
		text += ": " + strings.Join(codes, ", ")
	}
	if note := r.str("change", "note"); note != "" {
		text += ": " + note
	}
	return text
}

// module is path@version, "" for a record that names no module.
func (r record) module() string {
	if v := r.str("version"); v != "" {
		return r.str("module") + "@" + v
	}
	return r.str("module")
}

// purl is the package URL of the module (https://github.com/package-url/purl-spec, type golang).
func (r record) purl() string {
	elems := strings.Split(r.str("module"), "/")
	for i, e := range elems {
		elems[i] = url.PathEscape(e)
	}
	text := "pkg:golang/" + strings.Join(elems, "/")
	if v := r.str("version"); v != "" {
		text += "@" + url.PathEscape(v)
	}
	return text
}

// ip is the client's address, "" where none is recorded, or what is recorded is none.
func (r record) ip() string {
	ip, err := netip.ParseAddr(r.str("client", "ip"))
	if err != nil {
		return ""
	}
	return ip.WithZone("").String()
}

// An activity is what an action does to what it names.
type activity int64

// Activities, as OCSF numbers those of API Activity.
const (
	create activity = 1
	read   activity = 2
	update activity = 3
	remove activity = 4
	other  activity = 99
)

// activity tells it from the verb behind the dot. What is asked of the module way is read.
func (r record) activity() activity {
	_, verb, ok := strings.Cut(r.str("action"), ".")
	if !ok {
		return read
	}
	switch verb {
	case "create", "import", "enrol", "prefetch":
		return create
	case "list", "read", "show", "who", "search", "prove", "checkpoint", "consistency", "proof", "whatif", "verify", "export",
		"page", "introspect", "code", "tail":
		return read
	case "renew", "activate", "block", "unblock", "quarantine", "release", "answer", "deny", "begin", "git", "quarantined":
		return update
	case "revoke", "delete", "purge", "gc", "lift":
		return remove
	}
	return other
}
