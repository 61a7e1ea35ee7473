package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	trialTimeout  = time.Minute
	maxVerdict    = 64 << 10
	maxTrialBytes = 2 * maxBundleBytes
	// No core dumps, 2 GiB of data, in KiB, and two minutes of CPU.
	trialLimits = `ulimit -c 0 && ulimit -d 2097152 && ulimit -t 120 && exec "$0" "$@"`
	trialMemory = "GOMEMLIMIT=1536MiB"
)

// verdict is what Try writes: empty, or the step that the bundle failed and why.
type verdict struct {
	State  string `json:"state,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// gate checks and tests a candidate before anything of it comes near a request: in a process of its own, since a
// compiler cannot be stopped and memory not be taken back. It gives the step that failed.
func (e *Engine) gate(ctx context.Context, b *bundle) (state string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, trialTimeout, fmt.Errorf("checking and testing took longer than %v", trialTimeout))
	defer cancel()
	if len(e.opts.Trial) == 0 {
		return b.try(ctx)
	}
	files := maps.Clone(b.files)
	maps.Copy(files, b.tests)
	archive, err := pack(files)
	if err != nil {
		return stateBuilt, err
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", trialLimits}, e.opts.Trial...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", trialMemory, fmt.Sprintf("GOMAXPROCS=%d", max(1, runtime.GOMAXPROCS(0)/2))}
	for _, name := range []string{"GODEBUG", "GORACE"} { // how Go's runtime was told to be
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", bytes.NewReader(archive), &clipped{&out}, &clipped{&errs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if text, _, _ := strings.Cut(errs.String(), "\n"); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return stateChecked, fmt.Errorf("checking and testing ended at its limits: %w", err)
	}
	var v verdict
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		return stateChecked, fmt.Errorf("checking and testing gave no verdict: %w", err)
	}
	if v.State != "" {
		return v.State, errors.New(v.Reason)
	}
	return "", nil
}

// clipped keeps the first bytes that a child prints.
type clipped struct{ *bytes.Buffer }

func (c *clipped) Write(b []byte) (int, error) {
	c.Buffer.Write(b[:min(len(b), max(0, maxVerdict-c.Len()))])
	return len(b), nil
}

// Try checks and tests the bundle that in holds as an archive with its tests, and writes the verdict. It is what
// Options.Trial runs in a process of its own. The error is that it could not do so.
func Try(ctx context.Context, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(io.LimitReader(in, maxTrialBytes+1))
	if err == nil && len(text) > maxTrialBytes {
		err = fmt.Errorf("it has more than %d bytes", maxTrialBytes)
	}
	if err != nil {
		return fmt.Errorf("reading the bundle to try: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	v := verdict{State: stateBuilt}
	fsys, err := unpack(text)
	var b *bundle
	if err == nil {
		b, err = readBundle(fsys, nil)
	}
	if err == nil {
		err = b.build()
	}
	if err == nil {
		v.State, err = b.try(ctx)
	}
	if err != nil {
		v.Reason = err.Error()
		v.Reason = v.Reason[:min(len(v.Reason), maxVerdict/2)]
	}
	return json.NewEncoder(out).Encode(v)
}

// try compiles a built bundle and runs its tests and ours.
func (b *bundle) try(ctx context.Context) (state string, err error) {
	m, err := newMeters(nil)
	if err != nil {
		return stateChecked, err
	}
	g, err := compile(ctx, b, make(chan struct{}, 2), m, func(string) {})
	if err != nil {
		return stateChecked, err
	}
	if err := b.test(ctx, g, &Report{}); err != nil {
		return stateTested, err
	}
	return "", nil
}
