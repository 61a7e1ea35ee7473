-- +goose Up
-- Versions that an operator has stopped: nothing of them is served until they are released.
CREATE TABLE mirror_quarantine (
    path    TEXT   NOT NULL,
    version TEXT   NOT NULL,
    reason  TEXT   NOT NULL,
    since   BIGINT NOT NULL,
    PRIMARY KEY (path, version)
);

-- When a version was last used, in microseconds since 1970, to ten minutes: what was not used for longest goes first.
CREATE TABLE mirror_used (
    path    TEXT   NOT NULL,
    version TEXT   NOT NULL,
    used    BIGINT NOT NULL,
    PRIMARY KEY (path, version)
);

-- +goose Down
DROP TABLE mirror_used;
DROP TABLE mirror_quarantine;
