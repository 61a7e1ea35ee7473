package mirror_test

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	xmodule "golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// nothingStored fails if the store holds any file of the module.
func (b *bench) nothingStored(tb testing.TB, module string) {
	tb.Helper()
	if files := b.files(tb, module); len(files) > 0 {
		tb.Errorf("stored: %v", files)
	}
	if left, err := filepath.Glob(filepath.Join(b.cfg.Store, "public", ".tmp", "*", "*")); err != nil || len(left) > 0 {
		tb.Errorf("drafts left: %v, %v", left, err)
	}
}

func (b *bench) files(tb testing.TB, module string) []string {
	tb.Helper()
	entries, err := os.ReadDir(filepath.Join(b.cfg.Store, "public", filepath.FromSlash(module), "@v"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

const (
	hostilePath = "example.com/h"
	hostileMod  = "module example.com/h\n"
	prefix      = "example.com/h@v1.0.0/"
)

// zipOf makes a zip of names and contents, as it comes.
func zipOf(tb testing.TB, files ...string) []byte {
	tb.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i])
		if err == nil {
			_, err = w.Write([]byte(files[i+1]))
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func linkZip(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	h := &zip.FileHeader{Name: prefix + "link"}
	h.SetMode(fs.ModeSymlink | 0o777)
	w, err := z.CreateHeader(h)
	if err == nil {
		_, err = w.Write([]byte("/etc/passwd"))
	}
	if err := errors.Join(err, z.Close()); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// bomb is a small zip of more than 500 MiB of zeros.
func bomb(tb testing.TB) []byte {
	tb.Helper()
	const size = 90 << 20
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err == nil {
		_, err = io.CopyN(w, zeros{}, size)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range 6 {
		f, err := z.CreateRaw(&zip.FileHeader{
			Name: fmt.Sprintf("%sf%d", prefix, i), Method: zip.Deflate,
			UncompressedSize64: size, CompressedSize64: uint64(packed.Len()),
		})
		if err == nil {
			_, err = f.Write(packed.Bytes())
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// lyingZip declares less than a file has.
func lyingZip(tb testing.TB) []byte {
	tb.Helper()
	z := zipOf(tb, prefix+"a.txt", strings.Repeat("a", 5000))
	// The directory's entry: signature PK\1\2, uncompressed size at offset 24.
	i := bytes.LastIndex(z, []byte("PK\x01\x02"))
	copy(z[i+24:], []byte{10, 0, 0, 0})
	return z
}

// manyFiles is a zip that is legal but for a directory that would fill memory.
func manyFiles(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	long := strings.Repeat("n", 4000)
	for i := range 6500 {
		if _, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprintf("%s%d-%s", prefix, i, long)}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func TestHostileZipIsNeitherStoredNorServed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		zip  []byte
	}{
		{"C47 not a zip", []byte("<html>sign in</html>")},
		{"C47 empty", []byte{}},
		{"C47 dot dot in a name", zipOf(t, prefix+"../../etc/x", "x")},
		{"C47 absolute name", zipOf(t, "/etc/x", "x")},
		{"C47 name of another version", zipOf(t, "example.com/h@v1.0.1/x.go", "x")},
		{"C47 case twins", zipOf(t, prefix+"a.go", "x", prefix+"A.go", "x")},
		{"C47 go.mod in a folder", zipOf(t, prefix+"sub/go.mod", "module x")},
		{"C47 go.mod in capitals", zipOf(t, prefix+"GO.MOD", "module x")},
		{"C47 go.mod too large", zipOf(t, prefix+"go.mod", strings.Repeat("/", 17<<20))},
		{"C47 LICENSE too large", zipOf(t, prefix+"LICENSE", strings.Repeat("/", 17<<20))},
		{"C47 link", linkZip(t)},
		{"C47 bomb", bomb(t)},
		{"C47 declared size is a lie", lyingZip(t)},
		{"C47 list of files too large", manyFiles(t)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.Start(t)
			v := xmodule.Version{Path: hostilePath, Version: "v1.0.0"}
			if err := up.Add(mirrortest.Module{Version: v, Zip: tt.zip, Files: map[string][]byte{"go.mod": []byte(hostileMod)}}); err != nil {
				t.Fatal(err)
			}
			// Exempt, so that the rules of zips stand alone, without the checksum database behind them.
			b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.SumdbExempt = []string{"example.com"} })
			_, _, err := b.get(t.Context(), "/example.com/h/@v/v1.0.0.zip")
			if !errors.Is(err, mirror.ErrUpstream) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open = %v, want ErrUpstream", err)
			}
			b.nothingStored(t, hostilePath)
		})
	}
}

func TestBytesThatDoNotMatchAreAnIncident(t *testing.T) {
	for _, tt := range []struct {
		name, file string
	}{{"C19 zip", "zip"}, {"C19 mod", "mod"}} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			up.WrongSum("example.com/m", "v1.0.0", false)
			b := start(t, up, nil)
			path := "/example.com/m/@v/v1.0.0." + tt.file
			_, _, err := b.get(t.Context(), path)
			var inc *mirror.IncidentError
			if !errors.Is(err, mirror.ErrMismatch) || !errors.As(err, &inc) || inc.Kind != "sumdb" || inc.File != tt.file {
				t.Fatalf("Open = %v, want an incident of the checksum database", err)
			}
			b.nothingStored(t, "example.com/m")
			if f := b.Facts(t.Context(), "example.com/m", "v1.0.0"); f.Sumdb != "mismatch" {
				t.Errorf("Facts.Sumdb = %q, want mismatch", f.Sumdb)
			}
			if n := b.metric(t, "headgate_sumdb_failures_total", "mismatch"); n != 1 {
				t.Errorf("mismatches counted: %v, want 1", n)
			}
			up.Forget()
			b.reopen(t, nil)
			if _, _, err := b.get(t.Context(), path); !errors.Is(err, mirror.ErrMismatch) || len(up.Requests()) > 0 {
				t.Errorf("after a restart Open = %v with requests %v, want the incident still open", err, up.Requests())
			}
		})
	}
}

