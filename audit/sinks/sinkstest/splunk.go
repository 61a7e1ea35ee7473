package sinkstest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// A Splunk is an HTTP event collector with indexer acknowledgement, after its manual: numbers count from 0 in each
// channel, and say true once.
type Splunk struct {
	Receiver
	Off    bool                    // the token does not acknowledge
	Late   time.Duration           // of indexing, so of acknowledgement
	Refuse func(event string) bool // nil: nothing
	Limit  int                     // of a request's bytes; 0: none

	channels map[string]*hecChannel
}

type hecChannel struct {
	next    int64
	pending map[int64]time.Time // when it is indexed
}

// ServeHTTP implements http.Handler. The right token is "right".
func (c *Splunk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, answered := c.unpacked(w, r)
	if answered {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	channel := r.Header.Get("X-Splunk-Request-Channel")
	switch {
	case r.Header.Get("Authorization") != "Splunk right":
		Say(w, http.StatusForbidden, `{"text":"Invalid token","code":4}`)
	case r.URL.Path == "/services/collector/ack" && c.Off:
		Say(w, http.StatusBadRequest, `{"text":"ACK is disabled","code":14}`)
	case !c.Off && channel == "":
		Say(w, http.StatusBadRequest, `{"text":"Data channel is missing","code":10}`)
	case r.URL.Path == "/services/collector/ack":
		c.ack(w, channel, body)
	case r.URL.Path == "/services/collector/event":
		c.take(w, channel, body)
	default:
		Say(w, http.StatusNotFound, `{"text":"The requested URL was not found on this server.","code":404}`)
	}
}

// Say answers with a status and a text.
func Say(w http.ResponseWriter, code int, text string) {
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text)
}

func (c *Splunk) ack(w http.ResponseWriter, channel string, body []byte) {
	var q struct{ Acks []int64 }
	if err := json.Unmarshal(body, &q); err != nil {
		Say(w, http.StatusBadRequest, `{"text":"Invalid data format","code":6}`)
		return
	}
	acks := map[int64]bool{}
	for _, id := range q.Acks {
		acks[id] = false
		if ch := c.channels[channel]; ch != nil {
			if at, ok := ch.pending[id]; ok && !time.Now().Before(at) {
				acks[id] = true
				delete(ch.pending, id)
			}
		}
	}
	b, _ := json.Marshal(map[string]any{"acks": acks})
	Say(w, http.StatusOK, string(b))
}

func (c *Splunk) take(w http.ResponseWriter, channel string, body []byte) {
	if c.Limit > 0 && len(body) > c.Limit {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	var ids []string
	for i := 0; ; i++ {
		var e struct {
			Time   float64
			Host   string
			Source string
			Event  json.RawMessage
			Fields map[string]string
		}
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || len(e.Event) == 0 || e.Time == 0 || c.Refuse != nil && c.Refuse(string(e.Event)) {
			Say(w, http.StatusBadRequest, fmt.Sprintf(`{"text":"Invalid data format","code":6,"invalid-event-number":%d}`, i))
			return
		}
		ids = append(ids, e.Fields["event_id"])
	}
	c.took(ids...)
	if c.Off {
		Say(w, http.StatusOK, `{"text":"Success","code":0}`)
		return
	}
	if c.channels == nil {
		c.channels = map[string]*hecChannel{}
	}
	ch := c.channels[channel]
	if ch == nil {
		ch = &hecChannel{pending: map[int64]time.Time{}}
		c.channels[channel] = ch
	}
	ch.pending[ch.next] = time.Now().Add(c.Late)
	Say(w, http.StatusOK, fmt.Sprintf(`{"text":"Success","code":0,"ackId":%d}`, ch.next))
	ch.next++
}

// Reset is a Splunk that starts again: what it had not indexed is gone, and numbers begin at 0.
func (c *Splunk) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.channels = nil
}

// SetLate changes Late.
func (c *Splunk) SetLate(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Late = d
}

// Acknowledge says true of everything, and loses the answer.
func (c *Splunk) Acknowledge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.channels {
		ch.pending = map[int64]time.Time{}
	}
}
