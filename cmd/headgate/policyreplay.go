package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// A replayer is the flags of policy replay and policy diff.
type replayer struct {
	file   *string // of the configuration
	log    string
	since  string
	asJSON bool
	list   int
}

func (r *replayer) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.since, "since", "", "only decisions not before this `TIME`, or how long ago as in 24h or 7d (default: all that the log has)")
	cmd.Flags().IntVar(&r.list, "list", 50, "flips that are listed one by one")
	cmd.Flags().BoolVar(&r.asJSON, "json", false, "print JSON, with every flip and the ids of its records")
}

func policyReplayCommand(file *string) *cobra.Command {
	r := replayer{file: file}
	cmd := &cobra.Command{
		Use: "replay [BUNDLE]", Short: "find which recorded decisions another policy would change",
		Long: `replay asks the bundle in the folder BUNDLE (default: this folder) all questions that the audit log holds again, each different one once,
and holds its answers against the recorded ones. It prints what flips, by team, module and code, and how many decisions could not be asked
again since their snapshots are not in the log any more. What an allow warns of is no difference, and neither are locks, which are no policy.
A revision passes the gate when every question has an answer, nothing is allowed that ANONYMOUS, MALWARE or SUMDB-MISMATCH refused, and no
more than a hundredth of what was allowed is refused, or as many as replay_refusals in its bundle.yaml says are meant. A gateway asks the
same of each new revision out of Git before it is active.
Exit codes: 0 it passes, 1 it could not be found out, 3 it does not pass.`,
		Example: "  headgate policy replay go-policy\n  headgate policy replay go-policy --since 24h --json\n  headgate policy replay go-policy --log soc/native.jsonl",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.replay(cmd, append(args, ".")[0])
		},
	}
	cmd.Flags().StringVar(&r.log, "log", "", "audit `FOLDER`, or a file of records as JSON lines, schema native (default: the configuration's)")
	r.flags(cmd)
	return cmd
}

func policyDiffCommand(file *string) *cobra.Command {
	r := replayer{file: file}
	cmd := &cobra.Command{
		Use: "diff A B", Short: "find what a policy answers otherwise than another",
		Long: `diff asks the bundles in the folders A and B the golden questions of both (tests/*.yaml) and, with --replay, all questions that an audit
log holds, and prints what B answers otherwise than A, by team, module and code. It is what a reviewer of a change wants to see.
Exit codes: 0 no difference, 1 it could not be found out, 3 they differ.`,
		Example: "  headgate policy diff main change\n  headgate policy diff main change --replay /var/lib/headgate/audit --since 24h",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.diff(cmd, args[0], args[1])
		},
	}
	cmd.Flags().StringVar(&r.log, "replay", "", "audit `FOLDER`, or a file of records as JSON lines, schema native, whose questions are asked, too")
	r.flags(cmd)
	return cmd
}

func (r *replayer) recording(cmd *cobra.Command) (*policy.Recording, error) {
	since, err := parseWhen(r.since, time.Now())
	if err != nil {
		return nil, &useError{fmt.Errorf("--since: %w", err)}
	}
	return gateway.ReadRecording(cmd.Context(), r.log, since)
}

func (r *replayer) replay(cmd *cobra.Command, dir string) error {
	if err := isFolder(dir); err != nil {
		return fmt.Errorf("replaying: %w", err)
	}
	var err error
	if r.log == "" {
		if r.log, err = auditDir(r.file, ""); err != nil {
			return err
		}
	}
	g, err := policy.CompileBundle(cmd.Context(), os.DirFS(dir), policies.FS)
	if err != nil {
		return fmt.Errorf("reading %s: %w", dir, err)
	}
	recording, err := r.recording(cmd)
	if err != nil {
		return err
	}
	report, err := g.Replay(cmd.Context(), recording, policy.ReplayOptions{})
	if err != nil {
		return err
	}
	if err := r.print(cmd.OutOrStdout(), report); err != nil {
		return err
	}
	if err := report.Gate(); err != nil {
		return &noError{err}
	}
	return nil
}

func (r *replayer) diff(cmd *cobra.Command, a, b string) error {
	for _, dir := range []string{a, b} {
		if err := isFolder(dir); err != nil {
			return fmt.Errorf("comparing: %w", err)
		}
	}
	var recording *policy.Recording
	if r.log != "" {
		var err error
		if recording, err = r.recording(cmd); err != nil {
			return err
		}
	}
	report, err := policy.DiffBundles(cmd.Context(), os.DirFS(a), os.DirFS(b), policies.FS, recording)
	if err != nil {
		return err
	}
	if err := r.print(cmd.OutOrStdout(), report); err != nil {
		return err
	}
	if n := len(report.Flips); n > 0 {
		return &noError{fmt.Errorf("%d questions have another answer", n)}
	}
	return nil
}

