package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/identity/identitytest"
)

// A signedDevice is a machine that a gateway with an authority of its own enrolled.
type signedDevice struct {
	*site
	ca        *identitytest.CA // signs for devices
	gatewayCA string
	door      string
	folder    string
}

func newSignedDevice(t *testing.T) *signedDevice {
	t.Helper()
	dir, port := t.TempDir(), freePort()
	d := &signedDevice{ca: identitytest.NewCA(t, "small team"), door: "https://localhost:" + port, folder: filepath.Join(dir, "device")}
	d.site = newSite(t, mirrortest.Start(t, helloModule), `identity:
  devices:
    listen: 127.0.0.1:`+port+`
    id: spiffe://corp.example/device/
    enrolment:
      ca_cert: `+identitytest.WriteFile(t, filepath.Join(dir, "ca.pem"), d.ca.PEM())+`
      ca_key: `+identitytest.WriteFile(t, filepath.Join(dir, "ca-key.pem"), d.ca.KeyPEM(t))+`
`)
	for _, name := range []string{"ca/ca.pem", "state/ca/ca.pem"} {
		if _, err := os.Stat(filepath.Join(d.dir, name)); err == nil {
			d.gatewayCA = filepath.Join(d.dir, name)
		}
	}
	code := regexp.MustCompile(`"code":"([A-Z2-7]+)"`).FindStringSubmatch(d.verb(t, "device", "code", "--shared", "--id", "laptop-17", "--json"))
	if code == nil {
		t.Fatal("device code printed no code")
	}
	d.verb(t, "device", "enrol", "--url", d.url, "--ca", d.gatewayCA, "--dir", d.folder, "--code", code[1])
	return d
}

