package gateway

import (
	"net"
	"strings"
	"sync"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

const (
	refusalWindow  = 10 * time.Second
	refusalSources = 1024 // in one window; what comes from more is counted as one
)

// handshakeRefusals are the handshakes that we refused: one record for each source and reason in ten seconds, the first
// at once and the rest with their count, so that a scanner cannot fill the log.
type handshakeRefusals struct {
	log *audit.Log

	mu   sync.Mutex // guards all below
	from time.Time
	rest map[refusal]int64
}

// A refusal is what is counted together.
type refusal struct{ listener, source, reason string }

func newHandshakeRefusals(log *audit.Log) *handshakeRefusals {
	return &handshakeRefusals{log: log, rest: map[refusal]int64{}}
}

// note takes a line of net/http about a handshake: "ADDRESS: REASON". What the client ended itself is no refusal.
func (h *handshakeRefusals) note(listener, line string, now time.Time) {
	address, reason, _ := strings.Cut(line, ": ")
	if strings.HasPrefix(reason, "remote error") || strings.HasSuffix(reason, "EOF") || strings.Contains(reason, "reset by peer") ||
		strings.Contains(reason, "timeout") || strings.Contains(reason, "does not look like a TLS handshake") {
		return
	}
	source, _, err := net.SplitHostPort(address)
	if err != nil {
		source = address
	}
	h.flush(now, false)
	h.mu.Lock()
	defer h.mu.Unlock()
	key := refusal{listener, source, reason}
	if _, known := h.rest[key]; !known && len(h.rest) >= refusalSources {
		key = refusal{listener, "", "further sources"}
	}
	if _, known := h.rest[key]; known {
		h.rest[key]++
		return
	}
	h.rest[key] = 0
	h.record(key, 1)
}

// flush records what was only counted, once its window is over or at the end.
func (h *handshakeRefusals) flush(now time.Time, end bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !end && now.Sub(h.from) < refusalWindow {
		return
	}
	for key, count := range h.rest {
		if count > 0 {
			h.record(key, count)
		}
	}
	clear(h.rest)
	h.from = now
}

func (h *handshakeRefusals) record(key refusal, count int64) {
	rec := audit.Begin("")
	rec.Kind, rec.Action, rec.Severity, rec.Count = audit.KindAuth, "tls."+key.listener, 3, count
	rec.Client = audit.Client{IP: key.source}
	rec.Decision = audit.Decision{Effect: "deny", Stage: "protocol", Codes: []string{refusalCode(key.reason)}, Reason: key.reason}
	h.log.Note(rec)
}

// refusalCode is one of the codes that a refusal has elsewhere.
func refusalCode(reason string) string {
	code, _, _ := strings.Cut(reason, ": ")
	switch {
	case identity.Code(code).OfDevice():
		return code
	case strings.Contains(reason, "didn't provide a certificate"):
		return string(identity.DeviceRequired)
	}
	return "REQUEST-INVALID"
}
