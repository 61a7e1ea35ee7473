package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/audit/schema"
	"github.com/headgate/headgate/audit/sinks"
)

// A deadError says that a receiver refused some records.
type deadError struct {
	left int64
	what string
}

func (e *deadError) Error() string {
	return fmt.Sprintf("%d %s; --dead list says why", e.left, e.what)
}

// An auditExporter is the flags of audit export.
type auditExporter struct {
	file         *string // of the configuration
	dir          string
	options      audit.ExportOptions
	since, until string
	sink, dead   string
	asJSON       bool
}

func auditExportCommand(file *string) *cobra.Command {
	e := auditExporter{file: file}
	cmd := &cobra.Command{
		Use: "export", Short: "print records as the events that sinks deliver, and handle dead letters",
		Long: `export prints the log's records in a schema, one event a line, as a sink delivers them and under the same ids, so that a receiver drops
what it has. --since and --until take a time, a day, or how long ago as in 36h or 7d.

--sink NAME --since TIME sends them to that sink's receiver once more instead, in the sink's own schema and batches, beside what the gateway
delivers; the sink's cursor stays where it is. What the receiver refuses becomes a dead letter.

--sink NAME --dead list prints what the receiver refused for good, and why; --dead replay sends it once more with the configuration of now,
and forgets what arrives.
Exit codes: 0 done, 1 could not be done, 2 wrong use, 3 nothing found, 5 the receiver refused records, 10 dead letters were changed or taken away.`,
		Example: "  headgate audit export --since 24h > yesterday.ocsf.jsonl\n  headgate audit export --schema native --since 2026-11-01 --until 2026-12-01 | gzip > november.jsonl.gz\n" +
			"  headgate audit export --sink soc --since 2026-11-20 --until 2026-11-21\n" +
			"  headgate audit export --sink soc --dead list\n  headgate audit export --sink soc --dead replay",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case e.dead != "" && e.sink == "":
				return &useError{errors.New("--dead needs the --sink whose dead letters are meant")}
			case e.dead != "" && e.since+e.until != "":
				return &useError{errors.New("--dead takes all dead letters; --since and --until are for records")}
			case e.sink != "" && cmd.Flags().Changed("schema"):
				return &useError{errors.New("--schema is for records that are printed; a sink has its own")}
			case e.sink != "" && e.dead == "" && e.since == "":
				return &useError{errors.New("--sink needs --since TIME, from when on records are sent again, or --dead list or replay")}
			case e.sink != "" && e.dead == "":
				return e.again(cmd)
			case e.dead == "":
				return e.export(cmd)
			case e.dead == "list":
				return e.list(cmd.OutOrStdout())
			case e.dead == "replay":
				return e.replay(cmd)
			}
			return &useError{fmt.Errorf("--dead %q: want list or replay", e.dead)}
		},
	}
	set := cmd.Flags()
	set.StringVar(&e.dir, "dir", "", "audit `FOLDER` (default: the configuration's)")
	set.StringVar(&e.options.Schema, "schema", schema.Default, strings.Join(schema.Names(), ", "))
	set.StringVar(&e.since, "since", "", "not before this `TIME`")
	set.StringVar(&e.until, "until", "", "before this `TIME`")
	set.StringVar(&e.sink, "sink", "", "`NAME` of the sink that records are sent to again, or whose dead letters are handled")
	set.StringVar(&e.dead, "dead", "", "list or replay the dead letters of --sink")
	set.BoolVar(&e.asJSON, "json", false, "print dead letters, or what was sent again, as JSON lines")
	return cmd
}

// times reads --since and --until.
func (e *auditExporter) times() (err error) {
	e.options.Version = thisBuild().Version
	now := time.Now()
	if e.options.Since, err = parseWhen(e.since, now); err != nil {
		return &useError{fmt.Errorf("--since: %w", err)}
	}
	if e.options.Until, err = parseWhen(e.until, now); err != nil {
		return &useError{fmt.Errorf("--until: %w", err)}
	}
	return nil
}

