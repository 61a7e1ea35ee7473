package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// evaluate puts a body to one of the what-if endpoints.
func (b *bench) evaluate(target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(body))
	r.RequestURI, r.URL, r.Host = target, &url.URL{Path: target}, "localhost:8443"
	for _, h := range headers {
		key, value, _ := strings.Cut(h, ": ")
		r.Header.Add(key, value)
	}
	w := httptest.NewRecorder()
	b.public.ServeHTTP(w, r)
	return w
}

// tokenOf makes another token.
func (b *bench) tokenOf(tb testing.TB, class identity.Class, id string, scope identity.Scope) string {
	tb.Helper()
	draft, err := b.identity.Draft(tb.Context(), identity.TokenRequest{
		Class: class, Subject: identity.Subject{Type: identity.Person, ID: id}, Scope: scope,
	})
	must(tb, err)
	secret, err := b.identity.Issue(tb.Context(), draft)
	must(tb, err)
	return "Authorization: Bearer " + secret
}

func question1(action, id string) string {
	return fmt.Sprintf(`{"action":{"name":%q},"resource":{"type":"go-module","id":%q}}`, action, id)
}

// What a person would be answered, by the same walk as a request: scope, access, locks, quarantine, release.
func TestEvaluationAboutOneself(t *testing.T) {
	b := newBench(t, version("hello", "v1.0.0"), version("hello", "v1.1.0"), version("hello", "v1.2.0"), version("held", "v1.0.0"), version("stopped", "v1.0.0"))
	b.feed(t, nil)
	must(t, b.mirror.Quarantine(t.Context(), module.Version{Path: "example.com/held", Version: "v1.0.0"}, "SEC-77"))
	must(t, b.identity.Lock(t.Context(), identity.Lock{Kind: "module", Object: "example.com/stopped", Reason: "incident 42", Created: time.Now()}))
	narrow := b.tokenOf(t, identity.ClassPerson, "ann", identity.Scope{Modules: []string{"example.com/other"}, Actions: []string{"discover"}})
	for name, tt := range map[string]struct {
		token, body string
		decision    bool
		code, works string
		says        string
	}{
		"a fit version":             {"", question1("zip", "example.com/hello@v1.2.0"), true, "", "", ""},
		"one with a fix":            {"", question1("zip", "example.com/hello@v1.1.0"), false, "VULNERABLE", "v1.2.0", "works now: v1.2.0"},
		"its go.mod":                {"", question1("mod", "example.com/hello@v1.1.0"), true, "", "", ""},
		"the list":                  {"", question1("list", "example.com/hello"), true, "", "", ""},
		"by name":                   {"", `{"subject":{"type":"person","id":"ann"},` + question1("zip", "example.com/hello@v1.2.0")[1:], true, "", "", ""},
		"out of the token's scope":  {narrow, question1("zip", "example.com/hello@v1.2.0"), false, "SCOPE", "", "SCOPE: the credential's scope"},
		"in quarantine":             {"", question1("zip", "example.com/held@v1.0.0"), false, "QUARANTINED", "", "QUARANTINED: an operator has stopped this version: SEC-77"},
		"locked":                    {"", question1("zip", "example.com/stopped@v1.0.0"), false, "LOCKED", "", "an administrator stopped it: incident 42"},
		"not there is no allow":     {"", question1("zip", "example.com/hello@v1.9.0"), false, "error NOT-FOUND", "", ""},
		"no such module, not asked": {"", question1("list", "example.com/none"), true, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			token := tt.token
			if token == "" {
				token = b.bearer()
			}
			w := b.evaluate("/-/access/v1/evaluation", tt.body, token, "X-Request-ID: r-1")
			var got EvaluationAnswer
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || w.Header().Get("X-Request-Id") != "r-1" {
				t.Fatalf("%d %v %v\n%s", w.Code, err, w.Header(), w.Body)
			}
			code := ""
			if got.Context.Decision != nil && len(got.Context.Reasons) > 0 {
				code = got.Context.Reasons[0].Code
			} else if got.Context.Error != nil {
				code = "error " + got.Context.Error.Code
			}
			if got.Decision != tt.decision || code != tt.code || got.Context.WorksNow != tt.works || !strings.Contains(got.Context.Text, tt.says) {
				t.Errorf("decision %v %s, works %q, want %v %s %q\n%s", got.Decision, code, got.Context.WorksNow, tt.decision, tt.code, tt.works, w.Body)
			}
		})
	}
	for _, r := range b.records(t) {
		if r.Kind == audit.KindAdmin && r.Action == "policy.whatif" && r.Version == "v1.1.0" && r.Change.Note == "zip: deny VULNERABLE" {
			if r.Module != "example.com/hello" || r.Subject.ID != "ann" || r.Change.Object != "subject person ann" {
				t.Errorf("the record is %+v", r)
			}
			return
		}
	}
	t.Error("no record says what was asked and answered")
}

