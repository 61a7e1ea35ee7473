package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A project is a folder with a go.mod and an empty module cache of its own, in which a person runs the go command.
type project struct {
	dir string
	env []string
}

// project makes one for a person whose GOPROXY is the gateway.
func (w *world) project(who *person, name string, goMod []byte) (*project, error) {
	return w.newProject(name, goMod, []string{
		"HOME=" + who.home, "GOPROXY=" + w.gate.url(), "SSL_CERT_FILE=" + w.gate.caFile(),
	})
}

// straight makes one whose GOPROXY is the upstream itself, as this machine reaches it.
func (w *world) straight(name string, goMod []byte) (*project, error) {
	env := keepEnv("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
	return w.newProject(name, goMod, append(env, "HOME="+filepath.Join(w.dir, "home"), "GOPROXY="+w.upstream))
}

func (w *world) newProject(name string, goMod []byte, env []string) (*project, error) {
	p := &project{dir: filepath.Join(w.dir, "work", name)}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making project %s: %w", name, err)
	}
	if goMod != nil {
		if err := os.WriteFile(filepath.Join(p.dir, "go.mod"), goMod, 0o600); err != nil {
			return nil, fmt.Errorf("making project %s: %w", name, err)
		}
	}
	// The environment is explicit: nothing of the caller's GOFLAGS, GOPRIVATE or GOENV takes part.
	p.env = append(append(keepEnv("PATH", "TMPDIR"), env...),
		"GOSUMDB=sum.golang.org", "GOFLAGS=-modcacherw", "GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GOVCS=*:off",
		"GOPATH="+filepath.Join(p.dir, "gopath"), "GOMODCACHE="+p.cache(), "GOCACHE="+filepath.Join(w.dir, "gocache"))
	return p, nil
}

func (p *project) cache() string { return filepath.Join(p.dir, "modcache") }

// goes runs the go command and returns all that it printed, and how long it took.
func (p *project) goes(ctx context.Context, args ...string) (string, time.Duration, error) {
	start := time.Now()
	out, err := command(ctx, p.dir, p.env, "go", args...)
	return out, time.Since(start), err
}

// download runs `go mod download` and says how long it took.
func (p *project) download(ctx context.Context, t *teller) (took time.Duration, err error) {
	var out string
	far := func() string {
		mods, _ := p.cached(".mod")
		zips, _ := p.cached(".zip")
		return fmt.Sprintf("%d go.mod files, %d modules", mods, zips)
	}
	err = t.during(ctx, "go mod download", far, func(ctx context.Context) (err error) {
		out, took, err = p.goes(ctx, "mod", "download")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("running go mod download: %w\n%s", err, out)
	}
	return took, nil
}

// zips counts the modules in the project's cache and their bytes.
func (p *project) zips() (n int, bytes int64) { return p.cached(".zip") }

// cached counts the files of a kind in the project's cache and their bytes.
func (p *project) cached(suffix string) (n int, bytes int64) {
	// What cannot be read is not counted, and the count is compared with what it must be.
	_ = filepath.WalkDir(filepath.Join(p.cache(), "cache", "download"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, suffix) {
			return nil //nolint:nilerr // see above
		}
		if info, err := d.Info(); err == nil {
			n, bytes = n+1, bytes+info.Size()
		}
		return nil
	})
	return n, bytes
}

// sums counts the lines of go.sum: what the checksum database vouched for.
func (p *project) sums() int {
	text, err := os.ReadFile(filepath.Join(p.dir, "go.sum"))
	if err != nil {
		return 0
	}
	return strings.Count(string(text), "\n")
}

// empty removes the module cache, so that the temporary folder does not hold each copy until the end.
func (p *project) empty() error {
	if err := os.RemoveAll(p.cache()); err != nil {
		return fmt.Errorf("emptying the module cache: %w", err)
	}
	return nil
}
