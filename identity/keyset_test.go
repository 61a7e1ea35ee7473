package identity_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/identity/identitytest"
)

// fresh is a token of a person, signed now with the issuer's key.
func fresh(i *identitytest.Issuer) string {
	return i.Sign(i.Claims("u-1", "headgate", nil))
}

func TestKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, trust(iss), iss)
		old := iss.Key()
		if _, err := bearer(s, fresh(iss)); err != nil {
			t.Fatal(err)
		}
		next := identitytest.NewKey("key-2")
		iss.Publish(old.JWK(), next.JWK())
		iss.Use(next)
		if _, err := bearer(s, fresh(iss)); err != nil {
			t.Errorf("a token of a new key: %v", err)
		}
		iss.Publish(next.JWK())
		iss.Use(old)
		time.Sleep(10*time.Minute + time.Second)
		_, err := bearer(s, fresh(iss))
		wantCode(t, "T48 a token of a withdrawn key after 10 minutes", err, identity.CredentialInvalid)
		iss.Publish()
		time.Sleep(10*time.Minute + time.Second)
		iss.Use(next)
		_, err = bearer(s, fresh(iss))
		wantCode(t, "T48 all keys withdrawn", err, identity.CredentialInvalid)
	})
}

func TestFloodOfUnknownKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, trust(iss), iss)
		good := fresh(iss)
		if _, err := bearer(s, good); err != nil {
			t.Fatal(err)
		}
		before := iss.Asked("/keys")
		evil := identitytest.NewKey("")
		claims := payload(t, iss.Claims("u-1", "headgate", nil))
		published := payload(t, map[string]any{"keys": []any{iss.Key().JWK()}})
		iss.Fail(func(w http.ResponseWriter, _ *http.Request) { // the one fetch is slow, too
			time.Sleep(3 * time.Second)
			_, _ = w.Write(published)
		})
		var wg sync.WaitGroup
		for n := range 10_000 {
			wg.Go(func() {
				kid := fmt.Sprintf("kid-%d", n)
				_, err := bearer(s, identitytest.SignRaw(evil, map[string]any{"alg": "ES256", "kid": kid}, claims))
				if err == nil {
					t.Errorf("kid %s is accepted", kid)
				}
			})
		}
		begin := time.Now()
		if _, err := bearer(s, good); err != nil || time.Since(begin) > 0 {
			t.Errorf("T49 a good token in the flood waits %v: %v", time.Since(begin), err)
		}
		wg.Wait()
		time.Sleep(29*time.Second - time.Since(begin))
		if n := iss.Asked("/keys") - before; n != 1 {
			t.Errorf("T49 %d fetches in 30 s, want 1", n)
		}
	})
}

func TestUnknownKeyAsksAgainAfterHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		s := start(t, trust(iss), iss)
		_, _ = bearer(s, fresh(iss))
		unknown := identitytest.NewKey("key-2")
		iss.Use(unknown)
		for range 61 {
			_, err := bearer(s, fresh(iss))
			wantCode(t, "unknown key", err, identity.CredentialInvalid)
			time.Sleep(time.Second)
		}
		if n := iss.Asked("/keys"); n != 1+3 {
			t.Errorf("T49 %d fetches in 61 s, want the first and one each at 0, 30 and 60 s", n)
		}
	})
}

func TestCancelledRequestDoesNotPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		slow := make(chan struct{})
		iss.Fail(func(w http.ResponseWriter, r *http.Request) {
			<-slow
			iss.Fail(nil)
			iss.ServeHTTP(w, r)
		})
		s := start(t, trust(iss), iss)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Authenticate(request("Bearer " + fresh(iss)).WithContext(ctx))
		wantCode(t, "T50 first verification with a cancelled context", err, identity.IssuerDown)
		close(slow)
		synctest.Wait()
		if _, err := bearer(s, fresh(iss)); err != nil {
			t.Errorf("T50 the next request: %v", err)
		}
		next := identitytest.NewKey("key-2")
		iss.Publish(next.JWK())
		iss.Use(next)
		_, _ = s.Authenticate(request("Bearer " + fresh(iss)).WithContext(ctx)) // it wakes the fetch and does not wait for it
		synctest.Wait()
		if _, err := bearer(s, fresh(iss)); err != nil {
			t.Errorf("T50 rotation after a cancelled request: %v", err)
		}
	})
}

