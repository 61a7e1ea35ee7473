package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
)

func auditCommand(file *string) *cobra.Command {
	return group("audit", "read, ask and verify the audit log",
		"  headgate audit who example.com/m@v1.2.3\n  headgate audit verify\n  headgate audit tail -f",
		auditWhoCommand(file), auditSearchCommand(file), auditProveCommand(file), auditVerifyCommand(file), auditTailCommand(file), auditExportCommand(file))
}

// auditDir is the folder of the log: the one that --dir names, else the configuration's.
func auditDir(file *string, dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	c, err := loadConfig(*file)
	if err != nil {
		return "", err
	}
	return c.Audit.Dir, nil
}

func auditVerifyCommand(file *string) *cobra.Command {
	var v verifier
	cmd := &cobra.Command{
		Use: "verify", Short: "check every record against chain, tree and checkpoints",
		Long: `verify reads the whole log, without its lock, up to the last durable record: frames, hash chain, tree, and the
signatures of its checkpoints. The first thing that does not fit is named by record or checkpoint.

What lies in the log's own folder proves only that the log fits together: whoever owns the machine can make all of it anew. --keys takes
a key list, and --checkpoint signed checkpoints of the newest epoch, that were kept elsewhere: each must be met, and with --published the
newest checkpoint at each place of audit.publish, too. --from believes the leaf
hashes of sealed segments before that record, held against the signed checkpoint, and reads the records from there on.

Exit codes: 0 good, 1 could not be done, 2 wrong use, 10 altered record, 11 segment missing, 12 shorter than a
checkpoint, 13 torn tail only, 14 key unknown or outside its window, 15 checkpoints contradict each other.`,
		Example: "  headgate audit verify\n  headgate audit verify --checkpoint kept/checkpoint --keys kept/0.pub --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return v.verify(cmd, file)
		},
	}
	cmd.Flags().StringVar(&v.dir, "dir", "", "audit `FOLDER` (default: the configuration's)")
	cmd.Flags().StringVar(&v.keys, "keys", "", "`FILE` with the key list to trust (default: the log's own)")
	cmd.Flags().StringArrayVar(&v.checkpoints, "checkpoint", nil, "`FILE` with a signed checkpoint that was kept; may be given more than once")
	cmd.Flags().BoolVar(&v.published, "published", false, "meet the newest checkpoint that was published to each place of the configuration's audit.publish")
	cmd.Flags().Int64Var(&v.from, "from", 0, "first record `SEQ` of the newest epoch whose segment is read")
	cmd.Flags().BoolVar(&v.asJSON, "json", false, "print the report as JSON")
	return cmd
}

// A verifier is the flags of audit verify.
type verifier struct {
	dir, keys   string
	checkpoints []string
	from        int64
	published   bool
	asJSON      bool
}

func (v *verifier) verify(cmd *cobra.Command, file *string) error {
	dir, err := auditDir(file, v.dir)
	if err != nil {
		return err
	}
	if v.from < 0 {
		return &useError{fmt.Errorf("--from %d is negative", v.from)}
	}
	options := audit.VerifyOptions{From: v.from}
	if v.keys != "" {
		b, err := os.ReadFile(v.keys)
		if err != nil {
			return fmt.Errorf("reading key list: %w", err)
		}
		options.Keys = string(b)
	}
	for _, name := range v.checkpoints {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("reading checkpoint: %w", err)
		}
		options.Checkpoints = append(options.Checkpoints, string(b))
	}
	start := time.Now()
	if v.published {
		published, err := publishedCheckpoints(cmd.Context(), *file, dir)
		if err != nil {
			return err
		}
		options.Checkpoints = append(options.Checkpoints, published...)
	}
	report, err := audit.Verify(cmd.Context(), dir, options)
	if v.asJSON {
		if jerr := json.NewEncoder(cmd.OutOrStdout()).Encode(verdictOf(report, err)); jerr != nil {
			return jerr
		}
	}
	if err != nil {
		return fmt.Errorf("verifying %s: %w", dir, err)
	}
	if v.asJSON {
		return nil
	}
	return printReport(cmd.OutOrStdout(), report, time.Since(start))
}

