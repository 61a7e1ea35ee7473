-- +goose Up
-- Times are seconds since 1970. digest is hex, subject and scope are JSON. A parent
-- lives at least as long as its children, so a child without one is refused.
CREATE TABLE identity_tokens (
    id             TEXT    PRIMARY KEY,
    class          TEXT    NOT NULL,
    pepper         INTEGER NOT NULL,
    digest         TEXT    NOT NULL,
    subject_issuer TEXT    NOT NULL,
    subject_id     TEXT    NOT NULL,
    subject        TEXT    NOT NULL,
    subject_as_of  BIGINT  NOT NULL,
    assurance      INTEGER NOT NULL,
    owner          TEXT    NOT NULL,
    note           TEXT    NOT NULL,
    scope          TEXT    NOT NULL,
    parent         TEXT    NOT NULL,
    exchanged      BOOLEAN NOT NULL,
    created        BIGINT  NOT NULL,
    expires        BIGINT  NOT NULL,
    used           BIGINT  NOT NULL,
    revoked        BIGINT  NOT NULL
);
CREATE INDEX identity_tokens_subject ON identity_tokens (subject_issuer, subject_id);
CREATE INDEX identity_tokens_expires ON identity_tokens (expires);

-- +goose Down
DROP TABLE identity_tokens;
