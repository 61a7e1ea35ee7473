package mirror

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/headgate/headgate/gateway/mirror/vcs"
)

// pushes remember which repositories their servers have announced news of: answers of before then hold no longer.
type pushes struct {
	mu     sync.Mutex // guards all below
	number uint64
	last   map[string]*push // by the module path of the repository's root, in lower case
}

type push struct {
	number  uint64
	at      time.Time
	running bool // a refresh is under way
	again   bool // and one more is wanted
}

// mark notes a push. It tells whether a refresh must be started for it; else the one under way is followed by another.
func (p *pushes) mark(root string, now time.Time) (start bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = map[string]*push{}
	}
	for r, old := range p.last { // what is older than every answer that could be fresh says nothing
		if !old.running && now.Sub(old.at) > ttlNoModule {
			delete(p.last, r)
		}
	}
	p.number++
	one := p.last[root]
	if one == nil {
		one = &push{}
		p.last[root] = one
	}
	one.number, one.at, one.again = p.number, now, true
	start = !one.running
	one.running = true
	return start
}

// next tells whether the refresh that runs has to go on with another round.
func (p *pushes) next(root string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.last[root]
	one.running, one.again = one.again, false
	return one.running
}

// of gives number and time of the newest push to the repository that a module path belongs to.
func (p *pushes) of(modulePath string) (number uint64, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last) == 0 {
		return 0, time.Time{}
	}
	for rest := strings.ToLower(modulePath); rest != ""; {
		if one := p.last[rest]; one != nil && one.number > number {
			number, at = one.number, one.at
		}
		i := strings.LastIndexByte(rest, '/')
		rest = rest[:max(i, 0)]
	}
	return number, at
}

// RepositoryName is HOST/PATH of a repository's URL, however it is spelt; "" for what is no URL of a repository.
func RepositoryName(repository string) string { return vcs.Address(repository) }

// Refresh is for a Git server that announces news in the repository with these URLs: lists, @latest, queries and what
// was not there are asked for again from now on, and what callers have asked for before is renewed in the background.
// There is one renewal of a repository at a time, followed by at most one more. It gives the number of repositories
// that it is about: 0 where nothing is known of any.
func (m *Mirror) Refresh(repositories []string) int {
	if m.git == nil || m.git.Source == nil {
		return 0
	}
	var roots []string
	for _, root := range m.git.Pushed(repositories) {
		roots = append(roots, strings.ToLower(root))
	}
	for _, u := range repositories { // one that has no clone may be known not to be there
		if root := vcs.Address(u); root != "" && m.fromGit(root) && m.answers.below(root, nil) {
			roots = append(roots, root)
		}
	}
	slices.Sort(roots)
	roots = slices.Compact(roots)
	for _, root := range roots {
		if m.pushes.mark(root, m.now()) {
			m.background(func() { m.renewPushed(root) })
		}
	}
	return len(roots)
}

// background runs work beside callers, until Close at the latest.
func (m *Mirror) background(work func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.running.Go(work)
	}
}

// renewPushed renews the lists of a repository's modules until no push is left that it has not seen.
func (m *Mirror) renewPushed(root string) {
	for m.pushes.next(root) {
		var lists []Target
		m.answers.below(root, func(t Target, a *answer) {
			if t.Kind == List && !a.missing && m.fromGit(t.Path) {
				lists = append(lists, t)
			}
		})
		for _, t := range lists {
			if m.ctx.Err() != nil {
				break
			}
			if _, err := m.renewPrivate(m.ctx, t); err != nil && !errors.Is(err, fs.ErrNotExist) {
				m.log.LogAttrs(m.ctx, slog.LevelWarn, "list not renewed after a push", slog.String("module", t.Path), slog.Any("err", err))
			}
		}
	}
}

// below calls each, which may be nil, with the answers of modules at or below a root in lower case; it tells whether
// there are any.
func (a *answers) below(root string, each func(Target, *answer)) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := false
	for _, t := range a.lru.Keys() {
		p := strings.ToLower(t.Path)
		if p != root && !strings.HasPrefix(p, root+"/") {
			continue
		}
		if x, ok := a.lru.Peek(t); ok && each != nil {
			each(t, x)
		}
		found = true
	}
	return found
}

// freshness is the age of an answer as far as it is to be used: one of before a push is too old for anything but trouble.
func (m *Mirror) freshness(t Target, a *answer) time.Duration {
	age := m.age(a)
	if _, at := m.pushes.of(t.Path); !at.IsZero() && !a.at.After(at) {
		age = max(age, ttlNoModule)
	}
	return age
}

// unpushed asks Git again if there was a push while it was asked: what it said may be of before.
func (m *Mirror) unpushed(ctx context.Context, modulePath string, ask func() error) error {
	const tries = 3 // more pushes than that are followed by a refresh of their own
	var err error
	for range tries {
		before, _ := m.pushes.of(modulePath)
		err = ask()
		if after, _ := m.pushes.of(modulePath); after == before || ctx.Err() != nil {
			return err
		}
	}
	return err
}
