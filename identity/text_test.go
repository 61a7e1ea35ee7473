package identity

import (
	"hash"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestTextIsRandom(t *testing.T) {
	seen := map[string]bool{}
	var count [256]int
	for range 2000 {
		s := newText(ClassPerson)
		if seen[s[idAt:]] {
			t.Fatalf("%s came twice", s[idAt:secretAt])
		}
		seen[s[idAt:]] = true
		for _, c := range []byte(s[secretAt:sumAt]) {
			count[c]++
		}
	}
	for i := range base62 { // 86,000 characters, 1387 of each expected
		if n := count[base62[i]]; n < 1150 || n > 1650 {
			t.Errorf("character %c came %d times", base62[i], n)
		}
	}
}

// FuzzText holds that a text is refused or read completely: printed from its
// parts it is the same again.
func FuzzText(f *testing.F) {
	f.Add([]byte(newText(ClassPerson)))
	f.Add([]byte(newText(ClassAdmin)))
	f.Add([]byte("hg_hu_000000000000_" + strings.Repeat("0", 49)))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := parseText(b)
		if err != nil {
			return
		}
		again := "hg_" + string(tok.class) + "_" + tok.id.String() + "_" + string(tok.secret[:])
		sum := checksum([]byte(again))
		again += string(sum[:])
		if again != string(b) {
			t.Errorf("parseText(%q) reads %q", b, again)
		}
	})
}

// countingHash counts how many digests are made.
type countingHash struct {
	hash.Hash
	sums *atomic.Int64
}

func (c countingHash) Sum(b []byte) []byte {
	c.sums.Add(1)
	return c.Hash.Sum(b)
}

func TestMissDoesTheSameWork(t *testing.T) {
	p, err := loadPeppers("", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var sums atomic.Int64
	makeMacer := p.current.pool.New
	p.current.pool.New = func() any {
		m := makeMacer().(*macer)
		m.mac = countingHash{m.mac, &sums}
		return m
	}
	s := &Service{peppers: p, tokens: newRegistry(Ceilings{})} // no database: whoever asks it panics
	text, err := parseText([]byte(newText(ClassPerson)))
	if err != nil {
		t.Fatal(err)
	}
	s.tokens.add(row{Token: Token{ID: text.id.String(), Class: ClassPerson}, verifier: verifier{pepper: p.current.version}})
	for name, id := range map[string]tokenID{"T61 known id, wrong secret": text.id, "T61 unknown id": {1, 2, 3}} {
		sums.Store(0)
		attempt := text
		attempt.id = id
		_, _, refused := s.byToken(attempt, nil, "basic")
		if refused == nil || refused.Code != CredentialInvalid || refused.Err.Error() != "unknown id or wrong secret" {
			t.Errorf("%s: %v", name, refused)
		}
		if sums.Load() != 1 {
			t.Errorf("%s: %d digests, want 1", name, sums.Load())
		}
	}
}

func TestPepperIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := loadPeppers("", dir); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(filepath.Join(dir, "pepper.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadPeppers("", dir); err != nil {
		t.Fatal(err)
	}
	if second, _ := os.ReadFile(filepath.Join(dir, "pepper.txt")); string(first) != string(second) {
		t.Error("the second start made another pepper")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".pepper-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
