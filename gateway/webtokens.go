package gateway

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// A tokensView is the page of a person's tokens.
type tokensView struct {
	Tokens []identity.Token
	New    *newToken // just minted; its secret is shown this once
	Until  time.Time // what is minted now ends then at the latest; zero: when its life is over
}

// A newToken is a token with the lines that put it to use.
type newToken struct {
	Token  identity.Token
	Netrc  string
	Set    []string // go env -w
	Export []string // for a gateway with a certificate of its own
}

func (s *Server) tokensPage(x *exchange, by identity.Session) (plan, error) {
	return plan{http.StatusOK, func(ctx context.Context) (*page, error) { return s.tokensOf(ctx, by, nil) }}, nil
}

// tokensOf shows the tokens of the session's person and of nobody else.
func (s *Server) tokensOf(ctx context.Context, by identity.Session, made *newToken) (*page, error) {
	list, err := s.identity.Tokens(ctx, identity.Filter{Issuer: by.Subject.Issuer, Subject: by.Subject.ID})
	if err != nil {
		return nil, err
	}
	slices.Reverse(list) // newest first
	return &page{template: "tokens.html", data: tokensView{Tokens: list, New: made, Until: by.Until}}, nil
}

// mintToken makes a token for a .netrc.
func (s *Server) mintToken(x *exchange, by identity.Session) (plan, error) {
	form := x.r.PostForm
	q := identity.TokenRequest{
		Class: identity.ClassPerson, Note: form.Get("note"),
		Scope: identity.Scope{Modules: strings.Fields(form.Get("modules")), Actions: tokenClasses["person"].actions[:3]},
	}
	if len(q.Note) > 200 {
		return plan{}, invalid("the note has %d bytes; want at most 200", len(q.Note))
	}
	if days := form.Get("days"); days != "" {
		n, err := strconv.Atoi(days)
		if err != nil || n < 1 || n > 365 {
			return plan{}, invalid("days is no number from 1 to 365")
		}
		q.Life = time.Duration(n) * 24 * time.Hour
	}
	draft, err := s.identity.DraftInSession(x.r.Context(), by, q)
	if err != nil {
		return plan{}, err
	}
	x.rec.Change = audit.Change{
		Object: "token " + draft.Token.ID, Note: "class person until " + draft.Token.Expires.Format(time.RFC3339) + ": " + draft.Token.Scope.String(),
	}
	return plan{http.StatusOK, func(ctx context.Context) (*page, error) {
		secret, err := s.identity.IssueInSession(ctx, draft)
		if err != nil {
			return nil, err
		}
		return s.tokensOf(ctx, by, s.newToken(draft.Token, secret))
	}}, nil
}

// newToken joins a token with the lines that make the go command use it.
func (s *Server) newToken(t identity.Token, secret string) *newToken {
	n := &newToken{
		Token: t, Netrc: "machine " + netrcMachine(s.URL()) + " login headgate password " + secret,
		Set: []string{"go env -w GOPROXY=" + s.URL()},
	}
	if key, err := s.mirror.OwnSumdb(); err == nil && key != "" {
		n.Set = append(n.Set, "go env -w GOSUMDB="+key)
	}
	if s.ownCertificate() {
		n.Export = append(n.Export, "export SSL_CERT_FILE=ca.pem")
	}
	return n
}

// netrcMachine is the host as the go command looks it up in .netrc: with its port unless that is 443.
func netrcMachine(address string) string {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return address
	case u.Port() == "" || u.Port() == "443":
		return u.Hostname()
	}
	return net.JoinHostPort(u.Hostname(), u.Port())
}

// revokeOwnToken ends a token of the session's person. One of somebody else is like one that does not exist.
func (s *Server) revokeOwnToken(x *exchange, by identity.Session) (plan, error) {
	id := x.r.PostForm.Get("id")
	t, err := s.identity.Token(x.r.Context(), id)
	if err != nil || t.Subject.Issuer != by.Subject.Issuer || t.Subject.ID != by.Subject.ID {
		return plan{}, errNotYours
	}
	x.rec.Change = audit.Change{Object: "token " + id}
	return plan{http.StatusSeeOther, func(ctx context.Context) (*page, error) {
		if _, err := s.identity.Revoke(ctx, id); err != nil {
			return nil, err
		}
		return &page{location: s.base + "/-/tokens"}, nil
	}}, nil
}
