package policy

import (
	"fmt"
	"slices"
	"strings"
)

// InputSchema is the version of the input document that this package writes and its library asserts.
const InputSchema = 1

// Input is what policy is asked about. Its JSON is the contract with Rego: every field is present, and what is not
// known says so by its value. Fields tagged `policy:"release"` do not exist for the access question.
type Input struct {
	Schema   int      `json:"schema"` // InputSchema
	Subject  Subject  `json:"subject"`
	Device   Device   `json:"device"`
	Action   Action   `json:"action"`
	Resource Resource `json:"resource"`
	Context  Context  `json:"context"`
}

// Subject is who asks, as identity proved it.
type Subject struct {
	Type   string            `json:"type"`   // person, workload, anonymous
	ID     string            `json:"id"`     // stable within the issuer; a rule that reads it gets an answer per person
	Issuer string            `json:"issuer"` // who vouches for the id
	Groups map[string]bool   `json:"groups"` // group name to true
	Team   string            `json:"team"`   // primary team from the claim mapping, "" if none
	Labels map[string]string `json:"labels"` // cost centre, clearance, region
	Authn  Authn             `json:"authn"`
	CI     *CI               `json:"ci"` // nil: not a CI job
}

// Authn says how the subject was proved.
type Authn struct {
	Method    string `json:"method"`    // token, oidc, workload, agent
	Assurance int    `json:"assurance"` // 0 to 3
}

// CI holds the verified claims of a CI job. Rules bind on RepoID: names can be taken over.
type CI struct {
	Provider  string `json:"provider"`
	RepoID    string `json:"repo_id"`
	Repo      string `json:"repo"`
	Ref       string `json:"ref"`
	Protected bool   `json:"protected"`
	Fork      bool   `json:"fork"`
}

// Device is the machine that the subject asks from.
type Device struct {
	ID       string             `json:"id"`      // inventory id, "" if none
	Proof    string             `json:"proof"`   // none, token (minted over mTLS there), mtls (proved on this connection)
	Trusted  bool               `json:"trusted"` // identity's verdict
	Tier     int                `json:"tier"`    // 0 unknown to 4
	Platform string             `json:"platform"`
	Managed  bool               `json:"managed"`
	Posture  map[string]Posture `json:"posture"`
}

// Posture is one reported fact of a device.
type Posture struct {
	State       string `json:"state"` // ok, fail, unknown; stale reports are unknown already
	ObservedDay int    `json:"observed_day"`
	Source      string `json:"source"`
}

// Action is what is asked.
type Action struct {
	Name  string `json:"name"`  // list, latest, query, info, mod, zip, sumdb
	Class string `json:"class"` // discover, metadata, content
}

// NewAction is the action of a name, with the class that it belongs to.
func NewAction(name string) Action {
	switch name {
	case "zip":
		return Action{Name: name, Class: "content"}
	case "mod", "sumdb":
		return Action{Name: name, Class: "metadata"}
	}
	return Action{Name: name, Class: "discover"}
}

// IsAction tells whether policy knows an action of this name.
func IsAction(name string) bool { return slices.Contains(actions, name) }

// Resource is the module, and at release the version with what is known of it.
type Resource struct {
	Name
	Facts `policy:"release"`
}

// Name is the module path; it is all that access may know of the resource.
type Name struct {
	Type       string   `json:"type"`     // go-module, go-toolchain
	Path       string   `json:"path"`     // decoded canonical path
	Host       string   `json:"host"`     // first element
	Org        string   `json:"org"`      // second element, "" if none
	Prefixes   []string `json:"prefixes"` // all path-element prefixes, shortest first, so that a prefix rule is a lookup
	Visibility string   `json:"visibility"`
}

// NewName is the name of a canonical module path; visibility is private, public or unknown, from the routing table.
func NewName(path, visibility string) Name {
	elements := strings.Split(path, "/")
	n := Name{Type: "go-module", Path: path, Host: elements[0], Visibility: visibility, Prefixes: make([]string, 0, len(elements))}
	if path == "golang.org/toolchain" {
		n.Type = "go-toolchain"
	}
	if len(elements) > 1 {
		n.Org = elements[1]
	}
	for end := range len(path) {
		if path[end] == '/' {
			n.Prefixes = append(n.Prefixes, path[:end])
		}
	}
	n.Prefixes = append(n.Prefixes, path)
	return n
}

