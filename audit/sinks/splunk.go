package sinks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// Splunk says only when asked that it has indexed a batch. One that it does not have after ackPatience is lost.
const (
	ackPatience = 5 * time.Minute
	ackPoll     = 500 * time.Millisecond // at first; twice as long each time, up to
	ackPollMost = 5 * time.Second
)

// splunk sends to an HTTP event collector with indexer acknowledgement. Its 200 only says that the events parse; what
// counts is that the number which came with it is acknowledged. Numbers belong to a channel and begin again when Splunk
// does, so a channel has one batch on its way, and none after a batch that was not acknowledged: what a number says can
// then only be about that batch.
type splunk struct {
	web
	node     string
	channels chan string // free ones
	proven   atomic.Bool // the token is known to acknowledge
}

func newSplunk(c Config, node string) *splunk {
	s := &splunk{web: web{config: c, scheme: "Splunk"}, node: node, channels: make(chan string, webInFlight)}
	for range webInFlight {
		s.channels <- newChannel()
	}
	return s
}

// newChannel makes the random identifier (RFC 9562, version 4) of a channel.
func newChannel() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (s *splunk) deliver(ctx context.Context, events []Event) (answer, error) {
	if s.config.NoAck {
		return s.send(ctx, "", events)
	}
	channel := <-s.channels // there is one for each delivery
	a, err := s.send(ctx, channel, events)
	if err != nil {
		channel = newChannel()
	}
	s.channels <- channel
	return a, err
}

// A hecReply is an answer of the collector.
type hecReply struct {
	Text    string          `json:"text"`
	Code    int             `json:"code"`
	AckID   *int64          `json:"ackId"`
	Invalid *int            `json:"invalid-event-number"`
	Acks    map[string]bool `json:"acks"`
}

// Codes of the collector that a person must act on: no record is at fault.
var hecMisconfigured = []int{
	7,  // the token is not for this index
	10, // data channel is missing
	14, // acknowledgement is disabled
}

// hecNoChannel is the code of a channel that Splunk does not know, or no longer.
const hecNoChannel = 11

var errChannel = errors.New("the channel is not known to Splunk")

func (s *splunk) ask(ctx context.Context, path, channel string, body []byte) (hecReply, error) {
	q := request{path: path, kind: "application/json", body: body}
	if channel != "" {
		q.header = http.Header{"X-Splunk-Request-Channel": {channel}}
	}
	b, err := s.post(ctx, q)
	var reply hecReply
	if jerr := json.Unmarshal(b, &reply); jerr != nil && err == nil {
		return reply, fmt.Errorf("reading Splunk's answer: %w", jerr)
	}
	switch {
	case !errors.Is(err, errRefused):
	case slices.Contains(hecMisconfigured, reply.Code):
		err = fmt.Errorf("%w: Splunk answers %q, code %d", errDenied, reply.Text, reply.Code)
	case reply.Code == hecNoChannel:
		err = errChannel
	}
	return reply, err
}

// acks asks whether batches are indexed. An answer that refuses the question does not refuse the events.
func (s *splunk) acks(ctx context.Context, channel, id string) (hecReply, error) {
	reply, err := s.ask(ctx, "/services/collector/ack", channel, []byte(`{"acks":[`+id+`]}`))
	if errors.Is(err, errRefused) || errors.Is(err, errTooLarge) {
		err = errors.New(err.Error())
	}
	return reply, err
}

func (s *splunk) send(ctx context.Context, channel string, events []Event) (answer, error) {
	if err := s.prove(ctx, channel); err != nil {
		return answer{}, err
	}
	reply, err := s.ask(ctx, "/services/collector/event", channel, s.encode(events))
	if i := reply.Invalid; errors.Is(err, errRefused) && i != nil && *i >= 0 && *i < len(events) {
		bad := letter{events[*i], fmt.Sprintf("%s, code %d", reply.Text, reply.Code)}
		return answer{again: slices.Concat(events[:*i], events[*i+1:]), rejected: []letter{bad}}, nil
	}
	if err != nil || s.config.NoAck {
		return answer{}, err
	}
	if reply.AckID == nil {
		s.proven.Store(false)
		return answer{}, fmt.Errorf("%w: Splunk took events without a number to ask for", errDenied)
	}
	return answer{}, s.await(ctx, channel, *reply.AckID)
}

// prove asks about a number before anything is sent: a token that does not acknowledge would take the same events again
// and again.
func (s *splunk) prove(ctx context.Context, channel string) error {
	if s.config.NoAck || s.proven.Load() {
		return nil
	}
	reply, err := s.acks(ctx, channel, "0")
	if err != nil {
		return fmt.Errorf("asking whether the token acknowledges: %w", err)
	}
	if reply.Acks == nil {
		return fmt.Errorf("asking whether the token acknowledges: %w: Splunk answers %q, code %d", errDenied, reply.Text, reply.Code)
	}
	s.proven.Store(true)
	return nil
}

// await asks until a batch is indexed. That is said once: an answer that is lost costs the batch a second journey.
func (s *splunk) await(ctx context.Context, channel string, id int64) error {
	key := strconv.FormatInt(id, 10)
	var last error
	pause := ackPoll
	for end := time.Now().Add(ackPatience); time.Now().Before(end); pause = min(2*pause, ackPollMost) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		reply, err := s.acks(ctx, channel, key)
		switch {
		case err == nil && reply.Acks[key]:
			return nil
		case errors.Is(err, errDenied), errors.Is(err, errChannel):
			return fmt.Errorf("asking for acknowledgement: %w", err)
		}
		last = err
	}
	if last != nil {
		return fmt.Errorf("not acknowledged within %s: %w", ackPatience, last)
	}
	return fmt.Errorf("not acknowledged within %s", ackPatience)
}

// A hecHead is what all events of this sink share.
type hecHead struct {
	Host       string `json:"host"`
	Source     string `json:"source"`
	SourceType string `json:"sourcetype"`
	Index      string `json:"index,omitempty"`
}

// encode writes events as the collector reads them. Splunk looks for no repeats itself, so that event_id is a field.
func (s *splunk) encode(events []Event) []byte {
	head := marshal(hecHead{s.node, "headgate", "headgate:" + cmp.Or(s.config.Schema, "ocsf"), s.config.Index})
	var b bytes.Buffer
	for _, e := range events {
		fmt.Fprintf(&b, `{"time":%d.%03d,`, e.Time.Unix(), e.Time.Nanosecond()/1e6)
		b.Write(head[1 : len(head)-1])
		b.WriteString(`,"event":`)
		if json.Valid(e.Body) {
			b.Write(e.Body)
		} else { // of a schema that is no JSON
			b.Write(marshal(string(e.Body)))
		}
		b.WriteString(`,"fields":{"event_id":`)
		b.Write(marshal(e.ID))
		fmt.Fprintf(&b, `,"seq":"%d"}}`+"\n", e.Seq)
	}
	return b.Bytes()
}

// marshal writes strings, and structures of them, as JSON.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // of strings there is none
	}
	return b
}
