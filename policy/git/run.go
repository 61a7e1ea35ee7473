package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	maxOutput = 40 << 20 // the files of a bundle, and what git writes around them
	maxStderr = 64 << 10
	maxFile   = 64 << 10 // of a credential or key
	maxText   = 2 << 10  // of an error
	diskTick  = 100 * time.Millisecond
	// No core dumps, 1 GiB of data, in KiB, and no file larger than the repository may be, in blocks of 512 bytes.
	limits = `ulimit -c 0 && ulimit -d 1048576 && ulimit -f "$1" && shift && exec "$0" "$@"`
)

var (
	errSize    = errors.New("repository is larger than it may be")
	errTime    = errors.New("git took longer than it may")
	errObjects = errors.New("repository holds objects that git does not take")
)

// writeConfig writes the only configuration that git reads.
func (r *Repository) writeConfig() error {
	sections := []struct{ section, key, value string }{
		{"transfer", "fsckObjects", "true"},
		{"core", "hooksPath", "/dev/null"},
		{"core", "bare", "true"},
		{"core", "attributesFile", "/dev/null"},
		{"core", "bigFileThreshold", "1m"},
		{"gc", "auto", "0"},
		{"maintenance", "auto", "false"},
		{"http", "followRedirects", "false"},
		{"http", "proxy", r.cfg.Proxy},
		{"http", "lowSpeedLimit", "1000"},
		{"http", "lowSpeedTime", "20"},
		{"protocol", "version", "2"},
		{"pack", "threads", "1"},
		{"fetch", "recurseSubmodules", "false"},
		{"submodule", "recurse", "false"},
		{"credential", "helper", ""},
		{"gpg", "minTrustLevel", "undefined"},
		{"gpg", "program", r.file("home/gpg")},
		{"gpg.x509", "program", "/bin/false"},
		{"gpg.ssh", "program", "/bin/false"},
	}
	if r.cfg.AllowedSigners != "" {
		sections[len(sections)-1].value = "ssh-keygen"
		sections = append(sections, struct{ section, key, value string }{"gpg.ssh", "allowedSignersFile", r.file("home/allowed_signers")})
	}
	if r.cfg.RevokedSigners != "" {
		sections = append(sections, struct{ section, key, value string }{"gpg.ssh", "revocationFile", r.file("home/revoked_signers")})
	}
	var b strings.Builder
	for _, s := range sections {
		name, sub, ok := strings.Cut(s.section, ".")
		if ok {
			name += ` "` + sub + `"`
		}
		fmt.Fprintf(&b, "[%s]\n\t%s = \"%s\"\n", name, s.key, strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s.value))
	}
	// gpgv knows nothing but the keyring; git gives it the signature's file and a dash last.
	gpg := "#!/bin/sh\nexit 1\n"
	if r.cfg.PGPKeys != "" {
		gpg = "#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nd=${0%/*}\nexec gpgv --homedir \"$d\" --keyring \"$d/keyring\" --status-fd=1 -- \"$1\" \"$2\"\n"
	}
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{{"home/config", b.String(), 0o600}, {"home/gpg", gpg, 0o700}} {
		if err := os.WriteFile(r.file(f.name), []byte(f.text), f.mode); err != nil {
			return fmt.Errorf("writing git's configuration: %w", err)
		}
	}
	return nil
}

func (r *Repository) environment() []string {
	return []string{
		"PATH=" + r.path, "HOME=" + r.file("home"), "XDG_CONFIG_HOME=" + r.file("home"), "TMPDIR=" + r.file("tmp"), "LC_ALL=C",
		"GIT_DIR=" + r.repo(), "GIT_CONFIG_NOSYSTEM=1", "GIT_ATTR_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + r.file("home/config"),
		"GIT_TERMINAL_PROMPT=0", "GIT_NO_REPLACE_OBJECTS=1", "GIT_OPTIONAL_LOCKS=0", "GIT_LFS_SKIP_SMUDGE=1",
		"GIT_NO_LAZY_FETCH=1", "SSH_AUTH_SOCK=", "SSH_ASKPASS=/bin/false",
	}
}

