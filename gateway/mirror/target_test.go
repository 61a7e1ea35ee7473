package mirror_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	xmodule "golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

func parser(tb testing.TB) *mirror.Mirror {
	tb.Helper()
	up, err := mirrortest.New("sum.example.test/with/slash")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { up.Close() })
	m, err := mirror.New(tb.Context(), mirror.Config{
		Upstreams: []string{"off"}, Sumdb: []string{up.Key(), "sum.golang.org"}, Store: tb.TempDir(),
	}, mirror.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

func TestParseTarget(t *testing.T) {
	m := parser(t)
	type target = mirror.Target
	for _, tt := range []struct {
		name, in string
		want     target
	}{
		{"list", "/example.com/m/@v/list", target{Path: "example.com/m", Kind: mirror.List}},
		{"latest", "/example.com/m/@latest", target{Path: "example.com/m", Kind: mirror.Latest}},
		{"info", "/example.com/m/@v/v1.2.3.info", target{Path: "example.com/m", Version: "v1.2.3", Kind: mirror.Info}},
		{"mod", "/example.com/m/@v/v1.2.3.mod", target{Path: "example.com/m", Version: "v1.2.3", Kind: mirror.Mod}},
		{"zip", "/example.com/m/@v/v1.2.3.zip", target{Path: "example.com/m", Version: "v1.2.3", Kind: mirror.Zip}},
		{"C3 branch is a query", "/example.com/m/@v/main.info", target{Path: "example.com/m", Version: "main", Kind: mirror.Query}},
		{"C3 commit is a query", "/example.com/m/@v/0123abc.info", target{Path: "example.com/m", Version: "0123abc", Kind: mirror.Query}},
		{"C3 short version is a query", "/example.com/m/@v/v1.2.info", target{Path: "example.com/m", Version: "v1.2", Kind: mirror.Query}},
		{"C3 major that does not fit is a query", "/example.com/m/@v/v2.0.0.info", target{Path: "example.com/m", Version: "v2.0.0", Kind: mirror.Query}},
		{"C11 capitals in path and version", "/github.com/!azure/!s!d!k/@v/v1.0.0-!r!c1.mod", target{Path: "github.com/Azure/SDK", Version: "v1.0.0-RC1", Kind: mirror.Mod}},
		{"C13 incompatible", "/example.com/m/@v/v2.0.0+incompatible.zip", target{Path: "example.com/m", Version: "v2.0.0+incompatible", Kind: mirror.Zip}},
		{"C13 other metadata is a query", "/example.com/m/@v/v1.0.0+meta.info", target{Path: "example.com/m", Version: "v1.0.0+meta", Kind: mirror.Query}},
		{"C14 pseudo-version", "/example.com/m/@v/v0.0.0-20240101000000-0123456789ab.mod", target{Path: "example.com/m", Version: "v0.0.0-20240101000000-0123456789ab", Kind: mirror.Mod}},
		{"C14 pseudo-version after a tag", "/example.com/m/@v/v1.2.4-0.20240101000000-0123456789ab.mod", target{Path: "example.com/m", Version: "v1.2.4-0.20240101000000-0123456789ab", Kind: mirror.Mod}},
		{"C14 pseudo-version after a prerelease", "/example.com/m/@v/v1.2.3-rc.1.0.20240101000000-0123456789ab.mod", target{Path: "example.com/m", Version: "v1.2.3-rc.1.0.20240101000000-0123456789ab", Kind: mirror.Mod}},
		{"C12 major version suffix", "/example.com/m/v3/@v/v3.1.0.zip", target{Path: "example.com/m/v3", Version: "v3.1.0", Kind: mirror.Zip}},
		{"C12 gopkg.in", "/gopkg.in/yaml.v3/@v/v3.0.1.mod", target{Path: "gopkg.in/yaml.v3", Version: "v3.0.1", Kind: mirror.Mod}},
		{"T32 %21 is !", "/example.com/%21up/@v/list", target{Path: "example.com/Up", Kind: mirror.List}},
		{"T32 ! is !", "/example.com/!up/@v/list", target{Path: "example.com/Up", Kind: mirror.List}},
		{"T38 toolchain", "/golang.org/toolchain/@v/v0.0.1-go1.26.0.linux-amd64.zip", target{Path: "golang.org/toolchain", Version: "v0.0.1-go1.26.0.linux-amd64", Kind: mirror.Zip}},
		{"C40 supported", "/sumdb/sum.golang.org/supported", target{Kind: mirror.Sumdb, Sumdb: "sum.golang.org", Tail: "supported"}},
		{"E11 database name with a slash", "/sumdb/sum.example.test/with/slash/latest", target{Kind: mirror.Sumdb, Sumdb: "sum.example.test/with/slash", Tail: "latest"}},
		{"C41 lookup", "/sumdb/sum.golang.org/lookup/example.com/!up@v1.0.0", target{Kind: mirror.Sumdb, Sumdb: "sum.golang.org", Tail: "lookup/example.com/!up@v1.0.0", Path: "example.com/Up", Version: "v1.0.0"}},
		{"C42 full tile", "/sumdb/sum.golang.org/tile/8/0/x001/234", target{Kind: mirror.Sumdb, Sumdb: "sum.golang.org", Tail: "tile/8/0/x001/234"}},
		{"C42 partial tile", "/sumdb/sum.golang.org/tile/8/2/000.p/17", target{Kind: mirror.Sumdb, Sumdb: "sum.golang.org", Tail: "tile/8/2/000.p/17"}},
		{"C42 data tile", "/sumdb/sum.golang.org/tile/8/data/000", target{Kind: mirror.Sumdb, Sumdb: "sum.golang.org", Tail: "tile/8/data/000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := m.ParseTarget(tt.in)
			if err != nil || got != tt.want {
				t.Fatalf("ParseTarget(%q) = %+v, %v; want %+v", tt.in, got, err, tt.want)
			}
			if want := strings.ReplaceAll(tt.in, "%21", "!"); got.String() != want {
				t.Errorf("String() = %q, want %q", got.String(), want)
			}
		})
	}
}

func TestParseTargetRefuses(t *testing.T) {
	m := parser(t)
	for _, tt := range []struct {
		name, in string
		want     error
	}{
		{"T29 dot dot", "/example.com/allowed/../secret/@v/list", mirror.ErrSpelling},
		{"T29 dot", "/example.com/./m/@v/list", mirror.ErrSpelling},
		{"T29 escaped dots", "/example.com/%2e%2e/m/@v/list", mirror.ErrSpelling},
		{"T30 escaped slash", "/example.com%2fm/@v/list", mirror.ErrSpelling},
		{"T30 escaped backslash", "/example.com%5cm/@v/list", mirror.ErrSpelling},
		{"T30 backslash", `/example.com\m/@v/list`, mirror.ErrSpelling},
		{"T30 escaped slash in a revision", "/example.com/m/@v/a%2fb.info", mirror.ErrSpelling},
		{"T30 twice escaped", "/example.com%252fm/@v/list", mirror.ErrSpelling},
		{"T30 NUL", "/example.com/m%00/@v/list", mirror.ErrSpelling},
		{"T30 raw NUL", "/example.com/m\x00/@v/list", mirror.ErrSpelling},
		{"T30 overlong UTF-8", "/example.com/%c0%ae%c0%ae/@v/list", mirror.ErrSpelling},
		{"T30 raw UTF-8", "/example.com/é/@v/list", mirror.ErrSpelling},
		{"T31 leading slashes", "//secret.corp/m/@v/list", mirror.ErrSpelling},
		{"T31 slashes inside", "/example.com//y/@v/list", mirror.ErrSpelling},
		{"T32 two !", "/example.com/!!a/@v/list", mirror.ErrSpelling},
		{"T32 ! before a capital", "/example.com/!A/@v/list", mirror.ErrSpelling},
		{"T32 ! at the end", "/example.com/a!/@v/list", mirror.ErrSpelling},
		{"T32 raw capital", "/example.com/Up/@v/list", mirror.ErrSpelling},
		{"T32 raw capital in a version", "/example.com/m/@v/v1.0.0-RC1.mod", mirror.ErrSpelling},
		{"T32 other escape of a letter", "/example.com/%6d/@v/list", mirror.ErrSpelling},
		{"T34 nothing after @v", "/example.com/m/@v/", mirror.ErrSpelling},
		{"T34 bare @v", "/example.com/m/@v", mirror.ErrSpelling},
		{"T34 @v at the start", "/@v/list", mirror.ErrSpelling},
		{"T34 @v in the middle", "/example.com/@v/m/list", mirror.ErrSpelling},
		{"T34 two @v", "/example.com/m/@v/v1.0.0/@v/list", mirror.ErrSpelling},
		{"T34 after @latest", "/example.com/m/@latest/x", mirror.ErrSpelling},
		{"T34 latest after @v", "/example.com/m/@v/@latest", mirror.ErrSpelling},
		{"T34 two suffixes", "/example.com/m/@v/v1.0.0.zip.info", mirror.ErrSpelling},
		{"T34 unknown suffix", "/example.com/m/@v/v1.0.0.tar", mirror.ErrSpelling},
		{"T34 no suffix", "/example.com/m/@v/v1", mirror.ErrSpelling},
		{"C3 slash in a revision", "/example.com/m/@v/feature/x.info", mirror.ErrSpelling},
		{"C3 revision like an option", "/example.com/m/@v/--upload-pack.info", mirror.ErrSpelling},
		{"C4 latest is no version", "/example.com/m/@v/latest.info", mirror.ErrNoRoute},
		{"C4 upgrade is no version", "/example.com/m/@v/upgrade.info", mirror.ErrNoRoute},
		{"C4 patch is no version", "/example.com/m/@v/patch.info", mirror.ErrNoRoute},
		{"C5 .mod of a branch", "/example.com/m/@v/main.mod", mirror.ErrNoRoute},
		{"C6 .zip of a short version", "/example.com/m/@v/v1.zip", mirror.ErrNoRoute},
		{"C11 trailing slash", "/example.com/m/@v/list/", mirror.ErrSpelling},
		{"C11 page of a package", "/example.com/m", mirror.ErrNoRoute},
		{"C11 root", "/", mirror.ErrNoRoute},
		{"C11 empty", "", mirror.ErrSpelling},
		{"C11 too long", "/example.com/" + strings.Repeat("a", 5000) + "/@v/list", mirror.ErrSpelling},
		{"C12 no dot in the first element", "/m/@v/list", mirror.ErrSpelling},
		{"C12 reserved name", "/example.com/con/@v/list", mirror.ErrSpelling},
		{"C12 /v1", "/example.com/m/v1/@v/list", mirror.ErrSpelling},
		{"C12 gopkg.in without version", "/gopkg.in/yaml/@v/list", mirror.ErrSpelling},
		{"C13 major does not fit", "/example.com/m/@v/v2.0.0.zip", mirror.ErrSpelling},
		{"C40 unknown database", "/sumdb/evil.test/supported", mirror.ErrUnknownSumdb},
		{"T35 database name that begins like ours", "/sumdb/sum.golang.org.evil.test/supported", mirror.ErrUnknownSumdb},
		{"T35 other host", "/sumdb/sum.golang.org@evil.test/latest", mirror.ErrUnknownSumdb},
		{"T35 dot path", "/sumdb/sum.golang.org/../evil.test/latest", mirror.ErrSpelling},
		{"T35 unknown verb", "/sumdb/sum.golang.org/search", mirror.ErrNoRoute},
		{"T35 verb with more", "/sumdb/sum.golang.org/latest/x", mirror.ErrNoRoute},
		{"C42 tile of another height", "/sumdb/sum.golang.org/tile/4/0/000", mirror.ErrNoRoute},
		{"C42 tile spelt otherwise", "/sumdb/sum.golang.org/tile/8/0/0", mirror.ErrNoRoute},
		{"C41 lookup without version", "/sumdb/sum.golang.org/lookup/example.com/m", mirror.ErrSpelling},
		{"C41 lookup of a query", "/sumdb/sum.golang.org/lookup/example.com/m@main", mirror.ErrSpelling},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := m.ParseTarget(tt.in)
			if !errors.Is(err, tt.want) {
				t.Errorf("ParseTarget(%q) = %+v, %v; want %v", tt.in, got, err, tt.want)
			}
		})
	}
}

