package identitytest

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// Serve runs a provider over TLS on loopback until the test ends. cfg.Issuer is
// filled in, and ClientID and RedirectURI if they are empty. caFile holds the
// certificate that the client trusts and that an issuer's ca_file can name.
func Serve(t testing.TB, cfg ProviderConfig) (p *Provider, filled ProviderConfig, client *http.Client, caFile string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	cfg.Issuer = "https://" + srv.Listener.Addr().String()
	if cfg.ClientID == "" {
		cfg.ClientID = "headgate"
	}
	if cfg.RedirectURI == "" {
		cfg.RedirectURI = "http://127.0.0.1/callback"
	}
	p, err := NewProvider(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv.Config.Handler = p
	srv.StartTLS()
	t.Cleanup(srv.Close)
	caFile = filepath.Join(t.TempDir(), "issuer-ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(caFile, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return p, cfg, srv.Client(), caFile
}
