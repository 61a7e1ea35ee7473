package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/gateway/feeds"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// cluster names the log's origin together with the node; one machine is a fleet of one.
const cluster = "headgate"

func serveCommand(file *string) *cobra.Command {
	var acceptDamage bool
	var level slog.Level
	cmd := &cobra.Command{
		Use: "serve", Short: "run the gateway",
		Long: `serve runs the gateway until SIGTERM, then drains. With no configuration it listens on https://localhost:8443, keeps
its state in one folder, takes the machine's GOPROXY as upstream, and prints what clients need.`,
		Example: "  headgate serve\n  headgate --config headgate.yaml serve --log-level warn",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(*file)
			if err != nil {
				return err
			}
			logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			return serve(cmd.Context(), c, logger, cmd.OutOrStdout(), acceptDamage)
		},
	}
	cmd.Flags().BoolVar(&acceptDamage, "accept-damage", false, "start a new epoch of a damaged audit log; its first record names the gap")
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "least `LEVEL` of log lines: debug, info, warn, error")
	return cmd
}

// serve runs the gateway of a configuration until ctx ends.
func serve(ctx context.Context, c *config, logger *slog.Logger, stdout io.Writer, acceptDamage bool) (err error) {
	a, err := open(ctx, c, logger, acceptDamage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.server.Listen(ctx); err != nil {
		return err
	}
	if err := a.openSinks(stdout); err != nil {
		return err
	}
	a.welcome(stdout)
	var group errgroup.Group
	serving, stopped := context.WithCancel(ctx)
	group.Go(func() error { return announce(serving) })
	err = a.server.Serve(ctx)
	stopped()
	return errors.Join(err, group.Wait())
}

// An app is the gateway with its leaves, opened in order and closed in the reverse of it.
type app struct {
	config   *config
	db       *sql.DB
	audit    *audit.Log
	identity *identity.Service
	policy   *policy.Engine
	mirror   *mirror.Mirror
	feeds    *feeds.Feeds
	server   *gateway.Server
	closers  []func() error
}

// open builds the leaves and joins them into a gateway that serves modules.
func open(ctx context.Context, c *config, logger *slog.Logger, acceptDamage bool) (*app, error) {
	return assemble(ctx, c, logger, acceptDamage, (*app).openPolicy, (*app).openMirror, (*app).openFeeds)
}

// openAdministration builds a gateway for the administrator alone: it needs neither a policy nor an upstream, unless
// the verb does.
func openAdministration(ctx context.Context, c *config, leaves []leaf) (*app, error) {
	return assemble(ctx, c, slog.New(slog.DiscardHandler), false, leaves...)
}

// A leaf opens one part of an app.
type leaf func(*app, context.Context, *slog.Logger, prometheus.Registerer) error

// assemble opens audit log, identity and the further leaves. The audit log comes first, since its lock makes this
// process the only one on the state folder.
func assemble(ctx context.Context, c *config, logger *slog.Logger, acceptDamage bool, leaves ...leaf) (_ *app, err error) {
	a := &app{config: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, fmt.Errorf("making the state folder: %w; set state: in the configuration to a folder of yours", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildMetric())
	if err := a.openAudit(logger, registry, acceptDamage); err != nil {
		return nil, err
	}
	for _, open := range append([]leaf{(*app).openIdentity}, leaves...) {
		if err := open(a, ctx, logger, registry); err != nil {
			return nil, err
		}
	}
	a.server = gateway.New(c.Gateway, gateway.Options{
		Identity: a.identity, Policy: a.policy, Mirror: a.mirror, Feeds: a.feeds, Audit: a.audit, Logger: logger, Registry: registry,
		Version: thisBuild().Version, Now: clockOf(ctx),
	})
	return a, nil
}

func (a *app) openAudit(logger *slog.Logger, r prometheus.Registerer, acceptDamage bool) error {
	node, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("finding this node's name: %w", err)
	}
	a.audit, err = audit.Open(a.config.Audit, audit.Options{
		Cluster: cluster, Node: node, Version: thisBuild().Version, Logger: logger, Registerer: r, AcceptDamage: acceptDamage,
		Objects: func(ctx context.Context, location string) (audit.Objects, error) {
			return a.config.objects(ctx, location)
		},
	})
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	a.closers = append(a.closers, a.audit.Close)
	return nil
}

// openSinks starts the delivery of audit records. It ends before the log is closed.
func (a *app) openSinks(stdout io.Writer) error {
	exporter, err := a.audit.Export(a.config.sinkOptions(stdout))
	if err != nil {
		return fmt.Errorf("opening the audit sinks: %w", err)
	}
	a.closers = append(a.closers, exporter.Close)
	return nil
}

func (a *app) openIdentity(ctx context.Context, logger *slog.Logger, r prometheus.Registerer) error {
	db, err := openDatabase(orElse(a.config.Identity.Database, filepath.Join(a.config.State, "headgate.db")), logger)
	if err != nil {
		return err
	}
	a.db = db.DB
	a.closers = append(a.closers, db.Close)
	a.identity, err = identity.Open(ctx, a.config.Identity, identity.Options{
		DB: db.DB, Wake: db.wake, Poll: db.poll, Keys: filepath.Join(a.config.State, "keys"), Logger: logger, Registerer: r, Fingerprint: a.audit.Fingerprint,
	})
	if err != nil {
		return fmt.Errorf("opening identity: %w", err)
	}
	a.closers = append(a.closers, a.identity.Close)
	return nil
}

func (a *app) openPolicy(ctx context.Context, logger *slog.Logger, r prometheus.Registerer) (err error) {
	var trial []string
	if a.config.Policy.Source == "git" { // a container without /proc cannot say which program runs
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding this program, which tests policy apart: %w", err)
		}
		trial = []string{self, "policy", "try"}
	}
	a.policy, err = policy.Open(ctx, a.config.Policy, policy.Options{
		Embedded: policies.FS, State: filepath.Join(a.config.State, "policy"), Key: filepath.Join(a.config.State, "keys", "policy.key"),
		Trial: trial, Logger: logger, Registerer: r, OnChange: a.policyChanged,
		Recorded: func(ctx context.Context) (*policy.Recording, error) {
			return gateway.RecentDecisions(ctx, a.config.Audit.Dir)
		},
	})
	if err != nil {
		return fmt.Errorf("opening policy: %w", err)
	}
	a.closers = append(a.closers, a.policy.Close)
	return nil
}

