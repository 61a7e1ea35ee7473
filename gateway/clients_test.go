package gateway

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// Clients that leave, or read no further, in the middle of a zip: the outcome says how much they got.
func TestClientsThatDoNotReadOn(t *testing.T) {
	b := newBench(t)
	b.stall = time.Second
	big := make([]byte, 24<<20) // more than the buffers of a connection take
	rand.Read(big)
	must(t, b.upstream.Add(mirrortest.Module{
		Version: module.Version{Path: "example.com/big", Version: "v1.0.0"},
		Files:   map[string][]byte{"go.mod": []byte("module example.com/big\n"), "data.bin": big},
	}))
	server := httptest.NewTLSServer(b.public)
	defer server.Close()
	begin := func(t *testing.T) *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		must(t, err)
		fmt.Fprintf(c, "GET /example.com/big/@v/v1.0.0.zip HTTP/1.1\r\nHost: localhost:8443\r\n%s\r\n\r\n", b.bearer())
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v; want 200 and the headers of the zip", r, err)
		}
		return c
	}
	outcome := func(t *testing.T, n int) audit.Record {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			var all []audit.Record
			for _, rec := range b.records(t) {
				if rec.Kind == audit.KindOutcome {
					all = append(all, rec)
				}
			}
			if len(all) == n {
				return all[n-1]
			}
		}
		t.Fatal("no outcome in a minute")
		return audit.Record{}
	}
	wantPart := func(t *testing.T, rec audit.Record) {
		t.Helper()
		if o := rec.Outcome; !o.Aborted || o.Status != http.StatusOK || o.Bytes <= 0 || o.Bytes >= int64(len(big)) || rec.Module != "example.com/big" || rec.Subject.ID != "ann" {
			t.Errorf("outcome %+v; want a part of %d bytes, aborted", rec, len(big))
		}
	}
	t.Run("A43 leaves after the headers", func(t *testing.T) {
		must(t, begin(t).Close())
		wantPart(t, outcome(t, 1))
	})
	t.Run("A44 reads no further", func(t *testing.T) {
		c := begin(t)
		defer c.Close()
		rec := outcome(t, 2) // though the connection is open still
		wantPart(t, rec)
		if rec.Outcome.MS < b.stall.Milliseconds() {
			t.Errorf("cut off after %d ms, want %v first", rec.Outcome.MS, b.stall)
		}
	})
}

// A40: what a client says of itself is nobody's word: its address and the request's id are ours, and the record keeps the claims.
func TestA40ClaimsOfClients(t *testing.T) {
	b := newBench(t, hello)
	w := b.ask(http.MethodGet, "/example.com/hello/@v/v1.0.0.info", b.bearer(), "X-Forwarded-For: 198.51.100.9", "X-Forwarded-For: 10.0.0.1",
		"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "X-Request-Id: mine\u202e")
	must(t, b.log.Close())
	var rec audit.Record
	for _, r := range b.records(t) {
		if r.Kind == audit.KindDecision {
			rec = r
		}
	}
	want := map[string]string{
		"x-forwarded-for": "198.51.100.9, 10.0.0.1", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x-request-id": `mine\u{202e}`,
	}
	if rec.Client.IP != "127.0.0.1" || rec.Client.Forwarded != "" || rec.TraceID == "4bf92f3577b34da6a3ce929d0e0e4736" || fmt.Sprint(rec.Client.Untrusted) != fmt.Sprint(want) {
		t.Errorf("client %+v, trace %q; want claims %v", rec.Client, rec.TraceID, want)
	}
	if id := w.Header().Get("Headgate-Decision"); id != shortID(rec.EventID) || w.Header().Get("X-Request-Id") != "" {
		t.Errorf("answered as %q, %v", id, w.Header())
	}
}
