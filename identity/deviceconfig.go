package identity

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Devices is the devices section: which machines may ask, and how they prove themselves.
type Devices struct {
	// Listen is the address on which clients must present a certificate, HOST:PORT; empty: there is no such listener.
	Listen string `yaml:"listen"`
	// CA is a PEM file, or a folder of them, with the only certificate authorities whose devices are accepted: one
	// pool, of the issuer "devices". With crl it requires a CRL. Empty: pools says it.
	CA string `yaml:"ca"`
	// Pools are the authorities where there are several; each is judged for itself, in this order.
	Pools []Pool `yaml:"pools"`
	// CRL are files of certificate revocation lists, PEM or DER, of any issuer above; read again when they change.
	CRL []string `yaml:"crl"`
	// ID is what stands before the device's id in the one URI name of its certificate, as spiffe://corp.example/device/
	// or urn:corp:device: does.
	ID string `yaml:"id"`
	// Inventory knows which devices are enrolled, and whose they are; empty: only those that were enrolled here.
	Inventory Feed `yaml:"inventory"`
	// Posture are further feeds, of facts alone.
	Posture []Feed `yaml:"posture"`
	// Require names the facts without which a device is not trusted.
	Require []string `yaml:"require"`
	// OwnerLabel names the label of the subject that an inventory's owner is compared with; empty: the subject's id.
	OwnerLabel string `yaml:"owner_label"`
	// Enrolment signs certificates for devices here; empty: another authority does.
	Enrolment Enrolment `yaml:"enrolment"`
	// Balancer accepts certificates that a balancer forwards; empty: none.
	Balancer Balancer `yaml:"balancer"`
	// RejectInHandshake refuses a bad certificate with a TLS alert instead of an answer that says why.
	RejectInHandshake bool `yaml:"reject_in_handshake"`
	// ConnectionAge is how long a connection lives that proved a device; 10m if empty.
	ConnectionAge time.Duration `yaml:"connection_age"`
}

// A Pool is one set of authorities that are trusted alike.
type Pool struct {
	// Issuer is a short name of whoever signs, for metrics and logs.
	Issuer string `yaml:"issuer"`
	// CA is a PEM file or a folder of them. An intermediate in it is trusted as a root is.
	CA string `yaml:"ca"`
	// ID is devices.id for this pool; empty: that.
	ID string `yaml:"id"`
	// RequiresCRL refuses every device of an authority that has no valid CRL here.
	RequiresCRL bool `yaml:"requires_crl"`
	// Depth is how many authorities may stand above a device's certificate, the trusted one included; 1 if empty.
	Depth int `yaml:"depth"`
	// AcceptAnyUsage accepts certificates that are made for any use, not for clients by name.
	AcceptAnyUsage bool `yaml:"accept_any_usage"`
}

// A Feed is a list of devices from elsewhere, CSV, JSON or YAML by the ending of its name.
type Feed struct {
	// Name is a short name for metrics and as the source of facts; an inventory's is "inventory".
	Name string `yaml:"name"`
	// File is where it is read from, again when it changes.
	File string `yaml:"file"`
	// URL is where it is fetched from, https only.
	URL string `yaml:"url"`
	// CAFile holds the certificates that the server of URL is verified with; empty: the system's.
	CAFile string `yaml:"ca_file"`
	// TokenFile holds what is sent to URL as Authorization: Bearer; empty: nothing.
	TokenFile string `yaml:"token_file"`
	// Interval is how often it is looked at; 30s for a file, 5m for a URL if empty.
	Interval time.Duration `yaml:"interval"`
	// MaxAge is after how long without a good import it counts for nothing, and how old a fact may be; 24h if empty.
	MaxAge time.Duration `yaml:"max_age"`
	// Columns maps our names (id, state, owner, …, observed_at, or a fact) to those of the feed.
	Columns map[string]string `yaml:"columns"`
}

// Enrolment is the authority that signs for devices here.
type Enrolment struct {
	// CACert and CAKey are PEM files. The certificate is a pool of its own, of the issuer "enrolment".
	CACert string `yaml:"ca_cert"`
	CAKey  string `yaml:"ca_key"`
	// Life of a device's certificate; 2160h if empty.
	Life time.Duration `yaml:"life"`
}

