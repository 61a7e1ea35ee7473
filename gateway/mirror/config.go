package mirror

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/headgate/headgate/gateway/mirror/sumdb"
	"github.com/headgate/headgate/gateway/mirror/upstream"
)

// Config is the section "mirror" of the configuration file.
type Config struct {
	// Mode is "cache", which keeps files in the store for ever, or "proxy",
	// which stands in front of a mirror that exists and passes files on once
	// they are verified: nothing of modules is stored. Empty: cache.
	Mode string `yaml:"mode"`
	// Upstreams are GOPROXY servers, https://host/path. They are asked in
	// order, the next one at 404 or 410 only; two joined by | in one entry: the
	// next one at any error. "off" ends the list; alone it makes the mirror an
	// island. Empty: what `go env GOPROXY` names.
	Upstreams []string `yaml:"upstreams"`
	// UpstreamHosts are servers of upstreams that want a credential, or that are
	// trusted by CAs of their own.
	UpstreamHosts []UpstreamHost `yaml:"upstream_hosts"`
	// Offline makes the mirror an island: no upstream and no Git server is asked.
	Offline bool `yaml:"offline"`
	// Sumdb are the public checksum databases that are served, reached through
	// the upstreams; the first one vouches for public files. NAME+HASH+KEY, or
	// a bare name whose key is compiled in. Empty: sum.golang.org.
	Sumdb []string `yaml:"sumdb"`
	// SumdbExempt are patterns (GONOSUMDB syntax) of public modules that are
	// taken in though no checksum database vouches for them. Empty: none.
	SumdbExempt []string `yaml:"sumdb_exempt"`
	// OriginSumdb is the key, NAME+HASH+KEY, of the checksum database that another
	// gateway signs, whose bundles are imported here. It vouches for private
	// modules in them, and is served out of what they bring. Empty: none.
	OriginSumdb string `yaml:"origin_sumdb"`
	// OwnSumdb is the checksum database that the gateway signs itself. It vouches
	// for private modules as well as for public ones.
	OwnSumdb OwnSumdb `yaml:"own_sumdb"`
	// AgeSources tell how old a version is; the earliest day that one of them
	// shows counts. "index" is when it was first proved to exist here, "sumdb" the
	// day by which the first of sumdb had its record, "feed" when index_feed saw
	// it. Empty: age is off, and rules on it do not apply.
	AgeSources []string `yaml:"age_sources"`
	// IndexFeed is the URL of an index of public modules in the form of
	// https://index.golang.org/index, for the age source feed. It is read in the
	// background, for 90 days back at first. Empty: none.
	IndexFeed string `yaml:"index_feed"`
	// FactsWait is how long a list waits for facts that need another upstream
	// request; what is not known then is missing in that answer. 0 is 5 s.
	FactsWait time.Duration `yaml:"facts_wait"`
	// Private are the routes of private modules, which never reach an upstream
	// or a public checksum database. The first one with a pattern that matches counts.
	Private []PrivateRoute `yaml:"private"`
	// GoCommand is the go command that fetches private modules from Git. Empty: the one in PATH.
	GoCommand string `yaml:"go_command"`
	// VCS bounds what private modules take of the disk beside the store.
	VCS VCS `yaml:"vcs"`
	// Public are paths below a private pattern's prefix that are public all the
	// same. An entry without wildcard is that path alone, one with a wildcard a
	// pattern as in private.
	Public []string `yaml:"public"`
	// Store is where module files are, in "public" and "private" below it: a
	// folder, or a bucket: s3://BUCKET, gs://BUCKET, azblob://CONTAINER, with
	// ?prefix=FOLDER and other settings of gocloud.dev/blob (region, endpoint).
	// Credentials are looked for where the cloud's own tools do. Empty: store in the state folder.
	Store string `yaml:"store"`
	// StorePrivate is where the files of private modules are instead, a folder
	// or bucket of their own. Empty: "private" below store.
	StorePrivate string `yaml:"store_private"`
	// RedirectHosts are hosts (or host:port) with private addresses to which an
	// upstream may redirect. Empty: none.
	RedirectHosts []string `yaml:"redirect_hosts"`
	// InsecureHTTP allows http upstreams beyond loopback.
	InsecureHTTP bool `yaml:"insecure_http"`
	// FetchTimeout bounds the whole fetch of one file, tries included; 0 is 10 min.
	FetchTimeout time.Duration `yaml:"fetch_timeout"`
	// ToolchainTimeout is FetchTimeout of golang.org/toolchain; 0 is 30 min.
	ToolchainTimeout time.Duration `yaml:"toolchain_timeout"`
	// MaxFetches is how many cold files are fetched at a time: so many small
	// ones and lists, so many zips, so many of private modules, and an eighth of
	// it toolchains. Callers of one file count as one. 0 is 64.
	MaxFetches int64 `yaml:"max_fetches"`
	// MaxWaiting is how many of each wait for their turn; beyond it the answer
	// is 503 with Retry-After. 0 is 2048.
	MaxWaiting int64 `yaml:"max_waiting"`
	// ReadAhead is how many .mod files are fetched at a time before a client asks
	// for them: those that the go command reads below a go.mod from before Go
	// 1.17. 0 is 16, -1 fetches none ahead.
	ReadAhead int64 `yaml:"read_ahead"`
	// MaxBytes is how much the store may hold; beyond it what was not used for
	// longest is removed, public modules alone. 0 sets no limit.
	MaxBytes int64 `yaml:"max_bytes"`
	// MaxAge is how long a public version stays without being used; 0 sets no limit.
	MaxAge time.Duration `yaml:"max_age"`
	// ScrubInterval is how often all files are read again and held against their
	// hashes, at 16 MiB a second; 0 is never.
	ScrubInterval time.Duration `yaml:"scrub_interval"`
	// MemoryBytes bounds the cache of small files in memory; 0 is 64 MiB.
	MemoryBytes int64 `yaml:"memory_bytes"`
	// CodeHosts are hosts whose modules have at least so many path elements;
	// shorter paths are not asked for. Empty: github.com and golang.org, 3.
	CodeHosts []CodeHost `yaml:"code_hosts"`
}

