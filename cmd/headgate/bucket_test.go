package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
	"github.com/headgate/headgate/gateway/mirror/store/storetest"
)

// Two gateways over one bucket of a real S3 server: what the first one took in
// the second one serves, with nobody to ask.
func TestTwoGatewaysOverOneBucket(t *testing.T) {
	_, bucket := storetest.S3(t)
	up := mirrortest.Start(t, "module example.com/hello@v1.0.0\n-- go.mod --\nmodule example.com/hello\n-- h.go --\npackage hello\n")
	env := []string{"AWS_ACCESS_KEY_ID=" + storetest.AccessKey, "AWS_SECRET_ACCESS_KEY=" + storetest.SecretKey}
	over := func(upstreams string) *site {
		s := newSite(t, up, "")
		s.reconfigure(func(config string) string {
			config = strings.Replace(config, "upstreams: ["+up.URL+"]", "upstreams: ["+upstreams+"]", 1)
			return strings.Replace(config, "mirror: {", `mirror: {store: "`+bucket+`&prefix=fleet", `, 1)
		}, env...)
		return s
	}
	paths := []string{
		"/example.com/hello/@v/list", "/example.com/hello/@v/v1.0.0.info", "/example.com/hello/@v/v1.0.0.mod", "/example.com/hello/@v/v1.0.0.zip",
	}
	first := over(up.URL)
	first.goDownload(t, first.token, "example.com/hello@v1.0.0")
	want := map[string]string{}
	for _, path := range paths {
		want[path] = first.text(t, path)
	}
	if left := filepath.Join(first.dir, "state", "store", "public", "example.com"); exists(left) {
		t.Errorf("%s is there though the store is a bucket", left)
	}
	up.Forget()
	second := over("off")
	second.goDownload(t, second.token, "example.com/hello@v1.0.0")
	for _, path := range paths {
		if got := second.text(t, path); got != want[path] {
			t.Errorf("second gateway: %s is %q, want %q", path, got, want[path])
		}
	}
	if asked := up.Requests(); len(asked) > 0 {
		t.Errorf("the second gateway asked the upstream: %v", asked)
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// text is what the person gets, with its ETag.
func (s *site) text(t *testing.T, path string) string {
	t.Helper()
	resp, err := s.get(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("GET %s: %s, %v: %s", path, resp.Status, err, b)
	}
	return resp.Header.Get("ETag") + " " + string(b)
}
