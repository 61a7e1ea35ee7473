package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/identity"
)

func deviceCommand(file *string) *cobra.Command {
	return group("device", "list, block, enrol and renew devices",
		"  headgate device list --owner ann\n  headgate device block laptop-17 --note 'stolen'\n  headgate device code --owner ann --id laptop-17",
		deviceListCommand(file), deviceCodeCommand(file), deviceEnrolCommand(), deviceRenewCommand(),
		deviceChangeCommand(file, "block", "refuse a device from the next request on", "is blocked", http.MethodPost, "/block"),
		deviceChangeCommand(file, "unblock", "let a device in again, or let a deleted one be enrolled anew", "is not blocked", http.MethodPost, "/unblock"),
		deviceChangeCommand(file, "delete", "take a device out; it cannot enrol itself again", "is deleted", http.MethodDelete, ""))
}

func deviceListCommand(file *string) *cobra.Command {
	o := remote{config: file}
	var owner, state string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list devices, with what feeds report of them", Example: "  headgate device list --owner ann --json",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{"owner": {owner}, "state": {state}}
			var list struct {
				Devices  []identity.DeviceRecord `json:"devices"`
				Degraded map[string]string       `json:"degraded"`
			}
			if err := o.once(cmd, http.MethodGet, "/-/api/v1/devices?"+query.Encode(), nil, &list); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
			}
			for what, why := range list.Degraded {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is judged by older data: %s\n", what, audit.EscapeTerminal(why))
			}
			return printDevices(cmd.OutOrStdout(), list.Devices)
		},
	}
	cmd.Flags().StringVar(&owner, "owner", "", "only devices of this `SUBJECT`")
	cmd.Flags().StringVar(&state, "state", "", "only devices in this `STATE`: enrolled, blocked, deleted, other")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

func printDevices(w io.Writer, devices []identity.DeviceRecord) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSTATE\tOWNER\tPLATFORM\tSOURCE\tFACTS\tNOTE")
	for _, d := range devices {
		owner := d.Owner
		if d.Shared {
			owner = "(shared)"
		}
		var facts []string
		for name, f := range d.Facts {
			facts = append(facts, name+"="+f.State)
		}
		slices.Sort(facts)
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.State, audit.EscapeTerminal(owner), d.Platform, d.Source,
			strings.Join(facts, ","), audit.EscapeTerminal(d.Note))
	}
	return t.Flush()
}

// deviceChangeCommand is a verb that changes one device.
func deviceChangeCommand(file *string, verb, short, done, method, path string) *cobra.Command { //nolint:revive // a row of a table
	o := remote{config: file}
	var q gateway.DeviceRequest
	cmd := &cobra.Command{
		Use: verb + " ID", Short: short, Example: "  headgate device " + verb + " laptop-17",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d identity.LocalDevice
			if err := o.once(cmd, method, "/-/api/v1/devices/"+url.PathEscape(args[0])+path, q, &d); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "device %s %s\n", d.ID, done)
			return err
		},
	}
	if verb == "block" {
		cmd.Flags().StringVar(&q.Note, "note", "", "`TEXT` for those who read the list")
	}
	o.flags(cmd)
	return cmd
}

func deviceCodeCommand(file *string) *cobra.Command {
	o := remote{config: file}
	var q gateway.DeviceRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use: "code --owner SUBJECT", Short: "make a code with which one device enrols itself once",
		Long: `code makes a code that holds for 15 minutes. On the device, headgate device enrol makes a key there and has it signed
by the gateway's own authority (identity.devices.enrolment).`,
		Example: "  headgate device code --owner ann --id laptop-17\n  headgate device code --shared --id build-3",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Owner == "" && !q.Shared {
				return &useError{errors.New("--owner is missing: it names who may use the device; --shared lets everybody")}
			}
			var c identity.EnrolmentCode
			if err := o.once(cmd, http.MethodPost, "/-/api/v1/devices/codes", q, &c); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(c)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nfor device %s until %s. On the device: headgate device enrol --url URL --code %s\n",
				c.Code, c.Device, c.Expires.Format(time.RFC3339), c.Code)
			return err
		},
	}
	cmd.Flags().StringVar(&q.ID, "id", "", "`ID` of the device (default: a new one)")
	cmd.Flags().StringVar(&q.Owner, "owner", "", "`SUBJECT` that may use the device")
	cmd.Flags().StringVar(&q.OwnerIssuer, "owner-issuer", "", "`URL` of that subject's issuer (default: any)")
	cmd.Flags().BoolVar(&q.Shared, "shared", false, "anybody may use the device")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

func deviceEnrolCommand() *cobra.Command {
	var q enrolment
	cmd := &cobra.Command{
		Use: "enrol --url URL --code CODE", Short: "enrol this machine as a device",
		Long: `enrol makes a key on this machine, has the gateway sign a certificate for it, and keeps both in one folder. The key
never leaves the machine.`,
		Example: "  headgate device enrol --url https://go.corp.example --code 7KQ2M4XWZ3…",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !strings.HasPrefix(q.url, "https://") || q.code == "" {
				return &useError{errors.New("--url https://HOST and --code are needed; an administrator makes a code with `headgate device code`")}
			}
			d, err := q.run(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "device %s is enrolled; key and certificate are in %s, for %s\n", d.Device, q.folder, d.URL)
			return err
		},
	}
	cmd.Flags().StringVar(&q.url, "url", "", "`URL` of the gateway")
	cmd.Flags().StringVar(&q.code, "code", "", "the `CODE`")
	cmd.Flags().StringVar(&q.caFile, "ca", "", "`FILE` with the CA of --url (default: the system's)")
	cmd.Flags().StringVar(&q.folder, "dir", "", "`FOLDER` for key and certificate (default: headgate/device in the user's configuration folder)")
	return cmd
}
