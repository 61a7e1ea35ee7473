package identity_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
)

// compareMetrics compares counters by name and labels.
func compareMetrics(t *testing.T, reg *prometheus.Registry, want map[string]float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			got[key] = m.GetCounter().GetValue()
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestValidate(t *testing.T) {
	good := identity.Issuer{Name: "corp", URL: corp, Audiences: []string{"headgate"}}
	bad := func(change func(*identity.Issuer)) identity.Config {
		i := good
		change(&i)
		return identity.Config{Issuers: []identity.Issuer{i}}
	}
	for name, tt := range map[string]struct {
		cfg  identity.Config
		want string
	}{
		"T42 no audiences":           {bad(func(i *identity.Issuer) { i.Audiences = nil }), "issuers[0].audiences: "},
		"T42 an empty audience":      {bad(func(i *identity.Issuer) { i.Audiences = []string{"a", ""} }), "issuers[0].audiences: "},
		"T39 alg none":               {bad(func(i *identity.Issuer) { i.Algorithms = []string{"none"} }), "issuers[0].algorithms[0]: "},
		"T40 symmetric alg":          {bad(func(i *identity.Issuer) { i.Algorithms = []string{"RS256", "HS256"} }), "issuers[0].algorithms[1]: "},
		"http":                       {bad(func(i *identity.Issuer) { i.URL = "http://id.corp.example" }), "issuers[0].url: "},
		"no url":                     {bad(func(i *identity.Issuer) { i.URL = "" }), "issuers[0].url: "},
		"url with a query":           {bad(func(i *identity.Issuer) { i.URL += "?x" }), "issuers[0].url: "},
		"url with a password":        {bad(func(i *identity.Issuer) { i.URL = "https://a:b@id.corp.example" }), "issuers[0].url: "},
		"no name":                    {bad(func(i *identity.Issuer) { i.Name = "" }), "issuers[0].name: "},
		"unknown type":               {bad(func(i *identity.Issuer) { i.Type = "robot" }), "issuers[0].type: "},
		"same name and url":          {identity.Config{Issuers: []identity.Issuer{good, good}}, "issuers[1].name: "},
		"ceiling raised":             {identity.Config{Ceilings: identity.Ceilings{Person: 721 * time.Hour}}, "ceilings.person: "},
		"ceiling negative":           {identity.Config{Ceilings: identity.Ceilings{Admin: -1}}, "ceilings.admin: "},
		"T65 ceiling of jobs raised": {identity.Config{Ceilings: identity.Ceilings{Job: 2 * time.Hour}}, "ceilings.job: "},
	} {
		t.Run(name, func(t *testing.T) {
			errs := tt.cfg.Validate()
			if len(errs) == 0 || !strings.HasPrefix(errs[0].Error(), tt.want) {
				t.Errorf("Validate() = %v, want an error that begins with %q", errs, tt.want)
			}
			s, err := identity.Open(t.Context(), tt.cfg, identity.Options{DB: statetest.OpenDB(t), Keys: t.TempDir()})
			if err == nil {
				_ = s.Close()
				t.Error("Open starts with it")
			}
		})
	}
	t.Run("all mistakes at once", func(t *testing.T) {
		cfg := identity.Config{Issuers: []identity.Issuer{{}, {Name: "x", URL: "ftp://x", Type: "x"}}, Ceilings: identity.Ceilings{CI: -1}}
		if errs := cfg.Validate(); len(errs) != 7 {
			t.Errorf("Validate() finds %d mistakes, want 7:\n%v", len(errs), errors.Join(errs...))
		}
	})
	t.Run("good ones", func(t *testing.T) {
		for _, cfg := range []identity.Config{{}, {Issuers: []identity.Issuer{good}, Ceilings: identity.Ceilings{Person: time.Hour}}} {
			if errs := cfg.Validate(); len(errs) > 0 {
				t.Errorf("Validate(%+v) = %v", cfg, errs)
			}
		}
	})
}
