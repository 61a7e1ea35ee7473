package mirrortest

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb"
)

// Fault is what goes wrong with requests whose path matches; the zero value of
// each field leaves that part of the answer as it is.
type Fault struct {
	// Times is how often it happens; 0 is until Clear.
	Times int
	// Status is sent instead of 200, with Body.
	Status int
	// Header is added to the answer.
	Header http.Header
	// Body is sent instead of the true one.
	Body []byte
	// Huge is the number of zero bytes sent instead of the true body, without a length.
	Huge int64
	// Delay passes before the first byte, Pause before each further Step bytes; Step 0 is 1024.
	Delay, Pause time.Duration
	Step         int
	// Cut is after how many bytes the connection breaks; the length was
	// announced. Over HTTP/2 the stream is reset, over HTTP/1 the connection is
	// closed, or with Reset cut off by the kernel.
	Cut   int64
	Reset bool
	// Raw is written to the connection in place of any answer, over HTTP/1 alone.
	Raw []byte
	// Flip turns one bit in the middle of the body.
	Flip bool
	// Hang answers nothing until the client gives up.
	Hang bool
	// Redirect sends 302 to this URL; "self" is to the same one, and one that
	// ends in a slash is followed by the path.
	Redirect string
}

type armed struct {
	Fault
	pattern string
	over    chan struct{} // closed by Clear
}

// Break makes requests that match the pattern fail. A star in it stands for any
// text ("*.zip", "/sumdb/*", "*tile*"); a pattern without one is a path.
// The newest fault that matches happens.
func (s *Server) Break(pattern string, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &armed{f, pattern, make(chan struct{})})
}

// Clear ends all faults and lets requests go that hang.
func (s *Server) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		close(f.over)
	}
	s.faults = nil
}

// arrived counts a request and picks its fault.
func (s *Server) arrived(p string) *armed {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, p)
	for i := len(s.faults) - 1; i >= 0; i-- {
		f := s.faults[i]
		if !matches(f.pattern, p) || f.Times < 0 {
			continue
		}
		if f.Times == 1 {
			f.Times = -1 // used up
		} else if f.Times > 1 {
			f.Times--
		}
		return f
	}
	return &armed{}
}

// ServeHTTP answers GOPROXY requests.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.OnRequest != nil {
		s.OnRequest(r)
	}
	f := s.arrived(r.URL.Path)
	wait := time.After(f.Delay)
	if f.Hang {
		wait = nil
	}
	if f.Hang || f.Delay > 0 {
		select {
		case <-wait:
		case <-f.over:
		case <-r.Context().Done():
			return
		}
	}
	for k, v := range f.Header {
		w.Header()[k] = v
	}
	switch {
	case f.Raw != nil:
		f.raw(w)
	case f.Redirect == "self":
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	case strings.HasSuffix(f.Redirect, "/"):
		http.Redirect(w, r, f.Redirect+r.URL.Path[1:], http.StatusFound)
	case f.Redirect != "":
		http.Redirect(w, r, f.Redirect, http.StatusFound)
	case f.Huge > 0:
		// The client hangs up when it has had enough.
		_, _ = io.CopyN(w, zeros{}, f.Huge)
	case f.Body != nil:
		f.send(w, r, max(f.Status, 200), f.Body)
	case f.Status != 0:
		f.send(w, r, f.Status, []byte(http.StatusText(f.Status)))
	case strings.HasPrefix(r.URL.Path, "/sumdb/"):
		s.sumdb(w, r, f)
	default:
		s.module(w, r, f)
	}
}

// sumdb serves the checksum database below /sumdb/NAME/.
func (s *Server) sumdb(w http.ResponseWriter, r *http.Request, f *armed) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/sumdb/"+s.name)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if rest == "/supported" {
		w.WriteHeader(http.StatusOK)
		return
	}
	s.mu.Lock()
	db := s.db
	s.mu.Unlock()
	r2 := r.Clone(r.Context())
	r2.URL.Path = rest
	rec := &recorder{header: w.Header(), status: http.StatusOK}
	sumdb.NewServer(db).ServeHTTP(rec, r2)
	f.send(w, r, rec.status, rec.body.Bytes())
}

