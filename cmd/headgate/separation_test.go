package main

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// E12, N9, P44: one build of private and public modules by the real go command, with our own checksum database on for
// everything. Whatever leaves the gateway but to Git is recorded whole, and holds no private name, in no spelling, no
// part of one, and no version of one.
func TestPrivateNamesNeverLeave(t *testing.T) {
	s := newPrivateSite(t, "  age_sources: [index]\n", readArchives(t)...)
	app := map[string]string{
		"go.mod": "module corp.example/team/app\n\ngo 1.21\n\nrequire example.com/hello v1.0.0\n", "a.go": "package app\n\nimport _ \"example.com/hello\"\n",
		"sub/deep/d.go": "package deep\n",
	}
	r := s.repo("team/app", app, "v1.4.7")
	s.repo("team/Upper", map[string]string{"go.mod": "module corp.example/team/Upper\n\ngo 1.21\n", "u.go": "package upper\n"}, "v1.5.9")
	app["t.go"] = "package app\n"
	topic, err := r.Commit("topic", app)
	if err != nil {
		t.Fatal(err)
	}
	buildMixed(t, s)
	for _, tt := range []struct {
		name, path string
		status     []int
	}{
		{"E12 a lookup at the public database", "/sumdb/sum.example.test/lookup/corp.example/team/app@v1.4.7", []int{403}},
		{"E12 in capitals", "/sumdb/sum.example.test/lookup/corp.example/team/!app@v1.4.7", []int{403}},
		{"E12 below it", "/sumdb/sum.example.test/lookup/corp.example/team/app/sub/deep@v1.4.7", []int{403}},
		{"a prefix of the pattern at the public database", "/sumdb/sum.example.test/lookup/corp.example@v1.4.7", []int{400, 403, 404}},
		{"E6 a prefix of the pattern", "/corp.example/@v/list", []int{404}},
		{"E6 a prefix, its newest version", "/corp.example/@latest", []int{404}},
		{"a folder of repositories", "/corp.example/team/@v/list", []int{404, 502}},
		{"no module", "/corp.example/team/app/sub/@v/list", []int{404}},
		{"a major version", "/corp.example/team/app/v2/@v/list", []int{404}},
		{"a host in capitals", "/!corp.example/team/app/@v/list", []int{400, 404}},
		{"a path in capitals", "/corp.example/!team/!app/@v/list", []int{404, 502}},
		{"another escape", "/corp.example/%21team/app/@v/v1.4.7.info", []int{404, 502}},
		{"an unknown version", "/corp.example/team/app/@v/v1.4.8.zip", []int{404}},
		{"a branch", "/corp.example/team/app/@v/topic.info", []int{200}},
		{"a branch with a slash", "/corp.example/team/app/@v/feature/topic.info", []int{400}},
		{"cached only", "/cached-only/corp.example/team/app/@v/list", []int{200}},
		{"the index", "/index", []int{200}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body := s.body(tt.path)
			ok := false
			for _, want := range tt.status {
				ok = ok || status == want
			}
			if !ok {
				t.Errorf("%s: status %d, want one of %v: %s", tt.path, status, tt.status, body)
			}
			if status == 403 && !strings.Contains(body, "set GOSUMDB to ours") {
				t.Errorf("%s: the text does not help: %s", tt.path, body)
			}
		})
	}
	s.push("team/app")
	s.body("/corp.example/team/app/@v/list")
	for _, host := range s.git.Tunnels() {
		if host != "corp.example:443" {
			t.Errorf("a tunnel of the sandbox led to %s", host)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.left) == 0 || s.up.Count("*/lookup/example.com/*") == 0 {
		t.Fatalf("the recorder has %d requests, want those for the public modules", len(s.left))
	}
	for _, request := range s.left {
		if name := named(request, "corp", "team", "app@", "upper", "1.4.7", "1.4.8", "1.5.9", "topic", topic[:12]); name != "" {
			t.Errorf("P44 %q left the gateway in\n%s", name, request)
		}
	}
	t.Logf("%d requests left the gateway, none of them with a private name", len(s.left))
}

// buildMixed does what a developer does, with a module cache that is kept from step to step.
func buildMixed(t *testing.T, s *privateSite) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module example.com/main\n\ngo 1.21\n",
		"main.go": "package main\n\nimport (\n\t_ \"corp.example/team/Upper\"\n\t_ \"corp.example/team/app\"\n\t_ \"corp.example/team/app/sub/deep\"\n\t_ \"example.com/hello\"\n)\n\nfunc main() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, printed, _ := strings.Cut(s.gateway.output.String(), "export GOSUMDB=")
	sumdb, _, _ := strings.Cut(printed, "\n")
	cache := t.TempDir()
	for _, tt := range []struct {
		line string
		want string // in what it prints; ! for a command that must fail
	}{
		{"mod tidy", ""},
		{"build ./...", ""},
		{"mod verify", "all modules verified"},
		{"list -m -u all", "corp.example/team/app v1.4.7"},
		{"list -m -versions corp.example/team/Upper", "v1.5.9"},
		{"get corp.example/team/app@topic", "corp.example/team/app"},
		{"get corp.example/team/app@latest", "v1.4.7"},
		{"get corp.example/team/app/sub/none@latest", "!"},
		{"get corp.example/team/none@latest", "!"},
		{"get corp.example@latest", "!"},
		{"mod download -json corp.example/team/app@v1.4.7", "h1:"},
	} {
		cmd := exec.Command("go", strings.Fields(tt.line)...)
		cmd.Dir = dir
		cmd.Env = []string{
			"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"), "GOENV=off", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local",
			"GOPROXY=" + s.url, "GOSUMDB=" + strings.Trim(sumdb, "'\""), "SSL_CERT_FILE=" + filepath.Join(s.dir, "state/ca/ca.pem"), "CGO_ENABLED=0",
			"GOPATH=" + filepath.Join(cache, "go"), "GOMODCACHE=" + filepath.Join(cache, "mod"), "GOCACHE=" + filepath.Join(os.TempDir(), "headgate-test-gocache"),
		}
		out, err := cmd.CombinedOutput()
		if fails := tt.want == "!"; fails != (err != nil) || !fails && !strings.Contains(string(out), tt.want) {
			t.Errorf("go %s: %v, want %q:\n%s", tt.line, err, tt.want, out)
		}
	}
}

// named finds a word in a request, whichever way it is spelt: escaped, in capitals, or as the protocol escapes them.
func named(request string, words ...string) string {
	text := request
	if plain, err := url.QueryUnescape(strings.ReplaceAll(text, "+", "%2B")); err == nil {
		text = plain
	}
	text = strings.ToLower(strings.ReplaceAll(text, "!", ""))
	for _, word := range words {
		if strings.Contains(text, word) {
			return word
		}
	}
	return ""
}

// The recorder would see a name however it is spelt.
func TestNamedSeesThroughSpellings(t *testing.T) {
	for _, text := range []string{"GET /corp.example/x", "GET /!c!o!r!p.example", "GET /%21corp", "GET /CORP", "q=%63orp"} {
		if named(text, "corp") != "corp" {
			t.Errorf("named(%q) does not see it", text)
		}
	}
	if got := named("GET /example.com/hello/@v/list", "corp", "1.4.7"); got != "" {
		t.Errorf("named sees %q where there is none", got)
	}
}
