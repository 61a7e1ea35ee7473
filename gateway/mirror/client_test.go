package mirror_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"

	xmodule "golang.org/x/mod/module"
	modsumdb "golang.org/x/mod/sumdb"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A sumClient is the go command's client of a checksum database, over the mirror's /sumdb.
type sumClient struct {
	b         *bench
	name, key string

	mu       sync.Mutex // guards all below
	config   map[string][]byte
	security string
}

func (c *sumClient) ReadRemote(path string) ([]byte, error) {
	t, err := c.b.ParseTarget("/sumdb/" + c.name + path)
	if err != nil {
		return nil, err
	}
	f, err := c.b.Open(context.Background(), t)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Body, nil
}

func (c *sumClient) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(c.key), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config[file], nil
}

func (c *sumClient) WriteConfig(file string, old, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(c.config[file], old) {
		return modsumdb.ErrWriteConflict
	}
	c.config[file] = b
	return nil
}
func (c *sumClient) ReadCache(string) ([]byte, error) { return nil, fs.ErrNotExist }
func (c *sumClient) WriteCache(string, []byte)        {}
func (c *sumClient) Log(string)                       {}
func (c *sumClient) SecurityError(msg string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.security = msg
}

// C41, C43, C46: the real client, which proves every record against every head it has met, checks a go.sum of many
// modules over either database, cold, warm and with the upstream gone, while the logs grow.
func TestRealClientChecksBothDatabases(t *testing.T) {
	const n = 40
	up := mirrortest.Start(t)
	var versions []xmodule.Version
	for i := range n {
		v := xmodule.Version{Path: fmt.Sprintf("example.com/Mod%d", i), Version: "v1.0.0"}
		m, err := mirrortest.ParseTxtar([]byte(module(v.Path, v.Version)))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v)
	}
	state := withState(t)
	b := start(t, up, state)
	own, err := b.OwnSumdb()
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(own, "+")
	for _, db := range []*sumClient{{name: up.Sumdb(), key: up.Key()}, {name: name, key: own}} {
		t.Run(db.name, func(t *testing.T) {
			db.b, db.config = b, map[string][]byte{}
			for _, when := range []string{"cold", "warm", "gone"} {
				if when == "gone" {
					up.Break("*", mirrortest.Fault{Status: 500})
					defer up.Clear()
				}
				client := modsumdb.NewClient(db) // as a new go command: only heads are remembered
				var all sync.WaitGroup
				for _, v := range versions {
					for _, suffix := range []string{"", "/go.mod"} {
						all.Go(func() {
							lines, err := client.Lookup(v.Path, v.Version+suffix)
							if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], v.Path+" "+v.Version+suffix+" h1:") {
								t.Errorf("%s: Lookup(%s%s) = %q, %v", when, v, suffix, lines, err)
							}
						})
					}
				}
				all.Wait()
			}
			db.mu.Lock()
			defer db.mu.Unlock()
			if db.security != "" {
				t.Errorf("the client sees an attack: %s", db.security)
			}
		})
	}
}
