package identity_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

const spiffe = "spiffe://corp.example/device/"

// A yard is a service with devices, an authority of theirs and an inventory file.
type yard struct {
	*identity.Service
	ca  *identitytest.CA
	dir string
}

func newYard(t testing.TB, edit ...func(*yard, *identity.Devices)) *yard {
	t.Helper()
	y := &yard{ca: identitytest.NewCA(t, "corp"), dir: t.TempDir()}
	y.write(t, "devices.csv", "id,owner\nd1,alice\nd2,bob\n")
	d := identity.Devices{
		Listen: "127.0.0.1:0", ID: spiffe, CA: identitytest.WriteFile(t, filepath.Join(y.dir, "ca.pem"), y.ca.PEM()),
		Inventory: identity.Feed{File: filepath.Join(y.dir, "devices.csv")},
	}
	for _, e := range edit {
		e(y, &d)
	}
	y.Service = start(t, identity.Config{Devices: d})
	return y
}

func (y *yard) write(t testing.TB, name, text string) string {
	t.Helper()
	return identitytest.WriteFile(t, filepath.Join(y.dir, name), []byte(text))
}

func (y *yard) issue(t testing.TB, id string) tls.Certificate {
	t.Helper()
	return y.ca.Issue(t, identitytest.Leaf{URIs: []string{spiffe + id}})
}

// on is a request over one connection of a device.
func on(cert tls.Certificate, authorization string) *http.Request {
	r := request(authorization)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}
	return r.WithContext(identity.WithConnection(r.Context(), identity.ListenerDevice))
}

func TestInventoryFeeds(t *testing.T) {
	secret := func(s *identity.Service) string { _, secret := person(t, s); return "Bearer " + secret }
	header := "id,owner,observed_at,disk\n"
	now := time.Now().UTC()
	rows := func(n int) string {
		text := header
		for i := range n {
			text += fmt.Sprintf("d%d,alice,%s,yes\n", i, now.Add(-time.Minute).Format(time.RFC3339))
		}
		return text
	}
	tests := []struct {
		name, file, text string
		kept             bool // the import is refused: what was there before still counts
		refused          string
	}{
		{"T69 empty", "devices.csv", "", true, "refused"},
		{"T69 no rows", "devices.csv", header, true, "no device"},
		{"T69 90 % smaller", "devices.csv", rows(2), true, "gone at once"},
		{"a fifth fewer", "devices.csv", rows(16), false, ""},
		{"T69 future time", "devices.csv", rows(20) + "future,alice," + now.Add(time.Hour).Format(time.RFC3339) + ",yes\n", false, "future"},
		{"T69 formula", "devices.csv", rows(20) + "f1,\"=HYPERLINK(\"\"x\"\")\",,yes\n", false, "formula"},
		{"T69 formula in the id", "devices.csv", rows(20) + "@SUM(A1),alice,,yes\n", false, "formula"},
		{"T69 most rows wrong", "devices.csv", rows(20) + strings.Repeat("=1,alice,,\n", 30), true, "rows are wrong"},
		{"not CSV", "devices.csv", "id,owner\n\"", true, "quote"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			y := newYard(t, func(y *yard, d *identity.Devices) { y.write(t, "devices.csv", rows(20)); d.Require = []string{"disk"} })
			auth := secret(y.Service)
			y.write(t, tt.file, tt.text)
			y.RefreshDevices(t.Context())
			p, err := y.Authenticate(on(y.issue(t, "d19"), auth))
			if tt.kept {
				wantCode(t, "a device of the last good inventory", err, "")
				if !p.Device.Trusted || p.Device.Tier != 3 {
					t.Errorf("device %+v; want it trusted by the last good inventory", p.Device)
				}
			}
			why := y.DeviceStatus()["feed:inventory"]
			if (tt.refused == "") != (why == "") || tt.refused != "refused" && !strings.Contains(why, tt.refused) {
				t.Errorf("degraded: %q, want %q", why, tt.refused)
			}
			if strings.Contains(tt.name, "T69 future") {
				if _, err := y.Device("future"); err == nil {
					t.Error("the row with a time of the future was taken in")
				}
			}
		})
	}
	t.Run("T69 doubled serial numbers, keys and ids", func(t *testing.T) {
		text := "id,owner,serial,spki\n"
		for i := range 40 {
			text += fmt.Sprintf("ok%d,alice,,\n", i)
		}
		text += "d1,alice,0A:0b,\nd2,alice,a0b,\nd3,alice,," + strings.Repeat("a", 64) + "\nd4,alice,," + strings.Repeat("A", 64) + "\nd5,alice,,\nd5,bob,,\n"
		y := newYard(t, func(y *yard, _ *identity.Devices) { y.write(t, "devices.csv", text) })
		if _, err := y.Device("ok1"); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"d1", "d2", "d3", "d4", "d5"} {
			if _, err := y.Device(id); err == nil {
				t.Errorf("%s was taken in; which of the two it is, nobody can say", id)
			}
		}
	})
}

