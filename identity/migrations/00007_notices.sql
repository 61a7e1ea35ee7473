-- +goose Up
-- Which node tells of which token's end, and which was told. Times are seconds since 1970, 0 is never; before is in seconds. Until
-- held_until nobody else tries; done is set once it was sent or given up.
CREATE TABLE identity_notices (
    token      TEXT    NOT NULL,
    before     BIGINT  NOT NULL,
    tries      INTEGER NOT NULL,
    held_until BIGINT  NOT NULL,
    done       BIGINT  NOT NULL,
    PRIMARY KEY (token, before)
);

-- +goose Down
DROP TABLE identity_notices;
