package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/identity"
	"github.com/headgate/headgate/policy"
)

// systemConfig is read when neither --config nor $HEADGATE_CONFIG names a file. It need not exist.
const systemConfig = "/etc/headgate/headgate.yaml"

// A config is the one configuration file of the gateway. Each package owns its section.
type config struct {
	// State is the folder for all that the gateway keeps. Empty: /var/lib/headgate for root,
	// else $XDG_STATE_HOME/headgate or ~/.local/state/headgate.
	State    string          `yaml:"state"`
	Gateway  gateway.Config  `yaml:"gateway"`
	Identity identity.Config `yaml:"identity"`
	Policy   policy.Config   `yaml:"policy"`
	Mirror   mirror.Config   `yaml:"mirror"`
	Audit    audit.Config    `yaml:"audit"`

	file string // where it was read from; empty: defaults
}

// loadConfig reads and checks the configuration: the named file, else $HEADGATE_CONFIG, else the system's file,
// else defaults. The error lists every mistake, each with file and line.
func loadConfig(file string) (*config, error) {
	text, file, err := readConfig(file)
	if err != nil {
		return nil, err
	}
	c := &config{file: file}
	d := decodeStrict(file, text, c)
	if err := c.defaults(); err != nil {
		return nil, err
	}
	d.invalid("gateway", c.Gateway.Validate())
	d.invalid("identity", c.Identity.Validate())
	d.invalid("policy", c.Policy.Validate())
	d.invalid("mirror", c.Mirror.Validate())
	d.invalid("audit", c.Audit.Validate())
	if err := d.err(); err != nil {
		return nil, &configError{err}
	}
	return c, nil
}

// A configError is a configuration that cannot be used as it stands.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

func readConfig(file string) (text []byte, name string, err error) {
	if file == "" {
		file = os.Getenv("HEADGATE_CONFIG")
	}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, "", &configError{fmt.Errorf("reading the configuration: %w", err)}
		}
		return text, file, nil
	}
	text, err = os.ReadFile(systemConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", &configError{fmt.Errorf("reading the configuration: %w", err)}
	}
	return text, systemConfig, nil
}

// defaults fills the paths that depend on the state folder; all other defaults are their packages' own.
func (c *config) defaults() error {
	if c.State == "" {
		state, err := defaultState()
		if err != nil {
			return err
		}
		c.State = state
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return fmt.Errorf("finding the state folder %s: %w", c.State, err)
	}
	c.State = state
	if c.Audit.Dir == "" {
		c.Audit.Dir = filepath.Join(state, "audit")
	}
	if c.Mirror.Store == "" {
		c.Mirror.Store = filepath.Join(state, "store")
	}
	c.Gateway.State = state
	return nil
}

func defaultState() (string, error) {
	if os.Getuid() == 0 {
		return "/var/lib/headgate", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "headgate"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding a state folder: %w; set state: in the configuration", err)
	}
	return filepath.Join(home, ".local", "state", "headgate"), nil
}
