package git_test

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
	"github.com/headgate/headgate/policy/git"
	"github.com/headgate/headgate/policy/git/gittest"
)

// bench is a repository of policy on a Git server, with one SSH signer.
type bench struct {
	server *vcstest.Server
	repo   *gittest.Repo
	key    *gittest.Key
	cfg    git.Config
	o      git.Options
}

var plain = map[string]string{"bundle.yaml": "name: x\n", "config/teams.yaml": "teams: {}\n"}

func start(t *testing.T) *bench {
	t.Helper()
	b := &bench{server: vcstest.Start(t), key: gittest.SSH(t)}
	b.repo = gittest.Create(t, filepath.Join(b.server.Dir, "repos", "policy.git"))
	b.cfg = git.Config{
		URL: "https://git.corp.example/policy.git", Branch: "main", CAFile: b.server.CAFile, Proxy: b.server.Proxy,
		AllowedSigners: write(t, b.key.Allowed(t)),
	}
	b.o.Dir = t.TempDir()
	return b
}

func write(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func (b *bench) open(t *testing.T) *git.Repository {
	t.Helper()
	r, err := git.Open(t.Context(), b.cfg, b.o)
	if err != nil {
		t.Fatalf("Open(%+v) = %v", b.cfg, err)
	}
	return r
}

// bring looks, fetches, verifies and reads, as far as it goes.
func bring(ctx context.Context, r *git.Repository) (c git.Commit, signer string, files fs.FS, err error) {
	tip, err := r.Look(ctx)
	if err != nil {
		return c, "", nil, err
	}
	if c, err = r.Fetch(ctx, tip); err != nil {
		return c, "", nil, err
	}
	if signer, err = r.Verify(ctx, c); err != nil {
		return c, "", nil, err
	}
	files, err = r.Files(ctx, c)
	return c, signer, files, err
}

// refused asserts that the candidate is refused, for a reason that holds the text.
func refused(t *testing.T, r *git.Repository, want string) {
	t.Helper()
	_, _, _, err := bring(t.Context(), r)
	if !errors.Is(err, git.ErrRefused) || !strings.Contains(err.Error(), want) {
		t.Errorf("the candidate: %v, want it refused with %q", err, want)
	}
}

func TestSignedCommit(t *testing.T) {
	b := start(t)
	id := b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
	c, signer, files, err := bring(t.Context(), b.open(t))
	if err != nil || c.ID != id || c.Ref != "refs/heads/main" || signer != b.key.Fingerprint {
		t.Fatalf("bring() = %+v, %s, %v, want commit %s by %s", c, signer, err, id, b.key.Fingerprint)
	}
	text, err := fs.ReadFile(files, "config/teams.yaml")
	if err != nil || string(text) != plain["config/teams.yaml"] {
		t.Errorf("teams.yaml = %q, %v", text, err)
	}
	left, err := filepath.Glob(filepath.Join(b.o.Dir, "tmp", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("visits left %v (%v)", left, err)
	}
}

// TestP19Signatures: whose signature does not count is refused, whatever git itself would make of it.
func TestP19Signatures(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, b *bench)
		want string
	}{
		{"P19 unsigned", func(_ *testing.T, b *bench) { b.repo.Commit(gittest.Commit{Files: plain}) }, "it is not signed"},
		{"P19 unknown key", func(t *testing.T, b *bench) { b.repo.Commit(gittest.Commit{Files: plain, Key: gittest.SSH(t)}) }, "does not accept"},
		{"P19 expired key", func(t *testing.T, b *bench) {
			b.cfg.AllowedSigners = write(t, b.key.Allowed(t, `valid-before="20200101"`))
			b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
		}, "does not accept"},
		{"P19 revoked key", func(t *testing.T, b *bench) {
			b.cfg.RevokedSigners = write(t, b.key.Public(t)+"\n")
			b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
		}, "does not accept"},
		{"P19 key for another namespace", func(t *testing.T, b *bench) {
			b.cfg.AllowedSigners = write(t, strings.Replace(b.key.Allowed(t), `"git"`, `"file"`, 1))
			b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
		}, "does not accept"},
		{"P19 signature of another commit", func(t *testing.T, b *bench) {
			signed := b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
			text := b.repo.Git("", nil, "cat-file", "commit", signed) + "\n"
			forged := b.repo.Git(strings.Replace(text, "policy", "other policy", 1), nil, "hash-object", "-t", "commit", "-w", "--stdin")
			b.repo.Git("", nil, "update-ref", "refs/heads/main", forged)
		}, "does not accept"},
		{"P19 two signatures", func(t *testing.T, b *bench) {
			signed := b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
			text := b.repo.Git("", nil, "cat-file", "commit", signed) + "\n"
			head, body, _ := strings.Cut(text, "\n\n")
			_, signature, _ := strings.Cut(head, "gpgsig ")
			forged := b.repo.Git(head+"\ngpgsig "+signature+"\n\n"+body, nil, "hash-object", "-t", "commit", "-w", "--stdin", "--literally")
			b.repo.Git("", nil, "update-ref", "refs/heads/main", forged)
		}, "more than one signature"},
		{"P19 PGP where SSH is required", func(t *testing.T, b *bench) {
			b.repo.Commit(gittest.Commit{Files: plain, Key: gittest.PGP(t, time.Now(), "0")})
		}, "format PGP, for which no signer is configured"},
		{"P19 SSH where PGP is required", func(t *testing.T, b *bench) {
			b.cfg.AllowedSigners, b.cfg.PGPKeys = "", write(t, gittest.PGP(t, time.Now(), "0").Export(t))
			b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
		}, "format SSH, for which no signer is configured"},
		{"P19 expired PGP key", func(t *testing.T, b *bench) {
			key := gittest.PGP(t, time.Now().Add(-240*time.Hour), "1d")
			b.cfg.PGPKeys = write(t, key.Export(t))
			b.repo.Commit(gittest.Commit{Files: plain, Key: key})
		}, "does not accept"},
		{"P19 revoked PGP key", func(t *testing.T, b *bench) {
			key := gittest.PGP(t, time.Now().Add(-time.Hour), "0")
			b.repo.Commit(gittest.Commit{Files: plain, Key: key})
			key.Revoke(t)
			b.cfg.PGPKeys = write(t, key.Export(t))
		}, "does not accept"},
		{"P19 unknown PGP key", func(t *testing.T, b *bench) {
			b.cfg.PGPKeys = write(t, gittest.PGP(t, time.Now(), "0").Export(t))
			b.repo.Commit(gittest.Commit{Files: plain, Key: gittest.PGP(t, time.Now(), "0")})
		}, "does not accept"},
		{"P25 merge signed by the forge", func(t *testing.T, b *bench) {
			forge := gittest.PGP(t, time.Now(), "0")
			b.cfg.PGPKeys = write(t, forge.Export(t))
			b.cfg.Branch, b.cfg.Tag, b.cfg.Verify = "", "policy-v*", git.VerifyTag
			b.cfg.PGPKeys = ""
			b.repo.Tag("policy-v1.0.0", b.repo.Commit(gittest.Commit{Files: plain, Key: forge}), forge)
		}, "format PGP, for which no signer is configured"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t)
			tt.make(t, b)
			refused(t, b.open(t), tt.want)
		})
	}
}

