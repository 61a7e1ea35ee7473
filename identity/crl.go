package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// A crl is one revocation list. It counts for an authority only after its signature was verified with that
// authority's key; an authority of the same name has another key.
type crl struct {
	list    *x509.RevocationList
	revoked map[string]bool // by serial number, as bytes
	signers sync.Map        // SubjectPublicKeyInfo of an authority → bool: signed by it
}

var (
	oidDelta = asn1.ObjectIdentifier{2, 5, 29, 27}
	// Extensions that are understood: authority key identifier and CRL number.
	oidAuthorityKey = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidNumber       = asn1.ObjectIdentifier{2, 5, 29, 20}
)

// parseCRLs reads PEM or DER. A delta is left out, since it says nothing without its base; a list with a critical
// extension that is not understood speaks of something else than it seems to (RFC 5280, section 5.2).
func parseCRLs(data []byte) ([]*crl, error) {
	var lists []*crl
	add := func(der []byte) error {
		c, err := parseCRL(der)
		if c != nil {
			lists = append(lists, c)
		}
		return err
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		err := add(data)
		return lists, err
	}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("a block %q; want X509 CRL alone", block.Type)
		}
		if err := add(block.Bytes); err != nil {
			return nil, err
		}
		data = rest
	}
	if len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("something that is no PEM stands beside the lists")
	}
	return lists, nil
}

func parseCRL(der []byte) (*crl, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	for _, e := range list.Extensions {
		if e.Id.Equal(oidDelta) {
			return nil, nil //nolint:nilnil // no list, and nothing wrong with that
		}
		if e.Critical && !e.Id.Equal(oidAuthorityKey) && !e.Id.Equal(oidNumber) {
			return nil, fmt.Errorf("critical extension %s is not understood", e.Id)
		}
	}
	if list.NextUpdate.IsZero() {
		return nil, errors.New("a list without nextUpdate, which would never end")
	}
	c := &crl{list: list, revoked: make(map[string]bool, len(list.RevokedCertificateEntries))}
	for _, e := range list.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return nil, fmt.Errorf("critical extension %s of an entry is not understood", x.Id)
			}
		}
		c.revoked[string(e.SerialNumber.Bytes())] = true
	}
	return c, nil
}

func (c *crl) signedBy(authority *x509.Certificate) bool {
	key := string(authority.RawSubjectPublicKeyInfo)
	if known, ok := c.signers.Load(key); ok {
		return known.(bool)
	}
	signed := c.list.CheckSignatureFrom(authority) == nil
	c.signers.Store(key, signed)
	return signed
}

func (c *crl) fresh(now time.Time) bool {
	return !now.Before(c.list.ThisUpdate) && now.Before(c.list.NextUpdate)
}

// newer tells which of two lists of one authority counts.
func (c *crl) newer(than *crl) bool {
	if than == nil {
		return true
	}
	if c.list.Number != nil && than.list.Number != nil {
		return c.list.Number.Cmp(than.list.Number) > 0
	}
	return c.list.ThisUpdate.After(than.list.ThisUpdate)
}

// serialText is a serial number as inventories and records show it: hex in lower case without leading zeros.
func serialText(n *big.Int) string { return n.Text(16) }
