package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopWait is how long a child may take to end in order.
const stopWait = 20 * time.Second

// A child is a process that the demonstration started and ends.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser // a verb of our own ends when this is closed, so that it outlives nobody
	out   io.ReadCloser  // nil where the output goes to a file
	done  chan struct{}  // closed when the process has ended
	err   error          // how; read after done
}

// start runs a program. Its output and its errors go to DIR/NAME.log, or the output to the caller where piped.
func start(dir, name string, piped bool, env []string, program string, args ...string) (*child, error) {
	c := &child{name: name, cmd: exec.Command(program, args...), done: make(chan struct{})}
	c.cmd.Env, c.cmd.Dir = env, dir
	// A group of its own: an interrupt from the terminal reaches the demonstration alone, which stops the others in order.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	log, err := os.OpenFile(c.log(dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer log.Close()
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if piped {
		c.cmd.Stdout = nil
		if c.out, err = c.cmd.StdoutPipe(); err != nil {
			return nil, fmt.Errorf("starting %s: %w", name, err)
		}
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if !piped {
		go c.wait()
	}
	return c, nil
}

func (c *child) log(dir string) string { return filepath.Join(dir, c.name+".log") }

func (c *child) wait() {
	c.err = c.cmd.Wait()
	close(c.done)
}

// startSelf runs a verb of this program: the first line of its input is given, and the first line of its output, its
// address, is returned.
func startSelf(dir, name, input string, env []string, args ...string) (*child, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", fmt.Errorf("finding this program: %w", err)
	}
	c, err := start(dir, name, true, env, self, args...)
	if err != nil {
		return nil, "", err
	}
	if _, err = fmt.Fprintln(c.stdin, input); err == nil {
		var line string
		if line, err = bufio.NewReader(c.out).ReadString('\n'); err == nil {
			go c.wait()
			return c, strings.TrimSpace(line), nil
		}
	}
	go c.wait()
	text, _ := os.ReadFile(c.log(dir))
	_ = c.stop()
	return nil, "", fmt.Errorf("starting %s: %w: %s", name, err, text)
}

// stop asks the process to end, insists after a while, and says how it ended.
func (c *child) stop() error {
	_ = c.stdin.Close() // the process may be gone already
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(stopWait):
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("stopping %s: it did not end within %s", c.name, stopWait)
	}
	if c.err != nil {
		return fmt.Errorf("stopping %s: %w", c.name, c.err)
	}
	return nil
}

// command runs a program to its end and returns what it printed, both streams together.
func command(ctx context.Context, dir string, env []string, program string, args ...string) (string, error) {
	out, _, err := counting(ctx, dir, env, program, args...)
	return out, err
}

// counting is command that also gives the CPU time that the program and its own children took.
func counting(ctx context.Context, dir string, env []string, program string, args ...string) (string, time.Duration, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return string(out), 0, err
	}
	return string(out), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}

// keepEnv copies the named variables of this process, those that are set.
func keepEnv(names ...string) []string {
	var env []string
	for _, name := range names {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
