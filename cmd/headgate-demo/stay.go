package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// remain starts the world of the story, signs everybody in, says what to export, and stays until interrupted.
func remain(ctx context.Context, dir string, t *teller) (err error) {
	w := &world{dir: dir, t: t}
	defer func() { err = errors.Join(err, w.close()) }()
	t.step("Starting provider, relay, policy folder and gateway")
	if err := w.open(ctx); err != nil {
		return err
	}
	t.step("Signing in")
	for _, who := range w.people {
		if err := w.enter(ctx, who); err != nil {
			return err
		}
		t.say("%s, groups %v, has a token for %s.", who.name, who.groups, who.expires.Round(time.Minute))
	}
	t.step("To use it")
	fmt.Fprintf(t.out, "\nexport GOPROXY=%s\nexport SSL_CERT_FILE=%s\nexport GOFLAGS=-modcacherw\n", w.gate.url(), w.gate.caFile())
	fmt.Fprintf(t.out, "\nand in ~/.netrc one of these lines, or export HOME to the folder beside it:\n")
	for _, who := range w.people {
		fmt.Fprintf(t.out, "\n# %s, %v: %s\n%s\n", who.name, who.groups, who.home, netrcLine(w.gate.machine, who.token))
	}
	fmt.Fprintf(t.out, `
policy, edit it while the gateway runs: %s
what the relay passed on:               %s
health and metrics:                     http://%s/readyz /metrics
administration:                         %s --config %s token list
                                        %s --config %s audit tail -f
the gateway's log:                      %s

Stays until interrupted; then everything is stopped and removed.
`, w.policyDir(), w.relayLog(), w.gate.operations, w.gate.binary, w.gate.config, w.gate.binary, w.gate.config, w.gate.process.log(dir))
	select {
	case <-ctx.Done():
		return nil
	case <-w.gate.process.done:
		return fmt.Errorf("the gateway ended by itself: %w; its log is %s", w.gate.process.err, w.gate.process.log(dir))
	}
}
