package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A gatewayLogin is what this user has of one gateway: login.json in a folder of its own, for nobody else to read.
type gatewayLogin struct {
	URL     string    `json:"url"`              // without a slash at the end
	CA      string    `json:"ca,omitempty"`     // file with the gateway's CA; empty: the system's
	Device  string    `json:"device,omitempty"` // folder of an enrolled device; empty: this machine proves nothing
	Door    string    `json:"door,omitempty"`   // the gateway's URL for devices, where there is a Device
	Token   string    `json:"token"`            // of class person: short tokens are got for it
	Expires time.Time `json:"expires"`
	// What login changed, and how it was before: logout puts it back.
	Changes []goChange   `json:"changes,omitempty"`
	Netrc   *netrcChange `json:"netrc,omitempty"`

	folder string
	notes  io.Writer // is told what went wrong and is no matter yet; nil: nobody is
}

var errNoLogin = errors.New("not signed in")

// clientFolder is where this user's logins and device are.
func clientFolder(name string) (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's folder: %w", err)
	}
	return filepath.Join(dir, "headgate", name), nil
}

// gatewayAddress is the one spelling of a gateway's URL. Credentials go over https only.
func gatewayAddress(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", &useError{fmt.Errorf("%q is no gateway; want https://HOST[:PORT][/BASE]", text)}
	}
	u.Host = strings.TrimSuffix(strings.ToLower(u.Host), ":443")
	return strings.TrimRight(u.String(), "/"), nil
}

// newLogin is a login that is not saved yet.
func newLogin(address string) (*gatewayLogin, error) {
	root, err := clientFolder("logins")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(address))
	return &gatewayLogin{URL: address, folder: filepath.Join(root, hex.EncodeToString(sum[:8]))}, nil
}

// savedLogin reads the login at a gateway. Without one the error is errNoLogin.
func savedLogin(address string) (*gatewayLogin, error) {
	address, err := gatewayAddress(address)
	if err != nil {
		return nil, err
	}
	l, err := newLogin(address)
	if err != nil {
		return nil, err
	}
	if err := l.read(); err != nil {
		return nil, fmt.Errorf("%w; run: headgate login %s", err, address)
	}
	return l, nil
}

// onlyLogin is the login at a gateway; without its address the one that there is.
func onlyLogin(address string) (*gatewayLogin, error) {
	if address != "" {
		return savedLogin(address)
	}
	all, err := savedLogins()
	switch {
	case err != nil:
		return nil, err
	case len(all) == 0:
		return nil, fmt.Errorf("%w; run: headgate login URL", errNoLogin)
	case len(all) > 1:
		var list []string
		for _, l := range all {
			list = append(list, l.URL)
		}
		return nil, &useError{errors.New("there are logins at several gateways; name one of them: " + strings.Join(list, " "))}
	}
	return all[0], nil
}

// savedLogins are all of this user's, by address.
func savedLogins() ([]*gatewayLogin, error) {
	root, err := clientFolder("logins")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading logins: %w", err)
	}
	var all []*gatewayLogin
	for _, e := range entries {
		l := &gatewayLogin{folder: filepath.Join(root, e.Name())}
		if err := l.read(); errors.Is(err, errNoLogin) {
			continue
		} else if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b *gatewayLogin) int { return strings.Compare(a.URL, b.URL) })
	return all, nil
}

func (l *gatewayLogin) read() error {
	text, err := os.ReadFile(filepath.Join(l.folder, "login.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return errNoLogin
	}
	if err == nil {
		err = json.Unmarshal(text, l)
	}
	if err != nil {
		return fmt.Errorf("reading the login in %s: %w", l.folder, err)
	}
	return nil
}

func (l *gatewayLogin) save() error { return l.keep("login.json", l) }

func (l *gatewayLogin) remove() error {
	if err := os.RemoveAll(l.folder); err != nil {
		return fmt.Errorf("removing the login: %w", err)
	}
	return nil
}

// keep writes a file of the login's folder.
func (l *gatewayLogin) keep(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	if err := os.MkdirAll(l.folder, 0o700); err != nil {
		return fmt.Errorf("making the login's folder: %w", err)
	}
	return replaceFile(filepath.Join(l.folder, name), text)
}

// owns says whether a URL is the gateway's: nothing of ours goes to any other.
func (l *gatewayLogin) owns(address string) bool {
	rest, ok := strings.CutPrefix(address, l.URL)
	return ok && (rest == "" || rest[0] == '/' || rest[0] == '?')
}

// replaceFile writes a file for its user alone: readers see the old one or the new one, whole.
func replaceFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*") // with 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
