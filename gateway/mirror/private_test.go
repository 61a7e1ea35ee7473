package mirror_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
)

// startPrivate is a mirror with corp.example at a Git server, which has team/app.
func startPrivate(t *testing.T) (*bench, *vcstest.Server, *vcstest.Repo, *mirrortest.Server) {
	t.Helper()
	git := vcstest.Start(t)
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) {
		c.Private = []mirror.PrivateRoute{
			{Patterns: []string{"corp.example/team/*"}, Hosts: []string{"corp.example"}, CAFile: git.CAFile, Proxy: git.Proxy},
			{Patterns: []string{"other.example"}},
		}
	})
	r, err := git.Create("team/app")
	if err != nil {
		t.Fatal(err)
	}
	tag(t, r, "v1.0.0")
	return b, git, r, up
}

func tag(t *testing.T, r *vcstest.Repo, version string) {
	t.Helper()
	_, err := r.Commit("main", map[string]string{
		"go.mod": "module corp.example/team/app\n\ngo 1.20\n", "a.go": "package app // " + version + "\n",
	}, version)
	if err != nil {
		t.Fatal(err)
	}
}

const privateList = "/corp.example/team/app/@v/list"

func TestPrivateFreshness(t *testing.T) {
	t.Parallel()
	b, git, r, up := startPrivate(t)
	if got, f := b.must(t, privateList); got != "v1.0.0\n" || f.Cache != "upstream" {
		t.Fatalf("list = %q from %s", got, f.Cache)
	}
	git.Forget()
	b.must(t, "/corp.example/team/app/@latest") // of the same run
	b.advance(59 * time.Second)
	b.must(t, privateList)
	if n := len(git.Requests()); n != 0 {
		t.Errorf("N1 a fresh list and @latest asked Git: %q", git.Requests())
	}
	tag(t, r, "v1.1.0")
	b.advance(2 * time.Second)
	if got, _ := b.must(t, privateList); got != "v1.0.0\n" {
		t.Errorf("after 61 s = %q, want the old list at once", got)
	}
	until(t, "N14 renewed in the background", func() bool {
		b.advance(time.Millisecond)
		s, _ := b.must(t, privateList)
		return s == "v1.0.0\nv1.1.0\n"
	})
	git.Demand("nobody", "knows")
	until(t, "C18 the old list in trouble", func() bool { // the first may still join a flight of before
		b.advance(6 * time.Minute)
		got, f := b.must(t, privateList)
		return got == "v1.0.0\nv1.1.0\n" && f.Stale
	})
	for _, p := range []string{"/corp.example/team/app/@v/main.info", "/corp.example/team/none/@v/list", "/corp.example/team/app/@v/v1.9.0.mod"} {
		if _, _, err := b.get(t.Context(), p); !errors.Is(err, mirror.ErrUpstream) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("E14 %s in trouble: %v, want ErrUpstream", p, err)
		}
	}
	if n := up.Count("*corp.example*"); n != 0 {
		t.Errorf("a private name went to the upstream: %q", up.Requests())
	}
}

