package identity_test

import (
	"database/sql"
	"fmt"
	"runtime"
	"testing"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

const manyTokens = 100_000

// fill copies one good token until there are n, with ids of their own, each of
// another person. None of the copies can be used; they are there for their weight.
func fill(b *testing.B, db *sql.DB, n int) {
	b.Helper()
	if _, err := db.Exec(`
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
		INSERT INTO identity_tokens
		SELECT substr('copy00000000' || i, -12), class, pepper, digest, subject_issuer, 'person-' || i, subject, subject_as_of, assurance,
			owner, note, scope, parent, exchanged, created, expires, used, revoked
		FROM identity_tokens, n`, n-1); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	for _, n := range []int{10, manyTokens} {
		db, keys := statetest.OpenDB(b), b.TempDir()
		first := reopen(b, identity.Config{}, db, keys)
		_, secret := person(b, first)
		fill(b, db, n)
		s := reopen(b, identity.Config{}, db, keys)
		for name, header := range map[string]string{"basic": basic("alice", secret), "bearer": "Bearer " + secret} {
			b.Run(fmt.Sprintf("warm/%s/%d tokens", name, n), func(b *testing.B) {
				b.ReportAllocs()
				r := request(header)
				for b.Loop() {
					if _, err := s.Authenticate(r); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	s := start(b, identity.Config{})
	_, secret := person(b, s)
	b.Run("warm/parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			r := request(basic("alice", secret))
			for pb.Next() {
				if _, err := s.Authenticate(r); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		r := request(basic("alice", retext("hg_hu_000000000000_"+secret[19:62])))
		for b.Loop() {
			_, _ = s.Authenticate(r)
		}
	})
}

// BenchmarkColdFromState opens a database of 100,000 tokens and authenticates
// with one: what a token costs when nothing is in memory is the time per token.
func BenchmarkColdFromState(b *testing.B) {
	db, keys := statetest.OpenDB(b), b.TempDir()
	s := reopen(b, identity.Config{}, db, keys)
	_, secret := person(b, s)
	fill(b, db, manyTokens)
	r := request(basic("alice", secret))
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s, err := identity.Open(b.Context(), identity.Config{}, identity.Options{DB: db, Keys: keys})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Authenticate(r); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/manyTokens, "ns/token")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB")
}

func BenchmarkIDToken(b *testing.B) {
	iss := identitytest.NewIssuer(corp)
	s := start(b, trust(iss), iss)
	r := request("Bearer " + fresh(iss))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Authenticate(r); err != nil {
			b.Fatal(err)
		}
	}
}
