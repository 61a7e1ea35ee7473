package identity_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// Claims as the providers document them, beside the registered ones.
var (
	githubClaims = map[string]any{
		"sub": "repo:corp/app:ref:refs/heads/main", "repository": "corp/app", "repository_id": "482913", "repository_owner": "corp",
		"repository_owner_id": "2020", "repository_visibility": "private", "ref": "refs/heads/main", "ref_type": "branch",
		"ref_protected": "true", "sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5", "environment": "release", "event_name": "push",
		"actor": "ann", "actor_id": "1001", "workflow": "build", "job_workflow_ref": "corp/ci/.github/workflows/build.yml@refs/heads/main",
		"runner_environment": "github-hosted", "run_id": "22259804324", "run_attempt": "1", "head_ref": "", "base_ref": "",
	}
	gitlabClaims = map[string]any{
		"sub": "project_path:corp/app:ref_type:branch:ref:main", "project_id": "22", "project_path": "corp/app", "namespace_id": "72",
		"namespace_path": "corp", "user_id": "42", "user_login": "ann", "pipeline_id": "574", "pipeline_source": "push", "job_id": "302",
		"ref": "main", "ref_type": "branch", "ref_protected": "true", "environment": "production", "environment_protected": "false",
		"ci_config_ref_uri": "gitlab.corp.example/corp/app//.gitlab-ci.yml@refs/heads/main", "runner_environment": "self-hosted",
		"job_project_id": "22", "job_project_path": "corp/app", "job_namespace_id": "72", "user_access_level": "developer",
	}
	kubernetesClaims = map[string]any{
		"sub": "system:serviceaccount:build:runner", "jti": "7ee52be0-9045-4653-aa5e-0da57b8dccdc", "kubernetes.io": map[string]any{
			"namespace": "build", "node": map[string]any{"name": "n1", "uid": "646e7c5e"}, "pod": map[string]any{"name": "job-1", "uid": "5e0bd49b"},
			"serviceaccount": map[string]any{"name": "runner", "uid": "14ee3fa4"}, "warnafter": 1700000000,
		},
	}
)

// jobs is a configuration with an issuer of a provider's jobs.
func jobs(i *identitytest.Issuer, provider string) identity.Config {
	return identity.Config{Issuers: []identity.Issuer{{
		Name: "ci", URL: i.URL, Type: identity.Workload, Provider: provider, Audiences: []string{"headgate"}, Labels: map[string]string{"actor": "actor"},
	}}}
}

// jobToken signs a provider's claims with changes.
func jobToken(i *identitytest.Issuer, claims, changes map[string]any) string {
	all := maps.Clone(claims)
	maps.Copy(all, changes)
	sub, _ := all["sub"].(string)
	return i.Sign(i.Claims(sub, "headgate", all))
}

