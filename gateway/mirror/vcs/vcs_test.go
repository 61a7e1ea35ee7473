package vcs_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/vcs"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
)

// bench is a source over a Git server.
type bench struct {
	*vcs.Source
	git *vcstest.Server
	o   vcs.Options
	log bytes.Buffer
	off atomic.Int64
}

func start(tb testing.TB, change func(*vcs.Options)) *bench {
	tb.Helper()
	b := &bench{git: vcstest.Start(tb)}
	b.o = vcs.Options{
		Dir: filepath.Join(tb.TempDir(), "vcs"), Logger: slog.New(slog.NewTextHandler(&b.log, nil)),
		Now: func() time.Time { return time.Now().Add(time.Duration(b.off.Load())) },
		Routes: []vcs.Route{{
			Patterns: []string{"corp.example/*"}, Hosts: []string{"corp.example"}, CAFile: b.git.CAFile, Proxy: b.git.Proxy,
		}},
	}
	if change != nil {
		change(&b.o)
	}
	b.reopen(tb)
	return b
}

func (b *bench) reopen(tb testing.TB) {
	tb.Helper()
	if b.Source != nil {
		if err := b.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	s, err := vcs.Open(tb.Context(), b.o)
	if err != nil {
		tb.Fatal(err)
	}
	b.Source = s
	tb.Cleanup(func() { s.Close() })
}

// repo makes a repository and commits to it.
func (b *bench) repo(tb testing.TB, name string) *vcstest.Repo {
	tb.Helper()
	r, err := b.git.Create(name)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func commit(tb testing.TB, r *vcstest.Repo, branch string, files map[string]string, tags ...string) string {
	tb.Helper()
	hash, err := r.Commit(branch, files, tags...)
	if err != nil {
		tb.Fatal(err)
	}
	return hash
}

// nothingLeft asserts that no folder of a run is left.
func (b *bench) nothingLeft(tb testing.TB) {
	tb.Helper()
	left, err := os.ReadDir(filepath.Join(b.o.Dir, "run"))
	if err != nil || len(left) > 0 {
		tb.Errorf("after the runs %v are left (%v), want nothing", left, err)
	}
}

func files(path string, more ...string) map[string]string {
	m := map[string]string{"go.mod": "module " + path + "\n\ngo 1.20\n", "m.go": "package m\n"}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func (b *bench) zip(tb testing.TB, path, version string) []string {
	tb.Helper()
	var buf bytes.Buffer
	if _, err := b.Zip(tb.Context(), 0, module.Version{Path: path, Version: version}, &buf); err != nil {
		tb.Fatalf("Zip(%s@%s): %v", path, version, err)
	}
	z, err := zip.NewReader(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, f := range z.File {
		names = append(names, strings.TrimPrefix(f.Name, path+"@"+version+"/"))
	}
	slices.Sort(names)
	return names
}

// app is a repository with everything that a module path can lead to.
func app(tb testing.TB, b *bench) (first, second string) {
	tb.Helper()
	r := b.repo(tb, "team/app")
	base := []string{"nest/go.mod", "module corp.example/team/app/nest\n", "nest/n.go", "package nest\n", "pkg/p.go", "package pkg\n"}
	first = commit(tb, r, "main", files("corp.example/team/app", base...), "v1.0.0", "v1.1.0-rc.1", "nest/v0.1.0")
	second = commit(tb, r, "main", files("corp.example/team/app", append(base, "bare/go.mod", "module corp.example/team/app/bare\n", "bare/b.go", "package bare\n")...), "v1.1.0")
	commit(tb, r, "v2", files("corp.example/team/app/v2"), "v2.0.0")
	commit(tb, r, "topic", files("corp.example/team/app", "t.go", "package m\n"))
	return first, second
}

func TestEveryFormOfModule(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	first, second := app(t, b)
	old := b.repo(t, "team/old")
	commit(t, old, "main", map[string]string{"m.go": "package old\n"}, "v1.0.0", "v3.0.0")
	untagged := b.repo(t, "team/untagged")
	commit(t, untagged, "main", files("corp.example/team/untagged"))
	for _, tt := range []struct{ name, path, versions, latest string }{
		{"tags", "corp.example/team/app", "v1.0.0 v1.1.0-rc.1 v1.1.0", `"v1.1.0"`},
		{"nested module", "corp.example/team/app/nest", "v0.1.0", `"v0.1.0"`},
		{"nested module without tags", "corp.example/team/app/bare", "", `"v0.0.0-`},
		{"C12 major version", "corp.example/team/app/v2", "v2.0.0", `"v2.0.0"`},
		{"C13 incompatible", "corp.example/team/old", "v1.0.0 v3.0.0+incompatible", `"v3.0.0+incompatible"`},
		{"C1 no tags", "corp.example/team/untagged", "", `"v0.0.0-`},
	} {
		t.Run("list "+tt.name, func(t *testing.T) {
			m, err := b.Look(t.Context(), 0, tt.path)
			if err != nil {
				t.Fatalf("Look(%s): %v", tt.path, err)
			}
			if got := strings.Join(m.Versions, " "); got != tt.versions || !strings.Contains(string(m.Latest), tt.latest) {
				t.Errorf("Look(%s) = %q, %s, want %q, %s", tt.path, got, m.Latest, tt.versions, tt.latest)
			}
		})
	}
	for _, tt := range []struct{ name, path, query, want string }{
		{"version", "corp.example/team/app", "v1.0.0", first},
		{"C3 branch", "corp.example/team/app", "topic", `"v0.0.0-`},
		{"commit", "corp.example/team/app", second, `"v1.1.0"`},
		{"short commit", "corp.example/team/app", second[:12], `"v1.1.0"`},
		{"nested version", "corp.example/team/app/nest", "v0.1.0", `"Subdir":"nest"`},
	} {
		t.Run("stat "+tt.name, func(t *testing.T) {
			rev, err := b.Stat(t.Context(), 0, module.Version{Path: tt.path, Version: tt.query})
			if err != nil {
				t.Fatalf("Stat(%s@%s): %v", tt.path, tt.query, err)
			}
			if !strings.Contains(string(rev.Info), tt.want) || !strings.HasPrefix(string(rev.Mod), "module "+tt.path) {
				t.Errorf("Stat(%s@%s) = %s, %s, want %s", tt.path, tt.query, rev.Info, rev.Mod, tt.want)
			}
		})
	}
	t.Run("zip has its module alone", func(t *testing.T) {
		if got := b.zip(t, "corp.example/team/app", "v1.0.0"); !slices.Equal(got, []string{"go.mod", "m.go", "pkg/p.go"}) {
			t.Errorf("Zip has %q", got)
		}
	})
	for _, tt := range []struct{ name, path, query string }{
		{"folder", "corp.example/team/app/pkg", ""},
		{"folder of no repository's", "corp.example/team/app/none", ""},
		{"major version", "corp.example/team/app/v3", ""},
		{"version", "corp.example/team/app", "v1.7.0"},
		{"branch", "corp.example/team/app", "nobranch"},
		{"commit", "corp.example/team/app", strings.Repeat("ab", 20)},
		{"version of a folder", "corp.example/team/app/pkg", "v1.0.0"},
	} {
		t.Run("not there: "+tt.name, func(t *testing.T) {
			var err error
			if tt.query == "" {
				_, err = b.Look(t.Context(), 0, tt.path)
			} else {
				_, err = b.Stat(t.Context(), 0, module.Version{Path: tt.path, Version: tt.query})
			}
			if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, vcs.ErrNotFound) {
				t.Errorf("%s@%s: %v, want ErrNotFound", tt.path, tt.query, err)
			}
		})
	}
	b.nothingLeft(t)
}

// A branch query must not leave its Ref in the .info of the tag at the same commit.
func TestQueryDoesNotSpoilInfo(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	app(t, b)
	for _, query := range []string{"main", "v1.1.0"} {
		rev, err := b.Stat(t.Context(), 0, module.Version{Path: "corp.example/team/app", Version: query})
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]string{"main": "refs/heads/main", "v1.1.0": "refs/tags/v1.1.0"}[query]; !strings.Contains(string(rev.Info), `"`+want+`"`) {
			t.Errorf("Stat(%s) = %s, want Ref %s", query, rev.Info, want)
		}
	}
}

func TestKeptCloneMakesOneRoundTrip(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	r := b.repo(t, "team/many")
	tags := 50
	if os.Getenv("SOAK") != "" {
		tags = 500
	}
	for i := range tags {
		commit(t, r, "main", files("corp.example/team/many", "n.go", fmt.Sprintf("package m\n\nconst N = %d\n", i)), fmt.Sprintf("v1.%d.0", i))
	}
	look := func(want int) (posts int, took time.Duration) {
		t.Helper()
		b.git.Forget()
		begin := time.Now()
		m, err := b.Look(t.Context(), 0, "corp.example/team/many")
		if err != nil || len(m.Versions) != want {
			t.Fatalf("Look = %v, %v, want %d versions", m, err, want)
		}
		return b.git.Count("POST"), time.Since(begin)
	}
	cold, coldTook := look(tags)
	for _, restart := range []bool{false, true} { // N1, N2: the clone survives a restart
		if restart {
			b.reopen(t)
		}
		warm, warmTook := look(tags)
		t.Logf("%d tags: cold %d git requests in %v, warm %d in %v", tags, cold, coldTook, warm, warmTook)
		if got := b.git.Count("info/refs"); got != 1 || warm != 1 {
			t.Errorf("second look: %d git sessions with %d requests, want one round trip: %q", got, warm, b.git.Requests())
		}
	}
	commit(t, r, "main", files("corp.example/team/many", "n.go", "package m\n"), "v2.0.0-ignored", "v1.1000.0")
	if n, _ := look(tags + 1); n > 3 { // N14: ls-remote, and a fetch of one commit
		t.Errorf("look after one new tag made %d requests: %q", n, b.git.Requests())
	}
}

func TestSubPathsComeFromTheClone(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	app(t, b)
	if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); err != nil {
		t.Fatal(err)
	}
	b.git.Forget()
	for _, path := range []string{"pkg", "pkg/sub", "none/v2", "a/b/c"} {
		if _, err := b.Look(t.Context(), 0, "corp.example/team/app/"+path); !errors.Is(err, vcs.ErrNotFound) {
			t.Errorf("Look(%s): %v, want ErrNotFound", path, err)
		}
	}
	if got := b.git.Count("go-get=1"); got != 0 {
		t.Errorf("the go command ran for folders that are no module: %q", b.git.Requests())
	}
	if got := b.git.Count("info/refs"); got > 2 {
		t.Errorf("four folders made %d git sessions, want one look at refs and one fetch at most: %q", got, b.git.Requests())
	}
	if m, err := b.Look(t.Context(), 0, "corp.example/team/app/bare"); err != nil || len(m.Latest) == 0 {
		t.Errorf("nested module of a known repository = %v, %v", m, err)
	}
}

func TestTroubleIsNeverNotFound(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} {
		for i, tt := range []struct {
			name   string
			before func(w http.ResponseWriter, r *http.Request) bool
		}{
			{"no repository at the path", nil},
			{"E14 discovery 500", func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusInternalServerError)
				return true
			}},
			{"E14 discovery 404", func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true }},
			{"refs 404", onlyGit("info/refs", 404)},
			{"refs 500", onlyGit("info/refs", 500)},
			{"refs that are HTML", func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "info/refs") {
					return false
				}
				fmt.Fprint(w, "<html>maintenance</html>")
				return true
			}},
			{"fetch fails after the refs came", failFetch()},
			{"redirect to another host", func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "info/refs") {
					return false
				}
				http.Redirect(w, r, "https://evil.example"+r.URL.RequestURI(), http.StatusFound)
				return true
			}},
			{"discovery names another host", func(w http.ResponseWriter, r *http.Request) bool {
				fmt.Fprintf(w, `<meta name="go-import" content="corp.example/team/app git https://evil.example/team/app.git">`)
				return r.URL.Query().Get("go-get") == "1"
			}},
			{"discovery names a file", func(w http.ResponseWriter, r *http.Request) bool {
				fmt.Fprintf(w, `<meta name="go-import" content="corp.example/team/app git file:///etc">`)
				return true
			}},
			{"discovery names another system", func(w http.ResponseWriter, r *http.Request) bool {
				fmt.Fprintf(w, `<meta name="go-import" content="corp.example/team/app hg https://corp.example/team/app">`)
				return true
			}},
		} {
			if known && (i < 3 || i > 7) { // before Git is asked, it makes no difference
				continue
			}
			t.Run(fmt.Sprintf("%s, known %v", tt.name, known), func(t *testing.T) {
				b := start(t, nil)
				if tt.before == nil {
					if _, err := b.Look(t.Context(), 0, "corp.example/team/nothing"); !errors.Is(err, vcs.ErrFailed) || errors.Is(err, fs.ErrNotExist) {
						t.Errorf("Look: %v, want ErrFailed", err)
					}
					return
				}
				app(t, b)
				if known { // what follows needs a fetch all the same
					if _, err := b.Stat(t.Context(), 0, module.Version{Path: "corp.example/team/app", Version: "v1.0.0"}); err != nil {
						t.Fatal(err)
					}
					r := b.repo(t, "team/app")
					commit(t, r, "main", files("corp.example/team/app", "new.go", "package m\n"), "v1.2.0")
					commit(t, r, "topic", files("corp.example/team/app", "new.go", "package m\n\n"))
				}
				b.git.Before(tt.before)
				_, list := b.Look(t.Context(), 0, "corp.example/team/app")
				_, folder := b.Look(t.Context(), 0, "corp.example/team/app/pkg")
				_, stat := b.Stat(t.Context(), 0, module.Version{Path: "corp.example/team/app", Version: "topic"})
				for name, err := range map[string]error{"list": list, "list of a folder": folder, "stat": stat} {
					if !errors.Is(err, vcs.ErrFailed) || errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: %v, want ErrFailed", name, err)
					}
				}
				for _, host := range b.git.Tunnels() {
					if host != "corp.example:443" {
						t.Errorf("a tunnel led to %s", host)
					}
				}
				b.nothingLeft(t)
			})
		}
	}
}