func TestWrongBytesFromUpstream(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, nil)
	other := zipOf(t, "example.com/m@v1.0.0/go.mod", "module example.com/m\n\ngo 1.20\n", "example.com/m@v1.0.0/evil.go", "package m\n")
	up.Break("*.zip", mirrortest.Fault{Body: other})
	if _, _, err := b.get(t.Context(), "/example.com/m/@v/v1.0.0.zip"); !errors.Is(err, mirror.ErrMismatch) {
		t.Errorf("Open = %v, want ErrMismatch", err)
	}
	b.nothingStored(t, "example.com/m")
}

func TestZipWithAnotherGoMod(t *testing.T) {
	up := mirrortest.Start(t)
	v := xmodule.Version{Path: hostilePath, Version: "v1.0.0"}
	if err := up.Add(mirrortest.Module{
		Version: v, Zip: zipOf(t, prefix+"go.mod", "module example.com/other\n"),
		Files: map[string][]byte{".mod": []byte(hostileMod)},
	}); err != nil {
		t.Fatal(err)
	}
	b := start(t, up, nil)
	if _, _, err := b.get(t.Context(), "/example.com/h/@v/v1.0.0.zip"); !errors.Is(err, mirror.ErrMismatch) {
		t.Errorf("C47 Open = %v, want ErrMismatch: the root go.mod is not the .mod", err)
	}
	b.nothingStored(t, hostilePath)
}

func TestChecksumDatabaseDecidesWhatIsTakenIn(t *testing.T) {
	const path = "/example.com/m/@v/v1.0.0.mod"
	for _, tt := range []struct {
		name  string
		spoil func(*mirrortest.Server)
		cfg   func(*mirror.Config, *mirror.Options)
		want  error
		cause string
		facts string
	}{
		{"not listed", func(s *mirrortest.Server) { s.WrongSum("example.com/m", "v1.0.0", true) }, nil, mirror.ErrNotListed, "not_listed", "not_listed"},
		{"not listed but exempt", func(s *mirrortest.Server) { s.WrongSum("example.com/m", "v1.0.0", true) }, func(c *mirror.Config, _ *mirror.Options) {
			c.SumdbExempt = []string{"example.com/*"}
		}, nil, "", "exempt"},
		{"out of reach", func(s *mirrortest.Server) { s.Break("/sumdb/*", mirrortest.Fault{Status: 403}) }, nil, mirror.ErrSumdb, "unreachable", "pending"},
		{"not proxied", func(s *mirrortest.Server) { s.Break("/sumdb/*", mirrortest.Fault{Status: 404}) }, nil, mirror.ErrSumdb, "unreachable", "pending"},
		{"tiles missing", func(s *mirrortest.Server) { s.Break("*/tile/*", mirrortest.Fault{Status: 404}) }, nil, mirror.ErrSumdb, "unreachable", "pending"},
		{"lookup is HTML", func(s *mirrortest.Server) { s.Break("*/lookup/*", mirrortest.Fault{Body: []byte("<html>")}) }, nil, mirror.ErrSumdb, "invalid", "pending"},
		{"tile is spoilt", func(s *mirrortest.Server) { s.Break("*/tile/*", mirrortest.Fault{Flip: true}) }, nil, mirror.ErrSumdb, "invalid", "pending"},
		{"head under another key", func(*mirrortest.Server) {}, otherKey(t), mirror.ErrSumdb, "invalid", "pending"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
			tt.spoil(up)
			b := start(t, up, tt.cfg)
			_, _, err := b.get(t.Context(), path)
			if !errors.Is(err, tt.want) || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("Open = %v, want %v", err, tt.want)
			}
			if f := b.Facts(t.Context(), "example.com/m", "v1.0.0"); f.Sumdb != tt.facts {
				t.Errorf("Facts.Sumdb = %q, want %q", f.Sumdb, tt.facts)
			}
			if tt.want == nil {
				return
			}
			if !errors.Is(err, mirror.ErrUpstream) {
				t.Errorf("C18 %v is not ErrUpstream", err)
			}
			b.nothingStored(t, "example.com/m")
			if n := b.metric(t, "headgate_sumdb_failures_total", tt.cause); n < 1 {
				t.Errorf("failures counted as %s: %v", tt.cause, n)
			}
		})
	}
}

