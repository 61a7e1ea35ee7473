package feeds

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestImitates(t *testing.T) {
	p := newPopular(map[string]int{
		"github.com/gorilla/mux": 20000, "github.com/stretchr/testify": 90000, "github.com/go-redis/redis/v8": 9000, "golang.org/x/net": 80000,
		"golang.org/x/text": 50000, "gopkg.in/yaml.v3": 70000, "rsc.io/quote": 500, "github.com/rare/thing": 99, "github.com/pkg/errors": 60000,
	})
	for path, want := range map[string][2]string{
		"github.com/gorilla/mux":        {"", "none"},
		"github.com/gorilla/mux/v2":     {"", "none"}, // another major version of it
		"github.com/gorilla/mix":        {"", "none"}, // who owns gorilla owns both
		"github.com/gorila/mux":         {"github.com/gorilla/mux", "edit1"},
		"github.com/groilla/mux":        {"github.com/gorilla/mux", "edit1"}, // neighbours swapped
		"github.com/gorila/mix":         {"github.com/gorilla/mux", "edit2"},
		"github.com/g0rilla/mux":        {"github.com/gorilla/mux", "homoglyph"},
		"github.com/stretchr/testify2":  {"", "none"},
		"github.com/strechr/testify":    {"github.com/stretchr/testify", "edit1"},
		"github.com/Stretchr/testify":   {"", "none"}, // code hosts ignore case: the same repository
		"github.com/evil/testify":       {"github.com/stretchr/testify", "org_swap"},
		"github.com/evil/testify/v2":    {"github.com/stretchr/testify", "org_swap"},
		"gitlab.com/stretchr/testify":   {"github.com/stretchr/testify", "edit2"},
		"github.com/go-redis/redis/v9":  {"", "none"},
		"github.com/go-redls/redis/v9":  {"github.com/go-redis/redis", "homoglyph"},
		"golang.org/x/nets":             {"", "none"},
		"golang.0rg/x/net":              {"golang.org/x/net", "homoglyph"},
		"golang.orq/x/net":              {"golang.org/x/net", "edit1"},
		"gopkg.in/yarnl.v3":             {"gopkg.in/yaml", "homoglyph"},
		"gopkg.in/yam1.v3":              {"gopkg.in/yaml", "homoglyph"},
		"gopkg.in/yaml.v2":              {"", "none"},
		"rsc.io/quotes":                 {"", "none"},
		"rsc.lo/quote":                  {"rsc.io/quote", "homoglyph"},
		"github.com/rarer/thing":        {"", "none"}, // nobody imitates what hardly anybody imports
		"example.com/entirely/else":     {"", "none"},
		"github.com/pkg/error":          {"", "none"},
		"github.com/pgk/errors":         {"github.com/pkg/errors", "edit1"},
		"github.com/pkgs/errors/subdir": {"", "none"},
	} {
		t.Run(path, func(t *testing.T) {
			if of, kind := p.imitates(path); of != want[0] || kind != want[1] {
				t.Errorf("imitates(%s) = %q, %s, want %q, %s", path, of, kind, want[0], want[1])
			}
		})
	}
}

// TestDistance compares the bounded distance and the mask before it with the definition, on names with few letters.
func TestDistance(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, r.IntN(7))
		for i := range b {
			b[i] = "abc"[r.IntN(3)]
		}
		return string(b)
	}
	for range 20000 {
		a, b := word(), word()
		want := min(plainDistance(a, b), 3)
		if got := min(distance(a, b, 3), 3); got != want {
			t.Fatalf("distance(%q, %q) = %d, want %d", a, b, got, want)
		}
	}
}

// plainDistance is the definition, by recursion.
func plainDistance(a, b string) int {
	if a == "" || b == "" {
		return len(a) + len(b)
	}
	change := 1
	if a[0] == b[0] {
		change = 0
	}
	d := min(plainDistance(a[1:], b)+1, plainDistance(a, b[1:])+1, plainDistance(a[1:], b[1:])+change)
	if len(a) > 1 && len(b) > 1 && a[0] == b[1] && a[1] == b[0] {
		d = min(d, plainDistance(a[2:], b[2:])+1)
	}
	return d
}

func TestBucket(t *testing.T) {
	for importers, want := range map[int]int{0: 0, 1: 1, 9: 1, 10: 2, 999: 3, 9999: 4, 10000: 5, 1 << 30: 5} {
		if got := bucket(importers); got != want {
			t.Errorf("bucket(%d) = %d, want %d", importers, got, want)
		}
	}
}

// BenchmarkImitates is what a path costs that nobody asked for before.
func BenchmarkImitates(b *testing.B) {
	importers := map[string]int{}
	for i := range 10000 {
		importers[fmt.Sprintf("github.com/owner%d/name%d", i, i*7919%10007)] = 1000
	}
	p := newPopular(importers)
	b.ReportAllocs()
	for b.Loop() {
		p.look("github.com/somebody/something")
	}
}
