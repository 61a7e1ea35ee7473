package gateway

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/identity"
)

// The cookies of a browser. The prefix makes it take them over https alone, for this host alone and no subdomain
// (RFC 6265bis, 4.1.3.2).
const (
	sessionCookie = "__Host-headgate"
	signInCookie  = "__Host-headgate-sign-in"
)

//go:embed web
var webFiles embed.FS

// webTemplates are the pages, each within the layout.
var webTemplates = template.Must(template.New("").Funcs(template.FuncMap{"titled": view.titled}).ParseFS(webFiles, "web/*.html"))

// webHeaders are those of every page: nothing from elsewhere runs, shows or frames it, and nothing keeps it.
var webHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
		"frame-ancestors 'none'; base-uri 'none'",
	"Strict-Transport-Security":    "max-age=31536000",
	"X-Content-Type-Options":       "nosniff",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Cache-Control":                "no-store",
}

// A page is what a browser gets: a template with its data, or another address of ours or of an issuer.
type page struct {
	template string
	data     any
	location string
	cookies  []*http.Cookie
}

// A plan is what a request of a browser leads to, once its record is durable.
type plan struct {
	status int // of success
	do     func(ctx context.Context) (*page, error)
}

// show is the plan of a page that changes nothing.
func show(name string, data any) plan {
	return plan{http.StatusOK, func(context.Context) (*page, error) { return &page{template: name, data: data}, nil }}
}

// A webHandler reads a request of a browser. by is its session, the zero Session where the route asks for none.
type webHandler func(x *exchange, by identity.Session) (plan, error)

// A view is what each template gets.
type view struct {
	Base  string // before every link of ours
	Title string
	User  string // who is signed in; empty: nobody
	Data  any
}

func (v view) titled(title string) view {
	v.Title = title
	return v
}

// webRoutes are the pages of people.
func (s *Server) webRoutes(mux *http.ServeMux) {
	mux.Handle("GET /-/web/style.css", http.HandlerFunc(s.style))
	mux.Handle("GET /-/login", s.web("signin.page", s.loginPage))
	mux.Handle("GET /-/login/start", s.web("signin.start", s.startSignIn))
	mux.Handle("GET /-/login/callback", s.web("signin.oidc", s.finishSignIn))
	mux.Handle("POST /-/logout", s.web("signout", s.signOut))
	mux.Handle("GET /-/tokens", s.signedIn("token.list", s.tokensPage))
	mux.Handle("POST /-/tokens", s.signedIn("token.create", s.mintToken))
	mux.Handle("POST /-/tokens/revoke", s.signedIn("token.revoke", s.revokeOwnToken))
	mux.Handle("GET /-/device", s.signedIn("grant.page", s.codePage))
	mux.Handle("POST /-/device", s.signedIn("grant.show", s.showGrant))
	mux.Handle("POST /-/device/answer", s.signedIn("grant.answer", s.answerGrant))
	for _, path := range []string{"/-/login", "/-/login/start", "/-/login/callback", "/-/logout", "/-/tokens", "/-/tokens/revoke", "/-/device", "/-/device/answer"} {
		mux.Handle(path, s.web("none", func(x *exchange, _ identity.Session) (plan, error) {
			x.w.Header().Set("Allow", "GET, HEAD, POST")
			return plan{}, errMethod
		}))
	}
}

// style is the one static file; it says nothing of anybody and leaves no record.
func (s *Server) style(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for name, value := range webHeaders {
		h.Set(name, value)
	}
	h.Set("Cache-Control", "public, max-age=3600")
	http.ServeFileFS(w, r, webFiles, "web/style.css")
}

// signedIn is web for routes that ask for a session.
func (s *Server) signedIn(action string, do webHandler) http.Handler {
	return s.web(action, func(x *exchange, _ identity.Session) (plan, error) {
		by, err := s.session(x)
		if err != nil {
			return plan{}, err
		}
		return do(x, by)
	})
}

// web runs one request of a browser. Its record is durable before it takes effect.
func (s *Server) web(action string, do webHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := deadline(r.Context())
		defer cancel()
		x := s.begin(w, r)
		x.action, x.rec.Kind, x.rec.Action = "web", audit.KindAuth, action
		for name, value := range webHeaders {
			w.Header().Set(name, value)
		}
		planned, err := s.plan(x, do)
		x.decided(nil, err)
		if err == nil {
			x.rec.Decision.Status = planned.status
		}
		if err := s.record(ctx, x, err); err != nil {
			x.webProblem(err)
			return
		}
		shown, err := planned.do(ctx)
		if err != nil {
			x.failed(err)
			x.webProblem(err)
			return
		}
		x.page(planned.status, shown)
	})
}

