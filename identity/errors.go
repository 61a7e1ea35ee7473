package identity

import (
	"errors"
	"fmt"
	"slices"
)

// A Code is a reason of refusal out of one closed list. It is what a client may
// be told; Error.Err is for the log alone.
type Code string

// The codes that this package gives.
const (
	CredentialMissing Code = "CREDENTIAL-MISSING" // none was presented
	CredentialInvalid Code = "CREDENTIAL-INVALID" // any reason that an attacker could learn from
	TokenExpired      Code = "TOKEN-EXPIRED"      // only after secret or signature matched
	TokenRevoked      Code = "TOKEN-REVOKED"      // only after the secret matched
	SessionOver       Code = "SESSION-OVER"       // the session ended, or the issuer no longer knows the person
	GrantPending      Code = "GRANT-PENDING"      // nobody has answered yet
	GrantDenied       Code = "GRANT-DENIED"       // somebody said no
	RateExceeded      Code = "RATE"               // too many at once
	ScopeExceeded     Code = "SCOPE"              // more was asked for than the credential reaches
	DeviceRequired    Code = "DEVICE-REQUIRED"    // this is done on a proved device only
	DeviceUnknown     Code = "DEVICE-UNKNOWN"     // in no inventory, or that is too old
	DeviceBlockedCode Code = "DEVICE-BLOCKED"     // an administrator or the inventory stopped it
	DeviceRevoked     Code = "DEVICE-REVOKED"     // its certificate, or one above it, is on a revocation list
	DeviceMismatch    Code = "DEVICE-MISMATCH"    // another's device, another's token, or not the key that was enrolled
	CertInvalid       Code = "CERT-INVALID"       // its certificate leads to no authority of ours, or names no device
	CertExpired       Code = "CERT-EXPIRED"       // its certificate is over
	CRLStale          Code = "CRL-STALE"          // its authority's revocation list is over or missing
	Locked            Code = "LOCKED"             // an administrator stopped the user, device or token
	RevocationStale   Code = "REVOCATION-STALE"   // what other nodes revoked is not known, and the route is strict
	RequestInvalid    Code = "REQUEST-INVALID"    // the request itself makes no sense
	IssuerDown        Code = "ISSUER-DOWN"        // the issuer's keys are unknown or too old
	StateDown         Code = "STATE-DOWN"         // the database cannot be written
)

// OfDevice tells whether the device is the reason, not the credential.
func (c Code) OfDevice() bool { return slices.Contains(deviceCodes, c) }

// An Error is a refusal of this package. Subject and Credential say who it was
// as far as that is known: Credential once a token is well formed, Subject only
// after its secret matched. They are for the audit record, not for the client.
type Error struct {
	Code       Code
	Err        error
	Subject    Subject
	Credential Credential
	Device     Device // as far as it was proved, which is not far where it is the reason
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Code, e.Err) }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// OAuth gives the error code of RFC 6749 §5.2 and RFC 8693 §2.2.2 that a token
// endpoint answers with.
func (e *Error) OAuth() string {
	switch {
	case errors.Is(e.Err, errGrantType):
		return "unsupported_grant_type"
	case errors.Is(e.Err, errTarget):
		return "invalid_target"
	case errors.Is(e.Err, errSlowDown):
		return "slow_down"
	case errors.Is(e.Err, errGrant):
		return "invalid_grant"
	case errors.Is(e.Err, errClient):
		return "invalid_client"
	case errors.Is(e.Err, errGrantExpired):
		return "expired_token"
	case e.Code == GrantPending:
		return "authorization_pending"
	case e.Code == GrantDenied:
		return "access_denied"
	case e.Code == ScopeExceeded:
		return "invalid_scope"
	case e.Code == IssuerDown, e.Code == StateDown, e.Code == RateExceeded:
		return "temporarily_unavailable"
	}
	return "invalid_request"
}

func refuse(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}
