package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A51 in short: SIGTERM in the middle of a download. Readiness says no at once, new requests are still served for
// drain_wait, what is under way ends well, the last checkpoint covers the last record, exit 0.
func TestDrain(t *testing.T) {
	up := mirrortest.Start(t, helloModule)
	if err := up.AddBig("example.com/big", "v1.0.0", 512<<10); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, up, "")
	text, err := os.ReadFile(filepath.Join(s.dir, "headgate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.stop(syscall.SIGTERM)
	text = []byte(strings.Replace(string(text), "gateway: {", "gateway: {drain_wait: 1s, ", 1))
	if err := os.WriteFile(filepath.Join(s.dir, "headgate.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	up.Break("*.zip", mirrortest.Fault{Pause: time.Millisecond})
	type result struct {
		status int
		n      int64
		err    error
	}
	download := make(chan result, 1)
	go func() {
		resp, err := s.get(context.Background(), bigModule)
		if err != nil {
			download <- result{err: err}
			return
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		download <- result{resp.StatusCode, n, err}
	}()
	waitFor(t, "the upstream is asked for the zip", func() bool { return up.Count("*.zip") > 0 })
	s.gateway.cmd.Process.Signal(syscall.SIGTERM)
	waitFor(t, "readiness says no", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + s.operations + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if status, body := s.body("/example.com/hello/@v/v1.0.0.mod"); status != http.StatusOK {
		t.Errorf("while it drains: status %d: %s", status, body)
	}
	if r := <-download; r.err != nil || r.status != http.StatusOK || r.n < 512<<10 {
		t.Errorf("the download under way: %+v", r)
	}
	s.client.CloseIdleConnections()
	err = <-s.gateway.done
	s.gateway = nil
	if err != nil {
		t.Errorf("the gateway ended with %v", err)
	}
	if out, err := s.headgate("audit", "verify"); err != nil || !strings.Contains(out, "good: records") {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
	if out, err := s.headgate("audit", "tail", "-n", "2"); err != nil || !strings.Contains(out, "control stop") || !strings.Contains(out, "outcome zip") {
		t.Errorf("the log does not end with the outcome and the stop: %v\n%s", err, out)
	}
}
