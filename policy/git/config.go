package git

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"
)

// What of a candidate must be signed.
const (
	VerifyCommit = "commit" // the commit
	VerifyTag    = "tag"    // the annotated tag
	VerifyBoth   = "both"   // both of them
)

// Config says where a repository of policy is, which of its refs counts, and whose signatures count.
type Config struct {
	// URL is the repository: https://HOST/PATH or ssh://[USER@]HOST[:PORT]/PATH, without a password.
	URL string `yaml:"url"`
	// Branch is the branch whose newest commit is the policy. Empty with Tag set; one of both is wanted.
	Branch string `yaml:"branch"`
	// Tag is a pattern of tag names, such as "policy-v*": the highest version that matches is the policy.
	Tag string `yaml:"tag"`
	// Verify says what must be signed: commit, tag or both. Empty: commit with branch, tag with tag.
	Verify string `yaml:"verify"`
	// AllowedSigners is a file of SSH keys whose signatures count, in the form of ssh-keygen(1), ALLOWED SIGNERS;
	// certificate authorities are not taken. Empty: no SSH signature counts.
	AllowedSigners string `yaml:"allowed_signers_file"`
	// RevokedSigners is a file of SSH keys, or a KRL, whose signatures never count, whatever their date. Empty: none.
	RevokedSigners string `yaml:"revoked_signers_file"`
	// PGPKeys is a file of PGP public keys whose signatures count, armored or binary. Empty: no PGP signature counts.
	PGPKeys string `yaml:"pgp_keys_file"`
	// CredentialFile holds a token or USER:PASSWORD for https. It is read for each visit. Empty: none.
	CredentialFile string `yaml:"credential_file"`
	// SSHKeyFile is the private key for ssh, KnownHostsFile names the host's key. Both are wanted for ssh.
	SSHKeyFile     string `yaml:"ssh_key_file"`
	KnownHostsFile string `yaml:"known_hosts_file"`
	// CAFile is the authority of the https server. Empty: the system's.
	CAFile string `yaml:"ca_file"`
	// Proxy is the http://HOST:PORT through which the https server is reached. Empty: none.
	Proxy string `yaml:"proxy"`
	// Poll is the least time between two looks at the repository; up to as much again is added by chance. Empty: 30s.
	Poll time.Duration `yaml:"poll"`
}

const (
	defaultPoll = 30 * time.Second
	minPoll     = time.Second
	maxPoll     = time.Hour
)

// IsZero tells whether nothing is configured.
func (c Config) IsZero() bool { return c == Config{} }

// Validate reports every mistake in the section. It opens nothing.
func (c Config) Validate() []error {
	errs := c.validAddress()
	switch {
	case (c.Branch == "") == (c.Tag == ""):
		errs = append(errs, errors.New("branch: want either branch or tag"))
	case c.Branch != "" && !validRef(c.Branch):
		errs = append(errs, fmt.Errorf("branch: %q is no name of a branch", c.Branch))
	case c.Tag != "" && (!validRef(strings.NewReplacer("*", "x", "?", "x").Replace(c.Tag)) || badPattern(c.Tag)):
		errs = append(errs, fmt.Errorf("tag: %q is no pattern of tag names; want for example \"policy-v*\"", c.Tag))
	}
	switch {
	case c.Verify != "" && c.Verify != VerifyCommit && c.Verify != VerifyTag && c.Verify != VerifyBoth:
		errs = append(errs, fmt.Errorf("verify: %q is unknown; want commit, tag or both", c.Verify))
	case c.Branch != "" && (c.Verify == VerifyTag || c.Verify == VerifyBoth):
		errs = append(errs, fmt.Errorf("verify: %s goes with tag, not with branch", c.Verify))
	}
	if c.AllowedSigners == "" && c.PGPKeys == "" {
		errs = append(errs, errors.New("allowed_signers_file: want it or pgp_keys_file: a policy without a signature is never taken"))
	}
	if c.RevokedSigners != "" && c.AllowedSigners == "" {
		errs = append(errs, errors.New("revoked_signers_file: goes with allowed_signers_file"))
	}
	if c.Poll != 0 && (c.Poll < minPoll || c.Poll > maxPoll) {
		errs = append(errs, fmt.Errorf("poll: %v is out of range; want %v to %v", c.Poll, minPoll, maxPoll))
	}
	return errs
}

func (c Config) validAddress() []error {
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") == "" || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && u.Scheme != "ssh" || strings.ContainsFunc(c.URL, func(r rune) bool { return r <= ' ' || r >= 0x7f }) ||
		strings.HasPrefix(u.Hostname(), "-") || strings.HasPrefix(u.User.Username(), "-") {
		return []error{errors.New("url: is no address of a repository; want https://HOST/PATH or ssh://USER@HOST/PATH")}
	}
	var errs []error
	if _, secret := u.User.Password(); secret || u.User != nil && u.Scheme == "https" {
		errs = append(errs, errors.New("url: holds a credential; want it in credential_file"))
	}
	if u.Scheme == "ssh" && (c.SSHKeyFile == "" || c.KnownHostsFile == "") {
		errs = append(errs, errors.New("ssh_key_file: want it and known_hosts_file with an ssh URL"))
	}
	if u.Scheme == "ssh" && (c.CredentialFile != "" || c.CAFile != "" || c.Proxy != "") {
		errs = append(errs, errors.New("url: credential_file, ca_file and proxy go with https"))
	}
	if u.Scheme == "https" && (c.SSHKeyFile != "" || c.KnownHostsFile != "") {
		errs = append(errs, errors.New("url: ssh_key_file and known_hosts_file go with ssh"))
	}
	if p, err := url.Parse(c.Proxy); c.Proxy != "" && (err != nil || p.Scheme != "http" || p.Host == "" || p.User != nil) {
		errs = append(errs, errors.New("proxy: want http://HOST:PORT"))
	}
	return errs
}

// validRef holds a name to what git-check-ref-format(1) allows, and to printable ASCII.
func validRef(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || element[0] == '.' || strings.HasSuffix(element, ".lock") || strings.HasSuffix(element, ".") {
			return false
		}
	}
	return name[0] != '-' && name != "@" && !strings.Contains(name, "..") && !strings.Contains(name, "@{") &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("~^:?*[\\", r) })
}

func badPattern(pattern string) bool {
	_, err := path.Match(pattern, "")
	return err != nil || strings.ContainsAny(pattern, "[\\")
}

// withDefaults is the section with its empty keys filled in.
func (c Config) withDefaults() Config {
	if c.Verify == "" {
		c.Verify = VerifyCommit
		if c.Tag != "" {
			c.Verify = VerifyTag
		}
	}
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	return c
}