// UpstreamHost is what a server needs beside its URL in upstreams.
type UpstreamHost struct {
	// Host is HOST or HOST:PORT as in the URL.
	Host string `yaml:"host"`
	// CredentialFile holds USER:PASSWORD, sent as Basic, or a token, sent as
	// Bearer: to this host alone, over https alone. It is read again for each request. Empty: none.
	CredentialFile string `yaml:"credential_file"`
	// CAFile holds the only CAs that the host is trusted by. Empty: the machine's.
	CAFile string `yaml:"ca_file"`
}

// PrivateRoute says which modules are private, and how Git has them.
type PrivateRoute struct {
	// Patterns are globs of path prefixes, as in GOPRIVATE.
	Patterns []string `yaml:"patterns"`
	// Hosts are the only ones that are reached for these modules, HOST or
	// HOST:PORT: those of the paths, and of the repositories that these name.
	// Empty: the modules are private and have no source.
	Hosts []string `yaml:"hosts"`
	// Upstream is a GOPROXY server that has these modules, https://host/path, in
	// place of hosts: an Artifactory or Athens, say. They are asked of it alone,
	// and nothing else is.
	Upstream string `yaml:"upstream"`
	// CredentialFile holds a token or USER:PASSWORD for the hosts or the
	// upstream, as in upstream_hosts; it is read again for each run.
	CredentialFile string `yaml:"credential_file"`
	// TokenCommand is a program with its arguments that prints such a token; it
	// runs at most every 5 min, with PATH alone. Empty, like CredentialFile: no credential.
	TokenCommand []string `yaml:"token_command"`
	// SSHKeyFile is a key for Git over ssh, KnownHostsFile the host keys that
	// are trusted. Empty: https alone.
	SSHKeyFile     string `yaml:"ssh_key_file"`
	KnownHostsFile string `yaml:"known_hosts_file"`
	// CAFile holds the only CAs that the hosts are trusted by. Empty: the machine's.
	CAFile string `yaml:"ca_file"`
	// Proxy is an HTTP CONNECT proxy, http://HOST:PORT, through which the hosts
	// are reached over https. Empty: they are dialled.
	Proxy string `yaml:"proxy"`
	// InsteadOf rewrites the beginning of repository URLs, as Git's
	// url.<base>.insteadOf: "https://git.corp.example/": "ssh://git@git.corp.example/".
	InsteadOf map[string]string `yaml:"instead_of"`
}

