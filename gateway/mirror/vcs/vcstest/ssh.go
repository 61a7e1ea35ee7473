package vcstest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// SSH is an sshd that serves a Server's repositories to one key.
type SSH struct {
	// URL is the beginning of its repositories' URLs, with a slash at the end.
	URL string
	// KeyFile is the key that may read, KnownHostsFile names the host's key.
	KeyFile, KnownHostsFile string
}

// StartSSH runs sshd on a loopback port until the test ends.
func StartSSH(tb testing.TB, s *Server) *SSH {
	tb.Helper()
	dir := tb.TempDir()
	me, err := user.Current()
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"host", "client", "other"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput()
		if err != nil {
			tb.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	serve := fmt.Sprintf("#!/bin/sh\nset -f\ncase \"$SSH_ORIGINAL_COMMAND\" in \"git-upload-pack '/\"*);; *) exit 1;; esac\np=${SSH_ORIGINAL_COMMAND#*\\'/}\nexec git-upload-pack %s/repos/\"${p%%\\'}\"\n", s.Dir)
	config := fmt.Sprintf(`ListenAddress 127.0.0.1:%d
HostKey %s/host
PidFile none
AuthorizedKeysFile %s/client.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv GIT_PROTOCOL
ForceCommand %s/serve
`, port, dir, dir, dir)
	host, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		tb.Fatal(err)
	}
	for name, text := range map[string]string{
		"serve": serve, "config": config, "known_hosts": fmt.Sprintf("[127.0.0.1]:%d %s", port, host),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	if me.Uid == "0" { // where sshd confines itself
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	var output strings.Builder
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "config"))
	cmd.Stderr = &output
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting sshd (Debian's openssh-server): %v", err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			tb.Fatalf("sshd does not listen: %v\n%s", err, output.String())
		}
	}
	return &SSH{
		URL: "ssh://" + me.Username + "@" + address + "/", KeyFile: filepath.Join(dir, "client"), KnownHostsFile: filepath.Join(dir, "known_hosts"),
	}
}
