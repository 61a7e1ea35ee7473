package git

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	good := Config{URL: "https://git.corp.example/policy.git", Branch: "main", AllowedSigners: "signers"}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string // "" is no mistake
	}{
		"https and a branch": {func(*Config) {}, ""},
		"ssh and a tag": {func(c *Config) {
			*c = Config{URL: "ssh://git@h/p", Tag: "v*", PGPKeys: "k", SSHKeyFile: "k", KnownHostsFile: "h"}
		}, ""},
		"no URL":                   {func(c *Config) { c.URL = "" }, "url: is no address"},
		"file URL":                 {func(c *Config) { c.URL = "file:///srv/policy.git" }, "url: is no address"},
		"ext transport":            {func(c *Config) { c.URL = "ext::sh -c x" }, "url: is no address"},
		"scp form":                 {func(c *Config) { c.URL = "git@h:p" }, "url: is no address"},
		"host like an option":      {func(c *Config) { c.URL = "ssh://-oProxyCommand=x/p" }, "url: is no address"},
		"line break":               {func(c *Config) { c.URL = "https://h/p\nx" }, "url: is no address"},
		"P26 password in the URL":  {func(c *Config) { c.URL = "https://bot:secret@h/p" }, "url: holds a credential"},
		"P26 token in the URL":     {func(c *Config) { c.URL = "https://token@h/p" }, "url: holds a credential"},
		"neither branch nor tag":   {func(c *Config) { c.Branch = "" }, "branch: want either"},
		"branch and tag":           {func(c *Config) { c.Tag = "v*" }, "branch: want either"},
		"branch like an option":    {func(c *Config) { c.Branch = "--upload-pack=x" }, "branch: "},
		"branch with a refspec":    {func(c *Config) { c.Branch = "a:b" }, "branch: "},
		"branch that climbs":       {func(c *Config) { c.Branch = "a/../b" }, "branch: "},
		"tag with a class":         {func(c *Config) { c.Branch, c.Tag = "", "v[0-9]" }, "tag: "},
		"unknown verify":           {func(c *Config) { c.Verify = "none" }, "verify: \"none\" is unknown"},
		"tag verified on a branch": {func(c *Config) { c.Verify = VerifyTag }, "verify: tag goes with tag"},
		"P19 no signers":           {func(c *Config) { c.AllowedSigners = "" }, "allowed_signers_file: want it"},
		"revoked without allowed":  {func(c *Config) { c.AllowedSigners, c.PGPKeys, c.RevokedSigners = "", "k", "r" }, "revoked_signers_file: goes"},
		"ssh without a key":        {func(c *Config) { c.URL = "ssh://git@h/p" }, "ssh_key_file: want it"},
		"ssh with a password":      {func(c *Config) { c.URL = "ssh://git:x@h/p"; c.SSHKeyFile, c.KnownHostsFile = "k", "h" }, "url: holds a credential"},
		"https with an ssh key":    {func(c *Config) { c.SSHKeyFile = "k" }, "url: ssh_key_file"},
		"proxy with a password":    {func(c *Config) { c.Proxy = "http://u:p@h:1" }, "proxy: want"},
		"poll too often":           {func(c *Config) { c.Poll = time.Millisecond }, "poll: 1ms is out of range"},
		"credential file for ssh": {func(c *Config) {
			*c = Config{URL: "ssh://git@h/p", Tag: "v*", PGPKeys: "k", SSHKeyFile: "k", KnownHostsFile: "h", CAFile: "c"}
		}, "url: credential_file, ca_file"},
		"branch that ends in .lock":  {func(c *Config) { c.Branch = "main.lock" }, "branch: "},
		"tag pattern that is a path": {func(c *Config) { c.Branch, c.Tag = "", "release/*/v?" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			tt.change(&c)
			errs := c.Validate()
			if tt.want == "" && len(errs) > 0 || tt.want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want)) {
				t.Errorf("Validate() of %+v = %v, want %q", c, errs, tt.want)
			}
			for _, err := range errs {
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("Validate() shows the password: %v", err)
				}
			}
		})
	}
}

func TestVersionOf(t *testing.T) {
	for ref, want := range map[string]string{
		"refs/tags/policy-v1.10.0": "v1.10.0", "refs/tags/v2": "v2", "refs/tags/release/1.4": "v1.4",
		"refs/tags/policy-2027.01.20-1": "", "refs/tags/next": "", "refs/tags/v1.2.3-rc.1": "v1.2.3-rc.1", "refs/tags/7": "v7",
	} {
		if got := versionOf(ref); got != want {
			t.Errorf("versionOf(%s) = %s, want %s", ref, got, want)
		}
	}
}

