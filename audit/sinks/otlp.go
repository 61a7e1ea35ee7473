package sinks

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// otlp sends log records over OTLP/HTTP in JSON. The body of each is the event in the sink's schema; its attributes are
// taken from the record itself.
type otlp struct {
	web
	resource otlpResource
}

func newOTLP(c Config, o Options) *otlp {
	return &otlp{web: web{config: c, scheme: "Bearer"}, resource: otlpResource{otlpTexts(
		"service.name", "headgate", "service.version", o.Version, "service.instance.id", o.Node, "host.name", o.Node,
	)}}
}

func (o *otlp) deliver(ctx context.Context, events []Event) (answer, error) {
	body, err := o.encode(events, time.Now())
	if err != nil {
		return answer{}, err
	}
	b, err := o.post(ctx, request{path: "/v1/logs", kind: "application/json", body: body})
	if err != nil {
		return answer{}, err
	}
	return o.partial(b, events)
}

// partial reads how many records a collector refused. It does not say which: they are found by halves. What it took
// arrives again then under the same log.record.uid, at most once for each halving; the specification would have a client
// not send it again, and so lose sight of which records were refused.
func (o *otlp) partial(b []byte, events []Event) (answer, error) {
	var reply struct {
		PartialSuccess struct {
			Rejected json.Number `json:"rejectedLogRecords"` // int64 is a string in the JSON of protocol buffers
			Message  string      `json:"errorMessage"`
		} `json:"partialSuccess"`
	}
	if len(b) == 0 { // as a collector answers that does not speak JSON
		return answer{}, nil
	}
	if err := json.Unmarshal(b, &reply); err != nil {
		return answer{}, fmt.Errorf("reading the collector's answer: %w", err)
	}
	text, said := reply.PartialSuccess.Rejected.String(), reply.PartialSuccess.Message
	if text == "" {
		return answer{}, nil
	}
	rejected, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil || rejected < 0:
		return answer{}, errors.New("reading the collector's answer: rejectedLogRecords is no number of records")
	case rejected == 0: // a warning at most
		return answer{}, nil
	case rejected < int64(len(events)):
		return answer{}, fmt.Errorf("%w: %d of %d log records: %.200q", errRefused, rejected, len(events), said)
	}
	var a answer
	for _, e := range events {
		a.rejected = append(a.rejected, letter{e, "rejected by the collector: " + said})
	}
	return a, nil
}

// What follows is ExportLogsServiceRequest in the JSON of OTLP: names in lowerCamelCase, 64-bit integers as strings, trace
// ids in hex.
type (
	otlpRequest struct {
		ResourceLogs []otlpResourceLogs `json:"resourceLogs"`
	}
	otlpResourceLogs struct {
		Resource  otlpResource    `json:"resource"`
		ScopeLogs []otlpScopeLogs `json:"scopeLogs"`
	}
	otlpResource struct {
		Attributes []otlpAttribute `json:"attributes"`
	}
	otlpScopeLogs struct {
		Scope   otlpScope    `json:"scope"`
		Records []otlpRecord `json:"logRecords"`
	}
	otlpScope struct {
		Name string `json:"name"`
	}
	otlpRecord struct {
		Time       string          `json:"timeUnixNano"`
		Observed   string          `json:"observedTimeUnixNano"`
		Severity   int             `json:"severityNumber"`
		SevText    string          `json:"severityText"`
		Body       otlpValue       `json:"body"`
		Attributes []otlpAttribute `json:"attributes"`
		TraceID    string          `json:"traceId,omitempty"`
	}
	otlpAttribute struct {
		Key   string    `json:"key"`
		Value otlpValue `json:"value"`
	}
	otlpValue struct {
		String *string    `json:"stringValue,omitempty"`
		Int    string     `json:"intValue,omitempty"`
		Array  *otlpArray `json:"arrayValue,omitempty"`
	}
	otlpArray struct {
		Values []otlpValue `json:"values"`
	}
)

// otlpTexts makes attributes of keys and their values; an empty value makes none.
func otlpTexts(pairs ...string) []otlpAttribute {
	var all []otlpAttribute
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			all = append(all, otlpAttribute{pairs[i], otlpValue{String: &pairs[i+1]}})
		}
	}
	return all
}

