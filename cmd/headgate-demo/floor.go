package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// floorBody is how many bytes the floor answers from memory.
const floorBody = 200

// runFloor is the process that speed is compared with: a plain Go https server that answers 200 bytes from memory, and
// below /files/ the files of a folder. The argument is its folder with cert.pem, key.pem and files. It prints its
// address and ends with its input.
func runFloor(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errUse
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(args[0], "cert.pem"), filepath.Join(args[0], "key.pem"))
	if err != nil {
		return fmt.Errorf("reading the floor's certificate: %w", err)
	}
	body := bytes.Repeat([]byte("x"), floorBody)
	mux := http.NewServeMux()
	mux.Handle("/files/", http.StripPrefix("/files/", http.FileServer(http.Dir(filepath.Join(args[0], "files")))))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body) // a client that is gone needs no answer
	})
	return serveUntil(ctx, stdin, stdout, &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}},
	}, true)
}

// startFloor makes the folder and starts the process. files are by name what stands below /files/.
func startFloor(dir string, files map[string][]byte) (*child, string, *x509.CertPool, error) {
	home := filepath.Join(dir, "floor")
	if err := os.MkdirAll(filepath.Join(home, "files"), 0o700); err != nil {
		return nil, "", nil, fmt.Errorf("making the floor's folder: %w", err)
	}
	roots, err := writeCertificates(home)
	if err != nil {
		return nil, "", nil, err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(home, "files", name), content, 0o600); err != nil {
			return nil, "", nil, fmt.Errorf("writing the floor's files: %w", err)
		}
	}
	process, address, err := startSelf(dir, "floor", "", keepEnv("PATH"), "floor", home)
	return process, address, roots, err
}

// writeCertificates makes cert.pem and key.pem of a server on this machine, and ca.pem, which is what to trust it by.
func writeCertificates(dir string) (*x509.CertPool, error) {
	leaf, ca, err := makeCertificates()
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key},
		"ca.pem": {Type: "CERTIFICATE", Bytes: ca.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, fmt.Errorf("writing a certificate: %w", err)
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return roots, nil
}
