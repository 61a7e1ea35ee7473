package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/gateway"
)

// A checker says what policy would answer about versions.
type checker interface {
	// check answers in the order of needs. tell is called with how many are done.
	check(ctx context.Context, needs []need, tell func(done int)) ([]gateway.EvaluationAnswer, error)
	// name is whom it asks: the gateway's URL, or the bundle's folder.
	name() string
}

// A checkRun is one call of check.
type checkRun struct {
	url, caFile, tokenFile string // the gateway, and as whom it is asked
	bundle                 localBundle
	asJSON                 bool
	sarif, junit           string // files to write; "-" is the standard output; empty: none
}

func checkCommand() *cobra.Command {
	var q checkRun
	cmd := &cobra.Command{
		Use: "check [FILE | PACKAGES]...", Short: "list what policy would refuse of what a build needs, before it is merged",
		Long: `check reads a go.mod (the default), a go.sum, or what the packages of a pattern such as ./... need with their tests, and
asks about each version what the gateway would answer if this user downloaded it now. Nothing is downloaded but what the answer waits
for. It asks as the sign-in of headgate login, else with what .netrc has for the gateway, or with --token-file.
--bundle asks the policy in a folder in place of a gateway: what is known of versions comes from --facts, and else from nowhere.
Exit codes: 0 nothing is refused (warnings do not count), 1 it could not be found out, 2 wrong use, 3 something is refused.`,
		Example: `  headgate check
  headgate check --sarif headgate.sarif --junit headgate.xml ./...
  headgate check --url https://go.corp.example --token-file job-token go.mod go.sum
  headgate check --bundle go-policy --groups eng-payments go.mod`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return q.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	q.asks(cmd)
	f.BoolVar(&q.asJSON, "json", false, "print JSON")
	f.StringVar(&q.sarif, "sarif", "", "write SARIF 2.1.0 to `FILE`; - is the standard output")
	f.StringVar(&q.junit, "junit", "", "write JUnit XML to `FILE`; - is the standard output")
	return cmd
}

// asks adds the flags that say who is asked, and as whom.
func (q *checkRun) asks(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&q.url, "url", "", "`URL` of the gateway (default: that of the sign-in, else the first of GOPROXY)")
	f.StringVar(&q.caFile, "ca", "", "`FILE` with the gateway's CA (default: that of the sign-in, else the system's)")
	f.StringVar(&q.tokenFile, "token-file", "", "`FILE` with the token to ask with: of Headgate, or a job's own")
	f.StringVar(&q.bundle.dir, "bundle", "", "ask the policy in this `DIR`, and no gateway")
	f.StringVar(&q.bundle.facts, "facts", "", "JSON `FILE` for --bundle: {\"PATH@VERSION\": {facts in the words of input.resource}}")
	f.StringSliceVar(&q.bundle.groups, "groups", nil, "`GROUPS` of who asks, for --bundle")
	f.StringSliceVar(&q.bundle.private, "private", nil, "`PATTERNS` of private modules as in GOPRIVATE, for --bundle (default: GOPRIVATE)")
}

func (q *checkRun) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if err := q.valid(); err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"go.mod"}
	}
	needs, err := readNeeds(ctx, args)
	if err != nil {
		return err
	}
	by, err := q.checker(ctx)
	if err != nil {
		return err
	}
	progress := newProgressLine(stderr, "versions")
	answers, err := by.check(ctx, needs, func(done int) { progress.count(done, len(needs)) })
	progress.end()
	if err != nil {
		return err
	}
	r := newCheckReport(by.name(), needs, answers)
	if err := q.write(r, stdout); err != nil {
		return err
	}
	return r.verdict()
}

func (q *checkRun) valid() error {
	outputs := 0
	for _, taken := range []bool{q.asJSON, q.sarif == "-", q.junit == "-"} {
		if taken {
			outputs++
		}
	}
	switch {
	case outputs > 1:
		return &useError{errors.New("only one of --json, --sarif - and --junit - can have the standard output")}
	case q.bundle.dir != "" && (q.url != "" || q.tokenFile != ""):
		return &useError{errors.New("--bundle asks no gateway; leave out --url and --token-file")}
	case q.bundle.dir == "" && (q.bundle.facts != "" || len(q.bundle.groups)+len(q.bundle.private) > 0):
		return &useError{errors.New("--facts, --groups and --private go with --bundle; a gateway knows who asks, and what it is about")}
	case q.tokenFile != "" && q.url == "":
		return &useError{errors.New("--token-file wants --url with the gateway that the token is for")}
	}
	return nil
}

// write gives the report in each form that was asked for.
func (q *checkRun) write(r *checkReport, stdout io.Writer) error {
	for _, form := range []struct {
		file  string
		write func(io.Writer) error
	}{{q.sarif, r.writeSARIF}, {q.junit, func(w io.Writer) error { return r.junit().write(w) }}} {
		if form.file == "" {
			continue
		}
		if err := writeTo(form.file, stdout, form.write); err != nil {
			return err
		}
	}
	switch {
	case q.sarif == "-", q.junit == "-":
		return nil
	case q.asJSON:
		return json.NewEncoder(stdout).Encode(r)
	}
	return r.print(stdout)
}

// writeTo makes a file of what write prints; - is the standard output.
func writeTo(name string, stdout io.Writer, write func(io.Writer) error) error {
	if name == "-" {
		return write(stdout)
	}
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("writing a report: %w", err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
