package mirror_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// exported is a bundle of all that a mirror has, its private modules too.
func exported(t *testing.T, b *bench, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	r, err := b.Export(t.Context(), mirror.ExportOptions{Out: out, Private: true})
	if err != nil || r.Failed != 0 || r.Versions == 0 {
		t.Fatalf("Export = %+v, %v", r, err)
	}
	return out
}

func TestAirGap(t *testing.T) {
	for _, name := range []string{"all.tar", "all.tar.gz", "all.tar.zst"} {
		t.Run(name, func(t *testing.T) {
			src, up := filled(t, 5)
			out := exported(t, src, name)
			up.Forget()
			key, err := src.OwnSumdb()
			if err != nil {
				t.Fatal(err)
			}
			b := offline(t, up, func(c *mirror.Config) { c.OriginSumdb = key })
			r, err := b.Import(t.Context(), mirror.ImportOptions{Source: out, Staging: t.TempDir()})
			if err != nil || r.Versions != 6 {
				t.Fatalf("Import = %+v, %v, want 6 versions", r, err)
			}
			origin, _, _ := strings.Cut(key, "+")
			for _, db := range []string{"sum.example.test", origin} {
				lookup, _ := b.must(t, "/sumdb/"+db+"/lookup/example.com/m3@v1.0.0")
				if !strings.Contains(lookup, "example.com/m3 v1.0.0 h1:") {
					t.Errorf("record of %s = %q", db, lookup)
				}
				b.must(t, "/sumdb/"+db+"/tile/8/0/000.p/6")
			}
			b.fill(t, "/example.com/m3/@v/v1.0.0")
			if n := len(up.Requests()); n != 0 {
				t.Errorf("N10 the island asked %q", up.Requests())
			}
			left, err := filepath.Glob(filepath.Join(b.cfg.Store, "*", ".bundle-*"))
			if err != nil || len(left) != 0 {
				t.Errorf("N17 left behind: %q", left)
			}
		})
	}
}

func TestSecondBundleContinuesTheFirst(t *testing.T) {
	src, up := filled(t, 3)
	first := exported(t, src, "first.tar")
	for _, p := range []string{"example.com/n1", "example.com/n2"} {
		m, err := mirrortest.ParseTxtar([]byte(module(p, "v1.0.0")))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		src.fill(t, "/"+p+"/@v/v1.0.0")
	}
	second := exported(t, src, "second.tar")
	b := offline(t, up, nil)
	for _, file := range []string{first, second, first} {
		if r, err := b.Import(t.Context(), mirror.ImportOptions{Source: file, Staging: t.TempDir()}); err != nil || r.Failed != 0 {
			t.Fatalf("Import(%s) = %+v, %v", filepath.Base(file), r, err)
		}
	}
	if got, _ := b.must(t, "/sumdb/sum.example.test/latest"); !strings.Contains(got, "\n6\n") {
		t.Errorf("head after both = %q, want the second's", got)
	}
	up.Fork(9)
	forked := start(t, up, withState(t))
	forked.fill(t, "/example.com/m0/@v/v1.0.0")
	if _, err := b.Import(t.Context(), mirror.ImportOptions{Source: exported(t, forked, "fork.tar"), Staging: t.TempDir()}); !errors.Is(err, mirror.ErrBundle) {
		t.Errorf("a forked history: %v, want ErrBundle", err)
	}
}

// An entry is one of a tar.
type entry struct {
	tar.Header
	body []byte
}

func entries(t *testing.T, file string) []entry {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []entry
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{*h, body})
	}
}

