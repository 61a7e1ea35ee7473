package main

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// dialTLS opens a connection to a site that speaks one protocol.
func (s *site) dialTLS(t *testing.T, protocol string) *tls.Conn {
	t.Helper()
	config := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{protocol}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Requests whose end two readers see at different places (RFC 9112, 11.2): each is refused or the connection is closed,
// and what is smuggled behind it is answered to nobody.
func TestT36Smuggling(t *testing.T) {
	s := newSite(t, mirrortest.Start(t, helloModule), "")
	const path = "/example.com/hello/@v/v1.0.0.mod"
	host := strings.TrimPrefix(s.url, "https://")
	line := "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + s.token + "\r\n"
	smuggled := line + "Connection: close\r\n\r\n"
	if n := s.okays(t, smuggled); n != 1 {
		t.Fatalf("a good request has %d answers 200", n)
	}
	for name, request := range map[string]string{
		"length and chunks":             line + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunks and length":             line + "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
		"two lengths":                   line + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
		"a list of lengths":             line + "Content-Length: 0, 5\r\n\r\n",
		"a signed length":               line + "Content-Length: +0\r\n\r\n",
		"a length in hexadecimal":       line + "Content-Length: 0x0\r\n\r\n",
		"a length below zero":           line + "Content-Length: -1\r\n\r\n",
		"an unknown coding":             line + "Transfer-Encoding: xchunked\r\n\r\n",
		"two codings":                   line + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunked twice":                 line + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a blank before the colon":      line + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"an extension with a bare LF":   line + "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
		"a chunk size in decimal":       line + "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
		"a chunk size without an end":   line + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
		"a chunk longer than its size":  line + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
		"two hosts":                     line + "Host: evil.example\r\n\r\n",
		"a carriage return in a header": line + "X: a\rb\r\n\r\n",
		"a NUL in a header":             line + "X: a\x00b\r\n\r\n",
	} {
		t.Run("T36 "+name, func(t *testing.T) {
			if n := s.okays(t, request+smuggled); n != 0 {
				t.Errorf("%d answers 200, want the request refused and the connection closed", n)
			}
		})
	}
	t.Run("T36 a folded line is one line", func(t *testing.T) { // RFC 9112, 5.2: the fold is a blank
		if n := s.okays(t, line+"X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+smuggled); n != 1 {
			t.Errorf("%d answers 200, want one for the request and a closed connection", n)
		}
	})
	t.Run("T36 HTTP/2", func(t *testing.T) { s.doubledFields(t, path) })
}

// okays sends bytes over HTTP/1.1 and counts the answers 200 until the connection is closed.
func (s *site) okays(t *testing.T, text string) (n int) {
	t.Helper()
	conn := s.dialTLS(t, "http/1.1")
	if _, err := io.WriteString(conn, text); err != nil {
		return 0 // closed already
	}
	for r := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return n
		}
		if resp.StatusCode == http.StatusOK {
			n++
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return n
		}
	}
}

// doubledFields asks over HTTP/2 with pseudo-header fields that RFC 9113, 8.3 forbids.
func (s *site) doubledFields(t *testing.T, path string) {
	host := strings.TrimPrefix(s.url, "https://")
	good := []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", path, "authorization", "Bearer " + s.token}
	if status, kind := s.overHTTP2(t, good); status != "200" {
		t.Fatalf("a good request is answered %q, frame %d", status, kind)
	}
	for name, fields := range map[string][]string{
		"two paths":                append([]string{":path", "/example.com/other/@v/list"}, good...),
		"two methods":              append([]string{":method", "POST"}, good...),
		"two authorities":          append([]string{":authority", "evil.example"}, good...),
		"one after other fields":   append(good[:len(good):len(good)], ":path", path),
		"an unknown one":           append([]string{":evil", "x"}, good...),
		"a path that is empty":     {":method", "GET", ":scheme", "https", ":authority", host, ":path", "", "authorization", "Bearer " + s.token},
		"upper case":               append(good[:len(good):len(good)], "X-Up", "x"),
		"a connection's own field": append(good[:len(good):len(good)], "transfer-encoding", "chunked"),
		"a line's end in a value":  append(good[:len(good):len(good)], "x", "a\r\nb: c"),
	} {
		t.Run("T36 "+name, func(t *testing.T) {
			if status, kind := s.overHTTP2(t, fields); status != "400" && kind != frameReset && kind != frameGoAway {
				t.Errorf("answered %q, frame %d; want 400 or closed", status, kind)
			}
		})
	}
}

// Types of frames, RFC 9113, 6.
const (
	frameHeaders = 1
	frameReset   = 3
	frameGoAway  = 7
)

// overHTTP2 sends one request with its fields as they are, and gives the answer's status, or the frame that refused it.
func (s *site) overHTTP2(t *testing.T, fields []string) (status string, kind byte) {
	t.Helper()
	conn := s.dialTLS(t, "h2")
	var block []byte
	for i := 0; i+1 < len(fields); i += 2 {
		block = append(append(append(block, 0, byte(len(fields[i]))), fields[i]...), byte(len(fields[i+1])))
		block = append(block, fields[i+1]...)
	}
	out := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	out = append(out, 0, byte(len(block)>>8), byte(len(block)), frameHeaders, 5, 0, 0, 0, 1) // END_STREAM, END_HEADERS
	if _, err := conn.Write(append(out, block...)); err != nil {
		return "", frameGoAway
	}
	for head := make([]byte, 9); ; {
		if _, err := io.ReadFull(conn, head); err != nil {
			return "", frameGoAway // closed
		}
		payload := make([]byte, binary.BigEndian.Uint32(append([]byte{0}, head[:3]...)))
		if _, err := io.ReadFull(conn, payload); err != nil {
			return "", frameGoAway
		}
		switch head[3] {
		case frameHeaders:
			return statusOf(payload), frameHeaders
		case frameReset, frameGoAway:
			return "", head[3]
		}
	}
}

// statusOf reads the first field of an answer, which is its status: a static index (RFC 7541, A), or a literal.
func statusOf(block []byte) string {
	if len(block) == 0 {
		return ""
	}
	if static := map[byte]string{0x88: "200", 0x8c: "400", 0x8d: "404", 0x8e: "500"}; static[block[0]] != "" {
		return static[block[0]]
	}
	return "another"
}
