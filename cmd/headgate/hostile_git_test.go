package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
)

// memoryAllowance is what one hostile repository may cost the gateway's own process above idle.
const memoryAllowance = 64 << 20

// A hostileCase is a repository that means harm, and what asking for it must give.
type hostileCase struct {
	name   string
	make   func(t *testing.T, r *vcstest.Repo, module string)
	before func(http.ResponseWriter, *http.Request) bool
	path   string // below the module
	status []int
	kept   bool // the version is a good one, and stored
}

// N17: whatever a repository or its server does, the answer is clear, nothing of it runs, nothing bad is stored, and
// neither folders nor processes are left. Peak memory above idle is printed for the gateway and for its children.
func TestHostileGit(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t, "  fetch_timeout: 2m\n")
	canary := filepath.Join(s.dir, "canary")
	s.ask(t, canary, append(hostileTrees(canary), hostileSizes()...))
}

// A server that takes its time is given up by the gateway's own limit.
func TestHostileGitServer(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t, "  fetch_timeout: 5s\n")
	s.ask(t, filepath.Join(s.dir, "canary"), hostileServers())
}

func (s *privateSite) ask(t *testing.T, canary string, cases []hostileCase) {
	s.body("/corp.example/team/warm/@v/list") // the first visit, so that idle is what it will be
	for i, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			name := fmt.Sprintf("team/evil%d", i)
			r := s.repo(name, nil)
			if tt.make == nil {
				tt.make = func(t *testing.T, r *vcstest.Repo, module string) { goodModule(t, r, module, nil, "v1.0.0") }
			}
			tt.make(t, r, "corp.example/"+name)
			s.git.Before(tt.before)
			watch := s.watchMemory()
			begin := time.Now()
			status, body := s.body("/corp.example/" + name + tt.path)
			took := time.Since(begin)
			own, children := watch.end()
			s.git.Before(nil)
			t.Logf("%s: %d after %v; peak above idle: gateway %.1f MiB, its children %.1f MiB", tt.name, status, took.Round(time.Millisecond), mib(own), mib(children))
			if own > memoryAllowance {
				t.Errorf("the gateway grew by %.1f MiB", mib(own))
			}
			if !slices.Contains(tt.status, status) {
				t.Errorf("status %d, want one of %v: %.300s", status, tt.status, body)
			}
			if status != http.StatusOK && (strings.Contains(body, s.dir) || strings.Count(body, "\n") > 8) {
				t.Errorf("the answer is %q", body)
			}
			s.untouched(t, canary, name, tt.kept)
		})
	}
}

// untouched asserts that nothing ran, nothing bad is stored and nothing is left.
func (s *privateSite) untouched(t *testing.T, canary, name string, kept bool) {
	t.Helper()
	if _, err := os.Stat(canary); err == nil {
		t.Error("something of the repository ran")
	}
	zips, err := filepath.Glob(filepath.Join(s.dir, "state/store/private/corp.example", name, "@v", "*.zip"))
	if err != nil || len(zips) > 0 != kept {
		t.Errorf("stored zips: %q (%v), want some: %v", zips, err, kept)
	}
	waitFor(t, "no process is left", func() bool { return len(s.children()) == 0 })
	waitFor(t, "no folder is left", func() bool {
		left, err := os.ReadDir(filepath.Join(s.dir, "state/store/vcs/run"))
		return err == nil && len(left) == 0
	})
	for _, host := range s.git.Tunnels() {
		if host != "corp.example:443" {
			t.Errorf("a tunnel led to %s", host)
		}
	}
	if status, body := s.body("/corp.example/team/warm/@v/list"); status != http.StatusOK && status != http.StatusBadGateway {
		t.Errorf("afterwards another repository gives %d: %s", status, body)
	}
}

// goodModule commits a good module with more files.
func goodModule(t *testing.T, r *vcstest.Repo, module string, more map[string]string, tags ...string) {
	t.Helper()
	files := map[string]string{"go.mod": "module " + module + "\n\ngo 1.21\n", "m.go": "package m\n"}
	for name, text := range more {
		files[name] = text
	}
	if _, err := r.Commit("main", files, tags...); err != nil {
		t.Fatal(err)
	}
}

// goodWith makes a case's repository of a good module and more files.
func goodWith(more map[string]string, tags ...string) func(*testing.T, *vcstest.Repo, string) {
	return func(t *testing.T, r *vcstest.Repo, module string) {
		t.Helper()
		goodModule(t, r, module, more, append(tags, "v1.0.0")...)
	}
}