func (a *app) openMirror(ctx context.Context, logger *slog.Logger, r prometheus.Registerer) (err error) {
	var machine string
	if len(a.config.Mirror.Upstreams) == 0 && !a.config.Mirror.Offline {
		if machine, err = machineProxy(ctx); err != nil {
			return err
		}
	}
	a.mirror, err = mirror.New(ctx, a.config.Mirror, mirror.Options{
		Upstreams: machine, Logger: logger, Registerer: r, DB: a.db, State: a.config.State, Host: a.host(), Now: clockOf(ctx),
	})
	if err != nil {
		return fmt.Errorf("opening the mirror: %w", err)
	}
	a.closers = append(a.closers, a.mirror.Close)
	return a.notOurselves()
}

func (a *app) openFeeds(ctx context.Context, logger *slog.Logger, r prometheus.Registerer) (err error) {
	a.feeds, err = feeds.Open(ctx, a.config.Feeds, feeds.Options{
		State: filepath.Join(a.config.State, "feeds"), Logger: logger, Registerer: r, Now: clockOf(ctx),
	})
	if err != nil {
		return fmt.Errorf("opening the feeds: %w", err)
	}
	a.closers = append(a.closers, a.feeds.Close)
	return nil
}

// host is the name under which clients know this gateway.
func (a *app) host() string {
	u, err := url.Parse(a.config.Gateway.URL)
	if err != nil || u.Hostname() == "" {
		return "localhost"
	}
	return u.Hostname()
}

// notOurselves refuses an upstream that is this gateway: the machine's GOPROXY may name it already.
func (a *app) notOurselves() error {
	for _, host := range a.mirror.UpstreamHosts() {
		if a.config.ourselves(host, "https") {
			return fmt.Errorf("upstream %s is this gateway itself; name the real upstreams in mirror.upstreams", host)
		}
	}
	return nil
}

// machineProxy is what `go env GOPROXY` names in an empty folder.
func machineProxy(ctx context.Context) (string, error) {
	const mend = "name the upstream GOPROXY servers in mirror.upstreams"
	dir, err := os.MkdirTemp("", "headgate-")
	if err != nil {
		return "", fmt.Errorf("making an empty folder: %w", err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "env", "GOPROXY")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("asking the go command for the default upstream: %w; %s", err, mend)
	}
	value := strings.TrimSpace(string(out))
	if value == "" {
		return "", fmt.Errorf("go env GOPROXY is empty; %s", mend)
	}
	return value, nil
}

func (a *app) close() error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	a.closers = nil
	return errors.Join(errs...)
}

func buildMetric() prometheus.Collector {
	b := thisBuild()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "headgate_build_info", Help: "What this binary is; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go": b.Go},
	})
	g.Set(1)
	return g
}
