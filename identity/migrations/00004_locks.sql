-- +goose Up
-- The clock's row is the lock under which everything changes that other nodes must
-- learn of. A row that carries a place up to last is committed: who has read last and
-- then all rows behind the last place it knew has missed none.
CREATE TABLE identity_clock (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    last BIGINT  NOT NULL
);
INSERT INTO identity_clock (one, last) VALUES (1, 0);
ALTER TABLE identity_tokens ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX identity_tokens_changed ON identity_tokens (changed);

-- Administrative stops. Times are seconds since 1970, 0 is never. A lifted lock keeps
-- its row, so that every node learns of it.
CREATE TABLE identity_locks (
    kind    TEXT   NOT NULL,
    object  TEXT   NOT NULL,
    reason  TEXT   NOT NULL,
    author  TEXT   NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    lifted  BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    PRIMARY KEY (kind, object)
);
CREATE INDEX identity_locks_changed ON identity_locks (changed);

-- +goose Down
DROP TABLE identity_locks;
DROP INDEX identity_tokens_changed;
ALTER TABLE identity_tokens DROP COLUMN changed;
DROP TABLE identity_clock;
