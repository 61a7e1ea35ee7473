package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func configCommand(file *string) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "report every mistake in the configuration",
		Long: `check reads the configuration as serve would and reports every mistake at once, each with file and line: unknown
keys, wrong types, contradictions. It dials nothing and changes nothing. Exit codes: 0 good, 2 mistakes.`,
		Example: "  headgate config check\n  headgate --config headgate.yaml config check",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(*file)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good; state is %s\n", orElse(c.file, "defaults"), c.State)
			if off := c.factsOff(); err == nil && len(off) > 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "facts off, since no source of them is configured; rules on them do not apply: %s\n", strings.Join(off, ", "))
			}
			return err
		},
	}
	return group("config", "check the configuration", "  headgate config check", check)
}
