package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A finding is what doctor saw in one place.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"` // ok, warn, fail
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // a command where one will do
}

// An examination is one run of doctor. It changes nothing.
type examination struct {
	Gateway  string    `json:"gateway"`
	Findings []finding `json:"findings"`

	caFile string            // of the gateway, as far as it is known
	module string            // PATH@VERSION to download; empty: whatever is in the mirror
	login  *gatewayLogin     // nil: none at this gateway
	env    map[string]string // as the go command of this folder sees it
	meta   serverMetadata    // zero where the gateway did not answer
}

func (x *examination) ok(check, format string, args ...any) {
	x.Findings = append(x.Findings, finding{check, "ok", fmt.Sprintf(format, args...), ""})
}

func (x *examination) warn(check, detail, fix string) {
	x.Findings = append(x.Findings, finding{check, "warn", detail, fix})
}

func (x *examination) fail(check, detail, fix string) {
	x.Findings = append(x.Findings, finding{check, "fail", detail, fix})
}

func doctorCommand() *cobra.Command {
	var x examination
	var asJSON bool
	cmd := &cobra.Command{
		Use: "doctor [--url URL]", Short: "find what breaks or bypasses the gateway on this machine, and why a download is slow",
		Long: `doctor looks at the go command's settings in this folder and shell, at .netrc and the sign-in, and at the way to the
gateway: DNS, connection, TLS and CA, clock, first byte, credential, throughput. Each finding comes with its fix. It
changes nothing. The exit code is 1 where something has to be mended.`,
		Example: "  headgate doctor\n  headgate doctor --url https://go.corp.example --module golang.org/x/mod@v0.30.0 --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			if err := x.run(ctx); err != nil {
				return err
			}
			return x.report(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&x.Gateway, "url", "", "`URL` of the gateway (default: that of the sign-in, else the first of GOPROXY)")
	cmd.Flags().StringVar(&x.caFile, "ca", "", "`FILE` with the gateway's CA (default: that of the sign-in)")
	cmd.Flags().StringVar(&x.module, "module", "", "`PATH@VERSION` whose download is measured (default: one that the mirror has)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (x *examination) run(ctx context.Context) error {
	env, err := effectiveGoEnvironment(ctx)
	if err != nil {
		return err
	}
	x.env = env
	if err := x.findGateway(); err != nil {
		return err
	}
	x.settings()
	x.netrc()
	x.device()
	x.network(ctx)
	x.sumdb()
	x.credential(ctx)
	return nil
}

// effectiveGoEnvironment is what the go command goes by here: its defaults, its file, and this shell.
func effectiveGoEnvironment(ctx context.Context) (map[string]string, error) {
	text, err := runGo(ctx, "env", "-json", "GOPROXY", "GOPRIVATE", "GONOPROXY", "GONOSUMDB", "GOSUMDB", "GOINSECURE", "GOFLAGS", "GOAUTH", "GOVERSION")
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	if err := json.Unmarshal([]byte(text), &env); err != nil {
		return nil, fmt.Errorf("reading go env -json: %w", err)
	}
	return env, nil
}

// findGateway says whom all this is about.
func (x *examination) findGateway() error {
	if x.Gateway == "" {
		if l, err := onlyLogin(""); err == nil {
			x.Gateway = l.URL
		} else if !errors.Is(err, errNoLogin) {
			return err
		}
	}
	for _, entry := range strings.FieldsFunc(x.env["GOPROXY"], isProxySeparator) {
		if u, err := url.Parse(entry); x.Gateway == "" && err == nil && u.Scheme == "https" {
			u.User = nil
			x.Gateway = u.String()
		}
	}
	if x.Gateway == "" {
		return &useError{errors.New("which gateway? Neither a sign-in nor GOPROXY names one; use --url, or: headgate login URL")}
	}
	address, err := gatewayAddress(x.Gateway)
	if err != nil {
		return err
	}
	x.Gateway = address
	x.login, err = savedLogin(address)
	if err != nil && !errors.Is(err, errNoLogin) {
		return err
	}
	if err != nil {
		x.login = nil
		x.warn("sign-in", "none at "+x.Gateway, "headgate login "+x.Gateway)
	} else {
		x.ok("sign-in", "at %s", x.Gateway)
		x.caFile = orElse(x.caFile, x.login.CA)
	}
	return nil
}

func (x *examination) report(w io.Writer, asJSON bool) error {
	bad := 0
	for _, f := range x.Findings {
		if f.State == "fail" {
			bad++
		}
		if !asJSON {
			fmt.Fprintf(w, "%-4s  %-12s %s\n", map[string]string{"ok": "ok", "warn": "warn", "fail": "FAIL"}[f.State], f.Check, f.Detail)
			if f.Fix != "" {
				fmt.Fprintf(w, "      %-12s fix: %s\n", "", f.Fix)
			}
		}
	}
	if asJSON {
		if err := json.NewEncoder(w).Encode(x); err != nil {
			return fmt.Errorf("encoding the findings: %w", err)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d checks failed", bad, len(x.Findings))
	}
	return nil
}
