package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// challenged finds what the gateway asks for in the WWW-Authenticate of an answer.
var challenged = regexp.MustCompile(`\berror="(login_required|token_expired|device_required|stepup_required)"`)

var errDevice = errors.New("this is done on an enrolled device; run: headgate device enrol --url URL --code CODE, then headgate login URL again")

func goauthCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "goauth [--url URL]", Short: "the go command's GOAUTH command: gives it a short token, and another when one ends",
		Long: `goauth speaks the protocol of "go help goauth" with Go 1.24 or later; headgate login sets it up. Without an argument it
prints a token for each gateway that this user signed in to, with one a token for that URL alone. It asks the gateway
only where a token is missing or old, or where the gateway's answer on the standard input has an error= of ours in
WWW-Authenticate; it answers all else from its file. On an enrolled device the token comes over mTLS and is bound to it.
What went wrong is seen with go -x, or by running it by hand.`,
		Example: "  go env -w GOAUTH='headgate goauth --url https://go.corp.example'",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			logins, err := savedLogins()
			if address != "" {
				var one *gatewayLogin
				one, err = savedLogin(address)
				logins = []*gatewayLogin{one}
			}
			if err != nil {
				return err
			}
			for _, l := range logins {
				l.notes = cmd.ErrOrStderr()
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
			defer cancel()
			h := helper{logins, cmd.OutOrStdout()}
			if len(args) == 0 {
				return h.first(ctx)
			}
			return h.again(ctx, args[0], cmd.InOrStdin())
		},
	}
	cmd.Flags().StringVar(&address, "url", "", "`URL` of the gateway (default: all that this user signed in to)")
	return cmd
}

// A helper answers the go command.
type helper struct {
	logins []*gatewayLogin
	out    io.Writer
}

// first answers the call before the first request. A gateway that gives no token takes none from the others.
func (h helper) first(ctx context.Context) error {
	if len(h.logins) == 0 {
		return fmt.Errorf("%w; run: headgate login URL", errNoLogin)
	}
	var errs []error
	for _, l := range h.logins {
		t, err := l.fresh(ctx, "")
		if err == nil {
			err = h.print(l, t)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// again answers the call after a 4xx.
func (h helper) again(ctx context.Context, address string, stdin io.Reader) error {
	for _, l := range h.logins {
		if !l.owns(address) {
			continue
		}
		kept := l.kept()
		switch wanted := challenge(stdin); {
		case wanted == "":
			return h.print(l, kept)
		case wanted == "device_required" && l.Device == "":
			return errDevice
		case wanted == "stepup_required":
			return fmt.Errorf("the gateway wants a newer sign-in for this; run: headgate login %s", l.URL)
		}
		refused := kept.Token
		if refused != "" && l.holds(ctx, refused) {
			refused = "" // another helper got it while the refused request was on its way
		}
		t, err := l.fresh(ctx, refused)
		if err != nil {
			return err
		}
		return h.print(l, t)
	}
	return nil
}

func (l *gatewayLogin) holds(ctx context.Context, token string) bool {
	in, err := l.introspect(ctx, token)
	return err == nil && in.Active
}

// challenge reads the answer that the go command got, and gives what is asked for; nothing is no matter of ours.
func challenge(stdin io.Reader) string {
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(stdin, 1<<20)), nil)
	if err != nil {
		return ""
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
		return ""
	}
	m := challenged.FindStringSubmatch(strings.Join(resp.Header.Values("Www-Authenticate"), ", "))
	if m == nil {
		return ""
	}
	return m[1]
}

// print writes one credential set: the prefix, a blank line, the header, a blank line.
func (h helper) print(l *gatewayLogin, t shortToken) error {
	if t.Token == "" {
		return nil
	}
	_, err := fmt.Fprintf(h.out, "%s\n\nAuthorization: Bearer %s\n\n", l.URL, t.Token)
	return err
}
