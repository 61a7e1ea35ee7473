package sinkstest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// An Elastic is an Elasticsearch as its reference describes bulk requests to a data stream.
type Elastic struct {
	Receiver
	docs   map[string]bool
	refuse func(id string) int
	Limit  int // of a request's bytes; 0: none
}

// ServeHTTP implements http.Handler. The right key is "right", the data stream logs-headgate.
func (s *Elastic) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, answered := s.unpacked(w, r)
	if answered {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "ApiKey right":
		w.WriteHeader(http.StatusUnauthorized)
		return
	case r.URL.Path != "/logs-headgate/_bulk" || r.Header.Get("Content-Type") != "application/x-ndjson":
		w.WriteHeader(http.StatusNotAcceptable)
		return
	case s.Limit > 0 && len(body) > s.Limit:
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	case !bytes.HasSuffix(body, []byte("\n")):
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if s.docs == nil {
		s.docs = map[string]bool{}
	}
	lines := bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, 1<<20)
	errs, items := false, []string{}
	for lines.Scan() {
		var op struct {
			Create struct {
				ID string `json:"_id"`
			}
		}
		err := json.Unmarshal(lines.Bytes(), &op)
		if err != nil || !lines.Scan() {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		code, item := s.create(op.Create.ID, lines.Bytes())
		errs = errs || code != http.StatusCreated
		items = append(items, item)
	}
	fmt.Fprintf(w, `{"took":1,"errors":%v,"items":[%s]}`, errs, strings.Join(items, ","))
}

func (s *Elastic) create(id string, doc []byte) (int, string) {
	var head struct {
		Time *time.Time `json:"@timestamp"`
	}
	code, kind := http.StatusCreated, ""
	switch err := json.Unmarshal(doc, &head); {
	case s.refuse != nil && s.refuse(id) != 0:
		code, kind = s.refuse(id), "some_exception"
	case err != nil || head.Time == nil:
		code, kind = http.StatusBadRequest, "document_parsing_exception"
	case s.docs[id]:
		code, kind = http.StatusConflict, "version_conflict_engine_exception"
	default:
		s.docs[id] = true
		s.took(id)
	}
	if kind == "" {
		return code, fmt.Sprintf(`{"create":{"_id":%q,"status":%d,"result":"created"}}`, id, code)
	}
	return code, fmt.Sprintf(`{"create":{"_id":%q,"status":%d,"error":{"type":%q,"reason":"why"}}}`, id, code, kind)
}

// SetRefuse has f say the status of an item, 0 for one that is taken; nil: all are.
func (s *Elastic) SetRefuse(f func(id string) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}
