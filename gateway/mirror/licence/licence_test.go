package licence_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/licenseclassifier/v2/assets"
	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror/licence"
)

var version = module.Version{Path: "example.com/m", Version: "v1.0.0"}

// text is a licence as its steward publishes it.
func text(tb testing.TB, name string) string {
	tb.Helper()
	b, err := assets.ReadLicenseFile("License/" + name + ".txt")
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// pack makes a zip of names and contents in turn.
func pack(tb testing.TB, files ...string) *zip.Reader {
	tb.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(version.String() + "/" + files[i])
		if err == nil {
			_, err = io.WriteString(w, files[i+1])
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestFind(t *testing.T) {
	mit, apache, bsd := text(t, "MIT/pristine"), text(t, "Apache-2.0/pristine"), text(t, "BSD-3-Clause/pristine")
	found := func(ids ...string) licence.Licences { return licence.Licences{Status: licence.Some, IDs: ids} }
	var f licence.Finder
	for _, tt := range []struct {
		name  string
		files []string
		want  licence.Licences
	}{
		{"MIT", []string{"LICENSE", "Copyright (c) 2024 Ann\n\n" + mit, "m.go", "package m"}, found("MIT")},
		{"Apache", []string{"LICENSE.txt", apache}, found("Apache-2.0")},
		{"BSD", []string{"LICENCE", bsd}, found("BSD-3-Clause")},
		{"copyleft", []string{"COPYING", text(t, "AGPL-3.0/license")}, found("AGPL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later")},
		{"source available", []string{"LICENSE.md", text(t, "Business-Source-License-1.1/license")}, found("BUSL-1.1")},
		{"two files", []string{"LICENSE-MIT", mit, "LICENSE-APACHE", apache}, found("Apache-2.0", "MIT")},
		{"other names", []string{"MIT-LICENSE.txt", mit}, found("MIT")},
		{"lower case", []string{"license", mit}, found("MIT")},
		{"two in one file", []string{"LICENSE", mit + "\n\n---\n\n" + apache}, found("Apache-2.0", "MIT")},
		{"identifier in source", []string{"m.go", "// SPDX-License-Identifier: MPL-2.0\npackage m"}, found("MPL-2.0")},
		{"identifier in a licence file", []string{"LICENSE", "SPDX-License-Identifier: ISC"}, found("ISC")},
		{"expression", []string{"m.go", "/* SPDX-License-Identifier: (MIT OR GPL-2.0-or-later WITH Classpath-exception-2.0) AND 0BSD */"}, found("0BSD", "GPL-2.0", "GPL-2.0-or-later", "MIT")},
		{"old plus", []string{"m.go", "// SPDX-License-Identifier: LGPL-2.1+"}, found("LGPL-2.1", "LGPL-2.1+")},
		{"identifier that is none", []string{"m.go", "// SPDX-License-Identifier: \x1b[31m {{.}} <MIT>"}, licence.Licences{Status: licence.None}},
		{"no licence", []string{"README.md", mit, "m.go", "package m"}, licence.Licences{Status: licence.None}},
		{"below the root", []string{"vendor/x/LICENSE", mit, "LICENSES/MIT.txt", mit}, licence.Licences{Status: licence.None}},
		{"not known", []string{"LICENSE", "All rights reserved. You may not do anything."}, licence.Licences{Status: licence.Unknown}},
		{"empty", []string{"LICENSE", ""}, licence.Licences{Status: licence.Unknown}},
		{"too long to be one", []string{"LICENSE", strings.Repeat("x ", 200<<10) + mit}, licence.Licences{Status: licence.Unknown}},
		{"another root", []string{"../other@v1.0.0/LICENSE", mit}, licence.Licences{Status: licence.None}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := f.Find(t.Context(), version, pack(t, tt.files...))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Find (-want +got):\n%s", diff)
			}
		})
	}
}

// What an author packs to make the search long, or its answer large, does neither.
func TestHostileZip(t *testing.T) {
	var f licence.Finder
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprintf("LICENSE.%d", i), fmt.Sprintf("SPDX-License-Identifier: A%d\n", i))
	}
	got, err := f.Find(t.Context(), version, pack(t, many...))
	if err != nil || len(got.IDs) > 32 {
		t.Errorf("of 500 files %d ids, %v", len(got.IDs), err)
	}
	big := pack(t, "LICENSE", strings.Repeat("SPDX-License-Identifier: MIT AND\n", 1<<20), "COPYING", strings.Repeat("word ", 4<<20))
	before := allocated()
	got, err = f.Find(t.Context(), version, big)
	if grown := allocated() - before; err != nil || !slices.Equal(got.IDs, []string{"MIT"}) || grown > 512<<20 {
		t.Errorf("of 54 MB: %v, %v, %d MB allocated", got, err, grown>>20)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Find(ctx, version, pack(t, "LICENSE", "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Find with its context over: %v", err)
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestCutZipIsAnError(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: version.String() + "/LICENSE", Method: zip.Store})
	if err == nil {
		_, err = io.WriteString(w, strings.Repeat("permission is granted ", 100))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	spoilt := b.Bytes()
	spoilt[200] ^= 1 // in the text, which has a checksum
	r, err := zip.NewReader(bytes.NewReader(spoilt), int64(len(spoilt)))
	if err != nil {
		t.Fatal(err)
	}
	var f licence.Finder
	if got, err := f.Find(t.Context(), version, r); err == nil {
		t.Errorf("Find = %v, no error", got)
	}
}

// Whatever an SPDX line holds, ids are short, printable and few.
func FuzzIdentifiers(f *testing.F) {
	for _, s := range []string{"MIT", "(MIT OR Apache-2.0) AND GPL-2.0-only WITH x", "MIT */ x", "+ -only A+", "A\nSPDX-License-Identifier: B"} {
		f.Add(s)
	}
	var finder licence.Finder
	f.Fuzz(func(t *testing.T, line string) {
		got, err := finder.Find(context.Background(), version, pack(t, "m.go", "// SPDX-License-Identifier: "+line))
		if err != nil || len(got.IDs) > 32 || !slices.IsSorted(got.IDs) {
			t.Fatalf("Find of %q = %q, %v", line, got.IDs, err)
		}
		for _, id := range got.IDs {
			if id == "" || len(id) > 65 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("Find of %q has id %q", line, id)
			}
			// An id is an expression of itself.
			again, err := finder.Find(context.Background(), version, pack(t, "m.go", "// SPDX-License-Identifier: "+id))
			if err != nil || !slices.Contains(again.IDs, id) {
				t.Errorf("Find of its own id %q = %q, %v", id, again.IDs, err)
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	var f licence.Finder
	for _, name := range []string{"MIT/pristine", "Apache-2.0/pristine"} {
		z := pack(b, "LICENSE", text(b, name), "m.go", "package m")
		if _, err := f.Find(b.Context(), version, z); err != nil { // the texts are read once
			b.Fatal(err)
		}
		b.Run(strings.TrimSuffix(name, "/pristine"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if l, err := f.Find(b.Context(), version, z); err != nil || l.Status != licence.Some {
					b.Fatal(l, err)
				}
			}
		})
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.Logf("heap in use with the texts: %d MB", m.HeapInuse>>20)
	runtime.KeepAlive(&f)
}