// FuzzParseTarget holds the parser against net/url and x/mod: what it takes
// prints back as it came, means the same to both, and is a legal file name.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{
		"/example.com/m/@v/list", "/example.com/%21m/@v/v1.0.0.zip", "/github.com/!a/b/@v/main.info",
		"/sumdb/sum.golang.org/lookup/example.com/m@v1.0.0", "/sumdb/sum.golang.org/tile/8/data/x001/000.p/3",
		"/example.com/m/@latest", "/a.b/../@v/list", "/example.com/m/@v/v1.0.0+incompatible.mod", "/x.y/%2e/@v/list",
	} {
		f.Add(s)
	}
	m := parser(f)
	f.Fuzz(func(t *testing.T, in string) {
		target, err := m.ParseTarget(in)
		if err != nil {
			return
		}
		// T37: policy sees Path; upstream gets String.
		if got, want := target.String(), strings.ReplaceAll(in, "%21", "!"); got != want {
			t.Fatalf("ParseTarget(%q).String() = %q", in, got)
		}
		u, err := url.Parse("https://up.test" + target.String())
		if err != nil || u.EscapedPath() != target.String() || u.Host != "up.test" || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("net/url reads %q as %v, %v", target.String(), u, err)
		}
		if again, err := m.ParseTarget(target.String()); err != nil || again != target {
			t.Fatalf("ParseTarget(%q) again = %+v, %v; want %+v", target.String(), again, err, target)
		}
		if target.Path == "" {
			return
		}
		if err := xmodule.CheckPath(target.Path); err != nil {
			t.Fatalf("ParseTarget(%q).Path = %q: %v", in, target.Path, err)
		}
		if k := target.Kind; k == mirror.Mod || k == mirror.Zip || k == mirror.Info {
			if err := xmodule.Check(target.Path, target.Version); err != nil {
				t.Fatalf("ParseTarget(%q) = %+v: %v", in, target, err)
			}
		}
	})
}