func TestPGP(t *testing.T) {
	b := start(t)
	key := gittest.PGP(t, time.Now(), "0")
	b.cfg.AllowedSigners, b.cfg.PGPKeys = "", write(t, key.Export(t))
	b.repo.Commit(gittest.Commit{Files: plain, Key: key})
	if _, signer, _, err := bring(t.Context(), b.open(t)); err != nil || signer != key.Fingerprint {
		t.Errorf("bring() = %s, %v, want %s", signer, err, key.Fingerprint)
	}
}

func TestTags(t *testing.T) {
	for _, tt := range []struct {
		name, verify string
		make         func(t *testing.T, b *bench)
		want         string
	}{
		{"newest by version", git.VerifyTag, func(_ *testing.T, b *bench) {
			for _, name := range []string{"policy-v1.9.0", "policy-v1.10.0", "policy-v1.2.0", "other-v9.0.0", "policy-vnext"} {
				b.repo.Tag(name, b.repo.Commit(gittest.Commit{Files: plain}), b.key)
			}
		}, ""},
		{"both signed", git.VerifyBoth, func(_ *testing.T, b *bench) {
			b.repo.Tag("policy-v1.10.0", b.repo.Commit(gittest.Commit{Files: plain, Key: b.key}), b.key)
		}, ""},
		{"P19 both wanted, commit unsigned", git.VerifyBoth, func(_ *testing.T, b *bench) {
			b.repo.Tag("policy-v1.10.0", b.repo.Commit(gittest.Commit{Files: plain}), b.key)
		}, "it is not signed"},
		{"P19 tag unsigned", git.VerifyTag, func(_ *testing.T, b *bench) {
			b.repo.Tag("policy-v1.10.0", b.repo.Commit(gittest.Commit{Files: plain, Key: b.key}), nil)
		}, "it is not signed"},
		{"P19 lightweight tag", git.VerifyTag, func(_ *testing.T, b *bench) {
			b.repo.Git("", nil, "update-ref", "refs/tags/policy-v1.10.0", b.repo.Commit(gittest.Commit{Files: plain, Key: b.key}))
		}, "lightweight"},
		{"P19 signed tag under another name", git.VerifyTag, func(_ *testing.T, b *bench) {
			old := b.repo.Tag("policy-v1.0.0", b.repo.Commit(gittest.Commit{Files: plain}), b.key)
			b.repo.Git("", nil, "update-ref", "refs/tags/policy-v1.10.0", old)
		}, "it says"},
		{"no tag matches", git.VerifyTag, func(_ *testing.T, b *bench) {
			b.repo.Tag("other-v1.0.0", b.repo.Commit(gittest.Commit{Files: plain}), b.key)
		}, "it has no refs/tags/policy-v*"},
		{"tag of a file", git.VerifyTag, func(_ *testing.T, b *bench) {
			blob := b.repo.Git("x", nil, "hash-object", "-w", "--stdin")
			b.repo.Git("", nil, "update-ref", "refs/tags/policy-v1.10.0", blob)
		}, "is no commit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t)
			b.cfg.Branch, b.cfg.Tag, b.cfg.Verify = "", "policy-v*", tt.verify
			tt.make(t, b)
			r := b.open(t)
			if tt.want != "" {
				refused(t, r, tt.want)
				return
			}
			if c, signer, _, err := bring(t.Context(), r); err != nil || c.Ref != "refs/tags/policy-v1.10.0" || signer != b.key.Fingerprint {
				t.Errorf("bring() = %+v, %s, %v, want policy-v1.10.0", c, signer, err)
			}
		})
	}
}

