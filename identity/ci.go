package identity

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// presets read the claims of jobs as their providers document them, by Issuer.Provider. They bind on
// ids that a provider never gives twice: whoever registers a freed name gets another id. The text of sub
// is not looked at, since a repository's owner can shape it.
var presets = map[string]func(jobClaims) *CI{
	"github":     githubJob,
	"gitlab":     gitlabJob,
	"kubernetes": kubernetesJob,
}

// job reads what is known of the job behind a token; nil where no provider is configured.
func (i *issuer) job(claims map[string]json.RawMessage) (*CI, error) {
	if i.cfg.Provider == "" {
		return nil, nil //nolint:nilnil // no provider, and nothing wrong with that
	}
	c := jobClaims{members: claims, err: new(error)}
	ci := presets[i.cfg.Provider](c)
	if *c.err != nil {
		return nil, fmt.Errorf("reading claims of a job of %s: %w", i.cfg.Provider, *c.err)
	}
	ci.Provider = cmp.Or(i.cfg.ProviderName, i.cfg.Provider)
	if i.cfg.TrustPullRequests && ci.Event == "pull_request" {
		ci.Fork = false
	}
	return ci, nil
}

// githubJob reads a token of GitHub Actions. None of its claims names the repository that a pull request
// comes from, so each job that others' code can start counts as a fork's.
func githubJob(c jobClaims) *CI {
	ci := &CI{
		RepoID: c.id("repository_id"), OwnerID: c.id("repository_owner_id"), Repo: c.word("repository"), Ref: c.word("ref"),
		Environment: c.word("environment"), Event: c.must("event_name"), Workflow: c.word("job_workflow_ref"), Protected: c.flag("ref_protected"),
	}
	switch ci.Event {
	case "push", "schedule", "workflow_dispatch", "repository_dispatch", "release", "create", "deployment", "merge_group":
	default:
		ci.Fork, ci.Protected = true, false
	}
	return ci
}

// gitlabJob reads a token of GitLab CI. project_id is the project that the code comes from, and
// job_project_id the one whose runners and variables are used. Versions that do not say the latter give a
// fork's merge request the target's project_id, so there each merge request counts as a fork's.
func gitlabJob(c jobClaims) *CI {
	ci := &CI{
		RepoID: c.id("project_id"), OwnerID: c.id("namespace_id"), Repo: c.word("project_path"), Ref: c.word("ref"),
		Environment: c.word("environment"), Event: c.must("pipeline_source"), Workflow: c.word("ci_config_ref_uri"), Protected: c.flag("ref_protected"),
	}
	switch runs := c.word("job_project_id"); {
	case runs != "":
		ci.Fork = runs != ci.RepoID
	default:
		ci.Fork = ci.Event == "merge_request_event" || ci.Event == "external_pull_request_event"
	}
	ci.Protected = ci.Protected && !ci.Fork
	return ci
}

// kubernetesJob reads a projected token of a service account. Who may create pods in a namespace may use
// its service accounts, so their two names are what a cluster vouches for.
func kubernetesJob(c jobClaims) *CI {
	inner := c.object("kubernetes.io")
	account, pod := inner.object("serviceaccount"), jobClaims{err: c.err}
	namespace, name := inner.must("namespace"), account.must("name")
	if inner.members["pod"] != nil {
		pod = inner.object("pod")
	}
	return &CI{RepoID: namespace + "/" + name, Repo: namespace + "/" + name, OwnerID: account.must("uid"), Pod: pod.word("uid")}
}

// jobClaims are members of a JSON object, with the first mistake in reading them.
type jobClaims struct {
	members map[string]json.RawMessage
	err     *error
}

func (c jobClaims) failed(err error) {
	if *c.err == nil {
		*c.err = err
	}
}

// must reads text that has to be there.
func (c jobClaims) must(name string) string {
	s, err := text(c.members, name)
	if err != nil {
		c.failed(err)
	}
	return s
}

// word reads text that may be missing, or a number as its digits.
func (c jobClaims) word(name string) string {
	raw := string(c.members[name])
	if raw == "" || raw == "null" || raw == `""` {
		return ""
	}
	if n, err := strconv.ParseUint(raw, 10, 64); err == nil {
		return strconv.FormatUint(n, 10)
	}
	return c.must(name)
}

// id reads a number without which nothing can be bound to the job. Providers write it as text, too.
func (c jobClaims) id(name string) string {
	s := c.word(name)
	if n, err := strconv.ParseUint(s, 10, 64); err != nil || strconv.FormatUint(n, 10) != s {
		c.failed(fmt.Errorf("%q is no number", name))
	}
	return s
}

// flag reads a boolean, which providers write as text, too; what is missing is false.
func (c jobClaims) flag(name string) bool {
	return strings.Trim(string(c.members[name]), `"`) == "true"
}

func (c jobClaims) object(name string) jobClaims {
	inner := jobClaims{err: c.err}
	if err := json.Unmarshal(c.members[name], &inner.members); err != nil || inner.members == nil {
		c.failed(errors.New(strconv.Quote(name) + " is no object"))
	}
	return inner
}