func TestJobsOfProviders(t *testing.T) {
	for name, tt := range map[string]struct {
		provider        string
		claims, changes map[string]any
		want            identity.CI
	}{
		"github push": {"github", githubClaims, nil, identity.CI{
			Provider: "github", RepoID: "482913", OwnerID: "2020", Repo: "corp/app", Ref: "refs/heads/main", Protected: true, Environment: "release",
			Event: "push", Workflow: "corp/ci/.github/workflows/build.yml@refs/heads/main",
		}},
		"gitlab push": {"gitlab", gitlabClaims, nil, identity.CI{
			Provider: "gitlab", RepoID: "22", OwnerID: "72", Repo: "corp/app", Ref: "main", Protected: true, Environment: "production",
			Event: "push", Workflow: "gitlab.corp.example/corp/app//.gitlab-ci.yml@refs/heads/main",
		}},
		"gitlab ids as numbers": {"gitlab", gitlabClaims, map[string]any{"project_id": 22, "namespace_id": 72, "job_project_id": 22, "ref_protected": true}, identity.CI{
			Provider: "gitlab", RepoID: "22", OwnerID: "72", Repo: "corp/app", Ref: "main", Protected: true, Environment: "production",
			Event: "push", Workflow: "gitlab.corp.example/corp/app//.gitlab-ci.yml@refs/heads/main",
		}},
		"kubernetes": {"kubernetes", kubernetesClaims, nil, identity.CI{
			Provider: "kubernetes", RepoID: "build/runner", Repo: "build/runner", OwnerID: "14ee3fa4", Pod: "5e0bd49b",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			iss := identitytest.NewIssuer("https://ci.corp.example")
			s := start(t, jobs(iss, tt.provider), iss)
			raw := jobToken(iss, tt.claims, tt.changes)
			p, err := bearer(s, raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.want, p.Subject.CI); diff != "" || p.Subject.Type != identity.Workload || p.Allows("", "mint") {
				t.Errorf("subject %+v, CI (-want +got):\n%s", p.Subject, diff)
			}
			d, err := s.Exchange(t.Context(), identity.ExchangeRequest{GrantType: identity.GrantTokenExchange, SubjectToken: raw, SubjectTokenType: identity.TypeJWT})
			if err != nil {
				t.Fatal(err)
			}
			text, err := s.Issue(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := bearer(s, text); err != nil || cmp.Diff(&tt.want, p.Subject.CI) != "" {
				t.Errorf("the exchanged token is of %+v, %v", p.Subject.CI, err)
			}
		})
	}
}

// T58: code of somebody without a right in the repository is told apart, and a name alone is nobody.
func TestT58Forks(t *testing.T) {
	for name, tt := range map[string]struct {
		provider        string
		claims, changes map[string]any
		fork            bool
	}{
		"github pull_request":          {"github", githubClaims, map[string]any{"event_name": "pull_request", "ref": "refs/pull/7/merge"}, true},
		"github pull_request_target":   {"github", githubClaims, map[string]any{"event_name": "pull_request_target"}, true},
		"github workflow_run":          {"github", githubClaims, map[string]any{"event_name": "workflow_run"}, true},
		"github issue_comment":         {"github", githubClaims, map[string]any{"event_name": "issue_comment"}, true},
		"github an event of tomorrow":  {"github", githubClaims, map[string]any{"event_name": "vibes"}, true},
		"github schedule":              {"github", githubClaims, map[string]any{"event_name": "schedule"}, false},
		"gitlab fork's merge request":  {"gitlab", gitlabClaims, map[string]any{"project_id": "99", "pipeline_source": "merge_request_event"}, true},
		"gitlab own merge request":     {"gitlab", gitlabClaims, map[string]any{"pipeline_source": "merge_request_event"}, false},
		"gitlab before job_project_id": {"gitlab", gitlabClaims, map[string]any{"pipeline_source": "merge_request_event", "job_project_id": nil}, true},
	} {
		t.Run("T58 "+name, func(t *testing.T) {
			iss := identitytest.NewIssuer("https://ci.corp.example")
			p, err := bearer(start(t, jobs(iss, tt.provider), iss), jobToken(iss, tt.claims, tt.changes))
			if err != nil || p.Subject.CI.Fork != tt.fork || tt.fork && p.Subject.CI.Protected {
				t.Errorf("CI %+v, %v; want fork %v, and no fork protected", p.Subject.CI, err, tt.fork)
			}
		})
	}
	t.Run("T58 trust_pull_requests", func(t *testing.T) {
		iss := identitytest.NewIssuer("https://ci.corp.example")
		cfg := jobs(iss, "github")
		cfg.Issuers[0].TrustPullRequests = true
		s := start(t, cfg, iss)
		for event, fork := range map[string]bool{"pull_request": false, "pull_request_target": true} {
			p, err := bearer(s, jobToken(iss, githubClaims, map[string]any{"event_name": event}))
			if err != nil || p.Subject.CI.Fork != fork || p.Subject.CI.Protected {
				t.Errorf("%s: CI %+v, %v", event, p.Subject.CI, err)
			}
		}
	})
	t.Run("T58 reused name", func(t *testing.T) {
		iss := identitytest.NewIssuer("https://ci.corp.example")
		p, err := bearer(start(t, jobs(iss, "github"), iss), jobToken(iss, githubClaims, map[string]any{"repository_id": "999999"}))
		if err != nil || p.Subject.CI.RepoID != "999999" {
			t.Errorf("CI %+v, %v", p.Subject.CI, err)
		}
	})
}

func TestJobsRefused(t *testing.T) {
	now := time.Now().Unix()
	for name, tt := range map[string]struct {
		provider        string
		claims, changes map[string]any
	}{
		"T43 default audience of GitHub": {"github", githubClaims, map[string]any{"aud": "https://github.com/corp"}},
		"T43 default audience of GitLab": {"gitlab", gitlabClaims, map[string]any{"aud": "https://gitlab.corp.example"}},
		"T43 the cluster's API server":   {"kubernetes", kubernetesClaims, map[string]any{"aud": []string{"https://kubernetes.default.svc.cluster.local"}}},
		"T43 ours beside the API server": {"kubernetes", kubernetesClaims, map[string]any{"aud": []string{"headgate", "https://kubernetes.default.svc"}}},
		"T42 no audience":                {"github", githubClaims, map[string]any{"aud": nil}},
		"two hours":                      {"gitlab", gitlabClaims, map[string]any{"iat": now, "exp": now + 7200}},
		"no repository id":               {"github", githubClaims, map[string]any{"repository_id": nil}},
		"repository id as a name":        {"github", githubClaims, map[string]any{"repository_id": "corp/app"}},
		"repository id with a sign":      {"github", githubClaims, map[string]any{"repository_id": "+482913"}},
		"repository id with a zero":      {"github", githubClaims, map[string]any{"repository_id": "0482913"}},
		"repository id as a list":        {"github", githubClaims, map[string]any{"repository_id": []string{"482913"}}},
		"no event":                       {"github", githubClaims, map[string]any{"event_name": nil}},
		"no source of the pipeline":      {"gitlab", gitlabClaims, map[string]any{"pipeline_source": ""}},
		"GitLab's token at GitHub's":     {"github", gitlabClaims, nil},
		"a pod of no namespace":          {"kubernetes", kubernetesClaims, map[string]any{"kubernetes.io": map[string]any{"serviceaccount": map[string]any{"name": "runner", "uid": "1"}}}},
		"a pod of text":                  {"kubernetes", kubernetesClaims, map[string]any{"kubernetes.io": "build/runner"}},
		"an old token of a secret":       {"kubernetes", kubernetesClaims, map[string]any{"kubernetes.io": nil, "kubernetes.io/serviceaccount/namespace": "build"}},
	} {
		t.Run(name, func(t *testing.T) {
			iss := identitytest.NewIssuer("https://ci.corp.example")
			_, err := bearer(start(t, jobs(iss, tt.provider), iss), jobToken(iss, tt.claims, tt.changes))
			wantCode(t, "Authenticate", err, identity.CredentialInvalid)
		})
	}
}

// Two servers of one make count their projects from 1, so policy has to know them by two names.
func TestTwoIssuersOfOneProvider(t *testing.T) {
	a, b := identitytest.NewIssuer("https://ci.corp.example"), identitytest.NewIssuer("https://ci.other.example")
	cfg := jobs(a, "gitlab")
	second := jobs(b, "gitlab").Issuers[0]
	second.Name = "ci-2"
	cfg.Issuers = append(cfg.Issuers, second)
	if errs := cfg.Validate(); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "issuers[1].provider_name: ") {
		t.Errorf("Validate() = %v", errs)
	}
	cfg.Issuers[1].ProviderName = "other"
	s := start(t, cfg, a, b)
	for want, i := range map[string]*identitytest.Issuer{"gitlab": a, "other": b} {
		p, err := bearer(s, jobToken(i, gitlabClaims, nil))
		if err != nil || p.Subject.CI.Provider != want {
			t.Errorf("CI %+v, %v; want provider %q", p.Subject.CI, err, want)
		}
	}
}

func TestProviderConfig(t *testing.T) {
	good := identity.Issuer{Name: "ci", URL: "https://ci.corp.example", Type: identity.Workload, Provider: "github", Audiences: []string{"headgate"}}
	for want, change := range map[string]func(*identity.Issuer){
		"provider: ":            func(i *identity.Issuer) { i.Provider = "jenkins" },
		"type: ":                func(i *identity.Issuer) { i.Type = identity.Person },
		"trust_pull_requests: ": func(i *identity.Issuer) { i.Provider, i.TrustPullRequests = "gitlab", true },
		"provider_name: ":       func(i *identity.Issuer) { i.ProviderName = "a:b" },
		"client_secret_file: ":  func(i *identity.Issuer) { i.ClientSecretFile = "f" },
		"scopes: ":              func(i *identity.Issuer) { i.ClientID, i.Scopes = "c", []string{"email"} },
	} {
		i := good
		change(&i)
		if errs := (identity.Config{Issuers: []identity.Issuer{i}}).Validate(); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "issuers[0]."+want) {
			t.Errorf("Validate() = %v, want one mistake at %s", errs, want)
		}
	}
}
