package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
)

// A remote says which gateway a verb speaks to: the one of the configuration's state folder, through its socket, or
// one far away, over https with an admin token.
type remote struct {
	config    *string
	url       string
	tokenFile string
	caFile    string
	leaves    []leaf // what the verb needs beside audit log and identity, where no gateway runs
}

func (o *remote) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.url, "url", "", "speak to the gateway at this `URL` over https instead of the local socket")
	cmd.Flags().StringVar(&o.tokenFile, "token-file", "", "`FILE` with an admin token, for --url")
	cmd.Flags().StringVar(&o.caFile, "ca", "", "`FILE` with the CA of --url (default: the system's)")
}

// A client speaks the gateway's API.
type client struct {
	http  *http.Client
	base  string
	token string
	close func() error
}

// connect reaches the gateway. With none running on the state folder it takes the log's lock and is the gateway for
// the length of the verb, so that the change is recorded and applied the same way.
func (o *remote) connect(ctx context.Context) (*client, error) {
	if o.url != "" {
		return o.far()
	}
	c, err := loadConfig(*o.config)
	if err != nil {
		return nil, err
	}
	socket := gateway.SocketPath(c.State)
	for tries := 0; ; tries++ {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			conn.Close()
			return overSocket(socket, func() error { return nil }), nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("reaching the gateway: %w; run this as root or as the gateway's user, or use --url", err)
		}
		stop, err := brieflyServe(ctx, c, o.leaves)
		if err == nil {
			return overSocket(socket, stop), nil
		}
		// Somebody has the lock and no socket yet: a gateway that starts, or another verb like this one.
		if !errors.Is(err, audit.ErrLocked) || tries == 50 {
			return nil, fmt.Errorf("no gateway answers on %s, and acting in its place failed: %w", socket, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// brieflyServe runs the gateway on its socket alone until stop.
func brieflyServe(ctx context.Context, c *config, leaves []leaf) (stop func() error, err error) {
	a, err := openAdministration(ctx, c, leaves)
	if err != nil {
		return nil, err
	}
	if err := a.server.ListenLocal(ctx); err != nil {
		return nil, errors.Join(err, a.close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() { done <- a.server.Serve(ctx) }()
	return func() error {
		cancel(gateway.ErrAtOnce)
		return errors.Join(<-done, a.close())
	}, nil
}

func overSocket(socket string, stop func() error) *client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	return &client{http: &http.Client{Transport: transport, Timeout: time.Minute}, base: "http://localhost", close: stop}
}

func (o *remote) far() (*client, error) {
	if !strings.HasPrefix(o.url, "https://") {
		return nil, &useError{fmt.Errorf("--url %s: want https://HOST[:PORT]", o.url)}
	}
	if o.tokenFile == "" {
		return nil, &useError{errors.New("--url needs --token-file with an admin token; `headgate token create --class admin` makes one on the gateway's machine")}
	}
	token, err := os.ReadFile(o.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading the admin token: %w", err)
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.caFile != "" {
		pem, err := os.ReadFile(o.caFile)
		if err != nil {
			return nil, fmt.Errorf("reading the CA: %w", err)
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading the CA: %s holds no certificate", o.caFile)
		}
	}
	return &client{
		http: &http.Client{Transport: &http.Transport{TLSClientConfig: trust, Proxy: http.ProxyFromEnvironment}, Timeout: time.Minute},
		base: strings.TrimSuffix(o.url, "/"), token: strings.TrimSpace(string(token)), close: func() error { return nil },
	}, nil
}

// call makes one request and reads its answer into out. A refusal becomes an error that says what the gateway said.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return fmt.Errorf("preparing the request: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("asking the gateway: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		err := &refusal{resp.StatusCode, apiError(resp.Status, text)}
		if resp.StatusCode == http.StatusBadRequest {
			return &useError{err}
		}
		return err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return nil
}

// A refusal is the gateway's answer to a call that it did not do.
type refusal struct {
	status int
	error
}

func (e *refusal) Unwrap() error { return e.error }

func apiError(status string, body []byte) error {
	var e struct {
		Description string `json:"error_description"`
		Decision    string `json:"decision"`
	}
	if json.Unmarshal(body, &e) != nil || e.Description == "" {
		return fmt.Errorf("the gateway answered %s", status)
	}
	return fmt.Errorf("the gateway refused: %s (decision %s)", e.Description, e.Decision)
}
