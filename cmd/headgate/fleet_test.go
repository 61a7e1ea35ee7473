package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity"
)

// fleetLocks is how many locks are timed; SOAK=1 times those of the target.
const fleetLocks = 20

// fleet starts two gateways over one PostgreSQL database.
func fleet(t *testing.T) (server *statetest.Server, a, b *site) {
	t.Helper()
	server = statetest.Start(t)
	dir := t.TempDir()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails: the program ends instead
	for name, text := range map[string]string{
		"pepper": "1 " + base64.StdEncoding.EncodeToString(secret) + "\n", "database": statetest.NewDatabase(t, server.URL) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	upstream := mirrortest.Start(t, "module example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n-- h.go --\npackage hello\n")
	config := strings.ReplaceAll(`state: $WORK/state
gateway: {listen: "127.0.0.1:$PORT", operations: "127.0.0.1:$OPS"}
identity: {database: DIR/database, pepper_file: DIR/pepper}
mirror: {upstreams: [$UPSTREAM], sumdb: [$SUMDB_KEY], own_sumdb: {name: sum.corp.example, key_file: DIR/sumdb.key}}
`, "DIR", dir)
	a, b = newSiteOf(t, upstream, config), newSiteOf(t, upstream, config)
	return server, a, b
}

// api makes one call over a site's socket.
func (s *site) api(method, path string, in any) error {
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", gateway.SocketPath(filepath.Join(s.dir, "state")))
	}}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequest(method, "http://localhost"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return nil
}

// until asks a site in a loop until it answers with a status, and gives how long that took.
func (s *site) until(status int) time.Duration {
	s.t.Helper()
	start := time.Now()
	for time.Since(start) < 20*time.Second {
		if got, _ := s.body("/example.com/hello/@v/list"); got == status {
			return time.Since(start)
		}
	}
	s.t.Fatalf("no answer %d within 20 s", status)
	return 0
}

// TestFleetLock locks on one node and asks the other, again and again.
func TestFleetLock(t *testing.T) {
	_, a, b := fleet(t)
	b.token = a.token // minted by a, shown to b
	t.Logf("a token made on a opens b after %s", b.until(http.StatusOK))
	rounds := fleetLocks
	if os.Getenv("SOAK") != "" {
		rounds = 100
	}
	var took []time.Duration
	for range rounds {
		if err := a.api(http.MethodPost, "/-/api/v1/locks", gateway.LockRequest{Kind: identity.LockUser, Object: "ann", Reason: "timed"}); err != nil {
			t.Fatal(err)
		}
		took = append(took, b.until(http.StatusForbidden))
		if err := a.api(http.MethodDelete, "/-/api/v1/locks?kind=user&object=ann", nil); err != nil {
			t.Fatal(err)
		}
		b.until(http.StatusOK)
	}
	slices.Sort(took)
	t.Logf("F7 a lock on a is in force on b after: p50 %s, p99 %s, longest of %d %s", took[len(took)/2], took[(len(took)*99)/100], rounds, took[len(took)-1])
}

// TestFleetWithoutDatabase takes the state database away and gives it back.
func TestFleetWithoutDatabase(t *testing.T) {
	t.Parallel()
	server, a, _ := fleet(t)
	warm := []string{"/example.com/hello/@v/list", "/example.com/hello/@v/v1.0.0.info", "/example.com/hello/@v/v1.0.0.mod", "/example.com/hello/@v/v1.0.0.zip"}
	for _, path := range warm {
		if status, body := a.body(path); status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, status, body)
		}
	}
	server.Stop()
	t.Run("F3 warm reads go on without the state database", func(t *testing.T) {
		for _, path := range warm {
			if status, body := a.body(path); status != http.StatusOK {
				t.Errorf("%s: %d %s", path, status, body)
			}
		}
	})
	t.Run("F3 minting and locking are 503", func(t *testing.T) {
		out, err := a.headgate("token", "create", "--for", "bob", "--modules", "*")
		if err == nil || !strings.Contains(out, "STATE-DOWN") {
			t.Errorf("token create: %v\n%s", err, out)
		}
		err = a.api(http.MethodPost, "/-/api/v1/locks", gateway.LockRequest{Kind: identity.LockUser, Object: "ann", Reason: "r"})
		if err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("lock: %v, want 503", err)
		}
	})
	server.Resume()
	t.Run("F3 it returns by itself", func(t *testing.T) {
		for start := time.Now(); ; {
			if _, err := a.headgate("token", "create", "--for", "bob", "--modules", "*"); err == nil {
				return
			} else if time.Since(start) > 20*time.Second {
				t.Fatalf("no token 20 s after the database came back: %v", err)
			}
		}
	})
}
