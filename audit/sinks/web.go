package sinks

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxReply bounds what a receiver may answer: Elasticsearch has a line for each event.
const maxReply = 16 << 20

// A web is a receiver that is spoken to over HTTP.
type web struct {
	acknowledged
	config Config
	scheme string                                                               // of the Authorization header
	dial   func(ctx context.Context, network, address string) (net.Conn, error) // nil: the usual

	mu     sync.Mutex // guards client
	client *http.Client
}

// webInFlight is how many requests are under way at once. Each may arrive twice when it ends without an answer.
const webInFlight = 4

func (w *web) inFlight() int { return webInFlight }

func (w *web) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client != nil {
		w.client.CloseIdleConnections()
	}
	w.client = nil
	return nil
}

// connected returns the client that requests share. It is made again after one that failed: a certificate that was
// replaced counts from then on.
func (w *web) connected() (*http.Client, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client != nil {
		return w.client, nil
	}
	trust, err := w.config.TLS.client()
	if err != nil {
		return nil, err
	}
	w.client = &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: w.dial, TLSClientConfig: trust,
			MaxIdleConnsPerHost: webInFlight, IdleConnTimeout: time.Minute,
		},
		// A credential is for this receiver alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w.client, nil
}

// A request is what a receiver is asked.
type request struct {
	path   string
	kind   string // Content-Type
	header http.Header
	body   []byte
}

// post returns the receiver's answer; with it an error where its status is not a success, as deliver returns them.
func (w *web) post(ctx context.Context, q request) ([]byte, error) {
	client, err := w.connected()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, w.config.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(w.config.URL, "/")+q.path, bytes.NewReader(pressed(q.body)))
	if err != nil {
		return nil, fmt.Errorf("preparing request: %w", err)
	}
	for key, values := range q.header {
		r.Header[key] = values
	}
	r.Header.Set("Content-Type", q.kind)
	r.Header.Set("Content-Encoding", "gzip")
	if err := w.authorize(r); err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		_ = w.close() // it has no error of its own
		return nil, fmt.Errorf("sending events: %w", believed(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the answer to %s: %w", q.path, err)
	case len(body) > maxReply:
		return nil, fmt.Errorf("reading the answer to %s: it has more than %d bytes", q.path, maxReply)
	}
	return body, judge(resp, body)
}

func pressed(body []byte) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = z.Write(body)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		panic(err) // a level that exists, a writer that does not fail
	}
	return b.Bytes()
}

// authorize reads the credential for each request, so that one that was replaced counts at once.
func (w *web) authorize(r *http.Request) error {
	if w.config.TokenFile == "" {
		return nil
	}
	token, err := os.ReadFile(w.config.TokenFile)
	if err != nil {
		return fmt.Errorf("reading token: %w: %w", errDenied, err)
	}
	text := strings.TrimSpace(string(token))
	if text == "" || strings.ContainsAny(text, "\r\n") {
		return fmt.Errorf("reading token: %w: %s does not hold one line", errDenied, w.config.TokenFile)
	}
	r.Header.Set("Authorization", w.scheme+" "+text)
	return nil
}

// judge says what a status means. Only those that speak of what was sent refuse it: a wrong path, a redirect or a proxy's
// answer must not make a dead letter of everything.
func judge(resp *http.Response, body []byte) error {
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err := fmt.Errorf("the receiver answers %s: %q", resp.Status, body[:min(len(body), 200)])
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: %w", errDenied, err)
	case http.StatusRequestEntityTooLarge:
		return fmt.Errorf("%w: %w", errTooLarge, err)
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if after := retryAfter(resp.Header.Get("Retry-After")); after > 0 {
		return &laterError{after, err}
	}
	return err
}

// retryAfter reads the header of that name (RFC 9110 §10.2.3): seconds or a date; 0 if it is neither.
func retryAfter(value string) time.Duration {
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
