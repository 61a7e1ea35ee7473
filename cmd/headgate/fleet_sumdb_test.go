package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb"
)

// A fleetClient is a checksum database's client whose requests go to the nodes of a fleet in turn.
type fleetClient struct {
	t     *testing.T
	nodes []*site
	key   string

	mu     sync.Mutex
	asked  int
	latest []byte
	cache  map[string][]byte
}

func (c *fleetClient) ReadRemote(path string) ([]byte, error) {
	c.mu.Lock()
	node := c.nodes[c.asked%len(c.nodes)]
	c.asked++
	c.mu.Unlock()
	status, body := node.body("/sumdb/sum.corp.example" + path)
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %s", path, status, body)
	}
	return []byte(body), nil
}

func (c *fleetClient) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(c.key), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest, nil
}

func (c *fleetClient) WriteConfig(_ string, old, now []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.latest, old) {
		return sumdb.ErrWriteConflict
	}
	c.latest = now
	return nil
}

func (c *fleetClient) ReadCache(file string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if data, ok := c.cache[file]; ok {
		return data, nil
	}
	return nil, fmt.Errorf("%s is not cached", file)
}

func (c *fleetClient) WriteCache(file string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cache[file] = data
}

func (c *fleetClient) Log(string)               {}
func (c *fleetClient) SecurityError(msg string) { c.t.Error(msg) }

// TestFleetOneChecksumTree has both nodes write records at once: every head that either of them signs is of one tree,
// and a record that one wrote is the same on the other.
func TestFleetOneChecksumTree(t *testing.T) {
	const modules = 24
	_, a, b := fleet(t)
	b.token = a.token
	b.until(http.StatusOK)
	for i := range modules {
		addTo(t, a.upstream, fmt.Sprintf("example.com/c%d", i))
	}
	client := &fleetClient{t: t, nodes: []*site{a, b}, key: ownKey(t, a), cache: map[string][]byte{}}
	verifier := sumdb.NewClient(client)
	var group sync.WaitGroup
	for i := range modules {
		group.Go(func() {
			lines, err := verifier.Lookup(fmt.Sprintf("example.com/c%d", i), "v1.0.0")
			if err != nil || len(lines) != 1 {
				t.Errorf("lookup of module %d: %q, %v", i, lines, err)
			}
		})
	}
	group.Wait()
	for i := range modules {
		path := fmt.Sprintf("/sumdb/sum.corp.example/lookup/example.com/c%d@v1.0.0", i)
		_, fromA := a.body(path)
		_, fromB := b.body(path)
		recordA, _, _ := strings.Cut(fromA, "\n\n")
		recordB, _, _ := strings.Cut(fromB, "\n\n")
		if recordA != recordB || recordA == "" {
			t.Errorf("%s is %q on one node and %q on the other", path, recordA, recordB)
		}
	}
}

// ownKey is the verifier key that a site prints for GOSUMDB.
func ownKey(t *testing.T, s *site) string {
	t.Helper()
	_, rest, ok := strings.Cut(s.gateway.output.String(), "export GOSUMDB=")
	if !ok {
		t.Fatalf("serve printed no GOSUMDB line:\n%s", s.gateway.output.String())
	}
	key, _, _ := strings.Cut(rest, "\n")
	return key
}
