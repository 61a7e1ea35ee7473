package main

import (
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity/identitytest"
)

// A machine enrols itself with a code, downloads with its certificate, and is refused once it is blocked: the real
// gateway, the real verbs, the certificate that enrol kept.
func TestDeviceFromCodeToBlock(t *testing.T) {
	dir, ca := t.TempDir(), identitytest.NewCA(t, "small team")
	port := freePort()
	s := newSite(t, mirrortest.Start(t, helloModule), `identity:
  devices:
    listen: 127.0.0.1:`+port+`
    id: spiffe://corp.example/device/
    enrolment:
      ca_cert: `+identitytest.WriteFile(t, filepath.Join(dir, "ca.pem"), ca.PEM())+`
      ca_key: `+identitytest.WriteFile(t, filepath.Join(dir, "ca-key.pem"), ca.KeyPEM(t))+`
`)
	verb := func(args ...string) string {
		t.Helper()
		out, err := s.headgate(args...)
		if err != nil {
			t.Fatalf("headgate %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	code := regexp.MustCompile(`"code":"([A-Z2-7]+)"`).FindStringSubmatch(verb("device", "code", "--shared", "--id", "laptop-17", "--json"))
	if code == nil {
		t.Fatal("device code printed no code")
	}
	gatewayCA := filepath.Join(s.dir, "gateway-ca.pem")
	for _, name := range []string{"ca/ca.pem", "state/ca/ca.pem"} {
		if text, err := os.ReadFile(filepath.Join(s.dir, name)); err == nil {
			identitytest.WriteFile(t, gatewayCA, text)
		}
	}
	folder := filepath.Join(dir, "device")
	out := verb("device", "enrol", "--url", s.url, "--ca", gatewayCA, "--dir", folder, "--code", code[1])
	if !strings.Contains(out, "device laptop-17 is enrolled") || !strings.Contains(out, port) {
		t.Errorf("enrol says %q", out)
	}
	if info, err := os.Stat(filepath.Join(folder, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info, err)
	}
	trust, err := deviceTLS(folder, gatewayCA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(trust.Certificates[0].Certificate[0]); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust}}
	defer client.CloseIdleConnections()
	get := func() (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost:"+port+"/example.com/hello/@v/v1.0.0.mod", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("x", s.token)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := get(); status != http.StatusOK {
		t.Errorf("with the certificate: %d %s", status, body)
	}
	if out, err := s.headgate("device", "enrol", "--url", s.url, "--ca", gatewayCA, "--dir", filepath.Join(dir, "thief"), "--code", code[1]); err == nil {
		t.Errorf("the code was worth a second device: %s", out)
	}
	verb("device", "block", "laptop-17", "--note", "stolen")
	if status, body := get(); status != http.StatusForbidden || !strings.HasPrefix(body, "DEVICE-BLOCKED: ") {
		t.Errorf("once blocked: %d %s", status, body)
	}
	if out := verb("device", "list", "--state", "blocked"); !strings.Contains(out, "laptop-17") || !strings.Contains(out, "stolen") {
		t.Errorf("device list: %s", out)
	}
	verb("device", "unblock", "laptop-17")
	if status, body := get(); status != http.StatusOK {
		t.Errorf("once let in again: %d %s", status, body)
	}
	if code := s.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code is %d", code)
	}
	log := verb("audit", "tail", "-n", "0")
	for _, want := range []string{"device.code", "device.enrol", "device.block", "DEVICE-BLOCKED"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not tell of %s:\n%s", want, log)
		}
	}
	s.holdsNone(t, code[1])
}
