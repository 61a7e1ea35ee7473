package gateway

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// authorizeDevice lets a terminal ask for a token (RFC 8628, section 3.1). There is no verification_uri_complete: a link
// that carries the code is what an attacker would send. The parameter host is our own, a claim that whoever answers sees.
func (s *Server) authorizeDevice(x *exchange, form url.Values) (func(context.Context) (any, error), error) {
	q := identity.GrantRequest{Client: form.Get("client_id"), Scope: form.Get("scope"), Host: form.Get("host"), Address: x.rec.Client.IP}
	if err := identity.CheckGrant(q); err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "grant from " + q.Address, Note: "host " + q.Host + ": " + q.Scope}
	return func(ctx context.Context) (any, error) {
		a, err := s.identity.BeginGrant(ctx, q)
		return map[string]any{
			"device_code": a.DeviceCode, "user_code": a.UserCode, "verification_uri": s.URL() + "/-/device",
			"expires_in": int64(time.Until(a.Expires).Round(time.Second).Seconds()), "interval": int64(a.Pause.Seconds()),
		}, err
	}, nil
}

// revokeByText ends the token whose text is given (RFC 7009). Whether there is such a token, and whose it is, nobody is
// told: the answer is the same. Who authenticates as somebody else ends nothing.
func (s *Server) revokeByText(x *exchange, form url.Values) (func(context.Context) (any, error), error) {
	t, by, err := s.ownToken(x, form)
	if err != nil {
		return nil, err
	}
	mine := t.ID != "" && (by == nil || by.Subject.Issuer == t.Subject.Issuer && by.Subject.ID == t.Subject.ID)
	if mine {
		x.rec.Change = audit.Change{Object: "token " + t.ID}
	}
	return func(ctx context.Context) (any, error) {
		if mine {
			if _, err := s.identity.Revoke(ctx, t.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		return struct{}{}, nil
	}, nil
}

// introspect says what a token is to whoever it belongs to (RFC 7662); everybody else learns that it is not active.
func (s *Server) introspect(x *exchange, form url.Values) (func(context.Context) (any, error), error) {
	t, by, err := s.ownToken(x, form)
	if err != nil {
		return nil, err
	}
	if by == nil {
		return nil, &identity.Error{Code: identity.CredentialMissing, Err: errors.New("introspecting without a credential")}
	}
	answer := map[string]any{"active": false}
	if t.State == "active" && by.Subject.Issuer == t.Subject.Issuer && by.Subject.ID == t.Subject.ID {
		answer = map[string]any{
			"active": true, "scope": t.Scope.String(), "token_type": "Bearer", "exp": t.Expires.Unix(), "iat": t.Created.Unix(),
			"sub": t.Subject.ID, "username": t.Subject.Name, "jti": t.ID, "headgate_class": t.Class,
		}
	}
	return func(context.Context) (any, error) { return answer, nil }, nil
}

// ownToken reads the token of a form, the zero Token where there is none, and who asks; nil is nobody.
func (s *Server) ownToken(x *exchange, form url.Values) (identity.Token, *identity.Principal, error) {
	if len(form["token"]) != 1 || len(form.Get("token")) > maxCredential {
		return identity.Token{}, nil, &identity.Error{Code: identity.RequestInvalid, Err: errors.New("want one parameter token")}
	}
	t, _ := s.identity.TokenOf(form.Get("token"))
	if x.r.Header.Get("Authorization") == "" {
		return t, nil, nil
	}
	p, err := s.authenticate(x)
	return t, &p, err
}

// oauthMetadata describes this authorization server (RFC 8414, section 2), and what a client sets up beside: where devices
// prove themselves (RFC 8705, section 5), and the key of our own checksum database as GOSUMDB takes it. It stands below
// /-/, since all else is modules'.
func (s *Server) oauthMetadata(*exchange, url.Values) (func(context.Context) (any, error), error) {
	at := strings.TrimSuffix(s.URL(), "/") + "/-"
	answer := map[string]any{
		"issuer": at, "token_endpoint": at + "/oauth/token", "device_authorization_endpoint": at + "/oauth/device_authorization",
		"revocation_endpoint": at + "/oauth/revoke", "introspection_endpoint": at + "/oauth/introspect",
		"grant_types_supported":                         []string{identity.GrantDeviceCode, identity.GrantTokenExchange},
		"response_types_supported":                      []string{},
		"token_endpoint_auth_methods_supported":         []string{"none"},
		"revocation_endpoint_auth_methods_supported":    []string{"none"},
		"scopes_supported":                              []string{identity.ActionDiscover, identity.ActionMetadata, identity.ActionContent, identity.ActionMint},
		"introspection_endpoint_auth_methods_supported": []string{"bearer"},
	}
	if device := strings.TrimSuffix(s.DeviceURL(), "/"); device != "" {
		answer["tls_client_certificate_bound_access_tokens"] = true
		answer["mtls_endpoint_aliases"] = map[string]string{
			"token_endpoint": device + "/-/oauth/token", "introspection_endpoint": device + "/-/oauth/introspect",
		}
	}
	if key, err := s.mirror.OwnSumdb(); err == nil && key != "" {
		answer["headgate_gosumdb"] = key
	}
	return func(context.Context) (any, error) { return answer, nil }, nil
}
