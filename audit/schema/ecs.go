package schema

import (
	"strconv"
	"strings"
	"time"
)

const ecsVersion = "9.4.0" // https://www.elastic.co/docs/reference/ecs

// ecsEvent is a document of the Elastic Common Schema.
type ecsEvent struct {
	Timestamp string            `json:"@timestamp"`
	Message   string            `json:"message"`
	ECS       ecsVersioned      `json:"ecs"`
	Event     ecsWhat           `json:"event"`
	Observer  ecsObserver       `json:"observer"`
	Service   ecsService        `json:"service"`
	User      *ecsUser          `json:"user,omitempty"`
	Device    *ecsID            `json:"device,omitempty"`
	Source    *ecsSource        `json:"source,omitempty"`
	Client    *ecsClient        `json:"client,omitempty"`
	HTTP      *ecsHTTP          `json:"http,omitempty"`
	URL       *ecsURL           `json:"url,omitempty"`
	Agent     *ecsAgent         `json:"user_agent,omitempty"`
	Package   *ecsPackage       `json:"package,omitempty"`
	Rule      *ecsRule          `json:"rule,omitempty"`
	Trace     *ecsID            `json:"trace,omitempty"`
	Labels    map[string]string `json:"labels"`
}

type ecsVersioned struct {
	Version string `json:"version"`
}

type ecsID struct {
	ID string `json:"id"`
}

type ecsWhat struct {
	Action   string   `json:"action"`
	Category []string `json:"category"`
	Code     string   `json:"code,omitempty"`
	Dataset  string   `json:"dataset"`
	Duration int64    `json:"duration,omitempty"` // ns
	Hash     string   `json:"hash,omitempty"`
	ID       string   `json:"id"`
	Kind     string   `json:"kind"`
	Module   string   `json:"module"`
	Outcome  string   `json:"outcome"`
	Reason   string   `json:"reason,omitempty"`
	Sequence int64    `json:"sequence"`
	Severity int64    `json:"severity"`
	Type     []string `json:"type"`
}

type ecsObserver struct {
	Hostname string `json:"hostname,omitempty"`
	Product  string `json:"product"`
	Type     string `json:"type"`
	Vendor   string `json:"vendor"`
	Version  string `json:"version"`
}

type ecsService struct {
	Name string  `json:"name"`
	Node ecsNode `json:"node,omitzero"`
}

type ecsNode struct {
	Name string `json:"name"`
}

type ecsUser struct {
	ID    string   `json:"id,omitempty"`
	Name  string   `json:"name,omitempty"`
	Roles []string `json:"roles,omitempty"`
}

type ecsSource struct {
	IP   string `json:"ip"`
	Port int64  `json:"port,omitempty"`
}

type ecsClient struct {
	IP string `json:"ip"`
}

type ecsHTTP struct {
	Request  *ecsRequest  `json:"request,omitempty"`
	Response *ecsResponse `json:"response,omitempty"`
}

type ecsRequest struct {
	Method string `json:"method"`
}

type ecsResponse struct {
	Body   ecsBody `json:"body,omitzero"`
	Status int64   `json:"status_code"`
}

type ecsBody struct {
	Bytes int64 `json:"bytes"`
}

type ecsURL struct {
	Path string `json:"path"`
}

type ecsAgent struct {
	Original string `json:"original"`
}

type ecsPackage struct {
	Checksum string `json:"checksum,omitempty"`
	Name     string `json:"name"`
	Type     string `json:"type"`
	Version  string `json:"version,omitempty"`
}

type ecsRule struct {
	Ruleset string `json:"ruleset"`
	Version string `json:"version,omitempty"`
}

// ecs writes a record as an ECS document.
func (e *Encoder) ecs(p place, r record) ([]byte, error) {
	node := r.str("node")
	d := &ecsEvent{
		Timestamp: time.Unix(0, r.num("t")).UTC().Format("2006-01-02T15:04:05.000000000Z"), Message: r.message(), ECS: ecsVersioned{ecsVersion},
		Event: ecsWhat{
			Action: r.name(), Kind: "event", Dataset: "headgate.audit", Module: service, ID: p.id, Sequence: p.Seq, Severity: r.severity(),
			Hash: p.leaf(), Outcome: ecsOutcome(r), Code: strings.Join(r.list("decision", "codes"), ","),
			Reason: r.str("decision", "reason"), Duration: r.num("outcome", "ms") * int64(time.Millisecond),
		},
		Observer: ecsObserver{Hostname: node, Product: product, Type: "gateway", Vendor: product, Version: e.version},
		Service:  ecsService{Name: service, Node: ecsNode{node}}, Labels: ecsLabels(p, r),
	}
	d.Event.Category, d.Event.Type = ecsCategory(r)
	d.parties(r)
	d.exchanged(r)
	if m := r.str("module"); m != "" {
		d.Package = &ecsPackage{Name: m, Version: r.str("version"), Type: "go_module", Checksum: r.str("file", "h1")}
	}
	if rev := r.str("policy_rev"); rev != "" {
		d.Rule = &ecsRule{Ruleset: "policy", Version: rev}
	}
	if id := r.str("trace_id"); id != "" {
		d.Trace = &ecsID{id}
	}
	return line(d)
}

