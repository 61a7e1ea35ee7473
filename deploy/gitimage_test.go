package deploy_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/vcs/vcstest"
	"github.com/headgate/headgate/policy/git/gittest"
)

// withGit is a configuration whose policy comes from Git over ssh, and whose private modules come from it over https.
func withGit(t *testing.T, text []byte, server *vcstest.Server, ssh *vcstest.SSH) []byte {
	t.Helper()
	var c map[string]any
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	const mounted = "/var/lib/headgate/mounted/"
	c["policy"] = map[string]any{"source": "git", "git": map[string]any{
		"url": ssh.URL + "policy.git", "branch": "main", "poll": "1s", "ssh_key_file": mounted + "key", "known_hosts_file": mounted + "known_hosts",
		"allowed_signers_file": mounted + "signers", "pgp_keys_file": mounted + "pgp.asc",
	}}
	c["mirror"].(map[string]any)["private"] = []any{map[string]any{
		"patterns": []string{"corp.example/*"}, "hosts": []string{"corp.example"}, "ca_file": mounted + "ca", "proxy": server.Proxy, "credential_file": mounted + "credential",
	}}
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// mount puts files below mounted in the container's volume, whose owner they get.
func (c *container) mount(t *testing.T, files map[string]string) {
	t.Helper()
	dir := filepath.Join(c.volume, "mounted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, name), c.uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, c.uid, -1); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The image with Git activates policy whose commits an SSH key and a PGP key signed, and serves a private module, with
// nothing but what the image holds.
func TestImageWithGit(t *testing.T) {
	server := vcstest.Start(t)
	ssh := vcstest.StartSSH(t, server)
	server.Demand("oauth2", "secret-of-the-host")
	kit, err := server.Create("kit")
	if err == nil {
		_, err = kit.Commit("main", map[string]string{"go.mod": "module corp.example/kit\n", "kit.go": "package kit\n"}, "v1.2.0")
	}
	if err != nil {
		t.Fatal(err)
	}
	repo, sshKey, pgpKey := gittest.Create(t, filepath.Join(server.Dir, "repos", "policy.git")), gittest.SSH(t), gittest.PGP(t, time.Now().Add(-time.Hour), "0")
	files := map[string]string{
		"bundle.yaml":       "name: acme\nlibrary: default\n",
		"config/teams.yaml": "teams:\n  everyone: {profile: standard, public: true, allow: [corp.example]}\n",
		"config/rules.yaml": "profiles: [open, standard, strict]\nrules: []\n",
		"tests/access.yaml": "cases:\n  - {name: public, ask: access, module: example.com/m, want: {effect: allow}}\n",
	}
	first := repo.Commit(gittest.Commit{Files: files, Key: sshKey})

	up := mirrortest.Start(t, helloModule)
	listen, operations := freeAddress(t), freeAddress(t)
	_, port, _ := net.SplitHostPort(listen)
	url := "https://localhost:" + port
	c := newContainer(t, "headgate-git", withGit(t, filledIn(t, up, url, listen, operations), server, ssh))
	c.mount(t, map[string]string{
		"key": content(t, ssh.KeyFile), "known_hosts": content(t, ssh.KnownHostsFile), "signers": sshKey.Allowed(t), "pgp.asc": pgpKey.Export(t),
		"ca": content(t, server.CAFile), "credential": "secret-of-the-host\n",
	})
	gateway := c.start(t, operations)
	c.activated(t, first)
	files["note.md"] = "signed by the other key"
	c.activated(t, repo.Commit(gittest.Commit{Files: files, Key: pgpKey, Date: time.Now().Add(-time.Minute)}))

	token := c.exec(t, c.entry[0], "token", "create", "--for", "ann", "--modules", "*", "--quiet")
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "corp.example/kit@v1.2.0")
	cmd.Dir, cmd.Env = c.client(t, "off", url, "localhost:"+port, token)
	if out, err := cmd.CombinedOutput(); err != nil {
		gateway.cmd.Process.Kill()
		<-gateway.done
		t.Fatalf("go mod download: %v\n%s%s", err, out, &gateway.output)
	}
}

// activated waits until a commit is the active policy.
func (c *container) activated(t *testing.T, commit string) {
	t.Helper()
	var out []byte
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); <-time.After(100 * time.Millisecond) {
		out, _ = c.command(t.Context(), c.entry[0], "policy", "status").CombinedOutput() // 3 as long as one is refused
		if strings.Contains(string(out), "activated "+commit) {
			return
		}
	}
	t.Fatalf("policy status does not say that %s is activated:\n%s", commit, out)
}
