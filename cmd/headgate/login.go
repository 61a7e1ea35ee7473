package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
)

// A signIn is what the flags of login say.
type signIn struct {
	caFile, device, tokenFile string
	netrc, goauth, asJSON     bool
	out, prompt               io.Writer
}

func loginCommand() *cobra.Command {
	var q signIn
	cmd := &cobra.Command{
		Use: "login URL [--netrc|--goauth]", Short: "sign in at a gateway and make the go command use it",
		Long: `login shows a code and a link (device authorization grant, RFC 8628), waits until somebody who is signed in there allows
it, and sets the go command up: GOPROXY, GOAUTH or .netrc, GOSUMDB where the gateway has a database of its own, and takes
away GOPRIVATE and GONOPROXY, which would lead past the gateway. It prints what it changed; headgate logout puts exactly
that back. With Go 1.24 and later the go command gets short tokens from headgate goauth, over mTLS and bound to this
device where it is enrolled (headgate device enrol); with earlier ones a token goes to .netrc.`,
		Example: "  headgate login https://go.corp.example\n  headgate login https://go.corp.example --netrc",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.netrc && (q.goauth || q.device != "") {
				return &useError{errors.New("--netrc excludes --goauth and --device: what stands in .netrc is bound to no device")}
			}
			address, err := gatewayAddress(args[0])
			if err != nil {
				return err
			}
			q.out, q.prompt = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return q.run(cmd.Context(), address)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&q.netrc, "netrc", false, "write the token to .netrc")
	f.BoolVar(&q.goauth, "goauth", false, "have the go command ask headgate goauth (default from Go 1.24 on)")
	f.StringVar(&q.caFile, "ca", "", "`FILE` with the gateway's CA (default: the system's)")
	f.StringVar(&q.device, "device", "", "`FOLDER` of an enrolled device: key.pem and cert.pem (default: where headgate device enrol put it)")
	f.StringVar(&q.tokenFile, "token-file", "", "`FILE` with a token from the gateway's page or an administrator, instead of a code")
	f.BoolVar(&q.asJSON, "json", false, "print JSON")
	return cmd
}

func (q *signIn) run(ctx context.Context, address string) error {
	env, err := readGoEnvironment(ctx)
	if err != nil {
		return err
	}
	if q.goauth && env.minor < 24 {
		return &useError{errors.New("--goauth needs Go 1.24 or later; use --netrc")}
	}
	q.netrc = q.netrc || !q.goauth && env.minor < 24
	l, m, err := q.prepare(ctx, address)
	if err != nil {
		return err
	}
	if err := q.token(ctx, l, m); err != nil {
		return err
	}
	in, err := l.introspect(ctx, l.Token)
	if err != nil || !in.Active {
		return errors.Join(fmt.Errorf("the token does not hold at %s", l.URL), err)
	}
	l.Expires = time.Unix(in.Expires, 0)
	if old, err := savedLogin(address); err == nil { // what it changed is undone first, so that logout finds the way back
		if _, err := old.leave(ctx); err != nil {
			return err
		}
		if env, err = readGoEnvironment(ctx); err != nil {
			return err
		}
	} else if !errors.Is(err, errNoLogin) {
		return err
	}
	if err := q.setUp(ctx, l, env, m.Sumdb); err != nil {
		return err
	}
	return q.report(l, in)
}

// prepare makes the login with the files it needs, by full name: the go command starts the helper anywhere.
func (q *signIn) prepare(ctx context.Context, address string) (*gatewayLogin, serverMetadata, error) {
	l, err := newLogin(address)
	if err != nil {
		return nil, serverMetadata{}, err
	}
	if l.CA, err = absolute(q.caFile); err != nil {
		return nil, serverMetadata{}, err
	}
	trust, err := trusting(l.CA)
	if err != nil {
		return nil, serverMetadata{}, err
	}
	c := webClient(trust)
	defer c.CloseIdleConnections()
	m, err := readMetadata(ctx, c, address)
	if err != nil || q.netrc {
		return l, m, err
	}
	if l.Device, err = absolute(q.device); err != nil {
		return nil, m, err
	}
	if enrolled, err := clientFolder("device"); l.Device == "" && m.door() != "" && err == nil && isFile(filepath.Join(enrolled, "cert.pem")) {
		l.Device = enrolled
	}
	if l.Device != "" {
		if l.Door = m.door(); l.Door == "" {
			return nil, m, &useError{fmt.Errorf("%s serves no devices (identity.devices.listen); leave out --device", address)}
		}
	}
	return l, m, nil
}

