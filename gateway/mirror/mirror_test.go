package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// module is a txtar archive of one small module version.
func module(path, version string) string {
	return fmt.Sprintf("module %s@%s\n-- go.mod --\nmodule %s\n\ngo 1.20\n-- m.go --\npackage m\n\nconst V = %q\n", path, version, path, version)
}

// bench is a mirror in front of a test upstream.
type bench struct {
	*mirror.Mirror
	up  *mirrortest.Server
	cfg mirror.Config
	off atomic.Int64 // what the clock is ahead, in ns
	reg *prometheus.Registry
}

// start opens a mirror over a fresh store; change may alter what it is made with.
func start(tb testing.TB, up *mirrortest.Server, change func(*mirror.Config, *mirror.Options)) *bench {
	tb.Helper()
	b := &bench{up: up, cfg: mirror.Config{
		Upstreams: []string{up.URL}, Sumdb: []string{up.Key()}, Store: tb.TempDir(),
	}}
	b.open(tb, change)
	return b
}

func (b *bench) open(tb testing.TB, change func(*mirror.Config, *mirror.Options)) {
	tb.Helper()
	b.reg = prometheus.NewRegistry()
	o := mirror.Options{Registerer: b.reg, Now: func() time.Time { return time.Now().Add(time.Duration(b.off.Load())) }, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&b.cfg, &o)
	}
	m, err := mirror.New(tb.Context(), b.cfg, o)
	if err != nil {
		tb.Fatal(err)
	}
	b.Mirror = m
	tb.Cleanup(func() { m.Close() })
}

// advance puts the mirror's clock forward.
func (b *bench) advance(d time.Duration) { b.off.Add(int64(d)) }

// reopen closes the mirror and opens another over the same store.
func (b *bench) reopen(tb testing.TB, change func(*mirror.Config, *mirror.Options)) {
	tb.Helper()
	if err := b.Close(); err != nil {
		tb.Fatal(err)
	}
	b.open(tb, change)
}

// get opens an escaped path and reads it.
func (b *bench) get(ctx context.Context, path string) (string, *mirror.File, error) {
	t, err := b.ParseTarget(path)
	if err != nil {
		return "", nil, err
	}
	f, err := b.Open(ctx, t)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	return string(data), f, err
}

// must is get of what must be there.
func (b *bench) must(tb testing.TB, path string) (string, *mirror.File) {
	tb.Helper()
	s, f, err := b.get(tb.Context(), path)
	if err != nil {
		tb.Fatalf("Open(%s): %v", path, err)
	}
	return s, f
}

// metric gives a counter's value, its labels written as in the exposition: name{a="b"}.
func (b *bench) metric(tb testing.TB, name string, labels ...string) float64 {
	tb.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var got []string
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
			if strings.Join(got, ",") == strings.Join(labels, ",") {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	tb.Fatalf("no metric %s%v", name, labels)
	return 0
}

func TestEveryKindColdAndWarm(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/Up/Case", "v0.1.0"))
	up.SetQuery("example.com/m", "main", "v1.1.0")
	b := start(t, up, nil)
	for _, tt := range []struct{ path, want, tier string }{
		{"/example.com/m/@v/list", "v1.0.0\nv1.1.0\n", "memory"},
		{"/example.com/m/@latest", `"Version":"v1.1.0"`, "memory"},
		{"/example.com/m/@v/main.info", `"Version":"v1.1.0"`, "memory"},
		{"/example.com/m/@v/v1.0.0.info", `"Version":"v1.0.0"`, "memory"},
		{"/example.com/m/@v/v1.0.0.mod", "module example.com/m", "memory"},
		{"/example.com/m/@v/v1.0.0.zip", "example.com/m@v1.0.0/go.mod", "memory"},
		{"/example.com/!up/!case/@v/v0.1.0.mod", "module example.com/Up/Case", "memory"},
		{"/sumdb/sum.example.test/supported", "", "memory"},
		{"/sumdb/sum.example.test/lookup/example.com/m@v1.0.0", "example.com/m v1.0.0/go.mod h1:", "memory"},
		{"/sumdb/sum.example.test/latest", "go.sum database tree", "disk"},
		{"/sumdb/sum.example.test/tile/8/0/000.p/1", "", "memory"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			cold, _ := b.must(t, tt.path)
			if !strings.Contains(cold, tt.want) {
				t.Errorf("Open(%s) = %q, want %q in it", tt.path, cold, tt.want)
			}
			up.Forget()
			warm, f := b.must(t, tt.path)
			if warm != cold || f.Size != int64(len(warm)) {
				t.Errorf("warm %s = %d bytes (size %d), cold was %d", tt.path, len(warm), f.Size, len(cold))
			}
			if f.Cache != tt.tier {
				t.Errorf("warm %s came from %q, want %q", tt.path, f.Cache, tt.tier)
			}
			if n := len(up.Requests()); n != 0 && tt.tier != "upstream" {
				t.Errorf("warm %s asked upstream: %v", tt.path, up.Requests())
			}
		})
	}
	if _, _, err := b.get(t.Context(), "/example.com/none/@v/list"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("list of no module: %v, want fs.ErrNotExist", err)
	}
}