// The formats say the same.
func TestInventoryFormats(t *testing.T) {
	at := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	stamp := at.Format(time.RFC3339)
	for name, text := range map[string]string{
		"d.csv":  "\xef\xbb\xbfDeviceName,UserPrincipalName,OS,Managed,Encrypted,CheckIn,Ignored\nd1,alice,Windows 11,TRUE,Yes," + stamp + ",=1+1\n",
		"d.json": `{"devices":[{"DeviceName":"d1","UserPrincipalName":"alice","OS":"windows","Managed":true,"CheckIn":"` + stamp + `","f":{"Encrypted":"Yes"}}]}`,
		"d.yaml": "- DeviceName: d1\n  UserPrincipalName: alice\n  OS: Windows\n  Managed: true\n  Encrypted: \"Yes\"\n  CheckIn: " + stamp + "\n",
	} {
		y := newYard(t, func(y *yard, d *identity.Devices) {
			d.Inventory = identity.Feed{File: y.write(t, name, text), Columns: map[string]string{
				"id": "DeviceName", "owner": "UserPrincipalName", "platform": "OS", "managed": "Managed", "disk": "Encrypted", "observed_at": "CheckIn",
			}}
		})
		got, err := y.Device("d1")
		if err != nil {
			t.Errorf("%s: %v, %v", name, err, y.DeviceStatus())
			continue
		}
		want := identity.DeviceRecord{
			LocalDevice: identity.LocalDevice{ID: "d1", State: "enrolled", Owner: "alice", Platform: "windows"}, Source: "inventory", Managed: true,
			Facts: map[string]identity.Fact{"disk": {State: "ok", Value: "Yes", Source: "inventory", ObservedAt: at}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// Facts age, and so does a feed that is refused or away: stale is unknown, and a stale inventory knows nobody.
func TestT69StaleIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, func(y *yard, d *identity.Devices) {
			d.Inventory.MaxAge = time.Hour
			d.Require = []string{"disk"}
			d.Posture = []identity.Feed{{Name: "mdm", File: y.write(t, "mdm.json", `[{"id":"d1","disk":true,"observed_at":"`+time.Now().Format(time.RFC3339)+`"}]`), MaxAge: 20 * time.Minute}}
		})
		_, secret := person(t, y.Service)
		cert := y.ca.Issue(t, identitytest.Leaf{URIs: []string{spiffe + "d1"}, Until: time.Now().Add(20 * time.Hour)})
		ask := func() (identity.Principal, error) { return y.Authenticate(on(cert, "Bearer "+secret)) }
		if p, err := ask(); err != nil || !p.Device.Trusted || p.Device.Facts["disk"].Source != "mdm" {
			t.Fatalf("fresh: %v %+v", err, p.Device)
		}
		time.Sleep(30 * time.Minute) // of the fake clock
		p, err := ask()
		if err != nil || p.Device.Trusted || p.Device.Tier != 2 || p.Device.Facts["disk"].State != "unknown" {
			t.Errorf("fact of 30 minutes ago: %v %+v", err, p.Device)
		}
		y.write(t, "devices.csv", "")
		time.Sleep(2 * time.Hour)
		_, err = ask()
		wantCode(t, "an inventory of two hours ago", err, identity.DeviceUnknown)
	})
}

