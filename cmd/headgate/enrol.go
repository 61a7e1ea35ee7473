package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/headgate/headgate/gateway"
)

// An enrolment is what a machine needs to become a device.
type enrolment struct {
	url, code, caFile string
	folder            string // filled in where empty
}

// run makes a key, has it signed, and keeps both. The key is written before it is signed: a code is worth one try.
func (e *enrolment) run(ctx context.Context) (*gateway.Enrolled, error) {
	if e.folder == "" {
		var err error
		if e.folder, err = clientFolder("device"); err != nil {
			return nil, fmt.Errorf("%w; name one with --dir", err)
		}
	}
	key, request, err := deviceKey()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(e.folder, 0o700); err != nil {
		return nil, fmt.Errorf("making the device's folder: %w", err)
	}
	fresh := filepath.Join(e.folder, "key.pem.new")
	if err := os.WriteFile(fresh, key, 0o600); err != nil {
		return nil, fmt.Errorf("keeping the device's key: %w", err)
	}
	done, err := e.sign(ctx, request)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(fresh, filepath.Join(e.folder, "key.pem")); err != nil {
		return nil, fmt.Errorf("keeping the device's key: %w", err)
	}
	if err := os.WriteFile(filepath.Join(e.folder, "cert.pem"), []byte(done.Chain), 0o600); err != nil {
		return nil, fmt.Errorf("keeping the device's certificate: %w", err)
	}
	return done, nil
}

func deviceKey() (keyPEM, requestPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the device's key: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the device's key: %w", err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making the certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}), nil
}

func (e *enrolment) sign(ctx context.Context, request []byte) (*gateway.Enrolled, error) {
	trust, err := trusting(e.caFile)
	if err != nil {
		return nil, err
	}
	var done gateway.Enrolled
	q := gateway.EnrolRequest{Code: e.code, CSR: string(request), Platform: runtime.GOOS}
	return &done, postDevice(ctx, trust, e.url+"/-/api/v1/devices/enrol", q, &done)
}

// postDevice asks for a certificate.
func postDevice(ctx context.Context, trust *tls.Config, address string, in any, done *gateway.Enrolled) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("preparing the request: %w", err)
	}
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust}, Timeout: time.Minute}
	defer c.CloseIdleConnections()
	resp, err := c.Do(r)
	if err != nil {
		return fmt.Errorf("asking the gateway: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		err := apiError(resp.Status, text)
		if resp.StatusCode == http.StatusBadRequest {
			return &useError{err}
		}
		return err
	}
	if err := json.Unmarshal(text, done); err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return nil
}

// trusting is a configuration that verifies a gateway by the CA in a file, or by the system's.
func trusting(caFile string) (*tls.Config, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return trust, nil
	}
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	trust.RootCAs = x509.NewCertPool()
	if !trust.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("reading the CA: %s holds no certificate", caFile)
	}
	return trust, nil
}

// deviceTLS is how an enrolled machine speaks to the device listener: with its certificate and key out of folder, which
// are read again for each connection, since they are renewed while an agent runs.
func deviceTLS(folder, caFile string) (*tls.Config, error) {
	pair, err := loadDevice(folder)
	if err != nil {
		return nil, err
	}
	trust, err := trusting(caFile)
	if err != nil {
		return nil, err
	}
	trust.MinVersion, trust.Certificates = tls.VersionTLS13, []tls.Certificate{pair}
	trust.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		now, err := loadDevice(folder)
		return &now, err
	}
	return trust, nil
}
