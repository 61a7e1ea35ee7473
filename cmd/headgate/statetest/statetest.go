// Package statetest gives tests an empty state database: SQLite, or the
// PostgreSQL server that OnPostgres starts. The same tests run on both.
package statetest

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"
)

// variable names the server for a test binary that OnPostgres runs again.
const variable = "HEADGATE_TEST_POSTGRES"

// fileConns is how many connections an SQLite file has at most: those that wait to write there are served by chance.
const fileConns = 16

// serverConns is how many connections to a server one process has at most, as in the gateway.
const serverConns = 32

// URL is the PostgreSQL server of this run, or "" where tests use SQLite.
func URL() string { return os.Getenv(variable) }

// OpenDB opens an empty database for one test.
func OpenDB(tb testing.TB) *sql.DB {
	tb.Helper()
	if URL() != "" {
		return open(tb, "pgx", NewDatabase(tb, URL()))
	}
	return OpenFile(tb, filepath.Join(tb.TempDir(), "state.db"))
}

// OpenAt opens the database of a file: the file itself, or on PostgreSQL the one that is named after it. It is the same
// one for whoever opens that file in this run, also in another process.
func OpenAt(tb testing.TB, file string) *sql.DB {
	tb.Helper()
	if URL() == "" {
		return OpenFile(tb, file)
	}
	name := fmt.Sprintf("file_%x", sha256.Sum256([]byte(file)))[:40]
	create(tb, URL(), name)
	return open(tb, "pgx", strings.Replace(URL(), "/postgres?", "/"+name+"?", 1))
}

// OpenFile opens a SQLite file as the gateway does.
func OpenFile(tb testing.TB, file string) *sql.DB {
	tb.Helper()
	db := open(tb, "sqlite", "file:"+file+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate")
	db.SetMaxOpenConns(fileConns)
	return db
}

func open(tb testing.TB, driver, dsn string) *sql.DB {
	tb.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	if driver == "pgx" {
		db.SetMaxOpenConns(serverConns)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// duplicateDatabase is the SQLSTATE of a database that exists already.
const duplicateDatabase = "42P04"

var databases atomic.Int64

// NewDatabase makes an empty database on a server and gives its URL; it goes with the test.
func NewDatabase(tb testing.TB, server string) string {
	tb.Helper()
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), databases.Add(1))
	create(tb, server, name)
	return strings.Replace(server, "/postgres?", "/"+name+"?", 1)
}

// create makes an empty database where there is none of that name; it goes with the test that made it.
func create(tb testing.TB, server, name string) {
	tb.Helper()
	admin := open(tb, "pgx", server)
	_, err := admin.Exec("CREATE DATABASE " + name)
	if failed, ok := errors.AsType[*pgconn.PgError](err); ok && failed.Code == duplicateDatabase {
		return
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			tb.Error(err)
		}
	})
}

// OnPostgres runs the tests of this binary whose names fit again, with PostgreSQL below them.
func OnPostgres(t *testing.T, run string) {
	t.Helper()
	if URL() != "" {
		return // this is that run
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+run, "-test.count=1")
	cmd.Env = append(os.Environ(), variable+"="+Start(t).URL) //nolint:forbidigo // it is this binary, as it runs now
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("on PostgreSQL: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "no tests to run") {
		t.Errorf("on PostgreSQL: no test fits %q", run)
	}
}

// A Server is a PostgreSQL server of one test.
type Server struct {
	// URL is that of the maintenance database.
	URL string

	t       *testing.T
	control func(args ...string) error
}

// Stop ends the server at once, and every connection with it.
func (s *Server) Stop() {
	s.t.Helper()
	if err := s.control("-m", "immediate", "stop"); err != nil {
		s.t.Fatal(err)
	}
}

// Start runs a PostgreSQL server on a socket of its own until the test ends.
func Start(t *testing.T) *Server {
	t.Helper()
	bin := programs(t)
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := owner(t, dir)
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir, cmd.SysProcAttr = dir, as
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "--no-sync", "-A", "trust", "-U", "headgate", "-E", "UTF8", "--locale=C", "-D", data).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	// What a test writes needs to survive nothing: durability is the server's own business.
	settings := "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c max_connections=300 -k " + dir
	server := &Server{URL: "postgres:///postgres?user=headgate&host=" + dir, t: t}
	server.control = func(args ...string) error {
		out, err := command("pg_ctl", append([]string{"-D", data, "-l", filepath.Join(dir, "log"), "-w", "-t", "60", "-o", settings}, args...)...).CombinedOutput()
		if err != nil {
			text, _ := os.ReadFile(filepath.Join(dir, "log")) // there is none where it did not come so far
			return fmt.Errorf("pg_ctl %s: %w\n%s%s", args, err, out, text)
		}
		return nil
	}
	server.Resume()
	t.Cleanup(func() {
		if err := server.control("-m", "immediate", "stop"); err != nil && server.control("status") == nil {
			t.Error(err)
		}
	})
	return server
}

// Resume starts the server again after Stop.
func (s *Server) Resume() {
	s.t.Helper()
	if err := s.control("start"); err != nil {
		s.t.Fatal(err)
	}
}

// owner is whom the server runs as, who gets dir: it refuses to run as root.
func owner(t *testing.T, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("PostgreSQL's user: %v; install postgresql", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

var version = regexp.MustCompile(`/(\d+)/bin/initdb$`)

// programs is the folder of the newest installed server.
func programs(t *testing.T) string {
	t.Helper()
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p)
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // the pattern is well-formed
	best, dir := -1, ""
	for _, p := range found {
		if m := version.FindStringSubmatch(p); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil && n > best {
				best, dir = n, filepath.Dir(p)
			}
		}
	}
	if dir == "" {
		t.Fatal("initdb is not installed; install postgresql")
	}
	return dir
}
