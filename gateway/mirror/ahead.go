package mirror

import (
	"context"
	"go/version"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

const (
	readAhead    = 16      // files fetched ahead at a time, where the configuration does not say
	maxReadAhead = 64      // and at most
	maxAhead     = 8192    // versions that wait to be; what is beyond is left to the client
	walked       = 1 << 14 // versions whose requirements were followed lately
)

// ahead brings in the .mod files that a go command is about to ask for. It reads the whole graph below a go.mod from
// before Go 1.17 (https://go.dev/ref/mod#graph-pruning), a file and its checksum after the other and two at a time, so
// that a cold build waits on the way to the upstream most of its time. Those below a later one are never guessed.
type ahead struct {
	line chan module.Version

	mu   sync.Mutex // guards seen
	seen *simplelru.LRU[module.Version, struct{}]
}

func newAhead() *ahead {
	a := &ahead{line: make(chan module.Version, maxAhead)}
	// The error is for sizes below one.
	a.seen, _ = simplelru.NewLRU[module.Version, struct{}](walked, nil)
	return a
}

// first tells whether a version's requirements are yet to be followed.
func (a *ahead) first(v module.Version) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen.Contains(v) {
		return false
	}
	a.seen.Add(v, struct{}{})
	return true
}

// startAhead begins to fetch ahead, where files are kept and somebody may be asked for them.
func (m *Mirror) startAhead() {
	if m.cfg.ReadAhead < 0 || m.passing != nil || m.up.Island() {
		return
	}
	m.ahead = newAhead()
	for range m.cfg.ReadAhead {
		m.running.Go(m.fetchAhead)
	}
}

// followed queues what the go command reads because of a .mod that just came from upstream for a client.
func (m *Mirror) followed(t Target, f *File) {
	if m.ahead == nil || f.Cache != "upstream" || m.Visibility(t.Path) != Public || len(f.Body) > maxParsed {
		return
	}
	mod, err := modfile.ParseLax("go.mod", f.Body, nil)
	if err != nil || pruned(mod) {
		return
	}
	m.follow(t.module(), mod)
}

// pruned tells whether a go.mod lists all that its packages need, so that the graph below it is not read.
func pruned(f *modfile.File) bool {
	return f.Go != nil && version.Compare("go"+f.Go.Version, "go1.17") >= 0
}

// follow queues the requirements of a go.mod. A full line forgets: nobody waits for what is fetched ahead.
func (m *Mirror) follow(v module.Version, f *modfile.File) {
	if !m.ahead.first(v) {
		return
	}
	for _, r := range f.Require {
		if m.Visibility(r.Mod.Path) != Public || module.Check(r.Mod.Path, r.Mod.Version) != nil {
			continue
		}
		select {
		case m.ahead.line <- r.Mod:
		default:
			m.metrics.ahead.WithLabelValues("dropped").Inc()
		}
	}
}

// fetchAhead fetches one version after the other, and queues what each requires, whatever its Go version: below a go.mod
// from before Go 1.17 nothing is pruned.
func (m *Mirror) fetchAhead() {
	for {
		select {
		case <-m.ctx.Done():
			return
		case v := <-m.ahead.line:
			m.bringAhead(m.ctx, v)
		}
	}
}

func (m *Mirror) bringAhead(ctx context.Context, v module.Version) {
	f, err := m.openFile(ctx, fileTarget(v, Mod))
	if err != nil {
		m.metrics.ahead.WithLabelValues("failed").Inc() // the client is told, should it ask
		return
	}
	defer f.Close()
	if f.Cache == "upstream" {
		m.metrics.ahead.WithLabelValues("fetched").Inc()
	}
	if len(f.Body) > maxParsed {
		return
	}
	if mod, err := modfile.ParseLax("go.mod", f.Body, nil); err == nil {
		m.follow(v, mod)
	}
}