// A verdict is the report of verify for machines.
type verdict struct {
	Good        bool               `json:"good"`
	Damage      *audit.DamageError `json:"damage,omitempty"`
	Error       string             `json:"error,omitempty"`
	Origin      string             `json:"origin,omitempty"`
	Epochs      int                `json:"epochs"`
	Segments    int                `json:"segments"`
	Records     int64              `json:"records"`
	Bytes       int64              `json:"bytes"`
	Checkpoints int                `json:"checkpoints"`
	Root        string             `json:"root,omitempty"`
}

func verdictOf(r *audit.Report, err error) verdict {
	v := verdict{
		Good: err == nil, Origin: r.Origin, Epochs: r.Epochs, Segments: r.Segments, Records: r.Records, Bytes: r.Bytes,
		Checkpoints: r.Checkpoints,
	}
	if err != nil {
		v.Error = err.Error()
		v.Damage, _ = errors.AsType[*audit.DamageError](err)
	} else {
		v.Root = r.Root.String()
	}
	return v
}

// printReport says what was found in good order.
func printReport(w io.Writer, r *audit.Report, took time.Duration) error {
	for _, damage := range r.Accepted {
		fmt.Fprintf(w, "accepted earlier: %v\n", damage)
	}
	_, err := fmt.Fprintf(w, "%s: good: records %d, segments %d, checkpoints %d, root %s (%d MB in %s)\n",
		r.Origin, r.Records, r.Segments, r.Checkpoints, r.Root, r.Bytes>>20, took.Round(time.Millisecond))
	return err
}

func auditTailCommand(file *string) *cobra.Command {
	var dir string
	var lines int
	var follow, asJSON bool
	cmd := &cobra.Command{
		Use: "tail", Short: "print the newest records",
		Long:    "tail prints the newest records, escaped for a terminal, without taking the log's lock.",
		Example: "  headgate audit tail -n 20\n  headgate audit tail -f --json | jq .decision",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := auditDir(file, dir)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			err = audit.Tail(cmd.Context(), dir, audit.TailOptions{Last: lines, Follow: follow}, func(e audit.Entry) error {
				return printEntry(out, e, asJSON)
			})
			if errors.Is(err, context.Canceled) {
				return nil // the way to end -f
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "audit `FOLDER` (default: the configuration's)")
	cmd.Flags().IntVarP(&lines, "lines", "n", 10, "how many records; 0 prints all")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with records as they come")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each record as it stands in the log")
	return cmd
}

// printEntry prints one record in one line. Whatever a client sent stays text: it is escaped once more here.
func printEntry(w io.Writer, e audit.Entry, asJSON bool) error {
	if asJSON {
		_, err := fmt.Fprintf(w, "%s\n", e.Raw)
		return err
	}
	var r audit.Record
	if err := json.Unmarshal(e.Raw, &r); err != nil {
		return fmt.Errorf("reading record %d: %w", e.Seq, err)
	}
	words := []string{
		fmt.Sprintf("%6d", e.Seq), time.Unix(0, r.T).UTC().Format("2006-01-02T15:04:05.000Z"),
		strings.ToLower(r.EventID[:min(8, len(r.EventID))]), string(r.Kind),
	}
	words = append(words, describeRecord(&r)...)
	_, err := fmt.Fprintln(w, audit.EscapeTerminal(strings.Join(words, " ")))
	return err
}

// describeRecord is what a person wants to see of a record first.
func describeRecord(r *audit.Record) []string {
	var words []string
	add := func(key, value string) {
		if value != "" {
			words = append(words, key+value)
		}
	}
	add("", r.Action)
	if r.Module != "" && r.Version != "" {
		add("", r.Module+"@"+r.Version)
	} else {
		add("", orElse(r.Module, r.Path))
	}
	add("", r.Decision.Effect)
	add("", strings.Join(r.Decision.Codes, ","))
	if status := r.Decision.Status + r.Outcome.Status; status > 0 {
		add("status=", fmt.Sprint(status))
	}
	if r.Outcome.Status > 0 {
		add("bytes=", fmt.Sprint(r.Outcome.Bytes))
	}
	if r.Outcome.Aborted {
		add("", "aborted")
	}
	add("subject=", r.Subject.ID)
	add("token=", r.Credential.ID)
	add("object=", r.Change.Object)
	add("note=", r.Change.Note)
	add("", r.Control.What)
	add("policy=", r.PolicyRev[:min(12, len(r.PolicyRev))])
	return words
}
