package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/modfile"
)

// An archive serves its files over TLS and HTTP/2, fetches what it lacks of the checksum database once, never a module,
// and logs each request.
func TestArchive(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.URL.Path)
		if strings.HasSuffix(r.URL.Path, "missing") {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, "tile")
	}))
	defer upstream.Close()
	home, root := t.TempDir(), t.TempDir()
	pool, err := writeCertificates(home)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeWhole(filepath.Join(root, "example.com/!m/@v/v1.0.0.zip"), []byte("zip!")); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(home, "log")
	address, stop := servedArchive(t, upstream.URL, home, root, log)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/example.com/!m/@v/v1.0.0.zip", 200, "zip!"},
		{"/example.com/!m/@v/v1.1.0.zip", 404, ""},
		{"/sumdb/s/tile/8/0/000", 200, "tile"},
		{"/sumdb/s/tile/8/0/000", 200, "tile"},
		{"/sumdb/s/missing", 404, ""},
	} {
		got, err := get(t.Context(), client, "https://"+address+tt.path, "")
		if err != nil || got.status != tt.status || tt.body != "" && got.body != tt.body {
			t.Errorf("GET %s = %d %q, %v, want %d %q", tt.path, got.status, got.body, err, tt.status, tt.body)
		}
	}
	stop()
	if want := []string{"/sumdb/s/tile/8/0/000", "/sumdb/s/missing"}; !slices.Equal(asked, want) {
		t.Errorf("the upstream was asked for %v, want %v", asked, want)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := moduleBytes(strings.NewReader(string(text))); err != nil || n != 4 {
		t.Errorf("moduleBytes = %d, %v, want 4\n%s", n, err, text)
	}
	if n, err := countLog(strings.NewReader(string(text))); err != nil || n.zip != 2 || n.sumdb != 3 || n.all != 5 {
		t.Errorf("countLog = %s, %v\n%s", n, err, text)
	}
}

// servedArchive runs the verb until stop.
func servedArchive(t *testing.T, upstream, home, root, log string) (address string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, input := io.Pipe()
	output, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"archive", home, root, log}, in, out) }()
	if _, err := fmt.Fprintln(input, upstream); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(output, &address); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, output) }()
	return address, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("archive ended: %v", err)
		}
		input.Close()
		out.Close()
	}
}

// Names that lead out of the folder are not filled.
func TestArchiveStaysInside(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "x") }))
	defer upstream.Close()
	dir := t.TempDir()
	a := &archive{root: filepath.Join(dir, "root"), upstream: upstream.URL, client: upstream.Client()}
	if err := a.fill(t.Context(), "/sumdb/../../outside"); err == nil {
		t.Error("fill of a path with dots gave no error")
	}
	if _, err := os.Stat(filepath.Join(dir, "outside")); err == nil {
		t.Error("fill wrote outside of its folder")
	}
}

// The lists of modules are in the program.
func TestListsAreEmbedded(t *testing.T) {
	for name, want := range map[string]int{moduleList: 137, largeList: 536} {
		data, err := testdata.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := modfile.Parse(name, data, nil)
		if err != nil || len(f.Require) != want {
			t.Errorf("%s: %d modules, %v, want %d", name, len(f.Require), err, want)
		}
	}
}
