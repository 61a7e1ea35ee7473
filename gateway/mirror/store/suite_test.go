package store_test

import (
	"path/filepath"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/store/storetest"
)

// at opens stores of one location, each with drafts of its own.
func at(location string) func(testing.TB) *store.Store {
	return func(tb testing.TB) *store.Store {
		tb.Helper()
		return opened(tb, location, store.Options{Scratch: filepath.Join(tb.TempDir(), "scratch")})
	}
}

func opened(tb testing.TB, location string, o store.Options) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), location, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func TestSuiteOnDisk(t *testing.T) {
	storetest.Suite{Open: at(t.TempDir()), Many: 1050, Large: 64 << 20}.Run(t)
}

func TestSuiteOnS3(t *testing.T) {
	_, location := storetest.S3(t)
	storetest.Suite{Open: at(store.Join(location, "public")), Many: 1050, Large: 64 << 20}.Run(t)
}

func TestSuiteOnGCS(t *testing.T) {
	storetest.Suite{Open: at(store.Join(storetest.GCS(t), "public")), Many: 100, Large: 20 << 20}.Run(t)
}

func TestSuiteOnAzure(t *testing.T) {
	storetest.Suite{Open: at(store.Join(storetest.Azure(t), "public")), Many: 100, Large: 20 << 20}.Run(t)
}
