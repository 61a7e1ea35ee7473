package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSignIn(t *testing.T) {
	dir := t.TempDir()
	people, err := newPeople(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := startProvider(dir, people)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}()
	token, err := p.signIn(t.Context(), people[0])
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Iss, Sub string
		Aud      []string
		Groups   []string
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Iss != p.issuer || claims.Sub != people[0].id || !reflect.DeepEqual(claims.Groups, people[0].groups) || !reflect.DeepEqual(claims.Aud, []string{clientID}) {
		t.Errorf("claims of %s = %+v", people[0].login, claims)
	}
	people[0].password = "wrong"
	if _, err := p.signIn(t.Context(), people[0]); err == nil {
		t.Error("signing in with a wrong password gave no error")
	}
}

func TestSumMetric(t *testing.T) {
	const text = "# TYPE m counter\nm{result=\"ok\",upstream=\"a\"} 3\nm{result=\"failed\",upstream=\"a\"} 1e+02\nm{result=\"breaker_open\",upstream=\"a\"} 5\nmm{x=\"y\"} 7\n"
	if got, err := sumMetric(text, "m", `result="breaker_open"`); err != nil || got != 103 {
		t.Errorf("sumMetric = %d, %v, want 103", got, err)
	}
	if _, err := sumMetric(text, "absent", "x"); err == nil {
		t.Error("sumMetric of a metric that is not there gave no error")
	}
}

func TestPolicySpeed(t *testing.T) {
	var speed policySpeed
	const printed = `{"revision":"r","activate_ns":5000000,"heap_bytes":2097152,"list_cold_ns":60000000,"list_warm_ns":1000000,` +
		`"rows":[{"entry":"access","cached":true,"p50_ns":100,"p99_ns":1000,"allocs":0},{"entry":"release","cached":false,"p50_ns":50000,"p99_ns":500000,"allocs":7}]}`
	if err := json.Unmarshal([]byte(printed), &speed); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	speed.print(&teller{out: &out})
	for _, want := range []string{
		"| B10 access, out of the cache | 0.10 µs | 1.00 µs | 0 |", "| B10 release, evaluated | 50.00 µs | 500.00 µs | 7 |",
		"2000 versions judged: cold · warm | 60.00 ms · 1.00 ms |", "| 5 ms · 2 MB |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
}

func TestParseStat(t *testing.T) {
	const stat = "42 (a name) with) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 5 0 1 2 3"
	if got, err := parseStat(stat); err != nil || got != 3*time.Second {
		t.Errorf("parseStat = %v, %v, want 3s", got, err)
	}
	if _, err := parseStat("42 (x) S 1"); err == nil {
		t.Error("parseStat of a short line gave no error")
	}
}

func TestHighest(t *testing.T) {
	if got := highest("v1.2.0\nv1.10.0\nv1.9.9\nv1.10.0-rc.1\n"); got != "v1.10.0" {
		t.Errorf("highest = %q, want v1.10.0", got)
	}
}

func TestSecretless(t *testing.T) {
	for token, want := range map[string]string{"hg_hu_abc_secretpart_x": "hg_hu_abc_...", "nonsense": "..."} {
		if got := secretless(token); got != want {
			t.Errorf("secretless(%q) = %q, want %q", token, got, want)
		}
	}
}

func TestClaims(t *testing.T) {
	var out bytes.Buffer
	teller := newTeller(&out)
	if err := teller.claims(true, "%d is one", 1); err != nil || out.String() != "   ok: 1 is one\n" {
		t.Errorf("claims(true) = %v, printed %q", err, &out)
	}
	if err := teller.claims(false, "two is one"); !errors.Is(err, errClaim) || !strings.Contains(err.Error(), "two is one") {
		t.Errorf("claims(false) = %v, want errClaim with the sentence", err)
	}
}

func TestModuleList(t *testing.T) {
	w := &world{}
	if err := w.readModules(); err != nil {
		t.Fatal(err)
	}
	if len(w.modules) != 137 || w.versionOf(deniedModule) == "none" || w.versionOf(withheldModule) == "none" {
		t.Errorf("%d modules, %s %s, %s %s", len(w.modules), deniedModule, w.versionOf(deniedModule), withheldModule, w.versionOf(withheldModule))
	}
}

func TestCommandLine(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want error
		out  string
	}{
		"help":            {[]string{"--help"}, nil, "Examples:"},
		"unknown flag":    {[]string{"--nope"}, errUse, ""},
		"unknown verb":    {[]string{"nope"}, errUse, ""},
		"too much":        {[]string{"bench", "more"}, errUse, ""},
		"bench and stay":  {[]string{"bench", "--stay"}, errUse, ""},
		"runs of bench":   {[]string{"bench", "--runs", "1"}, errUse, ""},
		"fewer than none": {[]string{"download", "--runs", "-1"}, errUse, ""},
		"archive alone":   {[]string{"--archive", "x"}, errUse, ""},
		"download stays":  {[]string{"download", "--stay"}, errUse, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), tt.args, strings.NewReader(""), &out)
			if !errors.Is(err, tt.want) || !strings.Contains(out.String(), tt.out) {
				t.Errorf("run(%q) = %v, printed %q", tt.args, err, &out)
			}
		})
	}
}
