package sinks

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// certificate makes a self-signed certificate for a name, and returns the files of it and its key.
func certificate(t *testing.T, name string, until time.Time) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// within waits until something is so.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// rsyslog runs Debian's rsyslog with TLS and returns its port and the file that it writes to: one message a line,
// its fields separated by tabs.
func rsyslog(t *testing.T, cert, key string) (port, out string) {
	t.Helper()
	dir := t.TempDir()
	out = filepath.Join(dir, "out")
	config := fmt.Sprintf(`global(workDirectory="%[1]s" maxMessageSize="64k" defaultNetstreamDriverCAFile="%[2]s"
  defaultNetstreamDriverCertFile="%[2]s" defaultNetstreamDriverKeyFile="%[3]s")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" port="0" address="127.0.0.1" listenPortFileName="%[1]s/port")
template(name="fields" type="string" string="%%pri%%\t%%timestamp:::date-rfc3339%%\t%%hostname%%\t%%app-name%%\t%%msgid%%\t%%structured-data%%\t%%msg%%\n")
*.* action(type="omfile" file="%[4]s" template="fields")
`, dir, cert, key, out)
	name := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(name, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("rsyslogd")
	if err != nil {
		path = "/usr/sbin/rsyslogd"
	}
	cmd := exec.Command(path, "-n", "-f", name, "-i", filepath.Join(dir, "pid"))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting rsyslog, of Debian's packages rsyslog and rsyslog-openssl: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	within(t, 30*time.Second, "rsyslog listens", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "port"))
		port = strings.TrimSpace(string(b))
		return err == nil && port != ""
	})
	return port, out
}

func TestSyslogToRsyslog(t *testing.T) {
	cert, key := certificate(t, "localhost", time.Now().Add(time.Hour))
	port, out := rsyslog(t, cert, key)
	c := Config{Name: "siem", Type: typeSyslog, Address: "localhost:" + port, TLS: TLS{CAFile: cert}}.withDefaults()
	s := newSyslog(c, "node one")
	defer s.close()
	at := time.Date(2026, 5, 4, 3, 2, 1, 123456000, time.UTC)
	events := []Event{
		{ID: `A"]\B-0-7`, Seq: 7, Kind: "decision", Severity: 3, Time: at, Body: []byte(`{"path":"/a b\u{202e}","n":1}`)},
		{ID: "C-0-8", Seq: 8, Kind: "control", Severity: 5, Time: at, Body: []byte(`{"big":"` + strings.Repeat("x", 7000) + `"}`)},
		{ID: "D-0-9", Seq: 9, Kind: "auth", Time: at, Body: []byte(`{"too":"` + strings.Repeat("x", 9000) + `"}`)},
	}
	a, err := s.deliver(t.Context(), events)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.rejected) != 1 || a.rejected[0].event.Seq != 9 {
		t.Errorf("A30 rejected %d events, want the one that is longer than message_bytes", len(a.rejected))
	}
	var got []string
	within(t, 30*time.Second, "rsyslog writes", func() bool {
		b, _ := os.ReadFile(out)
		got = nil
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "headgate@32473") {
				got = append(got, strings.TrimSuffix(line, "\n"))
			}
		}
		return len(got) == 2
	})
	want := []string{
		"108\t2026-05-04T03:02:01.123456+00:00\tnode_one\theadgate\tdecision\t[headgate@32473 id=\"A\\\"\\]\\\\B-0-7\" seq=\"7\"]\t" + string(events[0].Body),
		"106\t2026-05-04T03:02:01.123456+00:00\tnode_one\theadgate\tcontrol\t[headgate@32473 id=\"C-0-8\" seq=\"8\"]\t" + string(events[1].Body),
	}
	for i := range want {
		if strings.Replace(got[i], "+00:00", "Z", 1) != strings.Replace(want[i], "+00:00", "Z", 1) {
			t.Errorf("rsyslog read\n%q, want\n%q", got[i], want[i])
		}
	}
}

// A switchboard is a fixed address in front of a server that comes and goes.
type switchboard struct {
	net.Listener
	mu    sync.Mutex
	to    string // empty: nobody is there
	conns []net.Conn
}

