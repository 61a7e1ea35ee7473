package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/modfile"
)

const (
	// largeList is a go.mod that a large project has.
	largeList = "testdata/modules-536.mod"
	// memoryDisk holds the client's module cache, so that the disk measures nothing but the servers.
	memoryDisk = "/dev/shm"
	// memoryNeeded is what one module cache takes there, unpacked, with room to spare.
	memoryNeeded = 5 << 30
	downloadRuns = 3
	publicSumdb  = "sum.golang.org"
)

// downloads measures `go mod download` of one large project: straight from an upstream and through the gateway.
type downloads struct {
	dir, fast string // on disk, and in memory
	files     string // the archive's folder
	t         *teller
	upstream  string // the machine's own
	goMod     []byte
	modules   int
	gate      *gate
	token     string
	archive   static
	nginx     static
	times     map[string][]goRun // by way
	traffic   map[string]traffic // of the last run of a way
	runs      int
	off       bool // the machine's own upstream is asked without the checksum database, too
	real      map[string]goRun
}

// download prints the table. The machine's own upstream is asked twice for everything, once straight and once through
// the gateway, and as often again with off; all else goes to an archive of what came.
func download(ctx context.Context, d *downloads) (err error) {
	d.files = cmp.Or(d.files, filepath.Join(d.dir, "archive-files"))
	d.traffic = map[string]traffic{}
	d.times, d.real = map[string][]goRun{}, map[string]goRun{}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(ctx); err != nil {
		return err
	}
	d.t.say("%d modules, %d cores, %s; TLS, HTTP/2; client's module cache in memory; token, policy of %d teams and %d rules, audit on.",
		d.modules, runtime.NumCPU(), runtime.Version(), benchTeams, benchRules)
	if d.files, err = filepath.Abs(d.files); err != nil {
		return fmt.Errorf("finding the archive: %w", err)
	}
	if _, err := os.Stat(d.files); err == nil {
		d.t.say("The machine's own upstream is not asked: %s is there.", d.files)
	} else if err := d.asked(ctx); err != nil {
		return err
	}
	if d.runs == 0 {
		return nil
	}
	if err := d.serveArchive(ctx); err != nil {
		return err
	}
	d.t.step("An archive of it on this machine, medians of " + fmt.Sprint(d.runs))
	for range d.runs {
		if err := d.round(ctx); err != nil {
			return err
		}
	}
	d.table()
	if err := d.counted(ctx); err != nil {
		return err
	}
	return d.imported(ctx)
}

// open checks what is needed and builds the gateway.
func (d *downloads) open(ctx context.Context) (err error) {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(memoryDisk, &disk); err != nil || disk.Bavail*uint64(disk.Bsize) < memoryNeeded {
		return fmt.Errorf("measuring downloads: %s has no %d GB free for a module cache in memory (%w)", memoryDisk, memoryNeeded>>30, err)
	}
	if d.fast, err = os.MkdirTemp(memoryDisk, "headgate-demo-"); err != nil {
		return fmt.Errorf("making a folder in memory: %w", err)
	}
	if d.upstream, err = machineUpstream(ctx, d.dir); err != nil {
		return err
	}
	if d.goMod, err = testdata.ReadFile(largeList); err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	f, err := modfile.Parse(largeList, d.goMod, nil)
	if err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	d.modules = len(f.Require)
	if err := writeLargePolicy(d.dir); err != nil {
		return err
	}
	d.gate, err = build(ctx, d.dir)
	return err
}

func (d *downloads) close() error {
	errs := []error{d.stopGateway()}
	for _, c := range []*child{d.nginx.process, d.archive.process} {
		if c != nil {
			errs = append(errs, c.stop())
		}
	}
	if d.fast != "" {
		errs = append(errs, os.RemoveAll(d.fast))
	}
	return errors.Join(errs...)
}

func (d *downloads) stopGateway() error {
	if d.gate == nil || d.gate.process == nil {
		return nil
	}
	err := d.gate.process.stop()
	d.gate.process = nil
	return err
}

// fresh starts a gateway with nothing in its state folder; keys say what its mirror fetches from.
func (d *downloads) fresh(ctx context.Context, mirror string) error {
	if err := errors.Join(d.stopGateway(), os.RemoveAll(d.gate.state())); err != nil {
		return err
	}
	return d.restart(ctx, mirror)
}

