package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// A relay stands between gateway and upstream and writes down each request: one line when it arrives, "> N GET /path",
// and one when it is answered, "< N STATUS BYTES SECONDS". What it did not write down did not pass.
type relay struct {
	upstream string
	client   *http.Client
	log      *os.File // each line is one write
	count    atomic.Int64
}

// runRelay is the process: arguments are its log file, the first line of its input is the upstream's URL, which may hold
// a password. It prints its address and ends with its input.
func runRelay(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errUse
	}
	in := bufio.NewReader(stdin)
	upstream, err := in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("reading the upstream's address: %w", err)
	}
	log, err := os.OpenFile(args[0], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the relay's log: %w", err)
	}
	defer log.Close()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	transport.DisableCompression = true // bytes pass as they are
	r := &relay{upstream: strings.TrimRight(strings.TrimSpace(upstream), "/"), client: &http.Client{Transport: transport}, log: log}
	return serveUntil(ctx, in, stdout, &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}, false)
}

// serveUntil serves on a free loopback port, prints it, and ends with ctx or with the end of input.
func serveUntil(ctx context.Context, in io.Reader, stdout io.Writer, srv *http.Server, secure bool) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	fmt.Fprintln(stdout, l.Addr())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, in) // its end is all that counts
	}()
	served := make(chan error, 1)
	go func() {
		if secure {
			served <- srv.ServeTLS(l, "", "")
		} else {
			served <- srv.Serve(l)
		}
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	}
	if err := srv.Close(); err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (r *relay) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	n, start := r.count.Add(1), time.Now()
	fmt.Fprintf(r.log, "> %d %s %s\n", n, q.Method, q.URL.EscapedPath())
	status, bytes, err := r.pass(w, q)
	if err != nil {
		fmt.Fprintf(r.log, "< %d broken %d %.3f %q\n", n, bytes, time.Since(start).Seconds(), err)
		panic(http.ErrAbortHandler) // the gateway must see a broken answer, not a short one
	}
	fmt.Fprintf(r.log, "< %d %d %d %.3f\n", n, status, bytes, time.Since(start).Seconds())
}

// pass asks the upstream, redirects followed, and streams its answer.
func (r *relay) pass(w http.ResponseWriter, q *http.Request) (status int, bytes int64, err error) {
	up, err := http.NewRequestWithContext(q.Context(), q.Method, r.upstream+q.URL.EscapedPath(), nil)
	if err != nil {
		return 0, 0, err
	}
	for _, name := range []string{"Accept", "Accept-Encoding", "User-Agent", "If-None-Match", "Range"} {
		if v := q.Header.Values(name); v != nil {
			up.Header[name] = v
		}
	}
	resp, err := r.client.Do(up)
	if err != nil {
		return 0, 0, withoutURL(err)
	}
	defer resp.Body.Close()
	for _, name := range []string{"Content-Type", "Content-Length", "Content-Encoding", "Etag", "Last-Modified", "Cache-Control", "Retry-After"} {
		if v := resp.Header.Values(name); v != nil {
			w.Header()[name] = v
		}
	}
	w.WriteHeader(resp.StatusCode)
	bytes, err = io.Copy(w, resp.Body)
	return resp.StatusCode, bytes, err
}

// withoutURL takes the address, which may hold a password, out of a client's error.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// A tally is what a relay's log says of requests by kind.
type tally struct{ all, list, info, mod, zip, sumdb int }

func (t tally) String() string {
	return fmt.Sprintf("%d requests (%d .info, %d .mod, %d .zip, %d lists, %d of the checksum database)",
		t.all, t.info, t.mod, t.zip, t.list, t.sumdb)
}

func (t tally) minus(o tally) tally {
	return tally{t.all - o.all, t.list - o.list, t.info - o.info, t.mod - o.mod, t.zip - o.zip, t.sumdb - o.sumdb}
}

// countLog counts the requests that arrived by a relay's log.
func countLog(log io.Reader) (tally, error) {
	var t tally
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 4 || words[0] != ">" {
			continue
		}
		t.all++
		path := words[3]
		switch {
		case strings.HasPrefix(path, "/sumdb/"):
			t.sumdb++
		case strings.HasSuffix(path, "/@v/list"), strings.HasSuffix(path, "/@latest"):
			t.list++
		case filepath.Ext(path) == ".info":
			t.info++
		case filepath.Ext(path) == ".mod":
			t.mod++
		case filepath.Ext(path) == ".zip":
			t.zip++
		}
	}
	return t, lines.Err()
}
