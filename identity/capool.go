package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	maxPoolFile = 4 << 20  // bytes
	maxCRLFile  = 64 << 20 // bytes
)

// A pool is one configured set of authorities as it stands in its files. It is never changed.
type pool struct {
	cfg         Pool
	authorities []*x509.Certificate
	roots       *x509.CertPool // the same
	notAfter    time.Time      // of the first of them that ends
}

// readPool reads a file of certificates, or each file of a folder. Whatever is no authority in it is an error: an
// empty pool would refuse everybody, and a nil one would let the system's authorities in.
func readPool(cfg Pool) (*pool, []byte, error) {
	files := []string{cfg.CA}
	if info, err := os.Stat(cfg.CA); err != nil {
		return nil, nil, fmt.Errorf("reading authorities of %s: %w", cfg.Issuer, err)
	} else if info.IsDir() {
		if files, err = folder(cfg.CA); err != nil {
			return nil, nil, fmt.Errorf("reading authorities of %s: %w", cfg.Issuer, err)
		}
	}
	var all []byte
	for _, name := range files {
		data, err := readFile(name, maxPoolFile)
		if err != nil {
			return nil, nil, fmt.Errorf("reading authorities of %s: %w", cfg.Issuer, err)
		}
		all = append(append(all, data...), '\n')
	}
	p, err := parsePool(cfg, all)
	if err != nil {
		return nil, nil, fmt.Errorf("reading authorities of %s from %s: %w", cfg.Issuer, cfg.CA, err)
	}
	return p, all, nil
}

// folder lists its files. Names with a dot in front are how mounted secrets are swapped; all else must be readable.
func folder(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", name, most)
	}
	return data, err
}

func parsePool(cfg Pool, data []byte) (*pool, error) {
	p := &pool{cfg: cfg, roots: x509.NewCertPool()}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, fmt.Errorf("%q is no authority", c.Subject)
		}
		if err := checkKey(c); err != nil {
			return nil, fmt.Errorf("%q: %w", c.Subject, err)
		}
		p.roots.AddCert(c)
		p.authorities = append(p.authorities, c)
		if p.notAfter.IsZero() || c.NotAfter.Before(p.notAfter) {
			p.notAfter = c.NotAfter
		}
	}
	return p, nil
}

// parseCertificates reads PEM text that holds certificates, at least one, and nothing else.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a block %q; want certificates alone", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
		data = rest
	}
	if len(certs) == 0 || len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("no certificate, or something else beside; want PEM")
	}
	return certs, nil
}

// checkKey accepts RSA of 2,048 to 8,192 bits and ECDSA from P-256 up.
func checkKey(c *x509.Certificate) error { return checkPublicKey(c.PublicKey) }

func checkPublicKey(key any) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("an RSA key of %d bits; want 2048 to 8192", n)
		}
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("an ECDSA key of %d bits; want P-256 or larger", n)
		}
	default:
		return fmt.Errorf("a key of type %T; want RSA or ECDSA", key)
	}
	return nil
}