// Balancer is where a TLS-terminating balancer forwards device certificates in Client-Cert (RFC 9440).
type Balancer struct {
	// Listen is the address for it alone.
	Listen string `yaml:"listen"`
	// SPKI are the balancers' keys, which they prove by TLS: SHA-256 of the public key (SubjectPublicKeyInfo), hex.
	SPKI []string `yaml:"spki"`
}

const (
	defaultConnectionAge = 10 * time.Minute
	defaultFeedAge       = 24 * time.Hour
	defaultDeviceLife    = 90 * 24 * time.Hour
	longestDeviceLife    = 397 * 24 * time.Hour
	enrolmentIssuer      = "enrolment"
	inventoryFeed        = "inventory"
)

var (
	shortName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)
	// idPrefix is a SPIFFE path or a URN up to where the device's own id begins.
	idPrefix = regexp.MustCompile(`^(spiffe://[a-z0-9._-]{1,255}/([A-Za-z0-9._-]+/)+|urn:[a-z0-9][a-z0-9-]{1,31}:([A-Za-z0-9._-]+:)+)$`)
)

// on tells whether devices can prove themselves at all.
func (d Devices) on() bool { return d.Listen != "" || d.Balancer.Listen != "" }

func (d Devices) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("devices."+format, args...)) }
	for _, a := range [][2]string{{"listen", d.Listen}, {"balancer.listen", d.Balancer.Listen}} {
		if !validAddress(a[1]) {
			bad("%s: %q is no address; want HOST:PORT, as in 0.0.0.0:8444", a[0], a[1])
		}
	}
	if d.Listen != "" && d.Listen == d.Balancer.Listen && !strings.HasSuffix(d.Listen, ":0") {
		bad("balancer.listen: %q is the address of devices.listen; want one of its own", d.Listen)
	}
	if (d.Balancer.Listen == "") != (len(d.Balancer.SPKI) == 0) {
		bad("balancer: names only one of listen and spki; want both: a source address proves no balancer")
	}
	for n, pin := range d.Balancer.SPKI {
		if raw, err := hex.DecodeString(pin); err != nil || len(raw) != 32 {
			bad("balancer.spki[%d]: %q is no pin; want SHA-256 of the balancer's public key, 64 hex digits", n, pin)
		}
	}
	if d.on() && d.CA == "" && len(d.Pools) == 0 && d.Enrolment.CACert == "" {
		bad("ca: empty; want the authorities of the devices, since the system's are never used")
	}
	if d.ID == "" && (d.CA != "" || d.Enrolment.CACert != "") || d.ID != "" && !idPrefix.MatchString(d.ID) {
		bad("id: %q is no form of an id; want spiffe://DOMAIN/device/ or urn:NAME:device:", d.ID)
	}
	if d.ConnectionAge < 0 || d.ConnectionAge > defaultConnectionAge {
		bad("connection_age: %s is out of range; want at most %s, 0 for that", d.ConnectionAge, defaultConnectionAge)
	}
	for n, fact := range d.Require {
		if !shortName.MatchString(fact) {
			bad("require[%d]: %q is no fact; want lower case, digits, - and _", n, fact)
		}
	}
	errs = append(errs, d.validatePools()...)
	errs = append(errs, d.validateFeeds()...)
	return append(errs, d.Enrolment.validate()...)
}

func (d Devices) validatePools() []error {
	var errs []error
	seen := []string{enrolmentIssuer}
	if d.CA != "" {
		seen = append(seen, "devices")
	}
	for n, p := range d.Pools {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("devices.pools[%d]."+format, append([]any{n}, args...)...))
		}
		if !shortName.MatchString(p.Issuer) || slices.Contains(seen, p.Issuer) {
			bad("issuer: %q is no name or is taken; want a short name such as corp, one for each pool", p.Issuer)
		}
		seen = append(seen, p.Issuer)
		if p.CA == "" {
			bad("ca: empty; want a PEM file or a folder of them")
		}
		if id := cmp.Or(p.ID, d.ID); !idPrefix.MatchString(id) {
			bad("id: %q is no form of an id; want spiffe://DOMAIN/device/ or urn:NAME:device:, here or in devices.id", id)
		}
		if p.Depth < 0 || p.Depth > 5 {
			bad("depth: %d is out of range; want 1 to 5, 0 for 1", p.Depth)
		}
		if p.RequiresCRL && len(d.CRL) == 0 {
			bad("requires_crl: there is no devices.crl, so none of its devices could pass")
		}
	}
	return errs
}

