// Package sinkstest holds receivers of audit events for tests, each written from its product's public specification and
// independently of the code that sends: a Splunk event collector, an Elasticsearch, an OpenTelemetry collector. They can
// hang, be slow, lose their answers and refuse single events.
package sinkstest

import (
	"compress/gzip"
	"io"
	"net/http"
	"slices"
	"sync"
)

// A Receiver is what the receivers have in common: a test may step in front of them.
type Receiver struct {
	mu       sync.Mutex // guards all below, and the settings of who embeds it
	front    func(w http.ResponseWriter, r *http.Request, body []byte) (answered bool)
	got      []string // ids of events, as they were taken
	each     func(id string)
	requests int
}

// Set puts f in front, nil for none: what it answers, the receiver does not.
func (h *Receiver) Set(f func(w http.ResponseWriter, r *http.Request, body []byte) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.front = f
}

// Each has f take the ids of events that are taken from now on, one call at a time, and IDs keep none of them.
func (h *Receiver) Each(f func(id string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.each = f
}

// took notes events. It needs mu.
func (h *Receiver) took(ids ...string) {
	if h.each == nil {
		h.got = append(h.got, ids...)
		return
	}
	for _, id := range ids {
		h.each(id)
	}
}

// IDs are those of the events that were taken, in order.
func (h *Receiver) IDs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

// unpacked reads a request whole; answered is true where the test has answered it.
func (h *Receiver) unpacked(w http.ResponseWriter, r *http.Request) (body []byte, answered bool) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Encoding") != "gzip" {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return nil, true
	}
	z, err := gzip.NewReader(r.Body)
	if err == nil {
		body, err = io.ReadAll(z)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return nil, true
	}
	h.mu.Lock()
	h.requests++
	f := h.front
	h.mu.Unlock()
	return body, f != nil && f(w, r, body)
}

// Forget forgets what was taken.
func (h *Receiver) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = nil
}

// Requests is how many were made.
func (h *Receiver) Requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests
}