// Facts is what is known of one version. Start from NewFacts: a fact that nobody filled in must say that it is unknown.
type Facts struct {
	Version      string     `json:"version"`        // canonical
	Kind         string     `json:"kind"`           // release, prerelease, pseudo, incompatible, none
	Major        int        `json:"major"`          // 0, 1, 2, …
	FirstSeenDay int        `json:"first_seen_day"` // 0 unknown; the trusted start of a cooldown
	PublishedDay int        `json:"published_day"`  // commit day, which the author sets: to show, never to judge
	AgeDays      int        `json:"age_days"`       // saturates; 0 where the age is not known
	Retracted    Flag       `json:"retracted"`
	Deprecated   Flag       `json:"deprecated"`
	Sumdb        string     `json:"sumdb"`        // verified, mismatch, not_listed, exempt, pending
	OriginDrift  string     `json:"origin_drift"` // same, moved, unknown
	Vulns        Vulns      `json:"vulns"`
	Malware      string     `json:"malware"` // none, listed, suspected
	Licences     Licences   `json:"licences"`
	Popularity   int        `json:"popularity"` // bucket 0 to 5
	Scorecard    int        `json:"scorecard"`  // 0 to 10, -1 unknown
	Lookalike    Lookalike  `json:"lookalike"`
	Provenance   *Origin    `json:"provenance"` // nil unknown
	Quarantine   Quarantine `json:"quarantine"`
	Known        Known      `json:"facts"`
}

// Flag is a yes or no out of a go.mod, with the author's text.
type Flag struct {
	State string `json:"state"` // yes, no, unknown
	Text  string `json:"text"`
}

// Vulns are the vulnerabilities that match the module version, withdrawn ones left out.
type Vulns struct {
	MaxSeverity int             `json:"max_severity"` // 0 none, 1 low, 2 medium, 3 high, 4 critical
	IDs         map[string]Vuln `json:"ids"`
	AsOfDay     int             `json:"asof_day"`
}

// Vuln is one vulnerability.
type Vuln struct {
	Severity int    `json:"severity"`
	Fixed    string `json:"fixed"` // first version without it, "" if none
	Kind     string `json:"kind"`
}

// Licences are the SPDX ids found in the zip.
type Licences struct {
	IDs    map[string]bool `json:"ids"`
	Status string          `json:"status"` // found, none, unknown
}

// Lookalike says which popular name the module path can be mistaken for.
type Lookalike struct {
	Of   string `json:"of"`
	Kind string `json:"kind"` // none, org_swap, edit1, edit2, homoglyph
}

// Origin is where the version came from, out of its .info.
type Origin struct {
	VCS    string `json:"vcs"`
	Repo   string `json:"repo"`
	Commit string `json:"commit"`
}

// Quarantine is an operator's hold on the version in our own store.
type Quarantine struct {
	State    string `json:"state"` // none, held, released
	SinceDay int    `json:"since_day"`
}

// Known holds the state of each fact: ok, missing, stale, or off where no source is configured.
type Known struct {
	Age        string `json:"age"`
	Vulns      string `json:"vulns"`
	Malware    string `json:"malware"`
	Licences   string `json:"licences"`
	Popularity string `json:"popularity"`
	Lookalike  string `json:"lookalike"`
	Scorecard  string `json:"scorecard"`
	Retracted  string `json:"retracted"`
	Deprecated string `json:"deprecated"`
	Sumdb      string `json:"sumdb"`
	Origin     string `json:"origin"`
}

// NewFacts is a version of which nothing is known and for which no feed is configured.
func NewFacts(version, kind string, major int) Facts {
	return Facts{
		Version: version, Kind: kind, Major: major,
		Retracted: Flag{State: "unknown"}, Deprecated: Flag{State: "unknown"},
		Sumdb: "pending", OriginDrift: "unknown", Malware: "none", Scorecard: -1,
		Licences: Licences{Status: "unknown"}, Lookalike: Lookalike{Kind: "none"}, Quarantine: Quarantine{State: "none"},
		Known: Known{
			Age: "off", Vulns: "off", Malware: "off", Licences: "off", Popularity: "off", Lookalike: "off",
			Scorecard: "off", Retracted: "off", Deprecated: "off", Sumdb: "off", Origin: "off",
		},
	}
}

// Context is what surrounds the request. Day is the only time that policy has.
type Context struct {
	Day     int             `json:"day"`  // UTC days since 1970-01-01
	Zone    string          `json:"zone"` // corp, ci, vpn, internet; from the listener
	Mode    string          `json:"mode"` // enforce, shadow, whatif
	Profile string          `json:"profile" policy:"release"`
	Waivers map[string]bool `json:"waivers" policy:"release"` // ids from the access decision
}

