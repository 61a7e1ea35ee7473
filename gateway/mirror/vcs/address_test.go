package vcs_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/vcs"
)

func TestAddress(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"https", "https://git.corp.example/team/app.git", "git.corp.example/team/app"},
		{"capitals", "https://Git.Corp.example/Team/App", "git.corp.example/team/app"},
		{"a slash at the end", "https://git.corp.example/team/app.git/", "git.corp.example/team/app"},
		{"user and password", "https://ann:secret@git.corp.example/team/app", "git.corp.example/team/app"},
		{"ssh", "ssh://git@git.corp.example:22/team/app.git", "git.corp.example/team/app"},
		{"ssh on a port of its own", "ssh://git@git.corp.example:7999/team/app.git", "git.corp.example:7999/team/app"},
		{"as scp has it", "git@git.corp.example:team/app.git", "git.corp.example/team/app"},
		{"a query", "https://git.corp.example/team/app?x=1", "git.corp.example/team/app"},
		{"no path", "https://git.corp.example/", ""},
		{"dots", "https://git.corp.example/a/../b", ""},
		{"an option", "ext::sh -c evil", ""},
		{"a folder", "/etc/passwd", ""},
		{"words", "team/app", ""},
		{"empty", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := vcs.Address(tt.in); got != tt.want {
				t.Errorf("Address(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"https://git.corp.example/team/app.git", "git@h:a/b.git", "ssh://git@h:7999/a", "://", "https://h/%2e%2e/a", "https://[::1]:80/a.git.git"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a := vcs.Address(s)
		if a == "" {
			return
		}
		if strings.ToLower(a) != a || strings.ContainsAny(a, " @\\\"'") {
			t.Errorf("Address(%q) = %q, which is not plain", s, a)
		}
		if strings.HasSuffix(a, ".git") { // x.git.git names a repository x.git
			return
		}
		for _, again := range []string{"https://" + a, "ssh://git@" + a + ".git"} {
			if got := vcs.Address(again); got != a {
				t.Errorf("Address(%q) = %q, want %q as of %q", again, got, a, s)
			}
		}
	})
}

// A push to one repository is nobody else's, and is known whichever of its URLs the payload has.
func TestPushedNamesOneRepository(t *testing.T) {
	t.Parallel()
	b := start(t, func(o *vcs.Options) {
		o.Routes[0].InsteadOf = map[string]string{"https://corp.example/team/": "https://corp.example/moved/"}
	})
	for _, name := range []string{"team/app", "team/apple"} {
		commit(t, b.repo(t, name), "main", files("corp.example/"+name), "v1.0.0")
		commit(t, b.repo(t, "moved"+strings.TrimPrefix(name, "team")), "main", files("corp.example/"+name), "v1.0.0")
		if _, err := b.Look(t.Context(), 0, "corp.example/"+name); err != nil {
			t.Fatal(err)
		}
	}
	for _, restart := range []bool{false, true} {
		if restart {
			b.reopen(t)
		}
		for _, tt := range []struct {
			name string
			urls []string
			want []string
		}{
			{"by its URL", []string{"git@corp.example:team/app.git"}, []string{"corp.example/team/app"}},
			{"by what instead_of makes of it", []string{"https://corp.example/moved/app"}, []string{"corp.example/team/app"}},
			{"by both", []string{"https://corp.example/team/app", "https://corp.example/moved/app", ""}, []string{"corp.example/team/app"}},
			{"another", []string{"https://corp.example/team/appl", "https://corp.example/team", "https://other.example/team/app"}, nil},
			{"nothing", nil, nil},
		} {
			if got := b.Pushed(tt.urls); !slices.Equal(got, tt.want) {
				t.Errorf("%s, restarted %v: Pushed(%q) = %q, want %q", tt.name, restart, tt.urls, got, tt.want)
			}
		}
	}
}
