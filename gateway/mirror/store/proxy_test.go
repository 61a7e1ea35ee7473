package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/headgate/headgate/gateway/mirror/store"
	"github.com/headgate/headgate/gateway/mirror/store/storetest"
)

// resign signs a request anew after a proxy changed it.
func resign(r *http.Request) error {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return err
	}
	r.Header.Del("Authorization")
	keys := aws.Credentials{AccessKeyID: storetest.AccessKey, SecretAccessKey: storetest.SecretKey}
	return v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).
		SignHTTP(r.Context(), keys, r, r.Header.Get("X-Amz-Content-Sha256"), "s3", storetest.Region, at)
}

// proxied is the bucket behind a proxy that changes what it forwards; one that
// answers by itself gives true.
func proxied(t *testing.T, server string, tamper func(http.ResponseWriter, *http.Request) bool, answer func(*http.Response) error) string {
	t.Helper()
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{ModifyResponse: answer, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !tamper(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	return storetest.S3Location(front.URL)
}

// ignoring is a server that does not know a condition, of requests that match.
func ignoring(header string, matches func(*http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get(header) == "" || !matches(r) {
			return false
		}
		r.Header.Del(header)
		if err := resign(r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return true
		}
		return false
	}
}

func TestUnfitBackendIsRefused(t *testing.T) {
	server, direct := storetest.S3(t)
	multipart := func(r *http.Request) bool { return r.URL.Query().Has("uploadId") }
	for what, tt := range map[string]struct {
		tamper func(http.ResponseWriter, *http.Request) bool
		answer func(*http.Response) error
		want   string
	}{
		"If-None-Match of small objects": {ignoring("If-None-Match", func(r *http.Request) bool { return !multipart(r) }), nil, "publish-if-absent of objects of 512 bytes"},
		"If-None-Match of parts":         {ignoring("If-None-Match", multipart), nil, "publish-if-absent of objects of 16777217 bytes"},
		"If-Match":                       {ignoring("If-Match", func(*http.Request) bool { return true }), nil, "compare-and-swap"},
		"no metadata":                    {pass, dropMetadata, "metadata"},
		"list lags behind":               {pass, emptyList, "list after write"},
		"half an object":                 {pass, halfSize, "whole objects"},
	} {
		t.Run(what, func(t *testing.T) {
			location := store.Join(proxied(t, server, tt.tamper, tt.answer), "unfit")
			s, err := store.Open(t.Context(), location, store.Options{Scratch: t.TempDir()})
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, store.ErrUnfit) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want ErrUnfit for %q", err, tt.want)
			}
		})
	}
	t.Run("a plain proxy is fit", func(t *testing.T) {
		opened(t, proxied(t, server, pass, nil), store.Options{Scratch: t.TempDir()})
	})
	t.Run("no such bucket", func(t *testing.T) {
		_, err := store.Open(t.Context(), strings.Replace(direct, "modules", "nothing", 1), store.Options{Scratch: t.TempDir()})
		if err == nil || errors.Is(err, store.ErrUnfit) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open = %v, want trouble", err)
		}
	})
}

func pass(http.ResponseWriter, *http.Request) bool { return false }

func dropMetadata(r *http.Response) error {
	r.Header.Del("X-Amz-Meta-Sha256")
	return nil
}

func emptyList(r *http.Response) error {
	if !r.Request.URL.Query().Has("list-type") {
		return nil
	}
	r.Body.Close()
	const none = `<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>modules</Name><KeyCount>0</KeyCount></ListBucketResult>`
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(none)), int64(len(none))
	r.Header.Set("Content-Length", fmt.Sprint(len(none)))
	return nil
}

func halfSize(r *http.Response) error {
	if r.Request.Method == http.MethodHead && r.ContentLength == 512 {
		r.ContentLength = 256
		r.Header.Set("Content-Length", "256")
	}
	return nil
}

