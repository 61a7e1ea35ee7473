package policy_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/headgate/headgate/policy"
)

// A folder without waivers forgives nothing, and an editor's backup beside a file is not part of it.
func TestFolderWithoutWaivers(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, nil)
	if err := os.Remove(filepath.Join(dir, "config/waivers.yaml")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "config/teams.yaml~", "not: a bundle\n")
	e := open(t, dir, policy.Options{})
	if got := effect(t, e); got != policy.Allow {
		t.Errorf("effect is %q, want allow; status %+v", got, e.Status())
	}
}
