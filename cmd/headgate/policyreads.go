package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

func policyReadsCommand(file *string) *cobra.Command {
	r := replayer{file: file}
	cmd := &cobra.Command{
		Use: "reads [DIR]", Short: "show what of its input a policy reads, which is the key of its answers",
		Long: `reads prints for each entry point of the bundle in DIR (default: this folder) the leaves of the input that it reads. An answer is kept
under their values, so fewer leaves are fewer answers to work out. Classes: narrow, timed (reads the day: each answer is worked out anew every
day), wide (a struct as a whole: every field of it is in the key). --log counts the keys that the questions of an audit log have.
Exit codes: 0 no key is wide, 1 it could not be found out, 3 one is.`,
		Example: "  headgate policy reads go-policy\n  headgate policy reads go-policy --log /var/lib/headgate/audit --since 24h --json",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.reads(cmd, append(args, ".")[0])
		},
	}
	cmd.Flags().StringVar(&r.log, "log", "", "audit `FOLDER`, or a file of records as JSON lines, schema native, whose keys are counted")
	cmd.Flags().StringVar(&r.since, "since", "", "only decisions not before this `TIME`, or how long ago as in 24h or 7d")
	cmd.Flags().BoolVar(&r.asJSON, "json", false, "print JSON")
	return cmd
}

func (r *replayer) reads(cmd *cobra.Command, dir string) error {
	if err := isFolder(dir); err != nil {
		return fmt.Errorf("reading a policy: %w", err)
	}
	g, err := policy.CompileBundle(cmd.Context(), os.DirFS(dir), policies.FS)
	if err != nil {
		return fmt.Errorf("reading %s: %w", dir, err)
	}
	var recording *policy.Recording
	if r.log != "" {
		if recording, err = r.recording(cmd); err != nil {
			return err
		}
	}
	all, err := g.Reads(cmd.Context(), recording)
	if err != nil {
		return err
	}
	if r.asJSON {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"revision": g.Revision(), "entries": all})
	} else {
		err = printReads(cmd.OutOrStdout(), all, recording)
	}
	if err != nil {
		return err
	}
	var wide []error
	for _, e := range all {
		for _, path := range e.Wide {
			wide = append(wide, fmt.Errorf("%s reads %s as a whole; name the fields that are read", e.Entry, path))
		}
	}
	if len(wide) > 0 {
		return &noError{errors.Join(wide...)}
	}
	return nil
}

func printReads(w io.Writer, all []policy.Reads, recording *policy.Recording) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, e := range all {
		fmt.Fprintf(t, "%s\t%s, %d leaves", e.Entry, e.Class, len(e.Paths))
		if recording != nil {
			fmt.Fprintf(t, ", %d keys of %d recorded decisions", e.Keys, recording.Decisions)
		}
		fmt.Fprintln(t)
		for _, path := range e.Paths {
			mark := ""
			if slices.Contains(e.Wide, path) {
				mark = "  as a whole"
			}
			fmt.Fprintf(t, "\t%s%s\n", path, mark)
		}
	}
	return t.Flush()
}
