package deploy_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A container is the image's root with one volume and one configuration file mounted over the shipped one.
type container struct {
	*image
	root, volume, config string
	uid                  int // of the host, which is 65532 inside
}

// newContainer copies an image as its COPY lines say.
func newContainer(t *testing.T, name string, config []byte) *container {
	t.Helper()
	r := assembled(t)
	i := r.images[name]
	dir, err := os.MkdirTemp(r.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	c := &container{
		image: i, root: filepath.Join(dir, "root"), volume: filepath.Join(dir, "volume"), config: filepath.Join(dir, "headgate.yaml"),
		uid: os.Getuid(),
	}
	if c.uid == 0 {
		c.uid = 65532
	}
	for _, copied := range i.copies {
		if err := os.MkdirAll(filepath.Join(c.root, copied.to), 0o755); err != nil {
			t.Fatal(err)
		}
		tool(t, "cp", "-a", filepath.Join(i.built, copied.from)+"/.", filepath.Join(c.root, copied.to))
	}
	for _, mounted := range []string{c.volume, filepath.Join(c.root, "proc"), filepath.Join(c.root, "dev")} {
		if err := os.Mkdir(mounted, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, device := range []string{"dev/null", "dev/urandom"} {
		if err := os.WriteFile(filepath.Join(c.root, device), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.config, config, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{dir: 0o755, c.volume: 0o700, c.root: 0o755, c.config: 0o644} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(c.volume, c.uid, -1); err != nil {
		t.Fatal(err)
	}
	return c
}

// inside turns a new mount namespace into the container's and gives way to the program: uid 65532, no capability, no
// way to one. $1 root, $2 volume, $3 configuration, then the program.
const inside = `set -eu
mount -n --make-rprivate /
mount -n --bind "$1" "$1"
mount -n --bind "$2" "$1/var/lib/headgate"
mount -n --bind "$3" "$1/etc/headgate/headgate.yaml"
mount -n -o remount,bind,ro,nosuid,nodev "$1/etc/headgate/headgate.yaml"
mount -n -o remount,bind,ro,nosuid,nodev "$1"
mount -n --bind /dev/null "$1/dev/null"
mount -n --bind /dev/urandom "$1/dev/urandom"
mount -n --rbind /proc "$1/proc"
root=$1; shift 3
exec setpriv --no-new-privs unshare --user --map-user=65532 --map-group=65532 --root="$root" --wd=/var/lib/headgate "$@"`

// command is a program of the image in user, mount, process, host name and IPC namespaces of its own.
func (c *container) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", inside, "sh", c.root, c.volume, c.config}, args...)...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, c.env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: c.uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: c.gid(), Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		Pdeathsig:   syscall.SIGKILL,
	}
	return cmd
}

func (c *container) gid() int {
	if os.Getuid() == 0 {
		return 65532
	}
	return os.Getgid()
}

// exec runs one program of the image to its end, as a container tool's exec does.
func (c *container) exec(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := c.command(ctx, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v in the container: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// A running is the image's own command, under way.
type running struct {
	cmd    *exec.Cmd
	output bytes.Buffer // read after done
	done   chan struct{}
}

// start runs ENTRYPOINT and CMD and waits until the gateway is ready.
func (c *container) start(t *testing.T, operations string) *running {
	t.Helper()
	r := &running{cmd: c.command(context.Background(), append(append([]string{}, c.entry...), c.image.cmd...)...), done: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = &r.output, &r.output
	if err := r.cmd.Start(); err != nil {
		t.Fatalf("starting in new namespaces: %v; the test needs root or unprivileged user namespaces", err)
	}
	go func() { defer close(r.done); r.cmd.Wait() }()
	t.Cleanup(func() { r.cmd.Process.Kill(); <-r.done })
	deadline := time.After(time.Minute)
	for {
		resp, err := http.Get("http://" + operations + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return r
			}
		}
		select {
		case <-r.done:
			t.Fatalf("the container ended: %v\n%s", r.cmd.ProcessState, &r.output)
		case <-deadline:
			r.cmd.Process.Kill()
			<-r.done
			t.Fatalf("the container is not ready after a minute:\n%s", &r.output)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// filledIn is the shipped configuration with what an operator fills in, on loopback.
func filledIn(t *testing.T, up *mirrortest.Server, url, listen, operations string) []byte {
	t.Helper()
	text, err := os.ReadFile("headgate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	g, m := c["gateway"].(map[string]any), c["mirror"].(map[string]any)
	g["url"], g["listen"], g["operations"], g["drain_wait"] = url, listen, operations, "0s"
	m["upstreams"], m["sumdb"] = []string{up.URL}, []string{up.Key()}
	if text, err = yaml.Marshal(c); err != nil {
		t.Fatal(err)
	}
	return text
}

const helloModule = `module example.com/hello@v1.0.0
-- go.mod --
module example.com/hello

go 1.21
-- hello.go --
package hello
`

// The image's own command, as uid 65532 without capabilities, with a read-only root and one volume, serves a module to
// the go command and ends in order.
func TestImage(t *testing.T) {
	up := mirrortest.Start(t, helloModule)
	listen, operations := freeAddress(t), freeAddress(t)
	_, port, _ := net.SplitHostPort(listen)
	url := "https://localhost:" + port
	c := newContainer(t, "headgate", filledIn(t, up, url, listen, operations))
	if c.user != "65532:65532" {
		t.Errorf("USER is %q, want 65532:65532", c.user)
	}
	began := time.Now()
	gateway := c.start(t, operations)
	t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	c.checkRights(t, gateway.cmd.Process.Pid)
	c.checkReadOnly(t, gateway.cmd.Process.Pid)

	t.Run("healthcheck", func(t *testing.T) { c.exec(t, composeService(t).HealthCheck.Test[1:]...) })
	t.Run("download", func(t *testing.T) {
		token := c.exec(t, c.entry[0], "token", "create", "--for", "ann", "--modules", "*", "--quiet")
		c.download(t, up, url, "localhost:"+port, token)
	})

	gateway.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-gateway.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the container still runs 20 s after SIGTERM")
	}
	if code := gateway.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0:\n%s", code, &gateway.output)
	}
	if out := c.exec(t, c.entry[0], "audit", "verify"); !strings.Contains(out, "good: records") {
		t.Errorf("audit verify says %q", out)
	}
}

// checkRights asks the kernel what the process may do.
func (c *container) checkRights(t *testing.T, pid int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		got[key] = strings.Join(strings.Fields(value), " ")
	}
	uid := strconv.Itoa(c.uid)
	for key, want := range map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "NoNewPrivs": "1",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if got[key] != want {
			t.Errorf("the process has %s %q, want %q", key, got[key], want)
		}
	}
	ids, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "uid_map"))
	if err != nil || !strings.HasPrefix(strings.TrimSpace(string(ids)), "65532 ") {
		t.Errorf("inside it is not uid 65532 alone: %q, %v", ids, err)
	}
}

// checkReadOnly writes into the container's own mounts: the volume takes it, nothing else does, not even from root.
func (c *container) checkReadOnly(t *testing.T, pid int) {
	t.Helper()
	root := filepath.Join("/proc", strconv.Itoa(pid), "root")
	for _, dir := range []string{"/", "/etc", "/etc/headgate", "/etc/ssl/certs", "/usr/bin", "/var/lib"} {
		err := os.WriteFile(filepath.Join(root, dir, "intruder"), nil, 0o600)
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("writing below %s: %v, want %v", dir, err, syscall.EROFS)
		}
	}
	for _, file := range []string{"/usr/bin/headgate", "/etc/headgate/headgate.yaml", "/etc/passwd"} {
		f, err := os.OpenFile(filepath.Join(root, file), os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.ETXTBSY) {
			t.Errorf("opening %s for writing: %v, want %v", file, err, syscall.EROFS)
		}
	}
	probe := filepath.Join(root, "var/lib/headgate/probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Errorf("writing to the volume: %v", err)
	}
	os.Remove(probe)
	for _, name := range []string{"bin/sh", "usr/bin/sh", "usr/local/go", "root", "tmp"} {
		if _, err := os.Lstat(path.Join(c.root, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the image has /%s: %v", name, err)
		}
	}
}

// download runs the real go command against the container, with .netrc and the gateway's own CA.
func (c *container) download(t *testing.T, up *mirrortest.Server, url, machine, token string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", "example.com/hello@v1.0.0")
	cmd.Dir, cmd.Env = c.client(t, up.Key(), url, machine, token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(cmd.Dir, "go/pkg/mod/example.com/hello@v1.0.0/hello.go")); err != nil || string(text) != "package hello\n" {
		t.Errorf("the module's file is %q, %v", text, err)
	}
	if n := up.Count("*.zip"); n != 1 {
		t.Errorf("upstream saw %d requests for the zip, want 1", n)
	}
}

// client is the home and the environment of a go command that uses the container.
func (c *container) client(t *testing.T, sumdb, url, machine, token string) (home string, env []string) {
	t.Helper()
	home = mirrortest.Home(t)
	if err := os.WriteFile(filepath.Join(home, ".netrc"), []byte("machine "+machine+" login headgate password "+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return home, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GOENV=off", "GOTOOLCHAIN=local", "GOFLAGS=-modcacherw", "GOPATH=" + filepath.Join(home, "go"),
		"GOCACHE=" + filepath.Join(home, "cache"), "GOPROXY=" + url, "GOSUMDB=" + sumdb, "SSL_CERT_FILE=" + filepath.Join(c.volume, "ca/ca.pem"),
	}
}
