package gateway

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// auditBench is a bench with an auditor, and with a few fetches in its log.
func auditBench(t *testing.T) (b *bench, auditor string) {
	t.Helper()
	b = newBench(t, hello)
	bob := b.tokenOf(t, identity.ClassPerson, "bob", identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content"}})
	for _, ask := range []struct{ target, token string }{
		{"/example.com/hello/@v/v1.0.0.zip", b.bearer()},
		{"/example.com/hello/@v/v1.0.0.zip", b.bearer()},
		{"/example.com/hello/@v/v1.0.0.mod", bob},
		{"/example.com/hello/@v/v1.0.0.zip", bob},
		{"/example.com/none/@v/list", bob},
	} {
		_ = b.ask(http.MethodGet, ask.target, ask.token)
	}
	return b, b.tokenOf(t, identity.ClassAdmin, "eve", identity.Scope{Actions: []string{identity.ActionAudit}})
}

// question asks the audit API and reads its answer into out.
func (b *bench) question(t *testing.T, token, path string, out any) int {
	t.Helper()
	w := b.ask(http.MethodGet, "/-/api/v1/audit/"+path, token)
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			t.Fatalf("%s answered %q: %v", path, w.Body, err)
		}
	}
	return w.Code
}

// An auditor reads the log and changes nothing; an administrator does not read it; nobody else does either.
func TestAuditorReadsAndChangesNothing(t *testing.T) {
	b, auditor := auditBench(t)
	admin := b.tokenOf(t, identity.ClassAdmin, "root", identity.Scope{Actions: []string{identity.ActionAdmin}})
	reads := []string{"who?module=example.com/hello", "search?subject=ann", "proof?record=0", "checkpoint"}
	for _, path := range reads {
		for name, tt := range map[string]struct {
			token  string
			status int
		}{
			"auditor": {auditor, 200}, "administrator": {admin, 403}, "person": {b.bearer(), 403}, "nobody": {"X-None: ", 401},
		} {
			if got := b.question(t, tt.token, path, new(any)); got != tt.status {
				t.Errorf("%s as %s: %d, want %d", path, name, got, tt.status)
			}
		}
	}
	for _, change := range []string{
		"GET /-/api/v1/status", "GET /-/api/v1/tokens", "POST /-/api/v1/tokens", "DELETE /-/api/v1/tokens/x", "POST /-/api/v1/locks",
		"DELETE /-/api/v1/locks", "GET /-/api/v1/devices", "GET /example.com/hello/@v/v1.0.0.zip", "POST /-/api/v1/mirror/gc",
		"DELETE /-/api/v1/audit/search", "POST /-/api/v1/audit/who", "DELETE /-/api/v1/audit/",
	} {
		method, target, _ := strings.Cut(change, " ")
		if got := b.ask(method, target, auditor).Code; got != 403 {
			t.Errorf("%s as auditor: %d, want 403", change, got)
		}
	}
}

// No token of an administrator becomes one that reads the log: only whoever owns the gateway makes auditors.
func TestAdministratorMakesNoAuditor(t *testing.T) {
	b := newBench(t, hello)
	by := identity.Principal{
		Subject: identity.Subject{Type: identity.Person, ID: "root"}, Credential: identity.Credential{Class: identity.ClassAdmin, ID: "x", Expires: time.Now().Add(time.Hour)},
		Scope: identity.Scope{Actions: []string{identity.ActionAdmin}},
	}
	for action, want := range map[string]bool{identity.ActionAdmin: true, identity.ActionAudit: false} {
		_, err := b.identity.Draft(t.Context(), identity.TokenRequest{
			Class: identity.ClassAdmin, By: &by, Subject: by.Subject, Scope: identity.Scope{Actions: []string{action}},
		})
		if (err == nil) != want {
			t.Errorf("an administrator's token for %s: %v; want it made: %v", action, err, want)
		}
	}
}

// Each reading of the log stands in it before it is answered, with what was asked, and a secret that somebody wrote into
// the query does not.
func TestReadingTheLogIsRecorded(t *testing.T) {
	b, auditor := auditBench(t)
	for path, action := range map[string]string{
		"who?module=example.com%2Fhello": "audit.who", "search?effect=deny&subject=ann": "audit.search", "proof?record=0": "audit.prove",
		"checkpoint": "audit.checkpoint", "who?module=m&token=PLANTED-SECRET": "audit.who", "search?limit=0": "audit.search",
	} {
		status := b.question(t, auditor, path, new(any))
		records := b.records(t)
		last := records[len(records)-1]
		_, query, _ := strings.Cut(path, "?")
		if last.Kind != audit.KindAdmin || last.Action != action || last.Subject.ID != "eve" || last.Decision.Status != status {
			t.Errorf("%s left %+v", path, last)
		}
		if status == 200 && query != last.Change.Note {
			t.Errorf("%s: the record says that %q was asked", path, last.Change.Note)
		}
		if text, _ := json.Marshal(last); strings.Contains(string(text), "PLANTED") {
			t.Errorf("A38 a parameter that is not ours is in the record: %s", text)
		}
	}
}

