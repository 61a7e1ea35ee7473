package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Classes and fixed values of OCSF 1.8.0 (https://schema.ocsf.io/1.8.0).
const (
	ocsfVersion = "1.8.0"

	classAuthentication = 3002 // category 3, Identity & Access Management
	classLifecycle      = 6002 // category 6, Application Activity
	classAPI            = 6003

	activityLogon  = 1
	activityLogoff = 2
	activityStart  = 3
	activityStop   = 4
)

// ocsf writes requests and changes as API Activity, sign-ins as Authentication, and what the log says of itself as
// Application Lifecycle.
func (e *Encoder) ocsf(p place, r record) ([]byte, error) {
	o := &ocsfEvent{
		SeverityID: r.severity(), Time: r.num("t") / int64(time.Millisecond), Message: r.message(), Count: r.num("count"),
		Metadata: e.metadata(p, r), DstEndpoint: &ocsfEndpoint{Hostname: r.str("node"), SvcName: service}, Unmapped: unmapped(p, r),
	}
	switch r.kind() {
	case kindAuth:
		o.authentication(r)
	case kindControl:
		o.lifecycle(e, r)
	default:
		o.api(r)
	}
	o.TypeUID = o.ClassUID*100 + o.ActivityID
	if o.ClassUID != classLifecycle {
		o.judged(r)
		o.exchanged(r)
		o.Device = ocsfDeviceOf(r)
	}
	return line(o)
}

// line is v as JSON, in one line without its end; <, > and & stand for themselves.
func line(v any) ([]byte, error) {
	var b bytes.Buffer
	j := json.NewEncoder(&b)
	j.SetEscapeHTML(false)
	if err := j.Encode(v); err != nil {
		return nil, fmt.Errorf("writing an event: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (e *Encoder) metadata(p place, r record) ocsfMetadata {
	return ocsfMetadata{
		Version: ocsfVersion, Product: ocsfProduct{Name: product, VendorName: product, Version: e.version},
		Profiles: []string{"security_control", "host", "trace"}, UID: p.id, CorrelationUID: r.str("event_id"),
		Sequence: p.Seq, LogName: p.Origin, LogVersion: fmt.Sprint(r.num("v")), EventCode: r.name(), IsTruncated: len(r.list("truncated")) > 0,
	}
}

func (o *ocsfEvent) api(r record) {
	o.ClassUID, o.CategoryUID, o.ActivityID = classAPI, 6, int64(r.activity())
	if o.ActivityID == int64(other) {
		o.ActivityName = r.name()
	}
	o.API = &ocsfAPI{Operation: r.name(), Service: ocsfService{Name: service}}
	user := ocsfUserOf(r)
	o.Actor = &ocsfActor{User: user}
	if issuer := r.str("subject", "issuer"); issuer != "" {
		o.Actor.IDP, o.Actor.Session = &ocsfIDP{Name: issuer}, &ocsfSession{Issuer: issuer}
	}
	o.SrcEndpoint = ocsfSource(r)
	if o.SrcEndpoint == nil { // an outcome names none: its decision does, under the same correlation_uid
		o.SrcEndpoint = &ocsfEndpoint{Name: "unknown"}
	}
	if m := r.str("module"); m != "" {
		o.Resources = []ocsfResource{{Type: "go_module", Name: m, Version: r.str("version"), UID: r.purl(), RoleID: 1}}
	} else if object := r.str("change", "object"); object != "" {
		o.Resources = []ocsfResource{{Type: "setting", Name: object, RoleID: 1}}
	}
	if id := r.str("trace_id"); id != "" {
		o.Trace = &ocsfTrace{UID: id}
	}
}

func (o *ocsfEvent) authentication(r record) {
	o.ClassUID, o.CategoryUID, o.ActivityID = classAuthentication, 3, int64(other)
	object, _, _ := strings.Cut(r.str("action"), ".")
	switch {
	case object == "signout":
		o.ActivityID = activityLogoff
	case object == "signin":
		o.ActivityID = activityLogon
	default:
		o.ActivityName = r.name()
	}
	o.User, o.Service = ocsfUserOf(r), &ocsfService{Name: service}
	o.SrcEndpoint = ocsfSource(r)
	via := r.str("credential", "via")
	switch {
	case via == "mtls" || object == "tls" || object == "device":
		o.AuthProtocolID, o.AuthProtocol = 99, "mTLS"
	case via == "basic":
		o.AuthProtocolID = 11
	case object == "signin":
		o.AuthProtocolID = 4
	default:
		o.AuthProtocolID = 6
	}
}

func (o *ocsfEvent) lifecycle(e *Encoder, r record) {
	o.ClassUID, o.CategoryUID, o.ActivityID = classLifecycle, 6, int64(other)
	switch what := r.str("control", "what"); what {
	case "start":
		o.ActivityID = activityStart
	case "stop":
		o.ActivityID = activityStop
	default:
		o.ActivityName = r.name()
	}
	o.App = &ocsfProduct{Name: product, VendorName: product, Version: e.version}
	o.Metadata.Profiles, o.DstEndpoint = nil, nil
	o.Device = &ocsfDevice{Hostname: r.str("node"), TypeID: 1} // 1 is a server
	if o.Device.Hostname != "" {
		o.Metadata.Profiles = []string{"host"}
	} else {
		o.Device = nil
	}
}

// judged says what was decided: profile security_control.
func (o *ocsfEvent) judged(r record) {
	codes := r.list("decision", "codes")
	switch r.effect() {
	case "allow":
		o.ActionID, o.DispositionID = 1, 1
	case "deny":
		o.ActionID, o.DispositionID = 2, 2 // blocked
		if s := r.str("decision", "stage"); s != "release" {
			o.DispositionID = 26 // unauthorized
		}
	case "error":
		o.ActionID, o.DispositionID = 2, 27 // error
	}
	if failed, known := r.failed(); known {
		o.StatusID = 1
		if failed {
			o.StatusID = 2
		}
	}
	o.StatusDetail = strings.Join(codes, ", ")
	if reason := r.str("decision", "reason"); reason != "" {
		o.StatusDetail = strings.TrimPrefix(o.StatusDetail+": "+reason, ": ")
	}
	if rev := r.str("policy_rev"); rev != "" {
		o.Policy = &ocsfPolicy{UID: r.str("bundle_sha256"), Name: "policy", Version: rev, IsApplied: true}
	}
}

// exchanged says what went over HTTP.
func (o *ocsfEvent) exchanged(r record) {
	if status := r.status(); status != 0 {
		o.HTTPResponse = &ocsfResponse{Code: status, BodyLength: r.bytes(), Latency: r.num("outcome", "ms")}
	}
	agent, path := r.str("client", "agent"), r.str("path")
	q := &ocsfRequest{UserAgent: agent, Method: httpMethod(r.str("method"))}
	if path != "" {
		q.URL = &ocsfURL{Path: path}
	}
	if *q != (ocsfRequest{}) {
		o.HTTPRequest = q
	}
}

// httpMethod is m if it is one that the schema knows: a client may send any word.
func httpMethod(m string) string {
	switch m {
	case "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE":
		return m
	}
	return ""
}

func ocsfUserOf(r record) *ocsfUser {
	u := &ocsfUser{UID: r.str("subject", "id"), Name: r.str("subject", "name")}
	for _, g := range r.list("subject", "groups") {
		u.Groups = append(u.Groups, ocsfGroup{Name: g})
	}
	switch r.str("subject", "kind") {
	case "person":
		u.TypeID = 1
	case "workload":
		u.TypeID = 4
	case "":
		u.TypeID = 0
	default:
		u.TypeID, u.Type = 99, r.str("subject", "kind")
	}
	if u.UID == "" && u.Name == "" {
		u.Name = "anonymous"
	}
	for _, id := range []string{r.str("credential", "fp"), r.str("credential", "id")} {
		if id != "" {
			u.Credentials = []ocsfCredential{{Type: r.str("credential", "class"), UID: id}}
			break
		}
	}
	return u
}

// ocsfDeviceOf is the machine from which was asked; nil where none is known.
func ocsfDeviceOf(r record) *ocsfDevice {
	id := r.str("device", "id")
	if id == "" {
		return nil
	}
	tier := r.num("device", "tier") // 1 its certificate holds, 2 it is enrolled, 3 and its required facts are ok, 4 and it is managed
	trusted, compliant, managed := tier >= 2, tier >= 3, tier >= 4
	return &ocsfDevice{UID: id, IsTrusted: &trusted, IsCompliant: &compliant, IsManaged: &managed}
}

func ocsfSource(r record) *ocsfEndpoint {
	s := &ocsfEndpoint{IP: r.ip(), UID: r.str("device", "id")}
	if s.IP == "" && s.UID == "" {
		return nil
	}
	if port := r.num("client", "port"); port > 0 && port < 1<<16 {
		s.Port = port
	}
	for _, ip := range strings.Split(r.str("client", "forwarded"), ",") {
		if ip = strings.TrimSpace(ip); ip != "" {
			s.Intermediate = append(s.Intermediate, ip)
		}
	}
	return s
}

// unmapped is what the schema has no place for.
func unmapped(p place, r record) ocsfUnmapped {
	u := ocsfUnmapped{
		Kind: r.kind(), Codes: r.list("decision", "codes"), Waived: r.list("decision", "waived"), Withheld: r.num("decision", "withheld"),
		Remedy: r.str("decision", "remedy"), Stage: r.str("decision", "stage"), Via: r.str("credential", "via"), Cache: r.str("file", "cache"),
		Hash: r.str("file", "h1"), Integrity: p.leaf(), Note: r.str("change", "note"),
		OutcomeSeq: p.Outcome, OutcomeIntegrity: p.outcomeLeaf(), Aborted: r.aborted(),
		Private: r.flag("private"), DeviceState: r.str("device", "state"), Sanitised: r.flag("sanitised"), PathB64: r.str("path_b64"),
	}
	u.Control = r.object("control")
	return u
}
