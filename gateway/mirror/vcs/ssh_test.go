package vcs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/vcs"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
)

// Discovery is over https, the repository over ssh with a deploy key.
func TestSSH(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func(*vcs.Route)
		works bool
	}{
		{"key and host key", func(*vcs.Route) {}, true},
		{"another key", func(r *vcs.Route) { r.SSHKeyFile = filepath.Join(filepath.Dir(r.SSHKeyFile), "other") }, false},
		{"unknown host key", func(r *vcs.Route) {
			text, err := os.ReadFile(filepath.Join(filepath.Dir(r.SSHKeyFile), "other.pub"))
			if err != nil {
				t.Fatal(err)
			}
			known, err := os.ReadFile(r.KnownHostsFile)
			if err != nil {
				t.Fatal(err)
			}
			host, _, _ := strings.Cut(string(known), " ")
			if err := os.WriteFile(r.KnownHostsFile, []byte(host+" "+string(text)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"ssh not configured", func(r *vcs.Route) { r.SSHKeyFile, r.KnownHostsFile = "", "" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t, nil)
			app(t, b)
			ssh := vcstest.StartSSH(t, b.git)
			r := &b.o.Routes[0]
			r.SSHKeyFile, r.KnownHostsFile = ssh.KeyFile, ssh.KnownHostsFile
			r.InsteadOf = map[string]string{"https://corp.example/": ssh.URL}
			tt.spoil(r)
			b.reopen(t)
			m, err := b.Look(t.Context(), 0, "corp.example/team/app")
			if tt.works != (err == nil) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Look = %v, %v, want it to work: %v", m, err, tt.works)
			}
			if got := b.git.Count(".git/"); got != 0 && tt.works {
				t.Errorf("git went over https: %q", b.git.Requests())
			}
			b.nothingLeft(t)
		})
	}
}
