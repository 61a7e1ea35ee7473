package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"time"

	xmodule "golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// An upstream that stands still fills its lane and its line; beyond them is ErrBusy at once. Warm files, other lanes
// and, once it moves again, those who waited are served.
func TestQueueIsBounded(t *testing.T) {
	const slots, line = 2, 3
	up := mirrortest.Start(t)
	toolchain := xmodule.Version{Path: "golang.org/toolchain", Version: "v0.0.1-go1.99.0.linux-amd64"}
	for i := range 10 {
		must(t, up.Add(mirrortest.Module{Version: xmodule.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"}, Files: map[string][]byte{"m.go": []byte("package m\n")}}))
	}
	must(t, up.Add(mirrortest.Module{Version: toolchain, Files: map[string][]byte{"bin/go": []byte("go")}}))
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.MaxFetches, c.MaxWaiting = slots, line })
	b.must(t, "/example.com/m0/@v/v1.0.0.zip")

	up.Break("/example.com/*.zip", mirrortest.Fault{Hang: true})
	var wg sync.WaitGroup
	errs := make(chan error, slots+line)
	for i := range slots + line {
		wg.Go(func() {
			_, _, err := b.get(t.Context(), fmt.Sprintf("/example.com/m%d/@v/v1.0.0.zip", i+1))
			errs <- err
		})
	}
	until(t, "lane and line are full", func() bool {
		return b.metric(t, "headgate_fetches_running", "zip") == slots && b.metric(t, "headgate_fetches_waiting", "zip") == line
	})
	for range 3 { // of one file: as many callers as come share its flight
		_, _, err := b.get(t.Context(), "/example.com/m9/@v/v1.0.0.zip")
		if !errors.Is(err, mirror.ErrBusy) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("beyond the line: %v, want ErrBusy", err)
		}
	}
	if n := b.metric(t, "headgate_fetches_refused_total", "zip"); n != 3 {
		t.Errorf("refused: %v, want 3", n)
	}
	for _, path := range []string{
		"/example.com/m0/@v/v1.0.0.zip", "/example.com/m9/@v/v1.0.0.mod", "/example.com/m9/@v/list", "/example.com/m1/@v/v1.0.0.info",
		"/golang.org/toolchain/@v/v0.0.1-go1.99.0.linux-amd64.zip", "/sumdb/sum.example.test/lookup/example.com/m9@v1.0.0",
	} {
		b.must(t, path)
	}
	up.Clear()
	wg.Wait()
	for range slots + line {
		if err := <-errs; err != nil {
			t.Errorf("one that waited: %v", err)
		}
	}
	b.must(t, "/example.com/m9/@v/v1.0.0.zip")
	for _, name := range []string{"headgate_fetches_running", "headgate_fetches_waiting"} {
		if n := b.metric(t, name, "zip"); n != 0 {
			t.Errorf("%s is %v at the end", name, n)
		}
	}
}

// Toolchains that hang leave modules alone, zips included.
func TestToolchainsStarveNobody(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.MaxFetches, c.MaxWaiting = 1, 1 })
	up.Break("/golang.org/*", mirrortest.Fault{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range 2 {
		wg.Go(func() {
			_, _, _ = b.get(ctx, fmt.Sprintf("/golang.org/toolchain/@v/v0.0.1-go1.9%d.0.linux-amd64.zip", i))
		})
	}
	until(t, "its lane is full", func() bool {
		return b.metric(t, "headgate_fetches_running", "toolchain")+b.metric(t, "headgate_fetches_waiting", "toolchain") == 2
	})
	b.must(t, "/example.com/m/@v/v1.0.0.zip")
	b.must(t, "/example.com/m/@v/list")
}

// In trouble of our own making, too, an old list is better than none.
func TestBusyServesAnOldList(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/n", "v1.0.0"), module("example.com/o", "v1.0.0"))
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.MaxFetches, c.MaxWaiting = 1, 1 })
	b.must(t, "/example.com/m/@v/list")
	b.advance(time.Hour)
	up.Break("*", mirrortest.Fault{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, p := range []string{"n", "o"} {
		wg.Go(func() { _, _, _ = b.get(ctx, "/example.com/"+p+"/@v/list") })
	}
	until(t, "the line is full", func() bool { return b.metric(t, "headgate_fetches_waiting", "small") == 1 })
	if v, err := b.Versions(t.Context(), "example.com/m"); err != nil || !v.Stale || len(v.Releases) != 1 {
		t.Errorf("Versions = %+v, %v; want the old list, marked stale", v, err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
