package identity_test

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headgate/headgate/cmd/headgate/statetest"
	"github.com/headgate/headgate/identity"
)

func unix(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }

// TestNoticeOverTheNetwork speaks TLS to receivers that are not what they should be.
func TestNoticeOverTheNetwork(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for name, tt := range map[string]struct {
		answer       func(w http.ResponseWriter, r *http.Request)
		sent, failed float64
	}{
		"takes it": {nil, 1, 0},
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, 0, 1},
		"fails":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, 0, 1},
		"is not there": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, 1},
		"never stops talking": {func(w http.ResponseWriter, r *http.Request) {
			for page := make([]byte, 64<<10); r.Context().Err() == nil; {
				if _, err := w.Write(page); err != nil {
					return
				}
			}
		}, 1, 0},
		"has an endless header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		}, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{answer: tt.answer}
			server := httptest.NewTLSServer(r)
			defer server.Close()
			server.Config.ErrorLog = nil
			cfg := noticeConfig(t, time.Hour)
			cfg.Notices.URL = server.URL + "/hooks/T0KEN"
			cfg.Notices.CAFile = filepath.Join(t.TempDir(), "ca.pem")
			block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
			if err := os.WriteFile(cfg.Notices.CAFile, block, 0o600); err != nil {
				t.Fatal(err)
			}
			tellOnce(t, cfg, tt.sent, tt.failed)
			if n := r.all(); len(n) != 1 || !n[0].signedBy(noticeKey) {
				t.Errorf("the receiver got %d notices, want one that is signed", len(n))
			}
		})
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d notices went where a redirect leads", n)
	}
}

// tellOnce runs one round for one token over the network.
func tellOnce(t *testing.T, cfg identity.Config, sent, failed float64) (log string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := telling(t, cfg, statetest.OpenDB(t), nil)
		nightly(t, s.Service, 61*time.Minute)
		time.Sleep(90 * time.Second)
		synctest.Wait()
		s.wantResults(t, sent, failed, 0)
		log = s.log.String()
	})
	if strings.Contains(log, "T0KEN") {
		t.Errorf("the log repeats the receiver's address:\n%s", log)
	}
	return log
}

func TestNoticeStaysHere(t *testing.T) {
	r := &receiver{}
	plain, stranger := httptest.NewServer(r), httptest.NewTLSServer(r)
	defer plain.Close()
	defer stranger.Close()
	gone := httptest.NewServer(r)
	gone.Close()
	for name, tt := range map[string]struct {
		url, why     string
		sent, failed float64
	}{
		"http on loopback":                           {plain.URL, "", 1, 0},
		"a certificate that nobody vouches for":      {stranger.URL + "/T0KEN", "certificate", 0, 1},
		"nobody listens":                             {gone.URL + "/T0KEN", "refused", 0, 1},
		"T21 credentials of a cloud's machine":       {"https://169.254.169.254/T0KEN", "no notice is sent", 0, 1},
		"T21 the same, written as IPv6":              {"https://[::ffff:169.254.169.254]/T0KEN", "no notice is sent", 0, 1},
		"an address that is every one's own":         {"https://0.0.0.0/T0KEN", "no notice is sent", 0, 1},
		"a name of this machine, whatever it's case": {strings.Replace(plain.URL, "127.0.0.1", "LOCALHOST", 1), "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := noticeConfig(t, time.Hour)
			cfg.Notices.URL = tt.url
			if log := tellOnce(t, cfg, tt.sent, tt.failed); !strings.Contains(log, tt.why) {
				t.Errorf("log %q does not say %q", log, tt.why)
			}
		})
	}
}

func TestNoticeValidate(t *testing.T) {
	good := identity.Notices{URL: "https://tickets.corp.example/hook", SecretFile: "/key", Before: []time.Duration{168 * time.Hour, 24 * time.Hour}}
	for name, tt := range map[string]struct {
		change func(*identity.Notices)
		want   string // "" is good
	}{
		"good":                     {func(*identity.Notices) {}, ""},
		"defaults":                 {func(n *identity.Notices) { n.Before = nil }, ""},
		"http on loopback":         {func(n *identity.Notices) { n.URL = "http://[::1]:8080/" }, ""},
		"nobody":                   {func(n *identity.Notices) { *n = identity.Notices{} }, ""},
		"http":                     {func(n *identity.Notices) { n.URL = "http://tickets.corp.example/" }, "notices.url: "},
		"http to a like name":      {func(n *identity.Notices) { n.URL = "http://localhost.evil.example/" }, "notices.url: "},
		"no scheme":                {func(n *identity.Notices) { n.URL = "tickets.corp.example" }, "notices.url: "},
		"no host":                  {func(n *identity.Notices) { n.URL = "https://:443/" }, "notices.url: "},
		"a password":               {func(n *identity.Notices) { n.URL = "https://a:S3CRET@tickets.corp.example/" }, "notices.url: "},
		"a control character":      {func(n *identity.Notices) { n.URL = "https://h/S3CRET\n" }, "notices.url: "},
		"no secret":                {func(n *identity.Notices) { n.SecretFile = "" }, "notices.secret_file: "},
		"a threshold too short":    {func(n *identity.Notices) { n.Before = []time.Duration{time.Minute} }, "notices.before: "},
		"a threshold too long":     {func(n *identity.Notices) { n.Before = []time.Duration{91 * day} }, "notices.before: "},
		"a threshold of half a ms": {func(n *identity.Notices) { n.Before = []time.Duration{time.Hour + time.Millisecond} }, "notices.before: "},
		"a threshold twice":        {func(n *identity.Notices) { n.Before = []time.Duration{day, day} }, "notices.before: "},
		"nine thresholds": {func(n *identity.Notices) {
			n.Before = nil
			for i := range 9 {
				n.Before = append(n.Before, time.Duration(i+1)*time.Hour)
			}
		}, "notices.before: "},
		"a secret for nobody":    {func(n *identity.Notices) { *n = identity.Notices{SecretFile: "/key"} }, "notices.secret_file: "},
		"thresholds for nobody":  {func(n *identity.Notices) { *n = identity.Notices{Before: []time.Duration{day}} }, "notices.before: "},
		"an authority of nobody": {func(n *identity.Notices) { *n = identity.Notices{CAFile: "/ca"} }, "notices.ca_file: "},
	} {
		t.Run(name, func(t *testing.T) {
			n := good
			tt.change(&n)
			errs := identity.Config{Notices: n}.Validate()
			if tt.want == "" && len(errs) > 0 || tt.want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want)) {
				t.Errorf("Validate(%+v) = %v, want %q", n, errs, tt.want)
			}
			if text := errors.Join(errs...); text != nil && strings.Contains(text.Error(), "S3CRET") {
				t.Errorf("Validate repeats what may be a secret: %v", text)
			}
		})
	}
}