func TestPrivateFiles(t *testing.T) {
	t.Parallel()
	b, git, r, up := startPrivate(t)
	var wg sync.WaitGroup
	for range 20 { // E13: one run gives .info and .mod, whoever asks
		for _, ext := range []string{"info", "mod"} {
			wg.Go(func() {
				if _, _, err := b.get(t.Context(), "/corp.example/team/app/@v/v1.0.0."+ext); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n := git.Count("info/refs"); n > 2 {
		t.Errorf("40 requests made %d git sessions, want those of one run: %q", n, git.Requests())
	}
	_, f := b.must(t, "/corp.example/team/app/@v/v1.0.0.zip")
	if !strings.HasPrefix(f.Hash, "h1:") || f.ETag == "" {
		t.Errorf("zip has hash %q and ETag %q", f.Hash, f.ETag)
	}
	for _, root := range []string{"private", "public"} {
		found, err := filepath.Glob(filepath.Join(b.cfg.Store, root, "corp.example/team/app/@v/v1.0.0.*"))
		if want := map[string]int{"private": 5, "public": 0}[root]; err != nil || len(found) != want {
			t.Errorf("%s root has %q (%v), want %d files", root, found, err, want)
		}
	}
	for _, tt := range []struct {
		name, path string
		want       error
	}{
		{"no such version", "/corp.example/team/app/@v/v1.7.0.info", fs.ErrNotExist},
		{"a folder", "/corp.example/team/app/sub/@v/list", fs.ErrNotExist},
		{"a prefix of the pattern", "/corp.example/team/@v/list", fs.ErrNotExist},
		{"a route without hosts", "/other.example/m/@v/list", mirror.ErrNoPrivateSource},
		{"E12 its lookup", "/sumdb/" + up.Sumdb() + "/lookup/corp.example/team/app@v1.0.0", mirror.ErrPrivate},
		{"E12 lookup without a source", "/sumdb/" + up.Sumdb() + "/lookup/other.example/m@v1.0.0", mirror.ErrPrivate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := b.get(t.Context(), tt.path); !errors.Is(err, tt.want) {
				t.Errorf("Open(%s): %v, want %v", tt.path, err, tt.want)
			}
		})
	}
	t.Run("C52 cached only", func(t *testing.T) {
		git.Forget()
		ctx := mirror.WithCachedOnly(t.Context())
		if got, _, err := b.get(ctx, privateList); err != nil || got != "v1.0.0\n" {
			t.Errorf("list = %q, %v, want what is stored", got, err)
		}
		if _, _, err := b.get(ctx, "/corp.example/team/app/@v/v1.8.0.zip"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a miss: %v, want fs.ErrNotExist", err)
		}
		if n := len(git.Requests()); n != 0 {
			t.Errorf("Git was asked: %q", git.Requests())
		}
	})
	t.Run("N8 a tag that moved between .mod and zip is an incident", func(t *testing.T) {
		tag(t, r, "v1.2.0")
		b.must(t, "/corp.example/team/app/@v/v1.2.0.mod")
		if _, err := r.Commit("main", map[string]string{"go.mod": "module corp.example/team/app\n\ngo 1.21\n"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Git("", "tag", "-f", "v1.2.0", "main"); err != nil {
			t.Fatal(err)
		}
		clones, err := filepath.Glob(filepath.Join(b.cfg.Store, "vcs/routes/*/clones/*"))
		if err != nil || len(clones) != 1 {
			t.Fatalf("kept clones: %q, %v", clones, err)
		}
		// The clone still has the tag as it was.
		bare, err := filepath.Glob(filepath.Join(clones[0], "*", "HEAD"))
		if err != nil || len(bare) != 1 {
			t.Fatalf("bare clones: %q, %v", bare, err)
		}
		if err := os.RemoveAll(filepath.Dir(bare[0])); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.get(t.Context(), "/corp.example/team/app/@v/v1.2.0.zip"); !errors.Is(err, mirror.ErrMismatch) {
			t.Errorf("zip: %v, want ErrMismatch", err)
		}
	})
	if n := up.Count("*corp.example*") + up.Count("*other.example*"); n != 0 {
		t.Errorf("N9 a private name went to the upstream: %q", up.Requests())
	}
}

func TestPrivateConfig(t *testing.T) {
	errs := mirror.Config{Private: []mirror.PrivateRoute{
		{Patterns: []string{"a.example"}, CredentialFile: "f"},
		{Patterns: []string{"b.example"}, Hosts: []string{"https://b.example", "b.example:443"}, CredentialFile: "f", TokenCommand: []string{"token"}},
		{Patterns: []string{"c.example"}, Hosts: []string{"c.example"}, SSHKeyFile: "k", Proxy: "http://user:canary@p.example:1", InsteadOf: map[string]string{"https://c.example/": "ssh://git:canary@c.example/"}},
		{Patterns: []string{"d.example"}, Hosts: []string{"d.example"}, InsteadOf: map[string]string{"https://d.example/": "ext::sh -c evil"}},
	}}.Validate()
	text := errors.Join(errs...).Error()
	for _, want := range []string{
		"private[0].credential_file: ", "private[1].hosts[0]: ", "private[1].token_command: stands", "private[1].token_command: \"token\"",
		"private[2].known_hosts_file: ", "private[2].proxy: ", "private[2].instead_of: ", "private[3].instead_of: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no mistake reported for %s", want)
		}
	}
	if len(errs) != 8 || strings.Contains(text, "canary") {
		t.Errorf("%d mistakes, want 8, without a password:\n%s", len(errs), text)
	}
}
