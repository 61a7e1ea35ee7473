package gateway

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

func TestT67TokensOfADevice(t *testing.T) {
	f := newFleet(t)
	d1 := f.corp.Issue(t, device("d1"))
	c1, c2 := f.client(t, d1), f.client(t, f.corp.Issue(t, device("d2")))
	agent := f.exchange(t, c1, f.minter(t), http.StatusOK)
	if agent[:6] != "hg_ag_" {
		t.Fatalf("the exchange on a device gave %s", agent[:6])
	}
	person := f.bound(t, "d1", d1)
	get := func(c *http.Client, token string) reply {
		old := f.token
		defer func() { f.token = old }()
		f.token = token
		return f.get(t, c)
	}
	public := func(token string) reply {
		old := f.token
		defer func() { f.token = old }()
		f.token = token
		r, err := f.do(t, f.client(t), f.publicListener.Addr().String(), modFile)
		must(t, err)
		return r
	}
	f.wantServed(t, get(c1, agent))
	f.wantServed(t, get(c1, person))
	f.wantServed(t, public(agent))
	if rec := f.lastRecord(t); rec.Device.ID != "d1" || rec.Device.Via != "token" || rec.Device.Tier != 2 {
		t.Errorf("an agent's token beside its device: %+v", rec.Device)
	}
	for name, ask := range map[string]func() reply{
		"T67 agent's from another device":  func() reply { return get(c2, agent) },
		"T67 person's from another device": func() reply { return get(c2, person) },
		"T67 person's without mTLS":        func() reply { return public(person) },
		"T67 with another key of that id":  func() reply { return get(f.client(t, f.corp.Issue(t, device("d1"))), person) },
	} {
		t.Run(name, func(t *testing.T) { f.wantRefused(t, "DEVICE-MISMATCH", ask) })
	}
	t.Run("T67 exchanged elsewhere", func(t *testing.T) {
		f.exchange(t, c2, person, http.StatusForbidden)
		if rec := f.lastRecord(t); rec.Kind != audit.KindAuth || rec.Severity != 4 || rec.Decision.Codes[0] != "DEVICE-MISMATCH" {
			t.Errorf("record %+v", rec.Decision)
		}
	})
	t.Run("device gone, token there", func(t *testing.T) {
		_, err := f.identity.BlockDevice(t.Context(), "d1", "stolen")
		must(t, err)
		f.wantRefused(t, "DEVICE-BLOCKED", func() reply { return public(agent) })
		_, err = f.identity.UnblockDevice(t.Context(), "d1")
		must(t, err)
		f.crl(t, identitytest.List{Number: 2, Revoked: []*big.Int{d1.Leaf.SerialNumber}})
		f.reload()
		f.wantRefused(t, "DEVICE-REVOKED", func() reply { return public(agent) })
		f.crl(t, identitytest.List{Number: 3})
		f.inventory(t, "d2,ann", "d3,bob", "shared,,,,linux,true,true")
		f.reload()
		f.wantRefused(t, "DEVICE-UNKNOWN", func() reply { return public(agent) })
	})
}

// minter is a token of ann's that may mint.
func (f *fleet) minter(t *testing.T) string {
	t.Helper()
	return f.issue(t, identity.TokenRequest{Class: identity.ClassPerson, Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content", "mint"}}})
}

// bound is a token of ann's that is bound to a device.
func (f *fleet) bound(t *testing.T, id string, cert tls.Certificate) string {
	t.Helper()
	return f.issue(t, identity.TokenRequest{
		Class: identity.ClassPerson, Scope: identity.Scope{Modules: []string{"*"}, Actions: []string{"discover", "metadata", "content", "mint"}}, Life: 60 * 24 * time.Hour,
		Device: identity.Device{ID: id, Proof: "mtls", SPKI: identitytest.SPKI(cert.Leaf), Serial: cert.Leaf.SerialNumber.Text(16), Issuer: "corp"},
	})
}

func (f *fleet) issue(t *testing.T, q identity.TokenRequest) string {
	t.Helper()
	q.Subject = identity.Subject{Type: identity.Person, ID: "ann"}
	draft, err := f.identity.Draft(t.Context(), q)
	must(t, err)
	secret, err := f.identity.Issue(t.Context(), draft)
	must(t, err)
	return secret
}

// exchange asks the device listener for a token.
func (f *fleet) exchange(t *testing.T, c *http.Client, token string, want int) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+f.DeviceAddress()+"/-/oauth/token", strings.NewReader(url.Values{
		"grant_type": {identity.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {identity.TypeAccessToken},
	}.Encode()))
	must(t, err)
	r.Host = "localhost"
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.Do(r)
	must(t, err)
	defer resp.Body.Close()
	var got struct {
		Token string `json:"access_token"`
	}
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != want {
		t.Fatalf("exchange: %d %s; want %d", resp.StatusCode, body, want)
	}
	must(t, json.Unmarshal(body, &got))
	return got.Token
}