func onlyGit(part string, status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, part) {
			w.WriteHeader(status)
			return true
		}
		return false
	}
}

// failFetch lets ls-refs pass and fails every fetch of objects.
func failFetch() func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		var body bytes.Buffer
		if _, err := body.ReadFrom(r.Body); err != nil {
			return true
		}
		if bytes.Contains(body.Bytes(), []byte("command=fetch")) {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		r.Body = readCloser{&body}
		return false
	}
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

func TestCredentials(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-canary%/x"
	for _, tt := range []struct {
		name, file, user string
		works            bool
	}{
		{"user and password", "ann:" + secret + "\n", "ann", true},
		{"token", secret, "", true},
		{"N16 wrong password", "ann:wrong-canary", "ann", false},
		{"none", "", "ann", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := filepath.Join(t.TempDir(), "credential")
			b := start(t, func(o *vcs.Options) {
				if tt.file != "" {
					o.Routes[0].CredentialFile = name
				}
			})
			if err := os.WriteFile(name, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			app(t, b)
			b.git.Demand(tt.user, secret)
			_, err := b.Look(t.Context(), 0, "corp.example/team/app")
			if tt.works != (err == nil) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Look: %v, want it to work: %v", err, tt.works)
			}
			text := fmt.Sprint(err) + b.log.String() + strings.Join(b.git.Requests(), "\n")
			if strings.Contains(text, "canary") {
				t.Errorf("a secret is in %s", text)
			}
			if err := filepath.WalkDir(b.o.Dir, func(name string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				if data, err := os.ReadFile(name); err != nil || bytes.Contains(data, []byte("canary")) {
					t.Errorf("a secret is left in %s (%v)", name, err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if tt.works { // read again when it changes
				b.git.Demand(tt.user, "next-canary")
				if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); err == nil {
					t.Error("an old credential still works")
				}
				next := "next-canary"
				if tt.user != "" {
					next = tt.user + ":" + next
				}
				if err := os.WriteFile(name, []byte(next), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); err != nil {
					t.Errorf("Look with the new credential: %v", err)
				}
			}
		})
	}
}

// N16: a server that sends back what it was sent does not get it into an error, since the go command prints such answers.
func TestEchoedCredentialIsRedacted(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "credential")
	if err := os.WriteFile(name, []byte("ann:s3cr3t-canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(o *vcs.Options) { o.Routes[0].CredentialFile = name })
	echoed := false
	b.git.Before(func(w http.ResponseWriter, r *http.Request) bool {
		_, password, ok := r.BasicAuth()
		echoed = echoed || ok
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "no %s %s https://ann:%s@corp.example/\n", r.Header.Get("Authorization"), password, password)
		return true
	})
	_, err := b.Look(t.Context(), 0, "corp.example/team/app")
	text := fmt.Sprint(err)
	if !echoed || !errors.Is(err, vcs.ErrFailed) || !strings.Contains(text, "[redacted]") {
		t.Errorf("Look: %v, want the server's answer, redacted", err)
	}
	for _, secret := range []string{"canary", "YW5uOnMzY3IzdC1jYW5hcnk=", "ann:"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in %s", secret, text)
		}
	}
}

func TestTokenCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := filepath.Join(dir, "token")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho run >> "+dir+"/runs\ncat "+dir+"/value\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(o *vcs.Options) { o.Routes[0].TokenCommand = []string{script} })
	app(t, b)
	look := func(token string) error {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "value"), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := b.Look(t.Context(), 0, "corp.example/team/app")
		return err
	}
	runs := func() int {
		data, err := os.ReadFile(filepath.Join(dir, "runs"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "run")
	}
	b.git.Demand("", "one")
	for range 2 {
		if err := look("one"); err != nil {
			t.Fatal(err)
		}
	}
	if got := runs(); got != 1 {
		t.Errorf("two looks asked %d times for a token, want once", got)
	}
	b.git.Demand("", "two")
	if err := look("two"); err != nil || runs() != 2 {
		t.Errorf("after a refusal of the kept token: %v with %d runs, want a new token in the same look", err, runs())
	}
	b.git.Demand("", "three")
	if err := look("two"); !errors.Is(err, vcs.ErrFailed) || runs() != 3 {
		t.Errorf("a command that knows no other token: %v with %d runs, want ErrFailed after one more", err, runs())
	}
	b.off.Store(int64(6 * time.Minute))
	b.git.Demand("", "four")
	if err := look("four"); err != nil || runs() != 4 {
		t.Errorf("a token that is too old: %v with %d runs, want it asked for before it is refused", err, runs())
	}
}