func (o *otlp) encode(events []Event, now time.Time) ([]byte, error) {
	records := make([]otlpRecord, 0, len(events))
	for _, e := range events {
		records = append(records, otlpLog(e, now))
	}
	b, err := json.Marshal(otlpRequest{[]otlpResourceLogs{{o.resource, []otlpScopeLogs{{otlpScope{"headgate/audit"}, records}}}}})
	if err != nil {
		return nil, fmt.Errorf("writing log records: %w", err)
	}
	return b, nil
}

// An otlpSource is what attributes are taken from: a record of the log.
type otlpSource struct {
	EventID   string `json:"event_id"`
	Kind      string `json:"kind"`
	Action    string `json:"action"`
	Method    string `json:"method"`
	Path      string `json:"path"`
	Module    string `json:"module"`
	Version   string `json:"version"`
	PolicyRev string `json:"policy_rev"`
	TraceID   string `json:"trace_id"`
	Subject   struct {
		ID     string `json:"id"`
		Issuer string `json:"issuer"`
	} `json:"subject"`
	Credential struct {
		FP string `json:"fp"`
	} `json:"credential"`
	Device struct {
		ID string `json:"id"`
	} `json:"device"`
	Client struct {
		IP    string `json:"ip"`
		Agent string `json:"agent"`
	} `json:"client"`
	Decision struct {
		Effect string   `json:"effect"`
		Codes  []string `json:"codes"`
		Status int64    `json:"status"`
	} `json:"decision"`
	File struct {
		Cache string `json:"cache"`
	} `json:"file"`
	Outcome struct {
		Status int64 `json:"status"`
		Bytes  int64 `json:"bytes"`
		MS     int64 `json:"ms"`
	} `json:"outcome"`
	Control struct {
		What string `json:"what"`
	} `json:"control"`
}

func otlpLog(e Event, now time.Time) otlpRecord {
	var r otlpSource
	_ = json.Unmarshal(e.Raw, &r) // what cannot be read has no attributes; the body is there
	name := r.Kind
	for _, s := range []string{r.Action, r.Control.What} {
		if s != "" {
			name = s
			break
		}
	}
	l := otlpRecord{
		Time: strconv.FormatInt(e.Time.UnixNano(), 10), Observed: strconv.FormatInt(now.UnixNano(), 10),
		Attributes: otlpTexts(
			"log.record.uid", e.ID, "event.id", r.EventID, "event.name", name, "log.integrity.leaf", e.Leaf,
			"enduser.id", r.Subject.ID, "auth.issuer", r.Subject.Issuer, "auth.token_fp", r.Credential.FP, "device.id", r.Device.ID,
			"client.address", r.Client.IP, "user_agent.original", r.Client.Agent, "http.request.method", r.Method, "url.path", r.Path,
			"package.name", r.Module, "package.version", r.Version, "decision", r.Decision.Effect, "policy.revision", r.PolicyRev,
			"cache", r.File.Cache,
		),
	}
	if id, err := hex.DecodeString(r.TraceID); err == nil && len(id) == 16 { // another would cost the whole batch
		l.TraceID = r.TraceID
	}
	body := string(e.Body)
	l.Body.String = &body
	l.Severity, l.SevText = otlpSeverity(e.Severity)
	if codes := r.Decision.Codes; len(codes) > 0 {
		list := &otlpArray{}
		for i := range codes {
			list.Values = append(list.Values, otlpValue{String: &codes[i]})
		}
		l.Attributes = append(l.Attributes, otlpAttribute{"decision.codes", otlpValue{Array: list}})
	}
	status := r.Outcome.Status
	if status == 0 {
		status = r.Decision.Status
	}
	l.number("http.response.status_code", status)
	l.number("http.response.body.size", r.Outcome.Bytes)
	l.number("duration_ms", r.Outcome.MS)
	return l
}

func (l *otlpRecord) number(key string, n int64) {
	if n != 0 {
		l.Attributes = append(l.Attributes, otlpAttribute{key, otlpValue{Int: strconv.FormatInt(n, 10)}})
	}
}

// otlpSeverity is a severity of the log as OTLP numbers and names it.
func otlpSeverity(s int) (int, string) {
	switch {
	case s <= 2:
		return 9, "INFO"
	case s == 3:
		return 13, "WARN"
	case s == 4:
		return 17, "ERROR"
	}
	return 21, "FATAL"
}