// VCS bounds Git's share of the disk.
type VCS struct {
	// CloneBytes bounds all kept clones together: the one that was not used for
	// longest goes first, never one in use. 0 is 20 GiB.
	CloneBytes int64 `yaml:"clone_bytes"`
	// RunBytes bounds what one visit to a repository may need, its clone
	// included; a visit that needs more is ended. 0 is 2 GiB.
	RunBytes int64 `yaml:"run_bytes"`
}

// OwnSumdb names our own checksum database. Its log can neither be renamed nor
// begun again: clients remember it.
type OwnSumdb struct {
	// Name is the name in the key, HOST[/PATH] in lower case. Empty: that of the
	// key file, which is named after the host of gateway.url when it is made.
	Name string `yaml:"name"`
	// KeyFile holds the signer key, made at first start. Empty: keys/sumdb.key in the state folder.
	KeyFile string `yaml:"key_file"`
	// OldKeyFiles hold earlier keys that sign beside it. To change the key, move
	// the key file aside, name it here and start again: the next key is made under
	// the same name, and clients with either key are served. Once all have the new
	// GOSUMDB line and have asked once, take the old one out. Empty: none.
	OldKeyFiles []string `yaml:"old_key_files"`
	// HeadPlaces are stores off this machine, as for mirror.store, that keep the
	// newest signed head. By it a restored backup is known, which would else sign
	// a second history. While one cannot be used, nothing new is signed. Empty:
	// only the file sumdb.head in the state folder.
	HeadPlaces []string `yaml:"head_places"`
}

// CodeHost is a host whose module paths have a least number of elements.
type CodeHost struct {
	// Host is the first element of the path.
	Host string `yaml:"host"`
	// Elements counts path elements, the host included.
	Elements int64 `yaml:"elements"`
}

// Validate reports every mistake; it dials nothing.
func (c Config) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c.validateMode(bad)
	for i, u := range c.Upstreams {
		if _, err := upstream.Parse(u, upstream.ParseOptions{AllowHTTP: c.InsecureHTTP}); err != nil {
			bad("upstreams[%d]: %w%s", i, err, hintFor(err))
		}
	}
	c.validateUpstreamHosts(bad)
	for i, k := range c.Sumdb {
		if _, err := sumdb.CheckKey(k); err != nil {
			bad("sumdb[%d]: %w", i, err)
		}
	}
	for i, p := range c.SumdbExempt {
		checkPattern(bad, fmt.Sprintf("sumdb_exempt[%d]", i), p)
	}
	for i, r := range c.Private {
		if len(r.Patterns) == 0 {
			bad("private[%d].patterns: is empty; want GOPRIVATE patterns such as \"corp.example/*\"", i)
		}
		for j, p := range r.Patterns {
			checkPattern(bad, fmt.Sprintf("private[%d].patterns[%d]", i, j), p)
		}
		if r.Upstream != "" {
			r.validateUpstream(bad, fmt.Sprintf("private[%d]", i), c.InsecureHTTP)
			continue
		}
		r.validate(bad, fmt.Sprintf("private[%d]", i))
	}
	c.validatePublic(bad)
	c.validateStores(bad)
	for _, d := range []struct {
		key string
		v   int64
	}{
		{"fetch_timeout", int64(c.FetchTimeout)},
		{"toolchain_timeout", int64(c.ToolchainTimeout)},
		{"facts_wait", int64(c.FactsWait)},
		{"memory_bytes", c.MemoryBytes},
		{"max_bytes", c.MaxBytes},
		{"max_age", int64(c.MaxAge)},
		{"scrub_interval", int64(c.ScrubInterval)},
		{"vcs.clone_bytes", c.VCS.CloneBytes},
		{"vcs.run_bytes", c.VCS.RunBytes},
		{"max_fetches", c.MaxFetches},
		{"max_waiting", c.MaxWaiting},
	} {
		if d.v < 0 {
			bad("%s: %d is negative; want 0 for the default, or more", d.key, d.v)
		}
	}
	if c.ReadAhead < -1 || c.ReadAhead > maxReadAhead {
		bad("read_ahead: is %d; want 0 for %d, -1 for none, or up to %d", c.ReadAhead, readAhead, maxReadAhead)
	}
	if c.OriginSumdb != "" {
		if _, err := sumdb.CheckKey(c.OriginSumdb); err != nil {
			bad("origin_sumdb: %w", err)
		}
	}
	if c.OwnSumdb.Name != "" {
		if err := sumdb.CheckName(c.OwnSumdb.Name); err != nil {
			bad("own_sumdb.name: %w", err)
		}
	}
	for i, f := range c.OwnSumdb.OldKeyFiles {
		if f == "" || f == c.OwnSumdb.KeyFile {
			bad("own_sumdb.old_key_files[%d]: %q is empty or the key file itself; want the file of an earlier key", i, f)
		}
	}
	for i, p := range c.OwnSumdb.HeadPlaces {
		if p == "" || p == c.Store {
			bad("own_sumdb.head_places[%d]: %q is empty or the module store; want a place that no backup of this machine brings back", i, p)
		}
	}
	c.validateAges(bad)
	for i, h := range c.CodeHosts {
		if h.Host == "" || strings.Contains(h.Host, "/") || h.Elements < 1 {
			bad("code_hosts[%d]: %q with %d elements; want a host and 1 or more", i, h.Host, h.Elements)
		}
	}
	return errs
}

