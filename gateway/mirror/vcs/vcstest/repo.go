package vcstest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Repo is one bare repository, written through fast-import: no work tree, no
// hooks, and contents that git add would refuse.
type Repo struct {
	dir   string
	marks int
}

// Create makes an empty repository NAME.git with branch main.
func (s *Server) Create(name string) (*Repo, error) {
	r := &Repo{dir: s.bare(name)}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := r.Git("", "init", "--quiet", "--bare", "--initial-branch=main", "."); err != nil {
		return nil, err
	}
	// Shallow fetches of a commit by hash, as every code host allows them.
	_, err := r.Git("", "config", "uploadpack.allowAnySHA1InWant", "true")
	return r, err
}

// Dir is the bare repository's folder.
func (r *Repo) Dir() string { return r.dir }

// Git runs git in the repository with input and gives what it prints.
func (r *Repo) Git(input string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stdin = r.dir, strings.NewReader(input)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(r.dir), "GIT_CONFIG_NOSYSTEM=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Commit makes a commit on a branch that holds exactly these files, tags it,
// and gives its hash. A content "-> target" makes a symbolic link, "@ hash" a submodule.
func (r *Repo) Commit(branch string, files map[string]string, tags ...string) (string, error) {
	r.marks++
	var blobs, b strings.Builder
	when := fmt.Sprintf("Test <test@corp.example> %d +0000", 1_700_000_000+1000*r.marks)
	fmt.Fprintf(&b, "commit refs/heads/%s\ncommitter %s\ndata 1\nx\n", branch, when)
	if parent, err := r.Git("", "rev-parse", "--verify", "--quiet", "refs/heads/"+branch); err == nil {
		fmt.Fprintf(&b, "from %s\ndeleteall\n", parent)
	}
	marks := map[string]int{} // of contents, each of which is sent once
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data, mode := files[name], 100644
		if hash, ok := strings.CutPrefix(data, "@ "); ok {
			fmt.Fprintf(&b, "M 160000 %s %s\n", hash, name)
			continue
		}
		if target, ok := strings.CutPrefix(data, "-> "); ok {
			data, mode = target, 120000
		}
		if marks[data] == 0 {
			marks[data] = len(marks) + 1
			fmt.Fprintf(&blobs, "blob\nmark :%d\ndata %d\n%s\n", marks[data], len(data), data)
		}
		fmt.Fprintf(&b, "M %d :%d %s\n", mode, marks[data], name)
	}
	if _, err := r.Git(blobs.String()+b.String()+"\ndone\n", "fast-import", "--quiet", "--done", "--force"); err != nil {
		return "", err
	}
	hash, err := r.Git("", "rev-parse", "refs/heads/"+branch)
	if err != nil {
		return "", err
	}
	return hash, r.Tag(hash, tags...)
}

// Fill makes n commits on main in one go; each gives the files that a commit adds or changes, and its tags.
func (r *Repo) Fill(n int, each func(i int) (files map[string]string, tags []string)) error {
	var b, tagged strings.Builder
	for i := range n {
		r.marks++
		fmt.Fprintf(&b, "commit refs/heads/main\nmark :%d\ncommitter Test <test@corp.example> %d +0000\ndata 1\nx\n", i+1, 1_700_000_000+1000*r.marks)
		files, tags := each(i)
		for name, data := range files {
			fmt.Fprintf(&b, "M 100644 inline %s\ndata %d\n%s\n", name, len(data), data)
		}
		for _, tag := range tags {
			fmt.Fprintf(&tagged, "reset refs/tags/%s\nfrom :%d\n\n", tag, i+1)
		}
	}
	_, err := r.Git(b.String()+tagged.String()+"done\n", "fast-import", "--quiet", "--done", "--force")
	return err
}

// Tag names a commit; a name may be one that git tag would refuse to make.
func (r *Repo) Tag(hash string, names ...string) error {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "update refs/tags/%s %s\n", name, hash)
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := r.Git(b.String(), "update-ref", "--stdin")
	return err
}
