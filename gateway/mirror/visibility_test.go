package mirror_test

import (
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

func TestVisibility(t *testing.T) {
	up := mirrortest.Start(t)
	b := start(t, up, func(c *mirror.Config, _ *mirror.Options) {
		c.Private = []mirror.PrivateRoute{{Patterns: []string{"corp.example/team/*", "*.internal.example", "github.com/Acme"}}}
		c.Public = []string{"corp.example/team", "corp.example/team/oss*"}
	})
	for _, tt := range []struct {
		name, path string
		want       mirror.Visibility
	}{
		{"match", "corp.example/team/app", mirror.Private},
		{"below a match", "corp.example/team/app/v2/sub", mirror.Private},
		{"prefix of a pattern", "corp.example", mirror.Unknown},
		{"prefix that is public all the same", "corp.example/team", mirror.Public},
		{"carved out by a pattern", "corp.example/team/oss-lib", mirror.Public},
		{"carved out, below", "corp.example/team/oss-lib/sub", mirror.Public},
		{"host pattern", "git.internal.example", mirror.Private},
		{"below a host pattern", "git.internal.example/x", mirror.Private},
		{"T33 ends at elements", "github.com/acme-other/x", mirror.Public},
		{"T33 longer element", "corp.example/teams/app", mirror.Public},
		{"E12 capitals of the pattern", "github.com/acme/x", mirror.Private},
		{"E12 capitals of the path", "corp.example/TEAM/App", mirror.Private},
		{"host of a pattern", "github.com", mirror.Unknown},
		{"other", "example.com/m", mirror.Public},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := b.Visibility(tt.path); got != tt.want {
				t.Errorf("Visibility(%q) = %s, want %s", tt.path, got, tt.want)
			}
		})
	}
}

func TestConfigReportsEveryMistake(t *testing.T) {
	errs := mirror.Config{
		Upstreams:   []string{"https://ok.example", "ftp://x.example", "direct", "http://plain.example", "https://user:secret@x.example?q"},
		Sumdb:       []string{"unknown.example", "x+y+z"},
		SumdbExempt: []string{"["},
		Private:     []mirror.PrivateRoute{{}, {Patterns: []string{"a,b", "corp.example/team/*"}}},
		Public:      []string{"corp.example/*"},
		MemoryBytes: -1,
		CodeHosts:   []mirror.CodeHost{{Host: "a/b", Elements: 3}},
	}.Validate()
	var all []string
	for _, e := range errs {
		all = append(all, e.Error())
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{
		"upstreams[1]: ", "upstreams[2]: ", "upstreams[3]: ", "upstreams[4]: ", "sumdb[0]: ", "sumdb[1]: ", "sumdb_exempt[0]: ",
		"private[0].patterns: ", "private[1].patterns[0]: ", "public[0]: ", "memory_bytes: ", "code_hosts[0]: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no mistake reported for %s", want)
		}
	}
	if len(errs) != 12 {
		t.Errorf("%d mistakes, want 12:\n%s", len(errs), text)
	}
	if strings.Contains(text, "secret") {
		t.Errorf("a password is in %s", text)
	}
}