func (d Devices) validateFeeds() []error {
	var errs []error
	if d.Inventory.Name != "" && d.Inventory.Name != inventoryFeed {
		errs = append(errs, fmt.Errorf("devices.inventory.name: %q; an inventory has the name %s, leave it out", d.Inventory.Name, inventoryFeed))
	}
	if d.Inventory.File != "" || d.Inventory.URL != "" || len(d.Inventory.Columns) > 0 {
		errs = append(errs, d.Inventory.validate("devices.inventory")...)
	}
	seen := []string{inventoryFeed}
	for n, f := range d.Posture {
		at := fmt.Sprintf("devices.posture[%d]", n)
		if !shortName.MatchString(f.Name) || slices.Contains(seen, f.Name) {
			errs = append(errs, fmt.Errorf("%s.name: %q is no name or is taken; want a short name such as mdm, one for each feed", at, f.Name))
		}
		seen = append(seen, f.Name)
		errs = append(errs, f.validate(at)...)
	}
	return errs
}

func (f Feed) validate(at string) []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+"."+format, args...)) }
	if (f.File == "") == (f.URL == "") {
		bad("file: names both or neither of file and url; want one of them")
	}
	if f.URL != "" {
		if u, err := url.Parse(f.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			bad("url: %q is no address; want https://HOST/PATH without a password in it", f.URL)
		}
	} else if f.CAFile != "" || f.TokenFile != "" {
		bad("ca_file: ca_file and token_file belong to url, and there is none")
	}
	if f.Interval != 0 && (f.Interval < time.Second || f.Interval > time.Hour) {
		bad("interval: %s is out of range; want 1s to 1h, 0 for the default", f.Interval)
	}
	if f.MaxAge < 0 || f.MaxAge > 30*24*time.Hour {
		bad("max_age: %s is out of range; want at most 720h, 0 for %s", f.MaxAge, defaultFeedAge)
	}
	for ours, theirs := range f.Columns {
		if !shortName.MatchString(ours) || theirs == "" {
			bad("columns: %q from %q; want a name of ours or a fact, and a column of the feed", ours, theirs)
		}
	}
	return errs
}

func (e Enrolment) validate() []error {
	var errs []error
	if (e.CACert == "") != (e.CAKey == "") {
		errs = append(errs, fmt.Errorf("devices.enrolment: names only one of ca_cert and ca_key; want both, or neither where another authority signs"))
	}
	if e.Life < 0 || e.Life > longestDeviceLife {
		errs = append(errs, fmt.Errorf("devices.enrolment.life: %s is out of range; want at most %s, 0 for %s", e.Life, longestDeviceLife, defaultDeviceLife))
	}
	return errs
}

func validAddress(address string) bool {
	if address == "" {
		return true
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	return err == nil
}

// setDefaults fills in what is empty and turns the short form of one authority into a pool.
func (d *Devices) setDefaults() {
	pools := slices.Clone(d.Pools)
	if d.CA != "" {
		pools = append(pools, Pool{Issuer: "devices", CA: d.CA, RequiresCRL: len(d.CRL) > 0})
	}
	if d.Enrolment.CACert != "" {
		pools = append(pools, Pool{Issuer: enrolmentIssuer, CA: d.Enrolment.CACert})
	}
	for n := range pools {
		pools[n].ID = cmp.Or(pools[n].ID, d.ID)
		pools[n].Depth = cmp.Or(pools[n].Depth, 1)
	}
	d.Pools = pools
	d.Inventory.Name = inventoryFeed
	d.Inventory.setDefaults()
	d.Posture = slices.Clone(d.Posture)
	for n := range d.Posture {
		d.Posture[n].setDefaults()
	}
	d.ConnectionAge = cmp.Or(d.ConnectionAge, defaultConnectionAge)
	d.Enrolment.Life = cmp.Or(d.Enrolment.Life, defaultDeviceLife)
}

func (f *Feed) setDefaults() {
	usual := 30 * time.Second
	if f.URL != "" {
		usual = 5 * time.Minute
	}
	f.Interval = cmp.Or(f.Interval, usual)
	f.MaxAge = cmp.Or(f.MaxAge, defaultFeedAge)
}

func (f Feed) on() bool { return f.File != "" || f.URL != "" }
