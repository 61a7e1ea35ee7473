package identity_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

const (
	manyTokens   = 100_000
	fleetDevices = 50_000
)

// fill copies one good token until there are n, with ids of their own, each of
// another person. None of the copies can be used; they are there for their weight.
func fill(b *testing.B, db *sql.DB, n int) {
	b.Helper()
	if _, err := db.Exec(`
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
		INSERT INTO identity_tokens (id, class, pepper, digest, subject_issuer, subject_id, subject, subject_as_of, assurance,
			owner, note, scope, parent, exchanged, created, expires, used, revoked, changed, bound)
		SELECT substr('copy00000000' || i, -12), class, pepper, digest, subject_issuer, 'person-' || i, subject, subject_as_of, assurance,
			owner, note, scope, parent, exchanged, created, expires, used, revoked, changed, bound
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

// fillDevices stores n enrolled devices, each with a key and an owner of its own.
func fillDevices(b *testing.B, db *sql.DB, n int) {
	b.Helper()
	if _, err := db.Exec(`
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
		INSERT INTO identity_devices (id, state, owner_issuer, owner, shared, platform, serial, spki, note, created, updated, changed)
		SELECT 'laptop-' || i, 'enrolled', '', 'person-' || i, FALSE, 'linux', substr('00000000000000000000000000000000' || i, -32),
			substr('0000000000000000000000000000000000000000000000000000000000000000' || i, -64), '', 1, 1, i
		FROM n`, n); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFleet is a request with a token and a device's certificate where 100,000 tokens and 50,000 devices are
// stored: cold is the whole load and the first use after it, which first-ns/op counts alone; MB is what all of it holds.
func BenchmarkFleet(b *testing.B) {
	db, keys, y := statetest.OpenDB(b), b.TempDir(), newYard(b)
	cfg := identity.Config{Devices: identity.Devices{
		Listen: "127.0.0.1:0", ID: spiffe, CA: filepath.Join(y.dir, "ca.pem"), Inventory: identity.Feed{File: filepath.Join(y.dir, "devices.csv")},
	}}
	_, secret := person(b, reopen(b, cfg, db, keys))
	fill(b, db, manyTokens)
	fillDevices(b, db, fleetDevices)
	r := on(y.issue(b, "d1"), "Bearer "+secret)
	b.Run("cold", func(b *testing.B) {
		var before, after runtime.MemStats
		var first time.Duration
		for b.Loop() {
			runtime.GC()
			runtime.ReadMemStats(&before)
			s, err := identity.Open(b.Context(), cfg, identity.Options{DB: db, Keys: keys})
			if err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			if p, err := s.Authenticate(r); err != nil || p.Device.ID != "d1" {
				b.Fatalf("device %q, %v", p.Device.ID, err)
			}
			first += time.Since(began)
			runtime.GC()
			runtime.ReadMemStats(&after)
			if n := len(s.DeviceList("", identity.DeviceEnrolled)); n < fleetDevices {
				b.Fatalf("%d devices are loaded, want %d", n, fleetDevices)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(first.Nanoseconds())/float64(b.N), "first-ns/op")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/manyTokens, "ns/token")
		b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/(1<<20), "MB")
	})
	s := reopen(b, cfg, db, keys)
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Authenticate(r); err != nil {
				b.Fatal(err)
			}
		}
	})
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
