package gateway

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/headgate/headgate/identity"
)

// Who may not ask for a module does not learn whether it is there: the two refusals are alike, and the upstream hears of neither.
func TestT76RefusalsTellNothing(t *testing.T) {
	b := newBench(t, hello)
	draft, err := b.identity.Draft(t.Context(), identity.TokenRequest{
		Class: identity.ClassPerson, Subject: identity.Subject{Type: identity.Person, ID: "bob"},
		Scope: identity.Scope{Modules: []string{"example.com/other"}, Actions: []string{"content", "discover", "metadata"}},
	})
	must(t, err)
	narrow, err := b.identity.Issue(t.Context(), draft)
	must(t, err)
	decision := regexp.MustCompile(`decision \w+`)
	ask := func(module, file string) (int, string, http.Header) {
		w := b.ask("GET", "/"+module+file, "Authorization: Bearer "+narrow)
		h := w.Header().Clone()
		h.Del("Headgate-Decision")
		text := strings.ReplaceAll(w.Body.String(), module, "MODULE")
		return w.Code, decision.ReplaceAllString(text, "decision ID"), h
	}
	for _, file := range []string{"/@v/list", "/@latest", "/@v/v1.0.0.info", "/@v/v1.0.0.mod", "/@v/v1.0.0.zip", "/@v/main.info"} {
		t.Run("T76 "+file[1:], func(t *testing.T) {
			status, there, h1 := ask("example.com/hello", file)
			_, missing, h2 := ask("example.com/nothn", file) // as long, so that lengths are alike
			if status != http.StatusForbidden || there != missing {
				t.Errorf("status %d, want 403, and two texts alike:\n%s\n%s", status, there, missing)
			}
			for key := range h1 {
				if strings.Join(h1[key], "\n") != strings.Join(h2[key], "\n") {
					t.Errorf("header %s is %q where the module exists, and %q where it does not", key, h1[key], h2[key])
				}
			}
		})
	}
	if n := b.upstream.Count("*"); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}
