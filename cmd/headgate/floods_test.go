package main

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// floodGrowth is how much more memory a flood may cost, in bytes.
const floodGrowth = 64 << 20

// frame is one HTTP/2 frame, RFC 9113, 4.1.
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// Floods of one client: its connection is closed or slowed, memory stays bounded, and others are served meanwhile.
func TestT82Floods(t *testing.T) {
	s := newSite(t, mirrortest.Start(t, helloModule), "")
	const path = "/example.com/hello/@v/v1.0.0.mod"
	if status, body := s.body(path); status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	streams, handshakes := uint32(5_000), 500
	if os.Getenv("SOAK") != "" {
		streams, handshakes = 200_000, 10_000
	}
	for name, flood := range map[string]func(t *testing.T, s *site){
		"T82 CONTINUATION frames without end": continuationFlood,
		"T82 HTTP/2 rapid reset":              func(t *testing.T, s *site) { rapidReset(t, s, path, streams) },
		"T82 idle handshakes":                 func(t *testing.T, s *site) { idleHandshakes(t, s, path, handshakes) },
	} {
		t.Run(name, func(t *testing.T) {
			idle := s.gateway.rss(t)
			flood(t, s)
			if status, body := s.body(path); status != http.StatusOK {
				t.Errorf("another client is answered %d: %s", status, body)
			}
			grown := s.gateway.peakRSS(t) - idle
			t.Logf("memory grew by %d MiB", grown>>20)
			if grown > floodGrowth {
				t.Errorf("memory grew by %d MiB, want at most %d", grown>>20, floodGrowth>>20)
			}
		})
	}
}

// preface opens an HTTP/2 connection, and reads away what the gateway sends.
func (s *site) preface(t *testing.T) *tls.Conn {
	t.Helper()
	conn := s.dialTLS(t, "h2")
	if _, err := conn.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }() // it ends with the connection
	return conn
}

// continuationFlood sends header fields that never end (CVE-2023-45288): 64 MiB at most.
func continuationFlood(t *testing.T, s *site) {
	conn := s.preface(t)
	field := append([]byte{0, 1, 'x', 127, 128, 31}, strings.Repeat("y", 127+31*128)...) // RFC 7541, 5.1
	if _, err := conn.Write(frame(frameHeaders, 0, 1, nil)); err != nil {
		t.Fatal(err)
	}
	for sent := 0; sent < 64<<20; sent += len(field) {
		if _, err := conn.Write(frame(9, 0, 1, field)); err != nil {
			t.Logf("closed after %d KiB", sent>>10)
			return
		}
	}
	t.Error("64 MiB of header fields were taken in, want the connection closed")
}

// rapidReset opens streams and resets each at once (CVE-2023-39325).
func rapidReset(t *testing.T, s *site, path string, streams uint32) {
	conn := s.preface(t)
	var block []byte
	for _, text := range []string{":method", "GET", ":scheme", "https", ":authority", strings.TrimPrefix(s.url, "https://"), ":path", path, "authorization", "Bearer " + s.token} {
		if len(block) == 0 || strings.HasPrefix(text, ":") || text == "authorization" {
			block = append(block, 0)
		}
		block = append(append(block, byte(len(text))), text...)
	}
	for i := range streams {
		id := 2*i + 1
		out := append(frame(frameHeaders, 5, id, block), frame(frameReset, 0, id, []byte{0, 0, 0, 8})...) // CANCEL
		if _, err := conn.Write(out); err != nil {
			t.Logf("closed after %d streams", i)
			return
		}
	}
}

// idleHandshakes opens connections that never say anything.
func idleHandshakes(t *testing.T, s *site, path string, n int) {
	for range n {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if status, body := s.body(path); status != http.StatusOK {
		t.Errorf("beside %d idle connections another client is answered %d: %s", n, status, body)
	}
}
