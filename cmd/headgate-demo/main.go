// Command headgate-demo shows Headgate at work on one machine: it brings an OpenID provider, people and a policy
// folder, starts the real headgate as a child process behind a relay that counts, and lets the real go command ask.
// It is not shipped: the gateway's own binary holds no provider. Its one invariant: what it says was checked, and the
// first claim that does not hold ends it with an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const help = `headgate-demo tells how Headgate works, on real modules, on this machine alone.

It builds headgate, starts an OpenID provider with three people, a relay in front of the machine's
own GOPROXY that counts each request, and the gateway. Then the real go command downloads modules as
each of the three, with the public checksum database on. Everything stands in one temporary folder
and listens on loopback only. Needed: Go, and a GOPROXY that answers. Run it inside the clone.

Usage:
  headgate-demo [--keep]          tell the whole story, then remove everything
  headgate-demo --stay [--keep]   start the same, print what to export, stay until interrupted
  headgate-demo bench             print a table of speed beside a plain Go server
  headgate-demo download          download 536 modules straight and through the gateway, cold and warm, side by side

Flags:
  --keep    keep the temporary folder and say where it is
  --stay    stay until interrupted
  --archive DIR   download: keep there what comes from the upstream; a later run does not ask it again
  --off           download: ask the machine's own upstream without the checksum database, too: twice as much from it
  --runs N        download: rounds of measurement, 3 if not said; 0 only fills the archive

Examples:
  go run ./cmd/headgate-demo
  go run ./cmd/headgate-demo --keep
  go run ./cmd/headgate-demo --stay
  go run ./cmd/headgate-demo bench
  go run ./cmd/headgate-demo download --archive /var/tmp/modules

Exit codes: 0 every claim held, 1 one did not or something failed, 2 wrong use.
`

// errUse is a mistake on the command line.
var errUse = errors.New("wrong use; see headgate-demo --help")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "headgate-demo: "+strings.ReplaceAll(err.Error(), "\n", "\nheadgate-demo: "))
	if errors.Is(err, errUse) {
		os.Exit(2)
	}
	os.Exit(1)
}

// itself is what the demonstration starts itself as: a process of its own, so that its CPU time is. Nil is no such verb.
func itself(verb string) func(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	switch verb {
	case "relay":
		return runRelay
	case "floor":
		return runFloor
	case "archive":
		return runArchive
	}
	return nil
}

// run executes one command line.
func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) > 0 {
		if serve := itself(args[0]); serve != nil {
			return serve(ctx, args[1:], stdin, stdout)
		}
	}
	var keep, stay bool
	var archive string
	var runs int
	var off bool
	flags := flag.NewFlagSet("headgate-demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&keep, "keep", false, "")
	flags.BoolVar(&stay, "stay", false, "")
	flags.StringVar(&archive, "archive", "", "")
	flags.IntVar(&runs, "runs", downloadRuns, "")
	flags.BoolVar(&off, "off", false, "")
	err := flags.Parse(args)
	verb := flags.Arg(0)
	if err == nil && verb != "" {
		err = flags.Parse(flags.Args()[1:]) // flags may follow the verb
	}
	if errors.Is(err, flag.ErrHelp) {
		_, err = io.WriteString(stdout, help)
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUse, err)
	}
	t := newTeller(stdout)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%w: %q is too much", errUse, flags.Args())
	case (archive != "" || runs != downloadRuns || off) && verb != "download" || runs < 0:
		return fmt.Errorf("%w: --archive, --off and --runs, 0 or more, are of download", errUse)
	case verb == "bench" && !stay:
		return inFolder(ctx, keep, t, bench)
	case verb == "download" && !stay:
		return inFolder(ctx, keep, t, func(ctx context.Context, dir string, t *teller) error {
			return download(ctx, &downloads{dir: dir, files: archive, runs: runs, off: off, t: t})
		})
	case verb != "":
		return fmt.Errorf("%w: there is no verb %q, or not with these flags", errUse, verb)
	case stay:
		return inFolder(ctx, keep, t, remain)
	}
	return inFolder(ctx, keep, t, story)
}

// inFolder does something in a temporary folder that is removed afterwards.
func inFolder(ctx context.Context, keep bool, t *teller, do func(context.Context, string, *teller) error) (err error) {
	dir, err := os.MkdirTemp("", "headgate-demo-")
	if err != nil {
		return fmt.Errorf("making a temporary folder: %w", err)
	}
	defer func() {
		if keep {
			t.say("Everything is kept in %s", dir)
			return
		}
		if rerr := os.RemoveAll(dir); err == nil && rerr != nil {
			err = fmt.Errorf("removing the temporary folder: %w", rerr)
		}
	}()
	err = do(ctx, dir, t)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted; everything was stopped")
	}
	return err
}
