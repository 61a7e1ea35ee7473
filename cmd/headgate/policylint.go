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

func policyLintCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "lint [DIR]", Short: "find what in a policy folder would check and still be wrong",
		Long: `lint looks at the YAML and the own Rego of the bundle in DIR (default: this folder): rules and waivers that can never hold, that
another one shadows, that have ended or soon will; not of a function that may be undefined; reads that make every answer one of its own;
reasons without metadata; effects that depend on the mode; allows of one exact path.
Exit codes: 0 nothing, or warnings alone, 1 it could not be found out, 3 an error.`,
		Example: "  headgate policy lint go-policy\n  headgate policy lint --json go-policy",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := append(args, ".")[0]
			if err := isFolder(dir); err != nil {
				return fmt.Errorf("looking at a policy: %w", err)
			}
			found, err := policy.LintBundle(cmd.Context(), os.DirFS(dir), policies.FS)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"findings": append([]policy.Lint{}, found...)})
			} else {
				err = printLint(cmd.OutOrStdout(), found)
			}
			wrong := 0
			for _, l := range found {
				if l.Level == policy.LintError {
					wrong++
				}
			}
			if err == nil && wrong > 0 {
				err = &noError{fmt.Errorf("%s has %d errors", dir, wrong)}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printLint(w io.Writer, found []policy.Lint) error {
	for _, l := range found {
		if _, err := fmt.Fprintf(w, "%s:%d: %s %s: %s; %s\n", l.File, l.Line, l.Level, l.Check, audit.EscapeTerminal(l.Text), audit.EscapeTerminal(l.Fix)); err != nil {
			return err
		}
	}
	return nil
}
