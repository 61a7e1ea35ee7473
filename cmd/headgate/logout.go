package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

func logoutCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "logout [URL]", Short: "end the sign-in and put back what login changed",
		Long: `logout ends the token and all that were got with it (RFC 7009), and puts the go command's settings and .netrc back as
they were. What somebody changed since stays as it is. Where the gateway cannot be told, the machine is put back all the
same, and the exit code is 1.`,
		Example: "  headgate logout",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := onlyLogin(append(args, "")[0])
			if err != nil {
				return err
			}
			r, err := l.leave(cmd.Context())
			if err != nil {
				return err
			}
			if err := r.print(cmd.OutOrStdout(), asJSON); err != nil || r.unrevoked == nil {
				return err
			}
			return fmt.Errorf("ending the token, which holds until %s: %w", l.Expires.Format(time.RFC3339), r.unrevoked)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// A logoutReport is what logout did.
type logoutReport struct {
	Gateway  string     `json:"gateway"`
	Revoked  bool       `json:"revoked"`
	Restored []goChange `json:"restored"`        // put back: After is what login had set
	Left     []string   `json:"left,omitempty"`  // settings that somebody changed since
	Netrc    string     `json:"netrc,omitempty"` // the file that was put back

	unrevoked error // why the token still holds
}

// leave undoes a login.
func (l *gatewayLogin) leave(ctx context.Context) (logoutReport, error) {
	r := logoutReport{Gateway: l.URL, Restored: []goChange{}, unrevoked: l.revoke(ctx)}
	r.Revoked = r.unrevoked == nil
	if l.Netrc != nil {
		done, err := l.Netrc.undo(netrcMachine(l.URL), l.Token)
		if err != nil {
			return r, err
		}
		if done {
			r.Netrc = l.Netrc.File
		} else {
			r.Left = append(r.Left, l.Netrc.File)
		}
	}
	if err := l.restore(ctx, &r); err != nil {
		return r, err
	}
	return r, l.remove()
}

func (l *gatewayLogin) restore(ctx context.Context, r *logoutReport) error {
	if len(l.Changes) == 0 {
		return nil
	}
	env, err := readGoEnvironment(ctx)
	if err != nil {
		return err
	}
	for _, c := range l.Changes {
		if env.file[c.Name] != c.After {
			r.Left = append(r.Left, c.Name)
			continue
		}
		if err := setGo(ctx, c.Name, c.Before); err != nil {
			return err
		}
		r.Restored = append(r.Restored, c)
	}
	return nil
}

func (r logoutReport) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	if r.Revoked {
		fmt.Fprintf(w, "signed out of %s; its token has ended\n", r.Gateway)
	}
	if r.Netrc != "" {
		fmt.Fprintf(w, "put back %s: the entry of machine %s\n", r.Netrc, netrcMachine(r.Gateway))
	}
	for _, c := range r.Restored {
		fmt.Fprintf(w, "put back go env %s: %s\n", c.Name, orElse(c.Before, "not set"))
	}
	for _, name := range r.Left {
		fmt.Fprintf(w, "left %s as it is: somebody changed it since\n", name)
	}
	return nil
}
