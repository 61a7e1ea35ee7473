package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

const (
	benchRuns   = 3
	benchLength = 1500 * time.Millisecond
	benchTeams  = 200
	benchRules  = 10_000
)

// The modules of the benchmark's own upstream.
var (
	tiny   = module.Version{Path: "bench.test/tiny", Version: "v1.2.3"}
	middle = module.Version{Path: "bench.test/middle", Version: "v1.0.0"} // a zip of 100 kB
	large  = module.Version{Path: "bench.test/large", Version: "v1.0.0"}  // a zip of 5 MB
)

// A benchmark is headgate and a plain Go server side by side, with a local upstream behind the former.
type benchmark struct {
	dir      string
	t        *teller
	upstream *mirrortest.Server
	listener *http.Server
	gate     *gate
	headgate server
	floor    server
	first    time.Duration // first start with defaults, until ready
	again    time.Duration // the next one
	idle     float64       // MB
}

// bench prints a table of speed: everything on beside nothing at all.
func bench(ctx context.Context, dir string, t *teller) (err error) {
	b := &benchmark{dir: dir, t: t}
	defer func() { err = errors.Join(err, b.close()) }()
	fmt.Fprintf(t.out, "%d cores, shared by server and load generator; %s; TLS 1.3 with keep-alive on loopback;\n", runtime.NumCPU(), runtime.Version())
	fmt.Fprintf(t.out, "headgate: token, policy of %d teams and %d rules, audit log durable before the first byte, all warm;\n", benchTeams, benchRules)
	fmt.Fprintf(t.out, "Go floor: net/http, %d bytes from memory; Go files: net/http.FileServer. Medians of %d runs of %s, spread in brackets.\n\n",
		floorBody, benchRuns, benchLength)
	if err := b.open(ctx); err != nil {
		return err
	}
	if err := b.small(ctx); err != nil {
		return err
	}
	if err := b.zips(ctx); err != nil {
		return err
	}
	busy, err := memory(b.gate.process.cmd.Process.Pid, "VmHWM")
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\n| Process | headgate |\n|---|---|\n| first start with defaults until ready (makes keys and CA) | %d ms |\n| next start until ready | %d ms |\n",
		b.first.Milliseconds(), b.again.Milliseconds())
	fmt.Fprintf(t.out, "| idle RSS with defaults | %.0f MB |\n| most RSS under the loads above | %.0f MB |\n", b.idle, busy)
	return b.decisions(ctx)
}

// open starts upstream, gateway and floor, and fills the gateway's store.
func (b *benchmark) open(ctx context.Context) (err error) {
	address, err := b.serveUpstream()
	if err != nil {
		return err
	}
	if b.gate, err = build(ctx, b.dir); err != nil {
		return err
	}
	mirror := fmt.Sprintf("mirror: {upstreams: [%q], sumdb: [%q]}\n", "http://"+address, b.upstream.Key())
	if err := b.withDefaults(ctx, mirror); err != nil {
		return err
	}
	if err := writeLargePolicy(b.dir); err != nil {
		return err
	}
	if err := b.gate.configure(fmt.Sprintf("policy: {source: folder, path: %q}\n", filepath.Join(b.dir, "policy")) + mirror); err != nil {
		return err
	}
	token, err := b.startGateway(ctx)
	if err != nil {
		return err
	}
	b.headgate = server{address: b.gate.machine, roots: b.gate.roots, token: token, process: b.gate.process}
	files := map[string][]byte{}
	for _, m := range []module.Version{middle, large} {
		got, err := b.gate.get(ctx, zipPath(m), token)
		if err == nil && got.status != http.StatusOK {
			err = fmt.Errorf("status %d: %.200s", got.status, got.body)
		}
		if err != nil {
			return fmt.Errorf("filling the store with %s: %w", m, err)
		}
		files[filepath.Base(m.Path)+".zip"] = []byte(got.body)
	}
	b.floor.process, b.floor.address, b.floor.roots, err = startFloor(b.dir, files)
	return err
}

func zipPath(m module.Version) string { return "/" + m.Path + "/@v/" + m.Version + ".zip" }

func (b *benchmark) close() error {
	var errs []error
	if b.floor.process != nil {
		errs = append(errs, b.floor.process.stop())
	}
	if b.gate != nil && b.gate.process != nil {
		errs = append(errs, b.gate.process.stop())
	}
	if b.listener != nil {
		errs = append(errs, b.listener.Close())
	}
	if b.upstream != nil {
		errs = append(errs, b.upstream.Close())
	}
	return errors.Join(errs...)
}