// parties are who asked, and from where.
func (d *ecsEvent) parties(r record) {
	if u := (ecsUser{r.str("subject", "id"), r.str("subject", "name"), r.list("subject", "groups")}); u.ID != "" || u.Name != "" {
		d.User = &u
	}
	if id := r.str("device", "id"); id != "" {
		d.Device = &ecsID{id}
	}
	if ip := r.ip(); ip != "" {
		d.Source, d.Client = &ecsSource{ip, max(r.num("client", "port"), 0)}, &ecsClient{ip}
	}
	if a := r.str("client", "agent"); a != "" {
		d.Agent = &ecsAgent{a}
	}
}

func (d *ecsEvent) exchanged(r record) {
	h := &ecsHTTP{}
	if m := r.str("method"); m != "" {
		h.Request = &ecsRequest{m}
	}
	if status := r.status(); status != 0 {
		h.Response = &ecsResponse{ecsBody{r.bytes()}, status}
	}
	if *h != (ecsHTTP{}) {
		d.HTTP = h
	}
	if path := r.str("path"); path != "" {
		d.URL = &ecsURL{path}
	}
}

func ecsOutcome(r record) string {
	switch failed, known := r.failed(); {
	case !known:
		return "unknown"
	case failed:
		return "failure"
	}
	return "success"
}

// ecsCategory returns event.category with types that go with it.
func ecsCategory(r record) (category, types []string) {
	judged := "allowed"
	if r.effect() != "allow" {
		judged = "denied"
	}
	switch r.kind() {
	case kindControl:
		return []string{"configuration"}, []string{"info"}
	case kindAuth:
		switch object, _, _ := strings.Cut(r.str("action"), "."); object {
		case "signin":
			return []string{"authentication"}, []string{"start"}
		case "signout":
			return []string{"authentication"}, []string{"end"}
		}
		return []string{"authentication"}, []string{"info"}
	case kindOutcome:
		return []string{"api", "web"}, []string{"access", "end"}
	case kindAdmin:
		did := map[activity]string{create: "creation", update: "change", remove: "deletion"}[r.activity()]
		if did == "" {
			did = "access"
		}
		return []string{"api", "configuration"}, []string{"admin", did, judged}
	}
	if r.has("outcome") {
		return []string{"api", "web"}, []string{"access", judged, "end"}
	}
	return []string{"api", "web"}, []string{"access", judged}
}

// ecsLabels is what the schema has no place for.
func ecsLabels(p place, r record) map[string]string {
	labels := map[string]string{"origin": p.Origin, "kind": r.kind()}
	for name, keys := range map[string][]string{
		"idp": {"subject", "issuer"}, "subject_kind": {"subject", "kind"}, "token_fp": {"credential", "fp"}, "token_class": {"credential", "class"},
		"via": {"credential", "via"}, "cache": {"file", "cache"}, "decision": {"decision", "effect"}, "stage": {"decision", "stage"},
		"remedy": {"decision", "remedy"}, "device_state": {"device", "state"}, "forwarded": {"client", "forwarded"}, "event_id": {"event_id"},
		"object": {"change", "object"}, "note": {"change", "note"}, "bundle_sha256": {"bundle_sha256"}, "sink": {"control", "sink"},
		"root": {"control", "root"}, "checkpoint": {"control", "checkpoint"}, "err_class": {"control", "err_class"}, "path_b64": {"path_b64"},
	} {
		if s := r.str(keys...); s != "" {
			labels[name] = s
		}
	}
	if p.Outcome > 0 {
		labels["outcome_sequence"], labels["outcome_hash"] = strconv.FormatInt(p.Outcome, 10), p.outcomeLeaf()
	}
	if r.aborted() {
		labels["aborted"] = "true"
	}
	for _, name := range []string{"seq_from", "seq_to", "count", "joined", "bytes"} {
		if n := r.num("control", name); n != 0 {
			labels[name] = strconv.FormatInt(n, 10)
		}
	}
	return labels
}
