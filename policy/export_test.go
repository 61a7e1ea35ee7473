package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// SpoilArchive makes the engine's newest archive one of an older binary: whole and signed, with a function that this one
// does not have.
func SpoilArchive(t *testing.T, e *Engine) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	names, err := e.archives()
	must(err)
	old := filepath.Join(e.opts.State, names[0])
	fsys, err := openArchive(old + ".tar")
	must(err)
	b, err := readBundle(fsys, nil)
	must(err)
	b.files["site/old.rego"] = []byte("package site.release\n\nx := old.builtin(1)\n")
	archive, err := pack(b.files)
	must(err)
	sum := sha256.Sum256(archive)
	r, err := e.readRecord(names[0])
	must(err)
	r.Digest = hex.EncodeToString(sum[:])
	text, err := seal(e.key, r)
	must(err)
	name := filepath.Join(e.opts.State, fmt.Sprintf("%s%020d-%s", e.archivePrefix(), r.ActivatedAt.UnixNano(), r.Digest))
	must(os.WriteFile(name+".tar", archive, 0o600))
	must(os.WriteFile(name+".json", text, 0o600))
	must(os.Remove(old + ".tar"))
	must(os.Remove(old + ".json"))
}
