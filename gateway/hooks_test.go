package gateway

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
)

const (
	hookSecret   = "a-secret-of-the-hook"
	signingToken = "whsec_c2lnbmluZy1rZXktb2YtMzItYnl0ZXMtaW4tYWxsLi4="
)

// hooked is a gateway that knows the secrets of a Git server.
func hooked(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.cfg.Hooks.SecretFile = filepath.Join(b.dir, "hook")
	must(t, os.WriteFile(b.cfg.Hooks.SecretFile, []byte("\n"+hookSecret+"\n"+signingToken+"\n"), 0o600))
	return b
}

// post sends a webhook through the whole of the public handler.
func (b *bench) post(body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "https://localhost:8443/-/hooks/git", strings.NewReader(body))
	r.RequestURI, r.TLS = "/-/hooks/git", &tls.ConnectionState{}
	for _, h := range headers {
		key, value, _ := strings.Cut(h, ": ")
		r.Header.Add(key, value)
	}
	w := httptest.NewRecorder()
	b.public.ServeHTTP(w, r)
	return w
}

func hexMAC(secret, body string) string {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write([]byte(body))
	return hex.EncodeToString(m.Sum(nil))
}

// standard signs as the Standard Webhooks specification has it.
func standard(t *testing.T, at time.Time, body string) []string {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signingToken, "whsec_"))
	must(t, err)
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "msg_1.%d.%s", at.Unix(), body)
	return []string{
		"Webhook-Id: msg_1", fmt.Sprintf("Webhook-Timestamp: %d", at.Unix()),
		"Webhook-Signature: v1," + base64.StdEncoding.EncodeToString(make([]byte, 32)) + " v1," + base64.StdEncoding.EncodeToString(m.Sum(nil)),
	}
}

