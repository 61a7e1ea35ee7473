// Command headgate is a zero-trust access gateway for Go module traffic: it finds out who asks, asks a policy, serves
// modules from its own verified mirror, and writes a tamper-evident audit record before the first byte leaves.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/audit/sinks"
	"github.com/headgate/headgate/gateway"
)

// Exit codes of every verb. The audit log's own, 10 to 15, stand in package audit.
const (
	exitFailed = 1 // could not be done
	exitUse    = 2 // wrong use: flags, arguments, configuration
	exitNo     = 3 // done, and the answer is no
	exitPart   = 4 // done as far as possible: the answer is incomplete
	exitDead   = 5 // dead letters were refused again
)

func main() { os.Exit(execute(context.Background())) }

// execute runs the process's command line until a signal, says what went wrong, and gives the exit code.
func execute(ctx context.Context) int {
	ctx, stop := untilSignal(ctx)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "headgate: "+strings.ReplaceAll(err.Error(), "\n", "\nheadgate: "))
		return exitCode(err)
	}
	return 0
}

// run executes one command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

// untilSignal ends on SIGTERM, and at once on SIGINT or on a second signal of either kind.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		if <-signals == os.Interrupt {
			cancel(gateway.ErrAtOnce)
		} else {
			cancel(errors.New("terminated"))
		}
		signal.Stop(signals) // the next signal ends the process: every acknowledged record is already on disk
	}()
	return ctx, func() { cancel(nil) }
}

// A useError is a mistake on the command line.
type useError struct{ error }

func (e *useError) Unwrap() error { return e.error }

// A noError is the answer no of a verb that asks something, which is done as well as a yes.
type noError struct{ error }

func (e *noError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if damage, ok := errors.AsType[*audit.DamageError](err); ok {
		return damage.Code
	}
	if _, ok := errors.AsType[*useError](err); ok {
		return exitUse
	}
	if _, ok := errors.AsType[*configError](err); ok {
		return exitUse
	}
	if _, ok := errors.AsType[*noError](err); ok {
		return exitNo
	}
	if _, ok := errors.AsType[*partialError](err); ok {
		return exitPart
	}
	if _, ok := errors.AsType[*deadError](err); ok {
		return exitDead
	}
	if errors.Is(err, sinks.ErrAltered) {
		return audit.ExitAltered
	}
	return exitFailed
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "headgate",
		Short: "zero-trust access gateway for Go module traffic",
		Long: `Headgate stands between the go command and every module it downloads. It knows who asks, asks a policy,
serves the module from its own verified mirror, and records the decision before the first byte leaves.

Exit codes: 0 done, 1 could not be done, 2 wrong use, 3 the answer is no, 4 it is incomplete, 5 dead letters stay; audit verbs and serve: 10 altered record, 11 segment missing,
12 log shorter than a checkpoint, 13 torn tail, 14 unknown key, 15 checkpoints contradict each other.`,
		Example:       "  headgate serve\n  headgate token create --for ann --modules '*'\n  headgate audit verify",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          arguments(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &useError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	file := root.PersistentFlags().String("config", "", "configuration `FILE` (default: $HEADGATE_CONFIG, else "+systemConfig+", else defaults)")
	root.AddCommand(serveCommand(file), readyCommand(file), configCommand(file), tokenCommand(file), deviceCommand(file), lockCommand(file), unlockCommand(file),
		auditCommand(file), mirrorCommand(file), policyCommand(file), checkCommand(), versionCommand(),
		loginCommand(), logoutCommand(), whoamiCommand(), statusCommand(), goauthCommand(), agentCommand(), doctorCommand())
	root.CompletionOptions.HiddenDefaultCmd = true
	return root
}

// arguments says what is wrong in the words of the verb.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &useError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}

// group is a verb that only holds others.
func group(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &useError{fmt.Errorf("unknown verb %q; see %s --help", args[0], cmd.CommandPath())}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(verbs...)
	return cmd
}