func newSwitchboard(t *testing.T) *switchboard {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{Listener: l}
	t.Cleanup(func() { s.point(""); l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			out, err := net.Dial("tcp", s.to)
			if err != nil {
				in.Close()
			} else {
				s.conns = append(s.conns, in, out)
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				go func() { _, _ = io.Copy(in, out); in.Close() }()
			}
			s.mu.Unlock()
		}
	}()
	return s
}

// point cuts what is connected, and connects to another address from then on.
func (s *switchboard) point(to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

var idOf = regexp.MustCompile(`\[headgate@32473 id="(e-\d+)"`)

func TestSyslogOutage(t *testing.T) {
	t.Parallel() // it mostly waits
	cert, key := certificate(t, "localhost", time.Now().Add(time.Hour))
	first, firstOut := rsyslog(t, cert, key)
	second, secondOut := rsyslog(t, cert, key)
	board := newSwitchboard(t)
	_, port, _ := net.SplitHostPort(board.Addr().String())
	c := Config{Name: "soc", Address: "localhost:" + port, TLS: TLS{CAFile: cert}}.withDefaults()
	arrived := func() (ids map[string]int) {
		ids = map[string]int{}
		for _, out := range []string{firstOut, secondOut} {
			b, _ := os.ReadFile(out)
			for _, m := range idOf.FindAllStringSubmatch(string(b), -1) {
				ids[m[1]]++
			}
		}
		return ids
	}
	dir, log := t.TempDir(), &testLog{}
	board.point("127.0.0.1:" + first)
	start(t, dir, log, newSyslog(c, "n"))
	log.add(700)
	within(t, time.Minute, "rsyslog has all", func() bool { return len(arrived()) == 700 })
	board.point("") // it is gone
	log.add(700)
	board.point("127.0.0.1:" + second) // and another takes its place
	within(t, time.Minute, "A25 two rsyslogs have all", func() bool { return len(arrived()) == 1400 })
	twice := 0
	for _, n := range arrived() {
		twice += n - 1
	}
	if twice > 700 {
		t.Errorf("%d records arrived twice; want at most the 700 that were not 30 s old", twice)
	}
}

func TestSyslogHangs(t *testing.T) {
	cert, key := certificate(t, "localhost", time.Now().Add(time.Hour))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.(*tls.Conn).Handshake()
		<-done // it reads nothing
		conn.Close()
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s := newSyslog(Config{Address: "localhost:" + port, TLS: TLS{CAFile: cert}}.withDefaults(), "n")
	defer s.close()
	if _, err := s.deliver(t.Context(), nil); err != nil { // connects, with the usual patience
		t.Fatal(err)
	}
	s.config.Timeout = 100 * time.Millisecond
	big := Event{ID: "x", Kind: "decision", Body: bytes.Repeat([]byte("x"), 8000)}
	events := slices.Repeat([]Event{big}, 1000) // more and more than both ends of a connection hold
	for range 20 {                              // however much that is
		if _, err = s.deliver(t.Context(), events); err != nil {
			break
		}
	}
	if !errors.Is(err, errLost) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("A26 deliver to a server that never reads = %v, want that all may be lost after the timeout", err)
	}
}

// readFrames reads octet-counted messages as RFC 5425 has them, independently of the code that writes them.
func readFrames(r io.Reader, each func(message string)) {
	in := bufio.NewReader(r)
	for {
		head, err := in.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(head, " "))
		if err != nil {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		each(string(b))
	}
}