// TestKilledAtEveryRequest kills the process that uploads in parts before each
// of its requests, in the middle of it, and before it has the answer.
func TestKilledAtEveryRequest(t *testing.T) {
	server, direct := storetest.S3(t)
	s := opened(t, direct, store.Options{Scratch: t.TempDir()})
	for _, when := range []string{"before", "amid", "after"} {
		t.Run("E16 "+when, func(t *testing.T) {
			requests := 0
			for killed := true; killed; requests++ {
				name := fmt.Sprintf("kill/%s/%d.zip", when, requests)
				killed = uploadAndDie(t, server, name, when, requests)
				info, err := s.Stat(t.Context(), name)
				if whole := err == nil && info.Size == killBytes; !whole && !errors.Is(err, fs.ErrNotExist) || !killed && !whole {
					t.Errorf("killed %s request %d: %+v, %v; want the whole or nothing", when, requests, info, err)
				}
			}
			t.Logf("killed %s each of %d requests of an upload in parts", when, requests-1)
			if requests < 6 {
				t.Errorf("%d requests are too few for an upload in parts", requests-1)
			}
		})
	}
	if names, err := s.Names(t.Context(), "."); err != nil || strings.Join(names, " ") != "kill" {
		t.Errorf("left over: %v, %v", names, err)
	}
	unfinished(t, server, direct)
}

// unfinished parts of dead processes go when the store is opened a day later.
func unfinished(t *testing.T, server, location string) {
	t.Helper()
	count := func() (n int) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server+"/modules?uploads=", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Date", time.Now().UTC().Format("20060102T150405Z"))
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		if err := resign(r); err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("listing uploads: %s, %v\n%s", resp.Status, err, b)
		}
		return bytes.Count(b, []byte("<UploadId>"))
	}
	had := count()
	opened(t, location, store.Options{Scratch: t.TempDir()})
	if kept := count(); kept != had || had == 0 {
		t.Errorf("opened at once: %d unfinished uploads, want all %d, some: they may be another gateway's", kept, had)
	}
	tomorrow := func() time.Time { return time.Now().Add(25 * time.Hour) }
	opened(t, location, store.Options{Scratch: t.TempDir(), Now: tomorrow})
	if left := count(); left > 0 {
		t.Errorf("a day later: %d of %d unfinished uploads left", left, had)
	}
}

const killBytes = 17 << 20

// uploadAndDie runs the child against a proxy that kills it at a request.
func uploadAndDie(t *testing.T, server, name, when string, deadly int) (killed bool) {
	t.Helper()
	var seen atomic.Int64
	var child *os.Process
	started := make(chan struct{})
	kill := func() bool {
		<-started // its first request may be faster than Start here
		child.Kill()
		return true
	}
	location := proxied(t, server, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut && r.Method != http.MethodPost || int(seen.Add(1)) != deadly+1 {
			return false
		}
		switch when {
		case "before":
			return kill()
		case "amid":
			if r.ContentLength == 0 {
				return kill()
			}
			half, err := io.ReadAll(io.LimitReader(r.Body, max(r.ContentLength/2, 1)))
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(half), dying{kill}))
		case "after":
			r.Header.Set("X-Headgate-Kill", "after")
		}
		return false
	}, func(r *http.Response) error {
		if r.Request.Header.Get("X-Headgate-Kill") != "" {
			kill()
		}
		return nil
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildUploads$")
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "STORE_UPLOAD="+location, "STORE_NAME="+name)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child = cmd.Process
	close(started)
	err := cmd.Wait()
	killed = strings.Contains(fmt.Sprint(err), "killed")
	if err != nil && !killed {
		t.Fatalf("child: %v\n%s", err, out.String())
	}
	return killed
}

// dying is the rest of a body that never comes.
type dying struct{ kill func() bool }

func (d dying) Read([]byte) (int, error) {
	d.kill()
	return 0, io.ErrUnexpectedEOF
}

func TestChildUploads(t *testing.T) {
	location := os.Getenv("STORE_UPLOAD")
	if location == "" {
		return // only as a child of TestKilledAtEveryRequest
	}
	s := opened(t, location, store.Options{Scratch: filepath.Join(t.TempDir(), "scratch"), Tested: true})
	d, err := s.Draft()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if _, err := io.CopyN(d, zeros{}, killBytes); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(context.Background(), os.Getenv("STORE_NAME")); err != nil {
		t.Fatal(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