func (r *replayer) print(w io.Writer, report *policy.Replayed) error {
	if r.asJSON {
		return json.NewEncoder(w).Encode(report)
	}
	return printReplayed(w, report, r.list)
}

// flipColumns are the kinds of flips, in columns.
var flipColumns = []struct{ kind, title string }{
	{policy.FlipRefused, "NOW REFUSED"}, {policy.FlipAllowed, "NOW ALLOWED"}, {policy.FlipOther, "REFUSED OTHERWISE"}, {policy.FlipError, "NO ANSWER"},
}

func printReplayed(w io.Writer, r *policy.Replayed, list int) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "revision\t%s\n", r.Revision)
	fmt.Fprintf(t, "recorded\t%d decisions, %d different questions; %d could not be asked again\n", r.Decisions, r.Questions, r.Unbuilt)
	if r.Golden > 0 {
		fmt.Fprintf(t, "golden\t%d questions\n", r.Golden)
	}
	if r.Asked > 0 {
		fmt.Fprintf(t, "answer\tp50 %v, p99 %v\n", time.Duration(r.P50NS).Round(time.Microsecond), time.Duration(r.P99NS).Round(time.Microsecond))
	}
	if len(r.Flips) == 0 {
		fmt.Fprintf(t, "flips\tnone\n")
		return t.Flush()
	}
	for _, by := range []struct {
		title string
		names func(policy.Flip) []string
	}{
		{"BY TEAM", func(f policy.Flip) []string { return f.Teams }},
		{"BY MODULE", func(f policy.Flip) []string { return []string{f.Module} }},
		{"BY CODE", flipCodes},
	} {
		printFlipTable(t, by.title, r.Flips, by.names)
	}
	fmt.Fprintf(t, "\nFLIP\tDECISIONS\tLAST\tACTION\tMODULE\tSUBJECT\tWAS\tIS\n")
	for _, f := range r.Flips[:min(max(list, 0), len(r.Flips))] {
		printFlip(t, f)
	}
	if more := len(r.Flips) - list; more > 0 {
		fmt.Fprintf(t, "and %d more; --list %d or --json shows them\n", more, len(r.Flips))
	}
	return t.Flush()
}

// printFlipTable counts recorded decisions, and golden ones once each, under the names that a flip goes by.
func printFlipTable(t io.Writer, title string, flips []policy.Flip, names func(policy.Flip) []string) {
	counts := map[string]map[string]int{}
	for _, f := range flips {
		for _, name := range names(f) {
			if counts[name] == nil {
				counts[name] = map[string]int{}
			}
			counts[name][f.Kind] += max(f.Count, 1)
			counts[name][""] += max(f.Count, 1)
		}
	}
	fmt.Fprintf(t, "\n%s", title)
	for _, c := range flipColumns {
		fmt.Fprintf(t, "\t%s", c.title)
	}
	fmt.Fprintln(t)
	rows := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(counts[b][""]-counts[a][""], strings.Compare(a, b)) })
	const most = 20
	for _, name := range rows[:min(most, len(rows))] {
		fmt.Fprint(t, audit.EscapeTerminal(name))
		for _, c := range flipColumns {
			fmt.Fprintf(t, "\t%d", counts[name][c.kind])
		}
		fmt.Fprintln(t)
	}
	if more := len(rows) - most; more > 0 {
		fmt.Fprintf(t, "and %d more\n", more)
	}
}

// flipCodes are the codes that come, or go where the flip is to an allow.
func flipCodes(f policy.Flip) []string {
	switch {
	case f.Kind == policy.FlipError:
		return []string{"POLICY-ERROR"}
	case len(f.Is.Codes) > 0:
		return f.Is.Codes
	case len(f.Was.Codes) > 0:
		return f.Was.Codes
	}
	return []string{"-"}
}

func printFlip(t io.Writer, f policy.Flip) {
	module := f.Module
	if f.Version != "" {
		module += "@" + f.Version
	}
	count, last := fmt.Sprint(f.Count), f.Last.Format(time.DateTime)
	if f.Golden != "" {
		count, last = "golden", f.Golden
	}
	fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s (%s)\t%s\t%s\n", strings.ReplaceAll(f.Kind, "_", " "), count, audit.EscapeTerminal(last), f.Action,
		audit.EscapeTerminal(module), audit.EscapeTerminal(f.Subject), audit.EscapeTerminal(strings.Join(f.Teams, ", ")), answerText(f.Was, ""), answerText(f.Is, f.Error))
}

func answerText(a policy.Answer, failed string) string {
	if failed != "" {
		return audit.EscapeTerminal(failed)
	}
	return strings.TrimSpace(string(a.Effect) + " " + strings.Join(a.Codes, ","))
}