// Several questions: what one leaves out is that of the request, answers stand in order, and one that has none spoils no
// other. A zip is fetched only where the answer waits for what it alone tells.
func TestEvaluations(t *testing.T) {
	b := newBench(t, version("hello", "v1.0.0"), version("hello", "v1.1.0"), version("hello", "v1.2.0"))
	b.feed(t, nil)
	w := b.evaluate("/-/access/v1/evaluations", `{"action":{"name":"info"},"options":{"evaluations_semantic":"execute_all"},"evaluations":[
		{"resource":{"type":"go-module","id":"example.com/hello@v1.1.0"}},
		{"resource":{"type":"go-module","id":"example.com/hello@v1.0.0"}},
		{"resource":{"type":"go-module","id":"example.com/none@v1.0.0"}},
		{"resource":{"type":"go-module","id":"example.com/hello@v1.2.0"}}]}`, b.bearer())
	var got EvaluationReply
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || len(got.Evaluations) != 4 {
		t.Fatalf("%d %v\n%s", w.Code, err, w.Body)
	}
	for i, want := range []bool{false, true, false, true} {
		if got.Evaluations[i].Decision != want {
			t.Errorf("answer %d is %v, want %v", i, got.Evaluations[i].Decision, want)
		}
	}
	if got.Evaluations[2].Context.Error == nil || got.Evaluations[2].Context.Error.Status != 404 {
		t.Errorf("a module that is not there: %+v, want an error 404", got.Evaluations[2].Context)
	}
	if n := b.upstream.Count("*.zip"); n != 0 {
		t.Errorf("questions about .info fetched %d zips", n)
	}
	records := b.records(t)
	if r := records[len(records)-1]; r.Action != "policy.whatif" || r.Change.Note != "4 questions: 2 allowed, 1 denied, 1 without an answer" {
		t.Errorf("the record says %s %q", r.Action, r.Change.Note)
	}
	w = b.evaluate("/-/access/v1/evaluations", question1("zip", "example.com/hello@v1.0.0"), b.bearer())
	var one EvaluationAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &one); err != nil || !one.Decision {
		t.Errorf("a request that lists no evaluations is one question: %v %s", err, w.Body)
	}
	if n := b.upstream.Count("*.zip"); n != 1 {
		t.Errorf("a licence rule waited for the zip: %d were fetched, want 1", n)
	}
}

// Who asks about others, or supposes anything, is an administrator; what is supposed is what policy sees.
func TestEvaluationAboutOthers(t *testing.T) {
	b := newBench(t, hello)
	admin := b.tokenOf(t, identity.ClassAdmin, "eve", identity.Scope{Actions: []string{identity.ActionAdmin}})
	base := question1("zip", "example.com/hello@v1.0.0")[1:]
	facts := func(properties string) string {
		return `{"action":{"name":"info"},"subject":{"type":"person","id":"bob"},"resource":{"type":"go-module","id":"example.com/hello@v1.0.0","properties":` + properties + `}}`
	}
	for name, tt := range map[string]struct {
		body string
		want string // of an administrator
	}{
		"another person":      {`{"subject":{"type":"person","id":"bob"},` + base, "true"},
		"another type":        {`{"subject":{"type":"workload","id":"ann"},` + base, "true"},
		"own name, new group": {`{"subject":{"type":"person","id":"ann","properties":{"groups":{"admins":true}}},` + base, "true"},
		"nobody":              {`{"subject":{"type":"anonymous","id":""},` + base, "false ANONYMOUS"},
		"another device":      {`{"context":{"device":{"proof":"mtls","tier":4,"trusted":true}},` + base, "true"},
		"another day":         {`{"context":{"day":30000},` + base, "true"},
		"malware":             {facts(`{"malware":"listed","facts":{"malware":"ok"}}`), "false MALWARE"},
		"too young":           {facts(`{"age_days":2,"facts":{"age":"ok"}}`), "false COOLDOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			if w := b.evaluate("/-/access/v1/evaluation", tt.body, b.bearer()); w.Code != 403 || !strings.Contains(w.Body.String(), "administrators") {
				t.Errorf("of a person: %d, want 403\n%s", w.Code, w.Body)
			}
			w := b.evaluate("/-/access/v1/evaluation", tt.body, admin)
			var got EvaluationAnswer
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || got.Context.Decision == nil {
				t.Fatalf("%d %v\n%s", w.Code, err, w.Body)
			}
			answer := fmt.Sprint(got.Decision)
			for _, r := range got.Context.Reasons {
				answer += " " + r.Code
			}
			if answer != tt.want {
				t.Errorf("of an administrator: %s, want %s", answer, tt.want)
			}
		})
	}
}

