package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror"
)

// Hooks is what Git servers need to announce pushes at /-/hooks/git.
type Hooks struct {
	// SecretFile holds the secret that Git servers sign their webhooks with, at least 16 bytes; further lines are
	// further secrets, for a change without a gap. It is read again for each webhook. Empty: every webhook is refused.
	SecretFile string `yaml:"secret_file"`
}

const (
	minHookSecret = 16
	maxHookSecret = 64 << 10
	hookWindow    = 5 * time.Minute // how old a signed timestamp may be
	standardKey   = "whsec_"        // begins a key of the Standard Webhooks specification
)

// hook answers POST /-/hooks/git: a Git server says that something is new in a repository. Whoever holds the secret
// can make one repository be asked once more, and nothing else: addresses in the payload are compared with what is
// known, never followed.
func (s *Server) hook(w http.ResponseWriter, r *http.Request) {
	x := s.begin(w, r)
	x.action, x.rec.Kind, x.rec.Action = "hook", audit.KindAdmin, "hook.git"
	repositories, err := s.readHook(r)
	if err == nil {
		x.rec.Subject = audit.Subject{ID: "webhook", Kind: "workload"}
		for _, u := range repositories {
			if name := mirror.RepositoryName(u); name != "" {
				x.rec.Change.Object = "repository " + name
				break
			}
		}
	}
	x.decided(nil, err)
	if err == nil {
		x.rec.Decision.Status = http.StatusAccepted
	}
	if err := s.record(r.Context(), x, err); err != nil {
		x.problem(err)
		return
	}
	known := s.mirror.Refresh(repositories)
	if s.isPolicy(repositories) {
		s.policy.Look()
		known++
	}
	x.json(http.StatusAccepted, map[string]int{"repositories": known})
}

// isPolicy tells whether one of the addresses is that of the repository of policy, however it is spelt.
func (s *Server) isPolicy(repositories []string) bool {
	own := mirror.RepositoryName(s.policy.Repository())
	return own != "" && slices.ContainsFunc(repositories, func(u string) bool { return mirror.RepositoryName(u) == own })
}

// readHook gives the addresses of the repository that a genuine webhook is about.
func (s *Server) readHook(r *http.Request) ([]string, error) {
	if signatureOf(r.Header) == nil {
		return nil, &Problem{Status: http.StatusUnauthorized, Code: "CREDENTIAL-MISSING", Public: "the webhook is not signed", Stage: "identity"}
	}
	body, err := io.ReadAll(r.Body)
	if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
		return nil, &Problem{Status: http.StatusRequestEntityTooLarge, Code: "REQUEST-INVALID", Public: "a webhook has at most 1 MiB", Stage: "protocol"}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the webhook: %w: %w", errRequest, err)
	}
	secrets, err := readHookSecrets(s.cfg.Hooks.SecretFile)
	if err != nil {
		return nil, &Problem{Status: http.StatusServiceUnavailable, Code: "STATE-DOWN", Public: "webhooks cannot be checked now", Stage: "identity", RetryAfter: 30, Err: err}
	}
	if !genuine(r.Header, body, secrets, time.Now()) {
		return nil, &Problem{Status: http.StatusUnauthorized, Code: "CREDENTIAL-INVALID", Public: "the webhook is not signed with this gateway's secret", Stage: "identity"}
	}
	return hookRepositories(r.Header.Get("Content-Type"), body)
}

// readHookSecrets reads one secret a line. No file: none.
func readHookSecrets(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading gateway.hooks.secret_file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHookSecret+1))
	if err != nil {
		return nil, fmt.Errorf("reading gateway.hooks.secret_file: %w", err)
	}
	secrets := strings.Fields(string(text))
	for _, secret := range secrets {
		if len(secret) < minHookSecret {
			return nil, fmt.Errorf("reading gateway.hooks.secret_file: a secret has fewer than %d bytes", minHookSecret)
		}
	}
	if len(secrets) == 0 || len(text) > maxHookSecret {
		return nil, errors.New("reading gateway.hooks.secret_file: it is empty or too long")
	}
	return secrets, nil
}

// signatures are the headers of Git servers, the stronger first: only the first one that is there counts, so that a
// wrong signature is not made good by another header. The tag is what a secret makes of the message.
var signatures = []struct {
	header string
	tag    func(h http.Header, body []byte, secret string) []byte
	decode func(string) ([][]byte, error)
}{
	{"Webhook-Signature", standardTag, standardTags},                                                        // GitLab from 19 on, and others
	{"X-Hub-Signature-256", bodyTag, prefixedHex},                                                           // GitHub, Gitea, Forgejo
	{"X-Forgejo-Signature", bodyTag, plainHex},                                                              //
	{"X-Gitea-Signature", bodyTag, plainHex},                                                                //
	{"X-Hub-Signature", bodyTag, prefixedHex},                                                               // Bitbucket; GitHub's SHA-1 does not pass
	{"X-Gitlab-Token", tokenTag, func(v string) ([][]byte, error) { return [][]byte{sum([]byte(v))}, nil }}, // the secret itself
}