// serveUpstream serves a GOPROXY with a checksum database of its own.
func (b *benchmark) serveUpstream() (address string, err error) {
	if b.upstream, err = mirrortest.New(""); err != nil {
		return "", err
	}
	err = b.upstream.Add(mirrortest.Module{Version: tiny, Files: map[string][]byte{
		"go.mod": []byte("module " + tiny.Path + "\n\ngo 1.24\n"), "tiny.go": []byte("package tiny\n"),
	}})
	if err = errors.Join(err, b.upstream.AddBig(middle.Path, middle.Version, 100_000), b.upstream.AddBig(large.Path, large.Version, 5_000_000)); err != nil {
		return "", err
	}
	for i := range manyVersions {
		m := manyVersion(i)
		if err := b.upstream.Add(mirrortest.Module{Version: m, Files: map[string][]byte{"go.mod": []byte("module " + m.Path + "\n")}}); err != nil {
			return "", err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening for the upstream: %w", err)
	}
	b.listener = &http.Server{Handler: b.upstream, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = b.listener.Serve(l) }() // ended by close
	return l.Addr().String(), nil
}

// withDefaults measures a start on the embedded policy, and what the gateway holds while nobody asks.
func (b *benchmark) withDefaults(ctx context.Context, mirror string) (err error) {
	if err := b.gate.configure(mirror); err != nil {
		return err
	}
	for _, took := range []*time.Duration{&b.first, &b.again} {
		if b.gate.process != nil {
			if err := b.gate.process.stop(); err != nil {
				return err
			}
		}
		start := time.Now()
		if err := b.gate.start(ctx, "warn"); err != nil {
			return err
		}
		*took = time.Since(start)
	}
	defer func() { err = errors.Join(err, b.gate.process.stop()) }()
	select {
	case <-time.After(2 * time.Second): // idle is what remains after the start
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.idle, err = memory(b.gate.process.cmd.Process.Pid, "VmRSS")
	return err
}

// startGateway starts it and makes a token.
func (b *benchmark) startGateway(ctx context.Context) (token string, err error) {
	if err := b.gate.start(ctx, "warn"); err != nil {
		return "", err
	}
	out, err := b.gate.run(ctx, "token", "create", "--for", "bench", "--group", "g001", "--group", "g002", "--modules", "*", "--quiet")
	if err != nil {
		return "", fmt.Errorf("making a token: %w: %s", err, out)
	}
	return strings.TrimSpace(out), nil
}

// small prints the rows of .info, .mod and list.
func (b *benchmark) small(ctx context.Context) error {
	fmt.Fprintln(b.t.out, "| .info + .mod + list, warm | headgate: req/s | p50 · p99 ms | server CPU | Go floor: req/s | p50 · p99 ms | server CPU | ratio |")
	fmt.Fprintln(b.t.out, "|---|---|---|---|---|---|---|---|")
	at := "/" + tiny.Path + "/@v/"
	paths := []string{at + tiny.Version + ".info", at + tiny.Version + ".mod", at + "list"}
	for _, row := range []struct {
		name string
		load load
	}{
		{"HTTP/1.1, 1 connection", load{paths, 1, false}},
		{"HTTP/1.1, 16 connections", load{paths, 16, false}},
		{"HTTP/1.1, 128 connections", load{paths, 128, false}},
		{"HTTP/2, 16 streams", load{paths, 16, true}},
	} {
		ours, theirs, err := b.beside(ctx, row.load, row.load)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", row.name, err)
		}
		h, f := median(ours), median(theirs)
		fmt.Fprintf(b.t.out, "| %s | %.0f%s | %s · %s | %.0f µs | %.0f%s | %s · %s | %.0f µs | %.2f |\n",
			row.name, h.rate(), spread(ours), milliseconds(h.p50), milliseconds(h.p99), h.perRequest(),
			f.rate(), spread(theirs), milliseconds(f.p50), milliseconds(f.p99), f.perRequest(), h.rate()/f.rate())
	}
	return nil
}

// zips prints the rows of files.
func (b *benchmark) zips(ctx context.Context) error {
	fmt.Fprintln(b.t.out, "\n| zip, warm, HTTP/1.1, 16 connections | headgate: MB/s | p50 · p99 ms | server CPU | Go files: MB/s | p50 · p99 ms | server CPU | ratio |")
	fmt.Fprintln(b.t.out, "|---|---|---|---|---|---|---|---|")
	for _, row := range []struct {
		name string
		m    module.Version
	}{{"100 kB", middle}, {"5 MB", large}} {
		ours, theirs, err := b.beside(ctx, load{[]string{zipPath(row.m)}, 16, false},
			load{[]string{"/files/" + filepath.Base(row.m.Path) + ".zip"}, 16, false})
		if err != nil {
			return fmt.Errorf("measuring zip of %s: %w", row.name, err)
		}
		h, f := median(ours), median(theirs)
		fmt.Fprintf(b.t.out, "| %s | %.0f%s | %s · %s | %.0f µs | %.0f%s | %s · %s | %.0f µs | %.2f |\n",
			row.name, h.megabytes(), spread(ours), milliseconds(h.p50), milliseconds(h.p99), h.perRequest(),
			f.megabytes(), spread(theirs), milliseconds(f.p50), milliseconds(f.p99), f.perRequest(), h.megabytes()/f.megabytes())
	}
	return nil
}

// beside runs both loads in turn: a machine's speed drifts, a ratio less.
func (b *benchmark) beside(ctx context.Context, ours, theirs load) (headgate, floor []sample, err error) {
	for range benchRuns {
		h, err := ours.run(ctx, &b.headgate, benchLength)
		if err != nil {
			return nil, nil, err
		}
		f, err := theirs.run(ctx, &b.floor, benchLength)
		if err != nil {
			return nil, nil, err
		}
		headgate, floor = append(headgate, h), append(floor, f)
	}
	return headgate, floor, nil
}

func median(runs []sample) sample {
	runs = slices.Clone(runs)
	slices.SortFunc(runs, byRate)
	return runs[len(runs)/2]
}

// spread is how far the runs lie apart, as a part of their median.
func spread(runs []sample) string {
	low, high := slices.MinFunc(runs, byRate), slices.MaxFunc(runs, byRate)
	return fmt.Sprintf(" [±%.0f %%]", 50*(high.rate()-low.rate())/median(runs).rate())
}
