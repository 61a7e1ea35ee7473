package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
)

func whoamiCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "whoami [URL]", Short: "say who the gateway takes this user for", Example: "  headgate whoami\n  headgate whoami --json",
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := onlyLogin(append(args, "")[0])
			if err != nil {
				return err
			}
			in, err := l.introspect(cmd.Context(), l.Token)
			if err != nil {
				return fmt.Errorf("%w; run: headgate login %s", err, l.URL)
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(in)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), audit.EscapeTerminal(in.Subject))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// A clientStatus is what status shows of one login.
type clientStatus struct {
	Gateway   string        `json:"gateway"`
	Reachable bool          `json:"reachable"`
	Problem   string        `json:"problem,omitempty"`
	Identity  introspection `json:"identity"`
	Device    *deviceStatus `json:"device,omitempty"`
	Short     *time.Time    `json:"short_token_expires,omitempty"`
	Changes   []goChange    `json:"changes"`         // what login set
	Netrc     string        `json:"netrc,omitempty"` // the file with its entry
}

type deviceStatus struct {
	Folder  string    `json:"folder"`
	Serial  string    `json:"serial,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Problem string    `json:"problem,omitempty"`
}

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show each sign-in: who, on which device, until when, whether the gateway answers, what is set",
		Example: "  headgate status\n  headgate status --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			logins, err := savedLogins()
			if err != nil {
				return err
			}
			all, bad := []clientStatus{}, false
			for _, l := range logins {
				s := l.status(cmd.Context())
				all, bad = append(all, s), bad || s.Problem != ""
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(all)
			} else {
				err = printStatus(cmd.OutOrStdout(), all)
			}
			if bad {
				return errors.Join(err, errors.New("a sign-in does not work; headgate doctor finds out why"))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (l *gatewayLogin) status(ctx context.Context) clientStatus {
	s := clientStatus{Gateway: l.URL, Changes: l.Changes}
	if err := l.reach(ctx); err != nil {
		s.Problem = err.Error()
	} else {
		s.Reachable = true
		if s.Identity, err = l.introspect(ctx, l.Token); err != nil {
			s.Problem = err.Error() + "; run: headgate login " + l.URL
		}
	}
	if t := l.kept(); t.Token != "" {
		s.Short = &t.Expires
	}
	if l.Netrc != nil {
		s.Netrc = l.Netrc.File
	}
	if l.Device != "" {
		s.Device = readDevice(l.Device)
	}
	return s
}

// reach asks the gateway for what it tells everybody.
func (l *gatewayLogin) reach(ctx context.Context) error {
	trust, err := trusting(l.CA)
	if err != nil {
		return err
	}
	c := webClient(trust)
	defer c.CloseIdleConnections()
	_, err = readMetadata(ctx, c, l.URL)
	return err
}

func readDevice(folder string) *deviceStatus {
	d := &deviceStatus{Folder: folder}
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
	if err != nil {
		d.Problem = err.Error()
		return d
	}
	d.Serial, d.Expires = pair.Leaf.SerialNumber.Text(16), pair.Leaf.NotAfter
	if time.Now().After(d.Expires) {
		d.Problem = "the certificate has expired; run: headgate device enrol"
	}
	return d
}

func printStatus(w io.Writer, all []clientStatus) error {
	if len(all) == 0 {
		return errors.New("not signed in anywhere; run: headgate login URL")
	}
	for _, s := range all {
		fmt.Fprintln(w, s.Gateway)
		if s.Identity.Active {
			fmt.Fprintf(w, "  who      %s, token %s until %s\n", audit.EscapeTerminal(s.Identity.Subject), s.Identity.ID, time.Unix(s.Identity.Expires, 0).Format(time.RFC3339))
		}
		if s.Short != nil {
			fmt.Fprintf(w, "  modules  a short token until %s\n", s.Short.Format(time.RFC3339))
		}
		if s.Device != nil {
			fmt.Fprintf(w, "  device   %s, certificate %s until %s %s\n", s.Device.Folder, s.Device.Serial, s.Device.Expires.Format(time.RFC3339), s.Device.Problem)
		}
		for _, c := range s.Changes {
			fmt.Fprintf(w, "  set      %s\n", c)
		}
		if s.Netrc != "" {
			fmt.Fprintf(w, "  set      %s: the entry of machine %s\n", s.Netrc, netrcMachine(s.Gateway))
		}
		fmt.Fprintf(w, "  gateway  %s\n", orElse(s.Problem, "answers"))
	}
	return nil
}
