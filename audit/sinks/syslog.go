package sinks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Syslog has no acknowledgement. What was written counts as delivered when the connection has outlived it by settleTime;
// silentTime without an answer of the other side's TCP ends a connection earlier than that.
const (
	settleTime = 30 * time.Second
	silentTime = 15 * time.Second
)

// syslog sends RFC 5424 messages over TLS (RFC 5425).
type syslog struct {
	config Config
	node   string

	mu   sync.Mutex // guards all below
	conn net.Conn
	gone chan struct{} // closed when conn has ended
	lost error         // why what was written last may not have arrived
}

func newSyslog(c Config, node string) *syslog { return &syslog{config: c, node: node} }

func (s *syslog) inFlight() int         { return 1 }
func (s *syslog) settle() time.Duration { return settleTime }

// begin implements destination: what is sent from now on begins at the cursor, so what was lost comes again.
func (s *syslog) begin() {
	_ = s.close() // the events are sent again either way
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = nil
}

func (s *syslog) living() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *syslog) close() error {
	s.mu.Lock()
	conn, gone := s.conn, s.gone
	s.conn = nil
	s.mu.Unlock()
	if conn == nil {
		return nil
	}
	err := conn.Close()
	<-gone
	return err
}

func (s *syslog) deliver(ctx context.Context, events []Event) (answer, error) {
	if err := s.living(); err != nil {
		return answer{}, err
	}
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = s.dial(ctx); err != nil {
			return answer{}, err
		}
	}
	var a answer
	var frames bytes.Buffer
	for _, e := range events {
		m := s.message(e)
		if len(e.Body) > s.config.MessageBytes {
			a.rejected = append(a.rejected, letter{e, fmt.Sprintf("%d bytes; message_bytes allows %d", len(e.Body), s.config.MessageBytes)})
			continue
		}
		frames.WriteString(strconv.Itoa(len(m)))
		frames.WriteByte(' ')
		frames.Write(m)
	}
	err := conn.SetWriteDeadline(time.Now().Add(s.config.Timeout))
	if err == nil {
		_, err = conn.Write(frames.Bytes())
	}
	if err != nil {
		return answer{}, s.lose(err)
	}
	return a, nil
}

// lose notes that what was written last may not have arrived.
func (s *syslog) lose(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = fmt.Errorf("writing to %s: %w: %w", s.config.Address, errLost, err)
	}
	return s.lost
}

func (s *syslog) dial(ctx context.Context) (net.Conn, error) {
	config, err := s.config.TLS.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	d := tls.Dialer{Config: config, NetDialer: &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2},
		Control:         endWhenSilent,
	}}
	conn, err := d.DialContext(ctx, "tcp", s.config.Address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", s.config.Address, believed(err))
	}
	gone := make(chan struct{})
	s.mu.Lock()
	s.conn, s.gone = conn, gone
	s.mu.Unlock()
	go s.watch(conn, gone)
	return conn, nil
}

// watch notices that the connection ends: a server has nothing to say.
func (s *syslog) watch(conn net.Conn, gone chan<- struct{}) {
	defer close(gone)
	_, err := io.Copy(io.Discard, conn)
	if err == nil {
		err = io.EOF
	}
	s.mu.Lock()
	ours := s.conn == conn
	s.mu.Unlock()
	if ours { // we did not close it
		_ = s.lose(err) // whoever sends next asks for it
	}
}

// endWhenSilent has the kernel end a connection whose other side does not acknowledge, long before it would by itself.
func endWhenSilent(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silentTime.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}

// client reads what a connection needs; a file that was replaced counts from the next connection on.
func (t TLS) client() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading CA: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading CA: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// believed marks an error that says that one side does not believe the other's certificate: a person must act.
func believed(err error) error {
	_, ours := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" {
		alert = true
	}
	if ours || alert {
		return fmt.Errorf("%w: %w", errDenied, err)
	}
	return err
}

// facility is log audit.
const facility = 13

// message is one event as RFC 5424 has it.
func (s *syslog) message(e Event) []byte {
	level := [...]int{6, 6, 5, 4, 3, 2}[min(max(e.Severity, 0), 5)] // informational to critical
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s headgate - %s ", facility*8+level, e.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		word(s.node, 255), word(e.Kind, 32))
	fmt.Fprintf(&b, `[headgate@32473 id="%s" seq="%d"] `, parameter(e.ID), e.Seq)
	b.Write(e.Body)
	return b.Bytes()
}

// word is a header field: printable ASCII without spaces, "-" where there is none.
func word(s string, longest int) string {
	clean := strings.Map(func(r rune) rune {
		if r > 0x20 && r < 0x7f {
			return r
		}
		return '_'
	}, s)
	if clean == "" {
		return "-"
	}
	return clean[:min(len(clean), longest)]
}

var escapeParameter = strings.NewReplacer(`"`, `\"`, `\`, `\\`, `]`, `\]`)

// parameter is the value of a parameter of structured data.
func parameter(s string) string { return escapeParameter.Replace(s) }
