package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/identity"
)

// lockKinds are what can be locked, with what names one.
var lockKinds = []struct{ kind, object, what string }{
	{identity.LockUser, "SUBJECT", "a person or job, whichever issuer vouches for it"},
	{identity.LockDevice, "ID", "a device"},
	{identity.LockToken, "ID", "a token and all that were made with it"},
	{identity.LockModule, "PATTERN|PATH@VERSION", "modules below a pattern as in GOPRIVATE, or one version"},
}

func lockCommand(file *string) *cobra.Command {
	verbs := []*cobra.Command{lockListCommand(file)}
	for _, k := range lockKinds {
		verbs = append(verbs, lockOneCommand(file, k.kind, k.object, k.what))
	}
	return group("lock", "stop a user, device, token or module at once",
		"  headgate lock user mallory --reason 'laptop stolen'\n  headgate lock module example.com/m@v1.2.3 --reason 'incident 42'\n  headgate lock list",
		verbs...)
}

func lockOneCommand(file *string, kind, object, what string) *cobra.Command {
	o := remote{config: file}
	q := gateway.LockRequest{Kind: kind}
	var life time.Duration
	cmd := &cobra.Command{
		Use: kind + " " + object + " --reason TEXT", Short: "stop " + what,
		Long:    "lock stops " + what + ". It is in force with the next request here, and within 5 s on every node of a fleet.",
		Example: "  headgate lock " + kind + " " + lockExamples[kind] + " --reason 'incident 42' --for 24h",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.Reason == "" {
				return &useError{errors.New("--reason is missing: whoever is stopped asks why, and so does the audit log")}
			}
			q.Object, q.Seconds = args[0], int64(life.Seconds())
			var l identity.Lock
			if err := o.once(cmd, http.MethodPost, "/-/api/v1/locks", q, &l); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s is locked; `headgate unlock %s %s` lifts it\n", kind, audit.EscapeTerminal(l.Object), kind, audit.EscapeTerminal(l.Object))
			return err
		},
	}
	cmd.Flags().StringVar(&q.Reason, "reason", "", "`TEXT` that the record keeps and that a stopped module's user is told")
	cmd.Flags().DurationVar(&life, "for", 0, "`DURATION` after which it ends (default: until it is lifted)")
	o.flags(cmd)
	return cmd
}

var lockExamples = map[string]string{
	identity.LockUser: "mallory", identity.LockDevice: "laptop-17", identity.LockToken: "2kP0Zq8sTb1X", identity.LockModule: "example.com/m@v1.2.3",
}

func lockListCommand(file *string) *cobra.Command {
	o := remote{config: file}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list what is locked", Example: "  headgate lock list --json",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list struct {
				Locks []identity.Lock `json:"locks"`
			}
			if err := o.once(cmd, http.MethodGet, "/-/api/v1/locks", nil, &list); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(list.Locks)
			}
			return printLocks(cmd.OutOrStdout(), list.Locks)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

func printLocks(w io.Writer, locks []identity.Lock) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tOBJECT\tSINCE\tUNTIL\tBY\tREASON")
	for _, l := range locks {
		until := "lifted"
		if !l.Expires.IsZero() {
			until = l.Expires.Format(time.DateTime)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Kind, audit.EscapeTerminal(l.Object), l.Created.Format(time.DateTime), until,
			audit.EscapeTerminal(l.By), audit.EscapeTerminal(l.Reason))
	}
	return t.Flush()
}

func unlockCommand(file *string) *cobra.Command {
	var verbs []*cobra.Command
	for _, k := range lockKinds {
		verbs = append(verbs, unlockOneCommand(file, k.kind, k.object, k.what))
	}
	return group("unlock", "lift a lock", "  headgate unlock user mallory\n  headgate unlock module example.com/m@v1.2.3", verbs...)
}

func unlockOneCommand(file *string, kind, object, what string) *cobra.Command {
	o := remote{config: file}
	cmd := &cobra.Command{
		Use: kind + " " + object, Short: "lift the lock on " + what,
		Example: "  headgate unlock " + kind + " " + lockExamples[kind],
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{"kind": {kind}, "object": {args[0]}}
			var l identity.Lock
			if err := o.once(cmd, http.MethodDelete, "/-/api/v1/locks?"+query.Encode(), nil, &l); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s is unlocked\n", kind, audit.EscapeTerminal(l.Object))
			return err
		},
	}
	o.flags(cmd)
	return cmd
}