// Pages of both kinds, of one answer each, together give what one page gives, although each question adds a record.
func TestAuditPages(t *testing.T) {
	b, auditor := auditBench(t)
	var whole AuditFetches
	b.question(t, auditor, "who?module=example.com/hello", &whole)
	if len(whole.Fetches) != 3 || whole.Next != "" {
		t.Fatalf("who: %+v; want three fetches", whole.WhoAnswer)
	}
	var got []audit.Fetch
	for after := ""; ; {
		var page AuditFetches
		if status := b.question(t, auditor, "who?limit=1&module=example.com/hello&after="+after, &page); status != 200 || len(page.Fetches) > 1 {
			t.Fatalf("status %d, page %+v", status, page)
		}
		got = append(got, page.Fetches...)
		if after = page.Next; after == "" {
			break
		}
		_ = b.ask(http.MethodGet, "/example.com/hello/@v/v1.0.0.zip", b.bearer()) // counts change, order does not
	}
	for i, f := range got {
		if i >= len(whole.Fetches) || f.Subject != whole.Fetches[i].Subject || f.What != whole.Fetches[i].What {
			t.Fatalf("pages give %+v, one page gave %+v", got, whole.Fetches)
		}
	}
	var records AuditRecords
	b.question(t, auditor, "search?subject=bob", &records)
	if len(records.Records) < 3 || records.Next != "" {
		t.Fatalf("search: %+v", records)
	}
	n := 0
	for before := ""; ; n++ {
		var page AuditRecords
		if status := b.question(t, auditor, "search?subject=bob&limit=1&before="+before, &page); status != 200 || len(page.Records) != 1 || page.Records[0].At != records.Records[n].At {
			t.Fatalf("page %d: status %d, %+v; want record %s", n, status, page, records.Records[n].At)
		}
		if before = page.Next; before == "" {
			break
		}
	}
	if n+1 != len(records.Records) {
		t.Errorf("pages gave %d records, one page %d", n+1, len(records.Records))
	}
}

// Was it ever served? What was delivered answers that, and a version that nobody got has no fetch.
func TestWasItEverServed(t *testing.T) {
	b, auditor := auditBench(t)
	for version, want := range map[string]int{"v1.0.0": 1, "v1.0.1": 0} {
		var answer AuditFetches
		b.question(t, auditor, "who?module=example.com/hello&delivered&limit=1&version="+version, &answer)
		if len(answer.Fetches) != want {
			t.Errorf("%s: %+v, want %d fetches", version, answer.WhoAnswer, want)
		}
	}
}

// A proof and a consistency proof from the API hold with the key list that it gives, and not for another record.
func TestAuditProofs(t *testing.T) {
	b, auditor := auditBench(t)
	var before, after AuditTree
	b.question(t, auditor, "checkpoint", &before)
	must(t, b.log.Close()) // the last checkpoint covers every record
	w := b.archive
	signed, err := w.Checkpoint()
	must(t, err)
	after.Checkpoint = string(signed)
	at, err := w.Locate(t.Context(), b.records(t)[1].EventID)
	must(t, err)
	text, err := w.Prove(t.Context(), at)
	must(t, err)
	shown, err := audit.CheckProof(text, before.Keys)
	if err != nil || shown.Seq != at.Seq {
		t.Errorf("proof of %s: %+v, %v", at, shown, err)
	}
	grew, err := w.ProveSince([]byte(before.Checkpoint))
	must(t, err)
	if _, err := audit.CheckConsistency(grew, []byte(before.Checkpoint), before.Keys); err != nil {
		t.Errorf("consistency: %v", err)
	}
	if before.Checkpoint == after.Checkpoint {
		t.Error("the log did not grow")
	}
}

// What cannot be asked is 400, what is not there 404, and neither looks like the other.
func TestAuditQuestionsThatAreWrong(t *testing.T) {
	b, auditor := auditBench(t)
	for path, status := range map[string]int{
		"who": 400, "who?module=": 400, "who?module=m&delivered&refused": 400, "who?module=m&after=%2Bx": 400, "who?module=m&module=n": 400,
		"who?module=m&delivered=maybe": 400, "who?module=m&modul=n": 400, "who?module=m&after=" + strings.Repeat("e", 300): 400,
		"search?limit=1001": 400, "search?limit=-1": 400, "search?since=yesterday": 400, "search?before=1": 400, "search?id=k7q": 400,
		"search?version=v1.0.0": 400, "proof": 400, "proof?record=short": 400, "proof?record=999999": 404, "proof?record=AAAAAAAA": 404,
		"proof?record=9-0": 404, "search?a;b": 400, "none": 403,
	} {
		if got := b.question(t, auditor, path, new(any)); got != status {
			t.Errorf("%s: %d, want %d", path, got, status)
		}
	}
	for body, status := range map[string]int{`{"since":"x"}`: 200, `{"since":1}`: 400, `{}`: 200, `[]`: 400} {
		r := b.evaluate("/-/api/v1/audit/consistency", body, auditor)
		if r.Code != status || status == 200 && !strings.Contains(r.Body.String(), `"code": 14`) {
			t.Errorf("%s: %d %s, want %d", body, r.Code, r.Body, status)
		}
	}
	if _, err := url.ParseQuery("a;b"); err == nil {
		t.Error("a query of a;b is read by now: another case is needed")
	}
}