// otherKey configures a key of the same name that signs nothing here.
func otherKey(tb testing.TB) func(*mirror.Config, *mirror.Options) {
	tb.Helper()
	other, err := mirrortest.New("")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { other.Close() })
	return func(c *mirror.Config, _ *mirror.Options) { c.Sumdb = []string{other.Key()} }
}

func TestForkedChecksumDatabaseEndsIngest(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"), module("example.com/m", "v1.2.0"))
	b := start(t, up, nil)
	b.must(t, "/example.com/m/@v/v1.0.0.mod")
	up.Fork(3)
	_, _, err := b.get(t.Context(), "/example.com/m/@v/v1.1.0.mod")
	if !errors.Is(err, mirror.ErrSumdb) {
		t.Fatalf("C43 Open after a fork = %v, want ErrSumdb", err)
	}
	if n := b.metric(t, "headgate_sumdb_failures_total", "security"); n < 1 {
		t.Errorf("security failures counted: %v", n)
	}
	b.reopen(t, nil)
	up.Forget()
	if _, _, err := b.get(t.Context(), "/example.com/m/@v/v1.2.0.mod"); !errors.Is(err, mirror.ErrSumdb) {
		t.Errorf("Open after a restart = %v, want ErrSumdb still", err)
	}
	if n := up.Count("/sumdb/*"); n != 0 {
		t.Errorf("the database was asked again: %v", up.Requests())
	}
	if _, f := b.must(t, "/example.com/m/@v/v1.0.0.mod"); f.Cache != "disk" {
		t.Errorf("what was taken in before came from %q, want disk", f.Cache)
	}
	if got := b.files(t, "example.com/m"); len(got) != 1 {
		t.Errorf("stored %v, want one .mod", got)
	}
}

func TestOtherBytesUnderAKnownName(t *testing.T) {
	up := mirrortest.Start(t, module("example.com/m", "v1.0.0"))
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.SumdbExempt = []string{"example.com"} })
	// Another process publishes between our look and our own publishing.
	up.Break("*.mod", mirrortest.Fault{Delay: 50 * time.Millisecond})
	name := filepath.Join(b.cfg.Store, "public", "example.com", "m", "@v", "v1.0.0.mod")
	done := make(chan error, 1)
	go func() {
		_, _, err := b.get(t.Context(), "/example.com/m/@v/v1.0.0.mod")
		done <- err
	}()
	for up.Count("*.mod") == 0 {
		select {
		case err := <-done:
			t.Fatalf("Open ended before it asked: %v", err)
		default:
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("module example.com/m // other\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	err := <-done
	var inc *mirror.IncidentError
	if !errors.As(err, &inc) || inc.Kind != "conflict" || !errors.Is(err, mirror.ErrMismatch) {
		t.Fatalf("Open = %v, want a conflict", err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "module example.com/m // other\n" {
		t.Errorf("stored bytes are %q, %v: they must stay", got, err)
	}
	if n := b.metric(t, "headgate_mirror_conflicts_total"); n != 1 {
		t.Errorf("conflicts counted: %v, want 1", n)
	}
}