// What cannot be meant is refused whole, before anybody is asked, and is in the log.
func TestEvaluationRefuses(t *testing.T) {
	b := newBench(t, hello)
	admin := b.tokenOf(t, identity.ClassAdmin, "eve", identity.Scope{Actions: []string{identity.ActionAdmin}})
	ok := question1("zip", "example.com/hello@v1.0.0")
	many := `{"action":{"name":"zip"},"evaluations":[` + strings.Repeat(`{},`, maxEvaluations) + `{}]}`
	for name, tt := range map[string]struct {
		target, body, token string
		status              int
	}{
		"nobody":              {"evaluation", ok, "", 401},
		"no JSON":             {"evaluation", "zip", b.bearer(), 400},
		"an unknown field":    {"evaluation", `{"principal":{}}`, b.bearer(), 400},
		"no resource":         {"evaluation", `{"action":{"name":"zip"}}`, b.bearer(), 400},
		"no action":           {"evaluation", `{"resource":{"type":"go-module","id":"example.com/hello"}}`, b.bearer(), 400},
		"an unknown action":   {"evaluation", question1("delete", "example.com/hello"), b.bearer(), 400},
		"a path with dots":    {"evaluation", question1("zip", "example.com/../x@v1.0.0"), b.bearer(), 400},
		"no canonical one":    {"evaluation", question1("zip", "example.com/hello@v1"), b.bearer(), 400},
		"another type":        {"evaluation", strings.ReplaceAll(ok, "go-module", "go-toolchain"), b.bearer(), 400},
		"several of one":      {"evaluation", `{"evaluations":[` + ok + `]}`, b.bearer(), 400},
		"too many":            {"evaluations", many, b.bearer(), 400},
		"another semantic":    {"evaluations", `{"options":{"evaluations_semantic":"deny_on_first_deny"},` + ok[1:], b.bearer(), 400},
		"a body of 2 MB":      {"evaluation", `{"subject":{"type":"person","id":"` + strings.Repeat("a", 2<<20) + `"},` + ok[1:], b.bearer(), 400},
		"unknown facts":       {"evaluation", `{"action":{"name":"zip"},"resource":{"type":"go-module","id":"example.com/hello@v1.0.0","properties":{"path":"x"}}}`, admin, 400},
		"an unknown property": {"evaluation", `{"subject":{"type":"person","id":"bob","properties":{"role":"x"}},` + ok[1:], admin, 400},
		"a type of subject":   {"evaluation", `{"subject":{"type":"user","id":"bob"},` + ok[1:], admin, 400},
		"no such endpoint":    {"search", ok, b.bearer(), 404},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(b.records(t))
			headers := []string{}
			if tt.token != "" {
				headers = append(headers, tt.token)
			}
			if w := b.evaluate("/-/access/v1/"+tt.target, tt.body, headers...); w.Code != tt.status {
				t.Errorf("%d, want %d\n%s", w.Code, tt.status, w.Body)
			}
			if after := len(b.records(t)); after != before+1 {
				t.Errorf("it left %d records, want 1", after-before)
			}
		})
	}
	if n := b.upstream.Count("*hello*"); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}