// Hostile repositories: nothing of them runs, and what a zip may not hold is not in it.
func TestHostileRepositories(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	r := b.repo(t, "team/evil")
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 12345\n"
	marker := filepath.Join(t.TempDir(), "ran")
	sub := commit(t, r, "other", files("corp.example/team/evil"))
	commit(t, r, "main", files("corp.example/team/evil",
		"link", "-> /etc/passwd", "up/link.go", "-> ../../../../etc/passwd", "sub", "@ "+sub,
		".gitmodules", "[submodule \"sub\"]\n\tpath = sub\n\turl = https://evil.example/x.git\n",
		".gitattributes", "*.go filter=evil ident export-subst\nbig.bin filter=lfs diff=lfs merge=lfs -text\nm.go export-ignore\n",
		"big.bin", pointer, ".githooks/post-checkout", "#!/bin/sh\ntouch "+marker+"\n",
		".lfsconfig", "[lfs]\n\turl = https://evil.example/lfs\n",
	), "v1.0.0", "--upload-pack=touch", "-v1.2.0")
	if _, err := r.Git("", "config", "uploadpack.packObjectsHook", "/bin/false"); err != nil {
		t.Fatal(err)
	}
	t.Run("refs that begin with a dash", func(t *testing.T) {
		m, err := b.Look(t.Context(), 0, "corp.example/team/evil")
		if err != nil || !slices.Equal(m.Versions, []string{"v1.0.0"}) {
			t.Errorf("Look = %+v, %v, want v1.0.0 alone", m, err)
		}
		b.git.Forget()
		if _, err := b.Stat(t.Context(), 0, module.Version{Path: "corp.example/team/evil", Version: "--upload-pack=touch"}); !errors.Is(err, vcs.ErrFailed) {
			t.Errorf("Stat: %v, want ErrFailed", err)
		}
		if n := len(b.git.Requests()); n != 0 {
			t.Errorf("a revision with a dash made requests: %q", b.git.Requests())
		}
	})
	t.Run("symlinks, submodules, filters, LFS", func(t *testing.T) {
		got := b.zip(t, "corp.example/team/evil", "v1.0.0")
		for _, name := range got {
			if strings.Contains(name, "link") || strings.HasPrefix(name, "sub") {
				t.Errorf("the zip has %s", name)
			}
		}
		if !slices.Contains(got, "m.go") || !slices.Contains(got, "big.bin") {
			t.Errorf("the zip has %q, want m.go though it is export-ignore, and the pointer as it is", got)
		}
	})
	t.Run("go.mod that is a link", func(t *testing.T) {
		bad := files("x")
		bad["go.mod"] = "-> /etc/passwd"
		commit(t, r, "main", bad, "v1.1.0")
		if rev, err := b.Stat(t.Context(), 0, module.Version{Path: "corp.example/team/evil", Version: "v1.1.0"}); err == nil {
			t.Errorf("Stat = %s, want an error", rev.Mod)
		}
	})
	if _, err := os.Stat(marker); err == nil {
		t.Error("a hook ran")
	}
	for _, host := range b.git.Tunnels() {
		if host != "corp.example:443" {
			t.Errorf("a tunnel led to %s", host)
		}
	}
	b.nothingLeft(t)
}

