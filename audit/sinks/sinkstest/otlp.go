package sinkstest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// An OTLP is a collector of OTLP/HTTP logs in JSON, after the protocol's specification and its definitions.
type OTLP struct {
	Receiver
	last   []byte
	Refuse func(uid string) bool // nil: nothing
	Mixed  bool                  // rejectedLogRecords is a number, not a string: readers of protocol buffers take either
}

// ServeHTTP implements http.Handler.
func (g *OTLP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, answered := g.unpacked(w, r)
	if answered {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	uids, err := ReadLogs(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.last = body
	rejected := 0
	for _, uid := range uids {
		if g.Refuse != nil && g.Refuse(uid) {
			rejected++
		} else {
			g.took(uid)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case rejected == 0:
		fmt.Fprint(w, `{}`)
	case g.Mixed:
		fmt.Fprintf(w, `{"partialSuccess":{"rejectedLogRecords":%d,"errorMessage":"why"}}`, rejected)
	default:
		fmt.Fprintf(w, `{"partialSuccess":{"rejectedLogRecords":"%d","errorMessage":"why"}}`, rejected)
	}
}

// ReadLogs checks each record and returns their log.record.uid.
func ReadLogs(body []byte) (uids []string, err error) {
	var q struct {
		ResourceLogs []struct {
			Resource  struct{ Attributes []map[string]any }
			ScopeLogs []struct {
				LogRecords []struct {
					TimeUnixNano, ObservedTimeUnixNano string
					SeverityNumber                     int
					Body                               map[string]any
					TraceID                            string
					Attributes                         []struct {
						Key   string
						Value map[string]any
					}
				}
			}
		}
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	for _, r := range q.ResourceLogs {
		for _, s := range r.ScopeLogs {
			for _, l := range s.LogRecords {
				at, err := strconv.ParseUint(l.TimeUnixNano, 10, 64)
				id, herr := hex.DecodeString(l.TraceID)
				if err != nil || at == 0 || herr != nil || len(id) != 0 && len(id) != 16 || l.SeverityNumber < 1 || l.SeverityNumber > 24 || len(l.Body) != 1 {
					return nil, fmt.Errorf("a record that is none: %+v", l)
				}
				for _, a := range l.Attributes {
					if len(a.Value) != 1 {
						return nil, fmt.Errorf("attribute %s has %d values", a.Key, len(a.Value))
					}
					if a.Key == "log.record.uid" {
						uids = append(uids, a.Value["stringValue"].(string))
					}
				}
			}
		}
	}
	return uids, nil
}

// Last is the last request's body.
func (g *OTLP) Last() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}
