package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// FuzzAuthorization holds that whatever is taken out of a header can be put back
// into one that net/http reads alike.
func FuzzAuthorization(f *testing.F) {
	f.Add("Bearer " + newText(ClassPerson))
	f.Add("Basic " + base64.StdEncoding.EncodeToString([]byte("login:"+newText(ClassCI))))
	f.Add("basic  YTpi ")
	f.Add("Basic YTpi\x00")
	f.Add("Bearer")
	f.Add("Basic " + strings.Repeat("QUFB", 300))
	f.Fuzz(func(t *testing.T, value string) {
		var buf [512]byte
		secret, via, err := presented(buf[:0], value)
		if err != nil {
			if err.Code != CredentialInvalid {
				t.Errorf("presented(%q) = %v", value, err)
			}
			return
		}
		if via == "bearer" {
			again, _, err := presented(nil, "Bearer "+string(secret))
			if err != nil || !bytes.Equal(again, secret) {
				t.Errorf("presented(%q) = %q, read again %q, %v", value, secret, again, err)
			}
			return
		}
		r := http.Request{Header: http.Header{"Authorization": {"Basic " + strings.Trim(value[len("Basic "):], " ")}}}
		_, password, ok := r.BasicAuth()
		if !ok || password != string(secret) {
			t.Errorf("presented(%q) = %q; net/http says %q, %v", value, secret, password, ok)
		}
	})
}

// FuzzInspect holds that what the strict reader lets pass has one meaning: each
// claim read from it is what encoding/json reads, and no name comes twice.
func FuzzInspect(f *testing.F) {
	seg := base64.RawURLEncoding.EncodeToString
	token := func(header, claims string) string {
		return seg([]byte(header)) + "." + seg([]byte(claims)) + ".c2ln"
	}
	f.Add(token(`{"alg":"ES256","kid":"1"}`, `{"iss":"https://a","sub":"b","aud":["c"],"exp":1}`))
	f.Add(token(`{"alg":"none"}`, `{"iss":"a","iss":"b"}`))
	f.Add(token(`{"alg":"ES256","jwk":{}}`, `{"iss":"a","x":{"a":[{"a":1},{"a":2}]}}`))
	f.Add(token(`{"alg":"ES256"}`, `{"iss":"a","ISS":"b"}`))
	f.Add("eyJ..")
	f.Fuzz(func(t *testing.T, raw string) {
		tok, err := inspect(raw)
		if err != nil {
			return
		}
		parts := strings.Split(raw, ".")
		if len(parts) != 3 || tok.alg == "" || tok.issuer == "" {
			t.Fatalf("inspect(%q) takes it", raw)
		}
		data, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatalf("inspect(%q) takes claims that do not decode: %v", raw, err)
		}
		var loose struct {
			Issuer string `json:"iss"`
		}
		if err := json.Unmarshal(data, &loose); err != nil || loose.Issuer != tok.issuer {
			t.Errorf("inspect(%q) reads issuer %q; a decoder that ignores case reads %q, %v", raw, tok.issuer, loose.Issuer, err)
		}
		printed, err := json.Marshal(tok.claims)
		if err != nil {
			t.Fatal(err)
		}
		again, err := inspect(parts[0] + "." + base64.RawURLEncoding.EncodeToString(printed) + "." + parts[2])
		if err != nil || again.issuer != tok.issuer || len(again.claims) != len(tok.claims) {
			t.Errorf("inspect(%q) printed and read again: %+v, %v", raw, again, err)
		}
	})
}

// FuzzScope holds that a scope is read back as printed, and that what is within a
// scope allows nothing that the outer one does not.
func FuzzScope(f *testing.F) {
	f.Add("content module:corp/a", "content discover module:corp module:*.example", "corp/a/b")
	f.Add("module:*", "module:*", "a")
	f.Add("content module:a/*/c", "content module:a/b*", "a/b/c")
	f.Add("content module:a/[b-c]", "content module:a/?", "a/b")
	f.Fuzz(func(t *testing.T, innerText, outerText, target string) {
		inner, err := ParseScope(innerText)
		if err != nil {
			return
		}
		again, err := ParseScope(inner.String())
		if err != nil || !slices.Equal(again.Modules, inner.Modules) || !slices.Equal(again.Actions, inner.Actions) {
			t.Errorf("ParseScope(%q) = %+v, read again %+v, %v", innerText, inner, again, err)
		}
		outer, err := ParseScope(outerText)
		if err != nil || !inner.within(outer) {
			return
		}
		for _, a := range []string{ActionContent, ActionDiscover, ActionMetadata, ActionMint, ActionAdmin} {
			if inner.allows(target, a) && !outer.allows(target, a) {
				t.Errorf("%q is within %q, yet allows %s on %q", inner, outer, a, target)
			}
		}
	})
}
