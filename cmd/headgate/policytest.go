package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

func policyTestCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "test [DIR]", Short: "build, check and test a policy folder as the gateway does",
		Long: `test takes the bundle in DIR (default: this folder) through the steps that a gateway takes it through: its files, YAML and
Rego, compiling, Rego tests with coverage, golden decisions in tests/*.yaml, and guard tests. It needs no gateway.
Exit codes: 0 the bundle is good, 1 it could not be found out, 3 it is not.`,
		Example: "  headgate policy test go-policy\n  headgate policy test --json go-policy",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := append(args, ".")[0]
			if err := isFolder(dir); err != nil {
				return fmt.Errorf("testing a policy: %w", err)
			}
			r, err := policy.Test(cmd.Context(), os.DirFS(dir), policies.FS)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(r)
			} else {
				err = printTested(cmd.OutOrStdout(), r)
			}
			if err == nil && r.State != "" {
				err = &noError{fmt.Errorf("%s is not good: it fails the step %s", dir, r.State)}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func isFolder(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", dir)
	}
	return err
}

func printTested(w io.Writer, r policy.Report) error {
	for _, f := range r.Failures {
		if _, err := fmt.Fprintln(w, audit.EscapeTerminal(f)); err != nil {
			return err
		}
	}
	if r.State != "" {
		return nil
	}
	coverage := "no Rego of its own"
	if r.Coverage > 0 {
		coverage = fmt.Sprintf("%.1f %% of its Rego covered", r.Coverage)
	}
	_, err := fmt.Fprintf(w, "good: %d Rego tests, %d golden decisions, %s, revision %s\n", r.Rego, r.Golden, coverage, r.Revision)
	return err
}
