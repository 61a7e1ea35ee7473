package mirror_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const pushedURL = "git@corp.example:team/app.git"

// N14: a push ends the freshness of everything that is known of one repository, and of no other.
func TestPushIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	b, git, r, up := startPrivate(t)
	b.must(t, privateList)
	const branch, missing, none = "/corp.example/team/app/@v/main.info", "/corp.example/team/app/@v/v1.1.0.mod", "/corp.example/team/new/@v/list"
	old, _ := b.must(t, branch)
	if _, _, err := b.get(t.Context(), missing); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s: %v, want fs.ErrNotExist", missing, err)
	}
	tag(t, r, "v1.1.0")
	if got, _ := b.must(t, privateList); got != "v1.0.0\n" {
		t.Fatalf("list before the push is announced = %q", got)
	}
	begin := time.Now()
	if n := b.Refresh([]string{"", pushedURL, "https://corp.example/team/app"}); n != 1 {
		t.Errorf("Refresh = %d repositories, want 1", n)
	}
	got, f := b.must(t, privateList)
	t.Logf("a new tag is in the list %v after the push", time.Since(begin))
	if got != "v1.0.0\nv1.1.0\n" || f.Stale {
		t.Errorf("list after the push = %q", got)
	}
	if got, _ := b.must(t, "/corp.example/team/app/@latest"); !strings.Contains(got, `"v1.1.0"`) {
		t.Errorf("@latest after the push = %q", got)
	}
	if got, _ := b.must(t, branch); got == old {
		t.Errorf("branch after the push = %q, as before", got)
	}
	b.must(t, missing)
	for _, tt := range []struct {
		name string
		urls []string
		want int
	}{
		{"unknown repository", []string{"https://corp.example/team/none.git"}, 0},
		{"a repository of nobody's", []string{"https://evil.example/team/app.git"}, 0},
		{"the beginning of a name", []string{"https://corp.example/team/ap"}, 0},
		{"no address", []string{"", "x", "file:///etc/passwd"}, 0},
	} {
		git.Forget()
		if n := b.Refresh(tt.urls); n != tt.want {
			t.Errorf("%s: Refresh = %d, want %d", tt.name, n, tt.want)
		}
		b.must(t, privateList)
		if n := len(git.Requests()); n != 0 {
			t.Errorf("%s: Git was asked: %q", tt.name, git.Requests())
		}
	}
	t.Run("a repository that was not there", func(t *testing.T) {
		if _, _, err := b.get(t.Context(), none); err == nil {
			t.Fatal("a list of nothing")
		}
		n, err := git.Create("team/new")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Commit("main", map[string]string{"go.mod": "module corp.example/team/new\n", "n.go": "package n\n"}, "v0.1.0"); err != nil {
			t.Fatal(err)
		}
		b.Refresh([]string{"https://corp.example/team/new"})
		if got, _ := b.must(t, none); got != "v0.1.0\n" {
			t.Errorf("list = %q", got)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		tag(t, r, "v1.2.0")
		b.reopen(t, nil)
		if n := b.Refresh([]string{pushedURL}); n != 1 {
			t.Errorf("Refresh = %d repositories, want 1", n)
		}
		if got, _ := b.must(t, privateList); !strings.Contains(got, "v1.2.0") {
			t.Errorf("list = %q", got)
		}
	})
	if n := up.Count("*corp.example*"); n != 0 {
		t.Errorf("P44 a private name went to the upstream: %q", up.Requests())
	}
}

// A flood of webhooks makes one visit at a time and at most one more, and a push that comes while Git is asked is not
// missed.
func TestFloodOfPushes(t *testing.T) {
	t.Parallel()
	b, git, r, _ := startPrivate(t)
	b.must(t, privateList)
	git.Forget()
	arrived, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	git.Before(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() {
			close(arrived)
			<-goOn
		})
		return false
	})
	b.Refresh([]string{pushedURL})
	<-arrived
	tag(t, r, "v1.1.0")
	for range 1000 {
		if n := b.Refresh([]string{pushedURL}); n != 1 {
			t.Fatalf("Refresh = %d", n)
		}
	}
	close(goOn)
	if got, _ := b.must(t, privateList); got != "v1.0.0\nv1.1.0\n" {
		t.Errorf("list = %q, want the tag that came while Git was asked", got)
	}
	settled := -1
	until(t, "the refreshes end", func() bool {
		before := settled
		settled = git.Count("info/refs")
		return before == settled && idle(b)
	})
	if settled > 4 {
		t.Errorf("1001 pushes made %d Git sessions, want at most 4: the first, its repetition, one more and its own: %q", settled, git.Requests())
	}
	git.Forget()
	for range 3 {
		b.must(t, privateList)
	}
	if n := len(git.Requests()); n != 0 {
		t.Errorf("after the flood a fresh list asked Git: %q", git.Requests())
	}
}

// idle tells whether no visit to a repository is under way.
func idle(b *bench) bool {
	all, err := b.reg.Gather()
	for _, f := range all {
		if f.GetName() == "headgate_vcs_runs" {
			return err == nil && f.GetMetric()[0].GetGauge().GetValue() == 0
		}
	}
	panic(fmt.Sprint("no headgate_vcs_runs: ", err))
}

// Trouble at Git after a push: the old list is served, marked as old, and not as a 404.
func TestPushInTrouble(t *testing.T) {
	t.Parallel()
	b, git, _, _ := startPrivate(t)
	b.must(t, privateList)
	git.Demand("nobody", "knows")
	b.Refresh([]string{pushedURL})
	if got, f := b.must(t, privateList); got != "v1.0.0\n" || !f.Stale {
		t.Errorf("list = %q, stale %v, want the old one, marked", got, f.Stale)
	}
}
