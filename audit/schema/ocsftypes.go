package schema

import "encoding/json"

// An ocsfEvent holds the attributes of the three classes that are written; those of another class stay empty.
type ocsfEvent struct {
	ActionID       int64          `json:"action_id,omitempty"`
	ActivityID     int64          `json:"activity_id"`
	ActivityName   string         `json:"activity_name,omitempty"`
	Actor          *ocsfActor     `json:"actor,omitempty"`
	API            *ocsfAPI       `json:"api,omitempty"`
	App            *ocsfProduct   `json:"app,omitempty"`
	AuthProtocol   string         `json:"auth_protocol,omitempty"`
	AuthProtocolID int64          `json:"auth_protocol_id,omitempty"`
	CategoryUID    int64          `json:"category_uid"`
	ClassUID       int64          `json:"class_uid"`
	Count          int64          `json:"count,omitempty"`
	Device         *ocsfDevice    `json:"device,omitempty"`
	DispositionID  int64          `json:"disposition_id,omitempty"`
	DstEndpoint    *ocsfEndpoint  `json:"dst_endpoint,omitempty"`
	HTTPRequest    *ocsfRequest   `json:"http_request,omitempty"`
	HTTPResponse   *ocsfResponse  `json:"http_response,omitempty"`
	Message        string         `json:"message"`
	Metadata       ocsfMetadata   `json:"metadata"`
	Policy         *ocsfPolicy    `json:"policy,omitempty"`
	Resources      []ocsfResource `json:"resources,omitempty"`
	Service        *ocsfService   `json:"service,omitempty"`
	SeverityID     int64          `json:"severity_id"`
	SrcEndpoint    *ocsfEndpoint  `json:"src_endpoint,omitempty"`
	StatusDetail   string         `json:"status_detail,omitempty"`
	StatusID       int64          `json:"status_id,omitempty"`
	Time           int64          `json:"time"` // ms since 1970
	Trace          *ocsfTrace     `json:"trace,omitempty"`
	TypeUID        int64          `json:"type_uid"`
	Unmapped       ocsfUnmapped   `json:"unmapped"`
	User           *ocsfUser      `json:"user,omitempty"`
}

type ocsfMetadata struct {
	CorrelationUID string      `json:"correlation_uid,omitempty"` // the event id that decision and outcome share
	EventCode      string      `json:"event_code,omitempty"`
	IsTruncated    bool        `json:"is_truncated,omitempty"`
	LogName        string      `json:"log_name,omitempty"`
	LogVersion     string      `json:"log_version,omitempty"`
	Product        ocsfProduct `json:"product"`
	Profiles       []string    `json:"profiles,omitempty"`
	Sequence       int64       `json:"sequence"`
	UID            string      `json:"uid"`
	Version        string      `json:"version"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
	Version    string `json:"version,omitempty"`
}

type ocsfActor struct {
	IDP     *ocsfIDP     `json:"idp,omitempty"`
	Session *ocsfSession `json:"session,omitempty"`
	User    *ocsfUser    `json:"user,omitempty"`
}

type ocsfIDP struct {
	Name string `json:"name"`
}

type ocsfSession struct {
	Issuer string `json:"issuer"`
}

type ocsfUser struct {
	Credentials []ocsfCredential `json:"programmatic_credentials,omitempty"`
	Groups      []ocsfGroup      `json:"groups,omitempty"`
	Name        string           `json:"name,omitempty"`
	Type        string           `json:"type,omitempty"`
	TypeID      int64            `json:"type_id"`
	UID         string           `json:"uid,omitempty"`
}

type ocsfCredential struct {
	Type string `json:"type,omitempty"`
	UID  string `json:"uid"`
}

type ocsfGroup struct {
	Name string `json:"name"`
}

type ocsfAPI struct {
	Operation string      `json:"operation"`
	Service   ocsfService `json:"service"`
}

type ocsfService struct {
	Name string `json:"name"`
}

type ocsfEndpoint struct {
	Hostname     string   `json:"hostname,omitempty"`
	Intermediate []string `json:"intermediate_ips,omitempty"`
	IP           string   `json:"ip,omitempty"`
	Name         string   `json:"name,omitempty"`
	Port         int64    `json:"port,omitempty"`
	SvcName      string   `json:"svc_name,omitempty"`
	UID          string   `json:"uid,omitempty"`
}

type ocsfDevice struct {
	Hostname    string `json:"hostname,omitempty"`
	IsCompliant *bool  `json:"is_compliant,omitempty"`
	IsManaged   *bool  `json:"is_managed,omitempty"`
	IsTrusted   *bool  `json:"is_trusted,omitempty"`
	TypeID      int64  `json:"type_id"` // 0 is unknown
	UID         string `json:"uid,omitempty"`
}

type ocsfRequest struct {
	Method    string   `json:"http_method,omitempty"`
	URL       *ocsfURL `json:"url,omitempty"`
	UserAgent string   `json:"user_agent,omitempty"`
}

type ocsfURL struct {
	Path string `json:"path"`
}

type ocsfResponse struct {
	BodyLength int64 `json:"body_length,omitempty"`
	Code       int64 `json:"code"`
	Latency    int64 `json:"latency,omitempty"` // ms
}

type ocsfResource struct {
	Name    string `json:"name"`
	RoleID  int64  `json:"role_id"` // 1 is the target
	Type    string `json:"type"`
	UID     string `json:"uid,omitempty"` // package URL
	Version string `json:"version,omitempty"`
}

type ocsfPolicy struct {
	IsApplied bool   `json:"is_applied"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
	Version   string `json:"version"`
}

type ocsfTrace struct {
	UID string `json:"uid"`
}

type ocsfUnmapped struct {
	Aborted     bool            `json:"aborted,omitempty"` // the client did not get all of it
	Cache       string          `json:"cache,omitempty"`
	Codes       []string        `json:"codes,omitempty"`
	Control     json.RawMessage `json:"control,omitempty"`
	DeviceState string          `json:"device_state,omitempty"`
	Hash        string          `json:"hash,omitempty"`
	Integrity   string          `json:"integrity,omitempty"` // leaf hash, base64
	Kind        string          `json:"kind"`
	Note        string          `json:"note,omitempty"`
	OutcomeSeq  int64           `json:"outcome_sequence,omitempty"`
	PathB64     string          `json:"path_b64,omitempty"`
	Private     bool            `json:"private,omitempty"`
	Remedy      string          `json:"remedy,omitempty"`
	Sanitised   bool            `json:"sanitised,omitempty"`
	Stage       string          `json:"stage,omitempty"`
	Via         string          `json:"via,omitempty"`
	Waived      []string        `json:"waived,omitempty"`
	Withheld    int64           `json:"withheld,omitempty"`

	OutcomeIntegrity string `json:"outcome_integrity,omitempty"`
}