func TestTooBigIsEnded(t *testing.T) {
	t.Parallel()
	b := start(t, func(o *vcs.Options) { o.MaxDisk = 1 << 20 })
	r := b.repo(t, "team/big")
	noise := make([]byte, 8<<20)
	state := uint64(1)
	for i := range noise { // does not compress
		state = state*6364136223846793005 + 1442695040888963407
		noise[i] = byte(state >> 56)
	}
	commit(t, r, "main", files("corp.example/team/big", "noise.bin", string(noise)), "v1.0.0")
	_, err := b.Zip(t.Context(), 0, module.Version{Path: "corp.example/team/big", Version: "v1.0.0"}, &bytes.Buffer{})
	if !errors.Is(err, vcs.ErrFailed) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Zip: %v, want ErrFailed", err)
	}
	b.nothingLeft(t)
}

func TestSlowIsEndedWhole(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	app(t, b)
	if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); err != nil {
		t.Fatal(err)
	}
	b.o.LookTimeout = 2 * time.Second
	b.reopen(t)
	release := make(chan struct{})
	b.git.Before(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	})
	begin := time.Now()
	_, err := b.Look(t.Context(), 0, "corp.example/team/app")
	if !errors.Is(err, vcs.ErrTimeout) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Look: %v, want ErrTimeout", err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %v to end a run of 2s", took)
	}
	close(release)
	b.git.Before(nil)
	b.nothingLeft(t)
	b.o.LookTimeout = 0
	b.reopen(t)
	if left := childrenIn(t, b.o.Dir); len(left) > 0 { // N17
		t.Errorf("processes are left: %q", left)
	}
	if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); err != nil {
		t.Errorf("Look after a run that was ended: %v", err)
	}
}

