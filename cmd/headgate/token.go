package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/identity"
)

func tokenCommand(file *string) *cobra.Command {
	return group("token", "create, list and revoke tokens",
		"  headgate token create --for ann --group eng-payments --modules '*'\n  headgate token list\n  headgate token revoke 2kP0Zq8sTb1X",
		tokenCreateCommand(file), tokenListCommand(file), tokenRevokeCommand(file))
}

func tokenCreateCommand(file *string) *cobra.Command {
	o := remote{config: file}
	var q gateway.TokenRequest
	var life time.Duration
	var quiet, asJSON bool
	cmd := &cobra.Command{
		Use: "create --for SUBJECT --modules PATTERN", Short: "make a token; its secret is shown this once",
		Long: `create makes a token that reaches at most the named modules and actions; policy decides below that. It goes into
.netrc as the password, with any login name, or into an Authorization: Bearer header.

Classes: person (7 days, at most 30), ci (30 days, at most 90; names --owner and --repo), admin (1 hour, at most 8;
cannot fetch modules), auditor (as admin, but it reads the audit log and changes nothing; an admin token cannot make one).`,
		Example: "  headgate token create --for ann --group eng-payments --modules '*'\n" +
			"  headgate token create --class ci --for build --owner ann --repo corp/shop --modules 'corp.example/*,github.com/*'\n" +
			"  TOKEN=$(headgate token create --for \"$USER\" --modules '*' --quiet)",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Subject == "" {
				return &useError{fmt.Errorf("--for is missing: it names who holds the token; see %s --help", cmd.CommandPath())}
			}
			if len(q.Modules) == 0 && q.Class != "admin" && q.Class != "auditor" {
				return &useError{fmt.Errorf("--modules is missing: a token without it reaches nothing; --modules '*' reaches all that policy allows")}
			}
			q.Seconds = int64(life.Seconds())
			var issued gateway.IssuedToken
			if err := o.once(cmd, http.MethodPost, "/-/api/v1/tokens", q, &issued); err != nil {
				return err
			}
			return printIssued(cmd.OutOrStdout(), issued, quiet, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Class, "class", "person", "`CLASS`: person, ci, admin or auditor")
	f.StringVar(&q.Subject, "for", "", "`SUBJECT` that holds the token")
	f.StringSliceVar(&q.Groups, "group", nil, "`GROUP` of the subject as policy knows it; may be repeated")
	f.StringSliceVar(&q.Modules, "modules", nil, "module `PATTERNS` as in GOPRIVATE, separated by commas")
	f.StringSliceVar(&q.Actions, "actions", nil, "`ACTIONS`: discover, metadata, content, mint, admin, audit (default: all of the class)")
	f.DurationVar(&life, "life", 0, "`DURATION` until it expires (default: the class's)")
	f.StringVar(&q.Owner, "owner", "", "ci: `SUBJECT` who answers for the token")
	f.StringVar(&q.Repo, "repo", "", "ci: `REPOSITORY` that uses it")
	f.StringVar(&q.RepoID, "repo-id", "", "ci: the repository's immutable `ID`")
	f.StringVar(&q.Note, "note", "", "`TEXT` for those who read the list")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the token alone")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

// once connects, makes one call and disconnects.
func (o *remote) once(cmd *cobra.Command, method, path string, in, out any) (err error) {
	c, err := o.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := c.close(); err == nil {
			err = cerr
		}
	}()
	return c.call(cmd.Context(), method, path, in, out)
}

func printIssued(w io.Writer, issued gateway.IssuedToken, quiet, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(issued)
	}
	if quiet {
		_, err := fmt.Fprintln(w, issued.Secret)
		return err
	}
	_, err := fmt.Fprintf(w, "%s\n\nid %s, expires %s. It is not shown again; `headgate token revoke %s` ends it.\n",
		issued.Secret, issued.Token.ID, issued.Token.Expires.Format(time.RFC3339), issued.Token.ID)
	return err
}

func tokenListCommand(file *string) *cobra.Command {
	o := remote{config: file}
	var subject string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list tokens, without their secrets", Example: "  headgate token list --for ann --all",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{}
			if subject != "" {
				query.Set("subject", subject)
			}
			if all {
				query.Set("all", "")
			}
			var list struct {
				Tokens []identity.Token `json:"tokens"`
			}
			if err := o.once(cmd, http.MethodGet, "/-/api/v1/tokens?"+query.Encode(), nil, &list); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(list.Tokens)
			}
			return printTokens(cmd.OutOrStdout(), list.Tokens)
		},
	}
	cmd.Flags().StringVar(&subject, "for", "", "only tokens of this `SUBJECT`")
	cmd.Flags().BoolVar(&all, "all", false, "also those that are expired or revoked")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

func printTokens(w io.Writer, tokens []identity.Token) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tCLASS\tFOR\tSTATE\tEXPIRES\tLAST USED\tMODULES\tNOTE")
	for _, k := range tokens {
		used := "never"
		if !k.LastUsed.IsZero() {
			used = k.LastUsed.Format(time.DateTime)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Class, audit.EscapeTerminal(k.Subject.ID), k.State,
			k.Expires.Format(time.DateTime), used, strings.Join(k.Scope.Modules, ","), audit.EscapeTerminal(k.Note))
	}
	return t.Flush()
}

func tokenRevokeCommand(file *string) *cobra.Command {
	o := remote{config: file}
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "end a token and all that were made with it",
		Long:    "revoke ends a token, and every token that was made with it, from the next request on. ID is the public part, as list shows it.",
		Example: "  headgate token revoke 2kP0Zq8sTb1X",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var t identity.Token
			if err := o.once(cmd, http.MethodDelete, "/-/api/v1/tokens/"+url.PathEscape(args[0]), nil, &t); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "token %s of %s is revoked\n", t.ID, t.Subject.ID)
			return err
		},
	}
	o.flags(cmd)
	return cmd
}
