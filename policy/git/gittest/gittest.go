// Package gittest writes repositories of signed policy for tests: commits and tags with SSH and PGP signatures, of any
// date and content, also such as git itself would refuse to make. It needs git, ssh-keygen and gpg.
package gittest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Repo is one bare repository.
type Repo struct {
	Dir string

	tb testing.TB
}

// Create makes an empty bare repository in dir, or takes the one that is there.
func Create(tb testing.TB, dir string) *Repo {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	r := &Repo{Dir: dir, tb: tb}
	r.Git("", nil, "init", "--quiet", "--bare", "--initial-branch=main", ".")
	return r
}

// Git runs git in the repository and gives what it prints.
func (r *Repo) Git(stdin string, env []string, args ...string) string {
	r.tb.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stdin = r.Dir, strings.NewReader(stdin)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.Dir, "GIT_CONFIG_NOSYSTEM=1"}, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.tb.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Commit is one commit to make.
type Commit struct {
	Branch string            // "" is main
	Parent string            // "" is the branch's tip, if it has one; "-" is none
	Files  map[string]string // all of them; a content "-> target" makes a symbolic link, "@ hash" a submodule
	Key    *Key              // nil: unsigned
	Date   time.Time         // of author and committer; zero is now
}

// Commit makes a commit, moves its branch there, and gives its id.
func (r *Repo) Commit(c Commit) string {
	r.tb.Helper()
	branch := "refs/heads/" + c.Branch
	if c.Branch == "" {
		branch = "refs/heads/main"
	}
	tree := r.tree(c.Files)
	args := append(c.Key.config(), "commit-tree", "-m", "policy")
	if c.Key != nil {
		args = append(args, "-S")
	}
	switch c.Parent {
	case "":
		if tips := r.Git("", nil, "for-each-ref", "--format=%(objectname)", branch); tips != "" {
			args = append(args, "-p", tips)
		}
	case "-":
	default:
		args = append(args, "-p", c.Parent)
	}
	id := r.Git("", append(who(c.Date), c.Key.env()...), append(args, tree)...)
	r.Git("", nil, "update-ref", branch, id)
	return id
}

// Tag makes an annotated tag of a commit, signed where key is not nil, and gives the id of the tag object.
func (r *Repo) Tag(name, commit string, key *Key) string {
	r.tb.Helper()
	args := append(key.config(), "tag", "--force", "--annotate", "-m", "policy")
	if key != nil {
		args = append(args, "--sign")
	}
	r.Git("", append(who(time.Time{}), key.env()...), append(args, name, commit)...)
	return r.Git("", nil, "rev-parse", "refs/tags/"+name)
}

func who(at time.Time) []string {
	if at.IsZero() {
		at = time.Now()
	}
	date := fmt.Sprintf("%d +0000", at.Unix())
	return []string{
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@corp.example", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@corp.example",
		"GIT_AUTHOR_DATE=" + date, "GIT_COMMITTER_DATE=" + date,
	}
}

// tree makes a tree through fast-import, which takes what git add would not.
func (r *Repo) tree(files map[string]string) string {
	r.tb.Helper()
	var b strings.Builder
	b.WriteString("commit refs/scratch\ncommitter Test <test@corp.example> 1700000000 +0000\ndata 1\nx\ndeleteall\n")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name]
		if target, ok := strings.CutPrefix(data, "-> "); ok {
			fmt.Fprintf(&b, "M 120000 inline %s\ndata %d\n%s\n", name, len(target), target)
			continue
		}
		if hash, ok := strings.CutPrefix(data, "@ "); ok {
			fmt.Fprintf(&b, "M 160000 %s %s\n", hash, name)
			continue
		}
		fmt.Fprintf(&b, "M 100644 inline %s\ndata %d\n%s\n", name, len(data), data)
	}
	r.Git(b.String()+"done\n", nil, "fast-import", "--quiet", "--done", "--force")
	return r.Git("", nil, "rev-parse", "refs/scratch^{tree}")
}