// TestP23Trees: what is no plain file of a bundle is refused with its path.
func TestP23Trees(t *testing.T) {
	many := map[string]string{}
	for i := range 5001 {
		many["site/"+strings.Repeat("x", i%50+1)+"/"+strings.Repeat("y", i/50+1)+".rego"] = ""
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"P23 symlink", map[string]string{"config/teams.yaml": "-> /etc/passwd"}, "config/teams.yaml\": is a symbolic link"},
		{"P23 symlink with a dot", map[string]string{".x": "-> /etc/passwd"}, ".x\": is a symbolic link"},
		{"P23 submodule", map[string]string{"site": "@ 1234567890123456789012345678901234567890"}, "site\": is a submodule"},
		{"P23 LFS pointer", map[string]string{"site/a.rego": "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"}, "site/a.rego: is a pointer to Git LFS"},
		{"P23 control character", map[string]string{"\"site/a\\tb.rego\"": "x"}, "is no name for a file"},
		{"P23 not UTF-8", map[string]string{"\"site/\\377.rego\"": "x"}, "is no name for a file"},
		{"P11 10 MB string", map[string]string{"config/rules.yaml": strings.Repeat("x", 10<<20)}, "config/rules.yaml: has 10485760 bytes"},
		{"P11 5,001 files", many, "more than 5000 files"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t)
			b.repo.Commit(gittest.Commit{Files: tt.files, Key: b.key})
			refused(t, b.open(t), tt.want)
		})
	}
	t.Run("P23 .git in the tree", func(t *testing.T) {
		b := start(t)
		blob := b.repo.Git("x", nil, "hash-object", "-w", "--stdin")
		inner := b.repo.Git("100644 blob "+blob+"\tconfig\n", nil, "mktree")
		tree := b.repo.Git("040000 tree "+inner+"\t.git\n", nil, "mktree")
		text := "tree " + tree + "\nauthor T <t@x> 1 +0000\ncommitter T <t@x> 1 +0000\n\nx\n"
		id := b.repo.Git(text, nil, "hash-object", "-t", "commit", "-w", "--stdin")
		b.repo.Git("", nil, "update-ref", "refs/heads/main", id)
		refused(t, b.open(t), "objects that git does not take")
	})
}

