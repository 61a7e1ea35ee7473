package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	noticeTimeout = 10 * time.Second
	maxReceipt    = 64 << 10 // what is read of a receiver's answer
	maxNoticeKeys = 8
	noticeKeyMark = "whsec_" // begins a key of the Standard Webhooks specification
)

// A Notice is the JSON of one notice.
type Notice struct {
	Type   string      `json:"type"` // token.expiring
	Before string      `json:"before"`
	Token  NoticeToken `json:"token"`
}

// A NoticeToken is what a receiver needs to find whoever answers for a token. It opens nothing.
type NoticeToken struct {
	ID       string        `json:"id"`
	Class    Class         `json:"class"`
	Subject  NoticeSubject `json:"subject"`
	Owner    string        `json:"owner,omitempty"` // who answers for a static CI token
	Team     string        `json:"team,omitempty"`
	Note     string        `json:"note,omitempty"`
	Created  time.Time     `json:"created"`
	Expires  time.Time     `json:"expires"`
	LastUsed time.Time     `json:"last_used,omitzero"`
}

// A NoticeSubject names the holder of a token.
type NoticeSubject struct {
	Type   string `json:"type"`
	Issuer string `json:"issuer,omitempty"`
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
}

func noticeOf(t Token, before time.Duration) Notice {
	return Notice{Type: "token.expiring", Before: before.String(), Token: NoticeToken{
		ID: t.ID, Class: t.Class, Subject: NoticeSubject{t.Subject.Type, t.Subject.Issuer, t.Subject.ID, t.Subject.Name},
		Owner: t.Owner, Team: t.Subject.Team, Note: t.Note, Created: t.Created, Expires: t.Expires, LastUsed: t.LastUsed,
	}}
}

// newNoticeClient makes the client for the receiver. base, where it has a transport, replaces ours.
func newNoticeClient(cfg Notices, base *http.Client) (*http.Client, error) {
	c := &http.Client{Timeout: noticeTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if base != nil && base.Transport != nil {
		c.Transport = base.Transport
		return c, nil
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		data, err := readFile(cfg.CAFile, maxPoolFile)
		if err != nil {
			return nil, fmt.Errorf("preparing notices: %w", err)
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("preparing notices: no certificate in %s", cfg.CAFile)
		}
	}
	// A minute lies between two rounds: a kept connection would not serve the next one.
	t := &http.Transport{TLSClientConfig: trust, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, MaxResponseHeaderBytes: maxReceipt}
	plain := strings.HasPrefix(cfg.URL, "http://")
	if plain {
		t.Proxy = nil // a proxy would carry it off this machine
	}
	t.DialContext = (&net.Dialer{Timeout: noticeTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		return checkReceiver(address, plain)
	}}).DialContext
	c.Transport = t
	return c, nil
}

// checkReceiver judges the address that a name led to: names are others' to change. A receiver may well be in a private
// network; link-local is where clouds keep their machines' credentials, and what goes over http stays on this machine.
func checkReceiver(address string, plain bool) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap()
	if plain && !ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return fmt.Errorf("the receiver's name leads to %s, where no notice is sent", ip)
	}
	return nil
}

// send posts one notice. Its Webhook-Id stays the same when it is tried again, so that a receiver can tell.
func (n *notices) send(ctx context.Context, k noticeKey, notice Notice) error {
	body, err := json.Marshal(notice)
	if err != nil {
		return fmt.Errorf("encoding notice: %w", err)
	}
	keys, err := readNoticeKeys(n.cfg.SecretFile)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, n.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("sending notice: notices.url is no address")
	}
	id, at := fmt.Sprintf("token-%s-%d", k.token, int64(k.before/time.Second)), strconv.FormatInt(time.Now().Unix(), 10)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "headgate")
	r.Header.Set("Webhook-Id", id)
	r.Header.Set("Webhook-Timestamp", at)
	r.Header.Set("Webhook-Signature", signNotice(keys, id, at, body))
	resp, err := n.client.Do(r)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // its text repeats the address, which may be a secret
	}
	if err != nil {
		return fmt.Errorf("sending notice: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("sending notice: the receiver answered %d", resp.StatusCode)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxReceipt) // what it says beside its status does not count
	return nil
}

// signNotice signs as the Standard Webhooks specification has it, once with each key.
func signNotice(keys [][]byte, id, at string, body []byte) string {
	var tags []string
	for _, key := range keys {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(id + "." + at + "."))
		m.Write(body)
		tags = append(tags, "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
	}
	return strings.Join(tags, " ")
}

// readNoticeKeys reads one key a line.
func readNoticeKeys(file string) ([][]byte, error) {
	text, err := readFile(file, maxCredential)
	if err != nil {
		return nil, fmt.Errorf("reading notices.secret_file: %w", err)
	}
	var keys [][]byte
	for line := range strings.FieldsSeq(string(text)) {
		coded, marked := strings.CutPrefix(line, noticeKeyMark)
		key, err := base64.StdEncoding.DecodeString(coded)
		if !marked || err != nil || len(key) < 24 || len(key) > 64 {
			return nil, fmt.Errorf("reading notices.secret_file: line %d is no key; want whsec_ and 24 to 64 bytes in base64", len(keys)+1)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 || len(keys) > maxNoticeKeys {
		return nil, fmt.Errorf("reading notices.secret_file: %d keys; want 1 to %d", len(keys), maxNoticeKeys)
	}
	return keys, nil
}
