// Package mirrortest is a GOPROXY server for tests and demonstrations: modules
// come from txtar archives or are generated, list, info, mod and zip are
// computed, a checksum database of its own vouches for them, faults happen on
// demand and every request is counted. It is no mirror: it keeps everything in
// memory or in a temporary folder and trusts its caller.
package mirrortest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
)

// Server is a GOPROXY upstream with a checksum database at /sumdb/NAME/.
type Server struct {
	// URL is where Start listens; empty for a Server made with New.
	URL string
	// TLS is the listening server of StartTLS and Start, for its client and certificate.
	TLS *httptest.Server
	// OnRequest, when set before the first request, sees each request as it arrives.
	OnRequest func(*http.Request)

	name, skey, vkey string
	dir              string // generated zips

	mu       sync.Mutex // guards all below
	modules  map[module.Version]*entry
	latest   map[string]string // path → version of @latest, where set
	queries  map[string]string // "path@query" → version
	wrong    map[module.Version]string
	db       *sumdb.TestServer
	faults   []*armed
	requests []string
}

// New makes a Server whose checksum database is called name ("" is
// "sum.example.test"), with one module for each txtar archive (ParseTxtar).
// Close removes its temporary folder.
func New(name string, archives ...string) (*Server, error) {
	if name == "" {
		name = "sum.example.test"
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return nil, fmt.Errorf("making a key for %s: %w", name, err)
	}
	dir, err := os.MkdirTemp("", "mirrortest-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for generated zips: %w", err)
	}
	s := &Server{
		name: name, skey: skey, vkey: vkey, dir: dir,
		modules: map[module.Version]*entry{},
		latest:  map[string]string{},
		queries: map[string]string{},
		wrong:   map[module.Version]string{},
	}
	s.db = sumdb.NewTestServer(skey, s.goSum)
	for _, a := range archives {
		m, err := ParseTxtar([]byte(a))
		if err == nil {
			err = s.Add(m)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Start serves New on a loopback port over plain http until the test ends.
func Start(tb testing.TB, archives ...string) *Server { return start(tb, false, archives) }

// StartTLS serves New on a loopback port over https until the test ends.
func StartTLS(tb testing.TB, archives ...string) *Server { return start(tb, true, archives) }

// Listen serves s on another loopback port over https and HTTP/1.1 until the
// test ends: faults are the same there.
func (s *Server) Listen(tb testing.TB) *httptest.Server {
	tb.Helper()
	l := httptest.NewTLSServer(s)
	tb.Cleanup(func() {
		s.Clear()
		l.CloseClientConnections()
		l.Close()
	})
	return l
}

func start(tb testing.TB, secure bool, archives []string) *Server {
	tb.Helper()
	s, err := New("", archives...)
	if err != nil {
		tb.Fatal(err)
	}
	if s.TLS = httptest.NewUnstartedServer(s); secure {
		s.TLS.EnableHTTP2 = true
		s.TLS.StartTLS()
	} else {
		s.TLS.Start()
	}
	s.URL = s.TLS.URL
	tb.Cleanup(func() {
		s.Clear() // lets hanging requests go
		s.TLS.CloseClientConnections()
		s.TLS.Close()
		s.Close()
	})
	return s
}

// Close removes the generated zips.
func (s *Server) Close() error { return os.RemoveAll(s.dir) }

// Sumdb is the name of the checksum database.
func (s *Server) Sumdb() string { return s.name }

// Key is the verifier key of the checksum database, NAME+HASH+KEY, as GOSUMDB takes it.
func (s *Server) Key() string { return s.vkey }

// SetLatest makes version the answer of path's @latest; "" makes it 404.
// Unset, it is the highest release, or else the highest version.
func (s *Server) SetLatest(path, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest[path] = version
}

// SetQuery makes version the answer to path@query, a branch or commit.
func (s *Server) SetQuery(path, query, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries[path+"@"+query] = version
}

// WrongSum makes the checksum database vouch for other bytes than the server
// sends for the version, or not know it at all where drop is set.
func (s *Server) WrongSum(path, version string, drop bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong[module.Version{Path: path, Version: version}] = map[bool]string{true: "drop", false: "other"}[drop]
}

// Record gives a version its record in the checksum database now, as somebody
// else's lookup would.
func (s *Server) Record(path, version string) error {
	s.mu.Lock()
	db := s.db
	s.mu.Unlock()
	_, err := db.Lookup(context.Background(), module.Version{Path: path, Version: version})
	return err
}

// Fork starts a second history under the same key, as a hostile or restored
// database would: n records of its own come first.
func (s *Server) Fork(n int) {
	db := sumdb.NewTestServer(s.skey, func(p, v string) ([]byte, error) {
		if strings.HasPrefix(p, "fork.test/") {
			return fmt.Appendf(nil, "%s %s h1:x\n", p, v), nil
		}
		return s.goSum(p, v)
	})
	for i := range n {
		// The in-memory server cannot fail on a name that goSum knows.
		_, _ = db.Lookup(context.Background(), module.Version{Path: fmt.Sprintf("fork.test/m%d", i), Version: "v1.0.0"})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.db = db
}

// Requests lists the paths asked for, in order of arrival.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// Count tells how many requests matched the pattern (Fault has its syntax).
func (s *Server) Count(pattern string) int {
	n := 0
	for _, r := range s.Requests() {
		if matches(pattern, r) {
			n++
		}
	}
	return n
}

// Forget empties the list of requests.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// matches: each star of a pattern stands for any text ("*.zip", "/sumdb/*", "/example.com/*.zip"); one without is the
// whole path.
func matches(pattern, p string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return path.Clean(p) == path.Clean(pattern)
	}
	rest, ok := strings.CutPrefix(p, parts[0])
	for _, part := range parts[1 : len(parts)-1] {
		var found bool
		_, rest, found = strings.Cut(rest, part)
		ok = ok && found
	}
	return ok && strings.HasSuffix(rest, parts[len(parts)-1])
}