func TestAncestry(t *testing.T) {
	b := start(t)
	first := b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
	second := b.repo.Commit(gittest.Commit{Files: plain, Key: b.key, Date: time.Now().Add(time.Hour)})
	r := b.open(t)
	tip, _, _, err := bring(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	stranger := b.repo.Commit(gittest.Commit{Branch: "other", Parent: "-", Files: map[string]string{"a.md": "x"}, Key: b.key})
	for _, tt := range []struct {
		name, old, young string
		want             bool
	}{
		{"forward", first, second, true},
		{"itself", second, second, true},
		{"back", second, first, false},
		{"one that was never fetched", stranger, second, false},
		{"no id", "--help", second, false},
	} {
		if got, err := r.Descends(t.Context(), tt.old, tt.young); got != tt.want || err != nil {
			t.Errorf("%s: Descends(%s, %s) = %v, %v, want %v", tt.name, tt.old, tt.young, got, err, tt.want)
		}
	}
	if c, err := r.Find(t.Context(), tip, first); err != nil || c.ID != first || c.Tree == "" {
		t.Errorf("Find(%s) = %+v, %v", first, c, err)
	}
	for _, id := range []string{stranger, first[:12], "refs/heads/main"} {
		if c, err := r.Find(t.Context(), tip, id); !errors.Is(err, git.ErrRefused) {
			t.Errorf("Find(%s) = %+v, %v, want ErrRefused", id, c, err)
		}
	}
}

// TestP22Rotation: signers are read for each look, and what was verified can be verified again.
func TestP22Rotation(t *testing.T) {
	b := start(t)
	next := gittest.SSH(t)
	b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
	r := b.open(t)
	c, _, _, err := bring(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	set := func(text string) string {
		if err := os.WriteFile(b.cfg.AllowedSigners, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		digest, err := r.Signers()
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	before := set(b.key.Allowed(t))
	if overlap := set(b.key.Allowed(t) + next.Allowed(t)); overlap == before {
		t.Errorf("Signers() stays %s with another key", before)
	}
	if known, err := r.Reverify(t.Context(), c); !known || err != nil {
		t.Errorf("Reverify() with both keys = %v, %v", known, err)
	}
	set(next.Allowed(t))
	if known, err := r.Reverify(t.Context(), c); !known || !errors.Is(err, git.ErrRefused) {
		t.Errorf("Reverify() without the old key = %v, %v, want ErrRefused", known, err)
	}
	if r.Knows(b.key.Fingerprint) || !r.Knows(next.Fingerprint) {
		t.Error("Knows() goes by the old list")
	}
}

// TestP26Server: a server that hangs, floods or wants a password.
func TestP26Server(t *testing.T) {
	t.Run("P26 hangs after accept", func(t *testing.T) {
		b := start(t)
		b.o.Timeout = time.Second
		b.server.Before(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
		if _, err := b.open(t).Look(t.Context()); !errors.Is(err, git.ErrAway) || !strings.Contains(err.Error(), "took longer") {
			t.Errorf("Look() = %v, want ErrAway", err)
		}
	})
	t.Run("P26 10 GB pack", func(t *testing.T) {
		b := start(t)
		b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
		b.o.MaxBytes = 8 << 20
		var sent atomic.Int64
		b.server.Before(func(w http.ResponseWriter, r *http.Request) bool { return flood(w, r, &sent) })
		refused(t, b.open(t), "larger than it may be")
		if n := sent.Load(); n == 0 || n > 512<<20 {
			t.Errorf("%d bytes of 10 GB were sent", n)
		}
	})
	t.Run("P11 256 MB blob in a small pack", func(t *testing.T) {
		b := start(t)
		b.repo.Commit(gittest.Commit{Files: map[string]string{"site/a.rego": strings.Repeat("\x00", 256<<20)}, Key: b.key})
		refused(t, b.open(t), "site/a.rego: has 268435456 bytes")
	})
	t.Run("credential", func(t *testing.T) {
		b := start(t)
		b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
		b.server.Demand("bot", "s3cret/+word")
		b.cfg.CredentialFile = write(t, "bot:s3cret/+word\n")
		if _, _, _, err := bring(t.Context(), b.open(t)); err != nil {
			t.Errorf("bring() = %v", err)
		}
		b.server.Demand("bot", "another")
		_, err := b.open(t).Look(t.Context())
		if !errors.Is(err, git.ErrAway) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "bot@") {
			t.Errorf("Look() with a wrong password = %v, want ErrAway without the password", err)
		}
	})
	t.Run("redirect is not followed", func(t *testing.T) {
		b := start(t)
		b.server.Before(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://evil.example"+r.URL.RequestURI(), http.StatusMovedPermanently)
			return true
		})
		_, err := b.open(t).Look(t.Context())
		if !errors.Is(err, git.ErrAway) {
			t.Errorf("Look() = %v, want ErrAway", err)
		}
		for _, tunnel := range b.server.Tunnels() {
			if strings.Contains(tunnel, "evil") {
				t.Errorf("git went to %s", tunnel)
			}
		}
	})
}

// flood answers a fetch with a pack that holds one blob of 10 GB, which does not compress.
func flood(w http.ResponseWriter, r *http.Request, sent *atomic.Int64) bool {
	if r.Method != http.MethodPost {
		return false
	}
	body := make([]byte, 4096)
	n, _ := r.Body.Read(body)
	if !strings.Contains(string(body[:n]), "command=fetch") {
		r.Body = readAgain(body[:n], r.Body)
		return false
	}
	w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
	line := func(b []byte) error {
		m, err := w.Write(append([]byte(pktLength(len(b)+4)), b...))
		sent.Add(int64(m))
		return err
	}
	_ = line([]byte("packfile\n"))
	head := []byte("\x01PACK\x00\x00\x00\x02\x00\x00\x00\x01")
	head = append(head, blobHeader(10<<30)...)
	_ = line(append(head, 0x78, 0x01))
	stored := append([]byte{1, 0, 0xff, 0x7f, 0x00, 0x80}, make([]byte, 0x7fff)...) // sideband 1; a stored block of deflate
	for range 10 << 30 / 0x7fff {
		if line(stored) != nil {
			return true
		}
	}
	return true
}

func TestSSH(t *testing.T) {
	b := start(t)
	id := b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
	ssh := vcstest.StartSSH(t, b.server)
	b.cfg.URL, b.cfg.CAFile, b.cfg.Proxy = ssh.URL+"policy.git", "", ""
	b.cfg.SSHKeyFile, b.cfg.KnownHostsFile = ssh.KeyFile, ssh.KnownHostsFile
	if c, _, _, err := bring(t.Context(), b.open(t)); err != nil || c.ID != id {
		t.Errorf("bring() = %+v, %v, want %s", c, err, id)
	}
	b.cfg.SSHKeyFile = filepath.Join(filepath.Dir(ssh.KeyFile), "other")
	if _, err := b.open(t).Look(t.Context()); !errors.Is(err, git.ErrAway) {
		t.Errorf("Look() with another key = %v, want ErrAway", err)
	}
	b.cfg.SSHKeyFile, b.cfg.KnownHostsFile = ssh.KeyFile, write(t, "")
	if _, err := b.open(t).Look(t.Context()); !errors.Is(err, git.ErrAway) {
		t.Errorf("Look() at an unknown host = %v, want ErrAway", err)
	}
}

// TestEnvironment: nothing of the process that runs git reaches it.
func TestEnvironment(t *testing.T) {
	b := start(t)
	b.repo.Commit(gittest.Commit{Files: plain, Key: b.key})
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "url.https://evil.example/.insteadOf")
	t.Setenv("GIT_CONFIG_VALUE_0", "https://git.corp.example/")
	t.Setenv("GIT_DIR", "/nonexistent")
	if _, _, _, err := bring(t.Context(), b.open(t)); err != nil {
		t.Errorf("bring() = %v", err)
	}
}
