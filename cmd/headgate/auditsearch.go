package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
)

// searchFlags are the questions of search as they stand on the command line.
type searchFlags struct {
	query                audit.SearchQuery
	since, until, before string
}

func auditSearchCommand(file *string) *cobra.Command {
	source := auditSource{remote: remote{config: file}}
	var f searchFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "search", Short: "print the records that fit, newest first",
		Long: `search prints records, newest first, escaped for a terminal. Every flag that is given must hold. --since and --until take a
time (2026-11-23T09:00:00Z), a day (2026-11-23, UTC) or how long ago (90m, 36h, 7d). --id takes the eight characters that a refusal
shows, or more.

Exit codes: 0 something was found, 1 could not be done, 2 wrong use, 3 nothing found, 4 answer incomplete, 10 to 15 as audit verify.`,
		Example: "  headgate audit search --id k7q2mxd4\n  headgate audit search --subject ann --effect deny --since 7d --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.parse(time.Now()); err != nil {
				return &useError{err}
			}
			log, err := source.open()
			if err != nil {
				return err
			}
			start, out := time.Now(), cmd.OutOrStdout()
			end, err := log.Search(cmd.Context(), f.query, func(p audit.Position, e audit.Entry) error {
				if asJSON {
					return json.NewEncoder(out).Encode(map[string]any{"at": p.String(), "record": e.Raw})
				}
				return printEntry(out, e, false)
			})
			if err != nil {
				return err
			}
			printCovered(cmd.ErrOrStderr(), end.Covered, time.Since(start))
			if end.More {
				fmt.Fprintf(cmd.ErrOrStderr(), "there is more: --before %s goes on, --limit 0 prints all\n", end.Last)
			}
			return verdictOn(end.Found, "no record fits", end.Covered)
		},
	}
	f.flags(cmd)
	source.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each record as it stands in the log, with its place")
	return cmd
}

func (f *searchFlags) flags(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringVar(&f.query.Subject, "subject", "", "`ID` of who asked")
	set.StringVar(&f.query.Device, "device", "", "`ID` of the device")
	set.StringVar(&f.query.Module, "module", "", "module `PATH`")
	set.StringVar(&f.query.Version, "version", "", "`VERSION` of the module")
	set.StringVar(&f.query.Code, "code", "", "reason `CODE`")
	set.StringVar(&f.query.Effect, "effect", "", "allow, deny or error")
	set.StringVar(&f.query.EventID, "id", "", "event `ID`, or its first eight characters or more")
	set.StringVar(&f.since, "since", "", "not before this `TIME`")
	set.StringVar(&f.until, "until", "", "before this `TIME`")
	set.StringVar(&f.before, "before", "", "go on behind this `PLACE`, as an earlier search named it")
	set.IntVar(&f.query.Limit, "limit", 100, "most records to print; 0 prints all")
}

// parse turns words into the query.
func (f *searchFlags) parse(now time.Time) error {
	var err error
	if f.query.Since, err = parseWhen(f.since, now); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	if f.query.Until, err = parseWhen(f.until, now); err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	if f.before != "" {
		if f.query.Before, err = audit.ParsePosition(f.before); err != nil {
			return fmt.Errorf("--before: %w", err)
		}
	}
	if f.query.Limit < 0 {
		return fmt.Errorf("--limit %d is negative; want 0 for all", f.query.Limit)
	}
	return f.query.Validate()
}

// parseWhen reads a time, a day, or how long ago; "" is the zero time.
func parseWhen(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	var days int
	if n, err := fmt.Sscanf(s, "%dd", &days); err == nil && n == 1 && fmt.Sprintf("%dd", days) == s && days > 0 && days < 36500 {
		return now.AddDate(0, 0, -days), nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago > 0 {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("%q is no time; want 2026-11-23T09:00:00Z, 2026-11-23, or how long ago as in 36h or 7d", s)
}
