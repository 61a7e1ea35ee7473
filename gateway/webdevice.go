package gateway

import (
	"context"
	"net/http"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// codePage lets a person type the code that a terminal shows. A link cannot carry it, so whoever sends one gains nothing.
func (s *Server) codePage(*exchange, identity.Session) (plan, error) {
	return show("device.html", nil), nil
}

// A grantView is what is shown before somebody answers.
type grantView struct {
	identity.Grant
	URL string // whose token it is
}

// showGrant shows who asks for what, with Allow and Deny. Nothing is granted by looking.
func (s *Server) showGrant(x *exchange, by identity.Session) (plan, error) {
	g, err := s.identity.Grant(x.r.Context(), by, x.r.PostForm.Get("user_code"))
	if err != nil {
		return plan{}, grantProblem(err)
	}
	noteGrant(x, g)
	return show("grant.html", grantView{g, s.URL()}), nil
}

// answerGrant allows or denies what was shown.
func (s *Server) answerGrant(x *exchange, by identity.Session) (plan, error) {
	code, answer := x.r.PostForm.Get("user_code"), x.r.PostForm.Get("answer")
	if answer != "allow" && answer != "deny" {
		return plan{}, invalid("answer is neither allow nor deny")
	}
	x.rec.Action = "grant." + answer
	g, err := s.identity.Grant(x.r.Context(), by, code)
	if err != nil {
		return plan{}, grantProblem(err)
	}
	noteGrant(x, g)
	return plan{http.StatusOK, func(ctx context.Context) (*page, error) {
		if err := s.identity.AnswerGrant(ctx, by, code, answer == "allow"); err != nil {
			return nil, grantProblem(err)
		}
		return &page{template: "granted.html", data: answer == "allow"}, nil
	}}, nil
}

// noteGrant writes into the record from where the token is asked for, and how far it reaches. The code opens the door to
// whoever types it, so it is not written down.
func noteGrant(x *exchange, g identity.Grant) {
	x.rec.Change = audit.Change{Object: "grant from " + g.Address, Note: "host " + g.Host + ": " + g.Scope.String()}
}

// grantProblem says what is wrong with a code; the session itself holds.
func grantProblem(err error) error {
	p := *problemOf(err)
	if p.Status == http.StatusUnauthorized && p.Code == string(identity.CredentialInvalid) {
		p.Status, p.Challenge = http.StatusBadRequest, ""
		p.Public = "no terminal waits under this code; look again, or ask for a new one there"
	}
	return &p
}
