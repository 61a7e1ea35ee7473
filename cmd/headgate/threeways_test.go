package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// What GitHub says of a job of the repository that companyTeams names.
var jobClaims = map[string]any{
	"repository": "corp/app", "repository_id": "482913", "repository_owner": "corp", "repository_owner_id": "2020", "ref": "refs/heads/main",
	"ref_protected": "true", "event_name": "push", "job_workflow_ref": "corp/ci/.github/workflows/build.yml@refs/heads/main",
}

// The same go build of the same private module, three ways: a person with .netrc, a CI job with its provider's token, and
// through the agent on a device. Each is refused when one attribute is wrong, and the terminal says why.
func TestSameBuildThreeWays(t *testing.T) {
	t.Parallel()
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	refused := func(t *testing.T, m *machine, because string) {
		t.Helper()
		stderr, err := m.build()
		for _, want := range []string{"corp.example/kit", "403 Forbidden", "server response:", because, "decision "} {
			if err == nil || !strings.Contains(stderr, want) {
				t.Errorf("go build: %v, want %q in the terminal:\n%s", err, want, stderr)
			}
		}
	}
	works := func(t *testing.T, m *machine) {
		t.Helper()
		if stderr, err := m.build(); err != nil {
			t.Errorf("go build: %v\n%s", err, stderr)
		}
	}
	t.Run("person with .netrc", func(t *testing.T) {
		m := c.machine(t)
		m.login("ben", "--netrc")
		works(t, m)
		m.must("logout")
		m.login("cat", "--netrc")
		t.Run("of another team", func(t *testing.T) { refused(t, m, "PATH-NOT-ALLOWED: no team of yours may use this path") })
		m.must("logout")
		m.login("ann", "--netrc")
		t.Run("without a device", func(t *testing.T) {
			refused(t, m, "DEVICE-REQUIRED: this path wants a device that your team registered")
		})
	})
	t.Run("CI job with its own token", func(t *testing.T) {
		for name, tt := range map[string]struct {
			changes map[string]any
			because string
		}{
			"of the repository": {nil, ""},
			"of a fork":         {map[string]any{"event_name": "pull_request", "ref": "refs/pull/7/merge"}, "PATH-NOT-ALLOWED: the job of a fork gets public modules only"},
			"of another one":    {map[string]any{"repository_id": "999999"}, "PATH-NOT-ALLOWED: no team of yours may use this path"},
		} {
			t.Run(name, func(t *testing.T) {
				m := c.job(t, tt.changes)
				if tt.because == "" {
					works(t, m)
				} else {
					refused(t, m, tt.because)
				}
			})
		}
	})
	t.Run("without a credential", func(t *testing.T) {
		m := c.machine(t)
		m.env = []string{"GOENV=off", "GOPROXY=" + c.url}
		if stderr, err := m.build(); err == nil || !strings.Contains(stderr, "CREDENTIAL-MISSING: this gateway wants to know who asks\n\tto sign in: headgate login;") {
			t.Errorf("go build: %v, want what to do in the terminal:\n%s", err, stderr)
		}
	})
	t.Run("through the agent", func(t *testing.T) {
		m := c.machine(t)
		m.enrol("laptop-17", "person-ann")
		c.report(t, "laptop-17", "yes")
		m.login("ann")
		goproxy, _ := m.startAgent()
		m.env = []string{"GOPROXY=" + goproxy, "GOAUTH=off"}
		works(t, m)
		c.report(t, "laptop-17", "no")
		t.Run("device not compliant", func(t *testing.T) {
			refused(t, m, "DEVICE-REQUIRED: this path wants a device that your team registered")
		})
		c.report(t, "laptop-17", "yes")
		works(t, m)
		if out, err := c.headgate("device", "block", "laptop-17", "--note", "stolen"); err != nil {
			t.Fatalf("device block: %v\n%s", err, out)
		}
		t.Run("device blocked", func(t *testing.T) { refused(t, m, "DEVICE-BLOCKED: this device was blocked") })
	})
	out, err := c.headgate("audit", "tail", "-n", "0")
	for _, want := range []string{"subject=person-ben", "subject=repo:corp/app", "subject=person-ann"} {
		if !strings.Contains(out, "decision zip corp.example/kit@v1.0.0 allow status=200 "+want) {
			t.Errorf("%v, the log lacks a zip for %s:\n%s", err, want, out)
		}
	}
}

// The GOAUTH helper on a device, without an agent: the token is bound to the device, and policy sees it.
func TestBuildWithGoauthOnDevice(t *testing.T) {
	t.Parallel()
	c := newCompany(t, mirrortest.Start(t, companyModules...), "")
	m := c.machine(t)
	m.enrol("laptop-17", "person-ann")
	c.report(t, "laptop-17", "yes")
	m.login("ann")
	if stderr, err := m.build(); err != nil {
		t.Errorf("go build: %v\n%s", err, stderr)
	}
	c.report(t, "laptop-17", "no")
	if stderr, err := m.build(); err == nil || !strings.Contains(stderr, "DEVICE-REQUIRED: this path wants a device") {
		t.Errorf("go build on a device that is not compliant: %v\n%s", err, stderr)
	}
	status := decoded[[]clientStatus](t, m.must("status", "--json"))
	if len(status) != 1 || status[0].Device == nil || status[0].Device.Serial == "" || status[0].Device.Problem != "" {
		t.Errorf("status: %+v", status)
	}
}

// job is a runner with a token of its provider in .netrc and nothing else of ours.
func (c *company) job(t *testing.T, changes map[string]any) *machine {
	t.Helper()
	m := c.machine(t)
	claims := maps.Clone(jobClaims)
	maps.Copy(claims, changes)
	token := c.jobs.Sign(c.jobs.Claims("repo:corp/app:ref:refs/heads/main", "headgate", claims))
	line := "machine " + netrcMachine(c.url) + " login job password " + token + "\n"
	if err := os.WriteFile(filepath.Join(m.home, ".netrc"), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	m.env = []string{"GOENV=off", "GOPROXY=" + c.url, "GOSUMDB=" + c.sumdb(t)}
	return m
}

// sumdb is the gateway's own checksum database, as everybody is told.
func (c *company) sumdb(t *testing.T) string {
	t.Helper()
	meta, err := readMetadata(t.Context(), c.client, c.url)
	if err != nil || meta.Sumdb == "" {
		t.Fatalf("metadata: %+v %v", meta, err)
	}
	return meta.Sumdb
}
