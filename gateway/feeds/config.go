package feeds

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Config is the section "feeds" of the configuration file. A fact whose feed is not named is off, and rules on it do not apply.
type Config struct {
	// Vulns is a Go vulnerability database in its published layout (https://go.dev/doc/security/vuln/database): a folder, a
	// .zip file of one, or the https URL of either. It is fetched whole, so that no module's name leaves. Empty: vulns is off.
	Vulns string `yaml:"vulns"`
	// Unscored is the severity of a vulnerability whose record carries none, as those of the Go project: low, medium, high
	// or critical. Empty: high, of which the default policy denies what has a fix, since nobody has said that it is harmless.
	Unscored string `yaml:"unscored"`
	// Malware is a collection of OSV records (https://ossf.github.io/osv-schema/) of modules that are malware: a folder, a
	// .zip file of one, or the https URL of a .zip. Empty: malware is off.
	Malware string `yaml:"malware"`
	// Popularity is a CSV file with the columns module and importers, or its https URL. Names that can be mistaken for
	// those with at least 100 importers are look-alikes. Empty: popularity and lookalike are off.
	Popularity string `yaml:"popularity"`
	// Scorecard is a CSV file with the columns module and score (0 to 10), or its https URL. Empty: scorecard is off.
	Scorecard string `yaml:"scorecard"`
	// Refresh is how often each feed is read again; 0 is 1h.
	Refresh time.Duration `yaml:"refresh"`
	// MaxAge is how long a feed that cannot be read still counts; then its facts are stale. 0 is 72h.
	MaxAge time.Duration `yaml:"max_age"`
	// CAFile holds the only CAs that the feeds' servers are trusted by. Empty: the machine's.
	CAFile string `yaml:"ca_file"`
}

// Validate reports every mistake; it dials nothing.
func (c Config) Validate() []error {
	var errs []error
	for _, f := range []struct{ key, where string }{
		{"vulns", c.Vulns}, {"malware", c.Malware}, {"popularity", c.Popularity}, {"scorecard", c.Scorecard},
	} {
		if !remote(f.where) {
			continue
		}
		u, err := url.Parse(f.where)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
			errs = append(errs, fmt.Errorf("%s: %q is no URL of a feed; want https://HOST/PATH", f.key, redacted(f.where)))
		case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
			errs = append(errs, fmt.Errorf("%s: %q is not https; what it says decides over modules", f.key, f.where))
		case f.key == "malware" && !strings.HasSuffix(u.Path, ".zip"):
			errs = append(errs, fmt.Errorf("malware: %q is no .zip; want the URL of a .zip file of OSV records, or a folder", f.where))
		}
	}
	if c.Unscored != "" && severities[c.Unscored] == 0 {
		errs = append(errs, fmt.Errorf("unscored: %q is no severity; want low, medium, high or critical", c.Unscored))
	}
	if c.Refresh < 0 || c.Refresh > 0 && c.Refresh < time.Second {
		errs = append(errs, fmt.Errorf("refresh: %v is too short; want 0 for 1h, or at least 1s", c.Refresh))
	}
	if c.MaxAge < 0 || c.MaxAge > 0 && c.MaxAge < c.Refresh {
		errs = append(errs, fmt.Errorf("max_age: %v is below refresh; want 0 for 72h, or more than refresh", c.MaxAge))
	}
	return errs
}

// withDefaults sets what is empty, once.
func (c Config) withDefaults() Config {
	if c.Unscored == "" {
		c.Unscored = "high"
	}
	if c.Refresh == 0 {
		c.Refresh = time.Hour
	}
	if c.MaxAge == 0 {
		c.MaxAge = max(72*time.Hour, c.Refresh)
	}
	return c
}

// Off names the facts that no feed gives, sorted.
func (c Config) Off() []string {
	var off []string
	for _, f := range []struct{ where, fact string }{
		{c.Popularity, "lookalike"}, {c.Malware, "malware"}, {c.Popularity, "popularity"}, {c.Scorecard, "scorecard"}, {c.Vulns, "vulns"},
	} {
		if f.where == "" {
			off = append(off, f.fact)
		}
	}
	return off
}

func remote(where string) bool { return strings.Contains(where, "://") }

func loopback(host string) bool { return host == "localhost" || net.ParseIP(host).IsLoopback() }

// redacted is a URL without what may be a secret in it.
func redacted(where string) string {
	if u, err := url.Parse(where); err == nil {
		return u.Redacted()
	}
	return "(not a URL)"
}