func TestIssuerDown(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"503": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) },
		"200 with HTML": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("<!doctype html><title>maintenance</title>"))
		},
		"200 with other JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"error":"down"}`)) },
		"300 KiB": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "openid-configuration") {
				_, _ = w.Write([]byte(`{"issuer":"` + corp + `","jwks_uri":"` + corp + `/keys"}`))
				return
			}
			_, _ = w.Write([]byte(`{"keys":[]}` + strings.Repeat(" ", 300<<10)))
		},
		"65 keys": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "openid-configuration") {
				_, _ = w.Write([]byte(`{"issuer":"` + corp + `","jwks_uri":"` + corp + `/keys"}`))
				return
			}
			_, _ = w.Write([]byte(`{"keys":[` + strings.Repeat("{},", 64) + `{}]}`))
		},
		"redirect to another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://id.elsewhere.example"+r.URL.Path, http.StatusFound)
		},
		"redirect to http": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://id.corp.example"+r.URL.Path, http.StatusFound)
		},
		"another issuer's discovery": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"issuer":"` + corp + `/","jwks_uri":"` + corp + `/keys"}`))
		},
		"key set over http": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"issuer":"` + corp + `","jwks_uri":"http://id.corp.example/keys"}`))
		},
	}
	for name, answer := range answers {
		t.Run("T51 at start: "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				iss, elsewhere := identitytest.NewIssuer(corp), identitytest.NewIssuer("https://id.elsewhere.example")
				elsewhere.Publish(iss.Key().JWK())
				iss.Fail(answer)
				s := start(t, trust(iss), iss, elsewhere)
				_, err := bearer(s, fresh(iss))
				wantCode(t, "Authenticate", err, identity.IssuerDown)
				if n := elsewhere.Asked("/.well-known/openid-configuration"); n > 0 {
					t.Errorf("the redirect was followed %d times", n)
				}
				iss.Fail(nil)
				time.Sleep(31 * time.Second)
				if _, err := bearer(s, fresh(iss)); err != nil {
					t.Errorf("after the issuer is back: %v", err)
				}
			})
		})
	}
	for _, name := range []string{"503", "200 with HTML", "65 keys"} {
		for kind, limit := range map[string]time.Duration{identity.Person: 24 * time.Hour, identity.Workload: time.Hour} {
			t.Run("T51 later: "+name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { outage(t, kind, limit, answers[name]) })
			})
		}
	}
}

// outage holds that old keys serve up to their age when the issuer is away.
func outage(t *testing.T, kind string, limit time.Duration, answer http.HandlerFunc) {
	iss := identitytest.NewIssuer(corp)
	cfg := trust(iss)
	cfg.Issuers[0].Type = kind
	s := start(t, cfg, iss)
	if _, err := bearer(s, fresh(iss)); err != nil {
		t.Fatal(err)
	}
	iss.Fail(answer)
	time.Sleep(limit - time.Second)
	if _, err := bearer(s, fresh(iss)); err != nil {
		t.Errorf("keys of %v: %v", limit-time.Second, err)
	}
	time.Sleep(2 * time.Second)
	_, err := bearer(s, fresh(iss))
	wantCode(t, "keys too old", err, identity.IssuerDown)
	iss.Fail(nil)
	time.Sleep(31 * time.Second)
	if _, err := bearer(s, fresh(iss)); err != nil {
		t.Errorf("after the issuer is back: %v", err)
	}
}

func TestTokenWithoutKid(t *testing.T) {
	iss := identitytest.NewIssuer(corp)
	s := start(t, trust(iss), iss)
	bare := func() string {
		return iss.SignHeader(map[string]any{"kid": nil}, iss.Claims("u-1", "headgate", nil))
	}
	if _, err := bearer(s, bare()); err != nil {
		t.Errorf("one key fits: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		iss.Publish(identitytest.NewKey("other").JWK(), iss.Key().JWK())
		s := start(t, trust(iss), iss)
		_, err := bearer(s, bare())
		wantCode(t, "two keys fit", err, identity.CredentialInvalid)
	})
}

func TestCAFile(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	iss := identitytest.NewIssuer(corp)
	for name, file := range map[string]string{"missing": filepath.Join(dir, "missing"), "garbage": garbage, "a folder": dir} {
		t.Run(name, func(t *testing.T) {
			cfg := trust(iss)
			cfg.Issuers[0].CAFile = file
			if s, err := identity.Open(t.Context(), cfg, identity.Options{DB: statetest.OpenDB(t), Keys: t.TempDir()}); err == nil {
				_ = s.Close()
				t.Error("Open takes it")
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := identitytest.NewIssuer(corp)
		reg := prometheus.NewPedanticRegistry()
		s, err := identity.Open(t.Context(), trust(iss), identity.Options{
			DB: statetest.OpenDB(t), Keys: t.TempDir(), Registerer: reg, HTTPClient: identitytest.Client(iss),
		})
		if err != nil {
			t.Fatal(err)
		}
		_, secret := person(t, s)
		_, _ = bearer(s, secret)
		_, _ = bearer(s, fresh(iss))
		_, _ = s.Authenticate(request())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		want := map[string]float64{
			"headgate_auth_total jwt CREDENTIAL-INVALID": 0, "headgate_auth_total jwt ISSUER-DOWN": 0,
			"headgate_auth_total jwt TOKEN-EXPIRED": 0, "headgate_auth_total jwt ok": 1,
			"headgate_auth_total none CREDENTIAL-INVALID": 0, "headgate_auth_total none CREDENTIAL-MISSING": 1,
			"headgate_auth_total token CREDENTIAL-INVALID": 0, "headgate_auth_total token TOKEN-EXPIRED": 0,
			"headgate_auth_total token TOKEN-REVOKED": 0, "headgate_auth_total token ok": 1, "headgate_auth_total token LOCKED": 0,
			"headgate_auth_total jwt LOCKED": 0, "headgate_auth_total jwt SESSION-OVER": 0, "headgate_auth_total token SESSION-OVER": 0, "headgate_revocation_view_age_seconds": 0, "headgate_tokens 1": 0, "headgate_tokens none": 0,
			"headgate_jwks_refresh_total corp error": 0, "headgate_jwks_refresh_total corp ok": 1,
		}
		compareMetrics(t, reg, want)
	})
}
