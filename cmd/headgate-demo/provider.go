package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/headgate/headgate/identity/identitytest"
)

// clientID is the provider's one client, and so the audience of its ID tokens.
const clientID = "headgate"

// A provider is a real OpenID provider that listens on loopback over https, under a CA of this demonstration.
type provider struct {
	issuer string
	caFile string
	roots  *x509.CertPool
	server *http.Server
	ended  chan error
}

// startProvider makes a CA and serves an OpenID provider with these people.
func startProvider(dir string, people []*person) (*provider, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the provider: %w", err)
	}
	p := &provider{issuer: "https://" + l.Addr().String(), caFile: filepath.Join(dir, "provider-ca.pem"), ended: make(chan error, 1)}
	cfg := identitytest.ProviderConfig{Issuer: p.issuer, ClientID: clientID, RedirectURI: "http://127.0.0.1/callback"}
	for _, someone := range people {
		cfg.Users = append(cfg.Users, identitytest.User{
			Login: someone.login, Password: someone.password, ID: someone.id, Email: someone.login + "@demo.example", Groups: someone.groups,
		})
	}
	handler, err := identitytest.NewProvider(cfg)
	if err != nil {
		return nil, err
	}
	leaf, ca, err := makeCertificates()
	if err != nil {
		return nil, fmt.Errorf("making the provider's certificate: %w", err)
	}
	p.roots = x509.NewCertPool()
	p.roots.AddCert(ca)
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	if err := os.WriteFile(p.caFile, block, 0o600); err != nil {
		return nil, fmt.Errorf("writing the provider's CA: %w", err)
	}
	p.server = &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{leaf}},
	}
	go func() { p.ended <- p.server.ServeTLS(l, "", "") }()
	return p, nil
}

func (p *provider) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := p.server.Shutdown(ctx)
	if served := <-p.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// makeCertificates makes a CA and a server certificate for 127.0.0.1 below it, both for a day.
func makeCertificates() (tls.Certificate, *x509.Certificate, error) {
	caTemplate := certificate("Demonstration CA")
	caTemplate.IsCA, caTemplate.BasicConstraintsValid, caTemplate.KeyUsage = true, true, x509.KeyUsageCertSign
	ca, caKey, err := sign(caTemplate, nil, nil)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leafTemplate := certificate("Demonstration server")
	leafTemplate.IPAddresses, leafTemplate.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	leafTemplate.KeyUsage, leafTemplate.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf, leafKey, err := sign(leafTemplate, ca, caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}, ca, nil
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// sign makes a key and a certificate for it, signed by the parent or by itself.
func sign(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	made, err := x509.ParseCertificate(der)
	return made, key, err
}
