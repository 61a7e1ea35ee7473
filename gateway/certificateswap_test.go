package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A50: the certificate is replaced 1,000 times by a swap of the folder's link, as a secret's volume is, while clients
// shake hands: each swap is noticed, and no handshake fails.
func TestA50CertificateIsSwappedUnderLoad(t *testing.T) {
	dir, roots := t.TempDir(), x509.NewCertPool()
	for _, name := range []string{"a", "b"} {
		must(t, ensureLocalCA(filepath.Join(dir, name), []string{"localhost"}))
		ca, err := os.ReadFile(filepath.Join(dir, name, "ca.pem"))
		must(t, err)
		roots.AppendCertsFromPEM(ca)
	}
	live := filepath.Join(dir, "live")
	must(t, os.Symlink("a", live))
	c, err := loadCertificate(filepath.Join(live, "leaf.pem"), filepath.Join(live, "leaf-key.pem"))
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for shaken := 0; ctx.Err() == nil || shaken == 0; shaken++ {
				if err := shake(c, roots); err != nil {
					t.Errorf("handshake: %v", err)
					return
				}
			}
		})
	}
	for i := range 1000 {
		must(t, os.Symlink([]string{"b", "a"}[i%2], live+".new"))
		must(t, os.Rename(live+".new", live))
		before := c.current.Load()
		if changed, err := c.reload(); !changed || err != nil || c.current.Load() == before {
			t.Errorf("swap %d is not noticed: %v", i, err)
		}
	}
	stop()
	clients.Wait()
}

// shake makes one handshake with a certificate as it is now.
func shake(c *certificate, roots *x509.CertPool) error {
	near, far := net.Pipe()
	defer near.Close()
	var server sync.WaitGroup
	server.Go(func() {
		defer far.Close()
		_ = tls.Server(far, &tls.Config{GetCertificate: c.get}).Handshake() // the client has the same error, or another
	})
	client := tls.Client(near, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	err := client.Handshake()
	if err == nil {
		_, _ = client.Read(make([]byte, 1)) // session tickets, until the server hangs up
	}
	near.Close()
	server.Wait()
	return err
}