// child is one git to run.
type child struct {
	stdin string
	args  []string
	env   []string // beside the environment that every git has
	said  string   // set by exec: its standard error
}

var localEnv = []string{"GIT_ALLOW_PROTOCOL=none", "GIT_ASKPASS=/bin/false"}

// local runs a git that asks no server.
func (r *Repository) local(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, localTimeout, errTime)
	defer cancel()
	out, err := r.exec(ctx, &child{stdin: stdin, args: args, env: localEnv})
	if err != nil {
		return nil, &redacted{err, ""}
	}
	return out, nil
}

// verdict runs a git that asks no server, for what it writes to standard error.
func (r *Repository) verdict(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, localTimeout, errTime)
	defer cancel()
	c := child{args: args, env: localEnv}
	_, err := r.exec(ctx, &c)
	if err != nil {
		return "", &redacted{err, ""}
	}
	return c.said, nil
}

// visit runs a git that asks the server, with the credential at hand.
func (r *Repository) visit(ctx context.Context, args ...string) ([]byte, error) {
	dir, err := os.MkdirTemp(r.file("tmp"), "visit-")
	if err != nil {
		return nil, fmt.Errorf("preparing a visit: %w", err)
	}
	defer os.RemoveAll(dir)
	env, secret, err := r.equip(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.o.Timeout, errTime)
	defer cancel()
	out, err := r.exec(ctx, &child{args: args, env: env})
	if err != nil {
		return nil, &redacted{err, secret}
	}
	return out, nil
}

// equip writes what a visit needs into its folder: credentials are there while git runs, and gone afterwards.
func (r *Repository) equip(dir string) (env []string, secret string, err error) {
	files := map[string]string{"key": r.cfg.SSHKeyFile, "known_hosts": r.cfg.KnownHostsFile, "ca": r.cfg.CAFile, "credential": r.cfg.CredentialFile}
	text := map[string]string{}
	for name, from := range files {
		if from == "" {
			continue
		}
		b, err := readSmall(from)
		if err != nil {
			return nil, "", err
		}
		text[name] = string(b)
	}
	env = []string{"GIT_ALLOW_PROTOCOL=https", "GIT_ASKPASS=/bin/false"}
	if text["ca"] != "" { // git would trust the machine's as well
		none := filepath.Join(dir, "empty")
		if err := os.Mkdir(none, 0o700); err != nil {
			return nil, "", fmt.Errorf("preparing a visit: %w", err)
		}
		env = append(env, "GIT_SSL_CAINFO="+filepath.Join(dir, "ca"), "GIT_SSL_CAPATH="+none)
	}
	if r.cfg.CredentialFile != "" {
		user, password, err := parseCredential(text["credential"])
		if err != nil {
			return nil, "", err
		}
		secret, text["user"], text["password"] = password, user, password
		text["askpass"] = "#!/bin/sh\ncase \"$1\" in Username*) exec cat \"${0%/*}/user\";; Password*) exec cat \"${0%/*}/password\";; esac\nexit 1\n"
		env = append(env, "GIT_ASKPASS="+filepath.Join(dir, "askpass"))
	}
	if r.cfg.SSHKeyFile != "" {
		env = append(env, "GIT_ALLOW_PROTOCOL=ssh", "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND="+sshCommand(dir))
	}
	delete(text, "credential")
	for name, content := range text {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			return nil, "", fmt.Errorf("preparing a visit: %w", err)
		}
	}
	return env, secret, nil
}

func sshCommand(dir string) string {
	quote := func(name string) string { return "'" + strings.ReplaceAll(filepath.Join(dir, name), "'", `'\''`) + "'" }
	return "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no -o UserKnownHostsFile=" + quote("known_hosts") +
		" -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none -o IdentityFile=" + quote("key") +
		" -o ControlPath=none -o PermitLocalCommand=no -o ForwardAgent=no -o ClearAllForwardings=yes -o ConnectTimeout=20"
}

