package gateway

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// callbackPath is where issuers send browsers back to; it is registered there.
const callbackPath = "/-/login/callback"

// A loginView says where people can sign in.
type loginView struct {
	Providers []providerView
}

type providerView struct {
	Name string
	Up   bool
	Link string // a link, not a form: a form would have to be allowed to lead to the issuer
}

func (s *Server) loginView(back string) loginView {
	var v loginView
	for _, p := range s.identity.Providers() {
		q := url.Values{"provider": {p.Name}, "back": {back}}
		v.Providers = append(v.Providers, providerView{p.Name, p.Up, s.base + "/-/login/start?" + q.Encode()})
	}
	return v
}

// loginPage lets a person choose where to sign in. Nothing begins by itself.
func (s *Server) loginPage(x *exchange, _ identity.Session) (plan, error) {
	if cookieOf(x.r, sessionCookie) != "" {
		if _, err := s.session(x); err != nil {
			noteSubject(x.rec, identity.Principal{}) // an old session is no reason not to show the page
		}
	}
	return show("login.html", s.loginView(localPath(x.r.Form.Get("back")))), nil
}

// startSignIn sends a browser to an issuer, with a cookie by which it is known when it comes back.
func (s *Server) startSignIn(x *exchange, _ identity.Session) (plan, error) {
	in, err := s.identity.StartSignIn(x.r.Form.Get("provider"), s.URL()+callbackPath, localPath(x.r.Form.Get("back")))
	if err != nil {
		return plan{}, err
	}
	return plan{http.StatusSeeOther, func(context.Context) (*page, error) {
		return &page{location: in.URL, cookies: []*http.Cookie{cookie(signInCookie, in.Cookie, 10*time.Minute)}}, nil
	}}, nil
}

// finishSignIn opens a session for a browser that comes back from an issuer. An older session of that browser ends.
func (s *Server) finishSignIn(x *exchange, _ identity.Session) (plan, error) {
	draft, err := s.identity.DraftSession(x.r.Context(), identity.SignInReturn{Query: x.r.URL.Query(), Cookie: cookieOf(x.r, signInCookie)})
	x.authenticated(draft.Session.Principal(), err)
	if err != nil {
		return plan{}, err
	}
	x.rec.Credential.ID = draft.Session.ID
	x.rec.Change = audit.Change{Object: "session " + draft.Session.ID, Note: "until " + draft.Session.Expires.Format(time.RFC3339)}
	return plan{http.StatusSeeOther, func(ctx context.Context) (*page, error) {
		secret, err := s.identity.OpenSession(ctx, draft)
		if err != nil {
			return nil, err
		}
		if old := cookieOf(x.r, sessionCookie); old != "" {
			if _, err := s.identity.EndSession(ctx, old, false); err != nil {
				return nil, err
			}
		}
		return &page{
			location: s.base + draft.Back,
			cookies:  []*http.Cookie{cookie(sessionCookie, secret, 0), cookie(signInCookie, "", -time.Second)},
		}, nil
	}}, nil
}

// signOut ends a session, and the tokens that were minted in it if asked to. A session that is over is no reason to refuse.
func (s *Server) signOut(x *exchange, _ identity.Session) (plan, error) {
	by, err := s.session(x)
	if err != nil {
		x.rec.Decision.Labels = map[string]string{"session": "over"}
	}
	secret, tokens := cookieOf(x.r, sessionCookie), x.r.PostForm.Get("tokens") != ""
	x.rec.Change = audit.Change{Object: "session " + by.ID}
	if tokens {
		x.rec.Change.Note = "with the tokens that were minted in it"
	}
	return plan{http.StatusSeeOther, func(ctx context.Context) (*page, error) {
		if _, err := s.identity.EndSession(ctx, secret, tokens); err != nil {
			return nil, err
		}
		return &page{location: s.base + "/-/login", cookies: []*http.Cookie{cookie(sessionCookie, "", -time.Second)}}, nil
	}}, nil
}
