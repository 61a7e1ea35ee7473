package identity

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What is read as Client-Cert is the whole certificate, and prints back as it was.
func FuzzClientCert(f *testing.F) {
	f.Add(":AAAA:")
	f.Add(": :")
	f.Add("\"CN=x\"")
	f.Add(":MIIB:, :MIIB:")
	f.Fuzz(func(t *testing.T, value string) {
		cert, err := parseClientCert(value)
		if err != nil {
			return
		}
		if again := ":" + base64.StdEncoding.EncodeToString(cert.Raw) + ":"; again != strings.Trim(value, " ") {
			t.Errorf("%q reads as %q", value, again)
		}
	})
}

// A list that is read revokes what its entries say, and nothing else.
func FuzzCRL(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		lists, err := parseCRLs(data)
		if err != nil {
			return
		}
		for _, c := range lists {
			again, err := x509.ParseRevocationList(c.list.Raw)
			if err != nil {
				t.Fatalf("a list that was read cannot be read again: %v", err)
			}
			serials := map[string]bool{}
			for _, e := range again.RevokedCertificateEntries {
				serials[string(e.SerialNumber.Bytes())] = true
			}
			if len(serials) != len(c.revoked) || c.list.NextUpdate.IsZero() {
				t.Errorf("%d serial numbers revoked, want %d", len(c.revoked), len(serials))
			}
		}
	})
}

// Whatever a feed holds, what is taken in keeps the rules: ids of our alphabet, no formula, no time of the future, no
// number twice.
func FuzzFeed(f *testing.F) {
	for _, name := range []string{"d.csv", "d.json", "d.yaml"} {
		f.Add(name, []byte("id,owner,serial,observed_at,disk\nd1,ann,0a,2020-01-01 00:00:00,yes\n"))
		f.Add(name, []byte(`[{"id":"d1","owner":"ann","facts":{"disk":true},"observed_at":1}]`))
		f.Add(name, []byte("devices:\n- id: d1\n  shared: true\n"))
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		c, err := parseFeed(Feed{}, name, data, now)
		if err != nil {
			return
		}
		serials := map[string]bool{}
		for id, row := range c.rows {
			if id != row.id || !deviceName.MatchString(id) || strings.HasPrefix(row.owner, "=") {
				t.Errorf("row %q: %+v", id, row)
			}
			if row.serial != "" && serials[row.serial] {
				t.Errorf("serial number %s twice", row.serial)
			}
			serials[row.serial] = true
			if again, err := parseSerial(row.serial); row.serial != "" && (err != nil || again != row.serial) {
				t.Errorf("serial number %q reads again as %q, %v", row.serial, again, err)
			}
			for _, fact := range row.facts {
				if fact.at > now.Add(ahead).Unix() || !shortName.MatchString(fact.name) {
					t.Errorf("fact %+v", fact)
				}
			}
		}
	})
}

// The spelling of a name changes nothing.
func FuzzForwardedIdentity(f *testing.F) {
	f.Add("Client-Cert")
	f.Add("x_ssl_client_cert")
	f.Add("User-Agent")
	f.Fuzz(func(t *testing.T, name string) {
		want := ForwardedIdentity(name)
		for _, other := range []string{strings.ReplaceAll(name, "-", "_"), strings.ToLower(name), http.CanonicalHeaderKey(name)} {
			if strings.EqualFold(name, other) || strings.ContainsAny(name, "-_") {
				if got := ForwardedIdentity(other); got != want {
					t.Errorf("%q is %t, %q is %t", name, want, other, got)
				}
			}
		}
	})
}
