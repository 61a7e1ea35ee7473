package storetest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Region and Keys of the S3 server.
const (
	Region    = "us-east-1"
	AccessKey = "headgate"
	SecretKey = "headgate-secret"
)

// S3 starts a real S3 server, versitygw, with one bucket, and points the SDK's
// environment at its keys. It gives the server's URL and the bucket's address.
func S3(tb testing.TB) (server, location string) {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "modules"), 0o755); err != nil {
		tb.Fatal(err)
	}
	addr := freeAddress(tb)
	run(tb, addr, filepath.Join(tools(tb), "versitygw"), "--quiet", "--port", addr, "--region", Region,
		"--access", AccessKey, "--secret", SecretKey, "posix", dir)
	tb.Setenv("AWS_ACCESS_KEY_ID", AccessKey)
	tb.Setenv("AWS_SECRET_ACCESS_KEY", SecretKey)
	tb.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	return "http://" + addr, S3Location("http://" + addr)
}

// S3Location is the address of the bucket at another URL of the server, such as a proxy's.
func S3Location(server string) string {
	return "s3://modules?use_path_style=true&region=" + Region + "&endpoint=" + server
}

// GCS starts fake-gcs-server with one bucket and gives the bucket's address.
func GCS(tb testing.TB) string {
	tb.Helper()
	addr := freeAddress(tb)
	run(tb, addr, filepath.Join(tools(tb), "fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", port(addr),
		"-backend", "memory", "-public-host", addr, "-external-url", "http://"+addr, "-log-level", "error")
	answered(tb, http.MethodPost, "http://"+addr+"/storage/v1/b?project=headgate", `{"name":"modules"}`, nil)
	tb.Setenv("STORAGE_EMULATOR_HOST", addr)
	return "gs://modules"
}

// The account that Azurite is documented to have.
const (
	azureAccount = "devstoreaccount1"
	azureKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Azure starts Azurite with one container and gives the container's address.
func Azure(tb testing.TB) string {
	tb.Helper()
	addr := freeAddress(tb)
	run(tb, addr, "node", filepath.Join(azurite(tb), "node_modules", "azurite", "dist", "src", "blob", "main.js"),
		"--blobHost", "127.0.0.1", "--blobPort", port(addr), "--location", tb.TempDir(), "--silent", "--skipApiVersionCheck", "--disableTelemetry")
	date := time.Now().UTC().Format(http.TimeFormat)
	signed := strings.Join([]string{
		"PUT", "", "", "", "", "", "", "", "", "", "", "", "x-ms-date:" + date, "x-ms-version:2021-08-06",
		"/" + azureAccount + "/" + azureAccount + "/modules", "restype:container",
	}, "\n")
	key, err := base64.StdEncoding.DecodeString(azureKey)
	if err != nil {
		tb.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	io.WriteString(mac, signed)
	answered(tb, http.MethodPut, "http://"+addr+"/"+azureAccount+"/modules?restype=container", "", map[string]string{
		"x-ms-date": date, "x-ms-version": "2021-08-06",
		"Authorization": "SharedKey " + azureAccount + ":" + base64.StdEncoding.EncodeToString(mac.Sum(nil)),
	})
	tb.Setenv("AZURE_STORAGE_ACCOUNT", azureAccount)
	tb.Setenv("AZURE_STORAGE_KEY", azureKey)
	return "azblob://modules?localemu=true&protocol=http&domain=" + addr
}

func answered(tb testing.TB, method, url, body string, header map[string]string) {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), method, url, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
		tb.Fatalf("%s %s: %s\n%s", method, url, resp.Status, text)
	}
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// freeAddress is a loopback address on which nobody listens.
func freeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run starts a server that ends with the test, and waits until it listens.
func run(tb testing.TB, addr, name string, args ...string) {
	tb.Helper()
	var out strings.Builder
	ended := make(chan error, 1)
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // though the tests are killed
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting %s: %v", name, err)
	}
	go func() { ended <- cmd.Wait() }()
	tb.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			tb.Fatalf("%s ended: %v\n%s", name, err, out.String())
		case <-ctx.Done():
			tb.Fatalf("%s does not listen", name)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// tools is the folder of the two servers that are Go programs.
func tools(tb testing.TB) string {
	return built(tb, "go.sum", func(source, into string) *exec.Cmd {
		return exec.Command("go", "build", "-C", source, "-mod=readonly", "-o", into+"/",
			"github.com/versity/versitygw/cmd/versitygw", "github.com/fsouza/fake-gcs-server")
	})
}

// azurite is the folder of its npm packages.
func azurite(tb testing.TB) string {
	return built(tb, "package-lock.json", func(source, into string) *exec.Cmd {
		for _, name := range []string{"package.json", "package-lock.json"} {
			b, err := os.ReadFile(filepath.Join(source, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(into, name), b, 0o644)
			}
			if err != nil {
				tb.Fatal(err)
			}
		}
		return exec.Command("npm", "ci", "--prefix", into, "--no-audit", "--no-fund", "--ignore-scripts")
	})
}

// built gives a folder of the user's cache that make has filled, once for each
// content of the file that pins what is in it.
func built(tb testing.TB, pins string, fill func(source, into string) *exec.Cmd) string {
	tb.Helper()
	here, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/headgate/headgate/gateway/mirror/store/storetest").Output()
	if err != nil {
		tb.Fatalf("finding the sources of the servers: %v", err)
	}
	source := filepath.Join(strings.TrimSpace(string(here)), "servers")
	b, err := os.ReadFile(filepath.Join(source, pins))
	if err != nil {
		tb.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatal(err)
	}
	sum := sha256.Sum256(b)
	dir := filepath.Join(cache, "headgate-test", hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		tb.Fatal(err)
	}
	done := filepath.Join(dir, "complete")
	if _, err := os.Stat(done); err == nil {
		return dir
	}
	cmd := fill(source, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	if err := os.WriteFile(done, fmt.Appendln(nil, time.Now()), 0o644); err != nil {
		tb.Fatal(err)
	}
	return dir
}