// childrenIn lists processes that work with a folder.
func childrenIn(tb testing.TB, dir string) []string {
	tb.Helper()
	var found []string
	lines, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range lines {
		if data, err := os.ReadFile(name); err == nil && bytes.Contains(data, []byte("HOME="+dir)) {
			found = append(found, name)
		}
	}
	return found
}

// N7, N17: locks, half packs, folders and clones that a killed process left do no harm.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	r := b.repo(t, "team/app")
	commit(t, r, "main", files("corp.example/team/app"), "v1.0.0")
	if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); err != nil {
		t.Fatal(err)
	}
	clones, err := filepath.Glob(filepath.Join(b.o.Dir, "routes/*/clones/*/*/HEAD"))
	if err != nil || len(clones) != 1 {
		t.Fatalf("kept clones: %q, %v, want one", clones, err)
	}
	clone := filepath.Dir(clones[0])
	left := []string{
		filepath.Join(clone, "shallow.lock"), filepath.Join(clone, "config.lock"), filepath.Join(clone, "objects/pack/tmp_pack_x"),
		filepath.Join(b.o.Dir, "run/1234/work/x"), filepath.Join(b.o.Dir, "routes", filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(clone)))), "clones/half/x"),
	}
	for _, name := range left {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.reopen(t)
	for _, name := range left {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", name)
		}
	}
	commit(t, r, "main", files("corp.example/team/app", "b.go", "package m\n"), "v1.1.0")
	if m, err := b.Look(t.Context(), 0, "corp.example/team/app"); err != nil || len(m.Versions) != 2 {
		t.Errorf("Look = %v, %v, want two versions", m, err)
	}
}

