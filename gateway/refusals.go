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

// A folder records what comes too often to be recorded one by one: the first of a kind at once, and what follows in ten
// seconds as one record with its count, so that nobody can fill the log.
type folder[K comparable] struct {
	record func(key K, count int64)
	others func(key K) K // what stands for further kinds, where there are too many

	mu   sync.Mutex // guards all below
	from time.Time
	rest map[K]int64
}

func newFolder[K comparable](record func(K, int64), others func(K) K) *folder[K] {
	return &folder[K]{record: record, others: others, rest: map[K]int64{}}
}

func (f *folder[K]) note(key K, now time.Time) {
	f.flush(now, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.rest[key]; !known && len(f.rest) >= refusalSources {
		key = f.others(key)
	}
	if _, known := f.rest[key]; known {
		f.rest[key]++
		return
	}
	f.rest[key] = 0
	f.record(key, 1)
}

// flush records what was only counted, once its window is over or at the end.
func (f *folder[K]) flush(now time.Time, end bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !end && now.Sub(f.from) < refusalWindow {
		return
	}
	for key, count := range f.rest {
		if count > 0 {
			f.record(key, count)
		}
	}
	clear(f.rest)
	f.from = now
}

// handshakeRefusals are the handshakes that we refused: one record for each source and reason in ten seconds.
type handshakeRefusals struct {
	log *audit.Log
	*folder[refusal]
}

// A refusal is what is counted together.
type refusal struct{ listener, source, reason string }

func newHandshakeRefusals(log *audit.Log) *handshakeRefusals {
	h := &handshakeRefusals{log: log}
	h.folder = newFolder(h.write, func(r refusal) refusal { return refusal{r.listener, "", "further sources"} })
	return h
}

// handshake takes a line of net/http about a handshake: "ADDRESS: REASON". What the client ended itself is no refusal.
func (h *handshakeRefusals) handshake(listener, line string, now time.Time) {
	address, reason, _ := strings.Cut(line, ": ")
	if strings.HasPrefix(reason, "remote error") || strings.HasSuffix(reason, "EOF") || strings.Contains(reason, "reset by peer") ||
		strings.Contains(reason, "timeout") || strings.Contains(reason, "does not look like a TLS handshake") {
		return
	}
	source, _, err := net.SplitHostPort(address)
	if err != nil {
		source = address
	}
	h.note(refusal{listener, source, reason}, now)
}

func (h *handshakeRefusals) write(key refusal, count int64) {
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