func TestInventoryByURL(t *testing.T) {
	var body atomic.Value
	var hits, unchanged atomic.Int64
	body.Store("id,owner\nd1,alice\n")
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		text := body.Load().(string)
		tag := fmt.Sprintf(`"%d"`, len(text))
		switch {
		case r.Header.Get("Authorization") != "Bearer canary-token":
			w.WriteHeader(http.StatusUnauthorized)
		case text == "redirect":
			http.Redirect(w, r, "https://169.254.169.254/", http.StatusFound)
		case r.Header.Get("If-None-Match") == tag:
			unchanged.Add(1)
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("Etag", tag)
			fmt.Fprint(w, text)
		}
	}))
	defer srv.Close()
	y := newYard(t, func(y *yard, d *identity.Devices) {
		ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
		d.Inventory = identity.Feed{URL: srv.URL + "/devices.csv", CAFile: y.write(t, "feed.pem", ca), TokenFile: y.write(t, "token", "canary-token\n")}
	})
	y.RefreshDevices(t.Context())
	if _, err := y.Device("d1"); err != nil {
		t.Fatalf("%v, %v", err, y.DeviceStatus())
	}
	y.RefreshDevices(t.Context())
	if unchanged.Load() == 0 {
		t.Error("an unchanged feed was sent again")
	}
	for _, bad := range []string{"redirect", "", "<html>"} {
		body.Store(bad)
		y.RefreshDevices(t.Context())
		if _, err := y.Device("d1"); err != nil || y.DeviceStatus()["feed:inventory"] == "" {
			t.Errorf("%q: %v; want the last good import, and an alarm: %v", bad, err, y.DeviceStatus())
		}
	}
}

