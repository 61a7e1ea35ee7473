package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCountLog(t *testing.T) {
	const log = `> 1 GET /sumdb/sum.golang.org/supported
> 2 GET /example.com/m/@v/v1.0.0.info
< 1 200 0 0.010
> 3 GET /example.com/m/@v/v1.0.0.mod
> 4 GET /example.com/m/@v/v1.0.0.zip
< 2 200 51 0.020
> 5 GET /example.com/m/@v/list
> 6 GET /example.com/m/@latest
> 7 GET /
< 7 broken 0 0.001 "> 8 GET /no/request"
garbage
`
	got, err := countLog(strings.NewReader(log))
	want := tally{all: 7, list: 2, info: 1, mod: 1, zip: 1, sumdb: 1}
	if err != nil || got != want {
		t.Errorf("countLog = %+v, %v, want %+v", got, err, want)
	}
	if got := want.minus(tally{all: 1, sumdb: 1}); got != (tally{all: 6, list: 2, info: 1, mod: 1, zip: 1}) {
		t.Errorf("minus = %+v", got)
	}
}

func TestRelay(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/base/%21m/@v/list":
			_, _ = io.WriteString(w, "v1.0.0\n")
		case "/base/moved":
			http.Redirect(w, r, "/base/%21m/@v/list", http.StatusFound)
		case "/base/cut":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "short")
		default:
			http.Error(w, "not found", http.StatusNotFound)
		}
	}))
	defer upstream.Close()
	name := filepath.Join(t.TempDir(), "relay.log")
	log, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	front := httptest.NewServer(&relay{upstream: upstream.URL + "/base", client: upstream.Client(), log: log})
	defer front.Close()

	for _, tt := range []struct {
		path, body string
		status     int
	}{
		{"/%21m/@v/list", "v1.0.0\n", 200},
		{"/moved", "v1.0.0\n", 200},
		{"/absent", "not found\n", 404},
	} {
		got, err := get(t.Context(), front.Client(), front.URL+tt.path, "secret")
		if err != nil || got.status != tt.status || got.body != tt.body {
			t.Errorf("GET %s = %d %q, %v, want %d %q", tt.path, got.status, got.body, err, tt.status, tt.body)
		}
	}
	// Over a new connection: a client may ask again over a kept one that broke.
	once := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if got, err := get(t.Context(), once, front.URL+"/cut", ""); err == nil {
		t.Errorf("GET of an answer that breaks off = %q, want an error", got.body)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := countLog(strings.NewReader(string(text))); err != nil || got.all != 4 || strings.Contains(string(text), "secret") {
		t.Errorf("the log counts %d requests, %v, want 4 and no secret:\n%s", got.all, err, text)
	}
}
