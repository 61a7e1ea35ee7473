package sinks

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Config is one sink.
type Config struct {
	// Name is the sink's name: in metrics, in its cursor's file and in control records. Lower-case letters, digits and dashes.
	Name string `yaml:"name"`
	// Type is where records go: file, stdout, syslog, splunk, elasticsearch, otlp, objects.
	Type string `yaml:"type"`
	// Schema is how a record is written: ocsf, ecs, cef, or native, the record as it stands in the log. Empty: ocsf.
	Schema string `yaml:"schema"`
	// Path is the file, for type file.
	Path string `yaml:"path"`
	// RotateBytes is the size at which the file is renamed to PATH.1 and begun anew. 0: 100 MiB.
	RotateBytes int64 `yaml:"rotate_bytes"`
	// Keep is how many renamed files stay. 0: 10.
	Keep int `yaml:"keep"`
	// Location is the folder or bucket, for type objects: a path, or s3://BUCKET?prefix=FOLDER&region=…, gs:// or azblob://. A
	// batch is one object, dt=DATE/hour=HOUR/ORIGIN-FROM-TO-HASH.jsonl.zst, which is never changed.
	Location string `yaml:"location"`
	// Address is host:port of the syslog server, for type syslog. It speaks TLS.
	Address string `yaml:"address"`
	// MessageBytes bounds a syslog message; a longer record is a dead letter. 0: 8192.
	MessageBytes int `yaml:"message_bytes"`
	// URL is the receiver's base URL, for types splunk, elasticsearch and otlp, such as https://splunk.corp.example:8088.
	URL string `yaml:"url"`
	// Index is the Splunk index (empty: the token's own) or the Elasticsearch data stream.
	Index string `yaml:"index"`
	// TokenFile is a file with what stands in the Authorization header after its scheme: the HEC token, the Elasticsearch API key, the
	// bearer token of an OTLP receiver. It is read again for each request. Empty: none, not for splunk.
	TokenFile string `yaml:"token_file"`
	// NoAck sends to a Splunk that does not acknowledge: an answer of 200 only says that the event parses, so the sink is best effort.
	NoAck bool `yaml:"no_ack"`
	// Timeout bounds one request or write. 0: 30s.
	Timeout time.Duration `yaml:"timeout"`
	// RetryCap is the longest wait that a receiver's Retry-After may ask for. 0: 10m.
	RetryCap time.Duration `yaml:"retry_cap"`
	// OnOverflow is what happens to records past their retention that this sink has not delivered, when their volume gets full: keep
	// holds on to them until the gateway stops answering, gap gives them up and says in the log which they were. Empty: keep.
	OnOverflow string `yaml:"on_overflow"`
	// TLS is for types that go over the network.
	TLS TLS `yaml:"tls"`
}

