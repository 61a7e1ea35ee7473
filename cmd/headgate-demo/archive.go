package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// An archive is a GOPROXY made of files, the download folder of a module cache, so that repeated measurements ask
// nobody beyond this machine. What it lacks of the checksum database it fetches once and keeps. Requests are logged as
// the relay's are.
type archive struct {
	root     string
	upstream string
	client   *http.Client
	files    http.Handler
	log      *os.File // each line is one write
	count    atomic.Int64
}

// runArchive is the process: its arguments are the folder of its certificate, the folder that it serves, and its log
// file; the first line of its input is the upstream's URL. It prints its address and ends with its input.
func runArchive(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 3 {
		return errUse
	}
	in := bufio.NewReader(stdin)
	upstream, err := in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("reading the upstream's address: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(args[0], "cert.pem"), filepath.Join(args[0], "key.pem"))
	if err != nil {
		return fmt.Errorf("reading the archive's certificate: %w", err)
	}
	log, err := os.OpenFile(args[2], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the archive's log: %w", err)
	}
	defer log.Close()
	a := &archive{
		root: args[1], upstream: strings.TrimRight(strings.TrimSpace(upstream), "/"), log: log,
		client: &http.Client{Timeout: time.Minute}, files: http.FileServer(http.Dir(args[1])),
	}
	return serveUntil(ctx, in, stdout, &http.Server{
		Handler: a, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}},
	}, true)
}

func (a *archive) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	n, start := a.count.Add(1), time.Now()
	fmt.Fprintf(a.log, "> %d %s %s\n", n, q.Method, q.URL.EscapedPath())
	if strings.HasPrefix(q.URL.Path, "/sumdb/") {
		if err := a.fill(q.Context(), q.URL.Path); err != nil {
			http.Error(w, withoutURL(err).Error(), http.StatusBadGateway)
			return
		}
	}
	counted := &counter{ResponseWriter: w, status: http.StatusOK}
	a.files.ServeHTTP(counted, q)
	fmt.Fprintf(a.log, "< %d %d %d %.3f\n", n, counted.status, counted.bytes, time.Since(start).Seconds())
}

// fill fetches what is missing of the checksum database; what the database does not have stays missing.
func (a *archive) fill(ctx context.Context, path string) error {
	name := strings.TrimPrefix(path, "/")
	if !fs.ValidPath(name) {
		return fmt.Errorf("reading %s: %w", name, fs.ErrInvalid)
	}
	file := filepath.Join(a.root, filepath.FromSlash(name))
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	got, err := get(ctx, a.client, a.upstream+path, "")
	if err != nil || got.status != http.StatusOK {
		return err
	}
	return writeWhole(file, []byte(got.body))
}

// writeWhole makes a file that is seen whole or not at all.
func writeWhole(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// A counter notes status and size of an answer.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

// moduleBytes adds up the answers with files of modules in an archive's log, those of the checksum database left out.
func moduleBytes(log io.Reader) (int64, error) {
	asked := map[string]bool{} // number of a request for a module
	var sum int64
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 4 && words[0] == ">":
			asked[words[1]] = !strings.HasPrefix(words[3], "/sumdb/")
		case len(words) == 5 && words[0] == "<" && words[2] == "200" && asked[words[1]]:
			var n int64
			if _, err := fmt.Sscan(words[3], &n); err != nil {
				return 0, fmt.Errorf("reading a log: %w", err)
			}
			sum += n
		}
	}
	return sum, lines.Err()
}
