package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"unicode"
)

// Host is what a server of a List needs beside its URL.
type Host struct {
	// Host is HOST or HOST:PORT as the URL has it.
	Host string
	// CredentialFile holds USER:PASSWORD, which is sent as Basic, or a token,
	// which is sent as Bearer; it is read again for each request. Empty: none.
	CredentialFile string
	// CAFile holds the only CAs that the host is trusted by. Empty: the machine's.
	CAFile string
}

// Matches tells whether u is at this host.
func (h Host) Matches(u *url.URL) bool {
	return strings.EqualFold(hostPort(&url.URL{Scheme: u.Scheme, Host: h.Host}), hostPort(u))
}

// transports are one for each host with CAs of its own, by host:port, and one for all others.
type transports struct {
	hosts map[string]*http.Transport
	other *http.Transport
}

func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	if own := t.hosts[hostPort(r.URL)]; own != nil {
		return own.RoundTrip(r)
	}
	return t.other.RoundTrip(r)
}

// CloseIdleConnections is what http.Client asks of its transport.
func (t *transports) CloseIdleConnections() {
	t.other.CloseIdleConnections()
	for _, own := range t.hosts {
		own.CloseIdleConnections()
	}
}

// newTransports reads the CA files of o's hosts.
func newTransports(o Options, g *guard) (*transports, error) {
	t := &transports{hosts: map[string]*http.Transport{}, other: g.transport(o.Transport, o.FirstByte)}
	for _, h := range o.Hosts {
		if h.CAFile == "" {
			continue
		}
		pem, err := os.ReadFile(h.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the CAs of upstream %s: %w", h.Host, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading the CAs of upstream %s: %s holds no certificate", h.Host, h.CAFile)
		}
		own := g.transport(o.Transport, o.FirstByte)
		if own.TLSClientConfig == nil {
			own.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		own.TLSClientConfig.RootCAs = pool
		for _, e := range o.List {
			if h.Matches(e.URL) {
				t.hosts[hostPort(e.URL)] = own
			}
		}
	}
	return t, nil
}

// maxCredential bounds a credential file, in bytes.
const maxCredential = 16 << 10

// authorize adds the server's credential to a request for it. net/http and the
// guard take it off again where a redirect leaves the host.
func (s *server) authorize(r *http.Request) error {
	if u := s.entry.URL.User; u != nil {
		pass, _ := u.Password()
		r.SetBasicAuth(u.Username(), pass)
	}
	if s.credentialFile == "" {
		return nil
	}
	if r.URL.Scheme != "https" {
		return errors.New("it would be sent in the clear; want an https upstream")
	}
	f, err := os.Open(s.credentialFile)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err != nil {
		return err
	}
	line := string(bytes.TrimSpace(b))
	if line == "" || len(line) > maxCredential || strings.ContainsFunc(line, func(c rune) bool { return c > unicode.MaxASCII || !unicode.IsGraphic(c) || c == ' ' }) {
		return errors.New("it is empty, too long or has blanks; want one line with a token or USER:PASSWORD")
	}
	if user, password, ok := strings.Cut(line, ":"); ok {
		r.SetBasicAuth(user, password)
		return nil
	}
	r.Header.Set("Authorization", "Bearer "+line)
	return nil
}

// chunk is how much memory a body of unknown length takes at a time: growing
// one slice would need three times the body.
const chunk = 256 << 10

// buffer is a Sink in memory.
type buffer struct {
	chunks [][]byte
	size   int
}

func (b *buffer) Write(p []byte) (int, error) {
	n := len(p)
	b.size += n
	for len(p) > 0 {
		last := len(b.chunks) - 1
		if last < 0 || len(b.chunks[last]) == cap(b.chunks[last]) {
			size := min(chunk, max(512, len(p), b.size))
			b.chunks = append(b.chunks, make([]byte, 0, size))
			last++
		}
		c := b.chunks[last]
		k := min(len(p), cap(c)-len(c))
		b.chunks[last], p = append(c, p[:k]...), p[k:]
	}
	return n, nil
}

func (b *buffer) Reset() error {
	b.chunks, b.size = nil, 0
	return nil
}

// Bytes joins what was written.
func (b *buffer) Bytes() []byte {
	if len(b.chunks) > 1 {
		b.chunks = [][]byte{bytes.Join(b.chunks, nil)}
	}
	if len(b.chunks) == 0 {
		return nil
	}
	return b.chunks[0]
}