func absolute(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	full, err := filepath.Abs(name)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", name, err)
	}
	return full, nil
}

// token gets the login's token: out of a file, or by the grant.
func (q *signIn) token(ctx context.Context, l *gatewayLogin, m serverMetadata) error {
	if q.tokenFile != "" {
		text, err := os.ReadFile(q.tokenFile)
		if err != nil {
			return fmt.Errorf("reading the token: %w", err)
		}
		l.Token = strings.TrimSpace(string(text))
		return nil
	}
	trust, err := trusting(l.CA)
	if err != nil {
		return err
	}
	door, by, err := l.door()
	if err != nil {
		return err
	}
	defer by.CloseIdleConnections()
	g := deviceGrant{http: webClient(trust), begin: m.Grants, by: by, poll: door + "/-/oauth/token", shown: q.prompt}
	defer g.http.CloseIdleConnections()
	l.Token, err = g.run(ctx)
	return err
}

// setUp changes the go command's settings. What there was is saved before.
func (q *signIn) setUp(ctx context.Context, l *gatewayLogin, env *goEnvironment, sumdb string) error {
	goauth := env.file["GOAUTH"]
	if !q.netrc {
		program, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding this program: %w", err)
		}
		goauth = helperEntry(program, l.URL, goauth)
	} else if goauth != "" && !strings.Contains(";"+goauth+";", ";netrc;") {
		goauth = strings.TrimSuffix("netrc;"+strings.TrimPrefix(goauth, "off"), ";")
	}
	l.Changes = env.plan(l.URL, goauth, sumdb)
	if err := l.save(); err != nil {
		return err
	}
	if q.netrc {
		if err := l.writeNetrc(); err != nil {
			return err
		}
	}
	for _, c := range l.Changes {
		if err := setGo(ctx, c.Name, c.After); err != nil {
			return err
		}
	}
	return nil
}

func (l *gatewayLogin) writeNetrc() error {
	file, err := netrcFile()
	if err != nil {
		return err
	}
	if l.Netrc, err = setNetrc(file, netrcMachine(l.URL), l.Token); err != nil {
		return err
	}
	return l.save()
}

// A loginReport is what login prints.
type loginReport struct {
	Gateway   string     `json:"gateway"`
	Subject   string     `json:"subject"`
	Token     string     `json:"token_id"`
	Expires   time.Time  `json:"expires"`
	Device    string     `json:"device,omitempty"`
	Changes   []goChange `json:"changes"`
	Netrc     string     `json:"netrc,omitempty"` // the file that has an entry now
	Attention []string   `json:"attention,omitempty"`
}

func (q *signIn) report(l *gatewayLogin, in introspection) error {
	r := loginReport{Gateway: l.URL, Subject: in.Subject, Token: in.ID, Expires: l.Expires, Device: l.Device, Changes: l.Changes}
	if l.Netrc != nil {
		r.Netrc = l.Netrc.File
	}
	for _, name := range overridden() {
		r.Attention = append(r.Attention, name+" is set in this shell and wins; run: unset "+name)
	}
	if l.CA != "" {
		r.Attention = append(r.Attention, "the go command trusts the gateway's CA only after: "+trustCommand(l.CA))
	}
	if q.asJSON {
		return json.NewEncoder(q.out).Encode(r)
	}
	fmt.Fprintf(q.out, "signed in at %s as %s until %s\n", r.Gateway, audit.EscapeTerminal(r.Subject), r.Expires.Format(time.RFC3339))
	if r.Device != "" {
		fmt.Fprintf(q.out, "tokens are bound to the device in %s\n", r.Device)
	}
	for _, c := range r.Changes {
		fmt.Fprintf(q.out, "changed %s\n", c)
	}
	if r.Netrc != "" {
		fmt.Fprintf(q.out, "changed %s: the entry of machine %s\n", r.Netrc, netrcMachine(l.URL))
	}
	for _, a := range r.Attention {
		fmt.Fprintf(q.out, "attention: %s\n", a)
	}
	_, err := fmt.Fprintf(q.out, "headgate logout %s puts it back\n", r.Gateway)
	return err
}

// trustCommand makes the go command of this machine trust a CA.
func trustCommand(caFile string) string {
	commands := map[string]string{
		"darwin":  "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ",
		"windows": "certutil -addstore -f ROOT ",
	}
	return cmp.Or(commands[runtime.GOOS], "export SSL_CERT_FILE=") + caFile
}
