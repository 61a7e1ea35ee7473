package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
)

// A partialError says that an answer is good as far as it goes, and does not go all the way.
type partialError struct{ missing []string }

func (e *partialError) Error() string {
	return "the answer is incomplete: " + audit.EscapeTerminal(strings.Join(e.missing, "; "))
}

func auditWhoCommand(file *string) *cobra.Command {
	source := auditSource{remote: remote{config: file}}
	var q audit.WhoQuery
	var asJSON bool
	cmd := &cobra.Command{
		Use: "who PATH[@VERSION]", Short: "print who got a module, from which devices, when",
		Long: `who answers from the search indexes, so that the age of the log hardly matters: everybody and every device that asked for a
module or one of its versions, how often, first and last. Times are UTC.

An index that does not fit its segment is made anew from the records. --verify believes no index for what it prints: it reads the
records, and checks each against the tree and its signed checkpoint.

Exit codes: 0 somebody did, 1 could not be done, 2 wrong use, 3 nobody, 4 answer incomplete, 10 to 15 as audit verify.`,
		Example: "  headgate audit who example.com/m@v1.2.3 --delivered\n  headgate audit who example.com/m --json | jq -r '.fetches[].subject'\n" +
			"  headgate audit who example.com/m --url https://go.corp.example --token-file auditor.token",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.Delivered && q.Refused {
				return &useError{errors.New("--delivered and --refused exclude one another")}
			}
			q.Module, q.Version, _ = strings.Cut(args[0], "@")
			if q.Module == "" || strings.HasSuffix(args[0], "@") {
				return &useError{fmt.Errorf("%q is not PATH or PATH@VERSION", args[0])}
			}
			log, err := source.open()
			if err != nil {
				return err
			}
			start := time.Now()
			answer, err := log.Who(cmd.Context(), q)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(answer)
			} else {
				err = printFetches(cmd.OutOrStdout(), answer.Fetches)
			}
			if err != nil {
				return err
			}
			printCovered(cmd.ErrOrStderr(), answer.Covered, time.Since(start))
			return verdictOn(len(answer.Fetches), "nobody in the log asked for "+args[0], answer.Covered)
		},
	}
	source.flags(cmd)
	cmd.Flags().BoolVar(&q.Delivered, "delivered", false, "only who got the code: a zip, allowed and not broken off")
	cmd.Flags().BoolVar(&q.Refused, "refused", false, "only refusals and failures")
	cmd.Flags().BoolVar(&q.Verify, "verify", false, "read the records and check each against the tree")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return cmd
}

// verdictOn turns what was found into the exit code.
func verdictOn(found int, nothing string, c audit.Coverage) error {
	switch {
	case len(c.Missing) > 0:
		return &partialError{c.Missing}
	case found == 0:
		return &noError{errors.New(nothing)}
	}
	return nil
}

// printCovered says what the answer rests on.
func printCovered(w io.Writer, c audit.Coverage, took time.Duration) {
	fmt.Fprintf(w, "%d records in %d segments", c.Records, c.Segments)
	if c.Expired > 0 {
		fmt.Fprintf(w, ", %d records are past their retention", c.Expired)
	}
	if c.Rebuilt > 0 {
		fmt.Fprintf(w, ", %d indexes made anew", c.Rebuilt)
	}
	fmt.Fprintf(w, ", %s\n", took.Round(time.Millisecond))
}

// printFetches prints a table of who fetched what.
func printFetches(w io.Writer, fetches []audit.Fetch) error {
	const clock = "2006-01-02T15:04:05Z"
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(fetches) > 0 {
		fmt.Fprintln(t, "VERSION\tSUBJECT\tDEVICE\tEFFECT\tWHAT\tCOUNT\tFIRST\tLAST")
	}
	for _, f := range fetches {
		what := f.What
		if f.Aborted {
			what += " (broken off)"
		}
		words := []string{
			f.Version, orElse(f.Subject, "(anonymous)"), orElse(f.Device, "-"), f.Effect, what,
			fmt.Sprint(f.Count), f.First.Format(clock), f.Last.Format(clock),
		}
		for i := range words {
			words[i] = audit.EscapeTerminal(words[i])
		}
		fmt.Fprintln(t, strings.Join(words, "\t"))
	}
	return t.Flush()
}