func (d *signedDevice) verb(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.headgate(args...)
	if err != nil {
		t.Fatalf("headgate %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// renew runs the verb.
func (d *signedDevice) renew(args ...string) (string, error) {
	return d.headgate(append([]string{"device", "renew", "--url", d.door, "--ca", d.gatewayCA, "--dir", d.folder}, args...)...)
}

func (d *signedDevice) file(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// wantServed downloads with what is in the folder now.
func (d *signedDevice) wantServed(t *testing.T, when string) {
	t.Helper()
	trust, err := deviceTLS(d.folder, d.gatewayCA)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.door+"/example.com/hello/@v/v1.0.0.mod", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("x", d.token)
	resp, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", when, resp.Status)
	}
}

// age puts a certificate for the same key in place that began and ends as said.
func (d *signedDevice) age(t *testing.T, begun, left time.Duration) {
	t.Helper()
	age(t, d.ca, d.folder, begun, left)
}

func age(t *testing.T, ca *identitytest.CA, folder string, begun, left time.Duration) {
	t.Helper()
	pair, err := loadDevice(folder)
	if err != nil {
		t.Fatal(err)
	}
	cert := ca.Issue(t, identitytest.Leaf{
		URIs: []string{"spiffe://corp.example/device/laptop-17"}, Key: pair.PrivateKey.(*ecdsa.PrivateKey),
		From: time.Now().Add(-begun), Until: time.Now().Add(left),
	})
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	identitytest.WriteFile(t, filepath.Join(folder, "cert.pem"), text)
}

// A device renews with the real verb at the real gateway: not too early, with a new key, again where the answer got lost,
// and not once it is blocked.
func TestDeviceRenew(t *testing.T) {
	d := newSignedDevice(t)
	oldKey, oldCert := d.file(t, "key.pem"), d.file(t, "cert.pem")
	if out, err := d.renew(); err == nil || !strings.Contains(out, "it is not time before") {
		t.Errorf("a new certificate: %v\n%s", err, out)
	}
	out, err := d.renew("--force", "--json")
	if err != nil || !strings.Contains(out, `"device":"laptop-17"`) {
		t.Fatalf("--force: %v\n%s", err, out)
	}
	newKey, newCert := d.file(t, "key.pem"), d.file(t, "cert.pem")
	if bytes.Equal(newKey, oldKey) || bytes.Equal(newCert, oldCert) {
		t.Error("key or certificate is the one from before")
	}
	if info, err := os.Stat(filepath.Join(d.folder, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info, err)
	}
	if left, err := filepath.Glob(filepath.Join(d.folder, "*.new")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	d.wantServed(t, "renewed")
	t.Run("stopped between the two renames", func(t *testing.T) {
		identitytest.WriteFile(t, filepath.Join(d.folder, "cert.pem.new"), newCert)
		identitytest.WriteFile(t, filepath.Join(d.folder, "cert.pem"), oldCert)
		d.wantServed(t, "with the new key alone")
		if err := os.Remove(filepath.Join(d.folder, "cert.pem.new")); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the answer got lost", func(t *testing.T) {
		identitytest.WriteFile(t, filepath.Join(d.folder, "key.pem"), oldKey)
		identitytest.WriteFile(t, filepath.Join(d.folder, "key.pem.new"), newKey)
		if out, err := d.renew(); err != nil {
			t.Fatalf("once more: %v\n%s", err, out)
		}
		if !bytes.Equal(d.file(t, "key.pem"), newKey) {
			t.Error("another key was signed than the one that was kept")
		}
		d.wantServed(t, "renewed once more")
	})
	d.age(t, 80*24*time.Hour, 24*time.Hour)
	if out, err := d.renew(); err != nil || !strings.Contains(out, "is renewed until") {
		t.Errorf("in the last third: %v\n%s", err, out)
	}
	d.age(t, 80*24*time.Hour, -time.Hour)
	if out, err := d.renew(); err == nil || !strings.Contains(out, "expired") {
		t.Errorf("an expired certificate: %v\n%s", err, out)
	}
	d.age(t, 80*24*time.Hour, 24*time.Hour)
	d.verb(t, "device", "block", "laptop-17", "--note", "stolen")
	if out, err := d.renew(); err == nil || !strings.Contains(out, "blocked") {
		t.Errorf("a blocked device: %v\n%s", err, out)
	}
	if code := d.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code is %d", code)
	}
	log := d.verb(t, "audit", "tail", "-n", "0")
	if n := strings.Count(log, "device.renew"); n != 6 { // with the refusals
		t.Errorf("the log tells of device.renew %d times, want 6:\n%s", n, log)
	}
}

// Who gets a short token renews the certificate by the way, in its last third alone, and does without where that fails.
func TestCertificateIsRenewedByTheWay(t *testing.T) {
	d := newSignedDevice(t)
	notes := &bytes.Buffer{}
	get := func() {
		t.Helper()
		l := &gatewayLogin{URL: d.url, CA: d.gatewayCA, Device: d.folder, Door: d.door, Token: d.token, folder: t.TempDir(), notes: notes}
		if token, err := l.fresh(t.Context(), ""); err != nil || token.Token == "" {
			t.Fatalf("a short token: %v", err)
		}
	}
	fresh := d.file(t, "cert.pem")
	get()
	if !bytes.Equal(d.file(t, "cert.pem"), fresh) {
		t.Error("a new certificate was renewed")
	}
	agent, err := deviceTLS(d.folder, d.gatewayCA)
	if err != nil {
		t.Fatal(err)
	}
	d.age(t, 80*24*time.Hour, 24*time.Hour)
	old, key := d.file(t, "cert.pem"), d.file(t, "key.pem")
	get()
	if bytes.Equal(d.file(t, "cert.pem"), old) || bytes.Equal(d.file(t, "key.pem"), key) || notes.Len() > 0 {
		t.Errorf("a certificate in its last third was not renewed: %s", notes)
	}
	now, err := agent.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil || !bytes.Contains(d.file(t, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: now.Certificate[0]})) {
		t.Errorf("an agent that runs presents the old certificate: %v", err)
	}
	d.age(t, 80*24*time.Hour, 24*time.Hour)
	identitytest.WriteFile(t, filepath.Join(d.folder, "key.pem.new"), key) // a former key, which is refused
	get()
	if !strings.Contains(notes.String(), "want a new key") {
		t.Errorf("notes %q; want the reason", notes)
	}
	get()
	if bytes.Equal(d.file(t, "key.pem"), key) || len(d.file(t, "cert.pem")) == 0 || strings.Count(notes.String(), "want a new key") != 1 {
		t.Errorf("the refused key stood in the way of the next: %s", notes)
	}
}

// A certificate is renewed under an agent that runs, by the verb and by the agent itself: the real go command builds on
// through it, and the sign-in from before holds.
func TestAgentAcrossRenewal(t *testing.T) {
	t.Parallel()
	c := newCompany(t, mirrortest.Start(t, companyModules...), "agent: 2s")
	m := c.machine(t)
	m.enrol("laptop-17", "person-ann")
	c.report(t, "laptop-17", "yes")
	m.login("ann")
	folder := filepath.Join(m.home, ".config/headgate/device")
	goproxy, _ := m.startAgent()
	builds := func(when string) {
		t.Helper()
		if errs, err := m.build("GOPROXY="+goproxy, "GOAUTH=off"); err != nil {
			t.Fatalf("%s: %v\n%s", when, err, errs)
		}
		if out := m.must("whoami"); !strings.Contains(out, "person-ann") {
			t.Errorf("%s, the sign-in is over:\n%s", when, out)
		}
	}
	builds("with the first certificate")
	first := m.file("device/cert.pem")
	m.must("device", "renew", "--url", "https://localhost:"+c.devicePort, "--ca", c.caFile(), "--force")
	second := m.file("device/cert.pem")
	if second == first {
		t.Fatal("device renew --force leaves the certificate as it is")
	}
	builds("after the verb renewed it")
	age(t, c.ca, folder, 80*24*time.Hour, 24*time.Hour)
	aged := m.file("device/cert.pem")
	m.outlive() // the next short token is got over the certificate in its last third
	builds("in its last third")
	if m.file("device/cert.pem") == aged {
		t.Error("the agent did not renew the certificate")
	}
	m.outlive()
	builds("after the agent renewed it")
}

func TestRenewalWithoutADevice(t *testing.T) {
	empty := renewal{folder: t.TempDir(), url: "https://localhost:1"}
	if _, err := empty.run(context.WithoutCancel(t.Context())); err == nil || !strings.Contains(err.Error(), "headgate device enrol") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := os.Stat(filepath.Join(empty.folder, "key.pem.new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made for nothing: %v", err)
	}
}