// E13, N7: many callers at once; at most four runs, and one for each repository.
func TestHerd(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	const repos = 5
	for i := range repos {
		name := fmt.Sprintf("team/r%d", i)
		commit(t, b.repo(t, name), "main", files("corp.example/"+name), "v1.0.0")
	}
	var mu sync.Mutex
	most := 0
	b.git.Before(func(http.ResponseWriter, *http.Request) bool {
		left, err := os.ReadDir(filepath.Join(b.o.Dir, "run"))
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			most = max(most, len(left))
		}
		return false
	})
	var wg sync.WaitGroup
	for i := range 2 * repos {
		wg.Go(func() {
			if _, err := b.Look(t.Context(), 0, fmt.Sprintf("corp.example/team/r%d", i%repos)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most > 4 {
		t.Errorf("%d runs at once, want at most 4", most)
	}
	for i := range repos {
		if got := b.git.Count(fmt.Sprintf("POST corp.example/team/r%d", i)); got > 5 {
			t.Errorf("two looks at one repository made %d git requests, want one clone", got)
		}
	}
	b.nothingLeft(t)
}

func TestCancelledWhileWaiting(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Look(ctx, 0, "corp.example/team/app"); !errors.Is(err, context.Canceled) {
		t.Errorf("Look: %v, want the context's error", err)
	}
}

// The children's environment is whole and explicit: what this process has does not reach them.
func TestEnvironmentIsExplicit(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "go")
	record := filepath.Join(t.TempDir(), "env")
	script := "#!/bin/sh\n[ \"$1\" = env ] && { echo go1.26.0; exit; }\nenv > " + record + "\npwd >> " + record + "\nls -A >> " + record + "\necho telemetry=$(cat $HOME/.config/go/telemetry/mode) data=$(ulimit -d) core=$(ulimit -c) >> " + record + "\n"
	if err := os.WriteFile(fake, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"GIT_SSH_COMMAND": "evil", "GOFLAGS": "-toolexec=evil", "GIT_CONFIG_COUNT": "1", "SSH_AUTH_SOCK": "/evil", "CANARY": "evil", "GOPROXY": "https://evil.example",
	} {
		t.Setenv(key, value)
	}
	b := start(t, func(o *vcs.Options) { o.Go = fake })
	if _, err := b.Look(t.Context(), 0, "corp.example/team/app"); !errors.Is(err, vcs.ErrFailed) {
		t.Errorf("Look: %v, want ErrFailed", err)
	}
	data, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	if strings.Contains(text, "evil") {
		t.Errorf("the sandbox sees this process's environment:\n%s", text)
	}
	for _, want := range []string{
		"LC_ALL=C", "GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GOPROXY=direct", "GONOPROXY=none", "GOPRIVATE=\n", "GOINSECURE=\n", "GOSUMDB=off",
		"GOAUTH=off", "GOVCS=corp.example/*:git,*:off", "GOFLAGS=\n", "CGO_ENABLED=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + b.o.Dir, "GIT_ALLOW_PROTOCOL=https\n",
		"GIT_SSL_CAINFO=" + b.git.CAFile, "GIT_SSL_CAPATH=" + b.o.Dir, // the machine's CAs are not trusted beside the route's
		"GIT_TERMINAL_PROMPT=0", "GIT_NO_REPLACE_OBJECTS=1", "GIT_LFS_SKIP_SMUDGE=1", "HTTPS_PROXY=http://127.0.0.1:", "HOME=" + b.o.Dir, "/work\n", "telemetry=off data=3145728 core=0\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the sandbox's environment has no %q:\n%s", want, text)
		}
	}
}
