package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/policy"
)

func policyCommand(file *string) *cobra.Command {
	return group("policy", "what is allowed, and where that comes from", "  headgate policy status", policyStatusCommand(file), policyInitCommand(), policyTestCommand(file), policyLintCommand(), policyBenchCommand(), policyReplayCommand(file), policyDiffCommand(file), policyReadsCommand(file), policyExplainCommand(file), policyTryCommand())
}

func policyStatusCommand(file *string) *cobra.Command {
	o := remote{config: file, leaves: []leaf{(*app).openPolicy}}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show the active policy, who signed it, and what was rejected and why",
		Long: `status shows the policy of the running gateway. With none running it opens the configured source itself.
Exit codes: 0 a policy is active and the source's newest revision is good, 1 it could not be found out, 3 otherwise.`,
		Example: "  headgate policy status\n  headgate policy status --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s policy.Status
			if err := o.once(cmd, http.MethodGet, "/-/api/v1/policy", nil, &s); err != nil {
				return err
			}
			var err error
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(s)
			} else {
				err = printPolicy(cmd.OutOrStdout(), s)
			}
			if err == nil && (s.Revision == "" || s.Rejection != nil || s.Stale) {
				err = &noError{fmt.Errorf("policy is not what its source says: %s", policyTrouble(s))}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

// policyTrouble says in a few words what is wrong.
func policyTrouble(s policy.Status) string {
	switch {
	case s.Rejection != nil:
		return "its newest revision was rejected at the step " + s.Rejection.State
	case s.Revision == "":
		return "no policy is active"
	}
	return "the source was not read for a while"
}

func printPolicy(w io.Writer, s policy.Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, audit.EscapeTerminal(value))
		}
	}
	line("source", s.Source+" "+s.Repository)
	line("active", orElse(s.Revision, "nothing: every request is refused"))
	line("ref", s.Ref)
	line("signed by", orElse(s.Signer, "nobody"))
	if !s.ActivatedAt.IsZero() {
		line("since", s.ActivatedAt.Format(time.DateTime))
	}
	if s.Restored {
		line("restored", "from the archive of an earlier run")
	}
	if s.Rollback != "" {
		line("gone back", "by policy.rollback_to, until "+s.Rollback)
	}
	if !s.LastSeen.IsZero() {
		line("last seen", s.LastSeen.Format(time.DateTime))
	}
	line("trouble", s.Trouble)
	for _, e := range s.History {
		what := "activated " + e.Revision
		if !e.Active {
			what = "rejected " + orElse(e.Commit, e.Revision) + ", " + e.State + ": " + e.Reason
		}
		line(e.Time.Format(time.DateTime), what)
		if r := e.Replay; r != nil && r.Decisions > 0 {
			line("", fmt.Sprintf("of %d recorded decisions it refuses %d that were allowed, allows %d that were refused, refuses %d otherwise",
				r.Decisions, r.Refused, r.Allowed, r.Otherwise))
		}
	}
	for _, r := range s.Kept {
		line("kept", r.Revision+" of "+r.ActivatedAt.Format(time.DateTime))
	}
	return t.Flush()
}

// policyTryCommand is what serve runs in a process of its own, with limits, before a bundle comes near a request.
func policyTryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "try", Short: "check and test a bundle on standard input", Hidden: true, Args: arguments(cobra.NoArgs),
		Example: "  headgate policy try < bundle.tar",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return policy.Try(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
