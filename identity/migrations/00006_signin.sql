-- +goose Up
-- Times are seconds since 1970, 0 is never; changed is a place of the clock. A person is here who signed in with a
-- browser, as the issuer last described them. kept is sealed: what the issuer is asked again with. Whoever the issuer no
-- longer knows has refused set until the next sign-in.
CREATE TABLE identity_people (
    issuer  TEXT   NOT NULL,
    id      TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    as_of   BIGINT NOT NULL,
    kept    TEXT   NOT NULL,
    until   BIGINT NOT NULL,
    checked BIGINT NOT NULL,
    taken   BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    PRIMARY KEY (issuer, id)
);
CREATE INDEX identity_people_changed ON identity_people (changed);
CREATE INDEX identity_people_checked ON identity_people (checked);

-- A session is kept as SHA-256 of its secret, which has 256 bits; id names it in records.
CREATE TABLE identity_sessions (
    digest    TEXT    PRIMARY KEY,
    id        TEXT    NOT NULL,
    issuer    TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    assurance INTEGER NOT NULL,
    created   BIGINT  NOT NULL,
    used      BIGINT  NOT NULL,
    expires   BIGINT  NOT NULL
);
CREATE INDEX identity_sessions_subject ON identity_sessions (issuer, subject);

-- Which tokens were minted in which session, for a sign-out that ends them.
CREATE TABLE identity_session_tokens (
    session TEXT NOT NULL,
    token   TEXT NOT NULL,
    PRIMARY KEY (session, token)
);

-- Device authorization grants (RFC 8628): codes are kept as SHA-256. state is pending, allowed, denied or redeemed.
CREATE TABLE identity_grants (
    digest    TEXT    PRIMARY KEY,
    user_code TEXT    NOT NULL UNIQUE,
    client    TEXT    NOT NULL,
    scope     TEXT    NOT NULL,
    address   TEXT    NOT NULL,
    host      TEXT    NOT NULL,
    created   BIGINT  NOT NULL,
    expires   BIGINT  NOT NULL,
    polled    BIGINT  NOT NULL,
    pause     BIGINT  NOT NULL,
    state     TEXT    NOT NULL,
    issuer    TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    session   TEXT    NOT NULL,
    assurance INTEGER NOT NULL
);
CREATE INDEX identity_grants_expires ON identity_grants (expires);

-- What was used once and may not be used again, by SHA-256; and wrong codes, by who typed them.
CREATE TABLE identity_used (
    digest  TEXT   PRIMARY KEY,
    expires BIGINT NOT NULL
);
CREATE TABLE identity_guesses (
    issuer  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    at      BIGINT NOT NULL
);
CREATE INDEX identity_guesses_subject ON identity_guesses (issuer, subject, at);

-- +goose Down
DROP TABLE identity_guesses;
DROP TABLE identity_used;
DROP TABLE identity_grants;
DROP TABLE identity_session_tokens;
DROP TABLE identity_sessions;
DROP TABLE identity_people;