// tree adds an entry to the newest tree that no porcelain would write, and tags it.
func entry(line string) func(*testing.T, *vcstest.Repo, string) {
	return func(t *testing.T, r *vcstest.Repo, module string) {
		t.Helper()
		goodModule(t, r, module, nil)
		git := func(input string, args ...string) string {
			t.Helper()
			out, err := r.Git(input, args...)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		blob := git("package evil\n", "hash-object", "-w", "--stdin")
		sub := git("100644 blob "+blob+"\tevil.go\n", "mktree")
		added := strings.NewReplacer("BLOB", "100644 blob "+blob, "TREE", "040000 tree "+sub).Replace(line)
		top := git(git("", "ls-tree", "main")+"\n"+added+"\n", "mktree")
		commit := git("", "-c", "user.name=x", "-c", "user.email=x@corp.example", "commit-tree", "-m", "x", "-p", "main", top)
		git("", "update-ref", "refs/heads/main", commit)
		git("", "tag", "v1.0.0", commit)
	}
}

const gitZip = "/@v/v1.0.0.zip"

// hostileTrees hold what must not be followed, run or unpacked.
func hostileTrees(canary string) []hostileCase {
	run := "#!/bin/sh\ntouch " + canary + "\n"
	ok, bad := []int{200}, []int{502}
	return []hostileCase{
		{"symbolic links", goodWith(map[string]string{"link": "-> /etc/passwd", "up/link.go": "-> ../../../../../etc/passwd", "self": "-> self"}), nil, gitZip, ok, true},
		{"go.mod that is a link", func(t *testing.T, r *vcstest.Repo, module string) {
			goodModule(t, r, module, map[string]string{"go.mod": "-> /etc/passwd"}, "v1.0.0")
		}, nil, "/@v/v1.0.0.mod", []int{404, 502}, false},
		{"submodules that run and read what they should not", goodWith(map[string]string{
			"sub": "@ " + strings.Repeat("ab", 20), ".gitmodules": "[submodule \"sub\"]\n\tpath = sub\n\turl = ext::sh -c touch% " + canary + "\n\tupdate = !touch " + canary + "\n",
		}), nil, gitZip, bad, false},
		{"refs like options", goodWith(nil, "--upload-pack=touch${IFS}"+canary, "-v1.2.0", "v1.1.0;touch"), nil, "/@v/list", ok, false},
		{"a query like an option", goodWith(nil), nil, "/@v/--upload-pack=touch.info", []int{400, 404, 502}, false},
		{"hooks, attributes, filters, LFS", goodWith(map[string]string{
			".gitattributes":          "*.go filter=evil ident export-subst diff=evil\n*.bin filter=lfs diff=lfs merge=lfs -text\n",
			".lfsconfig":              "[lfs]\n\turl = https://evil.example/lfs\n",
			"big.bin":                 "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 12345\n",
			".githooks/post-checkout": run, "hooks/post-checkout": run, "hooks/pre-auto-gc": run,
			"config": "[core]\n\tfsmonitor = touch " + canary + "\n\thooksPath = hooks\n[filter \"evil\"]\n\tsmudge = touch " + canary + "\n", "HEAD": "ref: refs/heads/main\n",
		}), nil, gitZip, ok, true},
		{"a path that leads out", entry("TREE\t.."), nil, gitZip, bad, false},
		{"a path of Git's own", entry("TREE\t.git"), nil, gitZip, bad, false},
		{"a path of Git's own, as another system spells it", entry("TREE\tGIT~1"), nil, gitZip, bad, false},
		{"a path with a backslash", entry("BLOB\t..\\evil.go"), nil, gitZip, bad, false},
		{"names that differ in case", goodWith(map[string]string{"A.go": "package m\n", "a.go": "package m\n"}), nil, gitZip, bad, false},
		{"a name that is none on some systems", goodWith(map[string]string{"con.go": "package m\n"}), nil, gitZip, bad, false},
	}
}

// hostileSizes hold too much of something.
func hostileSizes() []hostileCase {
	return []hostileCase{
		{"20,000 commits", func(t *testing.T, r *vcstest.Repo, module string) {
			fillRepo(t, r, 20_000, func(i int) (map[string]string, []string) {
				files := map[string]string{"n.go": fmt.Sprintf("package m\n\nconst N = %d\n", i)}
				if i == 0 {
					files["go.mod"] = "module " + module + "\n"
					return files, []string{"v1.0.0"}
				}
				return files, nil
			})
		}, nil, "/@v/main.info", []int{200}, false},
		{"20,000 tags that are no versions", func(t *testing.T, r *vcstest.Repo, module string) {
			fillRepo(t, r, 1, func(int) (map[string]string, []string) {
				tags := []string{"v1.0.0"}
				for i := range 20_000 {
					tags = append(tags, fmt.Sprintf("build-%d", i))
				}
				return map[string]string{"go.mod": "module " + module + "\n"}, tags
			})
		}, nil, "/@v/list", []int{200}, false},
		{"600 MB in one blob of 1 MB", func(t *testing.T, r *vcstest.Repo, module string) {
			files, blob := map[string]string{}, strings.Repeat("\x00", 1<<20)
			for i := range 600 {
				files[fmt.Sprintf("f%d.bin", i)] = blob
			}
			goodModule(t, r, module, files, "v1.0.0")
		}, nil, gitZip, []int{502}, false},
		{"go.mod of 17 MiB", func(t *testing.T, r *vcstest.Repo, module string) {
			goodModule(t, r, module, map[string]string{"go.mod": "module " + module + "\n//" + strings.Repeat("x", 17<<20)}, "v1.0.0")
		}, nil, "/@v/v1.0.0.mod", []int{502}, false},
	}
}

func fillRepo(t *testing.T, r *vcstest.Repo, n int, each func(int) (map[string]string, []string)) {
	t.Helper()
	if err := r.Fill(n, each); err != nil {
		t.Fatal(err)
	}
}

// hostileServers do what no Git server does.
func hostileServers() []hostileCase {
	at := func(part string, do func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.RequestURI(), part) {
				return false
			}
			do(w, r)
			return true
		}
	}
	hang := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // net/http notices that a client is gone once its body is read
		<-r.Context().Done()
	}
	garbage := func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, strings.Repeat("\x00\xff<html>", 1000))
	}
	endless := func(begin, line string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			io.WriteString(w, begin)
			for block := strings.Repeat(line, 1000); ; {
				if _, err := io.WriteString(w, block); err != nil {
					return
				}
			}
		}
	}
	ref := strings.Repeat("ab", 20) + " refs/tags/x\n"
	refs := endless("001e# service=git-upload-pack\n0000", fmt.Sprintf("%04x%s", len(ref)+4, ref))
	elsewhere := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://evil.example"+r.URL.RequestURI(), http.StatusFound)
	}
	const list = "/@v/list"
	bad, slow, either := []int{502}, []int{504}, []int{502, 504}
	return []hostileCase{
		{"a discovery that hangs", nil, at("go-get=1", hang), list, slow, false},
		{"refs that hang", nil, at("info/refs", hang), list, slow, false},
		{"objects that hang", nil, at(".git/git-upload-pack", hang), list, slow, false},
		{"a discovery of garbage", nil, at("go-get=1", garbage), list, bad, false},
		{"refs of garbage", nil, at("info/refs", garbage), list, bad, false},
		{"objects of garbage", nil, at(".git/git-upload-pack", garbage), list, bad, false},
		{"a discovery without end", nil, at("go-get=1", endless("<html><head>", "<meta name=\"x\" content=\"y\">\n")), list, either, false},
		{"refs without end", nil, at("info/refs", refs), list, either, false},
		{"objects without end", nil, at(".git/git-upload-pack", endless("", "0008NAK\n")), list, either, false},
		{"a discovery elsewhere", nil, at("go-get=1", elsewhere), list, bad, false},
		{"refs elsewhere", nil, at("info/refs", elsewhere), list, bad, false},
	}
}

