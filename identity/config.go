package identity

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Config is the identity section of the configuration file.
type Config struct {
	// Database is the SQLite file, or a file that holds the URL of a PostgreSQL
	// database (a fleet has one); empty: headgate.db in the state folder. The
	// program opens it and passes it on as Options.DB.
	Database string `yaml:"database"`
	// PepperFile holds the keys under which token secrets are stored, one line
	// "VERSION BASE64" each, the last one current; empty: made at the first start.
	// A token moves to the current one when it is used; an older line can go when
	// the metric headgate_tokens counts no token for it.
	PepperFile string `yaml:"pepper_file"`
	// Issuers are the OpenID providers whose tokens are accepted; empty: none.
	Issuers []Issuer `yaml:"issuers"`
	// Ceilings lower the longest life of tokens, of those that exist as well.
	Ceilings Ceilings `yaml:"ceilings"`
	// Devices says which machines may prove themselves, and how; empty: none.
	Devices Devices `yaml:"devices"`
	// Notices says who is told before a token ends; empty: nobody.
	Notices Notices `yaml:"notices"`
}

// An Issuer is one OpenID provider.
type Issuer struct {
	// Name is a short name for logs and metrics.
	Name string `yaml:"name"`
	// URL is the issuer exactly as it stands in the iss claim, over https; the
	// discovery document is looked for below it.
	URL string `yaml:"url"`
	// Type says whose tokens these are: person (default) or workload.
	Type string `yaml:"type"`
	// Provider says what runs the jobs of an issuer of type workload, and so what its
	// claims mean: github, gitlab or kubernetes; empty: only the claims named below count.
	Provider string `yaml:"provider"`
	// ProviderName is what policy calls the provider in `jobs`, as in "github:482913".
	// Two issuers of one provider need two names, since both count their ids from 1;
	// empty: as Provider.
	ProviderName string `yaml:"provider_name"`
	// TrustPullRequests says that jobs of pull requests are no jobs of forks. GitHub does
	// not tell them apart, but gives a fork's job no token unless its owner wants so;
	// false: they are forks' jobs, and policy gives those public modules only.
	TrustPullRequests bool `yaml:"trust_pull_requests"`
	// ClientID is this gateway's client at the issuer. A token whose azp claim names
	// another client is refused (OpenID Connect Core 1.0, 3.1.3.7), and people can sign in
	// with a browser; empty: azp is not looked at, and they cannot.
	ClientID string `yaml:"client_id"`
	// ClientSecretFile holds the secret of that client, in one line; empty: the client is
	// a public one, which PKCE protects.
	ClientSecretFile string `yaml:"client_secret_file"`
	// Scopes are asked for at sign-in; empty: openid, profile, email, and offline_access
	// where the issuer offers it, without which a sign-in ends with its access token.
	Scopes []string `yaml:"scopes"`
	// Audiences are the values of aud that are meant for this gateway. At least
	// one; a token that names any other audience beside them is refused.
	Audiences []string `yaml:"audiences"`
	// Algorithms are the accepted signatures, asymmetric ones only; empty: RS256
	// and ES256.
	Algorithms []string `yaml:"algorithms"`
	// GroupsClaim names the claim that holds the groups, a list of strings or one
	// string; empty: no groups.
	GroupsClaim string `yaml:"groups_claim"`
	// TeamClaim names the claim that holds the primary team, a string; empty: none.
	TeamClaim string `yaml:"team_claim"`
	// Labels maps a label of the subject to the claim that it comes from.
	Labels map[string]string `yaml:"labels"`
	// CAFile holds the CA certificates (PEM) of the issuer's server, which then
	// are the only trusted ones; empty: the roots of the system.
	CAFile string `yaml:"ca_file"`
}

// Ceilings are the longest lives of tokens by class. Zero is the built-in
// ceiling, which can be lowered but not raised.
type Ceilings struct {
	// Person: tokens of people that are bound to no device; 720h.
	Person time.Duration `yaml:"person"`
	// Device: tokens of people that are bound to a device; 2160h.
	Device time.Duration `yaml:"device"`
	// Agent: tokens that an agent or a GOAUTH helper got on a device; 1h.
	Agent time.Duration `yaml:"agent"`
	// CI: static tokens of jobs; 2160h.
	CI time.Duration `yaml:"ci"`
	// Job: tokens that a job got for its own token; 1h.
	Job time.Duration `yaml:"job"`
	// Admin: administrators' tokens; 8h.
	Admin time.Duration `yaml:"admin"`
}

