package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policy"
)

func policyExplainCommand(file *string) *cobra.Command {
	var q checkRun
	var log string
	cmd := &cobra.Command{
		Use: "explain PATH[@VERSION] | ID", Short: "say why a version is refused, why there is none newer, or why a decision was what it was",
		Long: `explain asks what the gateway answers this user about a version, and prints every rule that had a say, what is forgiven, what works
now, when it changes and which waiver would allow it. About a path alone it says which versions are held back, and until when.
It asks as headgate check does: as the sign-in of headgate login, else with .netrc, or with --token-file; or the policy of --bundle.
ID is that of a decision, whole or its beginning, as a denial, Headgate-Decision and the audit log show it. Then explain reads the audit log
and the kept policies of this machine's gateway, asks what was asked then of the policy that answered then, and says whether the one of
today answers otherwise.
Exit codes: 0 it may be used, 1 it could not be found out, 3 it is refused, or nothing of the module may be chosen.`,
		Example: "  headgate policy explain golang.org/x/text\n  headgate policy explain golang.org/x/text@v0.3.0 --json\n  headgate policy explain example.com/m@v1.2.0 --bundle go-policy --facts facts.json\n  headgate policy explain 7kq2m4xw",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.valid(); err != nil {
				return err
			}
			decision := decisionID.MatchString(args[0])
			switch {
			case decision && (q.bundle.dir != "" || q.url != "" || q.tokenFile != ""):
				return &useError{errors.New("a decision is read out of the log on the gateway's machine; leave out --bundle, --url and --token-file")}
			case !decision && log != "":
				return &useError{fmt.Errorf("--log goes with the ID of a decision; %q is none", args[0])}
			case decision:
				return explainDecision(cmd.Context(), *file, log, args[0], q.asJSON, cmd.OutOrStdout())
			}
			path, version, ok := strings.Cut(args[0], "@")
			if err := module.CheckPath(path); err != nil || ok && version == "" {
				return &useError{errors.Join(fmt.Errorf("%q: want PATH, PATH@VERSION or the ID of a decision", args[0]), err)}
			}
			if ok {
				return q.explainVersion(cmd.Context(), module.Version{Path: path, Version: version}, cmd.OutOrStdout())
			}
			return q.explainModule(cmd.Context(), path, cmd.OutOrStdout())
		},
	}
	q.asks(cmd)
	cmd.Flags().BoolVar(&q.asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&log, "log", "", "for ID: audit `FOLDER`, or a file of records as JSON lines, schema native (default: the configuration's)")
	return cmd
}

func (q *checkRun) explainVersion(ctx context.Context, m module.Version, stdout io.Writer) error {
	by, err := q.checker(ctx)
	if err != nil {
		return err
	}
	answers, err := by.check(ctx, []need{{Version: m}}, func(int) {})
	if err != nil {
		return err
	}
	a := answers[0].Context
	if a.Error != nil {
		return fmt.Errorf("asking about %s: %s: %s", m, a.Error.Code, audit.EscapeTerminal(a.Error.Message))
	}
	if q.asJSON {
		err = json.NewEncoder(stdout).Encode(answers[0])
	} else {
		err = printVersion(stdout, m, a)
	}
	if err == nil && a.Effect != policy.Allow {
		err = &noError{fmt.Errorf("%s is refused", m)}
	}
	return err
}

func printVersion(w io.Writer, m module.Version, a gateway.EvaluationReason) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, audit.EscapeTerminal(text))
		}
	}
	what := "may be used"
	switch {
	case a.Effect != policy.Allow:
		what = "is refused"
	case !a.Visible:
		what = "may be used by whoever names it, and is in no list"
	}
	line(m.String(), what)
	line("policy", a.Revision)
	for _, r := range a.Reasons {
		line("refuses", r.Code+": "+r.Sentence()+" (rule "+r.Rule+")")
	}
	for _, r := range a.Warnings {
		line("warns", r.Code+": "+r.Sentence()+" (rule "+r.Rule+")")
	}
	for _, p := range a.Waived {
		line("forgiven", p.Code+" by waiver "+p.Waiver+" until "+dayText(p.ExpiresDay))
	}
	line("facts", strings.Join(a.Advice.MissingFacts, ", "))
	line("works now", a.WorksNow)
	line("available", dayText(a.Advice.AvailableFromDay))
	if a.Advice.Waiver.Code != "" {
		line("ask", strings.TrimSpace(a.Advice.Contact+" for a waiver of "+a.Advice.Waiver.Code+", path "+a.Advice.Waiver.Path))
	}
	if a.ValidUntilDay != nil {
		line("may change", dayText(*a.ValidUntilDay))
	}
	return t.Flush()
}

// dayText is a day of policy as people write it; "" for none.
func dayText(day int) string {
	if day <= 0 {
		return ""
	}
	return time.Unix(int64(day)*24*60*60, 0).UTC().Format(time.DateOnly)
}

func (q *checkRun) explainModule(ctx context.Context, path string, stdout io.Writer) error {
	if q.bundle.dir != "" {
		return &useError{errors.New("a folder knows no versions; want PATH@VERSION with --bundle")}
	}
	g, err := q.gateway(ctx)
	if err != nil {
		return err
	}
	g.http.Timeout = checkingAtMost
	defer g.http.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.address+"/-/api/v1/explain?module="+url.QueryEscape(path), nil)
	if err != nil {
		return fmt.Errorf("preparing the request: %w", err)
	}
	r.Header.Set("Authorization", g.header)
	var e gateway.Explanation
	if err := askOnce(g.http, r, &e); err != nil {
		return err
	}
	if q.asJSON {
		err = json.NewEncoder(stdout).Encode(e)
	} else {
		err = printModule(stdout, e)
	}
	if err == nil && e.Chosen == "" {
		err = &noError{fmt.Errorf("no version of %s may be chosen", path)}
	}
	return err
}

func printModule(w io.Writer, e gateway.Explanation) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\tlatest is %s\n", audit.EscapeTerminal(e.Module), orElse(e.Chosen, "none"))
	fmt.Fprintf(t, "policy\t%s, profile %s\n", e.Revision, audit.EscapeTerminal(e.Profile))
	for _, v := range e.Withheld {
		state := "refused"
		if v.Effect == string(policy.Allow) {
			state = "not listed"
		}
		if v.AvailableFrom != "" {
			state += ", available from " + v.AvailableFrom
		}
		if v.Waiver != nil {
			state += ", or by a waiver of " + v.Waiver.Code
		}
		fmt.Fprintf(t, "%s\t%s\n", v.Version, audit.EscapeTerminal(state))
		for _, reason := range v.Reasons {
			fmt.Fprintf(t, "\t%s\n", audit.EscapeTerminal(reason))
		}
	}
	return t.Flush()
}
