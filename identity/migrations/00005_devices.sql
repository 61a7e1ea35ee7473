-- +goose Up
-- Times are seconds since 1970, changed is a place of the clock. A device is here if it was enrolled here, or if an administrator blocked or deleted it;
-- a deleted one stays, so that it cannot enrol itself again, and a forgotten one, so that every node forgets it. spki is hex, of the key that was last seen with it.
CREATE TABLE identity_devices (
    id           TEXT    PRIMARY KEY,
    state        TEXT    NOT NULL,
    owner_issuer TEXT    NOT NULL,
    owner        TEXT    NOT NULL,
    shared       BOOLEAN NOT NULL,
    platform     TEXT    NOT NULL,
    serial       TEXT    NOT NULL,
    spki         TEXT    NOT NULL,
    note         TEXT    NOT NULL,
    created      BIGINT  NOT NULL,
    updated      BIGINT  NOT NULL,
    changed      BIGINT  NOT NULL
);
CREATE INDEX identity_devices_changed ON identity_devices (changed);

-- A code is kept as SHA-256 of its text, which has 130 bits.
CREATE TABLE identity_enrolments (
    digest       TEXT    PRIMARY KEY,
    id           TEXT    NOT NULL,
    owner_issuer TEXT    NOT NULL,
    owner        TEXT    NOT NULL,
    shared       BOOLEAN NOT NULL,
    expires      BIGINT  NOT NULL,
    used         BIGINT  NOT NULL
);

-- What a token is bound to, JSON; empty where it is bound to nothing.
ALTER TABLE identity_tokens ADD COLUMN bound TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE identity_tokens DROP COLUMN bound;
DROP TABLE identity_enrolments;
DROP TABLE identity_devices;