// restart starts the gateway with the state that there is, and makes a token.
func (d *downloads) restart(ctx context.Context, mirror string) error {
	if err := d.stopGateway(); err != nil {
		return err
	}
	d.gate.env = keepEnv("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
	err := d.gate.configure(fmt.Sprintf("policy: {source: folder, path: %q}\n", filepath.Join(d.dir, "policy")) + mirror)
	if err == nil {
		err = d.gate.start(ctx, "warn")
	}
	if err != nil {
		return err
	}
	out, err := d.gate.run(ctx, "token", "create", "--for", "bench", "--group", "g001", "--modules", "*", "--quiet")
	if err != nil {
		return fmt.Errorf("making a token: %w: %s", err, out)
	}
	d.token = strings.TrimSpace(out)
	netrc := "machine " + d.gate.machine + " login bench password " + d.token + "\n"
	return os.WriteFile(filepath.Join(d.fast, ".netrc"), []byte(netrc), 0o600)
}

// A way is where the go command downloads from.
type way struct {
	name      string
	env       []string // GOPROXY and trust
	sumdb     string
	toolchain string // GOTOOLCHAIN; "" is local
	keep      string // folder to which the module cache's download folder goes afterwards, "" drops it
}

// A goRun is one go command: what it printed, how long it took, and the CPU time of it and of the gateway meanwhile,
// which says more where other work takes the machine.
type goRun struct {
	out                   string
	took, client, gateway time.Duration
}

// goes runs the go command in the project with an empty module cache.
func (d *downloads) goes(ctx context.Context, w way, args ...string) (r goRun, err error) {
	dir, err := os.MkdirTemp(d.fast, "project-")
	if err != nil {
		return goRun{}, fmt.Errorf("making a project: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p := &project{dir: dir, env: append(append(keepEnv("PATH", "TMPDIR"), w.env...),
		"HOME="+d.fast, "GOSUMDB="+w.sumdb, "GOFLAGS=-modcacherw -mod=mod", "GOENV=off", "GOWORK=off", "GOTOOLCHAIN="+cmp.Or(w.toolchain, "local"),
		"GOVCS=*:off", "GOPATH="+filepath.Join(dir, "gopath"), "GOMODCACHE="+filepath.Join(dir, "modcache"), "GOCACHE="+filepath.Join(d.dir, "gocache"))}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), d.goMod, 0o600); err != nil {
		return goRun{}, fmt.Errorf("making a project: %w", err)
	}
	before, start := d.gatewayTime(), time.Now()
	r.out, r.client, err = counting(ctx, p.dir, p.env, "go", args...)
	r.took, r.gateway = time.Since(start), d.gatewayTime()-before
	if err != nil {
		return goRun{}, fmt.Errorf("running go %s %s: %w\n%s", strings.Join(args, " "), w.name, err, r.out)
	}
	if n, _ := p.zips(); slices.Contains(args, "download") && n != d.modules {
		return goRun{}, fmt.Errorf("%w: %d modules came %s, want %d", errClaim, n, w.name, d.modules)
	}
	if w.keep != "" {
		if err := os.CopyFS(w.keep, os.DirFS(filepath.Join(p.cache(), "cache", "download"))); err != nil {
			return goRun{}, fmt.Errorf("keeping what came: %w", err)
		}
	}
	return r, nil
}

// gatewayTime is the gateway's CPU time so far, 0 where none runs.
func (d *downloads) gatewayTime() time.Duration {
	if d.gate.process == nil {
		return 0
	}
	// A gateway that is gone makes the run fail, which says more.
	used, _ := cpuTime(d.gate.process.cmd.Process.Pid)
	return used
}

// through is the way to the gateway.
func (d *downloads) through(name, sumdb string) way {
	return way{name: name, sumdb: sumdb, env: []string{"GOPROXY=" + d.gate.url(), "SSL_CERT_FILE=" + d.gate.caFile()}}
}

// asked asks the machine's own upstream, and keeps what comes for the archive.
func (d *downloads) asked(ctx context.Context) (err error) {
	d.t.step("The machine's own upstream, once straight and once through the gateway")
	env := keepEnv("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
	straight := way{name: "straight", sumdb: publicSumdb, keep: d.files, env: append(env, "GOPROXY="+d.upstream)}
	if d.real["direct"], err = d.goes(ctx, straight, "mod", "download"); err != nil {
		return err
	}
	if err := d.fresh(ctx, fmt.Sprintf("mirror: {upstreams: [%q]}\n", d.upstream)); err != nil {
		return err
	}
	if d.real["cold"], err = d.goes(ctx, d.through("cold", publicSumdb), "mod", "download"); err != nil {
		return err
	}
	n, err := d.gate.upstreamRequests(ctx)
	if err != nil {
		return err
	}
	if err := d.switched(ctx); err != nil {
		return err
	}
	d.t.say("straight %s; through the gateway, cold, %s: %.2f (target 1.10); it sent %d requests upstream.",
		seconds(d.real["direct"].took), seconds(d.real["cold"].took), ratio(d.real["cold"].took, d.real["direct"].took), n)
	if !d.off {
		return nil
	}
	straight.sumdb, straight.keep = "off", ""
	if d.real["direct off"], err = d.goes(ctx, straight, "mod", "download"); err != nil {
		return err
	}
	if err := d.fresh(ctx, fmt.Sprintf("mirror: {upstreams: [%q]}\n", d.upstream)); err != nil {
		return err
	}
	if d.real["cold off"], err = d.goes(ctx, d.through("cold off", "off"), "mod", "download"); err != nil {
		return err
	}
	d.t.say("without the checksum database at the client: straight %s; through the gateway, cold, which verifies all the same, %s: %.2f (target 1.50).",
		seconds(d.real["direct off"].took), seconds(d.real["cold off"].took), ratio(d.real["cold off"].took, d.real["direct off"].took))
	return nil
}

// anotherRelease is a Go release that this program is not built with.
const anotherRelease = "go1.25.0"

// switched lets the go command fetch another Go release through the gateway, and run it.
func (d *downloads) switched(ctx context.Context) error {
	w := d.through("to another Go release", publicSumdb)
	w.toolchain = anotherRelease
	r, err := d.goes(ctx, w, "version")
	if err != nil {
		return err
	}
	return d.t.claims(strings.Contains(r.out, anotherRelease+" "), "GOTOOLCHAIN=%s go version works through the gateway, in %s", anotherRelease, seconds(r.took))
}

func (d *downloads) log() string { return filepath.Join(d.dir, "archive-requests.log") }

func ratio(a, b time.Duration) float64 { return a.Seconds() / b.Seconds() }

// fromArchive is the gateway's mirror section.
func (d *downloads) fromArchive() string {
	return fmt.Sprintf("mirror: {upstreams: [%q], upstream_hosts: [{host: %q, ca_file: %q}]}\n", d.archive.url(), d.archive.address, d.archive.caFile())
}