func (e *auditExporter) export(cmd *cobra.Command) error {
	if err := e.times(); err != nil {
		return err
	}
	if !schema.Known(e.options.Schema) {
		return &useError{fmt.Errorf("--schema %q is not known; want one of %s", e.options.Schema, strings.Join(schema.Names(), ", "))}
	}
	dir, err := auditDir(e.file, e.dir)
	if err != nil {
		return err
	}
	out, n := bufio.NewWriter(cmd.OutOrStdout()), 0
	err = audit.Export(cmd.Context(), dir, e.options, func(event schema.Event) error {
		n++
		_, err := out.Write(append(event.Body, '\n'))
		return err
	})
	if err := errors.Join(err, out.Flush()); err != nil {
		return err
	}
	if n == 0 {
		return &noError{errors.New("the log has no record of that time")}
	}
	return nil
}

// configured is the sink of --sink, and the folder of the log.
func (e *auditExporter) configured() (*config, sinks.Config, error) {
	c, err := loadConfig(*e.file)
	if err != nil {
		return nil, sinks.Config{}, err
	}
	if e.dir != "" {
		c.Audit.Dir = e.dir
	}
	names := []string{}
	for _, s := range c.Audit.Sinks {
		if s.Name == e.sink {
			return c, s, nil
		}
		names = append(names, s.Name)
	}
	return nil, sinks.Config{}, &useError{fmt.Errorf("--sink %q is not configured; there are: %s", e.sink, orElse(strings.Join(names, ", "), "none"))}
}

func (e *auditExporter) list(w io.Writer) error {
	c, sink, err := e.configured()
	if err != nil {
		return err
	}
	letters, err := sinks.DeadLetters(c.Audit.Dir, sink.Name)
	if err != nil {
		return err
	}
	if len(letters) == 0 {
		return &noError{fmt.Errorf("sink %s has no dead letters", sink.Name)}
	}
	enc := json.NewEncoder(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, d := range letters {
		if e.asJSON {
			err = enc.Encode(d)
		} else {
			_, err = fmt.Fprintf(t, "%s\t%s\t%s\n", d.At.UTC().Format(time.DateTime), audit.EscapeTerminal(d.ID), audit.EscapeTerminal(d.Reason))
		}
		if err != nil {
			return err
		}
	}
	return t.Flush()
}

// again sends records to the sink's receiver once more.
func (e *auditExporter) again(cmd *cobra.Command) error {
	if err := e.times(); err != nil {
		return err
	}
	c, sink, err := e.configured()
	if err != nil {
		return err
	}
	options, err := e.sinkOptions(cmd, c)
	if err != nil {
		return err
	}
	progress := newProgressLine(cmd.ErrOrStderr(), "records sent")
	sent, err := audit.SendAgain(cmd.Context(), sink, options, e.options, func(sent sinks.Sent) { progress.count(int(sent.Events), 0) })
	progress.end()
	if err != nil && sent.Events > 0 {
		return fmt.Errorf("%d records arrived, up to %s; --since %[2]s goes on there: %w", sent.Events, sent.Last.UTC().Format(time.RFC3339), err)
	}
	switch {
	case err != nil:
		return err
	case e.asJSON:
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
			Sink string `json:"sink"`
			sinks.Sent
		}{sink.Name, sent})
	default:
		fmt.Fprintf(cmd.ErrOrStderr(), "%d records sent to %s\n", sent.Events, sink.Name)
	}
	switch {
	case err != nil:
		return err
	case sent.Refused > 0:
		return &deadError{sent.Refused, "records were refused and are dead letters"}
	case sent.Events == 0:
		return &noError{errors.New("the log has no record of that time")}
	}
	return nil
}

// sinkOptions are those for a person who waits: what goes wrong is told.
func (e *auditExporter) sinkOptions(cmd *cobra.Command, c *config) (o sinks.Options, err error) {
	o = c.sinkOptions(cmd.OutOrStdout())
	o.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if o.Node, err = os.Hostname(); err != nil {
		err = fmt.Errorf("finding this node's name: %w", err)
	}
	return o, err
}

func (e *auditExporter) replay(cmd *cobra.Command) error {
	c, sink, err := e.configured()
	if err != nil {
		return err
	}
	options, err := e.sinkOptions(cmd, c)
	if err != nil {
		return err
	}
	sent, left, err := audit.Replay(cmd.Context(), sink, options)
	if err != nil {
		return err
	}
	if sent+left == 0 {
		return &noError{fmt.Errorf("sink %s has no dead letters", sink.Name)}
	}
	if e.asJSON {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"sink": sink.Name, "events": sent, "refused": left})
	} else {
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d dead letters arrived\n", sent, sent+left)
	}
	if err == nil && left > 0 {
		err = &deadError{int64(left), "dead letters were refused again"}
	}
	return err
}
