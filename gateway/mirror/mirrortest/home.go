package mirrortest

import (
	"os"
	"path/filepath"
	"testing"
)

// Home returns a home folder for a go command, with the telemetry off that it
// would still write there when the test is over and the folder goes.
func Home(tb testing.TB) string {
	tb.Helper()
	home := tb.TempDir()
	mode := filepath.Join(home, ".config", "go", "telemetry", "mode")
	if err := os.MkdirAll(filepath.Dir(mode), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(mode, []byte("off"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return home
}
