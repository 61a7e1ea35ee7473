package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// DeviceRequest is the body of POST /-/api/v1/devices/codes, and of a block.
type DeviceRequest struct {
	ID          string `json:"id,omitempty"`           // of the device; empty: one is made
	Owner       string `json:"owner,omitempty"`        // the subject that may use it
	OwnerIssuer string `json:"owner_issuer,omitempty"` // of that subject; empty: any
	Shared      bool   `json:"shared,omitempty"`       // anybody may use it
	Note        string `json:"note,omitempty"`         // of a block: why
}

// EnrolRequest is the body of POST /-/api/v1/devices/enrol, for which the code is the only credential.
type EnrolRequest struct {
	Code     string `json:"code"`
	CSR      string `json:"csr"`                // PEM; only its key counts
	Platform string `json:"platform,omitempty"` // linux, darwin, windows
}

// RenewRequest is the body of POST /-/api/v1/devices/renew on the listener of devices. The present certificate is the only
// credential, and says which device it is.
type RenewRequest struct {
	CSR   string `json:"csr"`             // PEM, with a new key
	Early bool   `json:"early,omitempty"` // before the last third of the certificate's life
}

// Enrolled is the answer to an EnrolRequest and a RenewRequest.
type Enrolled struct {
	Device string `json:"device"`
	Chain  string `json:"chain"` // PEM: the certificate, then the authority's
	URL    string `json:"url,omitempty"`
}

// deviceRoutes are the calls about devices.
func (s *Server) deviceRoutes(mux *http.ServeMux) {
	mux.Handle("GET /-/api/v1/devices", s.admin("device.list", s.listDevices))
	mux.Handle("POST /-/api/v1/devices/codes", s.admin("device.code", s.createCode))
	mux.Handle("POST /-/api/v1/devices/{id}/block", s.admin("device.block", s.blockDevice))
	mux.Handle("POST /-/api/v1/devices/{id}/unblock", s.admin("device.unblock", s.unblockDevice))
	mux.Handle("DELETE /-/api/v1/devices/{id}", s.admin("device.delete", s.deleteDevice))
	mux.HandleFunc("POST /-/api/v1/devices/enrol", s.enrol)
	mux.HandleFunc("POST /-/api/v1/devices/renew", s.renew)
}

func (s *Server) listDevices(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	query := x.r.URL.Query()
	return func(context.Context) (any, error) {
		return map[string]any{
			"devices": s.identity.DeviceList(query.Get("owner"), query.Get("state")), "degraded": s.identity.DeviceStatus(),
		}, nil
	}, nil
}

func (s *Server) createCode(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	var q DeviceRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	d, err := s.identity.CheckEnrolment(identity.LocalDevice{ID: q.ID, Owner: q.Owner, OwnerIssuer: q.OwnerIssuer, Shared: q.Shared})
	if err != nil {
		return nil, err
	}
	x.rec.Change = audit.Change{Object: "device " + d.ID, Note: fmt.Sprintf("code to enrol it for %q, shared %t", d.Owner, d.Shared)}
	return func(ctx context.Context) (any, error) { return s.identity.MakeEnrolmentCode(ctx, d) }, nil
}

func (s *Server) blockDevice(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	var q DeviceRequest
	if err := readJSON(x.r, &q); err != nil {
		return nil, err
	}
	id := x.r.PathValue("id")
	x.rec.Change = audit.Change{Object: "device " + id, Note: q.Note}
	return func(ctx context.Context) (any, error) { return s.identity.BlockDevice(ctx, id, q.Note) }, s.identity.CheckDevice(id)
}

func (s *Server) unblockDevice(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	id := x.r.PathValue("id")
	x.rec.Change = audit.Change{Object: "device " + id}
	return func(ctx context.Context) (any, error) { return s.identity.UnblockDevice(ctx, id) }, s.knownDevice(id)
}

func (s *Server) deleteDevice(x *exchange, _ identity.Principal) (func(context.Context) (any, error), error) {
	id := x.r.PathValue("id")
	x.rec.Change = audit.Change{Object: "device " + id}
	return func(ctx context.Context) (any, error) { return s.identity.DeleteDevice(ctx, id) }, s.knownDevice(id)
}

func (s *Server) knownDevice(id string) error {
	if err := s.identity.CheckDevice(id); err != nil {
		return err
	}
	_, err := s.identity.Device(id)
	return err
}

// enrol answers a device that brings a code and a key. The record is durable before anything is signed.
func (s *Server) enrol(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := deadline(r.Context())
	defer cancel()
	limitBody(w, r)
	x := s.begin(w, r)
	x.action, x.rec.Kind, x.rec.Action = "api", audit.KindAuth, "device.enrol"
	draft, err := s.draftEnrolment(x)
	if err := s.record(ctx, x.decided(nil, err), err); err != nil {
		x.apiError(err)
		return
	}
	chain, err := s.identity.Enrol(ctx, draft)
	if err != nil {
		x.failed(err)
		x.apiError(err)
		return
	}
	x.json(http.StatusOK, Enrolled{Device: draft.Device.ID, Chain: chain, URL: s.DeviceURL()})
}

func (s *Server) draftEnrolment(x *exchange) (identity.EnrolmentDraft, error) {
	var q EnrolRequest
	if err := readJSON(x.r, &q); err != nil {
		return identity.EnrolmentDraft{}, err
	}
	draft, err := s.identity.DraftEnrolment(x.r.Context(), q.Code, q.CSR, q.Platform)
	x.authenticated(identity.Principal{Subject: identity.Subject{ID: draft.Device.Owner, Issuer: draft.Device.OwnerIssuer}}, err)
	if err == nil {
		x.rec.Device = audit.Device{ID: draft.Device.ID, State: draft.Device.State, SPKI: shortKey(draft.Device.SPKI)}
		x.rec.Change = audit.Change{Object: "device " + draft.Device.ID, Note: "enrolled at " + time.Now().UTC().Format(time.RFC3339)}
	}
	return draft, err
}

// renew answers a device that wants its certificate for a new key. The record is durable before anything is signed.
func (s *Server) renew(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := deadline(r.Context())
	defer cancel()
	limitBody(w, r)
	x := s.begin(w, r)
	x.action, x.rec.Kind, x.rec.Action = "api", audit.KindAuth, "device.renew"
	draft, err := s.draftRenewal(x)
	if err := s.record(ctx, x.decided(nil, err), err); err != nil {
		x.apiError(err)
		return
	}
	chain, err := s.identity.Renew(ctx, draft)
	if err != nil {
		x.failed(err)
		x.apiError(err)
		return
	}
	x.json(http.StatusOK, Enrolled{Device: draft.Device.ID, Chain: chain, URL: s.DeviceURL()})
}

func (s *Server) draftRenewal(x *exchange) (identity.RenewalDraft, error) {
	var q RenewRequest
	if err := readJSON(x.r, &q); err != nil {
		return identity.RenewalDraft{}, err
	}
	draft, err := s.identity.DraftRenewal(x.r, q.CSR, q.Early)
	x.authenticated(identity.Principal{Subject: identity.Subject{ID: draft.Device.Owner, Issuer: draft.Device.OwnerIssuer}}, err)
	if err == nil {
		x.rec.Device = audit.Device{ID: draft.Device.ID, State: draft.Device.State, SPKI: shortKey(draft.Device.SPKI)}
		x.rec.Change = audit.Change{Object: "device " + draft.Device.ID, Note: fmt.Sprintf("renewed for another key, early %t", q.Early)}
	}
	return draft, err
}
