package gateway

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"github.com/headgate/headgate/gateway/feeds"
)

// vulndb answers a file of the Go vulnerability database, so that govulncheck sees what policy sees:
// govulncheck -db https://headgate:TOKEN@HOST/-/vulndb.
func (s *Server) vulndb(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := deadline(r.Context())
	defer cancel()
	x := s.begin(w, r)
	x.action, x.rec.Action = "vulndb", "vulndb"
	answer, err := s.vulnFile(x)
	if err := s.record(ctx, x.decided(answer, err), err); err != nil {
		x.problem(err)
		return
	}
	x.send(answer)
}

// vulnFile walks such a request: whoever is authenticated may read what is public anyway.
func (s *Server) vulnFile(x *exchange) (*answer, error) {
	if err := s.audit.Writable(); err != nil {
		return nil, unwritable("what was asked", err)
	}
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return nil, fmt.Errorf("answering vulndb: %w", errMethod)
	}
	if _, err := s.authenticate(x); err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(x.r.URL.Path, "/-/vulndb/")
	plain, zipped := strings.CutSuffix(name, ".gz") // govulncheck asks for these alone
	if !strings.HasSuffix(plain, ".json") {
		return nil, fmt.Errorf("reading %s of the vulnerability database: %w", name, fs.ErrNotExist)
	}
	content, err := s.feeds.Vulndb(plain)
	if errors.Is(err, feeds.ErrNotRead) {
		return nil, &Problem{
			Status: http.StatusServiceUnavailable, Code: "VULNDB-MISSING", Stage: "release", RetryAfter: 30, Err: err,
			Public: "the vulnerability database could not be read yet",
		}
	}
	if err != nil {
		return nil, err
	}
	if !zipped {
		return bodyAnswer(content, jsonType), nil
	}
	var coded bytes.Buffer
	z := gzip.NewWriter(&coded)
	_, _ = z.Write(content) // a bytes.Buffer takes everything
	_ = z.Close()
	return bodyAnswer(coded.Bytes(), gzipType), nil
}