// words are the closed sets of the input. A word outside them is a mistake of the caller, and no rule knows what to do
// with it, so the question is refused.
var (
	subjectTypes  = []string{"person", "workload", "anonymous"}
	proofs        = []string{"none", "token", "mtls"}
	platforms     = []string{"linux", "darwin", "windows", "other", "unknown"}
	actions       = []string{"list", "latest", "query", "info", "mod", "zip", "sumdb"}
	classes       = []string{"discover", "metadata", "content"}
	resourceTypes = []string{"go-module", "go-toolchain"}
	visibilities  = []string{"private", "public", "unknown"}
	zones         = []string{"corp", "ci", "vpn", "internet"}
	modes         = []string{"enforce", "shadow", "whatif"}
	kinds         = []string{"release", "prerelease", "pseudo", "incompatible", "none"}
	flagStates    = []string{"yes", "no", "unknown"}
	sumdbStates   = []string{"verified", "mismatch", "not_listed", "exempt", "pending"}
	driftStates   = []string{"same", "moved", "unknown"}
	malwareStates = []string{"none", "listed", "suspected"}
	lookalikes    = []string{"none", "org_swap", "edit1", "edit2", "homoglyph"}
	holdStates    = []string{"none", "held", "released"}
	factStates    = []string{"ok", "missing", "stale", "off"}
)

// check refuses an input that the contract does not know.
func (in *Input) check() error {
	if in.Schema != InputSchema {
		return fmt.Errorf("%w: input.schema is %d; want %d", ErrPolicy, in.Schema, InputSchema)
	}
	return firstError(
		oneOf("subject.type", in.Subject.Type, subjectTypes),
		oneOf("device.proof", in.Device.Proof, proofs),
		oneOf("device.platform", in.Device.Platform, platforms),
		oneOf("action.name", in.Action.Name, actions),
		oneOf("action.class", in.Action.Class, classes),
		oneOf("context.zone", in.Context.Zone, zones),
		oneOf("context.mode", in.Context.Mode, modes),
	)
}

func (n *Name) check() error {
	if n.Path == "" || len(n.Prefixes) == 0 || n.Prefixes[len(n.Prefixes)-1] != n.Path {
		return fmt.Errorf("%w: input.resource has path %q, prefixes %q", ErrPolicy, n.Path, n.Prefixes)
	}
	return firstError(
		oneOf("resource.type", n.Type, resourceTypes),
		oneOf("resource.visibility", n.Visibility, visibilities),
	)
}

func (f *Facts) check() error {
	if f.Version == "" {
		return fmt.Errorf("%w: input.resource.version is empty at release", ErrPolicy)
	}
	k := &f.Known
	return firstError(
		oneOf("resource.kind", f.Kind, kinds),
		oneOf("resource.retracted.state", f.Retracted.State, flagStates),
		oneOf("resource.deprecated.state", f.Deprecated.State, flagStates),
		oneOf("resource.sumdb", f.Sumdb, sumdbStates),
		oneOf("resource.origin_drift", f.OriginDrift, driftStates),
		oneOf("resource.malware", f.Malware, malwareStates),
		oneOf("resource.lookalike.kind", f.Lookalike.Kind, lookalikes),
		oneOf("resource.quarantine.state", f.Quarantine.State, holdStates),
		oneOf("resource.facts.age", k.Age, factStates),
		oneOf("resource.facts.vulns", k.Vulns, factStates),
		oneOf("resource.facts.malware", k.Malware, factStates),
		oneOf("resource.facts.licences", k.Licences, factStates),
		oneOf("resource.facts.popularity", k.Popularity, factStates),
		oneOf("resource.facts.lookalike", k.Lookalike, factStates),
		oneOf("resource.facts.scorecard", k.Scorecard, factStates),
		oneOf("resource.facts.retracted", k.Retracted, factStates),
		oneOf("resource.facts.deprecated", k.Deprecated, factStates),
		oneOf("resource.facts.sumdb", k.Sumdb, factStates),
		oneOf("resource.facts.origin", k.Origin, factStates),
	)
}

func oneOf(field, word string, known []string) error {
	for _, k := range known {
		if word == k {
			return nil
		}
	}
	return fmt.Errorf("%w: input.%s is %q; want one of %s", ErrPolicy, field, word, strings.Join(known, ", "))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
