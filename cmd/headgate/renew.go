package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"
	"github.com/spf13/cobra"

	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/identity"
)

// autoRenewal is how long a token waits for a renewal of the certificate that still holds.
const autoRenewal = 8 * time.Second

// A renewal has a device's certificate signed anew, for a new key, over mTLS with the present one.
type renewal struct {
	folder  string
	url     string // of the gateway's listener of devices
	caFile  string
	early   bool // before its last third
	skipNew bool // nothing is done, and nothing wrong, where it is not time yet
}

// A renewed certificate is what became of a renewal.
type renewed struct {
	Device  string    `json:"device"`
	Folder  string    `json:"folder"`
	Expires time.Time `json:"expires"`
	From    time.Time `json:"renew_from"` // when it is time for the next one
}

// run renews, one process at a time. The key is kept before it is signed: where the answer got lost, the same one is asked
// for again.
func (n *renewal) run(ctx context.Context) (*renewed, error) {
	unlock, err := lockedfile.MutexAt(filepath.Join(n.folder, "lock")).Lock()
	if err != nil {
		return nil, fmt.Errorf("waiting for the device's folder: %w", err)
	}
	defer unlock()
	trust, err := deviceTLS(n.folder, n.caFile)
	if err != nil {
		return nil, err
	}
	leaf := trust.Certificates[0].Leaf
	if n.skipNew && time.Now().Before(identity.RenewFrom(leaf)) {
		return nil, nil //nolint:nilnil // another process renewed it
	}
	request, err := n.request()
	if err != nil {
		return nil, err
	}
	var done gateway.Enrolled
	if err := postDevice(ctx, trust, n.url+"/-/api/v1/devices/renew", gateway.RenewRequest{CSR: string(request), Early: n.early}, &done); err != nil {
		if _, never := errors.AsType[*useError](err); never { // nothing was signed for this key, and nothing will be
			return nil, errors.Join(err, os.Remove(filepath.Join(n.folder, "key.pem.new")))
		}
		return nil, err
	}
	if leaf, err = n.keep([]byte(done.Chain)); err != nil {
		return nil, err
	}
	return &renewed{done.Device, n.folder, leaf.NotAfter, identity.RenewFrom(leaf)}, nil
}

// request asks for the key that an earlier try left, or else for a new one.
func (n *renewal) request() ([]byte, error) {
	fresh := filepath.Join(n.folder, "key.pem.new")
	if text, err := os.ReadFile(fresh); err == nil {
		if request, err := requestOf(text); err == nil {
			return request, nil
		}
	}
	key, request, err := deviceKey()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(fresh, key, 0o600); err != nil {
		return nil, fmt.Errorf("keeping the device's key: %w", err)
	}
	return request, nil
}

func requestOf(keyPEM []byte) ([]byte, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("reading the device's key: it is no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the device's key: %w", err)
	}
	ours, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("reading the device's key: it is not one of ours")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, ours)
	if err != nil {
		return nil, fmt.Errorf("making the certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// keep puts certificate and key in the place of the old ones, if they belong together. Between the two renames
// loadDevice finds the certificate under its new name.
func (n *renewal) keep(chain []byte) (*x509.Certificate, error) {
	cert, key := filepath.Join(n.folder, "cert.pem"), filepath.Join(n.folder, "key.pem")
	secret, err := os.ReadFile(key + ".new")
	if err != nil {
		return nil, fmt.Errorf("keeping the device's certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(chain, secret)
	if err != nil {
		return nil, fmt.Errorf("keeping the device's certificate: %w", err)
	}
	if err := os.WriteFile(cert+".new", chain, 0o600); err != nil {
		return nil, fmt.Errorf("keeping the device's certificate: %w", err)
	}
	if err := errors.Join(os.Rename(key+".new", key), os.Rename(cert+".new", cert)); err != nil {
		return nil, fmt.Errorf("keeping the device's certificate: %w", err)
	}
	return pair.Leaf, nil
}

// loadDevice reads certificate and key. Another process may be between the two renames of a renewal, or was stopped there.
func loadDevice(folder string) (tls.Certificate, error) {
	var first error
	for _, name := range []string{"cert.pem", "cert.pem.new", "cert.pem"} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(folder, name), filepath.Join(folder, "key.pem"))
		if err == nil {
			return pair, nil
		}
		if first == nil {
			first = err
		}
	}
	return tls.Certificate{}, fmt.Errorf("reading the device's certificate: %w; `headgate device enrol` makes one", first)
}

// renewDevice renews the certificate of this login's device once it is in the last third of its life. Until its end the
// old one is good, so that a failure is no matter yet: the next token tries again.
func (l *gatewayLogin) renewDevice(ctx context.Context) error {
	if l.Device == "" {
		return nil
	}
	pair, err := loadDevice(l.Device)
	if err != nil {
		return err
	}
	if time.Now().Before(identity.RenewFrom(pair.Leaf)) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, autoRenewal)
	defer cancel()
	_, err = (&renewal{folder: l.Device, url: l.Door, caFile: l.CA, skipNew: true}).run(ctx)
	return err
}

func deviceRenewCommand() *cobra.Command {
	var n renewal
	var asJSON bool
	cmd := &cobra.Command{
		Use: "renew", Short: "have this device's certificate signed anew, for a new key",
		Long: `renew makes a new key on this machine and has the gateway sign a certificate for it, over the present certificate, in
the last third of its life; --force does it before. It stays the same device, and its tokens hold. headgate goauth and
headgate agent do it by themselves.`,
		Example: "  headgate device renew\n  headgate device renew --url https://go.corp.example:8444 --dir /etc/headgate-device --force",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.complete(); err != nil {
				return err
			}
			done, err := n.run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(done)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the certificate of device %s is renewed until %s; it is in %s\n", done.Device, done.Expires.Format(time.RFC3339), done.Folder)
			return err
		},
	}
	cmd.Flags().StringVar(&n.url, "url", "", "`URL` of the gateway's listener of devices, as enrol printed it (default: that of the login with this device)")
	cmd.Flags().StringVar(&n.caFile, "ca", "", "`FILE` with the CA of --url (default: that of the login, or the system's)")
	cmd.Flags().StringVar(&n.folder, "dir", "", "`FOLDER` with key and certificate (default: headgate/device in the user's configuration folder)")
	cmd.Flags().BoolVar(&n.early, "force", false, "renew it before the last third of its life")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// complete fills in what the command line leaves out.
func (n *renewal) complete() error {
	var err error
	if n.folder == "" {
		if n.folder, err = clientFolder("device"); err != nil {
			return fmt.Errorf("%w; name one with --dir", err)
		}
	}
	if n.folder, err = absolute(n.folder); err != nil {
		return err
	}
	if n.url == "" {
		logins, err := savedLogins()
		if err != nil {
			return err
		}
		for _, l := range logins {
			if l.Device == n.folder {
				n.url, n.caFile = l.Door, orElse(n.caFile, l.CA)
			}
		}
	}
	if n.url == "" {
		return &useError{errors.New("--url is missing: no login uses this device; it is the URL that `headgate device enrol` printed")}
	}
	n.url, err = gatewayAddress(n.url)
	return err
}
