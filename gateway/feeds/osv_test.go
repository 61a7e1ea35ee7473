package feeds

import (
	"strings"
	"testing"

	"golang.org/x/mod/semver"
)

// TestRecord reads OSV records, with what attackers and mistakes put into them.
func TestRecord(t *testing.T) {
	affects := func(events, versions string) string {
		return `{"id":"X-1","affected":[{"package":{"name":"m.test/a","ecosystem":"Go"},"ranges":[` + events + `],"versions":[` + versions + `]}]}`
	}
	semverRange := func(events string) string { return `{"type":"SEMVER","events":[` + events + `]}` }
	for name, tt := range map[string]struct {
		in      string
		version string
		hit     bool
		fixed   string
	}{
		"before it came in":        {affects(semverRange(`{"introduced":"1.2.0"},{"fixed":"1.3.0"}`), ``), "v1.1.9", false, ""},
		"first with it":            {affects(semverRange(`{"introduced":"1.2.0"},{"fixed":"1.3.0"}`), ``), "v1.2.0", true, "v1.3.0"},
		"prerelease of the fix":    {affects(semverRange(`{"introduced":"1.2.0"},{"fixed":"1.3.0"}`), ``), "v1.3.0-rc.1", true, "v1.3.0"},
		"the fix":                  {affects(semverRange(`{"introduced":"1.2.0"},{"fixed":"1.3.0"}`), ``), "v1.3.0", false, ""},
		"pseudo-version from zero": {affects(semverRange(`{"introduced":"0"},{"fixed":"1.0.0"}`), ``), "v0.0.0-20200101000000-abcdefabcdef", true, "v1.0.0"},
		"incompatible":             {affects(semverRange(`{"introduced":"0"},{"fixed":"3.2.0+incompatible"}`), ``), "v3.1.0+incompatible", true, "v3.2.0+incompatible"},
		"last affected":            {affects(semverRange(`{"introduced":"0"},{"last_affected":"1.5.0"}`), ``), "v1.5.0", true, ""},
		"after the last affected":  {affects(semverRange(`{"introduced":"0"},{"last_affected":"1.5.0"}`), ``), "v1.5.1", false, ""},
		"events out of order":      {affects(semverRange(`{"fixed":"2.0.0"},{"introduced":"1.5.0"},{"fixed":"1.1.0"},{"introduced":"0"}`), ``), "v1.2.0", false, ""},
		"second span out of order": {affects(semverRange(`{"fixed":"2.0.0"},{"introduced":"1.5.0"},{"fixed":"1.1.0"},{"introduced":"0"}`), ``), "v1.7.0", true, "v2.0.0"},
		"two ranges, later fix":    {affects(semverRange(`{"introduced":"0"},{"fixed":"1.9.0"}`)+","+semverRange(`{"introduced":"0"},{"fixed":"1.10.0"}`), ``), "v1.0.0", true, "v1.10.0"},
		"never fixed":              {affects(semverRange(`{"introduced":"0"}`), ``), "v9.0.0", true, ""},
		"enumerated":               {affects(``, `"1.0.4"`), "v1.0.4", true, ""},
		"not enumerated":           {affects(``, `"1.0.4"`), "v1.0.40", false, ""},
		"neither range nor list":   {affects(``, ``), "v1.0.0", true, ""},
		"commits alone":            {affects(`{"type":"GIT","events":[{"introduced":"0"}]}`, ``), "v1.0.0", true, ""},
		"withdrawn":                {`{"id":"X-1","withdrawn":"2026-01-01T00:00:00Z",` + affects(``, ``)[12:], "v1.0.0", false, ""},
		"other ecosystem":          {strings.Replace(affects(``, ``), `"Go"`, `"npm"`, 1), "v1.0.0", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := parseRecord([]byte(tt.in), 2)
			if err != nil {
				t.Fatalf("parseRecord(%s) = %v", tt.in, err)
			}
			fixed, hit := "", false
			if r := found["m.test/a"]; r != nil {
				fixed, hit = r.hits(tt.version)
			}
			if hit != tt.hit || fixed != tt.fixed {
				t.Errorf("hits(%s) = %q, %t, want %q, %t", tt.version, fixed, hit, tt.fixed, tt.hit)
			}
		})
	}
	for name, in := range map[string]string{
		"no id":          `{"affected":[]}`,
		"no JSON":        `{"id":`,
		"bad version":    affects(semverRange(`{"introduced":"latest"}`), ``),
		"number as text": `{"id":7}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseRecord([]byte(in), 2); err == nil {
				t.Errorf("parseRecord(%s) took it", in)
			}
		})
	}
}

func TestSeverity(t *testing.T) {
	for name, tt := range map[string]struct {
		scores []score
		word   string
		want   int
	}{
		"CVSS 3.1 critical":     {[]score{{"CVSS_V3", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}}, "", 4},
		"CVSS 3.0 medium":       {[]score{{"CVSS_V3", "CVSS:3.0/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N"}}, "", 2},
		"CVSS 4.0 critical":     {[]score{{"CVSS_V4", "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N"}}, "", 4},
		"the worst of two":      {[]score{{"CVSS_V3", "CVSS:3.1/AV:L/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N"}, {"CVSS_V3", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"}}, "LOW", 3},
		"no impact, then word":  {[]score{{"CVSS_V3", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N"}}, "high", 3},
		"not a vector":          {[]score{{"CVSS_V3", "CVSS:3.1/AV:N"}, {"Ubuntu", "critical"}}, "", 2},
		"the database's word":   {nil, "MODERATE", 2},
		"neither: what is set":  {nil, "", 2},
		"a word nobody knows":   {nil, "apocalyptic", 2},
		"the database's worst":  {nil, "CRITICAL", 4},
		"low stays below unset": {nil, "LOW", 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := severityOf(tt.scores, tt.word, 2); got != tt.want {
				t.Errorf("severityOf(%v, %q) = %d, want %d", tt.scores, tt.word, got, tt.want)
			}
		})
	}
}

// FuzzRecord holds what is read to the record's own words: the fix lies after the version, and is itself not hit by the
// span that it ends.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"A","affected":[{"package":{"name":"m.test/a","ecosystem":"Go"},"ranges":[{"type":"SEMVER","events":[{"introduced":"0"},{"fixed":"1.2.3"}]}]}]}`), "v1.0.0")
	f.Add([]byte(`{"id":"A","affected":[{"package":{"name":"a","ecosystem":"Go"},"versions":["1.0.0"]}]}`), "v1.0.0")
	f.Fuzz(func(t *testing.T, content []byte, version string) {
		if !semver.IsValid(version) {
			return
		}
		found, err := parseRecord(content, 2)
		if err != nil {
			return
		}
		for name, r := range found {
			if r.severity < 1 || r.severity > 4 {
				t.Errorf("severity of %s is %d", name, r.severity)
			}
			if fixed, hit := r.hits(version); fixed != "" && (!hit || semver.Compare(fixed, version) <= 0) {
				t.Errorf("hits(%s) = %q, %t: the fix is no later version", version, fixed, hit)
			}
		}
	})
}