func TestSyslogTrust(t *testing.T) {
	serve := func(t *testing.T, cert, key string) string {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				readFrames(conn, func(string) { t.Error("a message arrived at a server that is not believed") })
				conn.Close()
			}
		}()
		return l.Addr().String()
	}
	other, _ := certificate(t, "localhost", time.Now().Add(time.Hour))
	for name, tt := range map[string]struct {
		name  string
		until time.Time
		ca    string
	}{
		"A32 expired":            {"localhost", time.Now().Add(-time.Hour), ""},
		"A32 of another name":    {"elsewhere.example", time.Now().Add(time.Hour), ""},
		"of another authority":   {"localhost", time.Now().Add(time.Hour), other},
		"of no system authority": {"localhost", time.Now().Add(time.Hour), "-"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := certificate(t, tt.name, tt.until)
			_, port, _ := net.SplitHostPort(serve(t, cert, key))
			ca := tt.ca
			switch ca {
			case "":
				ca = cert
			case "-":
				ca = ""
			}
			s := newSyslog(Config{Address: "localhost:" + port, TLS: TLS{CAFile: ca}}.withDefaults(), "n")
			defer s.close()
			_, err := s.deliver(t.Context(), []Event{{ID: "1", Kind: "decision", Body: []byte("{}")}})
			if !errors.Is(err, errDenied) {
				t.Errorf("deliver = %v, want errDenied, which pauses and pages", err)
			}
		})
	}
	t.Run("A32 never plaintext", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got := make(chan string, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			n, _ := conn.Read(b)
			conn.Close()
			got <- string(b[:n])
		}()
		s := newSyslog(Config{Address: l.Addr().String()}.withDefaults(), "n")
		defer s.close()
		if _, err := s.deliver(t.Context(), []Event{{ID: "1", Kind: "decision", Body: []byte(`{"secret":1}`)}}); err == nil {
			t.Error("delivered to a server that speaks no TLS")
		}
		if text := <-got; strings.Contains(text, "secret") || !strings.HasPrefix(text, "\x16\x03") {
			t.Errorf("the server got %q, want the hello of TLS alone", text)
		}
	})
}

func TestSyslogSendsAgainWhatALostConnectionMayHaveHeld(t *testing.T) {
	t.Parallel() // it mostly waits
	cert, key := certificate(t, "localhost", time.Now().Add(time.Hour))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "localhost:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	messages := make(chan string, 1000)
	go func() {
		for first := true; ; first = false {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if first { // takes what comes, and dies without having looked at it
				b := make([]byte, 10)
				_, _ = io.ReadFull(conn, b)
				conn.Close()
				continue
			}
			go readFrames(conn, func(m string) { messages <- m })
		}
	}()
	dir, log := t.TempDir(), &testLog{}
	m := newMetrics()
	c := Config{Name: "siem", Type: typeSyslog, Address: strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1), TLS: TLS{CAFile: cert}}.withDefaults()
	e := &Exporter{metrics: m, drain: make(chan struct{}), cancel: func() {}}
	s := &sink{
		config: c, log: log, logger: slog.New(slog.DiscardHandler), drain: e.drain, pace: usualPace,
		cursor: filepath.Join(dir, "cursors", "siem.json"), dead: deadFolder(dir, "siem"), metrics: m.of("siem"), to: newSyslog(c, "n"),
		ended: make(chan struct{}),
	}
	e.sinks = []*sink{s}
	e.workers.Go(func() { s.run(t.Context()) })
	log.add(20)
	seen := map[string]bool{}
	for len(seen) < 20 {
		select {
		case text := <-messages:
			_, id, _ := strings.Cut(text, `id="`)
			id, _, _ = strings.Cut(id, `"`)
			seen[id] = true
		case <-time.After(60 * time.Second):
			t.Fatalf("%d of 20 messages arrived after the connection was lost", len(seen))
		}
	}
	if p, err := readCursor(s.cursor); err != nil || p.Next != 0 {
		t.Errorf("the cursor is %d before anything was 30 s old, %v", p.Next, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzSyslog(f *testing.F) {
	f.Add("id-1", "decision", []byte(`{"a":1}`), 3)
	f.Add(`"]\`, "a b\r\n", []byte("x"), -1)
	f.Fuzz(func(t *testing.T, id, kind string, body []byte, severity int) {
		s := newSyslog(Config{}, kind)
		m := string(s.message(Event{ID: id, Kind: kind, Severity: severity, Body: body}))
		head, rest, ok := strings.Cut(m, " [headgate@32473 id=\"")
		if !ok || len(strings.Split(head, " ")) != 6 {
			t.Fatalf("header %q has other than six fields", head)
		}
		var value strings.Builder
		i := 0
		for ; i < len(rest) && rest[i] != '"'; i++ {
			if rest[i] == '\\' {
				i++
			}
			value.WriteByte(rest[i])
		}
		if value.String() != id {
			t.Fatalf("id reads back as %q, want %q", value.String(), id)
		}
		if !strings.HasPrefix(rest[i:], `" seq="0"] `) || !strings.HasSuffix(m, string(body)) {
			t.Fatalf("message %q does not end in its body", m)
		}
	})
}
