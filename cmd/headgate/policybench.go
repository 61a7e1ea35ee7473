package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

func policyBenchCommand() *cobra.Command {
	var asJSON bool
	var o policy.BenchOptions
	cmd := &cobra.Command{
		Use: "bench [DIR]", Short: "measure how fast the policy in a folder answers on this machine",
		Long: `bench activates the bundle in DIR (default: this folder) without serving it and measures, on this machine, now: activation and the
memory that stays; the answers of each entry point, out of the cache and evaluated anew, with allocations, to a plain question and to those
of tests/*.yaml; the rules that take most of them; a list of versions, cold and warm. What else runs on the machine is in the figures.
Targets, p50 and p99: cached 100 ns and 1 µs, evaluated 50 and 500 µs; or --budget in their place, for the CI of a policy repository.
Exit codes: 0 within the targets, 1 it could not be measured, 3 over one of them.`,
		Example: "  headgate policy bench go-policy\n  headgate policy bench --budget 5ms go-policy\n  headgate policy bench --json go-policy",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Budget < 0 || o.Budget == 0 && cmd.Flags().Changed("budget") {
				return &useError{fmt.Errorf("--budget %v: want a duration above 0, as 5ms", o.Budget)}
			}
			if o.Samples < 1 || o.List < 1 {
				return &useError{fmt.Errorf("--samples %d, --list %d: want numbers above 0", o.Samples, o.List)}
			}
			dir := append(args, ".")[0]
			if err := isFolder(dir); err != nil {
				return fmt.Errorf("measuring a policy: %w", err)
			}
			r, err := policy.BenchBundle(cmd.Context(), os.DirFS(dir), policies.FS, o)
			if err != nil {
				return fmt.Errorf("measuring %s: %w", dir, err)
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(r)
			} else {
				err = printBench(cmd.OutOrStdout(), r)
			}
			if err != nil {
				return err
			}
			return overTarget(r)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&o.Budget, "budget", 0, "what the p99 of an evaluated answer may be, in place of the targets")
	cmd.Flags().IntVar(&o.Samples, "samples", 400, "answers of each entry point that are measured")
	cmd.Flags().IntVar(&o.List, "list", 2000, "versions of the list")
	return cmd
}

// overTarget is the answer no where a measurement is over its target; all of them are named.
func overTarget(r *policy.Bench) error {
	var over []error
	for _, m := range r.Rows {
		if text := m.Over(); text != "" {
			over = append(over, errors.New(text))
		}
	}
	if len(over) == 0 {
		return nil
	}
	return &noError{errors.Join(over...)}
}

func printBench(w io.Writer, r *policy.Bench) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "revision\t%s, %d rules of Rego\n", r.Revision, r.Rules)
	fmt.Fprintf(t, "activation\t%v, %s stay\n", time.Duration(r.ActivateNS).Round(time.Millisecond), bytesText(r.HeapBytes))
	for _, m := range r.Rows {
		how := "evaluated"
		if m.Cached {
			how = "cached"
		}
		fmt.Fprintf(t, "%s, %s\tp50 %v, p99 %v, %.0f allocations, %d questions\n", m.Entry, how, time.Duration(m.P50NS), time.Duration(m.P99NS), m.Allocs, m.Questions)
	}
	fmt.Fprintf(t, "list of %d\tcold %v, warm %v, %d different answers\n",
		r.List, time.Duration(r.ListColdNS).Round(10*time.Microsecond), time.Duration(r.ListWarmNS).Round(10*time.Microsecond), r.ListAnswers)
	for _, c := range r.Slowest {
		fmt.Fprintf(t, "%s:%d\t%s: %v of an answer, watched\n", c.File, c.Line, c.Rule, time.Duration(c.NS))
	}
	return t.Flush()
}