// crossOrigin refuses what another site makes a browser do here.
var crossOrigin = http.NewCrossOriginProtection()

// plan is what the request leads to, unless another site sent it.
func (s *Server) plan(x *exchange, do webHandler) (plan, error) {
	if err := s.audit.Writable(); err != nil {
		return plan{}, unwritable("what was asked", err) // an issuer is not asked for a session that cannot be opened
	}
	if err := crossOrigin.Check(x.r); err != nil {
		return plan{}, fmt.Errorf("%w: %w", errCrossOrigin, err)
	}
	if err := x.r.ParseForm(); err != nil {
		return plan{}, fmt.Errorf("%w: %w", errRequest, err)
	}
	return do(x, identity.Session{})
}

// session finds out who sits at the browser and notes it in the record.
func (s *Server) session(x *exchange) (identity.Session, error) {
	by, err := s.identity.Session(x.r.Context(), cookieOf(x.r, sessionCookie))
	x.authenticated(by.Principal(), err)
	if err == nil {
		x.rec.Credential.ID = by.ID
	}
	return by, err
}

// cookieOf is the value of a cookie that came once.
func cookieOf(r *http.Request, name string) string {
	if found := r.CookiesNamed(name); len(found) == 1 {
		return found[0].Value
	}
	return ""
}

// cookie is one of ours. Without a life it goes with the browser, with a negative one at once.
func cookie(name, value string, life time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(life.Seconds()),
	}
}

// page answers a browser.
func (x *exchange) page(status int, p *page) {
	for _, c := range p.cookies {
		http.SetCookie(x.w, c)
	}
	x.w.Header().Set("Headgate-Decision", shortID(x.rec.EventID))
	if p.location != "" {
		x.w.Header().Set("Location", p.location)
		x.w.WriteHeader(status)
	} else {
		x.render(status, p.template, p.data)
	}
	x.done("allow")
}

// render writes a template. One that fails midway has sent nothing.
func (x *exchange) render(status int, name string, data any) {
	var body bytes.Buffer
	user := ""
	if x.rec.Credential.Via == "session" {
		user = x.rec.Subject.ID
	}
	if err := webTemplates.ExecuteTemplate(&body, name, view{Base: x.s.base, User: user, Data: data}); err != nil {
		panic("gateway: template " + name + ": " + err.Error()) // tests show each
	}
	h := x.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", fmt.Sprint(body.Len()))
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(body.Bytes()) // a browser that is gone gets no second answer
	}
}

// A problemPage is the data of the page that says why not.
type problemPage struct {
	Code, Text string
	Advice     []string
	Decision   string
	Login      loginView // how to sign in, where that helps
}

// webProblem answers a browser that gets nothing, in a form that a person can read.
func (x *exchange) webProblem(err error) {
	p := problemOf(err)
	if errors.Is(err, errAudit) {
		p = problemOf(errAudit)
	}
	data := problemPage{Code: p.Code, Text: p.Public, Advice: p.Advice, Decision: shortID(x.rec.EventID)}
	h := x.w.Header()
	h.Set("Headgate-Decision", data.Decision)
	h.Set("Headgate-Code", p.Code)
	if p.RetryAfter > 0 {
		h.Set("Retry-After", fmt.Sprint(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", `Bearer realm="headgate", error="login_required"`) // Basic would open the browser's own window
		data.Login = x.s.loginView(localPath(backOf(x.r)))
	}
	x.render(p.Status, "problem.html", data)
	x.done(p.effect())
}

// backOf is where a browser wanted to go that has to sign in first.
func backOf(r *http.Request) string {
	if r.Method != http.MethodGet {
		return ""
	}
	return r.URL.Path
}

// defaultPage is where a browser goes that wants nowhere else.
const defaultPage = "/-/tokens"

// localPath is a path of ours to which a browser may be sent after signing in, or the default one for whatever else came:
// another host in any spelling, or a page that acts by itself.
func localPath(back string) string {
	path, _, _ := strings.Cut(back, "?")
	u, err := url.Parse(back)
	switch {
	case err != nil || u.Host != "" || u.Scheme != "" || u.Fragment != "" || len(back) > 512:
	case !canonical(path) || !strings.HasPrefix(path, "/-/") || strings.HasPrefix(path, "/-/login") || strings.ContainsFunc(back, notPlain):
	default:
		return back
	}
	return defaultPage
}

// notPlain tells what never stands in an address that we wrote.
func notPlain(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }
