-- +goose Up
-- Our own checksum database: an append-only tree (golang.org/x/mod/sumdb/tlog).
-- A row is never changed or removed: clients hold proofs that rest on it. lines are
-- the two of go.sum; hash is base64; the head's row is the lock of all writers.
CREATE TABLE mirror_sumdb_records (
    id      BIGINT PRIMARY KEY,
    path    TEXT   NOT NULL,
    version TEXT   NOT NULL,
    lines   TEXT   NOT NULL,
    UNIQUE (path, version)
);
CREATE TABLE mirror_sumdb_hashes (
    id   BIGINT PRIMARY KEY,
    hash TEXT   NOT NULL
);
CREATE TABLE mirror_sumdb_head (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    note TEXT    NOT NULL
);
INSERT INTO mirror_sumdb_head (one, note) VALUES (1, '');

-- What is known of versions. Times are microseconds since 1970, 0 is never. seen is
-- when content under this name was first proved to exist; indexed is its place in the
-- index, unique and rising; published is the commit time that its author set. origin
-- is out of the first .info, moved_to is another commit that the tag named later.
CREATE TABLE mirror_versions (
    path       TEXT   NOT NULL,
    version    TEXT   NOT NULL,
    seen       BIGINT NOT NULL,
    indexed    BIGINT NOT NULL,
    published  BIGINT NOT NULL,
    origin_vcs TEXT   NOT NULL,
    origin_url TEXT   NOT NULL,
    origin     TEXT   NOT NULL,
    moved_to   TEXT   NOT NULL,
    mod_hash   TEXT   NOT NULL,
    zip_hash   TEXT   NOT NULL,
    PRIMARY KEY (path, version)
);
CREATE INDEX mirror_versions_indexed ON mirror_versions (indexed);

-- The last place given out in the index; its row is the lock under which they are.
CREATE TABLE mirror_index_clock (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    last BIGINT  NOT NULL
);
INSERT INTO mirror_index_clock (one, last) VALUES (1, 0);

-- What the go.mod of a module's newest version says of the others. retracted is JSON.
CREATE TABLE mirror_modules (
    path       TEXT NOT NULL PRIMARY KEY,
    newest     TEXT NOT NULL,
    retracted  TEXT NOT NULL,
    deprecated TEXT NOT NULL
);

-- +goose Down
DROP TABLE mirror_modules;
DROP TABLE mirror_index_clock;
DROP TABLE mirror_versions;
DROP TABLE mirror_sumdb_head;
DROP TABLE mirror_sumdb_hashes;
DROP TABLE mirror_sumdb_records;
