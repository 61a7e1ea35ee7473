package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	maxChain      = 10       // certificates
	maxChainBytes = 64 << 10 // of all of them
)

// A trust is all pools and lists at one moment. It is never changed: a reload makes another one.
type trust struct {
	pools []*pool
	lists map[string][]*crl // by the authority's name, as bytes
}

// A link is a certificate below an authority.
type link struct {
	serial string // as bytes
	issuer string // the authority's name, as bytes
	list   *crl   // of the authority, nil: none
	must   bool   // there has to be one
}

// A chain is a presented certificate as far as signatures and names say something of it. It holds under one trust, and
// at each moment within [from, until]; what else may change is looked at on every request.
type chain struct {
	trust       *trust
	leaf        *x509.Certificate
	pool        *pool // nil: it leads to none
	links       []link
	id          string // after the pool's prefix
	spki        string // SHA-256 of the leaf's public key, hex
	serial      string // hex
	from, until time.Time

	broken  error // why it leads to no pool, or may not be used by a client
	expired error // it leads to one, at another time
	unnamed error // it names no device
}

// verify builds the chain of what a peer presented, its own certificate first. Only that one is the peer's: whatever
// else it sends merely helps to find the way to an authority.
func (t *trust) verify(certs []*x509.Certificate, now time.Time) *chain {
	c := &chain{trust: t, leaf: certs[0], serial: serialText(certs[0].SerialNumber)}
	c.spki = spkiOf(c.leaf)
	if c.broken = checkPresented(certs); c.broken != nil {
		return c
	}
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	c.broken = errors.New("it leads to no configured authority")
	for _, p := range t.pools {
		paths, expired, err := p.paths(c.leaf, between, now)
		if err == nil {
			c.pool, c.broken, c.expired = p, nil, expired
			c.take(paths)
			break
		}
		c.broken = fmt.Errorf("%w; %s: %w", c.broken, p.cfg.Issuer, err)
	}
	if c.pool != nil {
		c.id, c.unnamed = deviceID(c.leaf, c.pool.cfg.ID)
	}
	return c
}

// spkiOf names a certificate's key: SHA-256 of its SubjectPublicKeyInfo, hex.
func spkiOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func checkPresented(certs []*x509.Certificate) error {
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
		if err := checkKey(c); err != nil {
			return err
		}
	}
	if len(certs) > maxChain || size > maxChainBytes {
		return fmt.Errorf("%d certificates of %d bytes; want at most %d of %d", len(certs), size, maxChain, maxChainBytes)
	}
	if certs[0].IsCA {
		return errors.New("it is an authority's certificate, not a device's")
	}
	return nil
}

// paths finds the ways from a leaf to the pool. If there is one at another time only, expired says so.
func (p *pool) paths(leaf *x509.Certificate, between *x509.CertPool, now time.Time) (paths [][]*x509.Certificate, expired, err error) {
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !p.cfg.AcceptAnyUsage {
		return nil, nil, errors.New("it is not made for clients (extended key usage)")
	}
	opts := x509.VerifyOptions{
		Roots: p.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	paths, err = leaf.Verify(opts)
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		expired = err
		opts.CurrentTime = leaf.NotAfter
		paths, err = leaf.Verify(opts)
	}
	if err != nil {
		return nil, nil, err
	}
	paths = slices.DeleteFunc(paths, func(path []*x509.Certificate) bool { return len(path)-1 > p.cfg.Depth })
	if len(paths) == 0 {
		return nil, nil, fmt.Errorf("more than %d authorities stand above it", p.cfg.Depth)
	}
	return paths, expired, nil
}

// take notes all certificates on the way: what is revoked on any of the paths is revoked.
func (c *chain) take(paths [][]*x509.Certificate) {
	c.from, c.until = c.leaf.NotBefore, c.leaf.NotAfter
	for _, path := range paths {
		for i, cert := range path {
			if cert.NotBefore.After(c.from) {
				c.from = cert.NotBefore
			}
			if cert.NotAfter.Before(c.until) {
				c.until = cert.NotAfter
			}
			if i+1 < len(path) {
				c.links = append(c.links, c.trust.link(cert, path[i+1], c.pool.cfg.RequiresCRL))
			}
		}
	}
}

func (t *trust) link(cert, authority *x509.Certificate, must bool) link {
	return link{serial: string(cert.SerialNumber.Bytes()), issuer: string(cert.RawIssuer), list: t.listOf(authority), must: must}
}

// listOf is the newest list that an authority signed, or nil.
func (t *trust) listOf(authority *x509.Certificate) (newest *crl) {
	for _, list := range t.lists[string(authority.RawSubject)] {
		if list.signedBy(authority) && list.newer(newest) {
			newest = list
		}
	}
	return newest
}

// holds tells whether the chain may stand for another request without a look at signatures.
func (c *chain) holds(t *trust, leaf *x509.Certificate, now time.Time) bool {
	return c != nil && c.trust == t && c.leaf == leaf && c.pool != nil && c.expired == nil && !now.Before(c.from) && !now.After(c.until)
}

var (
	oidSAN     = asn1.ObjectIdentifier{2, 5, 29, 17}
	deviceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// deviceID reads the one URI among the certificate's names, byte for byte as it was signed. There is no other place for
// an identity: not the common name, not a second URI.
func deviceID(leaf *x509.Certificate, prefix string) (string, error) {
	var uris []string
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return "", errors.New("its names cannot be read")
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == 6 { // uniformResourceIdentifier, RFC 5280 4.2.1.6
				uris = append(uris, string(n.Bytes))
			}
		}
	}
	if len(uris) != 1 {
		return "", fmt.Errorf("it has %d URI names; want one, %sID", len(uris), prefix)
	}
	id, ok := strings.CutPrefix(uris[0], prefix)
	if !ok || !deviceName.MatchString(id) {
		return "", fmt.Errorf("its URI name %.128q is not of the form %sID", uris[0], prefix)
	}
	return id, nil
}
