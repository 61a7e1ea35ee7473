package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// A policyTest is one call of policy test.
type policyTest struct {
	config *string
	stored bool
	asJSON bool
	junit  string // file to write; "-" is the standard output; empty: none
}

func policyTestCommand(file *string) *cobra.Command {
	q := policyTest{config: file}
	cmd := &cobra.Command{
		Use: "test [DIR]", Short: "build, check and test a policy folder as the gateway does",
		Long: `test takes the bundle in DIR (default: this folder) through the steps that a gateway takes it through: its files, YAML and
Rego, compiling, Rego tests with coverage, golden decisions in tests/*.yaml, and guard tests. It needs no gateway.
With --stored it tries the archives that the configured gateway would fall back on at its next start: run it with a new binary before
an upgrade, as the gateway's user.
Exit codes: 0 the bundle is good, 1 it could not be found out, 3 it is not.`,
		Example: "  headgate policy test go-policy\n  headgate policy test --junit policy.xml go-policy\n  headgate policy test --stored --config headgate.yaml",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.stored {
				return q.runStored(cmd.Context(), args, cmd.OutOrStdout())
			}
			return q.run(cmd.Context(), append(args, ".")[0], cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&q.stored, "stored", false, "try the archives of the configured gateway, and no folder")
	cmd.Flags().BoolVar(&q.asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&q.junit, "junit", "", "write JUnit XML to `FILE`; - is the standard output")
	return cmd
}

func (q *policyTest) run(ctx context.Context, dir string, stdout io.Writer) error {
	if err := isFolder(dir); err != nil {
		return fmt.Errorf("testing a policy: %w", err)
	}
	r, err := policy.Test(ctx, os.DirFS(dir), policies.FS)
	if err != nil {
		return err
	}
	if q.junit != "" {
		if err := writeTo(q.junit, stdout, junitOf(dir, r).write); err != nil {
			return err
		}
	}
	switch {
	case q.junit == "-":
	case q.asJSON:
		err = json.NewEncoder(stdout).Encode(r)
	default:
		err = printTested(stdout, r)
	}
	if err == nil && r.State != "" {
		err = &noError{fmt.Errorf("%s is not good: it fails the step %s", dir, r.State)}
	}
	return err
}

// runStored tries what the gateway of the configuration has kept.
func (q *policyTest) runStored(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) > 0 || q.junit != "" {
		return &useError{errors.New("--stored tries what a gateway has kept; leave out the folder and --junit")}
	}
	c, err := loadConfig(*q.config)
	if err != nil {
		return err
	}
	all, err := policy.TestStored(ctx, c.Policy, policy.Options{State: filepath.Join(c.State, "policy"), Key: filepath.Join(c.State, "keys", "policy.key")})
	if err != nil {
		return err
	}
	if q.asJSON {
		err = json.NewEncoder(stdout).Encode(all)
	}
	good := 0
	for _, s := range all {
		word := "good"
		if s.State == "" {
			good++
		} else {
			word = "fails the step " + s.State
		}
		if q.asJSON {
			continue
		}
		fmt.Fprintf(stdout, "%s: %s\n", orElse(s.Revision, s.Name), word)
		for _, f := range s.Failures {
			fmt.Fprintf(stdout, "    %s\n", audit.EscapeTerminal(f))
		}
	}
	if err == nil && good < len(all) {
		err = &noError{fmt.Errorf("%d of %d stored policies are not good under this binary", len(all)-good, len(all))}
	}
	return err
}

// junitOf is what the test found out: a case for each failure, or one for each kind of test that passed.
func junitOf(dir string, r policy.Report) *junitSuites {
	suite := junitSuite{Name: "headgate policy test " + dir}
	for _, f := range r.Failures {
		suite.add(junitCase{Class: r.State, Name: f, Failure: &junitFault{Type: r.State, Message: f}})
	}
	if r.State == "" {
		suite.add(junitCase{Class: "tested", Name: fmt.Sprintf("%d Rego tests, %.1f %% covered", r.Rego, r.Coverage)})
		suite.add(junitCase{Class: "tested", Name: fmt.Sprintf("%d golden decisions", r.Golden)})
		suite.add(junitCase{Class: "tested", Name: "guard tests"})
	}
	return newJUnit(suite)
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
