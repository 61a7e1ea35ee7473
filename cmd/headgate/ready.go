package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// defaultOperations is gateway.operations where the configuration leaves it empty.
const defaultOperations = "127.0.0.1:8081"

func readyCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use: "ready", Short: "ask the running gateway whether it is ready",
		Long: `ready asks /readyz of the configuration's operations listener and prints each condition. It changes nothing and
leaves no audit record: a health check where there is no other HTTP client. Exit codes: 0 ready, 1 not.`,
		Example: "  headgate ready", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(*file)
			if err != nil {
				return err
			}
			return ready(cmd.Context(), cmd.OutOrStdout(), orElse(c.Gateway.Operations, defaultOperations))
		},
	}
}

func ready(ctx context.Context, w io.Writer, operations string) error {
	if _, port, _ := net.SplitHostPort(operations); port == "0" {
		return fmt.Errorf("asking %s: gateway.operations takes any free port; name one", operations)
	}
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+operations+"/readyz?verbose", nil)
	if err != nil {
		return fmt.Errorf("preparing the request: %w", err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r) // no proxy: it is this machine
	if err != nil {
		return fmt.Errorf("asking the gateway: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the gateway is not ready: %s", resp.Status)
	}
	return nil
}
