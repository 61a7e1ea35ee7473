package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// static is a server of files.
type static struct {
	home, address string
	process       *child
}

func (s static) url() string    { return "https://" + s.address }
func (s static) caFile() string { return filepath.Join(s.home, "ca.pem") }

// from is the way to a server of files.
func (s static) from(name, sumdb string) way {
	return way{name: name, sumdb: sumdb, env: []string{"GOPROXY=" + s.url(), "SSL_CERT_FILE=" + s.caFile()}}
}

// serveArchive starts the two servers of what came.
func (d *downloads) serveArchive(ctx context.Context) (err error) {
	for _, s := range []*static{&d.archive, &d.nginx} {
		if s.home, err = os.MkdirTemp(d.dir, "static-"); err == nil {
			_, err = writeCertificates(s.home)
		}
		if err != nil {
			return err
		}
	}
	if err := writeWhole(filepath.Join(d.files, "sumdb", publicSumdb, "supported"), nil); err != nil {
		return fmt.Errorf("filling the archive: %w", err)
	}
	d.archive.process, d.archive.address, err = startSelf(d.dir, "archive", d.upstream,
		keepEnv("PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"),
		"archive", d.archive.home, d.files, d.log())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("finding a free port: %w", err)
	}
	d.nginx.address = l.Addr().String()
	l.Close()
	if d.nginx.process, err = startNginx(d.dir, d.nginx.home, d.files, d.nginx.address); err != nil {
		return err
	}
	return d.reachable(ctx)
}

// reachable waits until nginx listens.
func (d *downloads) reachable(ctx context.Context) error {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.nginx.address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-d.nginx.process.done:
			text, _ := os.ReadFile(d.nginx.process.log(d.dir))
			return fmt.Errorf("starting nginx: %w: %s", d.nginx.process.err, text)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// nginxConf serves a folder over TLS as a mirror of static files would.
const nginxConf = `%[4]s
daemon off;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 100000;
	client_body_temp_path %[1]s/tmp; proxy_temp_path %[1]s/tmp; fastcgi_temp_path %[1]s/tmp; uwsgi_temp_path %[1]s/tmp; scgi_temp_path %[1]s/tmp;
	server {
		listen %[2]s ssl http2;
		ssl_certificate %[1]s/cert.pem;
		ssl_certificate_key %[1]s/key.pem;
		ssl_protocols TLSv1.3;
		root %[3]s;
	}
}
`

// startNginx serves root with Debian's nginx; its certificate stands in home.
func startNginx(dir, home, root, address string) (*child, error) {
	if _, err := exec.LookPath("nginx"); err != nil {
		return nil, fmt.Errorf("starting nginx, which is measured beside: %w; as root: apt-get install nginx", err)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // whose files these are
	}
	conf := filepath.Join(home, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, home, address, root, user), 0o600); err != nil {
		return nil, fmt.Errorf("writing nginx.conf: %w", err)
	}
	return start(dir, "nginx", false, keepEnv("PATH"), "nginx", "-e", "stderr", "-p", home, "-c", conf)
}
