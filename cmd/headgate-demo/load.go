package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// A server is one that load is put on.
type server struct {
	address string // host:port
	roots   *x509.CertPool
	token   string // "" asks as nobody
	process *child
}

// A load is one kind of work: these paths in turn, over so many connections, or so many streams of one connection.
type load struct {
	paths   []string
	workers int
	http2   bool
}

// A sample is what one run of a load gave.
type sample struct {
	requests int
	bytes    int64
	took     time.Duration
	cpu      time.Duration // of the server's process
	p50, p99 time.Duration
}

func (s sample) rate() float64            { return float64(s.requests) / s.took.Seconds() }
func (s sample) megabytes() float64       { return float64(s.bytes) / 1e6 / s.took.Seconds() }
func (s sample) perRequest() float64      { return float64(s.cpu.Microseconds()) / float64(s.requests) }
func byRate(a, b sample) int              { return int(a.rate() - b.rate()) }
func milliseconds(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1e3) }

// A requester asks for one path after the other and returns the size of each body. Anything but 200 is an error.
type requester interface {
	ask(path string) (int64, error)
	close()
}

// run connects, then asks for the given time.
func (l load) run(ctx context.Context, s *server, length time.Duration) (sample, error) {
	requesters, err := l.connect(ctx, s)
	defer func() {
		for _, r := range requesters {
			r.close()
		}
	}()
	if err != nil {
		return sample{}, err
	}
	before, err := cpuTime(s.process.cmd.Process.Pid)
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	end := start.Add(length)
	times, sizes := make([][]time.Duration, l.workers), make([]int64, l.workers)
	var group errgroup.Group
	for i, r := range requesters {
		group.Go(func() (err error) {
			times[i], sizes[i], err = l.work(ctx, r, i, end)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return sample{}, fmt.Errorf("asking %s: %w", s.address, err)
	}
	out := sample{took: time.Since(start), cpu: -before}
	after, err := cpuTime(s.process.cmd.Process.Pid)
	if err != nil {
		return sample{}, err
	}
	out.cpu += after
	for _, n := range sizes {
		out.bytes += n
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	out.requests, out.p50, out.p99 = len(all), all[len(all)/2], all[len(all)*99/100]
	return out, nil
}

// work asks until the end, each worker beginning with another path.
func (l load) work(ctx context.Context, r requester, first int, end time.Time) (times []time.Duration, bytes int64, err error) {
	for i := first; ; i++ {
		start := time.Now()
		if start.After(end) && len(times) > 0 {
			return times, bytes, nil
		}
		n, err := r.ask(l.paths[i%len(l.paths)])
		if err != nil {
			return nil, 0, err
		}
		times, bytes = append(times, time.Since(start)), bytes+n
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
	}
}

// connect makes a requester for each worker, all handshakes done.
func (l load) connect(ctx context.Context, s *server) ([]requester, error) {
	var all []requester
	if l.http2 {
		transport := trusting(s.roots)
		transport.DisableCompression = true
		shared := &http.Client{Transport: transport, Timeout: time.Minute}
		for range l.workers {
			all = append(all, &streams{ctx: ctx, client: shared, s: s})
		}
		_, err := all[0].ask(l.paths[0]) // the connection that all share from now on
		return all, err
	}
	for range l.workers {
		c, err := dial(ctx, s)
		if err != nil {
			return all, fmt.Errorf("connecting to %s: %w", s.address, err)
		}
		all = append(all, c)
		if _, err := c.ask(l.paths[0]); err != nil {
			return all, err
		}
	}
	return all, nil
}

// streams asks over HTTP/2.
type streams struct {
	ctx    context.Context // of the whole run: ask has none
	client *http.Client
	s      *server
}

func (t *streams) close() { t.client.CloseIdleConnections() }

func (t *streams) ask(path string) (int64, error) {
	r, err := http.NewRequestWithContext(t.ctx, http.MethodGet, "https://"+t.s.address+path, nil)
	if err != nil {
		return 0, err
	}
	if t.s.token != "" {
		r.SetBasicAuth("headgate", t.s.token)
	}
	resp, err := t.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		return n, fmt.Errorf("GET %s: %s %s", path, resp.Proto, resp.Status)
	}
	return n, err
}

// A connection asks over HTTP/1.1 with as little work as can be: the generator shares the cores with the server.
type connection struct {
	tls  *tls.Conn
	in   *bufio.Reader
	head string
	out  []byte
}

func dial(ctx context.Context, s *server) (*connection, error) {
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.roots, NextProtos: []string{"http/1.1"}}}
	c, err := d.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	head := " HTTP/1.1\r\nHost: " + s.address + "\r\n"
	if s.token != "" {
		head += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("headgate:"+s.token)) + "\r\n"
	}
	return &connection{tls: c.(*tls.Conn), in: bufio.NewReaderSize(c, 64<<10), head: head + "\r\n"}, nil
}

func (c *connection) close() { c.tls.Close() }

func (c *connection) ask(path string) (int64, error) {
	c.out = append(append(append(c.out[:0], "GET "...), path...), c.head...)
	if _, err := c.tls.Write(c.out); err != nil {
		return 0, err
	}
	status, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("GET %s: %s", path, bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		name, value, _ := strings.Cut(string(line), ":")
		if strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return 0, err
			}
		}
		if len(bytes.TrimSpace(line)) == 0 {
			break
		}
	}
	if length < 0 {
		return 0, errors.New("an answer without length")
	}
	n, err := c.in.Discard(length)
	return int64(n), err
}

// clockTick is the unit of proc_pid_stat(5) on every Linux that Go runs on: USER_HZ is 100.
const clockTick = 10 * time.Millisecond

// cpuTime is the processor time that a process has used, its children left out.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading processor time: %w", err)
	}
	return parseStat(string(text))
}

// parseStat reads utime and stime, fields 14 and 15; the name in field 2 may hold anything.
func parseStat(text string) (time.Duration, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("reading processor time: %d fields", len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, serr := strconv.ParseInt(fields[12], 10, 64)
	if err = errors.Join(err, serr); err != nil {
		return 0, fmt.Errorf("reading processor time: %w", err)
	}
	return time.Duration(user+system) * clockTick, nil
}

// memory is a figure of /proc/PID/status in MB: VmRSS is what a process holds, VmHWM the most that it ever held.
func memory(pid int, name string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("reading memory: there is no " + name)
}
