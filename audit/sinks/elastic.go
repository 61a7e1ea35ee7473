package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// elastic sends to a data stream of Elasticsearch or OpenSearch with bulk requests. Each event is created under its id, so
// one that arrives again is a conflict and not a second document. A 200 says nothing of the single events: each item of
// the answer is read.
type elastic struct {
	web
	path string
}

func newElastic(c Config) *elastic {
	const filter = "items.*._id,items.*.status,items.*.error.type,items.*.error.reason"
	return &elastic{web: web{config: c, scheme: "ApiKey"}, path: "/" + url.PathEscape(c.Index) + "/_bulk?filter_path=" + filter}
}

// A bulkItem is what Elasticsearch says of one event.
type bulkItem struct {
	ID     string `json:"_id"`
	Status int    `json:"status"`
	Error  struct {
		Type   string `json:"type"`
		Reason string `json:"reason"`
	} `json:"error"`
}

func (e *elastic) deliver(ctx context.Context, events []Event) (answer, error) {
	b, err := e.post(ctx, request{path: e.path, kind: "application/x-ndjson", body: encodeBulk(events)})
	if err != nil {
		return answer{}, err
	}
	var reply struct {
		Items []map[string]bulkItem `json:"items"`
	}
	if err := json.Unmarshal(b, &reply); err != nil {
		return answer{}, fmt.Errorf("reading Elasticsearch's answer: %w", err)
	}
	if len(reply.Items) != len(events) {
		return answer{}, fmt.Errorf("reading Elasticsearch's answer: it speaks of %d events, not of %d", len(reply.Items), len(events))
	}
	var a answer
	for i, event := range events {
		item, ok := reply.Items[i]["create"]
		if !ok || item.ID != "" && item.ID != event.ID {
			return answer{}, fmt.Errorf("reading Elasticsearch's answer: item %d is not about event %s", i, event.ID)
		}
		if err := a.settle(event, item); err != nil {
			return answer{}, err
		}
	}
	return a, nil
}

// settle judges one event. What a person must mend is an error for the whole batch: it is sent again then, and what
// arrived this time is a conflict.
func (a *answer) settle(event Event, item bulkItem) error {
	said := fmt.Sprintf("%d %s: %s", item.Status, item.Error.Type, item.Error.Reason)
	switch code := item.Status; {
	case code/100 == 2, code == http.StatusConflict: // it is there already
	case code == http.StatusTooManyRequests, code/100 == 5:
		a.again = append(a.again, event)
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound: // the data stream is closed to us, or not there
		return fmt.Errorf("%w: %s", errDenied, said)
	case code/100 == 4:
		a.rejected = append(a.rejected, letter{event, said})
	default:
		return fmt.Errorf("reading Elasticsearch's answer: event %s has status %d", event.ID, code)
	}
	return nil
}

func encodeBulk(events []Event) []byte {
	var b bytes.Buffer
	for _, e := range events {
		b.WriteString(`{"create":{"_id":`)
		b.Write(marshal(e.ID))
		b.WriteString("}}\n")
		b.Write(timed(e))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// timed returns an event as a document of a data stream, which has a time in @timestamp whatever its schema: that of ECS
// already does, that of CEF is no JSON.
func timed(e Event) []byte {
	if hasTime(e.Body) {
		return e.Body
	}
	isObject := bytes.HasPrefix(e.Body, []byte("{")) && json.Valid(e.Body)
	b := fmt.Appendf(nil, `{"@timestamp":%q`, e.Time.UTC().Format(time.RFC3339Nano))
	switch {
	case isObject && bytes.HasPrefix(bytes.TrimSpace(e.Body[1:]), []byte("}")):
		return append(b, '}')
	case isObject:
		b = append(b, ',')
		return append(b, e.Body[1:]...)
	}
	b = append(b, `,"message":`...)
	b = append(b, marshal(string(e.Body))...)
	return append(b, '}')
}

// hasTime tells whether a body is an object with @timestamp of its own. Few bodies need to be read for that.
func hasTime(body []byte) bool {
	if !bytes.Contains(body, []byte(`"@timestamp"`)) {
		return false
	}
	var head map[string]json.RawMessage
	return json.Unmarshal(body, &head) == nil && head["@timestamp"] != nil
}
