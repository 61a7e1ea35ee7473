package mirror_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// requiring is a txtar archive of a module of a Go version that requires others, each PATH VERSION.
func requiring(path, goVersion string, required ...string) string {
	var lines strings.Builder
	for _, r := range required {
		fmt.Fprintf(&lines, "require %s\n", r)
	}
	return fmt.Sprintf("module %s@v1.0.0\n-- go.mod --\nmodule %s\n\n%s\n%s-- m.go --\npackage m\n", path, path, goVersion, &lines)
}

// graph is an upstream with a module graph, and with private modules that it must not be asked for.
func graph(t *testing.T) *mirrortest.Server {
	return mirrortest.Start(
		t,
		requiring("example.com/pruned", "go 1.17", "example.com/unread v1.0.0"),
		requiring("example.com/later", "go 1.21rc1", "example.com/unread v1.0.0"),
		requiring("example.com/unread", "go 1.22"),
		requiring("example.com/root", "go 1.16", "corp.example/secret v1.0.0", "example.com/a v1.0.0", "example.com/gone v1.0.0"),
		requiring("example.com/a", "go 1.22", "example.com/b v1.0.0", "example.com/root v1.0.0"),
		requiring("example.com/b", "", "example.com/c v1.0.0", "example.com/a v1.0.0"),
		requiring("example.com/c", "go 1.24"),
		requiring("corp.example/secret", "go 1.16"),
	)
}

func TestGraphIsFetchedAhead(t *testing.T) {
	up := graph(t)
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) {
		c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example"}}}
	})
	for _, path := range []string{"pruned", "later", "root"} {
		b.must(t, "/example.com/"+path+"/@v/v1.0.0.mod")
	}
	until(t, "the graph below a go.mod of Go 1.16", func() bool { return b.metric(t, "headgate_read_ahead_total", "fetched") == 3 })
	until(t, "one that is not there", func() bool { return b.metric(t, "headgate_read_ahead_total", "failed") == 1 })
	for want, paths := range map[int][]string{
		1: {"example.com/a", "example.com/b", "example.com/c", "example.com/root"},
		0: {"example.com/unread", "corp.example/secret"},
	} {
		for _, path := range paths {
			if n := up.Count("/" + path + "/@v/v1.0.0.mod"); n != want {
				t.Errorf("upstream was asked %d times for .mod of %s, want %d", n, path, want)
			}
		}
	}
	if n := up.Count("*.zip"); n != 0 {
		t.Errorf("%d zips were fetched ahead, want none", n)
	}
	if n := up.Count("*corp.example*"); n != 0 {
		t.Errorf("upstream saw the name of a private module: %v", up.Requests())
	}
	up.Forget()
	for _, path := range []string{"a", "b", "c"} {
		if body, f := b.must(t, "/example.com/"+path+"/@v/v1.0.0.mod"); f.Cache != "memory" || !strings.Contains(body, "module example.com/"+path) {
			t.Errorf("the .mod of %s came from %s", path, f.Cache)
		}
		b.must(t, "/sumdb/sum.example.test/lookup/example.com/"+path+"@v1.0.0")
	}
	if got := up.Requests(); len(got) != 0 {
		t.Errorf("upstream was asked again: %v", got)
	}
}

func TestNothingIsFetchedAhead(t *testing.T) {
	for name, change := range map[string]func(*mirror.Config){
		"read_ahead: -1": func(c *mirror.Config) { c.ReadAhead = -1 },
		"mode: proxy":    func(c *mirror.Config) { c.Mode = "proxy" },
	} {
		t.Run(name, func(t *testing.T) {
			up := graph(t)
			b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { change(c) })
			b.must(t, "/example.com/root/@v/v1.0.0.mod")
			for _, path := range []string{"pruned", "later", "unread"} { // time in which the others would be asked for
				b.must(t, "/example.com/"+path+"/@v/v1.0.0.mod")
				b.must(t, "/example.com/"+path+"/@v/v1.0.0.zip")
			}
			if n := up.Count("/example.com/a/*"); n != 0 {
				t.Errorf("upstream was asked %d times for what nobody asked for", n)
			}
		})
	}
	t.Run("internal reads", func(t *testing.T) { // a list studies the newest go.mod for retractions: nobody builds with it
		up := graph(t)
		b := start(t, up, nil)
		b.must(t, "/example.com/root/@v/list")
		b.must(t, "/example.com/root/@v/v1.0.0.zip")
		b.must(t, "/example.com/unread/@v/v1.0.0.mod")
		if n := up.Count("/example.com/a/*"); n != 0 {
			t.Errorf("upstream was asked %d times for what nobody asked for", n)
		}
	})
}

// A client's own request neither waits for what is fetched ahead nor is refused because of it.
func TestAheadNeverHoldsUpAClient(t *testing.T) {
	many := make([]string, 9000) // more than wait for their turn
	for i := range many {
		many[i] = fmt.Sprintf("example.com/n%d v1.0.0", i)
	}
	up := mirrortest.Start(t, requiring("example.com/root", "go 1.13", many...), module("example.com/m", "v1.0.0"))
	up.Break("/example.com/n*", mirrortest.Fault{Hang: true})
	b := start(t, up, nil)
	b.must(t, "/example.com/root/@v/v1.0.0.mod")
	if n := b.metric(t, "headgate_read_ahead_total", "dropped"); n == 0 {
		t.Error("none of 9,000 was dropped; want a bounded line")
	}
	b.must(t, "/example.com/m/@v/v1.0.0.mod")
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	if n := up.Count("/example.com/n*.mod"); n > 16 {
		t.Errorf("%d files are fetched ahead at a time, want at most 16", n)
	}
	if err := b.Close(); err != nil { // which does not wait for an upstream that hangs
		t.Errorf("closing: %v", err)
	}
}
