package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	caLife    = 10 * 365 * 24 * time.Hour
	leafLife  = 397 * 24 * time.Hour // the longest that browsers and Apple's verifier accept
	leafRenew = 30 * 24 * time.Hour
)

// A certificate is the listener's key pair behind one pointer, read again when its files change.
type certificate struct {
	cert, key string
	current   atomic.Pointer[tls.Certificate]
	stamp     string // guarded by the one goroutine that reloads
}

// loadCertificate reads the key pair. What cannot be used is an error that names the file.
func loadCertificate(cert, key string) (*certificate, error) {
	c := &certificate{cert: cert, key: key}
	if _, err := c.reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// reload reads the files if they changed; a bad pair leaves the old one in use.
func (c *certificate) reload() (changed bool, err error) {
	stamp, err := c.stat()
	if err != nil || stamp == c.stamp {
		return false, err
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return false, fmt.Errorf("reading certificate %s and key %s: %w", c.cert, c.key, err)
	}
	c.stamp = stamp
	c.current.Store(&pair)
	return true, nil
}

// stat sums up both files; it follows links, so that swapped folders are seen.
func (c *certificate) stat() (string, error) {
	var stamp string
	for _, name := range []string{c.cert, c.key} {
		info, err := os.Stat(name)
		if err != nil {
			return "", fmt.Errorf("reading certificate: %w", err)
		}
		stamp += fmt.Sprintf("%d %d;", info.Size(), info.ModTime().UnixNano())
	}
	return stamp, nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}

func (c *certificate) notAfter() time.Time { return c.current.Load().Leaf.NotAfter }

// ensureLocalCA makes a CA and a leaf for the names in dir, so that a first start needs no certificate. The CA stays;
// the leaf is made again when it lacks a name or expires within 30 days. Keys are 0600.
func ensureLocalCA(dir string, names []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the certificate folder: %w", err)
	}
	ca, err := readPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = makePair(dir, "ca", caTemplate(), nil)
	}
	if err != nil {
		return fmt.Errorf("preparing the local CA: %w", err)
	}
	leaf, err := readPair(filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "leaf-key.pem"))
	if err == nil && covers(leaf.Leaf, names) && time.Until(leaf.Leaf.NotAfter) > leafRenew {
		return nil
	}
	if _, err := makePair(dir, "leaf", leafTemplate(names), ca); err != nil {
		return fmt.Errorf("preparing the local certificate: %w", err)
	}
	return nil
}

func readPair(cert, key string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	return &pair, err
}

func covers(leaf *x509.Certificate, names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return leaf.VerifyHostname(name) != nil })
}

func caTemplate() *x509.Certificate {
	host, err := os.Hostname()
	if err != nil {
		host = "this machine"
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Headgate local CA of " + host},
		NotAfter:              time.Now().Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
}

func leafTemplate(names []string) *x509.Certificate {
	t := &x509.Certificate{
		Subject:  pkix.Name{CommonName: names[0]},
		NotAfter: time.Now().Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return t
}

// makePair signs the template with parent, or with its own key where parent is nil, and writes NAME.pem and NAME-key.pem.
func makePair(dir, name string, template *x509.Certificate, parent *tls.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	template.NotBefore = time.Now().Add(-5 * time.Minute) // clocks of clients differ
	issuer, signer := template, any(key)
	if parent != nil {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("signing certificate %s: %w", name, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", name, err)
	}
	cert, keyFile := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	if err := writeFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return readPair(cert, keyFile)
}

// writeFile replaces a file whole: a reader sees the old bytes or the new ones.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