// A memory is watched from its making to end.
type memory struct {
	pid          int
	idle         int64
	stop         context.CancelFunc
	watching     sync.WaitGroup
	mu           sync.Mutex // guards most
	mostChildren int64
}

// watchMemory begins at what the process has now: Linux forgets its peak on demand (proc(5), clear_refs).
func (s *privateSite) watchMemory() *memory {
	pid := s.gateway.cmd.Process.Pid
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &memory{pid: pid, idle: memoryOf(pid, "VmRSS:"), stop: stop}
	m.watching.Go(func() {
		for tick := time.NewTicker(30 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			var n int64
			for _, child := range s.children() {
				n += memoryOf(child, "VmRSS:")
			}
			m.mu.Lock()
			m.mostChildren = max(m.mostChildren, n)
			m.mu.Unlock()
		}
	})
	return m
}

// end gives the most that the process had above idle, and the most that its children had together, in bytes.
func (m *memory) end() (own, children int64) {
	m.stop()
	m.watching.Wait()
	return max(0, memoryOf(m.pid, "VmHWM:")-m.idle), m.mostChildren
}

// memoryOf reads a size of /proc/PID/status in bytes; 0 for a process that is gone.
func memoryOf(pid int, key string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), key)
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0
	}
	return kib << 10
}

// children lists the processes that work for a gateway, orphans too: the home of each is in its state folder.
func (s *privateSite) children() []int {
	names, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		s.t.Fatal(err)
	}
	var all []int
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(text, []byte("HOME="+s.dir+"/state/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
