package identity

import "time"

// The values of Subject.Type.
const (
	Person   = "person"
	Workload = "workload"
)

// The values of Subject.Method.
const (
	MethodToken    = "token"    // a Headgate token
	MethodOIDC     = "oidc"     // an ID token of a person
	MethodWorkload = "workload" // a token of a job
)

// A Principal is who asks, from which device, proved by what, and how far that
// proof reaches. Its slices, maps and pointers are shared: read them only.
type Principal struct {
	Subject    Subject
	Device     Device
	Credential Credential
	Scope      Scope
}

// A Subject is a person or a workload. Issuer and ID together name it; nothing
// else does, an e-mail address least of all.
type Subject struct {
	Type   string            `json:"type"`
	ID     string            `json:"id"`               // the sub claim, compared as bytes
	Issuer string            `json:"issuer,omitempty"` // URL of the issuer; empty: made here by an administrator
	Name   string            `json:"name,omitempty"`   // to show, never to judge
	Groups []string          `json:"groups,omitempty"` // NFC, sorted, unique
	Team   string            `json:"team,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	CI     *CI               `json:"ci,omitempty"`
	// Method and Assurance say how this principal was proved.
	Method    string `json:"-"`
	Assurance int    `json:"assurance,omitempty"` // 1 proved, 2 with a second factor (amr mfa)
}

// CI is what is known of the job behind a workload.
type CI struct {
	Provider  string `json:"provider,omitempty"`
	RepoID    string `json:"repo_id,omitempty"` // immutable; bind on this one. Kubernetes: namespace/service account
	Repo      string `json:"repo,omitempty"`
	Ref       string `json:"ref,omitempty"`
	Protected bool   `json:"protected,omitempty"`
	Fork      bool   `json:"fork,omitempty"` // who sent the code may have no right in the repository

	OwnerID     string `json:"owner_id,omitempty"` // of the repository's owner or namespace, immutable
	Environment string `json:"environment,omitempty"`
	Event       string `json:"event,omitempty"`    // what started the job, in the provider's words
	Workflow    string `json:"workflow,omitempty"` // the file that says what the job does, with its ref
	Pod         string `json:"pod,omitempty"`      // its uid
}

// A Device is the machine that a request comes from, as far as it was proved.
type Device struct {
	ID       string
	Proof    string // none, token, mtls
	Trusted  bool   // all of it holds: certificate, revocation, inventory, owner, required facts
	Tier     int    // 0 unknown, 1 its certificate holds, 2 it is enrolled, 3 and its required facts are ok, 4 and it is managed
	Platform string // linux, darwin, windows, other, unknown
	Managed  bool
	Facts    map[string]Fact // what feeds report of it, by name

	State  string // as enrolled: enrolled, blocked, deleted, other
	Serial string // of its certificate, hex
	SPKI   string // SHA-256 of its key, hex
	Via    string // mtls, balancer, token; empty: it was not proved
	Checks string // what became of each step, for the record

	Issuer string    // the pool that its certificate leads to
	Ends   time.Time // of its certificate
}

// A Binding ties a token to the device on which it was minted.
type Binding struct {
	Device string `json:"device"`
	SPKI   string `json:"spki"`   // SHA-256 of the device's key, hex
	Issuer string `json:"issuer"` // the pool's
	Serial string `json:"serial"` // of the certificate, hex
}

// binding is what a token that is minted on this device is tied to; nil where none was proved by TLS.
func (d Device) binding() *Binding {
	if d.Proof != "mtls" {
		return nil
	}
	return &Binding{Device: d.ID, SPKI: d.SPKI, Issuer: d.Issuer, Serial: d.Serial}
}

// until is the earlier of a moment and the end of the device's certificate.
func (d Device) until(t time.Time) time.Time {
	if !d.Ends.IsZero() && d.Ends.Before(t) {
		return d.Ends
	}
	return t
}

// unproved is the device of every credential that is bound to none.
var unproved = Device{Proof: "none", Platform: "unknown"}

// A Credential is what was presented, without its secret.
type Credential struct {
	Class       Class     // of a Headgate token; ClassJWT for a token of an issuer
	ID          string    // public id of a Headgate token, else empty
	Fingerprint string    // made by Options.Fingerprint
	Via         string    // basic, bearer
	Expires     time.Time // the moment from which it is refused
}

// Allows reports whether the scope of the credential reaches this action class
// on this module path (decoded, without version). For ActionAdmin and ActionMint
// the path is not looked at. It is a ceiling: policy decides below it.
func (p Principal) Allows(path, action string) bool {
	return p.Scope.allows(path, action)
}
