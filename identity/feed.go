package identity

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const feedTimeout = 60 * time.Second

// A feed imports one list of devices again and again.
type feed struct {
	cfg    Feed
	client *http.Client // nil: a file

	good atomic.Pointer[catalog] // nil: none yet
	asOf atomic.Int64            // seconds: when good was last found to be what the feed says

	mu     sync.Mutex // one import at a time; guards what follows
	etag   string
	digest [sha256.Size]byte // of what was looked at last

	failed error // why the last import was refused, nil: it was not
}

func newFeed(cfg Feed) (*feed, error) {
	f := &feed{cfg: cfg}
	if cfg.URL == "" {
		return f, nil
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if cfg.CAFile != "" {
		data, err := readFile(cfg.CAFile, maxPoolFile)
		if err != nil {
			return nil, fmt.Errorf("preparing feed %s: %w", cfg.Name, err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("preparing feed %s: no certificate in %s", cfg.Name, cfg.CAFile)
		}
	}
	f.client = &http.Client{
		Transport: t, Timeout: feedTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return f, nil
}

// refresh imports the feed if it changed. What cannot be taken leaves the last good import in force, which ages.
func (f *feed) refresh(ctx context.Context, now time.Time) (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, same, err := f.read(ctx)
	if err != nil {
		f.failed = err
		return false, err
	}
	digest := sha256.Sum256(data)
	if same || digest == f.digest && f.good.Load() != nil {
		if f.failed == nil {
			f.asOf.Store(now.Unix())
		}
		return false, f.failed
	}
	next, err := parseFeed(f.cfg, f.name(), data, now)
	if err == nil {
		err = next.follows(f.good.Load())
	}
	f.failed = err
	f.digest = digest
	if err != nil {
		f.etag = ""
		return false, fmt.Errorf("importing feed %s: %w", f.cfg.Name, err)
	}
	f.good.Store(next)
	f.asOf.Store(now.Unix())
	return true, next.why
}

// name is what says which kind of text the feed is.
func (f *feed) name() string {
	if f.cfg.File != "" {
		return f.cfg.File
	}
	u, err := url.Parse(f.cfg.URL)
	if err != nil {
		return f.cfg.URL
	}
	return u.Path
}

func (f *feed) read(ctx context.Context) (data []byte, same bool, err error) {
	if f.client == nil {
		data, err = readFile(f.cfg.File, maxFeed)
		if err != nil {
			err = fmt.Errorf("reading feed %s: %w", f.cfg.Name, err)
		}
		return data, false, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.cfg.URL, nil)
	if err != nil {
		return nil, false, fmt.Errorf("fetching feed %s: %w", f.cfg.Name, err)
	}
	if f.cfg.TokenFile != "" {
		token, err := readFile(f.cfg.TokenFile, maxCredential)
		if err != nil {
			return nil, false, fmt.Errorf("fetching feed %s: %w", f.cfg.Name, err)
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	if f.etag != "" {
		r.Header.Set("If-None-Match", f.etag)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		return nil, false, fmt.Errorf("fetching feed %s: %w", f.cfg.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified && f.etag != "" {
		return nil, true, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, false, fmt.Errorf("fetching feed %s: it answered %s", f.cfg.Name, resp.Status)
	}
	if data, err = io.ReadAll(io.LimitReader(resp.Body, maxFeed+1)); err != nil {
		return nil, false, fmt.Errorf("fetching feed %s: %w", f.cfg.Name, err)
	}
	if len(data) > maxFeed {
		return nil, false, fmt.Errorf("fetching feed %s: more than %d bytes", f.cfg.Name, maxFeed)
	}
	f.etag = resp.Header.Get("Etag")
	return data, false, nil
}

// follows refuses an import that looks like half of one: too many rows that are wrong, or more than a fifth of the
// devices gone at once. One device may always go.
func (c *catalog) follows(old *catalog) error {
	if c.refused > 1 && c.refused*5 > c.refused+len(c.rows) {
		return fmt.Errorf("%d of %d rows are wrong, the first: %w", c.refused, c.refused+len(c.rows), c.why)
	}
	if old == nil {
		return nil
	}
	gone := 0
	for id := range old.rows {
		if _, still := c.rows[id]; !still {
			gone++
		}
	}
	if gone > 1 && gone*5 > len(old.rows) {
		return errors.Join(fmt.Errorf("%d of %d devices would be gone at once, more than a fifth", gone, len(old.rows)), c.why)
	}
	return nil
}

// current is the last good import, or nil where there is none or it is too old.
func (f *feed) current(now time.Time) *catalog {
	if f == nil || now.Unix()-f.asOf.Load() > int64(f.cfg.MaxAge/time.Second) {
		return nil
	}
	return f.good.Load()
}