func csr(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestEnrolment(t *testing.T) {
	local := identitytest.NewCA(t, "local")
	y := newYard(t, func(y *yard, d *identity.Devices) {
		d.Inventory = identity.Feed{}
		d.Enrolment = identity.Enrolment{
			CACert: y.write(t, "local.pem", string(local.PEM())), CAKey: y.write(t, "local-key.pem", string(local.KeyPEM(t))), Life: time.Hour,
		}
	})
	_, secret := person(t, y.Service)
	code := func(id string) string {
		c, err := y.MakeEnrolmentCode(t.Context(), identity.LocalDevice{ID: id, Owner: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		return c.Code
	}
	key := identitytest.NewECKey(t)
	enrol := func(code string, key any) (tls.Certificate, error) {
		draft, err := y.DraftEnrolment(t.Context(), code, csr(t, key), "linux")
		if err != nil {
			return tls.Certificate{}, err
		}
		chain, err := y.Enrol(t.Context(), draft)
		if err != nil {
			return tls.Certificate{}, err
		}
		block, _ := pem.Decode([]byte(chain))
		leaf, err := x509.ParseCertificate(block.Bytes)
		return tls.Certificate{Leaf: leaf}, err
	}
	old := code("laptop")
	unused := code("laptop")
	cert, err := enrol(old, key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := y.Authenticate(on(cert, "Bearer "+secret))
	if err != nil || p.Device.ID != "laptop" || p.Device.Tier != 2 || p.Device.Platform != "linux" {
		t.Fatalf("an enrolled device: %v, %+v", err, p.Device)
	}
	if left := time.Until(cert.Leaf.NotAfter); left > time.Hour || cert.Leaf.IsCA {
		t.Errorf("the certificate lives %s, authority %t", left, cert.Leaf.IsCA)
	}
	_, err = enrol(old, identitytest.NewECKey(t))
	wantCode(t, "a used code", err, identity.CredentialInvalid)
	_, err = enrol("GUESSED", identitytest.NewECKey(t))
	wantCode(t, "a wrong code", err, identity.CredentialInvalid)
	for _, stop := range []func() error{
		func() error { _, err := y.BlockDevice(t.Context(), "laptop", "stolen"); return err },
		func() error { _, err := y.DeleteDevice(t.Context(), "laptop"); return err },
	} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		_, err = y.Authenticate(on(cert, "Bearer "+secret))
		wantCode(t, "a stopped device", err, identity.DeviceBlockedCode)
		_, err = enrol(unused, identitytest.NewECKey(t))
		wantCode(t, "T68 a stopped device with an older code", err, identity.DeviceBlockedCode)
		_, err = y.MakeEnrolmentCode(t.Context(), identity.LocalDevice{ID: "laptop", Owner: "alice"})
		wantCode(t, "T68 a stopped device asks for a new code", err, identity.RequestInvalid)
		_, err = enrol(code("other"), key)
		wantCode(t, "T68 the key of a stopped device under another id", err, identity.DeviceBlockedCode)
	}
	t.Run("one code, two devices at once", func(t *testing.T) {
		shared, signed := code("twin"), 0
		var drafts []identity.EnrolmentDraft
		for range 2 {
			draft, err := y.DraftEnrolment(t.Context(), shared, csr(t, identitytest.NewECKey(t)), "")
			if err != nil {
				t.Fatal(err)
			}
			drafts = append(drafts, draft)
		}
		for _, draft := range drafts {
			if _, err := y.Enrol(t.Context(), draft); err == nil {
				signed++
			}
		}
		if signed != 1 {
			t.Errorf("one code signed %d certificates", signed)
		}
	})
	t.Run("T68 stopped between draft and signature", func(t *testing.T) {
		draft, err := y.DraftEnrolment(t.Context(), code("racer"), csr(t, identitytest.NewECKey(t)), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := y.BlockDevice(t.Context(), "racer", ""); err != nil {
			t.Fatal(err)
		}
		_, err = y.Enrol(t.Context(), draft)
		wantCode(t, "Enrol", err, identity.CredentialInvalid)
	})
	if _, err := y.UnblockDevice(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	if _, err := enrol(unused, identitytest.NewECKey(t)); err != nil {
		t.Errorf("after an administrator let it in again: %v", err)
	}
	_, err = y.Authenticate(on(cert, "Bearer "+secret))
	wantCode(t, "the certificate from before", err, identity.DeviceMismatch)
	for what, request := range map[string]string{"no request": "", "garbage": "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"} {
		_, err := y.DraftEnrolment(t.Context(), code("x"), request, "")
		wantCode(t, what, err, identity.RequestInvalid)
	}
}

// A block outlives a restart, and is learnt by the other nodes of a fleet.
func TestBlocksAreKept(t *testing.T) {
	y := newYard(t)
	db, keys := statetest.OpenDB(t), t.TempDir()
	cfg := identity.Config{Devices: y.DeviceConfig()}
	cfg.Devices.Pools = nil
	first := reopen(t, cfg, db, keys)
	if _, err := first.BlockDevice(t.Context(), "d1", "stolen"); err != nil {
		t.Fatal(err)
	}
	second := reopen(t, cfg, db, keys)
	_, secret := person(t, second)
	_, err := second.Authenticate(on(y.issue(t, "d1"), "Bearer "+secret))
	wantCode(t, "after a restart", err, identity.DeviceBlockedCode)
}

func TestRejectInHandshake(t *testing.T) {
	for reject, want := range map[bool]bool{true: true, false: false} {
		y := newYard(t, func(_ *yard, d *identity.Devices) { d.RejectInHandshake = reject })
		verdict := func(c tls.Certificate) error {
			return y.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.Leaf}})
		}
		if err := verdict(identitytest.NewCA(t, "x").Issue(t, identitytest.Leaf{URIs: []string{spiffe + "d1"}})); (err != nil) != want {
			t.Errorf("reject_in_handshake %t: %v", reject, err)
		}
		if err := verdict(y.issue(t, "d1")); err != nil {
			t.Errorf("a good device: %v", err)
		}
	}
}

// Ceilings of tokens of devices hold at use.
func TestBoundTokens(t *testing.T) {
	y := newYard(t)
	cert := y.issue(t, "d1")
	dev := identity.Device{ID: "d1", Proof: "mtls", SPKI: identitytest.SPKI(cert.Leaf), Serial: cert.Leaf.SerialNumber.Text(16), Issuer: "devices"}
	token, _ := mint(t, y.Service, identity.TokenRequest{Class: identity.ClassPerson, Subject: alice(), Scope: everything, Device: dev, Life: 90 * day})
	if token.Bound == nil || token.Bound.Device != "d1" {
		t.Errorf("bound to %+v", token.Bound)
	}
	for what, q := range map[string]identity.TokenRequest{
		"person, 91 days": {Class: identity.ClassPerson, Device: dev, Life: 91 * day}, "agent, 61 minutes": {Class: identity.ClassAgent, Device: dev, Life: 61 * time.Minute},
		"person without a device, 31 days": {Class: identity.ClassPerson, Life: 31 * day},
	} {
		q.Subject, q.Scope = alice(), modules("*")
		_, err := y.Draft(t.Context(), q)
		wantCode(t, what, err, identity.RequestInvalid)
	}
	_, err := y.Draft(t.Context(), identity.TokenRequest{Class: identity.ClassAgent, Subject: alice(), Scope: modules("*")})
	wantCode(t, "an agent's without a device", err, identity.DeviceRequired)
	dev.Ends = time.Now().Add(time.Minute)
	if token, _ := mint(t, y.Service, identity.TokenRequest{Class: identity.ClassAgent, Subject: alice(), Scope: modules("*"), Device: dev}); time.Until(token.Expires) > time.Minute {
		t.Errorf("the token outlives the device's certificate: %s", token.Expires)
	}
}

func TestDevicesConfig(t *testing.T) {
	good := identity.Devices{Listen: "127.0.0.1:0", ID: spiffe, CA: "ca.pem"}
	if errs := (identity.Config{Devices: good}).Validate(); len(errs) > 0 {
		t.Fatalf("a good section: %v", errs)
	}
	pin := strings.Repeat("ab", 32)
	tests := map[string]func(*identity.Devices){
		"devices.listen: ":   func(d *identity.Devices) { d.Listen = "nowhere" },
		"devices.ca: ":       func(d *identity.Devices) { d.CA = "" },
		"devices.id: ":       func(d *identity.Devices) { d.ID = "https://corp.example/device/" },
		"devices.balancer: ": func(d *identity.Devices) { d.Balancer.Listen = "127.0.0.1:1" }, // trust without a pin
		"devices.balancer.spki[0]: ": func(d *identity.Devices) {
			d.Balancer = identity.Balancer{Listen: "127.0.0.1:1", SPKI: []string{"sha256/x"}}
		},
		"devices.balancer.listen: ": func(d *identity.Devices) {
			d.Listen, d.Balancer = "127.0.0.1:1", identity.Balancer{Listen: "127.0.0.1:1", SPKI: []string{pin}}
		},
		"devices.connection_age: ":        func(d *identity.Devices) { d.ConnectionAge = time.Hour },
		"devices.require[0]: ":            func(d *identity.Devices) { d.Require = []string{"Disk Encrypted"} },
		"devices.pools[0].issuer: ":       func(d *identity.Devices) { d.Pools = []identity.Pool{{CA: "x"}} },
		"devices.pools[0].ca: ":           func(d *identity.Devices) { d.Pools = []identity.Pool{{Issuer: "corp"}} },
		"devices.pools[0].depth: ":        func(d *identity.Devices) { d.Pools = []identity.Pool{{Issuer: "corp", CA: "x", Depth: 9}} },
		"devices.pools[0].requires_crl: ": func(d *identity.Devices) { d.Pools = []identity.Pool{{Issuer: "corp", CA: "x", RequiresCRL: true}} },
		"devices.inventory.file: ":        func(d *identity.Devices) { d.Inventory = identity.Feed{File: "x.csv", URL: "https://x/y.csv"} },
		"devices.inventory.url: ":         func(d *identity.Devices) { d.Inventory = identity.Feed{URL: "http://x/y.csv"} },
		"devices.inventory.interval: ":    func(d *identity.Devices) { d.Inventory = identity.Feed{File: "x.csv", Interval: time.Millisecond} },
		"devices.posture[0].name: ":       func(d *identity.Devices) { d.Posture = []identity.Feed{{Name: "inventory", File: "x.csv"}} },
		"devices.enrolment: ":             func(d *identity.Devices) { d.Enrolment.CACert = "x" },
		"devices.enrolment.life: ":        func(d *identity.Devices) { d.Enrolment.Life = 1000 * day },
	}
	for want, spoil := range tests {
		d := good
		spoil(&d)
		errs := identity.Config{Devices: d}.Validate()
		if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), want) {
			t.Errorf("Validate() = %v; want one mistake that begins with %q", errs, want)
		}
	}
}