// Key is a signer.
type Key struct {
	// Fingerprint is SHA256:… of an SSH key, forty hex digits of a PGP key.
	Fingerprint string
	// File is the SSH private key, with its public one beside it in File.pub; Home is the folder of gpg.
	File, Home string
}

func (k *Key) config() []string {
	switch {
	case k == nil:
		return []string{"-c", "commit.gpgSign=false"}
	case k.Home != "":
		return []string{"-c", "gpg.format=openpgp", "-c", "gpg.program=" + filepath.Join(k.Home, "run"), "-c", "user.signingKey=" + k.Fingerprint}
	}
	return []string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + k.File}
}

func (k *Key) env() []string {
	if k == nil || k.Home == "" {
		return nil
	}
	return []string{"GNUPGHOME=" + k.Home}
}

// SSH makes an SSH signer.
func SSH(tb testing.TB) *Key {
	tb.Helper()
	k := &Key{File: filepath.Join(tb.TempDir(), "key")}
	run(tb, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "signer", "-f", k.File)
	k.Fingerprint = strings.Fields(run(tb, nil, "ssh-keygen", "-l", "-f", k.File+".pub"))[1]
	return k
}

// Public is the line of the public key without its comment.
func (k *Key) Public(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile(k.File + ".pub")
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text))[:2], " ")
}

// Allowed is a line of an allowed signers file, with options such as `valid-before="20240101"`.
func (k *Key) Allowed(tb testing.TB, options ...string) string {
	tb.Helper()
	return "release@corp.example " + strings.Join(append([]string{`namespaces="git"`}, options...), ",") + " " + k.Public(tb) + "\n"
}

// PGP makes a PGP signer that signs at a time and whose key lives for so long from then on, as gpg spells it: 0, 1d.
func PGP(tb testing.TB, at time.Time, life string) *Key {
	tb.Helper()
	home, err := os.MkdirTemp("", "gpg") // short: a socket of gpg's agent lies in it
	if err != nil {
		tb.Fatal(err)
	}
	k := &Key{Home: home}
	tb.Cleanup(func() {
		run(tb, k.env(), "gpgconf", "--kill", "all")
		os.RemoveAll(home)
	})
	script := fmt.Sprintf("#!/bin/sh\nexec gpg --quiet --batch --pinentry-mode loopback --passphrase '' --faked-system-time %s \"$@\"\n", at.UTC().Format("20060102T150405"))
	if err := os.WriteFile(filepath.Join(home, "run"), []byte(script), 0o700); err != nil {
		tb.Fatal(err)
	}
	run(tb, k.env(), filepath.Join(home, "run"), "--quick-generate-key", "Release <release@corp.example>", "ed25519", "sign", life)
	for line := range strings.Lines(run(tb, k.env(), "gpg", "--batch", "--with-colons", "--list-keys")) {
		if words := strings.Split(line, ":"); words[0] == "fpr" && k.Fingerprint == "" {
			k.Fingerprint = words[9]
		}
	}
	return k
}

// Export is the armored public key.
func (k *Key) Export(tb testing.TB) string {
	tb.Helper()
	return run(tb, k.env(), "gpg", "--batch", "--armor", "--export", k.Fingerprint)
}

// Revoke makes a PGP key say that it is revoked.
func (k *Key) Revoke(tb testing.TB) {
	tb.Helper()
	name := filepath.Join(k.Home, "openpgp-revocs.d", k.Fingerprint+".rev")
	text, err := os.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	// gpg puts a colon before the block, so that nobody revokes a key by mistake.
	if err := os.WriteFile(name, []byte(strings.Replace(string(text), ":-----BEGIN", "-----BEGIN", 1)), 0o600); err != nil {
		tb.Fatal(err)
	}
	run(tb, k.env(), "gpg", "--quiet", "--batch", "--import", name)
}

func run(tb testing.TB, env []string, name string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