// algorithms are the signatures that an issuer may use: none of them is
// symmetric, so a public key can never be taken for a shared secret.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Validate reports every mistake of the section, each beginning with its key.
// It touches neither network nor disk.
func (c Config) Validate() []error {
	var errs []error
	names, urls, providers := map[string]int{}, map[string]int{}, map[string]int{}
	for n, i := range c.Issuers {
		at := fmt.Sprintf("issuers[%d]", n)
		for _, err := range i.validate() {
			errs = append(errs, fmt.Errorf("%s.%w", at, err))
		}
		if first, ok := names[i.Name]; ok && i.Name != "" {
			errs = append(errs, fmt.Errorf("%s.name: %q is the name of issuers[%d] too", at, i.Name, first))
		}
		if first, ok := urls[i.URL]; ok && i.URL != "" {
			errs = append(errs, fmt.Errorf("%s.url: %q is the url of issuers[%d] too", at, i.URL, first))
		}
		provider := cmp.Or(i.ProviderName, i.Provider)
		if first, ok := providers[provider]; ok && provider != "" {
			errs = append(errs, fmt.Errorf("%s.provider_name: policy knows issuers[%d] as %q too; want another name", at, first, provider))
		}
		names[i.Name], urls[i.URL], providers[provider] = n, n, n
	}
	return slices.Concat(errs, c.Ceilings.validate(), c.Devices.validate(), c.Notices.validate())
}

func (i Issuer) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if i.Name == "" {
		bad("name: empty; want a short name such as \"corp\"")
	}
	if u, err := url.Parse(i.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		bad("url: %q is no issuer; want https://host[/path], exactly as in the iss claim", i.URL)
	}
	if i.Type != "" && i.Type != Person && i.Type != Workload {
		bad("type: %q is unknown; want %s or %s", i.Type, Person, Workload)
	}
	if len(i.Audiences) == 0 || slices.Contains(i.Audiences, "") {
		bad("audiences: %q; want the value of aud that is meant for this gateway, at least one, none empty", i.Audiences)
	}
	errs = append(errs, i.validateProvider()...)
	if i.ClientSecretFile != "" && i.ClientID == "" {
		bad("client_secret_file: there is no client_id that it is the secret of")
	}
	if len(i.Scopes) > 0 && !slices.Contains(i.Scopes, "openid") {
		bad("scopes: %q; want \"openid\" among them, or none for the defaults", i.Scopes)
	}
	for n, a := range i.Algorithms {
		if !slices.Contains(algorithms, a) {
			bad("algorithms[%d]: %q is not accepted; want one of %s", n, a, strings.Join(algorithms, " "))
		}
	}
	return errs
}

func (i Issuer) validateProvider() []error {
	switch {
	case i.Provider == "" && (i.ProviderName != "" || i.TrustPullRequests):
		return []error{errors.New("provider: empty; provider_name and trust_pull_requests say something of one")}
	case i.Provider == "":
		return nil
	case presets[i.Provider] == nil:
		return []error{fmt.Errorf("provider: %q is unknown; want github, gitlab or kubernetes", i.Provider)}
	case i.Type != Workload:
		return []error{fmt.Errorf("type: %q; a provider of jobs is of type %s", i.Type, Workload)}
	case i.TrustPullRequests && i.Provider != "github":
		return []error{fmt.Errorf("trust_pull_requests: %s tells by itself what comes from a fork", i.Provider)}
	case strings.ContainsAny(i.ProviderName, ": "):
		return []error{fmt.Errorf("provider_name: %q; want a word without colon", i.ProviderName)}
	}
	return nil
}

func (c Ceilings) validate() []error {
	var errs []error
	for _, x := range []struct {
		key       string
		have, max time.Duration
	}{
		{"person", c.Person, lives[kindPerson].ceiling},
		{"device", c.Device, lives[kindBound].ceiling},
		{"agent", c.Agent, lives[kindAgent].ceiling},
		{"ci", c.CI, lives[kindCI].ceiling},
		{"job", c.Job, lives[kindJob].ceiling},
		{"admin", c.Admin, lives[kindAdmin].ceiling},
	} {
		if x.have < 0 || x.have > x.max {
			errs = append(errs, fmt.Errorf("ceilings.%s: %s is out of range; want at most %s, 0 for that", x.key, x.have, x.max))
		}
	}
	return errs
}

func (c *Config) setDefaults() {
	c.Devices.setDefaults()
	c.Notices.setDefaults()
	c.Issuers = slices.Clone(c.Issuers)
	for n := range c.Issuers {
		i := &c.Issuers[n]
		if i.Type == "" {
			i.Type = Person
		}
		if len(i.Algorithms) == 0 {
			i.Algorithms = []string{"RS256", "ES256"}
		}
	}
}