func TestSigners(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGwmGSb7nqtNEWWoAbwVb5ZuOHwUiwCAkkjoQHkFOaxB"
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"plain":                 {"a@b " + key + " comment\n# remark\n\n", ""},
		"options with blanks":   {`a@b namespaces="git,x y" ` + key + "\n", ""},
		"empty":                 {"# nobody\n", "holds no key"},
		"no key":                {"a@b ssh-ed25519\n", "line 1: holds no key"},
		"key that is no base64": {"a@b ssh-ed25519 !!!\n", "line 1: holds no key"},
		"authority":             {"*@b cert-authority " + key + "\n", "line 1: names a certificate authority"},
		"authority after more":  {"a@b " + key + "\n*@b namespaces=\"git\",CERT-AUTHORITY " + key + "\n", "line 2: names a certificate authority"},
	} {
		t.Run(name, func(t *testing.T) {
			prints, err := fingerprints([]byte(tt.text))
			if tt.want == "" && (err != nil || len(prints) != 1) || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("fingerprints(%q) = %v, %v, want %q", tt.text, prints, err, tt.want)
			}
		})
	}
}

func TestDearmorRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":        "",
		"text":         "hello",
		"private key":  "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nAAAA\n-----END PGP PRIVATE KEY BLOCK-----\n",
		"no end":       "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n",
		"no blank":     "-----BEGIN PGP PUBLIC KEY BLOCK-----\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n",
		"not base64":   "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!!\n-----END PGP PUBLIC KEY BLOCK-----\n",
		"a signature":  "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n",
		"private last": "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n-----END PGP PUBLIC KEY BLOCK-----\n-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
	} {
		if keys, err := dearmor([]byte(text)); err == nil {
			t.Errorf("%s: dearmor() = %x, want an error", name, keys)
		}
	}
}

// FuzzTree: whatever git prints, only plain files with names that stay where they are come out, and the blobs of a
// listing are read back as they were written.
func FuzzTree(f *testing.F) {
	const id = "1234567890123456789012345678901234567890"
	f.Add("100644 blob "+id+"       3\ta.rego\x00", "abc")
	f.Add("120000 blob "+id+"       3\ta\x00", "abc")
	f.Add("100644 blob "+id+"       3\t../a\x00100755 blob "+id+" 0\tb\x00", "")
	f.Fuzz(func(t *testing.T, listing, content string) {
		entries, err := parseTree(listing)
		if err != nil {
			return
		}
		var blobs strings.Builder
		for i := range entries {
			e := &entries[i]
			if !fs.ValidPath(e.path) || strings.Contains("/"+e.path, "/.") || e.size > maxBlob {
				t.Errorf("parseTree(%q) lets %+v pass", listing, e)
			}
			e.size = min(len(content), maxBlob)
			fmt.Fprintf(&blobs, "%s blob %d\n%s\n", e.id, e.size, content[:e.size])
		}
		files, err := cutBlobs(entries, []byte(blobs.String()))
		if strings.HasPrefix(content, lfs) {
			return
		}
		if err != nil {
			t.Fatalf("cutBlobs() = %v", err)
		}
		for _, e := range entries {
			if string(files[e.path].Data) != content[:e.size] {
				t.Errorf("%s = %q, want %q", e.path, files[e.path].Data, content)
			}
		}
	})
}

// FuzzSignatureFormat: no commit passes with more than one signature in its header, however it is written.
func FuzzSignatureFormat(f *testing.F) {
	f.Add("tree x\ngpgsig -----BEGIN SSH SIGNATURE-----\n x\n -----END SSH SIGNATURE-----\n\nbody")
	f.Add("tree x\ngpgsig -----BEGIN SSH SIGNATURE-----\n -----BEGIN PGP SIGNATURE-----\n\nbody")
	f.Fuzz(func(t *testing.T, object string) {
		format, err := signatureFormat("commit", object)
		head, _, _ := strings.Cut(object, "\n\n")
		if err == nil && (strings.Count(head, "-----BEGIN "+format) != 1 || strings.Count(head, "gpgsig") < 1) {
			t.Errorf("signatureFormat(%q) = %s", object, format)
		}
	})
}