// TLS is how a sink knows its receiver, and shows itself.
type TLS struct {
	// CAFile holds the only authorities that are trusted, PEM. Empty: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are a client certificate, PEM. Empty: none.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

const (
	typeFile    = "file"
	typeStdout  = "stdout"
	typeSyslog  = "syslog"
	typeSplunk  = "splunk"
	typeElastic = "elasticsearch"
	typeOTLP    = "otlp"
	typeObjects = "objects"
)

// What Config.OnOverflow may say.
const (
	OverflowKeep = "keep"
	OverflowGap  = "gap"
)

var (
	types = []string{typeFile, typeStdout, typeSyslog, typeSplunk, typeElastic, typeOTLP, typeObjects}

	goodName  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	goodIndex = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,199}$`)
)

// Validate reports every mistake in a list of sinks.
func Validate(configs []Config) []error {
	var errs []error
	seen := map[string]bool{}
	for i, c := range configs {
		for _, err := range c.mistakes() {
			errs = append(errs, fmt.Errorf("sinks[%d].%w", i, err))
		}
		if seen[c.Name] {
			errs = append(errs, fmt.Errorf("sinks[%d].name: %q is the name of another sink, too; each has a cursor of its own", i, c.Name))
		}
		seen[c.Name] = true
	}
	return errs
}

func (c Config) mistakes() []error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(!goodName.MatchString(c.Name), "name: %q; want lower-case letters, digits and dashes", c.Name)
	if !slices.Contains(types, c.Type) {
		return append(errs, fmt.Errorf("type: %q is not known; want one of %s", c.Type, strings.Join(types, ", ")))
	}
	for _, f := range c.fields() {
		allowed := slices.Contains(f.types, c.Type)
		bad(f.set && !allowed, "%s: a sink of type %s has none", f.key, c.Type)
		bad(!f.set && allowed && f.needed, "%s: it is missing; a sink of type %s needs one", f.key, c.Type)
	}
	bad(!slices.Contains([]string{"", OverflowKeep, OverflowGap}, c.OnOverflow), "on_overflow: %q is not known; want keep or gap", c.OnOverflow)
	bad(c.RotateBytes < 0, "rotate_bytes: %d is negative", c.RotateBytes)
	bad(c.Keep < 0, "keep: %d is negative", c.Keep)
	bad(c.MessageBytes != 0 && (c.MessageBytes < 480 || c.MessageBytes > 64<<10), "message_bytes: %d is out of range; want 480 to 65536", c.MessageBytes)
	bad(c.Timeout < 0, "timeout: %s is negative", c.Timeout)
	bad(c.RetryCap < 0, "retry_cap: %s is negative", c.RetryCap)
	bad((c.TLS.CertFile == "") != (c.TLS.KeyFile == ""), "tls: cert_file and key_file go together")
	if c.Address != "" {
		host, port, err := net.SplitHostPort(c.Address)
		bad(err != nil || host == "" || port == "", "address: %q; want host:port, usually port 6514", c.Address)
	}
	if c.URL != "" {
		bad(!goodURL(c.URL), "url: want https://host[:port], or http:// for a receiver on this machine, without user, query and fragment")
	}
	bad(c.Type == typeElastic && c.Index != "" && !goodIndex.MatchString(c.Index), "index: %q is no name of a data stream", c.Index)
	return errs
}

// A field says for which types a key is.
type field struct {
	key    string
	set    bool
	needed bool
	types  []string
}

func (c Config) fields() []field {
	web := []string{typeSplunk, typeElastic, typeOTLP}
	return []field{
		{"path", c.Path != "", true, []string{typeFile}},
		{"rotate_bytes", c.RotateBytes != 0, false, []string{typeFile}},
		{"keep", c.Keep != 0, false, []string{typeFile}},
		{"location", c.Location != "", true, []string{typeObjects}},
		{"address", c.Address != "", true, []string{typeSyslog}},
		{"message_bytes", c.MessageBytes != 0, false, []string{typeSyslog}},
		{"url", c.URL != "", true, web},
		{"index", c.Index != "", c.Type == typeElastic, []string{typeSplunk, typeElastic, typeOTLP, typeObjects}},
		{"token_file", c.TokenFile != "", c.Type == typeSplunk, web},
		{"no_ack", c.NoAck, false, []string{typeSplunk}},
		{"retry_cap", c.RetryCap != 0, false, web},
		{"tls", c.TLS != TLS{}, false, append([]string{typeSyslog}, web...)},
	}
}

// goodURL accepts plaintext to this machine alone: records name people and addresses.
func goodURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip.IsLoopback())
}

func (c Config) withDefaults() Config {
	if c.RotateBytes == 0 {
		c.RotateBytes = 100 << 20
	}
	if c.Keep == 0 {
		c.Keep = 10
	}
	if c.MessageBytes == 0 {
		c.MessageBytes = 8 << 10
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.RetryCap == 0 {
		c.RetryCap = 10 * time.Minute
	}
	return c
}