const manyDevices = 50_000

// BenchmarkDevice judges one device of 50,000: cold is a new connection with its signatures, warm another request on it.
func BenchmarkDevice(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	y := newYard(b, func(y *yard, d *identity.Devices) {
		var text strings.Builder
		text.WriteString("id,owner,serial,spki,platform,managed,observed_at,disk_encrypted,firewall\n")
		at := time.Now().UTC().Format(time.RFC3339)
		for i := range manyDevices {
			fmt.Fprintf(&text, "laptop-%d,person-%d@corp.example,%x,,linux,true,%s,true,true\n", i, i, 1_000_000+i, at)
		}
		fmt.Fprintf(&text, "d1,alice,,,linux,true,%s,true,true\n", at)
		y.write(b, "devices.csv", text.String())
		y.write(b, "ca.crl", string(y.ca.CRL(b, identitytest.List{})))
		d.CRL, d.Require = []string{filepath.Join(y.dir, "ca.crl")}, []string{"disk_encrypted", "firewall"}
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	_, secret := person(b, y.Service)
	cert := y.issue(b, "d1")
	ask := func(b *testing.B, r *http.Request) {
		if p, err := y.Authenticate(r); err != nil || p.Device.Tier != 4 {
			b.Fatal(err, p.Device)
		}
	}
	b.Run("cold", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ask(b, on(cert, "Bearer "+secret))
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB/50000")
	})
	b.Run("warm", func(b *testing.B) {
		r := on(cert, "Bearer "+secret)
		b.ReportAllocs()
		for b.Loop() {
			ask(b, r)
		}
	})
}