// repack writes entries; with honest the manifest fits them again, as an attacker would have it.
func repack(t *testing.T, all []entry, honest bool) string {
	t.Helper()
	type file struct {
		Name   string `json:"name"`
		Size   int    `json:"size"`
		SHA256 string `json:"sha256"`
	}
	var list struct {
		Schema int    `json:"schema"`
		Files  []file `json:"files"`
	}
	list.Schema = 1
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range all {
		if e.Name == "manifest.json" && honest {
			body, err := json.Marshal(list)
			if err != nil {
				t.Fatal(err)
			}
			e.body = body
		}
		sum := sha256.Sum256(e.body)
		list.Files = append(list.Files, file{e.Name, len(e.body), hex.EncodeToString(sum[:])})
		h := e.Header
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		err := w.WriteHeader(&h)
		if err == nil && h.Typeflag == tar.TypeReg {
			_, err = w.Write(e.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "hostile.tar")
	if err := os.WriteFile(name, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTamperedBundles(t *testing.T) {
	src, up := filled(t, 3)
	whole := entries(t, exported(t, src, "all.tar"))
	flip := func(suffix string) func([]entry) []entry {
		return func(all []entry) []entry {
			for i := range all {
				if strings.HasSuffix(all[i].Name, suffix) {
					all[i].body = bytes.Clone(all[i].body)
					all[i].body[len(all[i].body)/2] ^= 1
					return all
				}
			}
			t.Fatalf("no entry %s", suffix)
			return nil
		}
	}
	add := func(h tar.Header) func([]entry) []entry {
		return func(all []entry) []entry { return append([]entry{{h, []byte("x")}}, all...) }
	}
	public := "sumdb/sum.example.test/"
	for name, tt := range map[string]struct {
		change func([]entry) []entry
		honest bool // the manifest is made to fit
	}{
		"one byte of a zip":           {flip("m1/@v/v1.0.0.zip"), false},
		"one byte of a zip, manifest": {flip("m1/@v/v1.0.0.zip"), true},
		"one byte of a mod, manifest": {flip("m1/@v/v1.0.0.mod"), true},
		"one byte of an info": {func(all []entry) []entry { // whose time no checksum covers
			for i := range all {
				if strings.HasSuffix(all[i].Name, "m1/@v/v1.0.0.info") {
					all[i].body = bytes.Replace(all[i].body, []byte("2024"), []byte("2025"), 1)
				}
			}
			return all
		}, false},
		"one byte of a tile":             {flip("8/0/000.p/4"), false},
		"one byte of a tile, manifest":   {flip(public + "tile/8/0/000.p/4"), true},
		"one byte of a record, manifest": {flip(public + "lookup/example.com/m1@v1.0.0"), true},
		"one byte of the head, manifest": {flip(public + "latest"), true},
		"one byte of the manifest":       {flip("manifest.json"), false},
		"no manifest":                    {func(all []entry) []entry { return all[:len(all)-1] }, false},
		"an entry is missing":            {func(all []entry) []entry { return all[1:] }, false},
		"no proofs": {func(all []entry) []entry {
			var rest []entry
			for _, e := range all {
				if !strings.HasPrefix(e.Name, "sumdb/") {
					rest = append(rest, e)
				}
			}
			return rest
		}, true},
		"something behind the manifest": {func(all []entry) []entry { return append(all, entry{all[0].Header, all[0].body}) }, false},
		"an entry twice":                {func(all []entry) []entry { return append(all[:1:1], all...) }, true},
		"path traversal":                {add(tar.Header{Typeflag: tar.TypeReg, Name: "../../example.com/x/@v/v1.0.0.mod", Mode: 0o644}), true},
		"an absolute path":              {add(tar.Header{Typeflag: tar.TypeReg, Name: "/example.com/x/@v/v1.0.0.mod", Mode: 0o644}), true},
		"another file":                  {add(tar.Header{Typeflag: tar.TypeReg, Name: ".ssh/authorized_keys", Mode: 0o644}), true},
		"a symlink":                     {add(tar.Header{Typeflag: tar.TypeSymlink, Name: "example.com/x/@v/v1.0.0.mod", Linkname: "/etc/passwd"}), false},
		"a hard link":                   {add(tar.Header{Typeflag: tar.TypeLink, Name: "example.com/x/@v/v1.0.0.mod", Linkname: "/etc/passwd"}), false},
		"a device":                      {add(tar.Header{Typeflag: tar.TypeChar, Name: "example.com/x/@v/v1.0.0.mod"}), false},
		"a huge entry": {func(all []entry) []entry {
			return append([]entry{{tar.Header{Typeflag: tar.TypeReg, Name: "example.com/x/@v/v1.0.0.info", Mode: 0o644}, make([]byte, 1<<20+1)}}, all...)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			err := refused(t, up, repack(t, tt.change(append([]entry(nil), whole...)), tt.honest))
			if kind := strings.Contains(fmt.Sprint(err), "is no file of a bundle"); kind != strings.Contains(hostileEntries, name) {
				t.Errorf("Import = %v, want it refused for what it is", err)
			}
		})
	}
	t.Run("truncated", func(t *testing.T) {
		text, err := os.ReadFile(repack(t, whole, false))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{10, 700, len(text) / 2, len(text) - 1025} {
			name := filepath.Join(t.TempDir(), "cut.tar")
			if err := os.WriteFile(name, text[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, up, name)
		}
	})
	t.Run("as it was", func(t *testing.T) {
		b := offline(t, up, nil)
		if r, err := b.Import(t.Context(), mirror.ImportOptions{Source: repack(t, whole, true), Staging: t.TempDir()}); err != nil || r.Versions != 4 {
			t.Errorf("Import of the whole one = %+v, %v", r, err)
		}
	})
}

// hostileEntries are those that are refused before a byte of them is unpacked.
const hostileEntries = "path traversal, an absolute path, another file, a symlink, a hard link, a device"

// refused wants a bundle to be refused, and nothing of it in the store.
func refused(t *testing.T, up *mirrortest.Server, file string) error {
	t.Helper()
	b := offline(t, up, nil)
	staging := t.TempDir()
	_, refusal := b.Import(t.Context(), mirror.ImportOptions{Source: file, Staging: staging})
	if !errors.Is(refusal, mirror.ErrBundle) {
		t.Errorf("Import = %v, want ErrBundle", refusal)
	}
	for _, dir := range []string{filepath.Join(b.cfg.Store, "public"), filepath.Join(b.cfg.Store, "private"), staging} {
		if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.Contains(name, ".tmp") && !strings.HasSuffix(name, ".lock") {
				t.Errorf("stored all the same: %s", name)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return refusal
}

func TestForgedRecordOfAForgedModule(t *testing.T) {
	src, up := filled(t, 3)
	all := entries(t, exported(t, src, "all.tar"))
	forger := start(t, mirrortest.Start(t, module("example.com/m1", "v1.0.0")+"-- backdoor.go --\npackage m\n"), nil)
	zip, _ := forger.must(t, "/example.com/m1/@v/v1.0.0.zip")
	forged, _ := forger.must(t, "/sumdb/sum.example.test/lookup/example.com/m1@v1.0.0")
	_, lines, _ := strings.Cut(forged, "\n")
	lines, _, _ = strings.Cut(lines, "\n\n")
	for i, e := range all {
		switch {
		case e.Name == "example.com/m1/@v/v1.0.0.zip":
			all[i].body = []byte(zip)
		case strings.HasPrefix(e.Name, "sumdb/") && strings.HasSuffix(e.Name, "lookup/example.com/m1@v1.0.0"):
			id, rest, _ := strings.Cut(string(e.body), "\n")
			_, head, _ := strings.Cut(rest, "\n\n")
			all[i].body = []byte(id + "\n" + lines + "\n\n" + head)
		}
	}
	if err := refused(t, up, repack(t, all, true)); !strings.Contains(fmt.Sprint(err), "the signed tree has another record") {
		t.Errorf("Import = %v, want it to name the record", err)
	}
}

func TestPrivateModulesNeedTheOriginsKey(t *testing.T) {
	_, up := filled(t, 0)
	route := []mirror.PrivateRoute{{Patterns: []string{"corp.example/*"}}}
	cache := t.TempDir()
	other := mirrortest.Start(t, module("corp.example/app", "v1.0.0"))
	public := start(t, other, withState(t)) // where it is no secret
	public.fill(t, "/corp.example/app/@v/v1.0.0")
	copyTree(t, cache, filepath.Join(public.cfg.Store, "public"))
	origin := offline(t, up, func(c *mirror.Config) { c.Private = route })
	if r, err := origin.Import(t.Context(), mirror.ImportOptions{Source: cache}); err != nil || r.Versions != 1 {
		t.Fatalf("Import = %+v, %v", r, err)
	}
	out := filepath.Join(t.TempDir(), "x.tar")
	if r, err := origin.Export(t.Context(), mirror.ExportOptions{Out: out + "0"}); err != nil || r.Versions != 0 {
		t.Errorf("Export without Private = %+v, %v, want nothing", r, err)
	}
	out = exported(t, origin, "private.tar")
	without := offline(t, up, func(c *mirror.Config) { c.Private = route })
	if _, err := without.Import(t.Context(), mirror.ImportOptions{Source: out, Staging: t.TempDir()}); !errors.Is(err, mirror.ErrBundle) || !strings.Contains(err.Error(), "origin_sumdb") {
		t.Errorf("Import without the key = %v, want ErrBundle that names origin_sumdb", err)
	}
	key, err := origin.OwnSumdb()
	if err != nil {
		t.Fatal(err)
	}
	with := offline(t, up, func(c *mirror.Config) { c.Private, c.OriginSumdb = route, key })
	if r, err := with.Import(t.Context(), mirror.ImportOptions{Source: out, Staging: t.TempDir()}); err != nil || r.Versions != 1 {
		t.Fatalf("Import with the key = %+v, %v", r, err)
	}
	with.fill(t, "/corp.example/app/@v/v1.0.0")
	name, _, _ := strings.Cut(key, "+")
	with.must(t, "/sumdb/"+name+"/lookup/corp.example/app@v1.0.0")
	if _, _, err := with.get(t.Context(), "/sumdb/sum.example.test/lookup/corp.example/app@v1.0.0"); !errors.Is(err, mirror.ErrPrivate) {
		t.Errorf("C44 the public database, asked for a private name: %v, want ErrPrivate", err)
	}
}
