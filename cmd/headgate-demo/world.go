package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

//go:embed testdata/modules-137.mod testdata/modules-536.mod
var testdata embed.FS

// moduleList is the go.mod of the people's project.
const moduleList = "testdata/modules-137.mod"

// The modules that play a part. All are in the list.
const (
	deniedModule   = "github.com/gorilla/websocket" // to Ben's team, by teams.yaml
	withheldModule = "github.com/google/uuid"       // its newest version, by rules.yaml
)

// A world is everything that the story starts: provider, relay, gateway, people, policy folder.
type world struct {
	dir      string
	t        *teller
	upstream string // the machine's own GOPROXY; may hold a password
	goMod    []byte
	modules  []module.Version
	people   []*person
	provider *provider
	relay    *child
	gate     *gate
}

// open builds and starts everything. The caller closes it, even after an error.
func (w *world) open(ctx context.Context) (err error) {
	if w.upstream, err = machineUpstream(ctx, w.dir); err != nil {
		return err
	}
	if err := w.readModules(); err != nil {
		return err
	}
	if w.people, err = newPeople(w.dir); err != nil {
		return err
	}
	start := time.Now()
	if w.gate, err = build(ctx, w.dir); err != nil {
		return err
	}
	w.t.say("headgate is built from this clone (%s).", seconds(time.Since(start)))
	if w.provider, err = startProvider(w.dir, w.people); err != nil {
		return err
	}
	w.t.say("An OpenID provider listens at %s, under a CA of its own.", w.provider.issuer)
	var address string
	env := keepEnv("PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
	if w.relay, address, err = startSelf(w.dir, "relay", w.upstream, env, "relay", w.relayLog()); err != nil {
		return err
	}
	w.t.say("A relay at http://%s passes on to %s and logs each request.", address, redact(w.upstream))
	if err := w.writePolicy(ctx); err != nil {
		return err
	}
	return w.startGateway(ctx, address)
}

func (w *world) startGateway(ctx context.Context, upstream string) error {
	err := w.gate.configure(fmt.Sprintf(`identity:
  issuers:
    - {name: demo, url: %q, audiences: [%s], groups_claim: groups, ca_file: %q}
policy: {source: folder, path: %q}
mirror: {upstreams: ["http://%s"]}
audit: {segment_bytes: 16777216}
`, w.provider.issuer, clientID, w.provider.caFile, w.policyDir(), upstream))
	if err != nil {
		return err
	}
	start := time.Now()
	if err := w.gate.start(ctx, "info"); err != nil {
		return err
	}
	w.t.say("The gateway is ready at %s after %d ms; its upstream is the relay.", w.gate.url(), time.Since(start).Milliseconds())
	return nil
}

// close stops whatever was started, the gateway first.
func (w *world) close() error {
	var errs []error
	if w.gate != nil && w.gate.process != nil {
		errs = append(errs, w.gate.process.stop())
	}
	if w.relay != nil {
		errs = append(errs, w.relay.stop())
	}
	if w.provider != nil {
		errs = append(errs, w.provider.stop())
	}
	return errors.Join(errs...)
}

func (w *world) relayLog() string  { return filepath.Join(w.dir, "relay-requests.log") }
func (w *world) policyDir() string { return filepath.Join(w.dir, "policy") }
func (w *world) rulesFile() string { return filepath.Join(w.policyDir(), "config", "rules.yaml") }

func (w *world) readModules() (err error) {
	if w.goMod, err = testdata.ReadFile(moduleList); err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	f, err := modfile.Parse(moduleList, w.goMod, nil)
	if err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	for _, r := range f.Require {
		w.modules = append(w.modules, r.Mod)
	}
	return nil
}

// machineUpstream is the first server that `go env GOPROXY` names.
func machineUpstream(ctx context.Context, dir string) (string, error) {
	out, err := command(ctx, dir, nil, "go", "env", "GOPROXY")
	if err != nil {
		return "", fmt.Errorf("asking go for GOPROXY: %w: %s", err, out)
	}
	for _, word := range strings.FieldsFunc(strings.TrimSpace(out), func(r rune) bool { return r == ',' || r == '|' }) {
		if strings.HasPrefix(word, "https://") || strings.HasPrefix(word, "http://") {
			return word, nil
		}
	}
	return "", errors.New("go env GOPROXY names no https server; the story downloads real modules and needs one")
}

// redact leaves a password out of an address.
func redact(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the machine's GOPROXY"
	}
	return u.Redacted()
}

// teamsYAML is who may use what. The strictest profile of a person's teams counts.
const teamsYAML = `teams:
  everyone: {profile: open, public: true}
  payments: {profile: strict, groups: [eng-payments], public: true}
  web: {profile: standard, groups: [eng-web], public: true, deny: [` + deniedModule + `]}
`

// writePolicy makes the policy folder: the default bundle's rules, teams of our own, no waivers.
func (w *world) writePolicy(ctx context.Context) error {
	out, err := command(ctx, "", nil, "go", "list", "-f", "{{.Dir}}", "github.com/headgate/headgate/policies")
	if err != nil {
		return fmt.Errorf("finding the default policy: %w: %s", err, out)
	}
	rules, err := os.ReadFile(filepath.Join(strings.TrimSpace(out), "config", "rules.yaml"))
	if err != nil {
		return fmt.Errorf("reading the default policy: %w", err)
	}
	files := map[string][]byte{
		"bundle.yaml":         []byte("name: demo\nlibrary: default\nowners: [platform]\n"),
		"config/teams.yaml":   []byte(teamsYAML),
		"config/rules.yaml":   rules,
		"config/waivers.yaml": []byte("waivers: []\n"),
	}
	if err := os.MkdirAll(filepath.Join(w.policyDir(), "config"), 0o700); err != nil {
		return fmt.Errorf("making the policy folder: %w", err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(w.policyDir(), name), text, 0o600); err != nil {
			return fmt.Errorf("writing the policy: %w", err)
		}
	}
	return nil
}

// addRule appends a rule to rules.yaml while the gateway runs. The file is replaced whole.
func (w *world) addRule(rule string) error {
	rules, err := os.ReadFile(w.rulesFile())
	if err != nil {
		return fmt.Errorf("reading the rules: %w", err)
	}
	next := filepath.Join(w.dir, "rules.yaml.next")
	if err := os.WriteFile(next, append(bytes.TrimRight(rules, "\n"), []byte("\n"+rule)...), 0o600); err != nil {
		return fmt.Errorf("writing the rules: %w", err)
	}
	if err := os.Rename(next, w.rulesFile()); err != nil {
		return fmt.Errorf("writing the rules: %w", err)
	}
	return nil
}

// requests are those that the relay has logged, once the gateway's own count says the same.
func (w *world) requests(ctx context.Context) (tally, int, error) {
	var logged tally
	var metric int
	for range 50 {
		f, err := os.Open(w.relayLog())
		if err != nil {
			return tally{}, 0, fmt.Errorf("reading the relay's log: %w", err)
		}
		logged, err = countLog(f)
		f.Close()
		if err != nil {
			return tally{}, 0, fmt.Errorf("reading the relay's log: %w", err)
		}
		if metric, err = w.gate.upstreamRequests(ctx); err != nil || metric == logged.all {
			return logged, metric, err
		}
		time.Sleep(50 * time.Millisecond) // a request under way is counted at its end by one and at its start by the other
	}
	return logged, metric, nil
}
