// Package deploy_test holds the packaging to its word: the image's root is assembled as the Containerfile says and run
// without any right, the compose file is loaded as compose loads it, and systemd judges the unit.
package deploy_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// maxExposure is what `systemd-analyze security` may call the unit's exposure, times ten: 1.1 of 10. What is left is
// what a network service needs: the host's network and sockets, any peer address, the host's root folder read-only.
const maxExposure = 11

// grace is the least patience that a supervisor must have: 10 s of balancer, 60 s of downloads, the last records.
const grace = 95 * time.Second

func TestCompose(t *testing.T) {
	s := composeService(t)
	if !s.ReadOnly {
		t.Error("read_only is off")
	}
	if s.User != "65532:65532" {
		t.Errorf("user = %q, want 65532:65532", s.User)
	}
	if s.Privileged || len(s.CapAdd) > 0 || len(s.Devices) > 0 || s.NetworkMode == "host" || s.Pid != "" || s.Ipc != "" {
		t.Error("the service has rights that it does not need: privileged, cap_add, devices, or a namespace of the host")
	}
	if diff := cmp.Diff([]string{"ALL"}, s.CapDrop); diff != "" {
		t.Errorf("cap_drop (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"no-new-privileges:true"}, s.SecurityOpt); diff != "" {
		t.Errorf("security_opt (-want +got):\n%s", diff)
	}
	if n := s.Ulimits["nofile"]; n == nil || n.Soft != 65536 || n.Hard != 65536 {
		t.Errorf("ulimits.nofile = %+v, want 65536", n)
	}
	if s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) < grace {
		t.Errorf("stop_grace_period = %v, want at least %v", s.StopGracePeriod, grace)
	}
	if s.Hostname == "" {
		t.Error("hostname is empty: each new container would be another node of the audit log")
	}
	if s.HealthCheck == nil || len(s.HealthCheck.Test) < 2 || s.HealthCheck.Test[0] != "CMD" {
		t.Errorf("healthcheck = %+v, want a CMD: the image has no shell", s.HealthCheck)
	}
	writable := []string{}
	for _, v := range s.Volumes {
		if !v.ReadOnly {
			writable = append(writable, v.Type+" "+v.Target)
		}
	}
	if diff := cmp.Diff([]string{"volume /var/lib/headgate"}, writable); diff != "" {
		t.Errorf("writable folders (-want +got):\n%s", diff)
	}
	if got, want := s.Build.Dockerfile, "deploy/container/Containerfile"; got != want {
		t.Errorf("build.dockerfile = %q, want %q", got, want)
	}
}

// composeService is the one service of compose.yaml, loaded with compose's own schema, checks and path rules.
func composeService(t *testing.T) types.ServiceConfig {
	t.Helper()
	o, err := cli.NewProjectOptions([]string{"compose/compose.yaml"}, cli.WithDiscardEnvFile, cli.WithInterpolation(true), cli.WithConsistency(true))
	if err != nil {
		t.Fatal(err)
	}
	project, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatalf("loading compose.yaml: %v", err)
	}
	if len(project.Services) != 1 || len(project.Volumes) != 1 {
		t.Fatalf("compose.yaml has %d services and %d volumes, want one of each", len(project.Services), len(project.Volumes))
	}
	s, err := project.GetService("headgate")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("a mounted file is not there: %v", err)
			}
		}
	}
	return s
}

func TestSystemdUnit(t *testing.T) {
	text, err := os.ReadFile("systemd/headgate.service")
	if err != nil {
		t.Fatal(err)
	}
	// verify wants to find the program; a unit that differs in nothing else names the one just built.
	program := regexp.MustCompile(`(?m)^(ExecStart=)\S+`)
	unit := filepath.Join(t.TempDir(), "headgate.service")
	if err := os.WriteFile(unit, program.ReplaceAll(text, []byte("${1}"+assembled(t).binary())), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("verify", func(t *testing.T) {
		if out := tool(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit); strings.Contains(out, "headgate.service") {
			t.Errorf("systemd-analyze verify complains:\n%s", out)
		}
	})
	t.Run("security", func(t *testing.T) {
		out := tool(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+strconv.Itoa(maxExposure), unit)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Log(lines[len(lines)-1])
	})
	for _, want := range []string{
		"Type=notify", "DynamicUser=yes", "StateDirectory=headgate", "ProtectSystem=strict", "NoNewPrivileges=yes",
		"CapabilityBoundingSet=", "LimitNOFILE=65536", "Restart=on-failure", "RestartPreventExitStatus=2 10 11 12 14 15", "TimeoutStopSec=95",
	} {
		if !strings.Contains("\n"+string(text), "\n"+want+"\n") {
			t.Errorf("the unit lacks the line %q", want)
		}
	}
}

func TestShippedConfiguration(t *testing.T) {
	bin := assembled(t).binary()
	out := tool(t, bin, "--config", "headgate.yaml", "config", "check")
	if !strings.Contains(out, "state is /var/lib/headgate") {
		t.Errorf("config check says %q", out)
	}
	text, err := os.ReadFile("headgate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The sections that are comments must hold as well on the day when somebody takes the # away.
	text = regexp.MustCompile(`(?m)^( *)# (tls:|  cert:|  key:)`).ReplaceAll(text, []byte("$1$2"))
	var keys struct {
		Gateway struct {
			TLS struct{ Cert, Key string } `yaml:"tls"`
		} `yaml:"gateway"`
	}
	if err := yaml.Unmarshal(text, &keys); err != nil || keys.Gateway.TLS.Cert == "" || keys.Gateway.TLS.Key == "" {
		t.Fatalf("with the comments taken away there is no tls section: %v\n%s", err, text)
	}
	// The files themselves are the operator's.
	dir := t.TempDir()
	for _, name := range []string{keys.Gateway.TLS.Cert, keys.Gateway.TLS.Key} {
		theirs := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(theirs, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte(name), []byte(theirs))
	}
	file := filepath.Join(dir, "headgate.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, bin, "--config", file, "config", "check")
}

// tool runs a program that must be there and must succeed, and gives what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v (`make deps` installs what the tests need)\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
