package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver of the default state database

	"github.com/headgate/headgate/identity"
)

// Limits of a fleet's state database. What other nodes change is looked for well within the 5 s in which a lock holds
// everywhere, even where no notification comes.
const (
	fleetPoll       = 2 * time.Second
	fleetConnect    = 5 * time.Second
	fleetConns      = 32
	fleetIdle       = 5 * time.Minute
	listenAgain     = time.Second
	maxDatabaseFile = 64 << 10
	fileConns       = 16 // of SQLite: which of many that wait for the lock gets it is chance, and each waits 10 s at most
)

// A database is the state database: SQLite, or a fleet's PostgreSQL.
type database struct {
	*sql.DB
	wake <-chan struct{} // nil for SQLite, which no other node changes
	poll time.Duration
	stop func()
}

// openDatabase opens the SQLite file, or the PostgreSQL server whose URL the file holds.
func openDatabase(file string, logger *slog.Logger) (*database, error) {
	text, err := readStart(file)
	if err != nil {
		return nil, fmt.Errorf("opening the state database: %w", err)
	}
	if bytes.HasPrefix(text, []byte("postgres://")) || bytes.HasPrefix(text, []byte("postgresql://")) {
		return openFleet(file, strings.TrimSpace(string(text)), logger)
	}
	if len(text) > 0 && !bytes.HasPrefix(text, []byte("SQLite format 3\x00")) {
		return nil, fmt.Errorf("opening the state database: %s is neither an SQLite file nor holds a postgres:// URL", file)
	}
	db, err := openFile(file)
	if err != nil {
		return nil, err
	}
	return &database{DB: db, stop: func() {}}, nil
}

// readStart reads the beginning of a file, nothing where there is none.
func readStart(file string) ([]byte, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDatabaseFile))
}

// openFile opens an SQLite database: one writer waits for another instead of failing, and a commit is durable.
func openFile(file string) (*sql.DB, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would make it readable for everybody
	if err != nil {
		return nil, fmt.Errorf("opening the state database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("opening the state database: %w", err)
	}
	dsn := "file:" + (&url.URL{Path: file}).EscapedPath() +
		"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_txlock=immediate"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("opening the state database %s: %w", file, err)
	}
	db.SetMaxOpenConns(fileConns)
	return db, nil
}

// openFleet opens a PostgreSQL database and listens for what other nodes change in it. No error holds the URL, whose
// password is a secret.
func openFleet(file, text string, logger *slog.Logger) (*database, error) {
	config, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("opening the state database: %s holds no PostgreSQL URL that can be read; want postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full", file)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = fleetConnect
	}
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(fleetConns)
	db.SetMaxIdleConns(fleetConns)
	db.SetConnMaxIdleTime(fleetIdle)
	ctx, cancel := context.WithCancel(context.Background())
	wake := make(chan struct{}, 1)
	var running sync.WaitGroup
	running.Go(func() { listen(ctx, config, wake, logger) })
	return &database{DB: db, wake: wake, poll: fleetPoll, stop: func() { cancel(); running.Wait() }}, nil
}

// Close ends the listening, then the database.
func (d *database) Close() error {
	d.stop()
	return d.DB.Close()
}

// listen hands on each notification until ctx ends. A connection that breaks is made again, and counts as one: what
// was sent meanwhile is lost.
func listen(ctx context.Context, config *pgx.ConnConfig, wake chan<- struct{}, logger *slog.Logger) {
	for ctx.Err() == nil {
		err := listenOnce(ctx, config, wake)
		if ctx.Err() != nil {
			return
		}
		logger.LogAttrs(ctx, slog.LevelWarn, "not listening to the state database, it is polled instead", slog.Any("err", err))
		select {
		case <-ctx.Done():
		case <-time.After(listenAgain):
		}
	}
}

func listenOnce(ctx context.Context, config *pgx.ConnConfig, wake chan<- struct{}) error {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it goes either way
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+identity.NotifyChannel); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	for {
		select {
		case wake <- struct{}{}:
		default: // a look is due already
		}
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("waiting for notifications: %w", err)
		}
	}
}
