-- +goose Up
-- number is one more than the version's number in the public checksum database called sumdb, 0 is not known; fed is when
-- the index feed saw the version; licences is what its zip says: '' not looked at, or 'found', 'none', 'unknown' and SPDX ids.
ALTER TABLE mirror_versions ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
ALTER TABLE mirror_versions ADD COLUMN sumdb TEXT NOT NULL DEFAULT '';
ALTER TABLE mirror_versions ADD COLUMN fed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE mirror_versions ADD COLUMN licences TEXT NOT NULL DEFAULT '';

-- The largest signed head of a public checksum database that was seen on each UTC day (since 1970): what has a number
-- below its size existed on that day. Sizes rise with days.
CREATE TABLE mirror_heads (
    sumdb TEXT   NOT NULL,
    day   BIGINT NOT NULL,
    size  BIGINT NOT NULL,
    note  TEXT   NOT NULL,
    PRIMARY KEY (sumdb, day)
);

-- What the index feed showed in the last 90 days, and how far it was read. at, next and asked are microseconds.
CREATE TABLE mirror_feed (
    path    TEXT   NOT NULL,
    version TEXT   NOT NULL,
    at      BIGINT NOT NULL,
    PRIMARY KEY (path, version)
);
CREATE INDEX mirror_feed_at ON mirror_feed (at);
CREATE TABLE mirror_feed_cursor (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    url   TEXT    NOT NULL,
    next  BIGINT  NOT NULL,
    asked BIGINT  NOT NULL,
    kept  BIGINT  NOT NULL
);

-- +goose Down
DROP TABLE mirror_feed_cursor;
DROP TABLE mirror_feed;
DROP TABLE mirror_heads;
ALTER TABLE mirror_versions DROP COLUMN licences;
ALTER TABLE mirror_versions DROP COLUMN fed;
ALTER TABLE mirror_versions DROP COLUMN sumdb;
ALTER TABLE mirror_versions DROP COLUMN number;