// validateAges wants the feed to be named where it counts, and nowhere else.
func (c Config) validateAges(bad func(string, ...any)) {
	for i, source := range c.AgeSources {
		if source != "index" && source != "sumdb" && source != "feed" {
			bad("age_sources[%d]: %q is no source of ages; want index, sumdb or feed", i, source)
		}
	}
	switch used := slices.Contains(c.AgeSources, "feed"); {
	case used && c.IndexFeed == "":
		bad("index_feed: is empty, and age_sources names feed; want the URL of an index")
	case !used && c.IndexFeed != "":
		bad("index_feed: is of no use; want feed in age_sources, or no feed")
	case used:
		if err := checkFeed(c.IndexFeed, c.InsecureHTTP); err != nil {
			bad("index_feed: %q: %w", c.IndexFeed, err)
		}
	}
}

func hintFor(err error) string {
	if errors.Is(err, upstream.ErrDirect) {
		return "; want GOPROXY servers: public modules never come from version control"
	}
	return ""
}

func checkPattern(bad func(string, ...any), key, pattern string) {
	_, err := path.Match(pattern, "")
	if pattern == "" || strings.ContainsAny(pattern, ", ") || err != nil || strings.HasPrefix(pattern, "/") {
		bad("%s: %q is no pattern; want one glob of path elements such as \"corp.example/*\"", key, pattern)
	}
}

// validatePublic refuses a pattern that would lay private modules open.
func (c Config) validatePublic(bad func(string, ...any)) {
	for i, p := range c.Public {
		checkPattern(bad, fmt.Sprintf("public[%d]", i), p)
		for _, route := range c.Private {
			for _, pattern := range route.Patterns {
				if isPattern(p) && (routes{private: []string{strings.ToLower(p)}}).visibility(pattern) == Private {
					bad("public[%d]: %q covers the private pattern %q; want something narrower", i, p, pattern)
				}
			}
		}
	}
}

// withDefaults sets what is empty, once.
func (c Config) withDefaults() Config {
	if len(c.Sumdb) == 0 {
		c.Sumdb = []string{"sum.golang.org"}
	}
	if c.FetchTimeout == 0 {
		c.FetchTimeout = 10 * time.Minute
	}
	if c.ToolchainTimeout == 0 {
		c.ToolchainTimeout = 30 * time.Minute
	}
	if c.FactsWait == 0 {
		c.FactsWait = 5 * time.Second
	}
	if c.MaxFetches == 0 {
		c.MaxFetches = 64
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 2048
	}
	if c.ReadAhead == 0 {
		c.ReadAhead = readAhead
	}
	if c.MemoryBytes == 0 {
		c.MemoryBytes = 64 << 20
	}
	if len(c.CodeHosts) == 0 {
		c.CodeHosts = []CodeHost{{"github.com", 3}, {"golang.org", 3}}
	}
	return c
}