// signatureOf finds the header that counts; nil where there is none.
func signatureOf(h http.Header) []string {
	for _, sig := range signatures {
		if values := h.Values(sig.header); len(values) > 0 {
			return values
		}
	}
	return nil
}

// genuine tells whether one of the secrets signed the body.
func genuine(h http.Header, body []byte, secrets []string, now time.Time) bool {
	for _, sig := range signatures {
		values := h.Values(sig.header)
		if len(values) == 0 {
			continue
		}
		tags, err := sig.decode(values[0])
		if err != nil || len(values) > 1 || sig.header == "Webhook-Signature" && !recent(h.Get("Webhook-Timestamp"), now) {
			return false
		}
		ok := false
		for _, secret := range secrets {
			want := sig.tag(h, body, secret)
			for _, tag := range tags {
				ok = hmac.Equal(tag, want) && want != nil || ok
			}
		}
		return ok
	}
	return false
}

// recent tells whether a signed time, in seconds since 1970, is now as far as clocks agree.
func recent(text string, now time.Time) bool {
	seconds, err := strconv.ParseInt(text, 10, 64)
	return err == nil && now.Sub(time.Unix(seconds, 0)).Abs() <= hookWindow
}

func sum(b []byte) []byte {
	d := sha256.Sum256(b)
	return d[:]
}

func mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

func bodyTag(_ http.Header, body []byte, secret string) []byte { return mac([]byte(secret), body) }

// tokenTag compares hashes, so that not even the length of the secret shows.
func tokenTag(_ http.Header, _ []byte, secret string) []byte { return sum([]byte(secret)) }

// standardTag is that of the Standard Webhooks specification, version 1; nil for a secret of another kind.
func standardTag(h http.Header, body []byte, secret string) []byte {
	coded, ok := strings.CutPrefix(secret, standardKey)
	key, err := base64.StdEncoding.DecodeString(coded)
	if !ok || err != nil {
		return nil
	}
	return mac(key, []byte(h.Get("Webhook-Id")+"."+h.Get("Webhook-Timestamp")+"."), body)
}

// standardTags reads signatures separated by blanks, of which one must hold.
func standardTags(value string) ([][]byte, error) {
	var tags [][]byte
	for word := range strings.FieldsSeq(value) {
		coded, ok := strings.CutPrefix(word, "v1,")
		if !ok {
			continue // another version
		}
		tag, err := base64.StdEncoding.DecodeString(coded)
		if err != nil {
			return nil, err
		}
		if tags = append(tags, tag); len(tags) > 8 {
			return nil, errors.New("too many signatures")
		}
	}
	return tags, nil
}

func prefixedHex(value string) ([][]byte, error) {
	coded, ok := strings.CutPrefix(value, "sha256=")
	if !ok {
		return nil, errors.New("not a SHA-256")
	}
	return plainHex(coded)
}

func plainHex(value string) ([][]byte, error) {
	tag, err := hex.DecodeString(value)
	return [][]byte{tag}, err
}

// hookPayload is what the payloads of GitHub, Gitea, Forgejo, GitLab and Bitbucket say of the repository.
type hookPayload struct {
	Repository hookRepository `json:"repository"`
	Project    hookRepository `json:"project"`
}

// hookRepository holds each server's names for the addresses of a repository.
type hookRepository struct {
	CloneURL   string `json:"clone_url"`
	SSHURL     string `json:"ssh_url"`
	HTMLURL    string `json:"html_url"`
	GitHTTPURL string `json:"git_http_url"`
	GitSSHURL  string `json:"git_ssh_url"`
	WebURL     string `json:"web_url"`
	Links      struct {
		HTML  hookLink   `json:"html"`
		Clone []hookLink `json:"clone"`
	} `json:"links"`
}

type hookLink struct {
	Href string `json:"href"`
}

// maxHookLinks bounds what one payload can name.
const maxHookLinks = 8

// hookRepositories gives the addresses of the one repository that a payload is about.
func hookRepositories(contentType string, body []byte) ([]string, error) {
	if kind, _, err := mime.ParseMediaType(contentType); err == nil && kind == "application/x-www-form-urlencoded" {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, invalid("body is no form")
		}
		body = []byte(form.Get("payload"))
	}
	var p hookPayload
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, invalid("payload is not the JSON of a webhook")
	}
	var all []string
	for _, r := range []hookRepository{p.Repository, p.Project} {
		all = append(all, r.CloneURL, r.SSHURL, r.HTMLURL, r.GitHTTPURL, r.GitSSHURL, r.WebURL, r.Links.HTML.Href)
		for _, c := range r.Links.Clone[:min(len(r.Links.Clone), maxHookLinks)] {
			all = append(all, c.Href)
		}
	}
	return all, nil
}
