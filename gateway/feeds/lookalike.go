package feeds

import (
	"math/bits"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/mod/module"
)

// popularFrom is how many importers make a name worth imitating.
const popularFrom = 100

// popular are the names that others may imitate. Paths are compared in lower case and without their major version.
type popular struct {
	names     map[string]bool
	list      []name
	skeletons map[string]string // what it looks like → the name
	repos     map[string]string // host and all that follows the owner → the name
	known     *lru.Cache[string, lookalike]
}

// lookalike is what a path imitates.
type lookalike struct{ of, kind string }

// knownPaths is how many paths are remembered: each request asks, and looking through 10,000 names takes up to 1 ms.
const knownPaths = 1 << 14

// A name is a popular path, made ready to be compared.
type name struct {
	path string
	mask uint64 // which characters are in it
}

func newPopular(importers map[string]int) *popular {
	p := &popular{names: map[string]bool{}, skeletons: map[string]string{}, repos: map[string]string{}}
	p.known, _ = lru.New[string, lookalike](knownPaths) // the error is for sizes below one
	for _, path := range sorted(importers) {
		base := baseOf(path)
		if importers[path] < popularFrom || p.names[base] {
			continue
		}
		p.names[base] = true
		p.list = append(p.list, name{base, maskOf(base)})
		p.skeletons[skeleton(base)] = base
		if host, _, rest := parts(base); rest != "" {
			// Of several owners of one name, the one with most importers is imitated.
			if have, taken := p.repos[host+"/"+rest]; !taken || importers[path] > importers[have] {
				p.repos[host+"/"+rest] = base
			}
		}
	}
	return p
}

// imitates tells which popular name a module path can be mistaken for, and by what. What is popular itself, or belongs
// to the owner of the popular name, imitates nobody.
func (p *popular) imitates(path string) (of, kind string) {
	found, ok := p.known.Get(path)
	if !ok {
		found.of, found.kind = p.look(path)
		p.known.Add(path, found)
	}
	return found.of, found.kind
}

func (p *popular) look(path string) (of, kind string) {
	base := baseOf(path)
	if p.names[base] {
		return "", "none"
	}
	if like, ok := p.skeletons[skeleton(base)]; ok && !sameOwner(like, base) {
		return like, "homoglyph"
	}
	mask, best, least := maskOf(base), "", 3
	for _, n := range p.list {
		if abs(len(n.path)-len(base)) >= least || bits.OnesCount64(n.mask^mask) > 4 || sameOwner(n.path, base) {
			continue
		}
		if d := distance(n.path, base, least); d < least {
			best, least = n.path, d
		}
	}
	if least == 1 {
		return best, "edit1"
	}
	if host, _, rest := parts(base); rest != "" {
		if like, ok := p.repos[host+"/"+rest]; ok {
			return like, "org_swap"
		}
	}
	if least == 2 {
		return best, "edit2"
	}
	return "", "none"
}

// baseOf is a path in lower case, as code hosts read it, without its major version.
func baseOf(path string) string {
	if prefix, _, ok := module.SplitPathVersion(path); ok {
		path = prefix
	}
	return strings.ToLower(path)
}

// parts are the host, the owner and the rest of a path with three elements or more.
func parts(path string) (host, owner, rest string) {
	host, after, _ := strings.Cut(path, "/")
	owner, rest, _ = strings.Cut(after, "/")
	return host, owner, rest
}

// sameOwner tells whether whoever may publish one path may publish the other: the first two elements are the same, or
// the host of a shorter one. gopkg.in gives its names to everybody.
func sameOwner(a, b string) bool {
	hostA, ownerA, restA := parts(a)
	hostB, ownerB, restB := parts(b)
	if hostA != hostB || hostA == "gopkg.in" {
		return false
	}
	return ownerA == ownerB || restA == "" && restB == ""
}

// glyphs are what looks like something else in many typefaces.
var glyphs = strings.NewReplacer("rn", "m", "vv", "w", "0", "o", "1", "l", "i", "l", "5", "s", "_", "-")

func skeleton(path string) string { return glyphs.Replace(path) }

// maskOf has a bit for each character in the path: an edit changes two at most, so most names need no closer look.
func maskOf(path string) uint64 {
	mask := uint64(0)
	for i := range len(path) {
		mask |= 1 << (path[i] % 64)
	}
	return mask
}

// distance is the number of insertions, deletions, replacements and swaps of neighbours between two names, as far as it
// is below limit (optimal string alignment).
func distance(a, b string, limit int) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		least := row[0]
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
			least = min(least, row[j])
		}
		if least >= limit {
			return limit
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

func abs(n int) int { return max(n, -n) }