// parseCredential reads a token or USER:PASSWORD. A token goes with the user name that the common code hosts take.
func parseCredential(text string) (user, password string, err error) {
	line := strings.TrimSpace(text)
	if line == "" || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", "", errors.New("reading credential_file: is empty or has blanks; want one line with a token or USER:PASSWORD")
	}
	user, password, ok := strings.Cut(line, ":")
	if !ok {
		return "oauth2", line, nil
	}
	if user == "" || password == "" {
		return "", "", errors.New("reading credential_file: has an empty half; want a token or USER:PASSWORD")
	}
	return user, password, nil
}

func readSmall(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what git needs: %w", err)
	}
	return b, nil
}

// exec runs git: own process group, killed whole; time, disk and output bounded.
func (r *Repository) exec(ctx context.Context, c *child) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out, errs := &limited{max: maxOutput, full: cancel}, &limited{max: maxStderr}
	blocks := fmt.Sprint(r.o.MaxBytes / 512)
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", limits, r.git, blocks}, c.args...)...)
	cmd.Dir, cmd.Env = r.file("tmp"), append(r.environment(), c.env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.stdin), out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var watcher sync.WaitGroup
	watched, stop := context.WithCancel(ctx)
	watcher.Go(func() { r.watchDisk(watched, cancel) })
	err := cmd.Run()
	stop()
	watcher.Wait()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // children that outlived it
	}
	text := errs.String()
	c.said = text
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil && r.tooBig(err, text):
		err = fmt.Errorf("%w: more than %d bytes", errSize, r.o.MaxBytes)
	case err != nil && isFsck(text):
		err = fmt.Errorf("%w: %s", errObjects, text)
	case err != nil:
		err = fmt.Errorf("git %s: %w: %s", c.args[0], err, text)
	}
	return out.Bytes(), err
}

// tooBig tells whether the limit on files ended git or a child of it.
func (r *Repository) tooBig(err error, text string) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGXFSZ {
			return true
		}
	}
	return strings.Contains(text, "died of signal 25") || strings.Contains(text, "File too large") || sizeOf(r.repo()) > r.o.MaxBytes
}

// isFsck tells whether git refused an object: a text, since git has no exit code for it. A miss costs only that the
// commit is looked at again.
func isFsck(text string) bool { return strings.Contains(text, "fsck error") }

// watchDisk ends git once its folder is too big.
func (r *Repository) watchDisk(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(diskTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if sizeOf(r.o.Dir) > r.o.MaxBytes {
			cancel(fmt.Errorf("%w: more than %d bytes", errSize, r.o.MaxBytes))
			return
		}
	}
}

// sizeOf adds up the files below a folder; links are not followed, and what goes away meanwhile counts nothing.
func sizeOf(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // it went away
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}

// limited keeps the first bytes that a child prints; full, if set, ends a child that prints more.
type limited struct {
	bytes.Buffer
	max  int
	full context.CancelCauseFunc
}

func (l *limited) Write(b []byte) (int, error) {
	if rest := l.max - l.Len(); len(b) > rest {
		if l.full != nil {
			l.full(fmt.Errorf("%w: git printed more than %d bytes", errSize, l.max))
		}
		l.Buffer.Write(b[:rest])
		return len(b), nil
	}
	return l.Buffer.Write(b)
}

// redacted is an error of git without the credential, in whatever form git prints it.
type redacted struct {
	error
	secret string
}

func (e *redacted) Unwrap() error { return e.error }

var userinfo = regexp.MustCompile(`://[^/@\s'"]*@`)

func (e *redacted) Error() string {
	text := e.error.Error()
	for _, form := range []string{e.secret, url.QueryEscape(e.secret), url.PathEscape(e.secret)} {
		if form != "" {
			text = strings.ReplaceAll(text, form, "[redacted]")
		}
	}
	text = userinfo.ReplaceAllString(text, "://")
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, text))
	return text[:min(len(text), maxText)]
}