func TestWebhookSignatures(t *testing.T) {
	b := hooked(t)
	const body = `{"repository":{"clone_url":"https://git.corp.example/team/app.git"}}`
	good, other := hexMAC(hookSecret, body), hexMAC("another-secret-of-16", body)
	late := standard(t, time.Now().Add(-10*time.Minute), body)
	for _, tt := range []struct {
		name    string
		body    string
		headers []string
		status  int
		code    string
	}{
		{"GitHub, Gitea, Forgejo", body, []string{"X-Hub-Signature-256: sha256=" + good}, 202, ""},
		{"Gitea before", body, []string{"X-Gitea-Signature: " + good}, 202, ""},
		{"Forgejo", body, []string{"X-Forgejo-Signature: " + good}, 202, ""},
		{"Bitbucket", body, []string{"X-Hub-Signature: sha256=" + good}, 202, ""},
		{"GitLab's token", body, []string{"X-Gitlab-Token: " + hookSecret}, 202, ""},
		{"GitLab's signature", body, standard(t, time.Now(), body), 202, ""},
		{"no signature", body, nil, 401, "CREDENTIAL-MISSING"},
		{"a token of ours instead", body, []string{b.bearer()}, 401, "CREDENTIAL-MISSING"},
		{"wrong secret", body, []string{"X-Hub-Signature-256: sha256=" + other}, 401, "CREDENTIAL-INVALID"},
		{"wrong secret, plain", body, []string{"X-Gitlab-Token: another-secret-of-16"}, 401, "CREDENTIAL-INVALID"},
		{"empty secret", body, []string{"X-Gitlab-Token: "}, 401, "CREDENTIAL-INVALID"},
		{"empty signature", body, []string{"X-Hub-Signature-256: sha256="}, 401, "CREDENTIAL-INVALID"},
		{"other body", body + " ", []string{"X-Hub-Signature-256: sha256=" + good}, 401, "CREDENTIAL-INVALID"},
		{"a part of the signature", body, []string{"X-Hub-Signature-256: sha256=" + good[:32]}, 401, "CREDENTIAL-INVALID"},
		{"SHA-1", body, []string{"X-Hub-Signature: sha1=" + good[:40]}, 401, "CREDENTIAL-INVALID"},
		{"two signatures", body, []string{"X-Hub-Signature-256: sha256=" + good, "X-Hub-Signature-256: sha256=" + other}, 401, "CREDENTIAL-INVALID"},
		{"a wrong one beside a right one of a weaker kind", body, []string{"X-Hub-Signature-256: sha256=" + other, "X-Gitlab-Token: " + hookSecret}, 401, "CREDENTIAL-INVALID"},
		{"replay of an old timestamp", body, late, 401, "CREDENTIAL-INVALID"},
		{"an old signature with a new timestamp", body, append(standard(t, time.Now(), body)[:2:2], late[2]), 401, "CREDENTIAL-INVALID"},
		{"the key of another kind as a secret", body, []string{"X-Hub-Signature-256: sha256=" + hexMAC("", body)}, 401, "CREDENTIAL-INVALID"},
		{"signed with an empty standard key", body, append(standard(t, time.Now(), body)[:2:2], "Webhook-Signature: v1,"), 401, "CREDENTIAL-INVALID"},
		{"signed, and no JSON", "x", []string{"X-Hub-Signature-256: sha256=" + hexMAC(hookSecret, "x")}, 400, "REQUEST-INVALID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(b.records(t))
			w := b.post(tt.body, tt.headers...)
			if w.Code != tt.status || tt.code != "" && w.Header().Get("Headgate-Code") != tt.code {
				t.Errorf("status %d, code %q, want %d, %q: %s", w.Code, w.Header().Get("Headgate-Code"), tt.status, tt.code, w.Body)
			}
			all := b.records(t)
			if len(all) != before+1 {
				t.Fatalf("%d records, want one", len(all)-before)
			}
			r := all[len(all)-1]
			if r.Kind != audit.KindAdmin || r.Action != "hook.git" || r.Decision.Status != tt.status {
				t.Errorf("the record is %s %s with status %d", r.Kind, r.Action, r.Decision.Status)
			}
			if tt.status == http.StatusAccepted && (r.Change.Object != "repository git.corp.example/team/app" || r.Subject.ID != "webhook") {
				t.Errorf("the record names %q by %q", r.Change.Object, r.Subject.ID)
			}
			if tt.status == http.StatusUnauthorized && r.Change.Object != "" {
				t.Errorf("the record of a forged webhook names %q", r.Change.Object)
			}
		})
	}
	if n := len(b.upstream.Requests()); n != 0 {
		t.Errorf("webhooks caused requests: %q", b.upstream.Requests())
	}
	t.Run("no secret in any record", func(t *testing.T) {
		files, err := filepath.Glob(filepath.Join(b.dir, "audit", "*", "*", "*", "*"))
		must(t, err)
		for _, name := range files {
			if text, err := os.ReadFile(name); err == nil && (bytes.Contains(text, []byte(hookSecret)) || bytes.Contains(text, []byte(good))) {
				t.Errorf("%s has a secret", name)
			}
		}
	})
}

