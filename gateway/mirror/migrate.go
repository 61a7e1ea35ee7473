package mirror

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// versionTable is this package's own, since one database serves several.
const versionTable = "mirror_goose_version"

// migrate brings the mirror's tables up to date, in SQLite or PostgreSQL.
func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("opening migrations: %w", err)
	}
	options := []goose.ProviderOption{
		goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()),
	}
	dialect := dialectOf(ctx, db)
	if dialect == goose.DialectPostgres { // several nodes may start at once
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return fmt.Errorf("preparing migrations: %w", err)
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(dialect, db, sub, options...)
	if err != nil {
		return fmt.Errorf("preparing migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrating the mirror's tables: %w", err)
	}
	return nil
}

// dialectOf tells which of the two databases this is: only one knows its version by this name.
func dialectOf(ctx context.Context, db *sql.DB) goose.Dialect {
	var version string
	if err := db.QueryRowContext(ctx, `SELECT sqlite_version()`).Scan(&version); err != nil {
		return goose.DialectPostgres
	}
	return goose.DialectSQLite3
}