// module serves list, latest, info, mod and zip.
func (s *Server) module(w http.ResponseWriter, r *http.Request, f *armed) {
	status, body, file := s.answer(strings.TrimPrefix(r.URL.Path, "/"))
	if file == "" {
		f.send(w, r, status, body)
		return
	}
	if f.Cut == 0 && !f.Flip && f.Pause == 0 {
		http.ServeFile(w, r, file) // big ones never pass through memory
		return
	}
	body, err := os.ReadFile(file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f.send(w, r, status, body)
}

// answer finds what a path names: a body, or a file to send.
func (s *Server) answer(p string) (status int, body []byte, file string) {
	notFound := func(what string) (int, []byte, string) {
		return http.StatusNotFound, []byte("not found: " + what + "\n"), ""
	}
	if esc, ok := strings.CutSuffix(p, "/@latest"); ok {
		if e := s.find(esc, "", true); e != nil {
			return http.StatusOK, e.info(), ""
		}
		return notFound(p)
	}
	esc, name, ok := strings.Cut(p, "/@v/")
	if !ok {
		return notFound(p)
	}
	if name == "list" {
		if list, ok := s.list(esc); ok {
			return http.StatusOK, list, ""
		}
		return notFound(p)
	}
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return notFound(p)
	}
	e := s.find(esc, name[:i], name[i:] == ".info")
	if e == nil {
		return notFound(p)
	}
	switch name[i:] {
	case ".info":
		return http.StatusOK, e.info(), ""
	case ".mod":
		return http.StatusOK, e.mod(), ""
	case ".zip":
		file, err := e.build(s.dir)
		if err != nil {
			return http.StatusInternalServerError, []byte(err.Error()), ""
		}
		return http.StatusOK, nil, file
	}
	return notFound(p)
}

// find looks a version up, or a query, or "" for the latest.
func (s *Server) find(esc, vers string, query bool) *entry {
	p, err := module.UnescapePath(esc)
	if err != nil {
		return nil
	}
	v, err := module.UnescapeVersion(vers)
	if err != nil && vers != "" {
		return nil
	}
	if vers == "" {
		v = s.newest(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if to, ok := s.queries[p+"@"+v]; ok && query {
		v = to
	}
	return s.modules[module.Version{Path: p, Version: v}]
}

func (s *Server) newest(p string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.latest[p]; ok {
		return v
	}
	best := ""
	for m := range s.modules {
		if m.Path != p {
			continue
		}
		release, bestRelease := semver.Prerelease(m.Version) == "", best != "" && semver.Prerelease(best) == ""
		if best == "" || release && !bestRelease || release == bestRelease && semver.Compare(m.Version, best) > 0 {
			best = m.Version
		}
	}
	return best
}

// list gives the tagged versions; a module with pseudo-versions only has an empty list.
func (s *Server) list(esc string) ([]byte, bool) {
	p, err := module.UnescapePath(esc)
	if err != nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := false
	var versions []string
	for m := range s.modules {
		if m.Path == p {
			known = true
			if !module.IsPseudoVersion(m.Version) {
				versions = append(versions, m.Version)
			}
		}
	}
	semver.Sort(versions)
	var b bytes.Buffer
	for _, v := range versions {
		fmt.Fprintln(&b, v)
	}
	return b.Bytes(), known
}

// raw takes the connection from net/http and closes it after f.Raw.
func (f *armed) raw(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // the server speaks HTTP/2: a mistake in the test
	}
	defer conn.Close()
	_, _ = conn.Write(f.Raw) // the client may have had enough
}

// abort breaks the connection off.
func (f *armed) abort(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	if !f.Reset {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // the server speaks HTTP/2: a mistake in the test
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // of TLS
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // RST in place of FIN
	}
	_ = conn.Close()
}

// send writes a body, broken as the fault says.
func (f *armed) send(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if f.Flip && len(body) > 0 {
		body = bytes.Clone(body)
		body[len(body)/2] ^= 1
	}
	w.WriteHeader(status)
	if f.Cut > 0 && f.Cut < int64(len(body)) {
		_, _ = w.Write(body[:f.Cut]) // the cut is the point
		f.abort(w)
		return
	}
	step := cmp.Or(f.Step, 1024)
	for f.Pause > 0 && len(body) > step {
		if _, err := w.Write(body[:step]); err != nil {
			return
		}
		body = body[step:]
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(f.Pause):
		case <-f.over:
		case <-r.Context().Done():
			return
		}
	}
	_, _ = w.Write(body) // the client is gone: nothing to tell it
}

// recorder holds a small answer so that a fault can spoil it.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