func TestWebhookRequests(t *testing.T) {
	b := hooked(t)
	signed := func(body string) string { return "X-Hub-Signature-256: sha256=" + hexMAC(hookSecret, body) }
	form := "payload=" + url.QueryEscape(`{"repository":{"ssh_url":"git@git.corp.example:team/app.git"}}`)
	long := `{"repository":{"clone_url":"` + strings.Repeat("x", 1<<20) + `"}}`
	t.Run("as a form", func(t *testing.T) {
		w := b.post(form, signed(form), "Content-Type: application/x-www-form-urlencoded")
		if w.Code != 202 || strings.TrimSpace(w.Body.String()) != "{\n  \"repositories\": 0\n}" {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
		all := b.records(t)
		if got := all[len(all)-1].Change.Object; got != "repository git.corp.example/team/app" {
			t.Errorf("the record names %q", got)
		}
	})
	t.Run("more than 1 MiB", func(t *testing.T) {
		if w := b.post(long, signed(long)); w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
	})
	t.Run("another method", func(t *testing.T) {
		w := b.ask("GET", "/-/hooks/git")
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "POST" {
			t.Errorf("status %d, Allow %q", w.Code, w.Header().Get("Allow"))
		}
	})
	for name, text := range map[string]*string{"no file configured": nil, "file is away": nil, "short secret": new(string), "no secret": new(string)} {
		t.Run(name, func(t *testing.T) {
			file, want := filepath.Join(t.TempDir(), "hook"), 503
			switch name {
			case "no file configured":
				file, want = "", 401
			case "short secret":
				*text = "short"
				fallthrough
			case "no secret":
				must(t, os.WriteFile(file, []byte(*text), 0o600))
			}
			b.cfg.Hooks.SecretFile = file
			if w := b.post("{}", "X-Hub-Signature-256: sha256="+hexMAC("", "{}")); w.Code != want {
				t.Errorf("status %d, want %d: %s", w.Code, want, w.Body)
			}
		})
	}
}

// What each server calls the addresses of a repository, cut from the payloads that they document.
func TestHookRepositories(t *testing.T) {
	for name, body := range map[string]string{
		"GitHub, Gitea, Forgejo": `{"ref":"refs/tags/v1","repository":{"id":1,"full_name":"team/app","url":"https://git.corp.example/team/app","html_url":"https://git.corp.example/team/app","clone_url":"https://git.corp.example/team/app.git","ssh_url":"git@git.corp.example:team/app.git","created_at":1}}`,
		"GitLab":                 `{"object_kind":"tag_push","project":{"id":1,"git_ssh_url":"git@git.corp.example:team/app.git","git_http_url":"https://git.corp.example/team/app.git","web_url":"https://git.corp.example/team/app"},"repository":{"name":"app","git_http_url":"https://git.corp.example/team/app.git","visibility_level":0}}`,
		"Bitbucket Cloud":        `{"push":{},"repository":{"full_name":"team/app","links":{"self":{"href":"https://api.bitbucket.example/2.0/repositories/team/app"},"html":{"href":"https://git.corp.example/team/app"},"avatar":{"href":"https://x"}}}}`,
		"Bitbucket Data Center":  `{"eventKey":"repo:refs_changed","repository":{"slug":"app","links":{"clone":[{"href":"ssh://git@git.corp.example/team/app.git","name":"ssh"},{"href":"https://git.corp.example/team/app.git","name":"http"}],"self":[{"href":"https://git.corp.example/projects/TEAM/repos/app/browse"}]}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			urls, err := hookRepositories("application/json; charset=utf-8", []byte(body))
			if err != nil || !strings.Contains(strings.Join(urls, " "), "git.corp.example") {
				t.Fatalf("hookRepositories = %q, %v", urls, err)
			}
			for _, u := range urls {
				if u != "" && !strings.Contains(u, "git.corp.example") {
					t.Errorf("it names %q", u)
				}
			}
		})
	}
}

func FuzzHookRepositories(f *testing.F) {
	f.Add("application/json", `{"repository":{"clone_url":"https://h/a.git","links":{"clone":[{"href":"x"}]}}}`)
	f.Add("application/x-www-form-urlencoded", "payload=%7B%7D")
	f.Fuzz(func(t *testing.T, contentType, body string) {
		urls, err := hookRepositories(contentType, []byte(body))
		if limit := 2 * (7 + maxHookLinks); err == nil && len(urls) > limit {
			t.Errorf("%d addresses, want at most %d", len(urls), limit)
		}
		again, err2 := hookRepositories(contentType, []byte(body))
		if (err == nil) != (err2 == nil) || strings.Join(urls, "\n") != strings.Join(again, "\n") {
			t.Errorf("the same payload gives %q, then %q", urls, again)
		}
	})
}

func FuzzGenuine(f *testing.F) {
	f.Add("X-Hub-Signature-256", "sha256=00", "body")
	f.Add("Webhook-Signature", "v1,AAAA v1a,x", "{}")
	f.Add("X-Gitlab-Token", "", "")
	f.Fuzz(func(t *testing.T, header, value, body string) {
		h := http.Header{}
		h.Set(header, value)
		h.Set("Webhook-Timestamp", "1")
		if value != hookSecret && genuine(h, []byte(body), []string{hookSecret}, time.Unix(1, 0)) {
			t.Errorf("%s: %s signs %q", header, value, body)
		}
	})
}
