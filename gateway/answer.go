package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/headgate/headgate/gateway/mirror"
)

// gzipFrom is the size from which text is worth compressing.
const gzipFrom = 1 << 10

// stallTimeout is how long a client may take for one chunk of at most 32 KiB before it is cut off.
const stallTimeout = 60 * time.Second

// Header values are preset slices: one allocation a header less on the path of every request.
var (
	textPlain   = []string{"text/plain; charset=utf-8"}
	jsonType    = []string{"application/json"}
	noStore     = []string{"no-store"}
	noCache     = []string{"private, no-cache"}
	immutable   = []string{"private, max-age=86400, immutable"}
	nosniff     = []string{"nosniff"}
	varyHeaders = []string{"Authorization, Accept-Encoding"}
	gzipCoding  = []string{"gzip"}
	gzipType    = []string{"application/gzip"}
	staleMark   = []string{"1"}
)

// An answer is what a request gets: verified bytes and the headers that go with them. Nothing that passed a decision
// is public to a shared cache.
type answer struct {
	content      io.ReadSeeker
	closer       io.Closer // nil for a body in memory
	body         []byte    // the whole body where it is in memory
	size         int64
	contentType  []string
	cacheControl []string
	etag         string
	hash         string
	cache        string
	encoding     []string
	stale        bool
	age          time.Duration
}

func (a *answer) close() {
	if a.closer != nil {
		_ = a.closer.Close() // only read from
	}
}

// bodyAnswer is an answer made here, whose ETag is that of its bytes.
func bodyAnswer(body []byte, contentType []string) *answer {
	sum := sha256.Sum256(body)
	return &answer{
		content: bytes.NewReader(body), body: body, size: int64(len(body)), contentType: contentType,
		cacheControl: noCache, etag: `"` + hex.EncodeToString(sum[:]) + `"`, cache: "none",
	}
}

// fileAnswer is an answer from the mirror. A private module is not kept by the client without asking again.
func fileAnswer(f *mirror.File, target mirror.Target, private bool) *answer {
	a := &answer{
		content: f, closer: f, body: f.Body, size: f.Size, contentType: []string{f.ContentType},
		cacheControl: noCache, etag: f.ETag, hash: f.Hash, cache: f.Cache, stale: f.Stale, age: f.Age,
	}
	switch target.Kind {
	case mirror.Info, mirror.Mod, mirror.Zip:
		if !private {
			a.cacheControl = immutable
		}
	case mirror.Sumdb:
		if strings.HasPrefix(target.Tail, "tile/") {
			a.cacheControl = immutable
		}
	}
	return a
}

// changing marks an .info that answers for whatever is newest now: it is not to be kept, and may be stale.
func (a *answer) changing(stale bool, age time.Duration) *answer {
	a.cacheControl, a.stale, a.age = noCache, stale, age
	return a
}

// takesGzip reads Accept-Encoding as far as it matters here: gzip, not refused with q=0 (RFC 9110, 12.5.3).
func takesGzip(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q, ok := strings.CutPrefix(strings.TrimSpace(weight), "q=")
			return !ok || strings.Trim(q, "0.") != ""
		}
	}
	return false
}

// gzips are *gzip.Writer: one costs more than what it writes.
var gzips = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is a constant that gzip has
	return z
}}

// encode compresses a text in memory for a client that takes gzip. The coded body is another representation, so its
// ETag differs (RFC 9110, section 8.8.3).
func (a *answer) encode(r *http.Request) {
	if len(a.body) < gzipFrom || !strings.HasPrefix(a.contentType[0], "text/") ||
		!takesGzip(r.Header.Get("Accept-Encoding")) || r.Header.Get("Range") != "" {
		return
	}
	var coded bytes.Buffer
	z := gzips.Get().(*gzip.Writer) //nolint:forcetypeassert // the pool has nothing else
	defer gzips.Put(z)
	z.Reset(&coded)
	_, _ = z.Write(a.body) // a bytes.Buffer takes everything
	_ = z.Close()
	a.body = coded.Bytes()
	a.content, a.size = bytes.NewReader(a.body), int64(coded.Len())
	a.etag = strings.TrimSuffix(a.etag, `"`) + `-gzip"`
	a.encoding = gzipCoding
}

// serve writes the answer: a body in memory as it is, anything else by ranges and conditions (RFC 9110, 13 and 14).
func (a *answer) serve(w http.ResponseWriter, r *http.Request) {
	if a.body == nil || r.Header.Get("Range") != "" || r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != "" {
		http.ServeContent(w, r, "", time.Time{}, a.content)
		return
	}
	w.Header()["Content-Length"] = []string{strconv.FormatInt(a.size, 10)}
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.body) // the meter knows what became of it
	}
}

// headers are those of a success.
func (a *answer) headers(h http.Header, id, revision string) {
	h["Content-Type"] = a.contentType
	h["Cache-Control"] = a.cacheControl
	h["Etag"] = []string{a.etag}
	h["Vary"] = varyHeaders
	h["X-Content-Type-Options"] = nosniff
	h["Headgate-Decision"] = []string{shortID(id)}
	if revision != "" {
		h["Headgate-Revision"] = []string{revision}
	}
	if a.encoding != nil {
		h["Content-Encoding"] = a.encoding
		h["Content-Length"] = []string{strconv.FormatInt(a.size, 10)} // ServeContent leaves it out with an encoding
	}
	if a.stale {
		h["Headgate-Stale"] = staleMark
		h["Age"] = []string{fmt.Sprint(int64(a.age.Seconds()))}
	}
}

// A meter is a ResponseWriter that knows what was really sent, and gives each chunk a deadline.
type meter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration // how long a chunk may take
	status  int
	sent    int64
	err     error
}

func newMeter(w http.ResponseWriter, stall time.Duration) *meter {
	return &meter{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
}

func (m *meter) WriteHeader(status int) {
	m.status = status
	m.ResponseWriter.WriteHeader(status)
}

func (m *meter) Write(p []byte) (int, error) {
	if m.status == 0 {
		m.status = http.StatusOK
	}
	_ = m.control.SetWriteDeadline(time.Now().Add(m.stall)) // a writer without deadlines is one of a test
	n, err := m.ResponseWriter.Write(p)
	m.sent += int64(n)
	if err != nil {
		m.err = err
	}
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (m *meter) Unwrap() http.ResponseWriter { return m.ResponseWriter }
